"""Who may speak on a line next: slots, priorities, and the share of meters that failed. Pure: no I/O, no clock.

A line has `slots` (a serial line one). Who waits goes by priority, then by arrival. Meters that failed last time are
*suspects*: each costs a whole time-out, so they may not cost the others their slots. On a line with one slot or few a
suspect goes when nobody else waits, and else at most for SHARE of the line's time. On a line with many slots, where
a silent meter only holds a socket, suspects have a quarter of the slots beside those of the others, and a few of them
(one in FEW_OF) while others wait, for asking them costs our own time too. There a visit
that lasts far longer than the line's visits do hands its slot on and lingers: a meter that died a minute ago does
not cost the others anything either.

Bounds: `slots` visits of healthy meters, a quarter of it of suspects, as many as `slots` lingering.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

SHARE = 0.025  # of a line's time for suspects while others wait
FEW_OF = 32
FEW_SLOTS = 4  # below this a line is one medium that all speak on
PATIENCE_MIN_S = 0.5
PATIENCE_FACTOR = 4.0  # times the usual visit
_WEIGHT = 0.05  # of one visit in the mean

W = TypeVar("W")


@dataclass(slots=True)
class Turn(Generic[W]):
    """A turn to speak: who, what for, and how it is counted until `Lane.end`."""

    meter: str
    work: W
    priority: int
    suspect: bool
    began: float
    lingering: bool = False


class Lane(Generic[W]):
    """The queue and the slots of one line.

    Args:
        slots: visits at a time.

    Attributes:
        used: slots of the line that are taken.
        usual_s: mean duration of visits that brought something, seconds.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.used = self.suspects_at_once = self.lingering = 0
        self.usual_s = PATIENCE_MIN_S / PATIENCE_FACTOR
        self._wide = slots >= FEW_SLOTS
        self._healthy: list[tuple[int, int, str, W]] = []
        self._suspects: list[tuple[int, int, str, W]] = []
        self._sequence = itertools.count()
        self._suspects_from = 0.0

    def put(self, priority: int, meter: str, work: W, *, suspect: bool) -> None:
        """Wait in the queue."""
        entry = (priority, next(self._sequence), meter, work)
        heapq.heappush(self._suspects if suspect else self._healthy, entry)

    def waiting(self) -> int:
        """How many wait."""
        return len(self._healthy) + len(self._suspects)

    def urgent(self, priority: int) -> bool:
        """Does anything above this priority wait for a slot that is not there?"""
        return bool(self._healthy) and self._healthy[0][0] < priority and self.used >= self.slots

    def take(self, now: float) -> Turn[W] | None:
        """Whose turn it is, if anybody's; `now` is monotonic. Follow with `end`."""
        queue = None
        if self._healthy and self.used < self.slots:
            queue = self._healthy
        if self._suspects and self._suspect_may(now):
            # with both waiting, a suspect goes first: its share is small and counted
            queue = self._suspects
        if queue is None:
            return None
        priority, _, meter, work = heapq.heappop(queue)
        turn = Turn(meter, work, priority, queue is self._suspects, now)
        if turn.suspect:
            self.suspects_at_once += 1
        if not turn.suspect or not self._wide:
            self.used += 1
        return turn

    def _suspect_may(self, now: float) -> bool:
        if self.suspects_at_once >= max(1, self.slots // 4):
            return False
        if self._wide:
            return not self._healthy or self.suspects_at_once < max(1, self.slots // FEW_OF)
        return self.used < self.slots and (not self._healthy or now >= self._suspects_from)

    def patience_s(self) -> float:
        """After how long a visit hands its slot on."""
        return max(PATIENCE_MIN_S, PATIENCE_FACTOR * self.usual_s)

    def linger(self, turn: Turn[W]) -> bool:
        """Hand the slot of a long visit on to the others; False where a slot is the medium itself."""
        if not self._wide or turn.suspect or turn.lingering or self.lingering >= self.slots:
            return False
        turn.lingering = True
        self.lingering += 1
        self.used -= 1
        return True

    def end(self, turn: Turn[W], now: float, *, good: bool) -> None:
        """The turn is over; `good` = it brought something."""
        took = now - turn.began
        if turn.lingering:
            self.lingering -= 1
        elif not turn.suspect or not self._wide:
            self.used -= 1
        if turn.suspect:
            self.suspects_at_once -= 1
            self._suspects_from = now if good else now + took * (1 / SHARE - 1)
        if good:
            self.usual_s += _WEIGHT * (took - self.usual_s)
