"""Who may speak on a line next: slots, priorities, and the share of meters that failed. Pure: no I/O, no clock.

A line has `slots` (a serial line one). Who waits goes by priority, then by arrival. Meters that failed last time are
*suspects*: each costs a whole time-out, so they may not cost the others their slots. On a line with one slot or few a
suspect goes when nobody else waits, and else at most for SHARE of the line's time.

On a line with many slots a silent meter only holds a socket. There a visit that calls, and has not been answered for
longer than calls usually take, hands its slot on and *lingers*; answered after all, it takes its slot back. When nothing
at all has stirred on the line for longer than its fastest calls take, all who call linger at once: a line full of meters
that died together is free again after milliseconds. As many as `slots` may linger; beyond that who lingers
longest is *put off*: the visit is broken off and comes again as a suspect. Suspects have a quarter of the slots beside
those of the others, and a few of them (one in FEW_OF) while others wait, for asking them costs our own time too.

Bounds: `slots` visits of meters that answer, and those that answer while they linger; as many lingering; a quarter of
it suspects.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

SHARE = 0.025  # of a line's time for suspects while others wait
FEW_OF = 32
FEW_SLOTS = 4  # below this a line is one medium that all speak on
PATIENCE_MIN_S = 0.05
PATIENCE_FACTOR = 1.5  # times the usual call
STALL_MIN_S = 0.01
STALL_FACTOR = 1.1  # times the fastest call
PUT_OFF_MIN_S = 0.5
PUT_OFF_FACTOR = 8.0  # times the usual call
FORGET = 1.03  # a call: the fastest of some hundred calls ago counts no more
FIRST_CALL_S = 0.5  # taken as usual before anybody answered
_WEIGHT = 0.05  # of one call in the mean

W = TypeVar("W")


@dataclass(slots=True, eq=False)
class Turn(Generic[W]):
    """A turn to speak: who, what for, and how it is counted until `Lane.end`.

    Attributes:
        calling: nobody has answered yet.
        lingering: it has handed its slot on.
        put_off: it is to be broken off, and to come again as a suspect.
    """

    meter: str
    work: W
    priority: int
    suspect: bool
    began: float
    calling: bool = True
    lingering: bool = False
    put_off: bool = False


class Lane(Generic[W]):
    """The queue and the slots of one line.

    Args:
        slots: visits at a time.

    Attributes:
        used: slots of the line that are taken.
        usual_s: mean time until a meter answers, seconds.
        fastest_s: the least, slowly forgotten.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.used = self.suspects_at_once = 0
        self.usual_s = FIRST_CALL_S
        self.fastest_s = FIRST_CALL_S / 4
        self._wide = slots >= FEW_SLOTS
        self._healthy: list[tuple[int, int, str, W]] = []
        self._suspects: list[tuple[int, int, str, W]] = []
        self._sequence = itertools.count()
        self._suspects_from = 0.0
        self._stirred = 0.0
        # oldest first; dicts as ordered sets
        self._calling: dict[Turn[W], None] = {}
        self._lingering: dict[Turn[W], None] = {}

    @property
    def lingering(self) -> int:
        """How many visits wait for an answer without a slot."""
        return len(self._lingering)

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
            self._stirred = now
            self._calling[turn] = None
        return turn

    def _suspect_may(self, now: float) -> bool:
        if self.suspects_at_once >= max(1, self.slots // 4):
            return False
        if self._wide:
            return not self._healthy or self.suspects_at_once < max(1, self.slots // FEW_OF)
        return self.used < self.slots and (not self._healthy or now >= self._suspects_from)

    def answered(self, turn: Turn[W], now: float, *, counts: bool = True) -> None:
        """The meter has answered: the visit holds a slot until its end; `counts`: so long calls take."""
        if not turn.calling:
            return
        turn.calling = False
        if counts:
            took = now - turn.began
            self.usual_s += _WEIGHT * (took - self.usual_s)
            self.fastest_s = min(took, self.fastest_s * FORGET)
        self._stirred = now
        self._calling.pop(turn, None)
        if turn.lingering:
            turn.lingering = False
            del self._lingering[turn]
            self.used += 1

    def look_in(self, now: float) -> float | None:
        """After how many seconds `relieve` may help those who wait; None = not at all."""
        if not self._blocked():
            return None
        patience = max(PATIENCE_MIN_S, PATIENCE_FACTOR * self.usual_s)
        until = min(next(iter(self._calling)).began + patience, self._stirred + self._stall_s())
        return max(0.0, until - now)

    def relieve(self, now: float) -> list[Turn[W]]:
        """Who has called for too long hands its slot on; returns visits that are to be broken off for that."""
        if not self._blocked():
            return []
        patience = max(PATIENCE_MIN_S, PATIENCE_FACTOR * self.usual_s)
        if now >= self._stirred + self._stall_s():
            patience = 0.0
            self._stirred = now  # those who go now have their time too
        off: list[Turn[W]] = []
        for turn in list(self._calling):
            if now < turn.began + patience:
                break
            if len(self._lingering) - len(off) >= self.slots:
                oldest = next((t for t in self._lingering if not t.put_off), None)
                if oldest is None or now < oldest.began + max(
                    PUT_OFF_MIN_S, PUT_OFF_FACTOR * self.usual_s
                ):
                    break
                oldest.put_off = True
                off.append(oldest)
            turn.lingering = True
            del self._calling[turn]
            self._lingering[turn] = None
            self.used -= 1
        return off

    def _blocked(self) -> bool:
        """Does somebody wait for a slot while others call on theirs, where a slot is not the medium itself?"""
        waits = bool(self._healthy) and self.used >= self.slots
        return self._wide and waits and bool(self._calling)

    def _stall_s(self) -> float:
        return max(STALL_MIN_S, STALL_FACTOR * self.fastest_s)

    def end(self, turn: Turn[W], now: float, *, good: bool) -> None:
        """The turn is over; `good` = it brought something."""
        took = now - turn.began
        self._calling.pop(turn, None)
        if turn.lingering:
            self._lingering.pop(turn)
        elif not turn.suspect or not self._wide:
            self.used -= 1
            self._stirred = now
        if turn.suspect:
            self.suspects_at_once -= 1
            self._suspects_from = now if good else now + took * (1 / SHARE - 1)
