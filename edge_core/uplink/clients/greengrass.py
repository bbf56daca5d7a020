"""The nucleus of Greengrass as the way to the cloud: PublishToIoTCore and one wildcard subscription over IPC.

A publish that returns means that the nucleus took the message: on classic it lies in the spooler, on lite it was
written to TLS, and nobody waits for the PUBACK. Only the cloud's ack counts, which is why `ack = "broker"` has no
meaning here. What a nucleus does not take (offline, full, ten packets unacknowledged) is no error but back-pressure:
the publish waits and tries again for PRESSURE_S, then it is as if there were no connection.

On lite the message is in flight for HOLD_S after the call returned, two of the bulk lanes at a time; alarms are not
held, the nucleus itself says when it is full. Subscriptions may die in silence while publishing works: the sender
notices that no acks come and closes us, and the next `connect` makes connection and subscription anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from awsiot.eventstreamrpc import EventStreamOperationError, SerializeError
from awsiot.greengrasscoreipc import model

from edge_core import errors
from edge_core.greengrass.ipc import MOST_PAYLOAD, Ipc, Link, NotAllowed, NotTaken, shared
from edge_core.uplink.clients import Downward, NotConnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

MOST_PAYLOAD_CLASSIC = 128 << 10
MOST_DOWN = 4_900  # lite drops more in silence; the contract allows 4,800
QUEUED_DOWN = 1_000
PACKETS = 10  # unacknowledged ones that lite keeps
HELD, HOLD_S = 2, 1.0
PRESSURE_S = 8.0
WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6)
NOT_ALLOWED_S = (
    600.0  # lite refuses for a while when its ggconfigd restarts; after this it is the policy
)
MOST_TOPICS = 200

TOO_LARGE, FORBIDDEN, UNWANTED = 0x95, 0x87, 0x80  # reason codes of MQTT 5


class GreengrassClient:
    """See `Client`."""

    confirms = False
    receive_maximum = PACKETS

    def __init__(self, subscription: str, ipc: Ipc | None = None) -> None:
        self._subscription = subscription
        self._ipc = ipc or shared()
        self._link: Link | None = None
        self._down: asyncio.Queue[Downward | None] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None
        self._taken: deque[float] = deque(maxlen=HELD)
        self._turn = asyncio.Lock()
        self._forbidden: dict[str, float] = {}
        self._classic = False
        self.max_payload: int | None = MOST_PAYLOAD

    async def connect(self) -> None:
        await self.close()
        link = await self._ipc.open()
        self._classic = self._ipc.capabilities.get("component-updates", False)
        self.max_payload = MOST_PAYLOAD_CLASSIC if self._classic else MOST_PAYLOAD
        try:
            await link.subscribe(
                lambda client, **callbacks: client.subscribe_to_iot_core_async(
                    topic_name=self._subscription, qos=model.QOS.AT_LEAST_ONCE, **callbacks
                ),
                self._received,
                ends_link=True,
            )
        except (EventStreamOperationError, SerializeError) as error:
            self._ipc.capabilities["subscribe"] = False
            raise errors.BrokerUnreachable(
                f"the nucleus does not subscribe to {self._subscription}: {_why(error)}"
            ) from error
        self._ipc.capabilities["subscribe"] = True
        self._link = link
        self._down = asyncio.Queue()
        self._watch = asyncio.create_task(self._until_over(link), name="greengrass link")

    async def _until_over(self, link: Link) -> None:
        await link.ended.wait()
        self._down.put_nowait(None)

    def _received(self, event: Any) -> None:
        message = event.message
        if message is None or message.topic_name is None:
            return
        payload = bytes(message.payload or b"")
        if len(payload) > MOST_DOWN:
            log.warning(
                "uplink: %d octets came down on %s, at most %d are taken",
                len(payload),
                message.topic_name,
                MOST_DOWN,
            )
        elif self._down.qsize() < QUEUED_DOWN:
            self._down.put_nowait(Downward(message.topic_name, payload))

    async def publish(self, topic: str, payload: bytes) -> None:
        link = self._link
        if link is None or link.over:
            raise NotConnected((link and link.reason) or "not connected")
        if len(payload) > (self.max_payload or 0):
            raise errors.PublishRefused(f"{len(payload)} octets are too many", TOO_LARGE)
        if "/alarms/" in topic:
            await self._offer(link, topic, payload)
            return
        async with self._turn:  # bulk leaves in its order, so many in HOLD_S
            await self._hold()
            await self._offer(link, topic, payload)
            self._taken.append(asyncio.get_running_loop().time())

    async def _hold(self) -> None:
        """On lite, wait until fewer than HELD messages were taken in the last HOLD_S."""
        if not self._classic and len(self._taken) == HELD:
            left = self._taken[0] + HOLD_S - asyncio.get_running_loop().time()
            if left > 0:
                await asyncio.sleep(left)

    async def _offer(self, link: Link, topic: str, payload: bytes) -> None:
        """Offer a message until the nucleus takes it or PRESSURE_S are over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        tries = 0
        while True:
            try:
                await link.call(
                    lambda client: client.publish_to_iot_core_async(
                        topic_name=topic, qos=model.QOS.AT_LEAST_ONCE, payload=payload
                    )
                )
            except (NotTaken, NotAllowed) as error:
                self._not_taken(topic, error, loop.time())
                wait = WAITS_S[min(tries, len(WAITS_S) - 1)]
                if loop.time() + wait - began > PRESSURE_S:
                    raise NotConnected(f"the nucleus takes no messages: {_why(error)}") from error
            except (EventStreamOperationError, SerializeError) as error:
                raise errors.PublishRefused(
                    f"the nucleus refused: {_why(error)}", UNWANTED
                ) from error
            else:
                self._ipc.pressed = None
                self._forbidden.pop(topic, None)
                self._ipc.capabilities["publish"] = True
                return
            tries += 1
            await asyncio.sleep(wait)

    def _not_taken(self, topic: str, error: Exception, now: float) -> None:
        if self._ipc.pressed is None:
            self._ipc.pressed = now
            log.info("uplink: the nucleus takes no messages for now: %s", _why(error))
        if not isinstance(error, NotAllowed):
            self._forbidden.pop(topic, None)
            return
        if len(self._forbidden) >= MOST_TOPICS:
            self._forbidden.clear()
        if now - self._forbidden.setdefault(topic, now) > NOT_ALLOWED_S:
            raise errors.PublishRefused(
                f"the component's accessControl does not allow {topic}", FORBIDDEN
            ) from error

    async def messages(self) -> AsyncIterator[Downward]:
        link, down = self._link, self._down
        if link is None:
            raise NotConnected("not connected")
        while (message := await down.get()) is not None:
            yield message
        if link.reason:
            raise errors.BrokerUnreachable(link.reason)

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        if not link.over:
            await self._ipc.drop()
        if self._watch is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._watch


def _why(error: Exception) -> str:
    """What an error of the nucleus says; lite's says nothing."""
    text = getattr(error, "message", "") or ""
    return f"{type(error).__name__} {text}".strip()
