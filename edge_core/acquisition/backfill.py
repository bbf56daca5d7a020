"""Going back for what is missing: which rows, oldest first, so many a round.

What a meter keeps and the ledger lacks without a cause is asked for again: it was jumped over because what is new goes
first after a long absence, or our disk refused it while later rows were taken. Each span is asked for once; what the meter
does not hold then gets a cause (causes.py), so that it is not asked for for ever.

The ledger is looked at when that can have happened: at the first contact of a process, after a jump, after a refusal of
the disk, and daily. Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edge_core.acquisition.causes import NO_SUCH_ROW, OVERWRITTEN, Absence, absences
from edge_core.acquisition.profiles import DAY_S, keeps, kinds_of, profile_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.config.models import Model
    from edge_core.domain import Block
    from edge_core.journal import LedgerEntry

ROUND_ROWS = 960
"""Rows that one visit goes back for: ten days of quarter hours."""
FRESH_PERIODS = 8
"""After a long absence so many of the newest rows are read before the others."""
ABSENT_PERIODS = 4 * FRESH_PERIODS
"""An absence is long above this."""


class Span(NamedTuple):
    """Rows that are missing from first to last, both included; `before` is the last row known before them."""

    first: int
    last: int
    before: int


@dataclass(slots=True)
class Pending:
    """What of one meter may have to be gone back for.

    Attributes:
        kinds: those whose rows are expected at a period.
        unproven: those whose ledger is to be looked at.
        proven_at: when everything was last looked at, civil.
        reached: how far this process has asked, by device and kind: (up to, last row that came).
    """

    kinds: frozenset[str] = frozenset()
    unproven: frozenset[str] = frozenset()
    proven_at: float = 0.0
    reached: dict[tuple[str, str], tuple[int, int]] | None = None

    def doubt(self) -> None:
        """Look at everything again."""
        self.unproven, self.reached = self.kinds, None

    def doubtful(self, kind: str, now: float) -> bool:
        """Is the ledger of a kind to be looked at? All of them are once a day."""
        if not 0 <= now - self.proven_at < DAY_S:
            self.doubt()
            self.proven_at = now
        return kind in self.unproven

    def prove(self, kind: str) -> None:
        """Nothing of this kind is left to ask for."""
        self.unproven -= {kind}

    def reach(self, device: str, kind: str, upto: int, came: int) -> None:
        """So far was asked, and the last row that came is this."""
        self.reached = {**(self.reached or {}), (device, kind): (upto, came)}

    def spans(self, entry: LedgerEntry | None, device: str, kind: str) -> list[Span]:
        """What the ledger lacks without a cause and was not asked for, oldest first."""
        if entry is None or not entry.period:
            return []
        upto, came = (self.reached or {}).get((device, kind), (0, 0))
        out = []
        for hole in entry.holes:
            if hole.cause or hole.merged or not hole.rows or hole.last <= upto:
                continue
            if hole.first <= upto:
                out.append(Span(upto + 1, hole.last, max(came, hole.first - entry.period)))
            else:
                out.append(Span(hole.first, hole.last, hole.first - entry.period))
        return out


def periodic(model: Model) -> frozenset[str]:
    """Kinds of profiles that the meter keeps and whose rows are expected at a period."""
    return frozenset(k for k in kinds_of(model) if keeps(model, k) and profile_of(model, k)[1] > 0)


def told(read: Sequence[Block], span: Span, upto: int, period: int) -> list[Absence]:
    """What of a span the meter does not hold, after rows from `span.before` to `upto` were asked for and these came.

    A part at the end that no row follows is told only where the whole span was asked for.
    """
    found = absences(read, known=span.before, period=period)
    times = [int(at) for block in read for at in block.times]
    newest = max(times, default=span.before)
    if upto > span.last and newest <= span.last:
        # even what we know to have followed is gone
        cause = OVERWRITTEN if min(times, default=newest + 1) > span.before else NO_SUCH_ROW
        found.append(Absence(newest + 1, span.last, cause))
    return found
