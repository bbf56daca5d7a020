"""The energy balance of a transformer: what its own meter counts against the sum of the meters below it. Pure numpy.

What is missing between them is the technical loss of wires (some per cent) and what nobody counts. The usual loss is
learnt from the transformer's own weeks before; an alarm is a loss that rose above it and stayed, or one so high from the
first day on that no wire explains it. The opposite, meters that count more than the transformer, is no theft: a meter
stands under the wrong transformer, or a multiplier is wrong.

Half hours in which more than MOST_MISSING of the meters are missing are left out of both sides. Fewer missing ones are
filled with what the same meter usually counts at that time of day; a meter that is silent for days is hence an estimate,
not a loss. Energies are those that are imported: where roofs feed in, the balance says nothing, and no transformer meter
should be named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector.days import SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

LOSS, GAIN = "non-technical-loss", "balance-negative"
BASE_DAYS = 42
RECENT_DAYS = 5
GOOD_BASE_DAYS = 10
GOOD_SLOTS = 36
"""Half hours of a day that both sides must have."""
LEAST_METERS = 2
MOST_MISSING = 0.1
MARGIN = 0.03
"""Of the transformer's energy: a loss that rises by less may be the weather."""
HIGH_LOSS = 0.15
"""A loss that needs no history: wires of a low-voltage feeder lose 2 to 8 %."""
LOWEST = -0.03
"""Meters have an error of 1 or 2 %, those of transformers too."""


class Balance:
    """One transformer, to which groups of meters are added one after the other.

    Args:
        total: index of its own meter. below: those of the meters under it. Both are rows over all groups.
        multipliers: by row, what a register must be multiplied by; 1 when absent.
        days: how many.
    """

    def __init__(
        self, total: int, below: Sequence[int], multipliers: dict[int, int], days: int
    ) -> None:
        self.total, self.below = total, len(below)
        self._rows = [(row, float(multipliers.get(row, 1))) for row in (total, *below)]
        self._own = np.full((days, SLOTS), np.nan, np.float32)
        self._sum = np.zeros((days, SLOTS), np.float32)
        self._missing = np.full((days, SLOTS), len(below), np.uint16)

    def add(self, wh: Floats, first_row: int) -> None:
        """Take the meters of a group; half hours of shape (meters of the group, days, 48)."""
        for row, factor in self._rows:
            if not first_row <= row < first_row + len(wh):
                continue
            own = wh[row - first_row] * np.float32(factor)
            if row == self.total:
                self._own = own
                continue
            known = np.isfinite(own)
            count = known.sum(axis=0)
            usual = np.where(known, own, 0).sum(axis=0) / np.maximum(count, 1)
            # never seen at that time of day: nothing can be said of it, and so of nobody
            self._sum += np.where(known, own, np.where(count > 0, usual, np.nan))
            self._missing -= known.astype(np.uint16)

    def shares(self) -> tuple[Floats, Floats]:
        """Share of the transformer's energy that is missing below, and its energy in Wh, by day; not-a-number = unknown."""
        usable = np.isfinite(self._own) & np.isfinite(self._sum)
        usable &= self._missing <= MOST_MISSING * self.below
        own = np.where(usable, self._own, 0).sum(axis=1)
        counted = np.where(usable, self._sum, 0).sum(axis=1)
        good = (usable.sum(axis=1) >= GOOD_SLOTS) & (own > 0)
        share = np.where(good, 1 - counted / np.maximum(own, 1), np.nan)
        return share, np.where(good, own, np.nan)

    def judge(self, at: int, trusted: Mask | None = None) -> tuple[str, dict[str, Any]] | None:
        """What the balance proves at the end of day `at`: a kind and its evidence, or None.

        Args:
            trusted: days that may stand in the usual loss, shape (days,); None = all.
        """
        if self.below < LEAST_METERS or at < RECENT_DAYS - 1:
            return None
        share, energy = self.shares()
        recent = share[at - RECENT_DAYS + 1 : at + 1]
        known = np.isfinite(recent)
        if not known[-1] or known.sum() < RECENT_DAYS - 1:
            return None
        span = slice(max(0, at - RECENT_DAYS - BASE_DAYS + 1), at - RECENT_DAYS + 1)
        believed = np.isfinite(share[span])
        if trusted is not None:
            believed &= trusted[span]
        before = share[span][believed]
        usual, margin = None, 0.0
        if len(before) >= GOOD_BASE_DAYS:
            usual = float(np.median(before))
            spread = 1.4826 * float(np.median(np.abs(before - usual)))
            margin = max(MARGIN, 4 * spread)
        lowest = float(recent[known].min())
        highest = float(recent[known].max())
        if lowest > HIGH_LOSS or (usual is not None and lowest > usual + margin):
            kind = LOSS
        elif highest < LOWEST and (usual is None or highest < usual - margin or usual < LOWEST):
            kind = GAIN
        else:
            return None
        mean = float(recent[known].mean())
        daily = float(energy[at - RECENT_DAYS + 1 : at + 1][known].mean())
        return kind, {
            "loss_share": round(mean, 3),
            "usual_share": None if usual is None else round(usual, 3),
            "threshold_share": round(HIGH_LOSS if usual is None else min(HIGH_LOSS, usual + margin), 3),
            "seen_wh": round(mean * daily),
            "expected_wh": round((usual or 0.0) * daily),
            "transformer_wh": round(daily),
            "meters": self.below,
            "days": int(known.sum()),
        }  # fmt: skip
