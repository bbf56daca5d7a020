"""Drivers: turn what a meter speaks into blocks and registers.

A driver serves one meter over one session: it is made, used for a few reads and closed. It raises `MeterError` and
nothing else; what caused it stands behind `from`. It never retries on its own (the poller's table decides) and bounds
every wait. Capture objects, scalers and what else was learned about a meter outlive the session in a `Memory`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edge_core.clock import Clock
    from edge_core.domain import Block, RegisterReading

DRIVERS: dict[str, str] = {
    "dlms": "edge_core.acquisition.drivers.dlms",
    "modbus": "edge_core.acquisition.drivers.modbus",
}
"""Module of each driver by the `protocol` of the meter model; imported on first use, each has a class `Driver`."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a driver knows of the gateway it serves.

    Attributes:
        title: our system title, 8 octets (DLMS); a meter model may override it.
        timezone: IANA name of the civil time, for meters that leave the deviation unspecified.
    """

    title: bytes = b""
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Device:
    """Who answered.

    Attributes:
        serial: from the nameplate; part of the identity of every reading.
        title: DLMS system title, b"" without one.
        nameplate: what else is known: maker, type, firmware, year.
    """

    serial: str
    title: bytes = b""
    nameplate: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Rows of one profile.

    Attributes:
        kind: interval, midnight, billing, events-<k>: a profile of the meter model.
        since: rows captured at or after this UTC second; None = from the oldest the meter holds.
        until: rows captured at or before this UTC second; None = up to the newest.
        by_entry: read by entry instead of by range, where range is broken or the clock went back.
    """

    kind: str
    since: int | None = None
    until: int | None = None
    by_entry: bool = False


class Memory(Protocol):
    """What a driver remembers of a meter between sessions, kept by the caller (`cache/` on disk)."""

    def get(self, key: str) -> Any:
        """What was put under the key, or None. Values are JSON-like."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Remember a JSON-like value."""
        ...


class Driver(Protocol):
    """One session with one meter."""

    async def identify(self) -> Device:
        """Open the session if it is not open, and say who answers."""
        ...

    async def clock_offset(self) -> float | None:
        """Meter clock minus ours in civil seconds, half the round trip taken off; None without a clock."""
        ...

    async def read_profile(self, request: ProfileRequest) -> Sequence[Block]:
        """The rows in buffer order, as one block per layout, occurrences numbered in buffer order.

        A meter without a load profile answers with the sample of now, flagged SAMPLED. Empty when there are no rows.
        """
        ...

    async def read_registers(self, what: str) -> Sequence[RegisterReading]:
        """Single values: instantaneous, nameplate, clock, or `<OBIS>[:attribute]`."""
        ...

    async def close(self) -> None:
        """Release the association and the line; never raises."""
        ...


Tracer = Callable[[str, bytes], None]
"""Gets ("send" | "receive", frame) for `opendcu read --trace`."""


class Counters(Protocol):
    """Invocation counters that are on disk before they are used: `journal.counters.CounterStore`."""

    was_created: bool

    def prepare(
        self, title: bytes, fingerprint: str, at_least: int = 0, count: int = 200
    ) -> Future[None]:
        """Reserve counters above `at_least`; done when they are durable."""
        ...

    def next(self, title: bytes, fingerprint: str) -> int:
        """The next counter of what was reserved; never the same twice."""
        ...

    def current(self, title: bytes, fingerprint: str) -> int | None:
        """The next counter that would be used; None if this key was never prepared."""
        ...

    def accept(
        self,
        title: bytes,
        fingerprint: str,
        channel: Literal["association", "push"],
        counter: int,
    ) -> bool:
        """Remember a counter of the peer after its tag was verified; False = heard before."""
        ...


def open_driver(
    meter: Any,
    line: Any,
    model: Any,
    keys: Any,
    counters: Counters | None,
    memory: Memory,
    clock: Clock,
    tracer: Tracer | None = None,
    *,
    site: Site | None = None,
) -> Driver:
    """A driver for one visit to one meter; nothing is sent yet.

    Args:
        meter: `config.schema.Meter`.
        line: `config.schema.Line`.
        model: `config.models.DlmsModel` or `ModbusModel`; its `about.protocol` names the driver.
        keys: `config.keys.MeterKeys`, or None for meters without.
        counters: needed by ciphered DLMS only.
        memory: what is known of this meter from earlier sessions.
        clock: stamps what is read and measures waits.
        tracer: sees every frame.
        site: title and civil time of the gateway.
    """
    kind = _kind(model.about.protocol)
    return kind(meter, line, model, keys, counters, memory, clock, tracer, site=site or Site())


@functools.lru_cache
def _kind(protocol: str) -> Callable[..., Driver]:
    """The class of a driver; its module is imported on first use."""
    return cast("Callable[..., Driver]", importlib.import_module(DRIVERS[protocol]).Driver)
