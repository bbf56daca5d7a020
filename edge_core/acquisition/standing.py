"""How a meter stands with us: what failed and how often, what that means for its next visit, whether it is parked.

What outlives the process is kept in the meter's memory: since when and why it is lost, and when it was parked. So a
meter that was silent before a restart is a suspect after it, is told as lost once, and its gaps keep their cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_core import errors
from edge_core.acquisition.backfill import Pending
from edge_core.acquisition.deltas import Deltas

if TYPE_CHECKING:
    import asyncio

    from edge_core.acquisition.drivers import Memory
    from edge_core.acquisition.lines import Lane
    from edge_core.config.models import Model
    from edge_core.config.schema import Line, Meter

KEPT_PARKINGS = 16


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do after an error. Seconds are real ones: lines and lock-outs do not scale.

    Attributes:
        retries: further attempts in the same visit, `delay_s` apart.
        first_s: the first pause before the next visit; doubles with each failed visit up to `max_s`.
    """

    retries: int
    delay_s: float
    first_s: float
    max_s: float

    def pause_s(self, failures: int) -> float:
        """The pause before the next visit, after so many failed ones."""
        return min(self.max_s, self.first_s * float(1 << min(max(0, failures - 1), 20)))


POLICIES: dict[type[errors.MeterError], Policy] = {
    errors.LineSilent: Policy(retries=1, delay_s=0.5, first_s=5, max_s=600),
    errors.MalformedReply: Policy(retries=1, delay_s=0.2, first_s=5, max_s=600),
    errors.MeterRefused: Policy(retries=0, delay_s=0, first_s=30, max_s=3600),
    errors.KeyRejected: Policy(retries=0, delay_s=0, first_s=60, max_s=6 * 3600),
    errors.WrongMeter: Policy(retries=0, delay_s=0, first_s=300, max_s=3600),
}


def policy_of(error: errors.MeterError) -> Policy:
    """The row of POLICIES for an error."""
    for kind in type(error).__mro__:
        if kind in POLICIES:
            return POLICIES[kind]
    return POLICIES[errors.LineSilent]


@dataclass(slots=True)
class LineState:
    """One line: its configuration, its queue and slots.

    Attributes:
        visits: tasks of the visits under way, by meter.
        look: calls back when somebody who waits may be helped.
    """

    config: Line
    lane: Lane[Any]
    visits: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    look: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class MeterState:
    """What the poller knows of one meter.

    Attributes:
        failures: failed visits in a row; lost_at, lost_since: when that began, monotonic and civil.
        cause: gap cause of what it owes while it fails.
        last_read: civil instant of the last visit that brought everything.
        owed: civil instant up to which all of `interval` was read.
        parked: reason and civil end.
        queued: scheduled work waits for a slot; busy: a visit is under way.
        held: what was asked for during a visit.
        backlog: the last visit gave way before it had read everything.
        pending: what may have to be gone back for.
        deltas: its load profile against its registers.
    """

    config: Meter
    model: Model
    line: LineState
    memory: Memory
    failures: int = 0
    lost_at: float | None = None
    lost_since: float | None = None
    cause: str = ""
    last_read: float | None = None
    last_error: errors.MeterError | None = None
    rows: int = 0
    silent_alarm: bool = False
    parked: tuple[str, float] | None = None
    queued: bool = False
    busy: bool = False
    backlog: bool = False
    pending: Pending = field(default_factory=Pending)
    deltas: Deltas = field(default_factory=Deltas)
    held: list[tuple[int, Any]] = field(default_factory=list)
    device: str = ""
    offset_s: float | None = None

    def recall(self, now: float, monotonic: float) -> None:
        """Take up what the process before this one knew."""
        lost = self.memory.get("lost")
        if isinstance(lost, list) and len(lost) == 2:
            self.lost_since, self.cause = float(lost[0]), str(lost[1])
            self.lost_at, self.failures = monotonic, 1
        self.device = str(self.memory.get("device") or "")
        for since, until, reason in self.parkings():
            if since <= now < until:
                self.parked = (reason, until)
        if self.memory.get("known_since") is None:
            self.memory.put("known_since", int(now))

    def lose(self, now: float, monotonic: float, error: errors.MeterError, cause: str) -> bool:
        """A visit failed; True when that is news."""
        self.failures += 1
        self.last_error = error
        first = self.failures == 1
        if first:
            self.lost_at, self.lost_since = monotonic, now
        if first or cause != self.cause:
            self.memory.put("lost", [int(self.lost_since or now), cause])
        self.cause = cause
        return first

    def regain(self) -> None:
        """A visit brought everything."""
        if self.failures:
            self.memory.put("lost", None)
        self.failures, self.lost_at, self.lost_since, self.last_error = 0, None, None, None
        self.cause, self.silent_alarm = "", False

    # --- parked

    def parkings(self) -> list[tuple[int, int, str]]:
        """(since, until, reason), civil seconds, of the last KEPT_PARKINGS times."""
        kept = self.memory.get("parkings")
        return [tuple(entry) for entry in kept] if isinstance(kept, list) else []

    def park(self, now: float, until: float, reason: str) -> None:
        """Leave the meter alone until then."""
        self.parked = (reason, until)
        kept = [p for p in self.parkings() if p[1] <= now]
        self.memory.put("parkings", [*kept, (int(now), int(until), reason)][-KEPT_PARKINGS:])

    def unpark(self, now: float) -> None:
        """The parking ends now."""
        self.parked = None
        kept = [(a, min(b, int(now)), r) for a, b, r in self.parkings()]
        self.memory.put("parkings", kept)
