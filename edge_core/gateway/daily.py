"""The daily completeness message: at 05:00 for the day before, and again after 24 and 72 hours.

Figures are counted from the ledger in a thread, in each process for the meters that it polls, and summed by the one with
the uplink, which waits PATIENCE_S for a process that is away. What is due but was missed while the box was off is caught
up at the start. Nothing is counted while our clock is invalid.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from edge_core.acquisition.completeness import (
    STAGES,
    Account,
    Figures,
    day_bounds,
    due_stages,
    figures,
)
from edge_core.acquisition.profiles import kinds_of, profile_of
from edge_core.domain import as_list
from edge_core.health.merging import merged_figures

if TYPE_CHECKING:
    import datetime as dt

    from edge_core.acquisition.poller import Poller
    from edge_core.acquisition.standing import MeterState
    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.domain import Obis
    from edge_core.gateway.peers import Peers
    from edge_core.journal import Journal
    from edge_core.journal.datadir import Memories

log = logging.getLogger(__name__)
LOOK_S = 20.0
PATIENCE_S = 3_600.0
COUNT_S = 120.0
MAX_SEGMENTS = 20_000
COUNTED_KINDS = ("interval", "midnight")


class Daily:
    """Counts and publishes."""

    def __init__(
        self,
        config: Config,
        poller: Poller,
        journal: Journal,
        memories: Memories,
        clock: Clock,
        peers: Peers | None = None,
    ) -> None:
        self._peers = peers
        roles = set(config.gateway.roles) | {s.model.about.protocol for s in poller.meters.values()}
        self._expected = sum(
            config.models[meter.model].about.protocol in roles for meter in config.meters.values()
        )
        self._late_since: float | None = None
        self._poller, self._journal, self._memories, self._clock = poller, journal, memories, clock
        self._zone = ZoneInfo(config.gateway.timezone)

    async def run(self) -> None:
        """Publish what becomes due, for ever."""
        memory = self._memories.of("")
        while True:
            if self._clock.synchronised() and self._expected:
                if memory.get("began") is None:
                    memory.put("began", int(self._clock.now()))
                for day, stage in due_stages(
                    self._clock.now(),
                    self._zone,
                    memory.get("completeness") or {},
                    memory.get("began"),
                ):
                    body = await self.count_all(day)
                    if body is None:
                        break  # somebody is away: at the next look
                    await asyncio.wrap_future(
                        self._journal.note("completeness", "", {**body, "stage": stage})
                    )
                    published = memory.get("completeness") or {}
                    memory.put("completeness", published | {stage: day.isoformat()})
                    self._tell(day, stage, body)
            await asyncio.sleep(max(0.2, min(LOOK_S, 300 / self._clock.speed)))

    async def count_all(self, day: dt.date) -> dict[str, Any] | None:
        """The figures of a civil day over the meters of all processes; None while one of them is away."""
        own = await asyncio.to_thread(self.count, day)
        documents = [own]
        if self._peers is not None:
            request = {"do": "completeness", "day": day.isoformat()}
            documents += (await self._peers.ask(request, COUNT_S)).values()
        counted = sum(document.pop("meters", 0) for document in documents)
        now = self._clock.monotonic()
        if counted < self._expected:
            if self._late_since is None:
                self._late_since = now
            if now - self._late_since < PATIENCE_S:
                return None
            log.warning("%s: %d of %d meters are counted, the rest are in no process that runs",
                        day, counted, self._expected)  # fmt: skip
        else:
            self._late_since = None
        return merged_figures(documents)

    def count(self, day: dt.date) -> dict[str, Any]:
        """The figures of a civil day over the meters polled here, without the stage. Takes a while: for a thread of its own."""
        now = self._clock.now()
        total: dict[Obis, Figures] = {}
        for state in list(self._poller.meters.values()):
            account = account_of(state, self._journal)
            for profile, found in figures(account, day, self._zone, now).items():
                total.setdefault(profile, Figures()).add(found)
        for profile, rows in self._undelivered(*day_bounds(day, self._zone)).items():
            if profile in total:
                total[profile].undelivered = rows
        return {
            "day": day.isoformat(),
            "meters": len(self._poller.meters),
            "profiles": [total[profile].document(profile) for profile in sorted(total)],
        }

    def _undelivered(self, begin: int, end: int) -> Counter[Obis]:
        """Rows of a day that wait for the cloud's ack, by profile; of MAX_SEGMENTS segments at most."""
        rows: Counter[Obis] = Counter()
        after = seen = 0
        while seen < MAX_SEGMENTS and (page := self._journal.segments(after, limit=200)):
            for segment in page:
                for block in self._journal.blocks(segment.id):
                    if block.kind in COUNTED_KINDS:
                        inside = sum(begin < at <= end for at in as_list(block.times))
                        rows[block.layout.profile] += inside
            after, seen = page[-1].id, seen + len(page)
        return rows

    @staticmethod
    def _tell(day: dt.date, stage: str, body: dict[str, Any]) -> None:
        target = STAGES[stage][2]
        for found in body["profiles"]:
            wanted = found["due"] - found["excused"]
            if wanted and found["captured"] * 1000 < wanted * target:
                log.warning(
                    "%s %s at %s: %d of %d rows captured, %.1f %% are wanted",
                    day, found["profile"], stage, found["captured"], wanted, target / 10,
                )  # fmt: skip


def account_of(state: MeterState, journal: Journal) -> Account:
    """What the figures of one meter are counted from."""
    memory = state.memory
    return Account(
        entries=journal.ledger(state.config.id),
        profiles=[
            profile_of(state.model, kind) for kind in kinds_of(state.model) if kind in COUNTED_KINDS
        ],
        known_since=float(memory.get("known_since") or 0),
        last_read=state.last_read or 0.0,
        failing=state.cause if state.failures else "",
        parkings=state.parkings(),
    )
