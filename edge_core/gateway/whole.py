"""What the console sees: this process and the others of the same gateway as one.

What the others say is asked for every FOLLOW_S while somebody looks, and forgotten when a process does not answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from edge_core.health.merging import merged_overview

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from edge_core.clock import Clock
    from edge_core.gateway.peers import Peers
    from edge_core.gateway.views import Views

Row = dict[str, Any]

FOLLOW_S = 2.0
LOOKED_S = 30.0


class WholeView:
    """A `console.View` of all processes. On the event loop."""

    def __init__(self, own: Views, peers: Peers, clock: Clock) -> None:
        self._own, self._peers, self._clock = own, peers, clock
        self._overviews: list[Row] = []
        self._rows: list[Row] = []
        self._owner: dict[str, str] = {}
        self._looked = float("-inf")

    async def run(self) -> None:
        """Ask the others while somebody looks, for ever."""
        while True:
            if self._clock.monotonic() - self._looked < LOOKED_S:
                self._overviews = list((await self._peers.ask({"do": "overview"})).values())
                answers = await self._peers.ask({"do": "meters"})
                self._rows = [row for rows in answers.values() for row in rows]
                self._owner = {row["meter"]: name for name, rows in answers.items() for row in rows}
            await asyncio.sleep(FOLLOW_S)

    def overview(self) -> Row:
        """The box at a glance."""
        self._looked = self._clock.monotonic()
        return merged_overview([self._own.overview(), *self._overviews])

    def meters(self) -> Sequence[Row]:
        """One line per meter."""
        self._looked = self._clock.monotonic()
        return [*self._own.meters(), *self._rows]

    def alarms(self) -> Sequence[Row]:
        """The latest alarms of all processes, newest first."""
        return self._own.alarms()

    def events(self) -> Sequence[Row]:
        """Meters that fail now, with their reasons."""
        return [row for row in self.meters() if row["failures"]]

    def meter(self, meter: str) -> Row | Awaitable[Row]:
        """Everything known of one meter; KeyError for one that no process polls."""
        owner = self._owner.get(meter)
        return self._own.meter(meter) if owner is None else self._meter_of(owner, meter)

    def gaps(self, meter: str) -> Sequence[Row] | Awaitable[Sequence[Row]]:
        """The ledger of one meter."""
        owner = self._owner.get(meter)
        return self._own.gaps(meter) if owner is None else self._gaps_of(owner, meter)

    async def _meter_of(self, owner: str, meter: str) -> Row:
        found: Row | None = await self._peers.ask_one(owner, {"do": "meter", "meter": meter})
        if found is None:
            raise KeyError(meter)
        return found

    async def _gaps_of(self, owner: str, meter: str) -> Sequence[Row]:
        found = await self._peers.ask_one(owner, {"do": "gaps", "meter": meter})
        return [] if found is None else found[meter]
