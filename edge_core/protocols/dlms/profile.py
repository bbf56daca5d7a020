"""Buffer of a profile generic (class 7, attribute 2) to columns, through layouts compiled from what meters send.

The octets of a meter repeat one skeleton of tags and lengths row after row, so the first row is walked once and what
it teaches is kept with the plan: a mask over tags, lengths and counts, and where the values lie between them. Three
ways, the first that fits: a whole short buffer whose masked octets equal the skeleton is one `struct.unpack`; a long
one is read through strided numpy views after every tag octet of every row was compared; anything else (null-data,
shortened rows, delta types, strings of changing length) goes row by row through row layouts. A compact-array is
turned into columns by its type description. The clock column as a whole is looked up by its octets, for a fleet
captures at the same instants; what was not met before is converted at once.

Invariants: no octet outside the buffer is read, whatever counts and lengths say; tags are compared in every row, not
trusted; rows come oldest first, occurrences numbered in that order; a row without an instant cannot be published and
is counted in `unplaced`.
Limits: MAX_ROWS rows, MAX_OCTETS octets, MAX_DEPTH nested lists, strings of MAX_STRING octets in a column.
Source: DLMS UA Blue Book, class_id 7 and 4.1.5 (common data types); compression as in tests/data/frames.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from edge_core.domain import Column, Flag, Layout, Obis, Unit, Values
from edge_core.domain.block import runs_of
from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms.datetime import (
    OCTETS,
    ClockRules,
    Instants,
    decode_array,
    decode_column,
)
from edge_core.protocols.dlms.layouts import (
    BITS,
    DELTA,
    FLOAT,
    FLOAT_SCALER,
    INT,
    MAX_OCTETS,
    MAX_ROWS,
    NESTED,
    NULL,
    STRING,
    Cell,
    ColumnMismatch,
    RowLayout,
    as_hex,
    axdr_length,
    cell_of,
    compact_array,
    row_layout,
)
from edge_core.protocols.dlms.shapes import Clocks, LongShape, Rows, Shape, ShortShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_core.protocols.dlms.cosem import CaptureObject

_NUMPY_FROM_ROWS: Final = (
    80  # below, one struct.unpack is faster than views: benchmarks/decode_profile.py
)
_ARRAY_FROM_ROWS: Final = 24  # below, a loop over the clock cells is faster
_KEPT_SHAPES: Final = 32
_KEPT_ROW_LAYOUTS: Final = 64
_KEPT_CLOCKS: Final = 128

CLOCK_CLASS: Final = 8
EPOCH_ATTRIBUTES: Final = frozenset(((8, 2), (4, 5), (5, 6), (5, 7)))
"""Attributes that are date-times: clock; capture time of extended and demand registers."""

IDIS_STATUS: Final[Mapping[int, int]] = {
    0x80: Flag.POWER_DOWN,
    0x20: Flag.CLOCK_ADJUSTED,
    0x08: Flag.DST,
    0x04: Flag.NOT_VALID,
    0x02: Flag.CLOCK_INVALID,
    0x01: Flag.CRITICAL,
}
"""Bits of the status column of IDIS and its kin; companions that differ say so in the meter model."""


class ScalerUnit(NamedTuple):
    """Power of ten and unit of one register."""

    scaler: int
    unit: Unit


class Plan:
    """How the rows of one profile of one kind of meter are read, and what was learned from reading them.

    A plan belongs to capture objects and scalers, not to a meter: meters that agree in these share it. It is not
    thread-safe.
    """

    def __init__(
        self,
        profile: Obis,
        objects: Sequence[CaptureObject],
        scalers: Mapping[tuple[Obis, int], ScalerUnit],
        period_s: int,
        rules: ClockRules,
        *,
        newest_first: bool = False,
        clock: Obis = "",
        status: Obis = "",
        status_bits: Mapping[int, int] = IDIS_STATUS,
        epochs: frozenset[tuple[Obis, int]] = frozenset(),
        null_is_same: bool = True,
    ) -> None:
        """Decide what each column is.

        Args:
            profile: logical name.
            objects: capture objects in meter order.
            scalers: by (obis, attribute); columns without one are plain numbers.
            period_s: capture period in seconds, 0 = irregular.
            rules: how the model writes time.
            newest_first: sort method LIFO.
            clock: the column that times the rows where no clock object is captured; "" = there is one.
            status: the status column; "" = none.
            status_bits: status octet bit to domain.Flag.
            epochs: further columns that hold date-times, by (obis, attribute).
            null_is_same: null-data = as the row above; False = no reading.

        Raises:
            MalformedApdu: no column times the rows.
        """
        self.period_s, self.rules, self.newest_first, self.null_is_same = (
            period_s,
            rules,
            newest_first,
            null_is_same,
        )
        self.count = len(objects)
        clocks = [i for i, o in enumerate(objects) if (o.class_id, o.attribute) == (CLOCK_CLASS, 2)]
        named = [i for i, o in enumerate(objects) if o.obis == clock]
        self.clock = next(iter(clocks + named), -1)
        if self.clock < 0:
            raise MalformedApdu(
                f"profile {profile}: no clock among its {len(objects)} capture objects"
            )
        self.status = next((i for i, o in enumerate(objects) if o.obis == status), -1)
        self.flags_of_status = tuple(
            sum(int(flag) for bit, flag in status_bits.items() if octet & bit)
            for octet in range(256)
        )
        self.values = tuple(i for i in range(len(objects)) if i not in (self.clock, self.status))
        self.epochs = frozenset(
            i
            for i in self.values
            if (objects[i].class_id, objects[i].attribute) in EPOCH_ATTRIBUTES
            or (objects[i].obis, objects[i].attribute) in epochs
        )
        self.columns = _columns(objects, self.values, scalers)
        self.layout = Layout(profile, period_s, self.columns)
        self._shapes: dict[int, Shape] = {}
        self._rows: list[RowLayout] = []
        self.known_clocks: dict[bytes | tuple[bytes, ...], Clocks] = {}
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def decode(self, buffer: bytes) -> list[Rows]:
        """The rows of a buffer, oldest first; several where a column changes between number and string.

        Args:
            buffer: A-XDR array of structures, or a compact-array.

        Raises:
            ColumnMismatch: rows and capture objects do not fit.
            MalformedApdu: a length runs past the buffer, a type is unknown, or a limit is passed.
        """
        shape = self._shapes.get(len(buffer))
        if shape is not None and shape.fits(buffer):
            return [shape.decode(buffer)]
        if len(buffer) > MAX_OCTETS:
            raise MalformedApdu(
                f"a profile buffer of {len(buffer)} octets; at most {MAX_OCTETS} are read"
            )
        if not buffer:
            raise MalformedApdu("an empty profile buffer", 0)
        if buffer[0] == 19:
            return self._from_columns(*compact_array(buffer, self.count))
        if buffer[0] == 0 and len(buffer) == 1:  # some meters answer null-data for "no rows"
            return []
        if buffer[0] != 1:
            raise MalformedApdu(f"a profile buffer of type {buffer[0]}, not an array", 0)
        rows, at = axdr_length(buffer, 1)
        if rows > MAX_ROWS or rows * 2 > len(buffer) - at:
            raise MalformedApdu(f"an array of {rows} rows in {len(buffer) - at} octets", 0)
        if not rows:
            if at != len(buffer):
                raise MalformedApdu(f"{len(buffer) - at} octets behind an empty array", at)
            return []
        first = self._layout_at(buffer, at)
        if len(first.elements) < self.count:
            raise ColumnMismatch(
                f"a first row of {len(first.elements)} elements, but {self.count} capture objects",
                at,
            )
        if first.same_kinds and len(buffer) - at == rows * first.size:
            shape = (LongShape if rows >= _NUMPY_FROM_ROWS else ShortShape)(
                self, rows, at, first, buffer[:at]
            )
            if shape.fits(buffer):
                if len(self._shapes) >= _KEPT_SHAPES:
                    self._shapes.pop(next(iter(self._shapes)))
                self._shapes[len(buffer)] = shape
                return [shape.decode(buffer)]
        return self._from_rows(buffer, rows, at)

    # --- layouts

    def layout_of(self, kinds: tuple[int, ...]) -> Layout:
        """The layout whose columns have the units that the kinds of the value columns allow."""
        layout = self._layouts.get(kinds)
        if layout is None:
            columns = tuple(
                _confirmed(column, kind, i in self.epochs)
                for column, kind, i in zip(self.columns, kinds, self.values, strict=True)
            )
            layout = Layout(self.layout.profile, self.period_s, columns)
            self._layouts[kinds] = layout
        return layout

    def _layout_at(self, buffer: bytes, at: int) -> RowLayout:
        """The layout of the row at an offset: one that fits already, else a new one."""
        for i, known in enumerate(self._rows):
            if int.from_bytes(
                buffer[at : at + known.size], "big"
            ) & known.mask == known.skeleton and at + known.size <= len(buffer):
                if i:
                    self._rows.insert(0, self._rows.pop(i))
                return known
        layout = row_layout(buffer, at, self.count)
        self._rows.insert(0, layout)
        del self._rows[_KEPT_ROW_LAYOUTS:]
        return layout

    # --- the clock column

    def clocks(self, key: bytes | tuple[bytes, ...], rows: int) -> Clocks:
        """The clock column of a uniform buffer: its cells, or the octets of all of them in a row."""
        known = self.known_clocks.get(key)
        if known is None:
            known = self._place(key, rows)
            if len(self.known_clocks) >= _KEPT_CLOCKS:
                self.known_clocks.pop(next(iter(self.known_clocks)))
            self.known_clocks[key] = known
        return known

    def _place(self, key: bytes | tuple[bytes, ...], rows: int) -> Clocks:
        octets = key if isinstance(key, bytes) else b"".join(key)
        if rows >= _ARRAY_FROM_ROWS and len(octets) == rows * OCTETS:
            if self.newest_first:
                octets = np.frombuffer(octets, np.uint8).reshape(-1, OCTETS)[::-1].tobytes()
            instants = decode_array(octets, self.rules)
            if instants is not None:
                times = np.asarray(instants.at, np.int64)
                if (times[1:] > times[:-1]).all():
                    times.flags.writeable = False
                    flags = runs_of(instants.flags)
                    bits = tuple(instants.flags) if flags else ()
                    return Clocks(
                        times if rows >= _NUMPY_FROM_ROWS else tuple(times.tolist()),
                        (),
                        flags,
                        bits,
                        instants.east_min,
                        None,
                        self.newest_first,
                        0,
                    )
        if isinstance(key, tuple):
            return self.place(key)
        width = len(key) // rows
        return self.place([key[i * width : (i + 1) * width] for i in range(rows)])

    def place(self, cells: Sequence[bytes | None]) -> Clocks:
        """Instants, occurrences and flags of a clock column of any kind; cells in buffer order."""
        instants, turned = self._oldest_first(cells)
        at = list(instants.at)
        order = range(len(at) - 1, -1, -1) if turned else range(len(at))
        placed = [i for i, t in enumerate(at) if t is not None]
        whole = len(placed) == len(at)
        times = tuple(at[i] for i in placed)
        bits = tuple(instants.flags[i] for i in placed)
        return Clocks(
            times,
            _occurrences(times),
            runs_of(bits),
            bits if any(bits) else (),
            instants.east_min,
            None if whole else tuple(order[i] for i in placed),
            turned,
            len(at) - len(placed),
        )

    def _oldest_first(self, cells: Sequence[bytes | None]) -> tuple[Instants, bool]:
        """The instants of a column, oldest first, and whether the buffer was newest first."""
        if None in cells:  # null-data is counted from the row above it, so that order comes first
            step = -self.period_s if self.newest_first else self.period_s
            forward = decode_column(cells, self.rules, step)
            if self.newest_first:
                return Instants(
                    list(forward.at)[::-1], list(forward.flags)[::-1], forward.east_min
                ), True
            return forward, False
        instants = decode_column(cells[::-1] if self.newest_first else cells, self.rules)
        at = [t for t in instants.at if t is not None]
        if len(at) > 2 and all(
            a > b for a, b in itertools.pairwise(at)
        ):  # the sort method did not tell the truth
            return decode_column(
                cells if self.newest_first else cells[::-1], self.rules
            ), not self.newest_first
        return instants, self.newest_first

    # --- rows that differ

    def _from_rows(self, buffer: bytes, rows: int, at: int) -> list[Rows]:
        """Run by run of rows of one layout."""
        cells: list[list[Cell]] = [[] for _ in range(self.count)]
        kinds: list[list[int]] = [[] for _ in range(self.count)]
        while rows:
            layout = self._layout_at(buffer, at)
            size, mask, skeleton = layout.size, layout.mask, layout.skeleton
            end, run = at + size, 1
            while (
                run < rows
                and end + size <= len(buffer)
                and int.from_bytes(buffer[end : end + size], "big") & mask == skeleton
            ):
                end, run = end + size, run + 1
            raw = zip(*layout.struct.iter_unpack(buffer[at:end]), strict=True)
            for i in range(self.count):
                kind = layout.elements[i].kind if i < len(layout.elements) else NULL
                above = cells[i][-1] if cells[i] else None
                values: Sequence[Cell]
                if kind == NULL:
                    same = self.null_is_same and i != self.clock
                    kind = kinds[i][-1] if same and kinds[i] else NULL
                    values = [above if same else None] * run
                elif kind == DELTA:
                    kind, values = INT, _summed(above, next(raw))
                elif kind in (INT, STRING):
                    values = next(raw)
                else:
                    values = [cell_of(kind, value) for value in next(raw)]
                cells[i].extend(values)
                kinds[i].extend([kind] * run)
            at, rows = end, rows - run
        if at != len(buffer):
            raise MalformedApdu(f"{len(buffer) - at} octets behind the last row", at)
        return self._from_columns(cells, kinds)

    def _from_columns(
        self, cells: Sequence[Sequence[Cell]], kinds: Sequence[Sequence[int]]
    ) -> list[Rows]:
        """Columns of cells, in buffer order, to rows; cut where a column changes its kind."""
        if not cells or not cells[0]:
            return []
        rows = len(cells[self.clock])
        stamps = [c if isinstance(c, bytes) else None for c in cells[self.clock]]
        octets = b"".join([c for c in stamps if c is not None and len(c) == OCTETS])
        clock = self.clocks(octets, rows) if len(octets) == rows * OCTETS else self.place(stamps)
        order: Sequence[int] = clock.keep if clock.keep is not None else range(rows)
        if clock.turned and clock.keep is None:
            order = range(rows - 1, -1, -1)
        bits = list(clock.bits) or [0] * len(order)
        if self.status >= 0:
            for k, i in enumerate(order):
                bits[k] |= self.status_flags(cells[self.status][i])
        occurrence = dict(clock.occ)
        out: list[Rows] = []
        start = 0
        while (
            start < len(order) or not out
        ):  # no row may have an instant: the count of these travels on
            end, shape = self._stretch(kinds, order, start)
            part = order[start:end]
            out.append(
                Rows(
                    self.layout_of(shape),
                    clock.times[start:end],
                    tuple(
                        self.convert(i, kind, [cells[i][r] for r in part])
                        for i, kind in zip(self.values, shape, strict=True)
                    ),
                    tuple((k - start, occurrence[k]) for k in range(start, end) if k in occurrence),
                    runs_of(bits[start:end]),
                    clock.tz,
                    0 if out else clock.unplaced,
                )
            )
            start = end
        return out

    def _stretch(
        self, kinds: Sequence[Sequence[int]], order: Sequence[int], start: int
    ) -> tuple[int, tuple[int, ...]]:
        """The end of the longest stretch from `start` in which no column changes its kind, and these kinds."""
        if start == 0:
            met = [set(kinds[i]) - {NULL} for i in self.values]
            if all(len(kinds_met) < 2 for kinds_met in met):
                return len(order), tuple(min(kinds_met, default=NULL) for kinds_met in met)
        shape = [NULL] * len(self.values)
        for k in range(start, len(order)):
            row = order[k]
            for j, i in enumerate(self.values):
                kind = kinds[i][row]
                if kind in (shape[j], NULL):
                    continue
                if shape[j] != NULL:
                    return k, tuple(shape)
                shape[j] = kind
        return len(order), tuple(shape)

    def status_flags(self, value: Cell) -> int:
        """Flags of a status cell of any type."""
        if isinstance(value, bytes):
            value = value[0] if value else 0
        return self.flags_of_status[value & 0xFF] if value is not None else 0

    def convert(self, index: int, kind: int, values: Sequence[Any]) -> Values:
        """Cells of one column as they travel."""
        if kind in (INT, BITS, FLOAT, NULL):
            return list(values)
        if index in self.epochs:
            return list(decode_column([v if v is not None else b"" for v in values], self.rules).at)
        return [as_hex(v) if v is not None else None for v in values]


def _summed(above: Cell, deltas: Sequence[int]) -> Sequence[Cell]:
    """Values from the value above them and delta cells; without a number above there is no reading."""
    if not isinstance(above, int):
        return [None] * len(deltas)
    return list(itertools.accumulate(deltas, initial=above))[1:]


def _columns(
    objects: Sequence[CaptureObject],
    values: Sequence[int],
    scalers: Mapping[tuple[Obis, int], ScalerUnit],
) -> tuple[Column, ...]:
    """The columns of a layout; an element of an attribute that stands there twice is told apart by its data index."""
    seen: set[tuple[Obis, int]] = set()
    out = []
    for i in values:
        o = objects[i]
        attribute = o.attribute
        if (o.obis, attribute) in seen:
            attribute = o.attribute * 16 + (o.data_index & 15)
            while (o.obis, attribute) in seen:
                attribute += 1
            if attribute > 127:
                raise MalformedApdu(f"{o.obis}:{o.attribute} is captured too often")
        seen.add((o.obis, attribute))
        scaler, unit = scalers.get((o.obis, o.attribute), ScalerUnit(0, ""))
        out.append(Column(o.obis, unit, scaler, attribute))
    return tuple(out)


def _confirmed(column: Column, kind: int, epoch: bool) -> Column:
    """The column with the unit that its octets allow."""
    if epoch:
        return msgspec.structs.replace(column, unit="epoch", scaler=0)
    if kind in (STRING, NESTED):
        return msgspec.structs.replace(column, unit="hex", scaler=0)
    if kind == BITS:
        return msgspec.structs.replace(column, unit="bits", scaler=0)
    if kind == FLOAT:
        return msgspec.structs.replace(column, scaler=column.scaler + FLOAT_SCALER)
    return column


def _occurrences(times: Sequence[int | None]) -> tuple[tuple[int, int], ...]:
    """(row, k) of the rows whose time stood before them."""
    if all(a < b for a, b in itertools.pairwise(times)):  # type: ignore[operator]
        return ()
    met: dict[int | None, int] = {}
    out = []
    for row, t in enumerate(times):
        k = met.get(t, -1) + 1
        met[t] = k
        if k:
            out.append((row, k))
    return tuple(out)
