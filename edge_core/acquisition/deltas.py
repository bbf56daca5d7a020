"""The load profile against the registers: what its rows add up to from one midnight to the next, and what the daily rows say.

A scaler that is wrong, a column that is taken for another, rows that the meter left out: all of it shows here, and nowhere
else, for each row by itself is plausible. Rows of energies per block (1.0.x.29.0) are added; rows of registers
(1.0.x.8.0) are compared as they stand. Only active energy, import and export, is looked at, and only days whose every
row was heard since this process began.

Invariants: pure; a row counts once, in order; a gap or a step of the clock begins anew. Tolerance: one unit of each row
and of both registers, for meters that cut fractions.
Limits: KEPT midnights are kept for each meter, some 0.5 kB.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_core.domain import as_list

if TYPE_CHECKING:
    from edge_core.domain import Block, Column

CHANNELS: Final = ("1.0.1", "1.0.2")
KEPT: Final = 3
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


class _Channel:
    """One energy of one meter; everything in mWh."""

    __slots__ = ("daily", "marks", "step", "total", "unit", "upto")

    def __init__(self) -> None:
        self.upto = self.total = self.unit = 0
        self.step = 0  # rows since the first mark
        self.marks: dict[int, tuple[int, int]] = {}  # midnight: (total, rows until then)
        self.daily: dict[int, tuple[int, int]] = {}  # midnight: (register, unit)


class Deltas:
    """What is known of one meter."""

    __slots__ = ("_channels", "_device")

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._device = ""

    def take(self, block: Block) -> list[Day]:
        """Rows of kind interval or midnight; returns the days that are now whole."""
        found: list[Day] = []
        if block.kind not in ("interval", "midnight"):
            return found
        if block.occ or block.device != self._device:
            self._channels.clear()
        self._device = block.device
        if block.occ:
            return found
        for column, values in zip(block.layout.cols, block.columns, strict=True):
            name = ".".join(column.obis.split(".")[:3])
            if name not in CHANNELS or column.attribute != 2 or column.unit != "Wh":
                continue
            if not -3 <= column.scaler <= 12:
                continue
            quantity, tariff = column.obis.split(".")[3:5]
            if tariff != "0" or quantity not in ("8", "29"):
                continue
            channel = self._channels.setdefault(name, _Channel())
            if block.kind == "midnight":
                if quantity == "8":
                    found += self._days(name, channel, block, column, as_list(values))
            else:
                found += self._rows(name, channel, block, column, as_list(values))
        return found

    def _rows(
        self, name: str, channel: _Channel, block: Block, column: Column, values: list[object]
    ) -> list[Day]:
        period, unit = block.layout.period, 10 ** (column.scaler + 3)
        found: list[Day] = []
        adds = column.obis.split(".")[3] == "29"
        for at, value in zip(as_list(block.times), values, strict=True):
            if at <= channel.upto:
                continue
            if not isinstance(value, int) or at != channel.upto + period or unit != channel.unit:
                channel.marks.clear()
                channel.total, channel.step = 0, 0
            channel.upto, channel.unit = at, unit
            if not isinstance(value, int):
                continue
            channel.total = channel.total + value * unit if adds else value * unit
            channel.step += 1
            if (at + block.tz * 60) % DAY_S == 0:
                channel.marks[at] = channel.total, channel.step if adds else 1
                _forget(channel.marks)
                found += self._compare(name, channel, at)
        return found

    def _days(
        self, name: str, channel: _Channel, block: Block, column: Column, values: list[object]
    ) -> list[Day]:
        found: list[Day] = []
        for at, value in zip(as_list(block.times), values, strict=True):
            if isinstance(value, int) and at not in channel.daily:
                unit = 10 ** (column.scaler + 3)
                channel.daily[at] = value * unit, unit
                _forget(channel.daily)
                found += self._compare(name, channel, at)
        return found

    def _compare(self, name: str, channel: _Channel, at: int) -> list[Day]:
        """The days that end or begin at a midnight."""
        both = sorted(channel.marks.keys() & channel.daily.keys())
        found = []
        for first, last in pairwise(both):
            if at not in (first, last) or last - first > MAX_DAY_S:
                continue
            (total, rows), (before, rows_before) = channel.marks[last], channel.marks[first]
            (register, unit), (register_before, _) = channel.daily[last], channel.daily[first]
            told, risen = total - before, register - register_before
            allowed = channel.unit * max(1, rows - rows_before) + 2 * unit
            if risen >= 0:  # else another register, or one that came round
                found.append(Day(name, first, last, told, risen, allowed))
        return found


def _forget(marks: dict[int, tuple[int, int]]) -> None:
    while len(marks) > KEPT:
        del marks[min(marks)]
