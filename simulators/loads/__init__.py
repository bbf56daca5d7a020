"""Load curves: what meter `index` has consumed up to any second, as integers, from real households.

Invariants
  * Pure: every value is a function of (index, seed, time). Nothing is remembered that cannot be computed again.
  * Exact: intervals are differences of the cumulative registers, so any sums of intervals telescope.
  * Cumulative channels never fall, and apparent energy is never below active energy of the same quarter hour.

How a curve is made (SOURCES.md): 26 whole weeks of the households (their best window) repeat for ever, aligned by
weekday and local time of day. Meter k is household k mod 62, shifted by 7 x (k div 62) days; copies are scaled by 0.7
to 1.3. A half hour is split a:(1-a) with a ~ Beta(8, 8); within a quarter hour energy flows evenly. A blank is filled
from the same half hour of the nearest week that has one. Reactive energy follows the active by the UCI house's own
varh/Wh of that quarter, every sixteenth quarter leading (quadrant 4); voltages are that house's, one window of 26 weeks
a phase. Every fifth meter feeds in under a synthetic clear sky.

Limits: the year has no seasons beyond those of the window; channels are Wh, varh and VAh of one meter as a whole.
"""

from __future__ import annotations

import gzip
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

CHANNELS = ("import", "export", "q1", "q4", "vah", "t1")
"""Columns of `Load.cumulative`: Wh imported, Wh exported, varh of quadrants 1 and 4, VAh, Wh imported 06:00 to 22:00."""

DAY_S = 86_400
QUARTER_S = 900
CYCLE_DAYS = 182
ORIGIN = 1_704_067_200  # 2024-01-01 UTC: all meters were installed then, with a register that had run already

_MONDAY_S = 4 * DAY_S  # 1970-01-05 was a Monday
_HALF_HOURS = CYCLE_DAYS * 48
_QUARTERS = CYCLE_DAYS * 96
_FIRST_LINE = (
    2 + 246 * 48
)  # the half hour that begins on Monday 2013-03-04 00:00; lines are stamped at the end
_PHASE_SHARE = (41, 33, 26)


class _Curves(NamedTuple):
    """What all loads share.

    Attributes:
        prefix: cumulated Wh of each household, shape (62, half hours + 1).
        ratio: varh per 1000 Wh, three windows, shape (3, quarters).
        voltage: decivolts, three windows, shape (3, quarters).
        beta: 1,024 quantiles of Beta(8, 8) as parts of 65,536.
        sun: Wh of each quarter hour of a day at full amplitude, shape (96,).
    """

    prefix: Ints
    ratio: Ints
    voltage: Ints
    beta: Ints
    sun: Ints


@cache
def curves() -> _Curves:
    """The shared series, parsed once (about 0.2 s, 4 MB)."""
    households = _households()
    prefix = np.zeros((households.shape[0], _HALF_HOURS + 1), np.int64)
    np.cumsum(households, axis=1, out=prefix[:, 1:])
    house = _table("uci_house_15min.csv.gz")[1:]
    cells = np.loadtxt(house[: 3 * _QUARTERS], delimiter=",", usecols=(1, 2, 3))
    wh, varh, volts = (cells[:, k].reshape(3, _QUARTERS) for k in range(3))
    ratio = np.minimum(varh * 1000 // np.maximum(wh, 1), 900).astype(np.int64)
    density = np.linspace(0, 1, 4097) ** 7 * np.linspace(1, 0, 4097) ** 7
    distribution = np.cumsum(density) / density.sum()
    quantiles = np.interp((np.arange(1024) + 0.5) / 1024, distribution, np.linspace(0, 1, 4097))
    hours = (np.arange(96) + 0.5) / 4
    sun = np.maximum(np.sin((hours - 6) / 12 * np.pi), 0) * 900
    return _Curves(
        prefix,
        ratio,
        np.rint(volts * 10).astype(np.int64),
        np.rint(quantiles * 65_536).astype(np.int64),
        sun.astype(np.int64),
    )


class Load:
    """One meter's consumption.

    Args:
        index: which meter, 0, 1, 2, ...
        seed: another seed is another town: other scales and splits, the same households.
        tz_min: minutes east of UTC of the local standard time that people live by.
    """

    __slots__ = ("_days", "_key", "_scale", "_sums", "export", "index", "start", "tz_s")

    def __init__(self, index: int, seed: int = 0, tz_min: int = 330) -> None:
        self.index = index
        self.tz_s = tz_min * 60
        self._key = (seed << 32) + index
        copy = index // 62
        spin = int(mix(np.array([self._key], np.uint64))[0])
        self._scale = 700 + spin % 601 if copy else 1000
        self.export = index % 5 == 4
        base = 100_000 + spin // 601 % 1_900_000
        self.start = np.array(
            [base, base // 9 * self.export, base // 4, base // 60, base * 21 // 20, base * 2 // 3]
        )
        self._sums: Ints | None = None
        self._days = lru_cache(maxsize=4)(self._quarters)

    def cumulative(self, at: npt.ArrayLike) -> Ints:
        """Registers at UTC epoch seconds `at`, shape (n, len(CHANNELS)); fractions of a second are cut off."""
        local = np.atleast_1d(np.asarray(at, np.int64)) + self.tz_s - _MONDAY_S
        first, last = int(local.min()) // DAY_S, int(local.max()) // DAY_S
        quarters = self._days(first, last - first + 1)
        prefix = np.zeros((len(quarters) + 1, len(CHANNELS)), np.int64)
        np.cumsum(quarters, axis=0, out=prefix[1:])
        slot, within = np.divmod(local - first * DAY_S, QUARTER_S)
        part = quarters[slot] * within[:, None] // QUARTER_S
        registers: Ints = (
            self.start + self._before(first) - self._before(self._origin) + prefix[slot] + part
        )
        return registers

    def energy_wh(self, begin: int, end: int) -> int:
        """Wh imported from `begin` to `end`, UTC epoch seconds."""
        registers = self.cumulative([begin, end])
        return int(registers[1, 0] - registers[0, 0])

    def voltage(self, at: npt.ArrayLike) -> Ints:
        """Mean decivolts of L1, L2, L3 in the quarter hour that ends at or holds `at`, shape (n, 3)."""
        local = np.atleast_1d(np.asarray(at, np.int64)) + self.tz_s - _MONDAY_S - 1
        place = (local // QUARTER_S + 672 * self.index) % _QUARTERS
        return np.stack([curves().voltage[k][place] - self.index % 17 for k in range(3)], axis=1)

    def power(self, at: int) -> dict[str, int]:
        """Mean active, reactive, apparent power of the second `at` in mW, mvar and mVA: {import, export, q1, q4, vah}."""
        local = at + self.tz_s - _MONDAY_S
        quarter = self._days(local // DAY_S, 1)[local % DAY_S // QUARTER_S]
        wave = 950 + int(mix(np.array([self._key * 31 + at], np.uint64))[0]) % 101
        return {name: int(quarter[k]) * 4 * wave for k, name in enumerate(CHANNELS[:5])}

    @staticmethod
    def current(mva: int, decivolts: int, phase: int) -> int:
        """Milliamperes of one phase that carries its share of `mva`."""
        return mva * _PHASE_SHARE[phase] // 10 // decivolts

    @property
    def _origin(self) -> int:
        return (ORIGIN - _MONDAY_S) // DAY_S

    def _before(self, day: int) -> Ints:
        """Sums from day 0 up to the begin of a local day, shape (channels,)."""
        if self._sums is None:
            days = self._quarters(0, CYCLE_DAYS).reshape(CYCLE_DAYS, 96, -1).sum(axis=1)
            self._sums = np.zeros((CYCLE_DAYS + 1, len(CHANNELS)), np.int64)
            np.cumsum(days, axis=0, out=self._sums[1:])
        cycles, rest = divmod(day, CYCLE_DAYS)
        sums: Ints = cycles * self._sums[-1] + self._sums[rest]
        return sums

    def _quarters(self, first: int, count: int) -> Ints:
        """Energies of the quarter hours of whole local days, shape (96 x count, channels)."""
        shared = curves()
        mine = (first * 48 + np.arange(count * 48)) % _HALF_HOURS
        theirs = (mine + self.index // 62 * 7 * 48) % _HALF_HOURS
        prefix = shared.prefix[self.index % 62]
        wh = prefix[theirs + 1] * self._scale // 1000 - prefix[theirs] * self._scale // 1000
        spin = mix(mine.astype(np.uint64) + np.uint64(self._key * 65_537))
        early = wh * shared.beta[(spin % np.uint64(1024)).astype(np.int64)] // 65_536
        out = np.zeros((count * 96, len(CHANNELS)), np.int64)
        out[0::2, 0], out[1::2, 0] = early, wh - early
        quarter = (first * 96 + np.arange(count * 96)) % _QUARTERS
        reactive = (
            out[:, 0]
            * shared.ratio[self.index % 3][(quarter + 672 * self.index) % _QUARTERS]
            // 1000
        )
        leading = np.repeat((spin >> np.uint64(20)) % np.uint64(16) == 0, 2)
        out[:, 2], out[:, 3] = np.where(leading, 0, reactive), np.where(leading, reactive, 0)
        out[:, 4] = np.ceil(np.sqrt(out[:, 0] ** 2 + reactive**2)).astype(np.int64)
        hour = np.arange(96) // 4
        out[:, 5] = out[:, 0] * np.tile((hour >= 6) & (hour < 22), count)
        if self.export:
            cloud = mix(
                ((first + np.arange(count)) % CYCLE_DAYS).astype(np.uint64) + np.uint64(self._key)
            ) % np.uint64(80)
            out[:, 1] = (
                shared.sun[None, :] * (20 + cloud.astype(np.int64))[:, None] // 100
            ).reshape(-1)
        return out


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 well-stirred bits of each element (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _table(name: str) -> list[str]:
    packed = resources.files(__name__).joinpath(name).read_bytes()
    return gzip.decompress(packed).decode("ascii").splitlines()


def _households() -> Ints:
    """Wh per half hour of the window, blanks filled, shape (62, half hours)."""
    lines = _table("sgsc_households_30min.csv.gz")[_FIRST_LINE : _FIRST_LINE + _HALF_HOURS]
    if not lines[0].startswith("2013-03-04T00:30"):
        raise ValueError("sgsc_households_30min.csv.gz does not hold the window that was expected")
    stamp = len("2013-03-04T00:30+10:00")
    text = "".join(line[stamp:] for line in lines)  # each cell behind its comma
    text = text.replace(",,", ",-1,").replace(",,", ",-1,")
    wh = (
        np.fromstring(text[1:] + "-1" * text.endswith(","), np.int64, sep=",")
        .reshape(_HALF_HOURS, -1)
        .T.copy()
    )
    for series in wh:
        for blank in np.flatnonzero(series < 0):
            week = series[blank % 336 :: 336]
            known = np.flatnonzero(week >= 0)
            if len(known):
                series[blank] = week[known[np.argmin(np.abs(known - blank // 336))]]
        series[series < 0] = 0
    return wh
