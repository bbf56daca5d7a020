"""Civil days as numbers (proleptic ordinals of the date), and the half hours in them.

A row belongs to the civil day of the second before its stamp (DESIGN section 6), and to the half hour of that day by
the civil time that has passed since midnight: on the day of a DST change two half hours stay empty or two are left out.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from typing import TYPE_CHECKING

from edge_core.schedule.calendar import at_civil_minute

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

SLOTS = 48
SLOT_S = 1800


class Calendar:
    """Begins of civil days in one zone; remembers those it was asked for (they are few)."""

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        self._begins: dict[int, int] = {}

    def begin(self, day: int) -> int:
        """UTC second at which a day begins."""
        known = self._begins.get(day)
        if known is None:
            if len(self._begins) > 4096:
                self._begins.clear()
            known = at_civil_minute(dt.date.fromordinal(day), 0, self.zone)
            self._begins[day] = known
        return known

    def day_of(self, instant: float) -> int:
        """The civil day that an instant lies in."""
        day = dt.datetime.fromtimestamp(instant, self.zone).date().toordinal()
        return day if self.begin(day) <= instant else day - 1

    def split(self, times: list[int]) -> list[tuple[int, int, int]]:
        """Rows stamped at `times` (rising) by day: (day, first row, one past the last row)."""
        out: list[tuple[int, int, int]] = []
        row = 0
        while row < len(times):
            day = self.day_of(times[row] - 1)
            last = bisect_right(times, self.begin(day + 1), lo=row)
            out.append((day, row, max(last, row + 1)))
            row = max(last, row + 1)
        return out


def name_of(day: int) -> str:
    """YYYY-MM-DD."""
    return dt.date.fromordinal(day).isoformat()
