"""AWS IoT Core through awsiotsdk: MQTT 5 over mutual TLS, by awscrt's own threads.

Every connection is a new awscrt client, stopped at the first failure, since its own reconnecting would publish behind
the sender's back and hide how the link is. Callbacks come from its threads and go to our loop. Client id = thing name.
Imported only when `[uplink] kind = "aws"` runs: awscrt has no wheel for 32-bit ARM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from awscrt import exceptions, http, io, mqtt5
from awsiot import mqtt5_client_builder

from edge_core import errors
from edge_core.uplink.certificates import Pair
from edge_core.uplink.clients import Downward, NotConnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from concurrent.futures import Future

    from edge_core.config.schema import Uplink
    from edge_core.uplink.certificates import Certificates

log = logging.getLogger(__name__)

CONNECT_S = 12.0
CONNACK_S = 10
SUBSCRIBE_S = 10.0
PUBACK_S = 10.0
SLOWEST_OCTETS_PER_S = 2_000
KEEPALIVE_S = 40  # awscrt wants more than its ping timeout
PING_S = 15
STOP_S = 2.0
MOST_IN_FLIGHT = 100
MOST_FILTERS = 8  # of one SUBSCRIBE, by IoT Core
QUEUED_DOWN = 1_000
REFUSED = 0x80  # reason codes from here on


class AwsClient:
    """See `Client`."""

    confirms = False
    max_payload: int | None = 128 << 10

    def __init__(
        self,
        uplink: Uplink,
        *,
        client_id: str,
        subscription: str,
        also: Sequence[str] = (),
        certificates: Certificates | None = None,
    ) -> None:
        url = urlsplit(uplink.url if "//" in uplink.url else f"//{uplink.url}")
        if not url.hostname:
            raise ValueError(f"{uplink.url!r}: expected the IoT endpoint, host[:port]")
        self._host = url.hostname
        self._port = url.port or (443 if uplink.alpn443 else 8883)
        self._uplink = uplink
        self._client_id = client_id
        self._subscription, self._also = subscription, tuple(also)
        self._certificates = certificates
        self._bootstrap: Any = None
        self._connection: _Connection | None = None
        self.receive_maximum = MOST_IN_FLIGHT

    async def connect(self) -> None:
        await self.close()
        if self._bootstrap is None:
            group = io.EventLoopGroup(1)
            self._bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
        shown = self._shown()
        connection = _Connection(
            f"{self._host}:{self._port}", lambda **callbacks: self._build(shown, **callbacks)
        )
        try:
            await connection.open()
            await connection.subscribe([self._subscription], needed=True)
            await connection.subscribe(self._also)
        except BaseException:
            await connection.stop("")
            raise
        if self._certificates is not None:
            self._certificates.proved(shown)
        self._connection = connection
        self.receive_maximum = min(MOST_IN_FLIGHT, connection.receive_maximum)

    def _shown(self) -> Pair:
        """The certificate of this attempt: a renewed one takes turns with the old until it has connected."""
        shown = self._certificates and self._certificates.candidate()
        return shown or Pair(Path(self._uplink.cert_file), Path(self._uplink.key_file))

    def _build(self, shown: Pair, **callbacks: Callable[..., None]) -> Any:
        uplink = self._uplink
        proxy = None
        if uplink.proxy:
            parts = urlsplit(uplink.proxy)
            proxy = http.HttpProxyOptions(host_name=parts.hostname, port=parts.port)
        return mqtt5_client_builder.mtls_from_path(
            endpoint=self._host,
            port=self._port,
            cert_filepath=str(shown.certificate),
            pri_key_filepath=str(shown.key),
            ca_filepath=uplink.ca_file or None,
            client_id=self._client_id,
            client_bootstrap=self._bootstrap,
            http_proxy_options=proxy,
            keep_alive_interval_sec=KEEPALIVE_S,
            ping_timeout_ms=PING_S * 1_000,
            connack_timeout_ms=CONNACK_S * 1_000,
            ack_timeout_sec=0,  # we bound every wait ourselves
            session_behavior=mqtt5.ClientSessionBehaviorType.CLEAN,
            offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
            **callbacks,
        )

    async def publish(self, topic: str, payload: bytes) -> None:
        if self._connection is None:
            raise NotConnected("not connected")
        await self._connection.publish(topic, payload)

    async def messages(self) -> AsyncIterator[Downward]:
        connection = self._connection
        if connection is None:
            raise NotConnected("not connected")
        while True:
            message = await connection.down.get()
            if message is None:
                break
            yield message
        if connection.reason:
            raise errors.BrokerUnreachable(connection.reason)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.stop("")


class _Connection:
    """One awscrt client, from start to its first failure."""

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._stopped = asyncio.Event()
        self.down: asyncio.Queue[Downward | None] = asyncio.Queue()
        self.over = False
        self.reason = ""
        self.receive_maximum = MOST_IN_FLIGHT
        try:
            self._client = build(
                on_lifecycle_connection_success=self._later(self._succeeded),
                on_lifecycle_connection_failure=self._later(self._failed),
                on_lifecycle_disconnection=self._later(self._disconnected),
                on_lifecycle_stopped=self._later(lambda _: self._stopped.set()),
                on_publish_received=self._later(self._received),
            )
        except (exceptions.AwsCrtError, OSError, ValueError) as error:
            raise errors.BrokerUnreachable(f"{name}: certificate or key: {error}") from error

    def _later(self, method: Callable[[Any], None]) -> Callable[[Any], None]:
        """The method as a callback for awscrt's threads."""

        def callback(event: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self._loop.call_soon_threadsafe(method, event)

        return callback

    async def open(self) -> None:
        """Start and wait for the first success or failure."""
        self._client.start()
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connected
        except TimeoutError:
            raise errors.BrokerUnreachable(
                f"{self._name}: no answer within {CONNECT_S:.0f} s; an untrusted certificate looks the same"
            ) from None

    async def subscribe(self, topics: Sequence[str], *, needed: bool = False) -> None:
        """Subscribe at QoS 1, MOST_FILTERS at a time, and wait for the answers; a no is an error only if needed."""
        for first in range(0, len(topics), MOST_FILTERS):
            several = topics[first : first + MOST_FILTERS]
            packet = mqtt5.SubscribePacket(
                subscriptions=[mqtt5.Subscription(t, mqtt5.QoS.AT_LEAST_ONCE) for t in several]
            )
            suback = await self._result(self._client.subscribe(packet), SUBSCRIBE_S, "SUBSCRIBE")
            for topic, code in zip(several, suback.reason_codes, strict=True):
                if int(code) < REFUSED:
                    continue
                why = f"{self._name}: the subscription was refused ({code}): does the IoT policy allow {topic}?"
                if needed:
                    raise errors.BrokerUnreachable(why)
                log.warning("uplink: %s; what needs it does not work", why)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 and wait for the PUBACK."""
        if self.over:
            raise NotConnected(self.reason or "not connected")
        packet = mqtt5.PublishPacket(topic=topic, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)
        limit = PUBACK_S + len(payload) / SLOWEST_OCTETS_PER_S
        done = await self._result(self._client.publish(packet), limit, "PUBLISH")
        code = int(done.puback.reason_code)
        if code >= REFUSED:
            why = done.puback.reason_string or str(done.puback.reason_code)
            raise errors.PublishRefused(f"IoT Core refused: {why}", code)

    async def _result(self, future: Future[Any], limit_s: float, what: str) -> Any:
        waiting: asyncio.Future[Any] = self._loop.create_future()

        def copy() -> None:
            if waiting.done():
                return  # we gave up; awscrt must not find its future cancelled
            error = future.exception()
            waiting.set_exception(error) if error else waiting.set_result(future.result())

        def tell(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self._loop.call_soon_threadsafe(copy)

        future.add_done_callback(tell)
        try:
            async with asyncio.timeout(limit_s):
                return await waiting
        except TimeoutError:
            self._end(f"{self._name}: no answer to {what} within {limit_s:.0f} s")
            raise errors.BrokerUnreachable(self.reason) from None
        except exceptions.AwsCrtError as error:
            raise errors.BrokerUnreachable(f"{self._name}: {error.name}") from error

    def _end(self, reason: str) -> None:
        if self.over:
            return
        self.over = True
        self.reason = reason
        with contextlib.suppress(exceptions.AwsCrtError):
            self._client.stop()
        if not self._connected.done():
            self._connected.set_exception(errors.BrokerUnreachable(reason))
            self._connected.exception()
        self.down.put_nowait(None)

    async def stop(self, reason: str) -> None:
        """End, and give awscrt a moment to close the socket."""
        self._end(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._stopped.wait()

    def _succeeded(self, event: Any) -> None:
        negotiated = event.negotiated_settings
        self.receive_maximum = negotiated.receive_maximum_from_server or MOST_IN_FLIGHT
        if not self._connected.done():
            self._connected.set_result(None)

    def _failed(self, event: Any) -> None:
        packet = event.connack_packet
        why = f"refused: {packet.reason_code!s}" if packet else getattr(event.exception, "name", "")
        self._end(f"{self._name}: {why or event.exception}")

    def _disconnected(self, event: Any) -> None:
        packet = event.disconnect_packet
        why = (
            f"disconnected: {packet.reason_code!s}"
            if packet
            else getattr(event.exception, "name", "")
        )
        self._end(f"{self._name}: {why or event.exception}")

    def _received(self, event: Any) -> None:
        packet = event.publish_packet
        if self.down.qsize() < QUEUED_DOWN:
            self.down.put_nowait(Downward(packet.topic, bytes(packet.payload or b"")))
