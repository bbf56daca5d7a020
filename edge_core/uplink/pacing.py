"""How fast: the quotas of IoT Core, the window that keeps a slow link responsive, the octets of a day.

IoT Core takes 100 publishes/s and 512 KiB/s per connection, what comes down included (facts/greengrass.md section 3):
publishes beyond are discarded, octets beyond are delayed. Both are enforced here, since no emulator does. Alarms may
use the last of both allowances, everything else leaves a part to them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_core.clock import Clock

PUBLISHES_PER_S = 90.0  # of 100: acks and commands that come down count as well
OCTETS_PER_S = 512.0 * 1024
PUBLISHES_AT_ONCE = 10.0  # so that no second holds more than 100: what is above is discarded
ALARMS_SHARE = 0.5  # of both buckets; only alarms may draw them below

FAST_S, SLOW_S = 0.5, 2.0  # a PUBACK faster than this widens the window, slower than that halves it


class Quota:
    """Two token buckets: publishes PUBLISHES_AT_ONCE deep, octets one second."""

    def __init__(
        self,
        clock: Clock,
        publishes_per_s: float = PUBLISHES_PER_S,
        octets_per_s: float = OCTETS_PER_S,
    ) -> None:
        self._clock = clock
        self._rates = (publishes_per_s, octets_per_s)
        self._depths = (min(PUBLISHES_AT_ONCE, publishes_per_s), octets_per_s)
        self._tokens = list(self._depths)
        self._at = clock.monotonic()

    async def take(self, octets: int, *, alarm: bool = False) -> None:
        """Wait until one publish of so many octets is allowed, and take it."""
        while (wait_s := self.delay(octets, alarm=alarm)) > 0:  # noqa: ASYNC110 time is what it waits for
            await asyncio.sleep(wait_s)

    def delay(self, octets: int, *, alarm: bool = False) -> float:
        """Take one publish of so many octets; 0.0 = taken, else seconds until it is worth asking again."""
        now = self._clock.monotonic()
        passed, self._at = max(0.0, now - self._at), now
        wait = 0.0
        costs = (1.0, float(octets))
        for i, (rate, depth, cost) in enumerate(zip(self._rates, self._depths, costs, strict=True)):
            self._tokens[i] = min(depth, self._tokens[i] + passed * rate)
            floor = 0.0 if alarm else depth * ALARMS_SHARE
            needed = min(
                floor + cost, depth
            )  # one message larger than the bucket waits for a full one
            wait = max(wait, (needed - self._tokens[i]) / rate)
        if wait > 1e-6:  # what rounding left is no reason to wait
            return wait
        self._tokens[0] -= 1.0
        self._tokens[1] -= octets
        return 0.0


@dataclass(slots=True)
class Window:
    """Messages of the bulk lanes between publish and PUBACK: more on a fast link, one on a slow one.

    A message under way delays an alarm behind it by its own time on the wire; the window sees to it that this is one
    message and not twenty.
    """

    most: int
    size: float = 4.0
    used: int = 0

    def __post_init__(self) -> None:
        self.size = min(self.size, float(self.most))

    @property
    def free(self) -> bool:
        """Is there room for one more?"""
        return self.used < int(self.size)

    def entered(self) -> None:
        """One more is under way."""
        self.used += 1

    def left(self, took_s: float | None) -> None:
        """One is confirmed after so long, or not at all (None)."""
        self.used -= 1
        if took_s is None or took_s > SLOW_S:
            self.size = max(1.0, self.size / 2)
        elif took_s < FAST_S:
            self.size = min(float(self.most), self.size + 1.0)
