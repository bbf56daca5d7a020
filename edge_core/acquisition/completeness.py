"""Completeness: of one civil day, what was due, captured, missing by cause, excused. Pure: no I/O, no clock.

A day is cut into the capture periods of each profile; a row belongs to the period that it ends (a daily row to the
day before its stamp), so that days of 23 and 25 hours are counted right and a meter that captures a little off the
grid is too. Every period is exactly one of captured, missing (with a cause) and excused: due is their sum. What is
due begins when the meter came onto the list, or with its oldest row if that is older. Rows that a clock set back
repeated are not counted twice.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_core.acquisition.causes import GATEWAY_OFF, NO_SUCH_ROW
from edge_core.journal.records import Hole
from edge_core.schedule.calendar import DAY_S, at_civil_minute

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from zoneinfo import ZoneInfo

    from edge_core.domain import Obis
    from edge_core.journal import LedgerEntry

STAGES: dict[str, tuple[int, int, int]] = {
    "05:00": (1, 300, 980),
    "24h": (2, 0, 990),
    "72h": (4, 0, 999),
}
"""Name of a stage: civil days after the day, civil minute, and the target in thousandths (service-levels, section 8)."""


@dataclass(slots=True)
class Figures:
    """Rows of one profile on one day; due = captured + missing + excused."""

    due: int = 0
    captured: int = 0
    undelivered: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    excused: int = 0

    def add(self, other: Figures) -> None:
        """Sum up over meters."""
        self.due += other.due
        self.captured += other.captured
        self.undelivered += other.undelivered
        self.missing.update(other.missing)
        self.excused += other.excused

    def document(self, profile: Obis) -> dict[str, Any]:
        """The entry of completeness/1."""
        return {
            "profile": profile,
            "due": self.due,
            "captured": self.captured,
            "delivered": max(0, self.captured - self.undelivered),
            "missing": dict(sorted(self.missing.items())),
            "excused": self.excused,
        }


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one meter when the day is counted.

    Attributes:
        entries: its ledger.
        profiles: logical name and capture period (seconds) of what is due by its model.
        known_since: civil instant since which it is on the list.
        last_read: civil instant of the last whole read, 0 = never.
        failing: gap cause of what it owes now, "" = it answers.
        parkings: (since, until, reason).
    """

    entries: Sequence[LedgerEntry]
    profiles: Sequence[tuple[Obis, int]]
    known_since: float
    last_read: float = 0.0
    failing: str = ""
    parkings: Sequence[tuple[int, int, str]] = ()


def day_bounds(day: dt.date, zone: ZoneInfo) -> tuple[int, int]:
    """UTC seconds of the civil midnights that begin and end a day."""
    return at_civil_minute(day, 0, zone), at_civil_minute(day + dt.timedelta(days=1), 0, zone)


def figures(account: Account, day: dt.date, zone: ZoneInfo, now: float) -> dict[Obis, Figures]:
    """The figures of one meter for one day, by profile. Periods that end after `now` are not due yet."""
    begin, end = day_bounds(day, zone)
    out = {}
    for profile, model_period in account.profiles:
        entries = [entry for entry in account.entries if entry.profile == profile]
        period = next((e.period for e in reversed(entries) if e.period), model_period)
        if period <= 0:
            continue
        out[profile] = _of_profile(account, entries, min(period, end - begin), begin, end, now)
    return out


def _of_profile(
    account: Account,
    entries: list[LedgerEntry],
    period: int,
    begin: int,
    end: int,
    now: float,
) -> Figures:
    daily = period >= DAY_S - 3600  # the shortest civil day
    count = 1 if daily else -(-(end - begin) // period)
    known: set[int] = set()
    for entry in entries:
        for run in entry.runs:
            first, last = max(run.first, begin + 1), min(run.last, end)
            if first > last:
                continue
            step = run.step or 1
            first += (run.first - first) % step
            known.update(
                _slot(at, begin, period, daily=daily) for at in range(first, last + 1, step)
            )
    oldest = min((run.first for entry in entries for run in entry.runs), default=None)
    since = account.known_since if oldest is None else min(oldest - 1, account.known_since)
    found = Figures()
    for slot in range(count):
        at = end if daily else min(begin + (slot + 1) * period, end)
        if slot in known:
            found.due += 1
            found.captured += 1
        elif since < at <= now:
            found.due += 1
            if any(a <= at <= b for a, b, _ in account.parkings):
                found.excused += 1
            else:
                found.missing[_cause(account, entries, at, period)] += 1
    return found


def _slot(at: int, begin: int, period: int, *, daily: bool) -> int:
    """Which period of the day a row ends."""
    return 0 if daily else -(-(at - begin) // period) - 1


def _cause(account: Account, entries: list[LedgerEntry], at: int, period: int) -> str:
    """Why the row of the period that ends at `at` is not there."""
    for entry in entries:
        for hole in entry.holes:
            if hole.cause and hole.first - period < at < hole.last + period:
                return hole.cause
    if account.failing:
        return account.failing
    # it answers: either we asked after the row was due and it was not there, or we did not ask
    return NO_SUCH_ROW if account.last_read > at + period else GATEWAY_OFF


def owed(entry: LedgerEntry, failing: str, now: float) -> list[Hole]:
    """What a meter that fails has not given since its newest known row, where nobody named it yet."""
    if not failing or not entry.period or not entry.runs:
        return []
    newest = max(run.last for run in entry.runs)
    newest = max([newest, *(hole.last for hole in entry.holes)])
    rows = int((now - newest) // entry.period)
    if rows <= 0:
        return []
    first = newest + entry.period
    return [Hole(first, newest + rows * entry.period, rows, failing)]


def due_stages(
    now: float, zone: ZoneInfo, published: dict[str, str], since: float
) -> Iterable[tuple[dt.date, str]]:
    """(day, stage) that are due by now and were not published, oldest first; of days since `since` and of a week at most.

    Args:
        published: by stage, the last day (ISO) that was published.
    """
    today = dt.datetime.fromtimestamp(now, zone).date()
    first = dt.datetime.fromtimestamp(since, zone).date()
    out = []
    for stage, (days, minute, _) in STAGES.items():
        last = published.get(stage, "")
        for back in range(7 + days, days - 1, -1):
            day = today - dt.timedelta(days=back)
            if day < first or day.isoformat() <= last:
                continue
            if at_civil_minute(day + dt.timedelta(days=days), minute, zone) <= now:
                out.append((day, stage))
    return sorted(out)
