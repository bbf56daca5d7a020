"""The judgement of a day as the gateway makes it, and of many days in order: one code for scoring and for evaluation.

A day is judged by the rules and by the model. The model's logits are averaged over a few days and over more of them, the
longer mean with an allowance, for what lasts needs to be less striking; the higher of these *scores* is compared with
the threshold. An episode that has begun goes on while the score stays within LINGER of the threshold. Days of an alarm
are kept out of the baseline for FREEZE_DAYS, so that theft does not become normal; after that a lasting change of a
household does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector import features, rules
from edge_core.detector.watch import QUIET_DAYS

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

LINGER = 2.0
"""Of logits: an episode goes on, and does not begin, so far below the threshold."""
FREEZE_DAYS = 28
CONSUMPTION = "consumption"
"""Kind of the model's findings."""


Scales = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """A model ready to judge.

    Attributes:
        logit: rows of features, shape (n, len(features.NAMES)), to logits of shape (n,); None = rules only.
        threshold: of the score.
        scales: (days, allowance): logits are averaged over so many days, and so much is added to the mean.
    """

    logit: Callable[[Floats], Floats] | None
    threshold: float = 0.0
    scales: Scales = ((1, 0.0),)

    @property
    def days(self) -> int:
        """Days of logits that a score needs."""
        return max(days for days, _ in self.scales)


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


def scores_of(logits: Floats, scales: Scales) -> Floats:
    """Scores of days out of their logits, shape as given: the highest of the scales; not-a-number where none is known."""
    out = np.full(logits.shape, np.nan)
    for days, allowance in scales:
        out = np.fmax(out, averaged(logits, days) + allowance)
    return out


def averaged(logits: Floats, days: int) -> Floats:
    """Logits averaged over the last days, shape as given; not-a-number when the day, or more than one other, is missing."""
    known = np.isfinite(logits)
    sums = np.cumsum(
        np.pad(np.where(known, logits, 0), ((0, 0), (days, 0))), axis=1, dtype=np.float64
    )
    counts = np.cumsum(np.pad(known, ((0, 0), (days, 0))), axis=1)
    total, count = sums[:, days:] - sums[:, :-days], counts[:, days:] - counts[:, :-days]
    return np.where(known & (count >= max(1, days - 1)), total / np.maximum(count, 1), np.nan)


def run(wh: Floats, judge: Judge, *, with_rules: bool = True) -> tuple[list[Episode], Floats]:
    """Judge all days in order, as a gateway with these meters would.

    Args:
        wh: half hours, shape (meters, days, 48).

    Returns:
        The episodes (all kinds of a meter are one, as they are for whoever drives there), and the scores.
    """
    meters, count = wh.shape[:2]
    days = features.daily(wh)
    behind = rules.NEEDED_DAYS - 1
    padded = np.concatenate([np.full((meters, behind, wh.shape[2]), np.nan, wh.dtype), wh], axis=1)
    trusted = np.ones((meters, count), np.bool_)
    logits = np.full((meters, count), np.nan, np.float32)
    scores = np.full((meters, count), np.nan, np.float32)
    began = max(judge.scales[0][0], rules.RECENT_DAYS)
    current: dict[int, Episode] = {}
    episodes: list[Episode] = []
    for day in range(count):
        low = max(0, day - features.NEEDED_DAYS + 1)
        part = days.between(low, day + 1)
        table = features.windows(part, [day - low], trusted[:, low : day + 1])
        table = features.against_fleet(table, features.fleet_levels(table))
        logits[:, day] = logits_of(table, judge)[:, 0]
        since = max(0, day - judge.days + 1)
        scores[:, day] = scores_of(logits[:, since : day + 1], judge.scales)[:, -1]
        fired: dict[int, list[str]] = {}
        with np.errstate(invalid="ignore"):
            for meter in np.flatnonzero(scores[:, day] > judge.threshold):
                fired.setdefault(int(meter), []).append(CONSUMPTION)
            lingering = np.flatnonzero(scores[:, day] > judge.threshold - LINGER)
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
        for meter in lingering:
            going = current.get(int(meter))
            if going is not None and day <= going.last + QUIET_DAYS:
                fired.setdefault(int(meter), [])
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
    return episodes, scores


def episodes_of(fires: Mask, lingers: Mask | None = None) -> list[tuple[int, int]]:
    """(meter, first day) of every episode: the quick way, nothing frozen.

    Args:
        fires: days that begin an episode or let one go on, shape (meters, days).
        lingers: days that let one go on; None = no others.
    """
    out = []
    goes_on = fires if lingers is None else fires | lingers
    for meter, row in enumerate(goes_on):
        last = -QUIET_DAYS - 1
        for day in np.flatnonzero(row).tolist():
            if day - last <= QUIET_DAYS:
                last = day
            elif fires[meter, day]:
                out.append((meter, day))
                last = day
    return out


def rule_fires(wh: Floats) -> Mask:
    """Days on which any rule fires, shape (meters, days)."""
    out = np.zeros(wh.shape[:2], np.bool_)
    for day in range(rules.NEEDED_DAYS - 1, wh.shape[1]):
        for mask, _, _ in rules.judge(wh[:, day - rules.NEEDED_DAYS + 1 : day + 1]).values():
            out[:, day] |= mask
    return out


def begins_of(scores: Floats, threshold: float, fires: Mask) -> list[tuple[int, int]]:
    """Episodes of scores and of days on which rules fire."""
    with np.errstate(invalid="ignore"):
        return episodes_of((scores > threshold) | fires, scores > threshold - LINGER)
