"""Civil time of a meter: offset from UTC and daylight saving, in vectors.

A `Zone` is a fixed offset or an IANA name. Its transitions from 2015 to 2045 are found once; after that every question
is a binary search. Times are UTC epoch seconds, offsets are minutes east of UTC.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_FIRST = 1_420_070_400  # 2015-01-01
_LAST = 2_366_841_600  # 2045-01-01


class Zone:
    """Offsets of one zone.

    Attributes:
        standard_min: offset of standard time, minutes east of UTC.
    """

    def __init__(self, name: str) -> None:
        if name.lstrip("+-").isdigit():
            self._changes, self._offsets = np.array([_FIRST]), np.array([int(name)] * 2)
        else:
            self._changes, self._offsets = _transitions(ZoneInfo(name))
        self.standard_min = int(self._offsets.min())

    def offset_min(self, at: npt.ArrayLike) -> Ints:
        """Minutes east of UTC at each instant."""
        found: Ints = self._offsets[
            np.searchsorted(self._changes, np.asarray(at, np.int64), side="right")
        ]
        return found

    def summer(self, at: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Is daylight saving time in force?"""
        return np.asarray(self.offset_min(at) > self.standard_min)

    def midnight_after(self, at: int) -> int:
        """The first local midnight later than `at`; where the clock is set ahead at midnight (Beirut), that moment."""
        day = (at + int(self.offset_min(at)) * 60) // 86_400 + 1
        guess = day * 86_400 - self.standard_min * 60
        offset = int(self.offset_min(guess))
        midnight = day * 86_400 - offset * 60
        return midnight if int(self.offset_min(midnight)) == offset else guess

    def to_utc(self, local: int) -> int:
        """UTC of local wall-clock seconds; the first of two that an autumn hour allows."""
        guess = local - int(self._offsets.max()) * 60
        return local - int(self.offset_min(guess)) * 60


@lru_cache(maxsize=32)
def zone(name: str) -> Zone:
    """The zone of that IANA name or number of minutes, made once."""
    return Zone(name)


def _transitions(info: ZoneInfo) -> tuple[Ints, Ints]:
    def offset(at: int) -> int:
        delta = dt.datetime.fromtimestamp(at, info).utcoffset()
        return int(delta.total_seconds()) // 60 if delta else 0

    changes: list[int] = []
    offsets = [offset(_FIRST)]
    for week in range(_FIRST, _LAST, 7 * 86_400):
        low, high = week, week + 7 * 86_400
        if offset(high) == offsets[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        changes.append(high)
        offsets.append(offset(high))
    if not changes:
        changes, offsets = [_FIRST], offsets * 2
    return np.array(changes, np.int64), np.array(offsets, np.int64)
