"""Who is due for what: one agenda for all meters, spread so that a fleet does not call at once.

Each meter has a set of jobs with a rule each; its place in the spread (`phase`) is constant, so that two reads of one
meter lie a period apart whatever else happens. Jobs of one meter that are due together make one visit. The agenda
holds one heap entry per meter, no timers: the caller asks for what is due and when to come back. No I/O, no clock of
its own: `now` is an argument, civil UTC seconds.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from edge_core.schedule.calendar import Rule, next_due

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from zoneinfo import ZoneInfo


class Priority(IntEnum):
    """The lower goes first on a line."""

    ALARM_FOLLOW_UP = 0
    ON_DEMAND = 1
    MIDNIGHT = 2
    INTERVAL = 3
    BACKFILL = 4
    HOUSEKEEPING = 5


class Job(IntEnum):
    """What may be due; the order in which one visit does them. BACKFILL has no rule: who finds rows missing asks for it."""

    MIDNIGHT = 0
    INTERVAL = 1
    BILLING = 2
    EVENTS = 3
    INSTANTANEOUS = 4
    CLOCK = 5
    BACKFILL = 6

    @property
    def priority(self) -> Priority:
        """On a shared line."""
        return _PRIORITIES.get(self, Priority.HOUSEKEEPING)


_PRIORITIES = {
    Job.MIDNIGHT: Priority.MIDNIGHT,
    Job.INTERVAL: Priority.INTERVAL,
    Job.BACKFILL: Priority.BACKFILL,
}


@dataclass(slots=True)
class Entry:
    """One meter's page: when each job is due next, and since when it waits."""

    meter: str
    rules: Mapping[Job, tuple[Rule, float]]  # job -> rule, phase in civil seconds
    due: dict[Job, float] = field(default_factory=dict)
    paused: bool = False  # a visit is under way, or the meter is parked
    wanted: set[Job] = field(
        default_factory=set
    )  # brought forward during a visit: once more after it
    listed: float = 0.0  # the time of this meter's valid heap entry; others are stale


class Agenda:
    """All meters' due times, in a heap.

    Args:
        zone: civil days of daily rules.
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        self._entries: dict[str, Entry] = {}
        self._heap: list[tuple[float, str]] = []

    def add(self, meter: str, rules: Mapping[Job, tuple[Rule, float]], *, first: float) -> None:
        """Put a meter on the agenda; every job is due at `first` (what was missed while the box was off)."""
        entry = Entry(meter, rules, dict.fromkeys(rules, first))
        self._entries[meter] = entry
        self._list(entry)

    def remove(self, meter: str) -> None:
        """Forget a meter; its heap entries become stale."""
        self._entries.pop(meter, None)

    def _list(self, entry: Entry) -> None:
        if entry.due and not entry.paused:
            entry.listed = min(entry.due.values())
            heapq.heappush(self._heap, (entry.listed, entry.meter))

    def take_due(self, now: float) -> list[tuple[str, list[Job]]]:
        """Meters with something due, each with its due jobs in visiting order; they pause until `done`."""
        out = []
        while self._heap and self._heap[0][0] <= now:
            listed, meter = heapq.heappop(self._heap)
            entry = self._entries.get(meter)
            if entry is None or entry.paused or listed != entry.listed:
                continue
            entry.paused = True
            out.append((meter, sorted(job for job, due in entry.due.items() if due <= now)))
        return out

    def done(self, meter: str, jobs: Iterable[Job], now: float) -> None:
        """These jobs are done: their next time follows their rule. The meter is on the agenda again."""
        entry = self._entries.get(meter)
        if entry is None:
            return
        for job in jobs:
            if job not in entry.rules:
                entry.due.pop(job, None)
                continue
            rule, phase = entry.rules[job]
            entry.due[job] = now if job in entry.wanted else next_due(rule, now, self.zone, phase)
        entry.wanted.clear()
        entry.paused = False
        self._list(entry)

    def again(self, meter: str, jobs: Iterable[Job], when: float) -> None:
        """These jobs failed and are due again at `when`."""
        entry = self._entries.get(meter)
        if entry is None:
            return
        for job in jobs:
            entry.due[job] = when
        entry.paused = False
        self._list(entry)

    def now_due(self, meter: str, jobs: Iterable[Job] | None, now: float) -> None:
        """Bring jobs (None = all) forward to now; a visit under way is followed by another."""
        entry = self._entries.get(meter)
        if entry is None:
            return
        for job in entry.rules if jobs is None else jobs:
            if job in entry.rules:
                entry.due[job] = min(entry.due[job], now)
                if entry.paused:
                    entry.wanted.add(job)
        self._list(entry)

    def replan(self, now: float) -> None:
        """Our clock was set back: what waits for a time further off than its rule allows is planned again."""
        for entry in self._entries.values():
            for job, due in entry.due.items():
                rule, phase = entry.rules.get(job, (None, 0.0))
                latest = now if rule is None else next_due(rule, now, self.zone, phase)
                entry.due[job] = min(due, latest)
            self._list(entry)

    def pause(self, meter: str) -> None:
        """Take a meter off the agenda (parked) until `done` or `again`."""
        entry = self._entries.get(meter)
        if entry is not None:
            entry.paused = True

    def due_times(self, meter: str) -> dict[Job, float]:
        """When each job of a meter is due next, civil UTC seconds; empty for an unknown meter."""
        entry = self._entries.get(meter)
        return dict(entry.due) if entry else {}

    def next_time(self) -> float | None:
        """When to come back, civil UTC seconds; None when nothing is listed."""
        while self._heap:
            listed, meter = self._heap[0]
            entry = self._entries.get(meter)
            if entry is not None and not entry.paused and listed == entry.listed:
                return listed
            heapq.heappop(self._heap)
        return None
