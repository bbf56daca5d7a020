"""Patterns of theft and faults put into real load, for training and for labelled tests.

h1 to h6 are the functions of Jokar, Arianpoo and Leung, IEEE Trans. Smart Grid 7(1), 2016, the usual yardstick; the
others are faults and tamper seen in the field. A pattern is applied to whole days of one meter; readings stay integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector.days import SLOTS
from edge_core.detector.readings import Label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Floats = npt.NDArray[np.floating[Any]]

ATTACKS = ("h1", "h2", "h3", "h4", "h5", "h6")
FAULTS = ("zero", "drop", "rise", "spikes", "shift", "night", "repeat", "clip")


def apply(kind: str, wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """The days as the meter would report them, and the pattern's parameter (0.0 = none).

    Args:
        wh: half hours of the anomalous days, shape (days, 48); not-a-number stays.

    Raises:
        KeyError: no such kind.
    """
    altered, parameter = _KINDS[kind](wh, rng)
    return np.rint(altered).astype(np.float32), parameter


def scatter(
    wh: Floats,
    rng: np.random.Generator,
    *,
    kinds: Sequence[str],
    days: tuple[int, int] = (14, 60),
    share: float = 1.0,
    apart: tuple[int, int] = (90, 120),
    before: tuple[int, int] = (42, 90),
) -> tuple[Floats, list[Label]]:
    """Put anomalies into series, each at a place and of a kind drawn at random.

    Args:
        wh: shape (meters, days, 48).
        days: shortest and longest anomaly.
        share: of the meters that get any.
        apart: clean days between two of a meter.
        before: clean days before its first.
    """
    out = wh.copy()
    labels = []
    for meter in range(len(wh)):
        there = np.flatnonzero(np.isfinite(wh[meter]).sum(axis=1) >= SLOTS - 4)
        if len(there) < before[1] or rng.random() >= share:
            continue
        first = int(there[0]) + int(rng.integers(*before))
        while first + days[0] <= there[-1]:
            end = min(first + int(rng.integers(days[0], days[1] + 1)), int(there[-1]) + 1)
            kind = kinds[int(rng.integers(len(kinds)))]
            out[meter, first:end], parameter = apply(kind, wh[meter, first:end], rng)
            labels.append(Label(meter, kind, first, end, f"{parameter:.3f}"))
            first = end + int(rng.integers(*apart))
    return out, labels


def _h1(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """A fixed share is counted."""
    share = rng.uniform(0.1, 0.8)
    return wh * share, share


def _h2(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Nothing is counted in one window of at least 4 hours, another one every day."""
    out = wh.copy()
    for day in out:
        length = int(rng.integers(8, SLOTS + 1))
        first = int(rng.integers(0, SLOTS - length + 1))
        day[first : first + length] *= 0
    return out, 0.0


def _h3(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Every value has a share of its own."""
    return wh * rng.uniform(0.1, 0.8, wh.shape), 0.0


def _day_mean(wh: Floats) -> Floats:
    known = np.isfinite(wh)
    mean = np.where(known, wh, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.where(known, mean[:, None], np.nan).astype(np.float32)


def _h4(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Random shares of the day's mean."""
    return _day_mean(wh) * rng.uniform(0.1, 0.8, wh.shape), 0.0


def _h5(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:  # noqa: ARG001 one signature for all
    """The day's mean."""
    return _day_mean(wh), 0.0


def _h6(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:  # noqa: ARG001
    """The day backwards."""
    return wh[:, ::-1], 0.0


def _zero(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:  # noqa: ARG001
    """The register stands still."""
    return wh * 0, 0.0


def _drop(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """One or two phases are lost."""
    share = float(rng.choice([1 / 3, 1 / 2, 2 / 3]))
    return wh * share, share


def _rise(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """A wrong multiplier."""
    factor = float(rng.choice([2.0, 3.0, 5.0]))
    return wh * factor, factor


def _spikes(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Single values far too high, one or two a day."""
    factor = rng.uniform(5, 20)
    out = wh.copy()
    top = float(np.nanmax(wh)) if np.isfinite(wh).any() else 0.0
    for day in out:
        for slot in rng.integers(0, SLOTS, int(rng.integers(1, 3))):
            day[slot] = day[slot] * 0 + top * factor / 4 + 500
    return out, factor


def _shift(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """The clock is off by hours."""
    slots = int(rng.integers(6, 20)) * int(rng.choice([-1, 1]))
    return np.roll(wh.reshape(-1), slots).reshape(wh.shape), slots / 2


def _night(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Bypassed in the evening: little is counted from 17 to 23 h."""
    share = rng.uniform(0.0, 0.3)
    out = wh.copy()
    out[:, 34:46] *= share
    return out, share


def _repeat(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:  # noqa: ARG001
    """The same day again and again."""
    return np.repeat(wh[:1], len(wh), axis=0), 0.0


def _clip(wh: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Nothing above a level is counted: a saturated or shunted current transformer."""
    level = rng.uniform(0.4, 0.7)
    return np.minimum(wh, np.nanquantile(wh, level) if np.isfinite(wh).any() else 0.0), level


_KINDS: dict[str, Callable[[Floats, np.random.Generator], tuple[Floats, float]]] = {
    "h1": _h1, "h2": _h2, "h3": _h3, "h4": _h4, "h5": _h5, "h6": _h6, "zero": _zero, "drop": _drop, "rise": _rise,
    "spikes": _spikes, "shift": _shift, "night": _night, "repeat": _repeat, "clip": _clip,
}  # fmt: skip
