"""Features of the last days of a meter against its own weeks before. Pure numpy; training and scoring share every line.

A day counts when at least KNOWN_SLOTS of its 48 half hours are there. Windows are the last 3, 7 and 14 days; the
baseline is the 42 days before the last 14 (at least GOOD_BASE_DAYS of them good). Levels are compared as logarithms of
ratios, and those of the whole fleet on the same days are taken off: a cold week or a holiday is nobody's theft.
Profiles are compared as directions (mean removed, length 1), so that a day's shape and its level are different things.

Everything is linear in days once a day's own figures are known, so that a window is a difference of running sums: 500
days of a meter cost little more than one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_core.detector.days import SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

SCHEMA = "opendcu.features/2"
WINDOWS = (3, 7, 14)
BASE_DAYS, GAP_DAYS = 42, 14
NEEDED_DAYS = BASE_DAYS + GAP_DAYS
KNOWN_SLOTS, GOOD_BASE_DAYS = 44, 14
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
FLOOR_WH = 2.0
"""Added to half-hourly energies before logarithms: below it a ratio says nothing."""
TOP_FLOOR_WH = 50.0
"""The same for the highest half hour of a day."""
SWING_FLOOR = 0.05
_MOVED = [move % SLOTS for move in range(-22, 23) if abs(move) >= 3]
"""Half hours by which a clock may be off."""
FLEET_HALF = 8
"""With so many meters the fleet's level counts half."""

_PARTS = (slice(2, 9), slice(10, 18), slice(18, 34), slice(34, 46))
"""Half hours of the night (1 to 4:30), morning, midday and evening."""

_USUAL_DAY = np.array(
    [
        -0.149, -0.184, -0.207, -0.225, -0.228, -0.239, -0.248, -0.24, -0.234, -0.209, -0.181, -0.131, -0.07, 0.013, 0.07, 0.114,
        0.102, 0.075, 0.055, 0.051, 0.038, 0.021, 0.015, 0.013, 0.003, -0.001, -0.011, -0.015, -0.007, 0.005, 0.024, 0.054,
        0.094, 0.119, 0.179, 0.21, 0.245, 0.248, 0.228, 0.207, 0.187, 0.169, 0.13, 0.082, 0.032, -0.017, -0.07, -0.116,
    ],
    np.float32,
)  # fmt: skip
"""The mean shape of the days of the training households, length 1: asleep at 4, up at 7, home in the evening.

A household whose own habits are vague still follows it: a clock that is off, or a day backwards, does not.
"""

_DAILY = (
    "level",
    *(f"q{round(q * 100):02d}" for q in QUANTILES),
    "zeros",
    "zero_run",
    "variation",
    "roughness",
    "echo",
    "unchanged",
    "peak",
    "night",
    "morning",
    "midday",
    "evening",
    "top",
)
"""Figures of one day; see `daily`."""

_BASE_FIGURES = ("zeros", "zero_run", "variation", "roughness", "echo")
_QUANTILE_NAMES = tuple(f"q{round(q * 100):02d}" for q in QUANTILES)
_OF_WINDOW = (
    *("level", "level_fleet", "level_z", *_QUANTILE_NAMES, "spread"),
    *_DAILY[1 + len(QUANTILES) :],
    *(f"{name}_z" for name in _DAILY[1:]),
    *(
        "low_day",
        "high_day",
        "shape",
        "reversed",
        "shape_z",
        "reversed_z",
        "shifted",
        "common",
        "common_back",
        "coherence",
        "level_rare",
    ),
)
NAMES: tuple[str, ...] = (
    *(f"{name}_{w}" for w in WINDOWS for name in _OF_WINDOW),
    *("base_level", "base_swing", *(f"base_{name}" for name in _BASE_FIGURES)),
    *("base_coherence", "base_symmetry", "base_shift"),
)
"""Order of the columns."""

_LEVEL = [NAMES.index(f"level_{w}") for w in WINDOWS]
_LEVEL_Z = [NAMES.index(f"level_z_{w}") for w in WINDOWS]
_COMMON = [[NAMES.index(f"{n}_{w}") for n in ("level_fleet", *_QUANTILE_NAMES)] for w in WINDOWS]
_SWING = NAMES.index("base_swing")


class Days(NamedTuple):
    """What is known of each day by itself.

    Attributes:
        figures: shape (meters, days, len(_DAILY)); shape: (meters, days, 48), length 1 or 0. Both 0 on days not good.
        good: enough half hours, shape (meters, days).
    """

    figures: Floats
    shape: Floats
    good: Mask

    def between(self, first: int, end: int) -> Days:
        """Days first to end (exclusive)."""
        return Days(self.figures[:, first:end], self.shape[:, first:end], self.good[:, first:end])


def daily(wh: Floats) -> Days:
    """Figures, shape and goodness of each day.

    Args:
        wh: half hours in Wh, shape (meters, days, 48); not-a-number = missing.

    """
    known = np.isfinite(wh)
    good = known.sum(axis=2) >= KNOWN_SLOTS
    mean = np.where(known, wh, 0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    x = np.where(known, wh, mean[:, :, None]).astype(np.float32)
    x[~good] = 0
    mean = x.mean(axis=2)
    ordered = np.sort(x, axis=2)
    last = SLOTS - 1
    quantiles = [
        (1 - (q * last) % 1) * ordered[:, :, int(q * last)]
        + ((q * last) % 1) * ordered[:, :, min(int(q * last) + 1, last)]
        for q in QUANTILES
    ]
    zero = x == 0
    run = np.zeros(x.shape[:2], np.float32)
    longest = np.zeros(x.shape[:2], np.float32)
    for slot in range(SLOTS):
        run = (run + 1) * zero[:, :, slot]
        np.maximum(longest, run, out=longest)
    away = x - mean[:, :, None]
    deviation = np.sqrt((away**2).mean(axis=2))
    step = np.diff(x, axis=2)
    floor = mean + FLOOR_WH
    root = np.sqrt(x)
    root -= root.mean(axis=2, keepdims=True)
    length = np.sqrt((root**2).sum(axis=2, keepdims=True))
    shape = np.where(length > 1e-3, root / np.maximum(length, 1e-3), 0).astype(np.float32)
    ranked = np.abs(step)
    figures = np.stack(
        [
            np.log(floor),
            *(np.log(q + FLOOR_WH) for q in quantiles),
            zero.mean(axis=2),
            longest / SLOTS,
            np.log(deviation / floor + 0.02),
            np.log(ranked.mean(axis=2) / floor + 0.02),
            (away[:, :, 1:] * away[:, :, :-1]).mean(axis=2) / (deviation**2 + 1e-3),
            (ranked <= 0.01 * x[:, :, 1:]).mean(axis=2),
            np.log((ordered[:, :, -1] + FLOOR_WH) / floor),
            *(np.log(x[:, :, part].mean(axis=2) + FLOOR_WH) for part in _PARTS),
            np.log(ordered[:, :, -1] + TOP_FLOOR_WH),
        ],
        axis=2,
    ).astype(np.float32)
    figures[~good] = 0
    shape[~good] = 0
    return Days(figures, shape, good)


def windows(days: Days, at: Sequence[int], trusted: Mask | None = None) -> Floats:
    """Features at the end of some days, the fleet not yet taken off.

    Args:
        days: of all days; before the first one nothing is known.
        at: indices of the days at whose end is looked, rising.
        trusted: days that may stand in a baseline, shape (meters, days); None = all good ones.

    Returns:
        Shape (meters, len(at), len(NAMES)), not-a-number where the history does not suffice.
    """
    figures, shape, good = days
    when = np.asarray(at)
    solid = good if trusted is None else good & trusted
    begin, end = when - NEEDED_DAYS + 1, when - GAP_DAYS
    sums, counts, shapes = _Running(figures), _Running(_column(good)), _Running(shape)
    base_n = _Running(_column(solid)).between(begin, end)
    n = np.maximum(base_n, 1)
    kept = figures * solid[:, :, None]
    base = _Running(kept).between(begin, end) / n
    base_shape = _Running(shape * solid[:, :, None]).between(begin, end) / n
    coherence = np.sqrt((base_shape**2).sum(axis=2))
    direction = base_shape / np.maximum(coherence, 1e-3)[:, :, None]
    spread2 = _Running(kept**2).between(begin, end) / n - base**2
    swings = np.sqrt(np.maximum(spread2, 0)) + SWING_FLOOR
    swing = swings[:, :, 0]
    usable = base_n[:, :, 0] >= GOOD_BASE_DAYS
    usual, turn, usual_swing, turn_swing = _habits(shape, solid, when, direction)
    base_low, base_high = _extremes(figures[:, :, 0], solid, end, BASE_DAYS)
    solid_sums, solid_counts = _Running(kept[:, :, :1]), _Running(_column(solid))
    columns: list[Floats] = []
    for width in WINDOWS:
        count = counts.between(when - width + 1, when)
        usable &= count[:, :, 0] >= max(2, width // 2)
        recent = sums.between(when - width + 1, when) / np.maximum(count, 1)
        change = recent - base
        level = change[:, :, 0]
        columns += [level, level, level / swing * np.sqrt(min(width, 7))]
        ratios = change[:, :, 1 : 1 + len(QUANTILES)]
        columns += [ratios[:, :, k] for k in range(len(QUANTILES))]
        columns.append(ratios[:, :, 1:].std(axis=2))
        columns += [change[:, :, k] for k in range(1 + len(QUANTILES), len(_DAILY))]
        times = np.sqrt(min(width, 7))
        columns += [change[:, :, k] / swings[:, :, k] * times for k in range(1, len(_DAILY))]
        low, high = _extremes(figures[:, :, 0], good, when, width)
        columns += [low - base_low, high - base_high]
        mean_shape = shapes.between(when - width + 1, when) / np.maximum(count, 1)
        forward = (mean_shape * direction).sum(axis=2)
        columns.append(forward - coherence)
        backward = (mean_shape * direction[:, :, ::-1]).sum(axis=2)
        columns.append(backward - forward)
        columns.append((forward - usual) / usual_swing * np.sqrt(width))
        columns.append((backward - forward - turn) / turn_swing * np.sqrt(width))
        columns.append(_best_turn(mean_shape, direction) - forward)
        for usual_day in (_USUAL_DAY, _USUAL_DAY[::-1]):
            columns.append(mean_shape @ usual_day - base_shape @ usual_day)
        columns.append(np.sqrt((mean_shape**2).sum(axis=2)) - coherence)
        columns.append(_rare(solid_sums, solid_counts, when, width, level))
    columns += [base[:, :, 0], swing]
    columns += [base[:, :, _DAILY.index(name)] for name in _BASE_FIGURES]
    columns.append(coherence)
    columns.append((direction * direction[:, :, ::-1]).sum(axis=2))
    columns.append(_best_turn(direction, direction))
    out = np.stack(columns, axis=2).astype(np.float32)
    out[~usable] = np.nan
    return out


def levels(wh: Floats, at: Sequence[int], trusted: Mask | None = None) -> Floats:
    """The level columns of `windows` alone, for a fraction of its cost; shape (meters, len(at), len(WINDOWS))."""
    known = np.isfinite(wh)
    good = known.sum(axis=2) >= KNOWN_SLOTS
    mean = np.where(known, wh, 0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    level = np.where(good, np.log(mean + FLOOR_WH), 0)[:, :, None]
    when = np.asarray(at)
    solid = good if trusted is None else good & trusted
    begin, end = when - NEEDED_DAYS + 1, when - GAP_DAYS
    base_n = _Running(_column(solid)).between(begin, end)
    base = _Running(level * solid[:, :, None]).between(begin, end) / np.maximum(base_n, 1)
    usable = base_n[:, :, 0] >= GOOD_BASE_DAYS
    sums, counts = _Running(level), _Running(_column(good))
    columns = []
    for width in WINDOWS:
        count = counts.between(when - width + 1, when)
        usable &= count[:, :, 0] >= max(2, width // 2)
        recent = sums.between(when - width + 1, when) / np.maximum(count, 1)
        columns.append((recent - base)[:, :, 0])
    out = np.stack(columns, axis=2)
    out[~usable] = np.nan
    return out


def levels_of(features: Floats) -> Floats:
    """The columns that `levels` gives, out of features before the fleet is taken off."""
    return features[:, :, _LEVEL]


def fleet_levels(features: Floats) -> Floats:
    """How the level of the whole fleet changed, from the features of its meters; shape (days, windows)."""
    return fleet_of(levels_of(features))


def fleet_of(level: Floats) -> Floats:
    """The fleet's levels, from `levels` of its meters: medians, drawn to 0 when few are there; shape (days, windows)."""
    usable = np.isfinite(level[:, :, 0])
    count = usable.sum(axis=0)
    out = np.zeros(level.shape[1:], np.float32)
    for day in np.flatnonzero(count):
        middle = np.median(level[usable[:, day], day], axis=0)
        out[day] = middle * count[day] / (count[day] + FLEET_HALF)
    return out


def against_fleet(features: Floats, fleet: Floats) -> Floats:
    """Features with the fleet's levels (shape (days, windows)) taken off, as the model wants them."""
    out = features.copy()
    swing = features[:, :, _SWING]
    for number, width in enumerate(WINDOWS):
        common = fleet[None, :, number]
        for column in _COMMON[number]:
            out[:, :, column] -= common
        out[:, :, _LEVEL_Z[number]] -= common / swing * np.sqrt(min(width, 7))
    return out


def _column(mask: Mask) -> Floats:
    return mask[:, :, None].astype(np.float32)


class _Running:
    """Sums over days as differences of running sums."""

    def __init__(self, values: Floats) -> None:
        self._sums = np.zeros((values.shape[0], values.shape[1] + 1, values.shape[2]), np.float64)
        np.cumsum(values, axis=1, out=self._sums[:, 1:])

    def between(self, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> Floats:
        """Sums from day `first` to `last`, both included, shape (meters, len(first), values)."""
        low = np.maximum(first, 0)
        high = np.maximum(last + 1, 0)
        out: Floats = (self._sums[:, high] - self._sums[:, low]).astype(np.float32)
        return out


def _habits(
    shape: Floats, solid: Mask, when: npt.NDArray[np.int64], direction: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """How single days of the baseline lie to its mean direction: mean and spread of their projections.

    Returns:
        Of the projection on the direction, and of that on the reversed one less that: two means, two spreads, each of
        shape (meters, len(when)).
    """
    out = np.zeros((4, shape.shape[0], len(when)), np.float32)
    for number, day in enumerate(when):
        part = slice(max(0, day - NEEDED_DAYS + 1), max(0, day - GAP_DAYS + 1))
        there = solid[:, part]
        count = np.maximum(there.sum(axis=1), 1)
        towards = direction[:, number]
        onto = np.einsum("mds,ms->md", shape[:, part], towards)
        apart = np.einsum("mds,ms->md", shape[:, part], towards[:, ::-1]) - onto
        for place, value in enumerate((onto, apart)):
            mean = (value * there).sum(axis=1) / count
            spread = ((value - mean[:, None]) ** 2 * there).sum(axis=1) / count
            out[place, :, number] = mean
            out[place + 2, :, number] = np.sqrt(spread) + SWING_FLOOR
    return out[0], out[1], out[2], out[3]


def _rare(
    sums: _Running, counts: _Running, at: npt.NDArray[np.int64], width: int, level: Floats
) -> Floats:
    """How far the level lies below (or above) every window of the same width in the baseline, shape (meters, days)."""
    low = np.full(level.shape, np.inf, np.float32)
    high = np.full(level.shape, -np.inf, np.float32)
    total = np.zeros(level.shape, np.float32)
    number = np.zeros(level.shape, np.float32)
    step = max(1, width // 2)
    for back in range(GAP_DAYS, NEEDED_DAYS - width + 1, step):
        n = counts.between(at - back - width + 1, at - back)[:, :, 0]
        there = n >= max(2, width // 2)
        value = sums.between(at - back - width + 1, at - back)[:, :, 0] / np.maximum(n, 1)
        low = np.where(there, np.minimum(low, value), low)
        high = np.where(there, np.maximum(high, value), high)
        total += np.where(there, value, 0)
        number += there
    mean = total / np.maximum(number, 1)
    now = mean + level  # level is relative to the same baseline, up to the weighting of its days
    low, high = np.where(number > 0, low, now), np.where(number > 0, high, now)
    outside: Floats = np.minimum(now - low, 0) + np.maximum(now - high, 0)
    return outside


def _best_turn(shape: Floats, direction: Floats) -> Floats:
    """The best fit of shapes to directions that are moved by 3 to 22 half hours either way, shape (meters, days).

    All moves at once, as a circular correlation.
    """
    product = np.fft.rfft(shape, axis=2) * np.conj(np.fft.rfft(direction, axis=2))
    fits = np.fft.irfft(product, SLOTS, axis=2)
    best: Floats = fits[:, :, _MOVED].max(axis=2)
    return best


def _extremes(
    level: Floats, good: Mask, at: npt.NDArray[np.int64], width: int
) -> tuple[Floats, Floats]:
    """Lowest and highest level of the good days among the `width` days up to each of `at`."""
    low = np.full((level.shape[0], len(at)), np.inf, np.float32)
    high = np.full_like(low, -np.inf)
    for back in range(width):
        day = at - back
        inside = day >= 0
        value, there = level[:, np.maximum(day, 0)], good[:, np.maximum(day, 0)] & inside[None, :]
        low = np.where(there, np.minimum(low, value), low)
        high = np.where(there, np.maximum(high, value), high)
    return np.where(np.isfinite(low), low, 0), np.where(np.isfinite(high), high, 0)
