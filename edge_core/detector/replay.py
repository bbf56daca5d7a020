"""The judgement of a day as the gateway makes it, and of many days in order: one code for scoring and for evaluation.

A day is judged by the rules and by the model: its logit, averaged over the last `smooth_days` days, against the
threshold. Days of an alarm are kept out of the baseline for FREEZE_DAYS, so that theft does not become normal; after
that a lasting change of a household does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector import features, rules

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

QUIET_DAYS = 3
"""So many days without firing end an episode."""
FREEZE_DAYS = 28
CONSUMPTION = "consumption"
"""Kind of the model's findings."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A model ready to judge.

    Attributes:
        logit: rows of features, shape (n, len(features.NAMES)), to logits of shape (n,); None = rules only.
        threshold: of the averaged logit.
        smooth_days: days that are averaged.
    """

    logit: Callable[[Floats], Floats] | None
    threshold: float = 0.0
    smooth_days: int = 1


@dataclass(slots=True)
class Episode:
    """One alarm of one meter: from the day it was raised to the last day that something fired."""

    meter: int
    first: int
    last: int
    kinds: list[str]


def logits_of(table: Floats, judge: Judge) -> Floats:
    """Logits of features of shape (meters, days, features), not-a-number where there is no history."""
    out = np.full(table.shape[:2], np.nan, np.float32)
    known = np.isfinite(table[:, :, 0])
    if judge.logit is not None and known.any():
        out[known] = judge.logit(np.ascontiguousarray(table[known], dtype=np.float32))
    return out


def averaged(logits: Floats, judge: Judge) -> Floats:
    """Logits averaged over the last days, shape as given; not-a-number when the day, or more than one other, is missing."""
    known = np.isfinite(logits)
    width = judge.smooth_days
    sums = np.cumsum(
        np.pad(np.where(known, logits, 0), ((0, 0), (width, 0))), axis=1, dtype=np.float64
    )
    counts = np.cumsum(np.pad(known, ((0, 0), (width, 0))), axis=1)
    total, count = sums[:, width:] - sums[:, :-width], counts[:, width:] - counts[:, :-width]
    return np.where(known & (count >= max(1, width - 1)), total / np.maximum(count, 1), np.nan)


def run(wh: Floats, judge: Judge, *, with_rules: bool = True) -> tuple[list[Episode], Floats]:
    """Judge all days in order, as a gateway with these meters would.

    Args:
        wh: half hours, shape (meters, days, 48).

    Returns:
        The episodes (all kinds of a meter are one, as they are for whoever drives there), and the averaged logits.
    """
    meters, count = wh.shape[:2]
    days = features.daily(wh)
    behind = rules.NEEDED_DAYS - 1
    padded = np.concatenate([np.full((meters, behind, wh.shape[2]), np.nan, wh.dtype), wh], axis=1)
    trusted = np.ones((meters, count), np.bool_)
    logits = np.full((meters, count), np.nan, np.float32)
    mean = np.full((meters, count), np.nan, np.float32)
    began = max(judge.smooth_days, rules.RECENT_DAYS)
    current: dict[int, Episode] = {}
    episodes: list[Episode] = []
    for day in range(count):
        low = max(0, day - features.NEEDED_DAYS + 1)
        part = days.between(low, day + 1)
        table = features.windows(part, [day - low], trusted[:, low : day + 1])
        table = features.against_fleet(table, features.fleet_levels(table))
        logits[:, day] = logits_of(table, judge)[:, 0]
        since = max(0, day - judge.smooth_days + 1)
        mean[:, day] = averaged(logits[:, since : day + 1], judge)[:, -1]
        fired: dict[int, list[str]] = {}
        with np.errstate(invalid="ignore"):
            for meter in np.flatnonzero(mean[:, day] > judge.threshold):
                fired.setdefault(int(meter), []).append(CONSUMPTION)
        if with_rules:
            believed = np.pad(
                trusted[:, max(0, day - behind) : day + 1],
                ((0, 0), (max(0, behind - day), 0)),
                constant_values=True,
            )
            for kind, (mask, _, _) in rules.judge(
                padded[:, day : day + behind + 1], believed
            ).items():
                for meter in np.flatnonzero(mask):
                    fired.setdefault(int(meter), []).append(kind)
        for number, kinds in fired.items():
            episode = current.get(number)
            if episode is None or day > episode.last + QUIET_DAYS:
                episode = current[number] = Episode(number, day, day, [])
                episodes.append(episode)
                trusted[number, max(0, day - began + 1) : day] = False
            episode.last = day
            episode.kinds += [k for k in kinds if k not in episode.kinds]
            if day - episode.first < FREEZE_DAYS:
                trusted[number, day] = False
    return episodes, mean


def episodes_of(fires: Mask) -> list[tuple[int, int]]:
    """(meter, first day) of every episode where days fire, shape (meters, days): the quick way, nothing frozen."""
    out = []
    for meter, row in enumerate(fires):
        last = -QUIET_DAYS - 1
        for day in np.flatnonzero(row):
            if day - last > QUIET_DAYS:
                out.append((meter, int(day)))
            last = int(day)
    return out
