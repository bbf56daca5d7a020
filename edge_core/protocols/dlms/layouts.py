"""Skeletons of profile rows: where tags and lengths stand, and where the values lie between them.

Invariants: no octet outside the buffer is looked at; counts and lengths are checked against what is left before they
are believed; lists nest at most MAX_DEPTH deep.
Source: DLMS UA Blue Book 4.1.5 (common data types, compact-array); Green Book A-XDR (IEC 61334-6) lengths.
"""

from __future__ import annotations

import struct
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edge_core.errors import MalformedApdu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ROWS: Final = 100_000
MAX_OCTETS: Final = 8 << 20
MAX_DEPTH: Final = 8
MAX_STRING: Final = 64
FLOAT_SCALER: Final = -3
"""Floats become integers of a thousandth of their unit, rounded half-even once."""


class ColumnMismatch(MalformedApdu):
    """The rows do not have as many elements as there are capture objects: prove these again."""


# kinds of a cell: what its value becomes
INT, NULL, DELTA, STRING, BITS, FLOAT, NESTED = range(7)

FIXED: Final[Mapping[int, tuple[int, str, int]]] = {  # tag: kind, struct code, octets
    0: (NULL, "", 0),
    3: (INT, "B", 1),
    5: (INT, "i", 4),
    6: (INT, "I", 4),
    13: (INT, "B", 1),
    15: (INT, "b", 1),
    16: (INT, "h", 2),
    17: (INT, "B", 1),
    18: (INT, "H", 2),
    20: (INT, "q", 8),
    21: (INT, "Q", 8),
    22: (INT, "B", 1),
    23: (FLOAT, "f", 4),
    24: (FLOAT, "d", 8),
    25: (STRING, "12s", 12),
    26: (STRING, "5s", 5),
    27: (STRING, "4s", 4),
    28: (DELTA, "b", 1),
    29: (DELTA, "h", 2),
    30: (DELTA, "i", 4),
    31: (DELTA, "B", 1),
    32: (DELTA, "H", 2),
    33: (DELTA, "I", 4),
    255: (NULL, "", 0),
}
STRING_TAGS: Final = (9, 10, 12)


class Element(NamedTuple):
    """Where one element of a row lies and what it is."""

    kind: int
    code: str  # of struct, "" for none
    offset: int  # of the value, from the start of the row
    tag: int


class RowLayout:
    """One skeleton of a row."""

    __slots__ = ("elements", "mask", "masked_octets", "same_kinds", "size", "skeleton", "struct")

    def __init__(self, octets: bytes, mask: bytearray, elements: Sequence[Element]) -> None:
        self.size = len(octets)
        self.mask = int.from_bytes(mask, "big")
        self.skeleton = int.from_bytes(octets, "big") & self.mask
        self.masked_octets = tuple((i, octets[i : i + 1]) for i, bits in enumerate(mask) if bits)
        self.elements = tuple(elements)
        self.struct = struct.Struct(">" + self.format())
        self.same_kinds = all(e.kind in (INT, STRING, BITS, FLOAT, NESTED) for e in elements)

    def format(self) -> str:
        """Struct format of a row; what is no value is padding."""
        parts, at = [], 0
        for e in self.elements:
            if e.code:
                parts.append(f"{e.offset - at}x{e.code}")
                at = e.offset + struct.calcsize(">" + e.code)
        parts.append(f"{self.size - at}x")
        return "".join(parts)


def axdr_length(buffer: bytes, at: int) -> tuple[int, int]:
    """An A-XDR length and the offset behind it."""
    if at >= len(buffer):
        raise MalformedApdu("a length stands behind the end of the buffer", at)
    first = buffer[at]
    if first < 0x80:
        return first, at + 1
    count = first & 0x7F
    if not 1 <= count <= 4 or at + 1 + count > len(buffer):
        raise MalformedApdu(f"a length of {count} octets", at)
    return int.from_bytes(buffer[at + 1 : at + 1 + count], "big"), at + 1 + count


def _skim(buffer: bytes, at: int, fixed: list[tuple[int, int]], depth: int) -> tuple[Element, int]:
    """The element at an offset and the offset behind it; (from, to) of tags and lengths go to `fixed`."""
    if at >= len(buffer):
        raise MalformedApdu("the row is cut", at)
    tag = buffer[at]
    if tag in FIXED:
        kind, code, size = FIXED[tag]
        end = at + 1 + size
        fixed.append((at, at + 1))
        element = Element(kind, code, at + 1, tag)
    elif tag in STRING_TAGS or tag == 4:
        count, value = axdr_length(buffer, at + 1)
        size = (count + 7) // 8 if tag == 4 else count
        end = value + size
        fixed.append((at, value))
        element = Element(BITS if tag == 4 else STRING, f"{size}s", value, tag)
    elif tag in (1, 2):
        if depth >= MAX_DEPTH:
            raise MalformedApdu(f"lists nested deeper than {MAX_DEPTH}", at)
        count, end = axdr_length(buffer, at + 1)
        if count > len(buffer) - end:
            raise MalformedApdu(f"a list of {count} elements in {len(buffer) - end} octets", at)
        fixed.append((at, end))
        for _ in range(count):
            _, end = _skim(buffer, end, fixed, depth + 1)
        element = Element(NESTED, f"{end - at}s", at, tag)
    else:
        raise MalformedApdu(f"data type {tag} in a profile row", at)
    if end > len(buffer):
        raise MalformedApdu("the row is cut", at)
    return element, end


def row_layout(buffer: bytes, at: int, columns: int) -> RowLayout:
    """Walk the row at an offset.

    Raises:
        ColumnMismatch: more elements than columns.
        MalformedApdu: it is no row, or runs past the buffer.
    """
    if at >= len(buffer) or buffer[at] not in (1, 2):
        raise MalformedApdu("no row", at)
    count, end = axdr_length(buffer, at + 1)
    if count > columns:
        raise ColumnMismatch(f"a row of {count} elements, but {columns} capture objects", at)
    fixed = [(at, end)]
    elements = []
    for _ in range(count):
        element, end = _skim(buffer, end, fixed, 1)
        elements.append(element._replace(offset=element.offset - at))
    mask = bytearray(end - at)
    for start, stop in fixed:
        mask[start - at : stop - at] = b"\xff" * (stop - start)
    return RowLayout(buffer[at:end], mask, elements)


Cell = int | bytes | None


def as_hex(octets: bytes) -> str | None:
    """A string cell; what is longer than a column may carry is no reading."""
    return octets.hex() if len(octets) <= MAX_STRING else None


def float_cell(value: float) -> int | None:
    """A float cell in thousandths, rounded half-even once; infinities and NaN are no reading."""
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return int(Decimal(value).scaleb(-FLOAT_SCALER).to_integral_value(ROUND_HALF_EVEN))


def cell_of(kind: int, raw: Any) -> Cell:
    """A value as `struct` gives it, as a cell."""
    if kind == FLOAT:
        return float_cell(raw)
    if kind == BITS:
        return int.from_bytes(raw, "big")
    return raw  # type: ignore[no-any-return]


def compact_array(buffer: bytes, columns: int) -> tuple[list[list[Cell]], list[list[int]]]:
    """A compact-array of structures as one list of cells and one of kinds per column.

    Raises:
        ColumnMismatch: its type description has another number of elements.
        MalformedApdu: it is cut, nested, or has more rows than MAX_ROWS.
    """
    if len(buffer) < 3 or buffer[1] != 2:
        raise MalformedApdu("a compact-array that is not one of structures", 1)
    count, at = axdr_length(buffer, 2)
    if count != columns:
        raise ColumnMismatch(
            f"a compact-array of {count} columns, but {columns} capture objects", 2
        )
    tags = buffer[at : at + count]
    at += count
    for tag in tags:
        if tag not in FIXED and tag not in STRING_TAGS and tag != 4:
            raise MalformedApdu(f"data type {tag} in a compact-array", at)
    size, at = axdr_length(buffer, at)
    if len(tags) < count or size != len(buffer) - at:
        raise MalformedApdu(f"{len(buffer) - at} octets of contents, not {size}", at)
    cells: list[list[Cell]] = [[] for _ in tags]
    kinds: list[list[int]] = [[] for _ in tags]
    rows = 0
    while at < len(buffer):
        rows += 1
        before = at
        for i, tag in enumerate(tags):
            kind, code, width = FIXED.get(tag, (STRING, "", -1))
            if width < 0:
                length, at = axdr_length(buffer, at)
                kind = BITS if tag == 4 else STRING
                width = (length + 7) // 8 if tag == 4 else length
                code = f"{width}s"
            if at + width > len(buffer):
                raise MalformedApdu("the last row is cut", at)
            cells[i].append(
                cell_of(kind, struct.unpack_from(">" + code, buffer, at)[0]) if code else None
            )
            kinds[i].append(INT if kind == DELTA else kind)
            at += width
        if rows > MAX_ROWS or at == before:
            raise MalformedApdu(
                f"a compact-array of more than {MAX_ROWS} rows, or of empty ones", at
            )
    return cells, kinds
