"""Plain MQTT brokers through paho: MQTT 5, and 3.1.1 where the broker knows no 5.

paho runs on our event loop (its socket is watched, a publish writes at once, in the caller's turn) and without its own
reconnecting: every connection is a new paho client, so that nothing is sent twice behind the sender's back. Name
resolution, TCP and TLS of a connect block, so they have a thread of their own that may be left behind. A broker that
accepts and says nothing (SIGSTOP) costs CONNECT_S at the connect, the publish's own limit afterwards, and the
keep-alive when nothing is published. Sessions are clean: acks are harmless when lost, commands are repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_core import errors
from edge_core.config.keys import read_reference
from edge_core.uplink.clients import Downward, NotConnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from edge_core.config.schema import Uplink

log = logging.getLogger(__name__)

CONNECT_S = 10.0
SUBSCRIBE_S = 10.0
PUBACK_S = 10.0  # and a second per SLOWEST octets
SLOWEST_OCTETS_PER_S = 2_000
KEEPALIVE_S = 30
MOST_IN_FLIGHT = 100  # IoT Core takes no more unacknowledged ones
QUEUED_DOWN = 1_000
UNSUPPORTED_VERSION = 0x84
OVERHEAD = 32  # of a PUBLISH beside topic and payload


class MqttClient:
    """See `Client`. QoS 1 for all."""

    confirms = False

    def __init__(
        self, uplink: Uplink, *, client_id: str, subscription: str, also: Sequence[str] = ()
    ) -> None:
        url = urlsplit(uplink.url)
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
            raise ValueError(f"{uplink.url!r}: expected mqtt://host:port or mqtts://host:port")
        self._uplink = uplink
        self._tls = url.scheme == "mqtts"
        self._host = url.hostname
        self._port = url.port or (443 if uplink.alpn443 else 8883 if self._tls else 1883)
        self._client_id = client_id
        self._subscription, self._also = subscription, tuple(also)
        self._version = paho.MQTTv5
        self._connection: _Connection | None = None
        self.receive_maximum = MOST_IN_FLIGHT
        self.max_payload: int | None = None

    async def connect(self) -> None:
        """Connect and subscribe; on a broker without MQTT 5 with 3.1.1, which is remembered."""
        await self.close()
        try:
            await self._connect(self._version)
        except _OtherVersion as error:
            other = paho.MQTTv311 if self._version == paho.MQTTv5 else paho.MQTTv5
            try:
                await self._connect(other)
            except errors.BrokerUnreachable:
                raise errors.BrokerUnreachable(str(error)) from error
            self._version = other

    async def _connect(self, version: int) -> None:
        connection = _Connection(self._paho(version), f"{self._host}:{self._port}")
        try:
            await connection.open(self._host, self._port)
            await connection.subscribe(self._subscription)
            for topic in self._also:
                try:
                    await connection.subscribe(topic)
                except errors.BrokerUnreachable as refused:
                    if connection.over:
                        raise
                    log.warning("uplink: %s: %s; what needs it does not work", topic, refused)
        except BaseException:
            connection.abandon("given up")
            raise
        self._connection = connection
        self.receive_maximum = min(MOST_IN_FLIGHT, connection.receive_maximum)
        self.max_payload = connection.max_packet and max(
            1, connection.max_packet - OVERHEAD - 4 * len(self._subscription)
        )

    def _paho(self, version: int) -> paho.Client:
        uplink = self._uplink
        client = _Paho(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=version,  # type: ignore[arg-type]
            clean_session=None if version == paho.MQTTv5 else True,
            reconnect_on_failure=False,
        )
        client.through = _proxy(uplink.proxy)
        client.connect_timeout = CONNECT_S / 2
        client.max_inflight_messages_set(MOST_IN_FLIGHT)
        try:
            if uplink.username:
                client.username_pw_set(_text(uplink.username), _text(uplink.password) or None)
            if self._tls:
                client.tls_set_context(_tls_context(uplink))
        except (OSError, ValueError, errors.OpenDCUError) as error:
            raise errors.BrokerUnreachable(f"[uplink] credentials: {error}") from error
        return client

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
            connection.disconnect()


class _OtherVersion(errors.BrokerUnreachable):
    """The broker does not speak this version of MQTT, or hung up before it answered."""


class _Paho(paho.Client):
    """paho, through an HTTP proxy where one is configured."""

    through: tuple[str, int] | None = None

    def _create_socket(self) -> Any:
        """TCP and TLS; a handshake that fails leaves no socket behind."""
        sock = self._create_socket_connection()
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # an alarm waits for no other ACK
        if self._ssl_context is None:
            return sock
        secured = self._ssl_context.wrap_socket(
            sock, server_hostname=self._host, do_handshake_on_connect=False
        )
        try:
            secured.settimeout(self._connect_timeout)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _create_socket_connection(self) -> socket.socket:
        if self.through is None:
            return super()._create_socket_connection()
        target = f"{self._host}:{self._port}"
        sock = socket.create_connection(self.through, timeout=CONNECT_S / 2)
        try:
            sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n") and len(answer) < 8_192:
                answer += (octet := sock.recv(1))  # not more than the header: TLS follows
                if not octet:
                    break
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                refusal = f"the proxy refused: {answer[:80]!r}"
                raise OSError(refusal)  # noqa: TRY301 one place that closes the socket
        except BaseException:
            sock.close()
            raise
        return sock


class _Connection:
    """One connection and everything that dies with it. All methods run on the event loop."""

    def __init__(self, client: paho.Client, name: str) -> None:
        self._client = client
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._writing = False
        self._misc: asyncio.TimerHandle | None = None
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._subacks: dict[int, asyncio.Future[None]] = {}
        self._pubacks: dict[int, asyncio.Future[None]] = {}
        self.down: asyncio.Queue[Downward | None] = asyncio.Queue()
        self.over = self._leaving = False
        self.reason = ""
        self.receive_maximum = 65_535
        self.max_packet: int | None = None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    # --- life

    async def open(self, host: str, port: int) -> None:
        """TCP, TLS, CONNECT, CONNACK."""
        opened: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(
            target=self._open_socket, args=(host, port, opened), name="mqtt connect", daemon=True
        ).start()
        try:
            async with asyncio.timeout(CONNECT_S):
                await opened
                self._watch()
                await self._connack
        except TimeoutError:
            raise errors.BrokerUnreachable(
                f"{self._name}: no answer within {CONNECT_S:.0f} s"
            ) from None
        except (OSError, ValueError) as error:
            raise errors.BrokerUnreachable(f"{self._name}: {error}") from error

    def _open_socket(self, host: str, port: int, opened: asyncio.Future[None]) -> None:
        properties = None
        error: Exception | None = None
        if self._client.protocol == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        clean: Any = True if properties else paho.MQTT_CLEAN_START_FIRST_ONLY
        try:
            self._client.connect(
                host, port, keepalive=KEEPALIVE_S, clean_start=clean, properties=properties
            )
        except Exception as caught:  # noqa: BLE001 handed to the waiting loop
            error = caught

        def tell() -> None:
            if self.over:
                self._drop_socket()
            elif not opened.done():
                opened.set_exception(error) if error else opened.set_result(None)

        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(tell)

    def _watch(self) -> None:
        sock = self._client.socket()
        if sock is None:
            raise OSError("closed at once")
        self._fd = sock.fileno()
        self._loop.add_reader(self._fd, self._readable)
        self._misc = self._loop.call_later(1.0, self._tick)
        self._flush()

    def _tick(self) -> None:
        self._client.loop_misc()
        if not self.over:
            self._misc = self._loop.call_later(1.0, self._tick)

    def disconnect(self) -> None:
        """Say goodbye if the socket takes it at once, and end."""
        if not self.over:
            self._leaving = True
            with contextlib.suppress(OSError, ValueError):
                self._client.disconnect()
        self.abandon("")

    def abandon(self, reason: str) -> None:
        """End now; everything that waits fails with the reason. More than once is no error."""
        if self.over:
            return
        self.over = True
        self.reason = reason
        if self._misc is not None:
            self._misc.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
        self._drop_socket()
        for future in (self._connack, *self._subacks.values(), *self._pubacks.values()):
            if not future.done():
                future.set_exception(errors.BrokerUnreachable(reason or "disconnected"))
                future.exception()  # nobody may be waiting any more
        self.down.put_nowait(None)

    def _drop_socket(self) -> None:
        sock = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    # --- socket

    def _readable(self) -> None:
        try:
            while True:
                self._client.loop_read()
                sock = self._client.socket()
                if self.over or not isinstance(sock, ssl.SSLSocket) or not sock.pending():
                    break
        except Exception as error:  # noqa: BLE001 whatever the broker's octets do to paho, only this connection ends
            self.abandon(f"{self._name}: {error}")
            return
        self._flush()

    def _flush(self) -> None:
        """Write what paho has queued; the rest when the socket takes it."""
        if self.over:
            return
        try:
            if self._client.want_write():
                self._client.loop_write()
            more = not self.over and self._client.want_write()
        except Exception as error:  # noqa: BLE001 as above
            self.abandon(f"{self._name}: {error}")
            return
        if self._fd >= 0 and more != self._writing:
            self._writing = more
            if more:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)

    # --- packets

    async def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1 and wait for the broker's yes."""
        code, mid = self._client.subscribe(topic, qos=1)
        if code != paho.MQTT_ERR_SUCCESS or mid is None:
            raise errors.BrokerUnreachable(f"{self._name}: subscribe: {paho.error_string(code)}")
        future = self._subacks[mid] = self._loop.create_future()
        self._flush()
        try:
            async with asyncio.timeout(SUBSCRIBE_S):
                await future
        except TimeoutError:
            raise errors.BrokerUnreachable(
                f"{self._name}: no answer to SUBSCRIBE within {SUBSCRIBE_S:.0f} s"
            ) from None

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 and wait for the PUBACK; a broker that owes one for too long loses the connection."""
        if self.over:
            raise NotConnected(self.reason or "not connected")
        info = self._client.publish(topic, payload, qos=1)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise NotConnected(f"{self._name}: {paho.error_string(info.rc)}")
        future = self._pubacks[info.mid] = self._loop.create_future()
        self._flush()
        limit = PUBACK_S + len(payload) / SLOWEST_OCTETS_PER_S
        try:
            async with asyncio.timeout(limit):
                await future
        except TimeoutError:
            self.abandon(f"{self._name}: no PUBACK within {limit:.0f} s")
            raise errors.BrokerUnreachable(self.reason) from None
        finally:
            self._pubacks.pop(info.mid, None)

    def _on_connect(
        self, _client: Any, _userdata: Any, _flags: Any, reason: Any, properties: Any = None
    ) -> None:
        if self._connack.done():
            return
        if reason.is_failure:
            kind = (
                _OtherVersion if reason.value == UNSUPPORTED_VERSION else errors.BrokerUnreachable
            )
            self._connack.set_exception(kind(f"{self._name}: the broker refused: {reason}"))
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", 65_535)
        self.max_packet = getattr(properties, "MaximumPacketSize", None)
        self._connack.set_result(None)

    def _on_disconnect(
        self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any = None
    ) -> None:
        if not self._connack.done():
            self._connack.set_exception(
                _OtherVersion(f"{self._name}: hung up before CONNACK: {reason}")
            )
        self.abandon("" if self._leaving else f"{self._name}: {reason}")

    def _on_subscribe(
        self, _client: Any, _userdata: Any, mid: int, reasons: list[Any], _properties: Any = None
    ) -> None:
        future = self._subacks.pop(mid, None)
        if future is None or future.done():
            return
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            future.set_exception(
                errors.BrokerUnreachable(
                    f"{self._name}: the subscription was refused: {refused[0]}; without it no ack arrives"
                )
            )
        else:
            future.set_result(None)

    def _on_publish(
        self, _client: Any, _userdata: Any, mid: int, reason: Any, _properties: Any = None
    ) -> None:
        future = self._pubacks.get(mid)
        if future is None or future.done():
            return
        if reason.is_failure:
            future.set_exception(
                errors.PublishRefused(f"the broker refused: {reason}", reason.value)
            )
        else:
            future.set_result(None)

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        if self.down.qsize() < QUEUED_DOWN:  # acks and commands are repeated
            self.down.put_nowait(Downward(message.topic, bytes(message.payload)))


def _text(value: str) -> str:
    """What `file:<path>` or `env:<NAME>` refers to; anything else as it is."""
    if not value.startswith(("file:", "env:")):
        return value
    secret = read_reference(value)
    return secret.reveal().decode() if secret else ""


def _tls_context(uplink: Uplink) -> ssl.SSLContext:
    for path in (uplink.ca_file, uplink.cert_file, uplink.key_file):
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
    context = ssl.create_default_context(cafile=uplink.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if uplink.cert_file:
        context.load_cert_chain(uplink.cert_file, uplink.key_file or None)
    if uplink.alpn443:
        context.set_alpn_protocols(["x-amzn-mqtt-ca"])
    return context


def _proxy(url: str) -> tuple[str, int] | None:
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise errors.BrokerUnreachable(f"[uplink] proxy {url!r}: expected http://host:port")
    return parts.hostname, parts.port
