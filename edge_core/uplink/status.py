"""Whom the sender tells, and what it tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def _nothing(*_: object) -> None:
    """What a hook does that nobody set."""


@dataclass(slots=True)
class Hooks:
    """Whom the sender tells. Called on the event loop; must not block.

    Attributes:
        on_command: (command id of the topic, payload as it came).
        on_no_acks: (seconds without an ack while publishing succeeds).
        on_new_epoch: (epoch, why): invocation counters jump, an alarm says so.
        on_aside: (n, cause, why).
        on_connected: (True | False, reason).
        on_rows: in uplink.db stands something for other processes. Called in the thread that writes it.
        on_other: (topic, payload) of what else comes down: answers of AWS' own services.
    """

    on_command: Callable[[str, bytes], object] = _nothing
    on_no_acks: Callable[[float], object] = _nothing
    on_new_epoch: Callable[[int, str], object] = _nothing
    on_aside: Callable[[int, str, str], object] = _nothing
    on_connected: Callable[[bool, str], object] = _nothing
    on_rows: Callable[[], object] = _nothing
    on_other: Callable[[str, bytes], object] = _nothing


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    published: int = 0
    octets: int = 0
    resent: int = 0
    acked: int = 0
    rejected: int = 0
    refused: int = 0
    acks_ignored: int = 0
    down_malformed: int = 0
    connects: int = 0
    no_acks: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class SenderStatus:
    """How the uplink is, for health, console and `top`."""

    state: str
    reason: str
    epoch: int
    in_flight: int
    unacked: int
    aside: int
    outbox_failed: str
    counts: Counts = field(default_factory=Counts)
