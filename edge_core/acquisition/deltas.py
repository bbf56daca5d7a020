"""The load profile against the registers: what its rows add up to from one midnight to the next, and what the daily rows say.

A scaler that is wrong, a column that is taken for another, rows that the meter left out: all of it shows here, and nowhere
else, for each row by itself is plausible. Rows of energies per block (1.0.x.29.0) are added; rows of registers
(1.0.x.8.0) are compared as they stand. Only active energy, import and export, is looked at, and only days whose every
row was heard since this process began.

Invariants: pure; a row counts once, in order; a gap or a step of the clock begins anew. Tolerance: one unit of each row
and of both registers, for meters that cut fractions.
Limits: two midnights are kept for each meter, some 0.5 kB: what is told later than a day after is not compared.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_core.domain import as_list

if TYPE_CHECKING:
    from edge_core.domain import Block, Column

CHANNELS: Final = ("1.0.1", "1.0.2")
MAX_MWH: Final = 1 << 62
DAY_S: Final = 86_400
MAX_DAY_S: Final = 90_000
"""A civil day with the hour that comes twice."""


class Day(NamedTuple):
    """One day of one energy, told twice.

    Attributes:
        channel: 1.0.1 (import) or 1.0.2 (export).
        first, last: its midnights, UTC epoch seconds.
        rows: what the rows of the load profile add up to, in mWh.
        register: by how much the register rose, in mWh.
        allowed: by how much they may differ.
    """

    channel: str
    first: int
    last: int
    rows: int
    register: int
    allowed: int

    @property
    def agrees(self) -> bool:
        """Do rows and register tell the same?"""
        return abs(self.rows - self.register) <= self.allowed


UPTO, TOTAL, UNIT, STEP, MARKS, DAYS, SIZE = 0, 1, 2, 3, 4, 10, 16
"""Places in the cells of one channel: newest row, sum, its unit, rows in it; two midnights of (time, sum, rows); two daily
rows of (time, register, unit). A dictionary would take seven times as much, for each of thousands of meters."""


class Deltas:
    """What is known of one meter."""

    __slots__ = ("_cells", "_device")

    def __init__(self) -> None:
        self._cells: tuple[array[int] | None, ...] = (None,) * len(CHANNELS)
        self._device = ""

    def take(self, block: Block) -> list[Day]:
        """Rows of kind interval or midnight; returns the days that are now whole."""
        found: list[Day] = []
        if block.kind not in ("interval", "midnight"):
            return found
        if block.occ or block.device != self._device:
            self._cells = (None,) * len(CHANNELS)
        self._device = block.device
        if block.occ:
            return found
        for column, values in zip(block.layout.cols, block.columns, strict=True):
            name, _, rest = column.obis.rpartition(".")[0].rpartition(".")[0].rpartition(".")
            if name not in CHANNELS or rest not in ("8", "29") or column.unit != "Wh":
                continue
            if (
                column.attribute != 2
                or not -3 <= column.scaler <= 9
                or column.obis.split(".")[4] != "0"
            ):
                continue
            cells = self._of(CHANNELS.index(name))
            if block.kind == "interval":
                found += _rows(name, cells, block, column, as_list(values))
            elif rest == "8":
                found += _days(name, cells, block, column, as_list(values))
        return found

    def _of(self, place: int) -> array[int]:
        cells = self._cells[place]
        if cells is None:
            cells = array("q", bytes(8 * SIZE))
            self._cells = tuple(cells if i == place else c for i, c in enumerate(self._cells))
        return cells

    @property
    def compared(self) -> int:
        """Midnights at which both are known."""
        return sum(
            _get(cells, MARKS, cells[at]) is not None
            for cells in self._cells
            if cells is not None
            for at in (DAYS, DAYS + 3)
            if cells[at]
        )


def _rows(
    name: str, cells: array[int], block: Block, column: Column, values: list[object]
) -> list[Day]:
    period, unit = block.layout.period, int(10 ** (column.scaler + 3))
    found: list[Day] = []
    adds = column.obis.split(".")[3] == "29"
    for at, value in zip(as_list(block.times), values, strict=True):
        if at <= cells[UPTO]:
            continue
        usable = isinstance(value, int) and abs(value) * unit < MAX_MWH
        if not usable or at != cells[UPTO] + period or unit != cells[UNIT]:
            cells[TOTAL] = cells[STEP] = 0
            cells[MARKS:DAYS] = array("q", bytes(8 * (DAYS - MARKS)))
        cells[UPTO], cells[UNIT] = at, unit
        if not usable or not isinstance(value, int):
            continue
        cells[TOTAL] = (cells[TOTAL] + value * unit if adds else value * unit) % MAX_MWH
        cells[STEP] += 1
        if (at + block.tz * 60) % DAY_S == 0:
            _put(cells, MARKS, at, cells[TOTAL], cells[STEP] if adds else 1)
            found += _compare(name, cells, at)
    return found


def _days(
    name: str, cells: array[int], block: Block, column: Column, values: list[object]
) -> list[Day]:
    found: list[Day] = []
    unit = int(10 ** (column.scaler + 3))
    for at, value in zip(as_list(block.times), values, strict=True):
        if not isinstance(value, int) or abs(value) * unit >= MAX_MWH:
            continue
        if at > max(cells[DAYS], cells[DAYS + 3]):
            _put(cells, DAYS, at, value * unit, unit)
            found += _compare(name, cells, at)
    return found


def _compare(name: str, cells: array[int], at: int) -> list[Day]:
    """The day between the two midnights of the daily rows, if one of them is `at`."""
    first, last = sorted((cells[DAYS], cells[DAYS + 3]))
    before, after = _get(cells, MARKS, first), _get(cells, MARKS, last)
    began, ended = _get(cells, DAYS, first), _get(cells, DAYS, last)
    if at not in (first, last) or not first or last - first > MAX_DAY_S:
        return []
    if before is None or after is None or began is None or ended is None:
        return []
    told, risen = after[0] - before[0], ended[0] - began[0]
    allowed = cells[UNIT] * max(1, after[1] - before[1]) + 2 * ended[1]
    # a register that falls is another one, or came round
    return [Day(name, first, last, told, risen, allowed)] if risen >= 0 else []


def _put(cells: array[int], base: int, at: int, one: int, two: int) -> None:
    """Instead of the older one of two."""
    place = base if cells[base] <= cells[base + 3] else base + 3
    cells[place : place + 3] = array("q", (at, one, two))


def _get(cells: array[int], base: int, at: int) -> tuple[int, int] | None:
    for place in (base, base + 3):
        if at and cells[place] == at:
            return cells[place + 1], cells[place + 2]
    return None
