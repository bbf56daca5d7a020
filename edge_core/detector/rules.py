"""What whole days of one meter prove without a model: registers that stand still, flat and copied days, spikes, falls.

Pure numpy. Every rule compares the last days with the meter's own 28 days before, because an empty home reads zero for
weeks and is no fault: nine of the 62 real households of the training data do. Thresholds were chosen on the training
households (docs/explanation/anomalies.md has the false alarms of each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector import balance

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

VERSION = "rules-2"
BASE_DAYS = 28
RECENT_DAYS = 5
"""Switched off for a long weekend, or an oven that bakes through one, is nobody's fault; five days in a row are."""
NEEDED_DAYS = BASE_DAYS + RECENT_DAYS
KNOWN_SLOTS = 44
GOOD_BASE_DAYS = 14
SPIKE_WH = 3_600
"""In half an hour: 31 A at 230 V, more than a household keeps up."""

IDLE_WH = 500
"""A day of a home in which nobody lives: what starts or stops there proves nothing."""

BEGAN_DAYS = {
    "stopped": RECENT_DAYS - 1,
    "sudden-drop": RECENT_DAYS - 1,
    "sudden-rise": RECENT_DAYS - 1,
    balance.LOSS: balance.RECENT_DAYS - 1,
    balance.GAIN: balance.RECENT_DAYS - 1,
}
"""So many days before it fires has what it tells of begun; 0 for the others."""

EXPLANATIONS = {
    "stopped": "the register stands still; before, it moved every day",
    "flat": "every half hour has the same energy",
    "repeated-day": "the day is a copy of an earlier one, value by value",
    "spike": "one half hour is far above anything seen before",
    "sudden-drop": "consumption fell far below the lowest day of the four weeks before, and stayed there",
    "sudden-rise": "consumption rose far above the highest day of the four weeks before, and stayed there",
    balance.LOSS: "the transformer gives more than the meters below it count, beyond the usual loss of the wires",
    balance.GAIN: "the meters count more than their transformer gives: one stands under the wrong transformer, or a multiplier is wrong",
}


Verdicts = dict[str, tuple[Mask, Floats, Floats]]


def judge(wh: Floats, trusted: Mask | None = None) -> Verdicts:
    """Rules that fire on the last day.

    Args:
        trusted: days that may be compared with, shape (meters, days); None = all.
        wh: half hours, shape (meters, at least NEEDED_DAYS days, 48), the day to be judged last; not-a-number = missing.

    Returns:
        By kind: (fires, seen, expected), each of shape (meters,); seen and expected in Wh of the rule's own measure.
    """
    recent = wh[:, -NEEDED_DAYS:]
    if trusted is not None:
        base = ~trusted[:, -NEEDED_DAYS:]
        base[:, -RECENT_DAYS:] = False
        recent = np.where(base[:, :, None], np.float32(np.nan), recent)
    view = _View.of(recent)
    out: Verdicts = {}
    for rule in (_stopped, _flat, _repeated, _spike, _level):
        rule(view, out)
    return out


@dataclass(frozen=True, slots=True)
class _View:
    """The days of a judgement.

    Attributes:
        wh: half hours, 0 where missing, shape (meters, NEEDED_DAYS, 48); known: which are there.
        good: days with enough of them, shape (meters, NEEDED_DAYS); total: Wh of good days, else not-a-number.
        today: meters whose last day can be judged, shape (meters,).
    """

    wh: Floats
    known: Mask
    good: Mask
    total: Floats
    today: Mask

    @classmethod
    def of(cls, wh: Floats) -> _View:
        known = np.isfinite(wh)
        filled = np.where(known, wh, np.float32(0))
        good = known.sum(axis=2) >= KNOWN_SLOTS
        today = good[:, -1] & (good[:, :BASE_DAYS].sum(axis=1) >= GOOD_BASE_DAYS)
        total = np.where(good, filled.sum(axis=2), np.float32(np.nan))
        return cls(filled, known, good, total, today)


def _quiet(function: Callable[..., Any], values: Floats) -> Floats:
    """A nan-function without its warning about rows that are all missing."""
    empty = np.logical_not(np.isfinite(values).any(axis=1))
    result = function(np.where(empty[:, None], 0, values), axis=1)
    return np.where(empty, np.nan, result).astype(np.float32)


def _stopped(view: _View, out: Verdicts) -> None:
    still = view.good & (view.total == 0)
    zeros = ((view.wh == 0) & view.known)[:, :BASE_DAYS].sum(axis=2).sum(axis=1)
    share = zeros / np.maximum(view.known[:, :BASE_DAYS].sum(axis=2).sum(axis=1), 1)
    usual = _quiet(np.nanmedian, view.total[:, :BASE_DAYS])
    fires = view.today & still[:, -RECENT_DAYS:].all(axis=1) & (share < 0.02) & (usual > IDLE_WH)
    out["stopped"] = (fires, view.total[:, -1], usual)


def _flat(view: _View, out: Verdicts) -> None:
    top = np.where(view.known, view.wh, -np.inf).max(axis=2)
    bottom = np.where(view.known, view.wh, np.inf).min(axis=2)
    with np.errstate(invalid="ignore"):
        level = view.good & (top - bottom <= np.maximum(1.01, 0.004 * top)) & (top > 10)
    fires = view.today & level[:, -1] & (level[:, :BASE_DAYS].sum(axis=1) == 0)
    spread = _quiet(np.nanmedian, np.where(view.good, top - bottom, np.nan)[:, :BASE_DAYS])
    out["flat"] = (fires, (top - bottom)[:, -1], spread)


def _repeated(view: _View, out: Verdicts) -> None:
    both = view.known[:, -8:-1] & view.known[:, -1:]
    same = ((view.wh[:, -8:-1] == view.wh[:, -1:]) & both).sum(axis=2)
    different = 1 + (np.diff(np.sort(view.wh[:, -1], axis=1), axis=1) > 0).sum(axis=1)
    fires = view.today & (same >= KNOWN_SLOTS).any(axis=1) & (different >= 12)
    out["repeated-day"] = (fires, view.total[:, -1], view.total[:, -1])


def _spike(view: _View, out: Verdicts) -> None:
    top = view.wh[:, -1].max(axis=1)
    before = view.wh[:, :-1].max(axis=2).max(axis=1)
    out["spike"] = (view.today & (top > 2 * before) & (top > SPIKE_WH), top, before)


def _level(view: _View, out: Verdicts) -> None:
    lowest = _quiet(np.nanmin, view.total[:, :BASE_DAYS])
    highest = _quiet(np.nanmax, view.total[:, :BASE_DAYS])
    recent = view.total[:, -RECENT_DAYS:]
    with np.errstate(invalid="ignore"):
        below = (recent < 0.1 * lowest[:, None]).all(axis=1) & (lowest > 1_000)
        below &= (recent > 0).all(axis=1)  # zeros where zeros were usual are an empty home
        above = (recent > 3 * highest[:, None]).all(axis=1) & (recent.min(axis=1) > 5_000)
        above &= (
            _quiet(np.nanmedian, view.total[:, :BASE_DAYS]) > IDLE_WH
        )  # else an empty home is moved into
    mean = recent.mean(axis=1)
    out["sudden-drop"] = (view.today & below & ~out["stopped"][0], mean, lowest)
    out["sudden-rise"] = (view.today & above, mean, highest)
