"""A-XDR: the values that DLMS carries, to a typed tree and back.

Invariants: a value keeps its type (`Data.tag`), so that `encode(decode(x)) == x` for what is encoded the shortest way
and is valid text; date-times inside octet-strings stay octets here, recognising them is the business of who knows the
attribute. Nothing is believed: a count is compared with the octets that are left before anything is made of it.

Limits: MAX_DEPTH levels, MAX_ELEMENTS values and ELEMENTS_AN_OCTET of them for each octet (a compact-array may describe
elements that take none), lengths of at most four octets, and never more than the buffer holds; hence time and memory stay
below a fixed multiple of the buffer. `09 80` (the indefinite form of BER) is refused; lengths that
are longer than needed (`82 00 0C`) are accepted, meters write them.
Source: DLMS UA Green Book ed. 9, clause 9.5 (Data), A-XDR (IEC 61334-6); compact-array: clause 9.5, TypeDescription.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_core.errors import LocalProtocolError, MalformedApdu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 1 << 18
ELEMENTS_AN_OCTET: Final = 8


class DataType(IntEnum):
    """Tags of Data."""

    NULL = 0
    ARRAY = 1
    STRUCTURE = 2
    BOOLEAN = 3
    BIT_STRING = 4
    DOUBLE_LONG = 5
    DOUBLE_LONG_UNSIGNED = 6
    OCTET_STRING = 9
    VISIBLE_STRING = 10
    UTF8_STRING = 12
    BCD = 13
    INTEGER = 15
    LONG = 16
    UNSIGNED = 17
    LONG_UNSIGNED = 18
    COMPACT_ARRAY = 19
    LONG64 = 20
    LONG64_UNSIGNED = 21
    ENUM = 22
    FLOAT32 = 23
    FLOAT64 = 24
    DATE_TIME = 25
    DATE = 26
    TIME = 27
    DELTA_INTEGER = 28
    DELTA_LONG = 29
    DELTA_DOUBLE_LONG = 30
    DELTA_UNSIGNED = 31
    DELTA_LONG_UNSIGNED = 32
    DELTA_DOUBLE_LONG_UNSIGNED = 33
    DONT_CARE = 255

    @property
    def words(self) -> str:
        """The standard's spelling: `double-long-unsigned`."""
        return self.name.lower().replace("_", "-").replace("null", "null-data")


class BitString(msgspec.Struct, frozen=True):
    """A bit-string. Bit 0 is the first one: the most significant bit of the first octet.

    Attributes:
        octets: (count + 7) // 8 octets.
        count: number of bits.
    """

    octets: bytes
    count: int

    def __str__(self) -> str:
        return f"{int.from_bytes(self.octets, 'big'):0{8 * len(self.octets)}b}"[: self.count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, bit: int) -> bool:
        if not 0 <= bit < self.count:
            raise IndexError(bit)
        return bool(self.octets[bit >> 3] & (0x80 >> (bit & 7)))

    def ones(self) -> tuple[int, ...]:
        """Numbers of the bits that are set, ascending."""
        return tuple(
            8 * i + bit
            for i, octet in enumerate(self.octets)
            if octet
            for bit in range(8)
            if octet & (0x80 >> bit) and 8 * i + bit < self.count
        )

    @classmethod
    def of(cls, text: str) -> BitString:
        """From "0101"; anything but 0 and 1 is a ValueError."""
        size = (len(text) + 7) // 8
        return cls(int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big"), len(text))


class TypeDescription(msgspec.Struct, frozen=True):
    """Type of the elements of a compact-array.

    Attributes:
        tag: type of the value; ARRAY and STRUCTURE have inner types.
        count: elements of an ARRAY.
        inner: one type of an ARRAY, one per field of a STRUCTURE.
    """

    tag: DataType
    count: int = 0
    inner: tuple[TypeDescription, ...] = ()


class CompactArray(msgspec.Struct, frozen=True):
    """Elements of one type, sent without their tags."""

    type: TypeDescription
    elements: tuple[Data, ...]


Value = (
    None | bool | int | float | str | bytes | BitString | CompactArray | tuple[Any, ...]  # of Data
)


class Data(msgspec.Struct, frozen=True):
    """One value with its type.

    Attributes:
        tag: the type.
        value: None (null-data, don't-care), bool, int, float, str, bytes (octet-string, date-time, date, time),
            BitString, CompactArray, or a tuple of Data (array, structure).
    """

    tag: DataType
    value: Value

    def plain(self) -> Any:
        """The value without types: arrays and structures as lists, compact-arrays as lists of their elements."""
        value = self.value
        if isinstance(value, tuple):
            return [item.plain() for item in value]
        if isinstance(value, CompactArray):
            return [item.plain() for item in value.elements]
        return value


_FIXED: Final[dict[int, tuple[DataType, struct.Struct]]] = {
    tag: (DataType(tag), struct.Struct(code))
    for tag, code in {
        5: ">i",
        6: ">I",
        13: ">b",
        15: ">b",
        16: ">h",
        17: ">B",
        18: ">H",
        20: ">q",
        21: ">Q",
        22: ">B",
        23: ">f",
        24: ">d",
        28: ">b",
        29: ">h",
        30: ">i",
        31: ">B",
        32: ">H",
        33: ">I",
    }.items()
}
_OCTETS: Final[dict[int, tuple[DataType, int]]] = {
    25: (DataType.DATE_TIME, 12),
    26: (DataType.DATE, 5),
    27: (DataType.TIME, 4),
}
_TEXT: Final = {10: DataType.VISIBLE_STRING, 12: DataType.UTF8_STRING}
_LEAF_OCTETS: Final[dict[int, int]] = {
    0: 0,
    3: 1,
    255: 0,
    **{tag: s.size for tag, (_, s) in _FIXED.items()},
    **{tag: n for tag, (_, n) in _OCTETS.items()},
}
"""Octets after the tag of the types whose size is fixed."""

NULL: Final = Data(DataType.NULL, None)
DONT_CARE: Final = Data(DataType.DONT_CARE, None)
_BOOLEANS: Final = (Data(DataType.BOOLEAN, False), Data(DataType.BOOLEAN, True))


def decode(octets: bytes, offset: int = 0) -> tuple[Data, int]:
    """The value at `offset` and the offset behind it.

    Raises:
        MalformedApdu: a length, count, depth or tag that cannot be; `offset` counts from the start of `octets`.
    """
    reader = _Reader(bytes(octets), offset)
    return reader.value(0), reader.pos


def decode_whole(octets: bytes, offset: int = 0) -> Data:
    """The one value that fills the octets from `offset` on.

    Raises:
        MalformedApdu: also when something follows it.
    """
    value, end = decode(octets, offset)
    if end != len(octets):
        raise MalformedApdu(f"{len(octets) - end} octets follow the value", end)
    return value


def read_length(octets: bytes, offset: int) -> tuple[int, int]:
    """A length and the offset behind it; not compared with what is left.

    Raises:
        MalformedApdu: it is cut, the indefinite form 80, or longer than four octets.
    """
    try:
        n = octets[offset]
    except IndexError:
        raise MalformedApdu("a length is missing", offset) from None
    offset += 1
    if n < 0x80:
        return n, offset
    size = n & 0x7F
    if not 1 <= size <= 4:
        raise MalformedApdu(f"length octet {n:02X}: 1 to 4 octets may follow", offset - 1)
    end = offset + size
    if end > len(octets):
        raise MalformedApdu("a length is cut", offset)
    return int.from_bytes(octets[offset:end], "big"), end


def read_octets(octets: bytes, offset: int) -> tuple[bytes, int]:
    """Length-prefixed octets without a tag, and the offset behind them.

    Raises:
        MalformedApdu: the length is wrong or runs past the end.
    """
    n, start = read_length(octets, offset)
    end = start + n
    if end > len(octets):
        raise MalformedApdu(f"{n} octets are announced, {len(octets) - start} are left", offset)
    return octets[start:end], end


def encode_length(n: int) -> bytes:
    """The shortest form of a length."""
    if n < 0x80:
        return bytes((n,))
    size = (n.bit_length() + 7) // 8
    return bytes((0x80 | size,)) + n.to_bytes(size, "big")


def encode_octets(octets: bytes) -> bytes:
    """Length-prefixed octets without a tag."""
    return encode_length(len(octets)) + octets


def skip(octets: bytes, offset: int = 0) -> int:
    """The offset behind the value at `offset`, without making it.

    Raises:
        MalformedApdu: as `decode`, save for the depth, which costs nothing here.
    """
    end = len(octets)
    pending = 1
    while pending:
        if pending > end - offset:
            raise MalformedApdu(f"{pending} values are due, {end - offset} octets are left", offset)
        tag = octets[offset]
        offset += 1
        pending -= 1
        size = _LEAF_OCTETS.get(tag)
        if size is not None:
            offset += size
        elif tag in (1, 2):
            n, offset = read_length(octets, offset)
            pending += n
        elif tag in (9, 10, 12):
            n, offset = read_length(octets, offset)
            offset += n
        elif tag == 4:
            n, offset = read_length(octets, offset)
            offset += (n + 7) // 8
        elif tag == 19:
            offset = _skip_type(octets, offset)
            n, offset = read_length(octets, offset)
            offset += n
        else:
            raise MalformedApdu(f"unknown data type {tag}", offset - 1)
        if offset > end:
            raise MalformedApdu("a value runs past the end", end)
    return offset


def _skip_type(octets: bytes, offset: int) -> int:
    pending = 1
    while pending:
        if pending > len(octets) - offset:
            raise MalformedApdu("a type description is cut", offset)
        tag = octets[offset]
        offset += 1
        pending -= 1
        if tag == 1:
            offset += 2
            pending += 1
        elif tag == 2:
            n, offset = read_length(octets, offset)
            pending += n
        elif tag not in _LEAF_OCTETS and tag not in (4, 9, 10, 12):
            raise MalformedApdu(f"data type {tag} in a compact-array", offset - 1)
    return offset


class _Reader:
    """A cursor with a budget of values."""

    __slots__ = ("budget", "buf", "end", "pos")

    def __init__(self, buf: bytes, pos: int) -> None:
        self.buf = buf
        self.pos = pos
        self.end = len(buf)
        self.budget = min(MAX_ELEMENTS, 256 + ELEMENTS_AN_OCTET * (len(buf) - pos))

    def value(self, depth: int) -> Data:
        """The value at the cursor, tag first."""
        pos = self.pos
        if pos >= self.end:
            raise MalformedApdu("a value is missing", pos)
        self.pos = pos + 1
        return self.body(self.buf[pos], depth)

    def body(self, tag: int, depth: int) -> Data:
        """The value of a type whose tag was read or is described elsewhere."""
        pos = self.pos
        fixed = _FIXED.get(tag)
        if fixed is not None:
            kind, form = fixed
            self.pos = pos + form.size
            if self.pos > self.end:
                raise MalformedApdu(f"{kind.words} is cut", pos)
            return Data(kind, form.unpack_from(self.buf, pos)[0])
        if tag == 9:
            return Data(DataType.OCTET_STRING, self.take(self.length()))
        if tag in (1, 2):
            return self.collection(tag, depth)
        if tag == 0:
            return NULL
        if tag in _TEXT:
            return Data(_TEXT[tag], self.take(self.length()).decode("utf-8", "replace"))
        if tag in _OCTETS:
            kind, size = _OCTETS[tag]
            return Data(kind, self.take(size))
        if tag == 3:
            return _BOOLEANS[self.take(1) != b"\0"]
        if tag == 4:
            count = self.length()
            return Data(DataType.BIT_STRING, BitString(self.take((count + 7) // 8), count))
        if tag == 19:
            return self.compact(depth)
        if tag == 255:
            return DONT_CARE
        raise MalformedApdu(f"unknown data type {tag}", pos - 1)

    def collection(self, tag: int, depth: int) -> Data:
        """An array or structure: every element takes at least its tag."""
        start = self.pos
        count = self.length()
        if count > self.end - self.pos:
            raise MalformedApdu(
                f"{count} elements are announced, {self.end - self.pos} octets are left", start
            )
        self.descend(depth, start)
        self.spend(count, start)
        value = self.value
        return Data(
            DataType.ARRAY if tag == 1 else DataType.STRUCTURE,
            tuple([value(depth + 1) for _ in range(count)]),
        )

    def compact(self, depth: int) -> Data:
        """A compact-array: the elements fill the contents exactly."""
        start = self.pos
        self.descend(depth, start)
        kind = self.type(depth + 1)
        size = self.length()
        outer, self.end = self.end, self.pos + size
        if self.end > outer:
            raise MalformedApdu(f"{size} octets are announced, {outer - self.pos} are left", start)
        elements = []
        while self.pos < self.end:
            before = self.pos
            elements.append(self.packed(kind, depth + 1))
            if self.pos == before:
                raise MalformedApdu("elements of a compact-array without octets", start)
        self.end = outer
        return Data(DataType.COMPACT_ARRAY, CompactArray(kind, tuple(elements)))

    def packed(self, kind: TypeDescription, depth: int) -> Data:
        """One element of a compact-array."""
        self.spend(1, self.pos)
        if kind.tag == DataType.STRUCTURE:
            return Data(kind.tag, tuple([self.packed(t, depth + 1) for t in kind.inner]))
        if kind.tag == DataType.ARRAY:
            self.spend(kind.count, self.pos)
            inner = kind.inner[0]
            return Data(kind.tag, tuple([self.packed(inner, depth + 1) for _ in range(kind.count)]))
        return self.body(kind.tag, depth)

    def type(self, depth: int) -> TypeDescription:
        """A type description."""
        start = self.pos
        self.descend(depth, start)
        self.spend(1, start)
        tag = self.take(1)[0]
        if tag == 1:
            count = int.from_bytes(self.take(2), "big")
            return TypeDescription(DataType.ARRAY, count, (self.type(depth + 1),))
        if tag == 2:
            count = self.length()
            if count > self.end - self.pos:
                raise MalformedApdu(f"a type of {count} fields is cut", start)
            return TypeDescription(
                DataType.STRUCTURE, 0, tuple([self.type(depth + 1) for _ in range(count)])
            )
        if tag not in _LEAF_OCTETS and tag not in (4, 9, 10, 12):
            raise MalformedApdu(f"data type {tag} in a compact-array", start)
        return TypeDescription(DataType(tag))

    def length(self) -> int:
        """A length at the cursor."""
        pos = self.pos
        if pos < self.end and self.buf[pos] < 0x80:
            self.pos = pos + 1
            return self.buf[pos]
        n, self.pos = read_length(self.buf, pos)
        return n

    def take(self, size: int) -> bytes:
        """The next octets."""
        pos = self.pos
        end = pos + size
        if end > self.end:
            raise MalformedApdu(f"{size} octets are announced, {self.end - pos} are left", pos)
        self.pos = end
        return self.buf[pos:end]

    def descend(self, depth: int, at: int) -> None:
        """Refuse more than MAX_DEPTH levels."""
        if depth >= MAX_DEPTH:
            raise MalformedApdu(f"more than {MAX_DEPTH} levels", at)

    def spend(self, count: int, at: int) -> None:
        """Refuse more values than the budget."""
        self.budget -= count
        if self.budget < 0:
            raise MalformedApdu("more values than so many octets may hold", at)


def encode(data: Data) -> bytes:
    """A value as octets, its tag first.

    Raises:
        LocalProtocolError: the value does not fit its type.
    """
    out: list[bytes] = []
    _encode(data, out.append)
    return b"".join(out)


def _encode(data: Data, put: Callable[[bytes], None]) -> None:
    put(bytes((data.tag,)))
    if isinstance(data.value, CompactArray):
        compact = data.value
        _encode_type(compact.type, put)
        packed: list[bytes] = []
        for element in compact.elements:
            _encode_packed(element, compact.type, packed.append)
        put(encode_octets(b"".join(packed)))
    elif isinstance(data.value, tuple):
        put(encode_length(len(data.value)))
        for item in data.value:
            _encode(item, put)
    else:
        put(_encode_body(data))


def _encode_body(data: Data) -> bytes:
    """A value that is no collection, without its tag."""
    tag, value = data.tag, data.value
    fixed = _FIXED.get(tag)
    if fixed is not None:
        try:
            return fixed[1].pack(value)
        except (struct.error, OverflowError) as cause:
            raise LocalProtocolError(f"{value!r} is no {tag.words}: {cause}") from None
    if value is None and tag in (DataType.NULL, DataType.DONT_CARE):
        return b""
    if isinstance(value, bool) and tag == DataType.BOOLEAN:
        return b"\x01" if value else b"\x00"
    if isinstance(value, bytes):
        if tag == DataType.OCTET_STRING:
            return encode_octets(value)
        if tag in _OCTETS and len(value) == _OCTETS[tag][1]:
            return value
    if isinstance(value, str) and tag in _TEXT:
        return encode_octets(value.encode())
    if isinstance(value, BitString) and tag == DataType.BIT_STRING:
        return encode_length(value.count) + value.octets
    raise LocalProtocolError(f"{type(value).__name__} is no {tag.words}")


def _encode_type(kind: TypeDescription, put: Callable[[bytes], None]) -> None:
    put(bytes((kind.tag,)))
    if kind.tag == DataType.ARRAY:
        put(kind.count.to_bytes(2, "big"))
    elif kind.tag == DataType.STRUCTURE:
        put(encode_length(len(kind.inner)))
    for inner in kind.inner:
        _encode_type(inner, put)


def _encode_packed(data: Data, kind: TypeDescription, put: Callable[[bytes], None]) -> None:
    if data.tag != kind.tag:
        raise LocalProtocolError(f"{data.tag.words} in a compact-array of {kind.tag.words}")
    if not isinstance(data.value, tuple):
        put(_encode_body(data))
        return
    inner = kind.inner * kind.count if kind.tag == DataType.ARRAY else kind.inner
    if len(inner) != len(data.value):
        raise LocalProtocolError(f"{len(data.value)} elements, {len(inner)} are described")
    for item, item_kind in zip(data.value, inner, strict=True):
        _encode_packed(item, item_kind, put)


# What requests and simulated meters are built from.


def structure(*items: Data) -> Data:
    """A structure of the items."""
    return Data(DataType.STRUCTURE, items)


def array(items: Iterable[Data]) -> Data:
    """An array of the items."""
    return Data(DataType.ARRAY, tuple(items))


def boolean(value: bool) -> Data:
    """A boolean."""
    return _BOOLEANS[value]


def bits(value: str | BitString) -> Data:
    """A bit-string, from "0101" or as it is."""
    return Data(DataType.BIT_STRING, BitString.of(value) if isinstance(value, str) else value)


def octet_string(value: bytes) -> Data:
    """An octet-string."""
    return Data(DataType.OCTET_STRING, bytes(value))


def visible_string(value: str) -> Data:
    """Text of ASCII."""
    return Data(DataType.VISIBLE_STRING, value)


def utf8_string(value: str) -> Data:
    """Text of UTF-8."""
    return Data(DataType.UTF8_STRING, value)


def integer(value: int) -> Data:
    """8 bits, signed."""
    return Data(DataType.INTEGER, value)


def unsigned(value: int) -> Data:
    """8 bits."""
    return Data(DataType.UNSIGNED, value)


def long(value: int) -> Data:
    """16 bits, signed."""
    return Data(DataType.LONG, value)


def long_unsigned(value: int) -> Data:
    """16 bits."""
    return Data(DataType.LONG_UNSIGNED, value)


def double_long(value: int) -> Data:
    """32 bits, signed."""
    return Data(DataType.DOUBLE_LONG, value)


def double_long_unsigned(value: int) -> Data:
    """32 bits."""
    return Data(DataType.DOUBLE_LONG_UNSIGNED, value)


def long64(value: int) -> Data:
    """64 bits, signed."""
    return Data(DataType.LONG64, value)


def long64_unsigned(value: int) -> Data:
    """64 bits."""
    return Data(DataType.LONG64_UNSIGNED, value)


def enum(value: int) -> Data:
    """An enumeration."""
    return Data(DataType.ENUM, value)


def float32(value: float) -> Data:
    """A float of 32 bits."""
    return Data(DataType.FLOAT32, value)


def float64(value: float) -> Data:
    """A float of 64 bits."""
    return Data(DataType.FLOAT64, value)


def date_time(octets: bytes) -> Data:
    """A date-time with a tag of its own: 12 octets."""
    return Data(DataType.DATE_TIME, octets)


def compact_array(kind: TypeDescription, elements: Sequence[Data]) -> Data:
    """Elements of one type without their tags."""
    return Data(DataType.COMPACT_ARRAY, CompactArray(kind, tuple(elements)))
