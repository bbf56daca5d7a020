"""One message out and what follows: quota, window, the day's budget, refusals, and messages that break the connection.

A broker that says no in so many words (PUBACK) is answered by back-off, and after MOST_REFUSALS by setting the message
aside. A broker that hangs up instead (MQTT 3.1.1 knows no other no: too large, not allowed) would take every
connection down with the same message: one whose connection broke twice under it leaves alone from then on, so that it
cannot hurt others; a large one is cut into small ones, and so are all that follow, the third time, a small one set aside the fifth.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from edge_core import errors
from edge_core.uplink.clients import NotConnected
from edge_core.uplink.deliveries import Sent
from edge_core.uplink.pacing import Quota, Window
from edge_core.uplink.payloads import notes
from edge_core.uplink.payloads.envelope import message
from edge_core.uplink.topics import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.uplink.clients import Client
    from edge_core.uplink.deliveries import Deliveries
    from edge_core.uplink.outbox import Outbox, Ref
    from edge_core.uplink.packer import Draft
    from edge_core.uplink.status import Counts

log = logging.getLogger(__name__)

MESSAGE_BYTES = {"greengrass": 4_800}
DEFAULT_MESSAGE_BYTES = 100_000
IN_FLIGHT = {"greengrass": 2}
DEFAULT_IN_FLIGHT = 20
ALARMS_IN_FLIGHT = {"greengrass": 1}
DEFAULT_ALARMS_IN_FLIGHT = 40

SMALL = 4_800  # no way to the cloud takes less
MOST_REFUSALS = 5
SUSPECT, CUT, GIVEN_UP = 2, 3, 5  # connections that broke under a message
RETRY_S = 0.5


@dataclass(slots=True)
class Outcomes:
    """What the transmitter tells the sender.

    Attributes:
        stored: publishing was the ack (files, `ack = "broker"`).
        confirmed: the broker has it, the cloud's ack is waited for.
        aside: (n, cause, why).
        again: parts that are pending once more.
        resized: octets that a message may have from now on.
    """

    stored: Callable[[int], None]
    confirmed: Callable[[], None]
    aside: Callable[[int, str, str], None]
    again: Callable[[Iterable[Ref]], None]
    resized: Callable[[int], None]


class Transmitter:
    """Everything between a draft and its PUBACK. Lives on the event loop."""

    def __init__(
        self,
        config: Config,
        client: Client,
        clock: Clock,
        outbox: Outbox,
        deliveries: Deliveries,
        counts: Counts,
        outcomes: Outcomes,
    ) -> None:
        kind = config.uplink.kind
        self._dcu = config.gateway.id
        self._zone = ZoneInfo(config.gateway.timezone)
        self._client, self._clock, self._outbox = client, clock, outbox
        self._deliveries, self._counts, self._outcomes = deliveries, counts, outcomes
        self.limit = min(
            config.uplink.max_message_bytes or MESSAGE_BYTES.get(kind, DEFAULT_MESSAGE_BYTES),
            MAX_PAYLOAD_BYTES,
        )
        self._most_in_flight = config.uplink.max_in_flight or IN_FLIGHT.get(kind, DEFAULT_IN_FLIGHT)
        self._alarm_slots = asyncio.Semaphore(ALARMS_IN_FLIGHT.get(kind, DEFAULT_ALARMS_IN_FLIGHT))
        self._acked_by_publish = config.uplink.ack == "broker" or client.confirms
        self._budget = int(config.uplink.byte_budget_per_day)
        self._quota = Quota(clock)
        self._window = Window(self._most_in_flight)
        self._suspect: int | None = None  # number of the message that is out alone
        self.paused = False
        self.changed = asyncio.Event()

    # --- what may be sent

    @property
    def free(self) -> bool:
        """Is there room for one more message of the bulk lanes?"""
        return self._window.free and self._suspect is None and not self.paused

    def may_leave(self, sent: Sent) -> bool:
        """A message that broke connections leaves only when no other is under way."""
        return sent.breaks < SUSPECT or self._window.used == 0

    @property
    def spent_out(self) -> bool:
        """Is the day's budget spent?"""
        return bool(self._budget) and self._outbox.spent(self._today()) >= self._budget

    def connected(self) -> None:
        """Fit window and sizes to what this broker takes."""
        most = self._client.receive_maximum
        self._window.most = max(
            1, min(self._most_in_flight, most if most > 40 else (most + 1) // 2)
        )
        self._window.size = min(self._window.size, float(self._window.most))
        size = self._client.max_payload
        if size is not None and size < self.limit:
            self._resize(size)

    def _resize(self, limit: int) -> None:
        self.limit = limit
        self._outcomes.resized(limit)

    # --- out

    def enter(self, draft: Draft) -> Sent | None:
        """Give a draft its number and write it into the books. None while no number is to be had."""
        n = None if self.paused else self._outbox.take()
        if n is None:
            return None
        payload = self._message(draft.name, draft.kind, draft.members, n)
        sent = Sent(n, draft.topic, payload, draft.refs, draft.lane, self._clock.monotonic())
        self._deliveries.send(sent, hashlib.sha256(payload).digest())
        return sent

    def _message(self, name: str, kind: str, members: list[tuple[str, bytes]], n: int) -> bytes:
        return message(
            name,
            dcu=self._dcu,
            epoch=self._outbox.epoch,
            n=n,
            sent=int(self._clock.now()),
            kind=kind,
            members=members,
        )

    async def bulk_turn(self, sent: Sent) -> None:
        """Take a place in the window and wait for the quota; `transmit` must follow."""
        sent.in_flight = True
        self._window.entered()
        if sent.breaks >= SUSPECT:
            self._suspect = sent.n
        try:
            await self._quota.take(len(sent.payload))
        except asyncio.CancelledError:
            self._left(sent, None)
            raise
        self._spend(len(sent.payload))

    def _left(self, sent: Sent, took_s: float | None) -> None:
        sent.in_flight = False
        if sent.lane != "alarms":
            self._window.left(took_s)
        if self._suspect == sent.n:
            self._suspect = None
        self.changed.set()

    async def transmit(self, sent: Sent) -> None:
        """One publish, and what follows from its outcome."""
        sent.in_flight = True
        sent.attempts += 1
        took_s: float | None = None
        try:
            if sent.lane == "alarms":
                async with self._alarm_slots:
                    await self._quota.take(len(sent.payload), alarm=True)
                    self._spend(len(sent.payload))
                    await self._publish(sent)
            else:
                began = self._clock.monotonic()
                await self._publish(sent)
                took_s = self._clock.monotonic() - began
        except errors.PublishRefused as error:
            self._on_refused(sent, error)
        except NotConnected:
            sent.due = self._clock.monotonic() + RETRY_S
        except errors.BrokerUnreachable as error:
            self._on_broken(sent, error)
        except Exception as error:  # the edge of a room: a broken message must not stop the others
            log.exception("uplink: publishing message %d failed", sent.n)
            self._on_refused(sent, errors.PublishRefused(f"{type(error).__name__}: {error}", 0))
        finally:
            self._left(sent, took_s)

    async def _publish(self, sent: Sent) -> None:
        most = self._client.max_payload
        if most is not None and len(sent.payload) > most:
            self._withdraw(sent, f"the broker takes {most} octets")
            return
        await self._client.publish(sent.topic, sent.payload)
        self._on_published(sent)

    def _is_open(self, sent: Sent) -> bool:
        """Not acked meanwhile, and not of an epoch that is over."""
        return self._deliveries.sent.get(sent.n) is sent

    def _on_published(self, sent: Sent) -> None:
        self._counts.published += 1
        self._counts.octets += len(sent.payload)
        sent.published, sent.breaks = True, 0
        sent.back_off(self._clock.monotonic())
        if not self._is_open(sent):
            return
        if self._acked_by_publish:
            self._outcomes.stored(sent.n)
        else:
            self._outcomes.confirmed()

    def _on_refused(self, sent: Sent, error: errors.PublishRefused) -> None:
        self._counts.refused += 1
        sent.refusals += 1
        sent.back_off(self._clock.monotonic())
        if sent.refusals == 1:
            log.warning("uplink: message %d to %s: %s", sent.n, sent.topic, error)
        if sent.refusals >= MOST_REFUSALS:
            self._give_up(sent, str(error))

    def _on_broken(self, sent: Sent, error: errors.BrokerUnreachable) -> None:
        alone = self._suspect == sent.n or sent.lane == "alarms"
        sent.due = self._clock.monotonic() + RETRY_S
        sent.breaks += 1
        if not alone or sent.breaks < CUT or not self._is_open(sent):
            return
        if len(sent.payload) > SMALL:
            self._withdraw(sent, f"connections break under its {len(sent.payload)} octets")
            if self.limit > SMALL:
                self._resize(SMALL)
        elif sent.breaks >= GIVEN_UP:
            self._give_up(sent, f"{sent.breaks} connections broke under it: {error}")

    def _give_up(self, sent: Sent, why: str) -> None:
        """Set it aside for an hour; an alarm goes on trying, once a minute."""
        if sent.lane == "alarms":
            sent.attempts = max(sent.attempts, 5)
            sent.back_off(self._clock.monotonic())
        elif self._is_open(sent):
            self._outcomes.aside(sent.n, "broker-refused", why)

    def _withdraw(self, sent: Sent, why: str) -> None:
        """Its parts go into smaller messages."""
        if self._is_open(sent):
            log.warning("uplink: message %d is cut: %s", sent.n, why)
            self._outcomes.again(self._deliveries.withdraw(sent.n))

    async def health(self, topic: str, body: dict[str, Any]) -> None:
        """Publish health: n = 0, no record, no resend."""
        payload = self._message("health", "health", notes.members("health", "", body), 0)
        await self._quota.take(len(payload))
        self._spend(len(payload))
        with contextlib.suppress(errors.UplinkError):  # the next one comes soon
            await self._client.publish(topic, payload)
            self._counts.published += 1
            self._counts.octets += len(payload)

    # --- budget

    def _today(self) -> int:
        return datetime.fromtimestamp(self._clock.now(), self._zone).toordinal()

    def _spend(self, octets: int) -> None:
        """Count octets against the day's budget when they leave, delivered or not: the link is paid either way."""
        if self._budget:
            self._outbox.spend(self._today(), octets)
