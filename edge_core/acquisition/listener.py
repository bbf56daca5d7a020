"""The listener: data-notifications and last gasps, by UDP and TCP.

A last gasp is heard in one datagram and leaves at once: the journal's alarms lane hands it to the sender before its
commit. The UDP socket has a thread of its own and a large receive buffer, so that five thousand meters may gasp in
one second; what the kernel dropped all the same is counted from the socket itself.

What is believed (DESIGN section 7): the meter is found by the system title (learned at the association, or `title` in
the configuration), else by the sender's address; the tag must verify under that meter's keys; the counter must be new
in a 64-wide window; the protection must be at least what the model's push setup says. Everything else is counted by
its cause and goes nowhere.

Limits: a datagram or WPDU has MAX_APDU octets; MAX_STREAMS TCP senders at a time, each silent for at most STREAM_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import struct
import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from edge_core import errors
from edge_core.config.models import DlmsModel
from edge_core.config.tables import ConfigErrors
from edge_core.domain import make_alarm
from edge_core.health import events
from edge_core.protocols.dlms import push
from edge_core.protocols.dlms.datetime import (
    LOCAL_TO_UTC,
    UTC_TO_LOCAL,
    ClockRules,
    decode_datetime,
)
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.dlms.wrapper import WrapperReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.acquisition.drivers import Counters
    from edge_core.clock import Clock
    from edge_core.config.keys import KeyRing
    from edge_core.config.schema import Config, Meter
    from edge_core.journal import Journal
    from edge_core.journal.datadir import Memories

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 << 20
MAX_DATAGRAM = 65_535
MAX_APDU = 16_384
MAX_STREAMS = 256
STREAM_S = 120.0
RECENT_SENDERS = 4096
REFRESH_S = 0.2
SO_RXQ_OVFL = 40  # Linux: the kernel adds its drop count to each datagram
SO_RCVBUFFORCE = 33

PROTECTION_BITS = {"none": 0, "authenticated": 1, "encrypted": 2, "authenticated-encrypted": 3}


class Listener:
    """Hears what meters say unasked.

    Attributes:
        counts: heard, alarms, repeated, and one count per cause of refusal: malformed, unknown-sender, tag-invalid,
            replayed, downgraded, no-keys, no-alert, kernel-drops.
    """

    def __init__(
        self,
        config: Config,
        *,
        journal: Journal,
        counters: Counters,
        memories: Memories,
        keys: KeyRing,
        clock: Clock,
    ) -> None:
        self._config, self._journal, self._clock = config, journal, clock
        self._counters, self._memories, self._keys = counters, memories, keys
        self._zone = ZoneInfo(config.gateway.timezone)
        self.counts: Counter[str] = Counter()
        self._by_title: dict[bytes, str] = {}
        self._by_host: dict[str, list[str]] = {}
        self._schemas: dict[str, push.Schemas] = {}
        self._rules: dict[str, ClockRules] = {}
        self._contexts: OrderedDict[str, SecurityContext] = OrderedDict()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._servers: list[asyncio.Server] = []
        self._streams: set[asyncio.Task[None]] = set()
        self._closing = False
        self._refreshed = float("-inf")
        for meter in config.meters.values():
            model = config.models[meter.model]
            if isinstance(model, DlmsModel):
                self._know(meter, model)

    def _know(self, meter: Meter, model: DlmsModel) -> None:
        if meter.title:
            self._by_title[bytes.fromhex(meter.title)] = meter.id
        host = self._config.address_of(meter).host
        if host:
            self._by_host.setdefault(host, []).append(meter.id)
        if model.name not in self._schemas:
            self._schemas[model.name] = push.schemas_of(model.push)
            self._rules[model.name] = ClockRules(
                UTC_TO_LOCAL if model.time.deviation == "utc-to-local" else LOCAL_TO_UTC,
                ZoneInfo(model.time.zone) if model.time.zone else self._zone,
            )

    # --- sockets

    async def start(self) -> None:
        """Bind every address of [push] listen.

        Raises:
            OSError: an address cannot be bound.
        """
        for url in self._config.push.listen:
            scheme, _, place = url.partition("://")
            host, _, port = place.rpartition(":")
            host = host.strip("[]")
            if scheme == "udp":
                self._listen_udp(host, int(port))
            else:
                server = await asyncio.start_server(
                    self._accept, host, int(port), limit=MAX_APDU * 2
                )
                self._servers.append(server)

    @property
    def ports(self) -> list[int]:
        """The ports that are bound, UDP first."""
        bound = [s.getsockname()[1] for s in self._sockets]
        return bound + [s.sockets[0].getsockname()[1] for s in self._servers]

    def _listen_udp(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        receiver = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with contextlib.suppress(OSError):  # beyond net.core.rmem_max only for root
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        with contextlib.suppress(OSError):
            receiver.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        receiver.bind((host, port))
        self._sockets.append(receiver)
        thread = threading.Thread(
            target=self._receive, args=(receiver,), name=f"push udp {port}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _receive(self, receiver: socket.socket) -> None:
        """The thread of one UDP socket."""
        dropped = 0
        while not self._closing:
            try:
                datagram, ancillary, _, sender = receiver.recvmsg(MAX_DATAGRAM, 64)
            except OSError:
                return  # closed
            if not sender:
                return  # shut down
            for level, kind, octets in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL and len(octets) >= 4:
                    total = struct.unpack("=I", octets[:4])[0]
                    self.counts["kernel-drops"] += (total - dropped) & 0xFFFFFFFF
                    dropped = total
            self.hear(datagram, sender[0])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._stream(reader, writer), name="push stream")
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP sender: WPDUs until it hangs up, is silent, or breaks the framing."""
        sender = (writer.get_extra_info("peername") or ("?",))[0]
        frames = WrapperReader(MAX_APDU)
        try:
            while len(self._streams) <= MAX_STREAMS:
                async with asyncio.timeout(STREAM_S):
                    octets = await reader.read(65_536)
                if not octets:
                    return
                frames.feed(octets)
                while (wpdu := frames.next()) is not None:
                    self._guarded(functools.partial(push.envelope, wpdu), sender)
        except errors.ProtocolError:
            self._drop("malformed", sender)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        """Stop listening; datagrams that wait in the socket are still heard. May be called twice."""
        if self._closing:
            return
        for receiver in self._sockets:
            self._drain(receiver)
        self._closing = True
        for receiver in self._sockets:
            with contextlib.suppress(OSError):
                receiver.shutdown(socket.SHUT_RDWR)  # wakes the thread
            receiver.close()
        for server in self._servers:
            server.close()
        for task in list(self._streams):
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 1.0)

    def _drain(self, receiver: socket.socket) -> None:
        while True:
            try:
                datagram, sender = receiver.recvfrom(MAX_DATAGRAM, socket.MSG_DONTWAIT)
            except OSError:
                return
            self.hear(datagram, sender[0])

    # --- what is heard

    def hear(self, datagram: bytes, sender: str) -> None:
        """One datagram from a sender's address. Never raises; any thread."""
        self._guarded(functools.partial(push.open_datagram, datagram), sender)

    def _guarded(self, unpack: Callable[[], push.Envelope], sender: str) -> None:
        self.counts["heard"] += 1
        try:
            self._take(unpack(), sender)
        except errors.TagInvalid:
            self._drop("tag-invalid", sender)
        except errors.Replayed:
            self._drop("replayed", sender)
        except errors.Downgraded:
            self._drop("downgraded", sender)
        except errors.ProtocolError:
            self._drop("malformed", sender)
        except Exception:  # the edge of the room: one datagram never stops the thread
            log.exception("a push from %s failed by a fault of ours", sender)
            self.counts["faults"] += 1

    def _drop(self, cause: str, sender: str) -> None:
        self.counts[cause] += 1
        if (
            self.counts[cause] & (self.counts[cause] - 1) == 0
        ):  # the 1st, 2nd, 4th, 8th ...: bounded logs
            events.push_dropped(cause, sender)

    def _meter_of(self, envelope: push.Envelope, sender: str) -> list[str]:
        """Meters that may have sent this, best first; the tag decides."""
        title = envelope.title
        known = self._by_title.get(title)
        if known is None and title:
            self._refresh_titles()
            known = self._by_title.get(title)
        candidates = [known] if known is not None else []
        return candidates + [m for m in self._by_host.get(sender, [])[:16] if m != known]

    def _refresh_titles(self) -> None:
        """Titles that drivers learned since; seldom, for anybody may send titles that nobody has."""
        now = self._clock.monotonic()
        if now - self._refreshed < REFRESH_S:
            return
        self._refreshed = now
        for host in self._by_host.values():
            for meter in host:
                identity = self._memories.get(meter, "identity")
                if isinstance(identity, dict) and identity.get("title"):
                    with contextlib.suppress(ValueError, TypeError):
                        self._by_title[bytes.fromhex(identity["title"])] = meter

    def _context(self, meter: str, suite: int) -> SecurityContext | None:
        """Keys of a meter, kept for recent senders only (a cipher object has 2.5 kB)."""
        context = self._contexts.get(meter)
        if context is not None:
            self._contexts.move_to_end(meter)
            return context
        try:
            keys = self._keys.get(meter)
        except ConfigErrors:
            return None
        if keys.guek is None:
            return None
        context = SecurityContext(suite, keys.guek, keys.gak)
        self._contexts[meter] = context
        while len(self._contexts) > RECENT_SENDERS:
            self._contexts.popitem(last=False)
        return context

    def _take(self, envelope: push.Envelope, sender: str) -> None:
        candidates = self._meter_of(envelope, sender)
        if not candidates:
            self._drop("unknown-sender", sender)
            return
        refused: errors.ProtocolError | None = None
        for meter in candidates:
            try:
                self._take_from(meter, envelope)
                return
            except errors.TagInvalid as error:
                refused = error
        assert refused is not None
        raise refused

    def _take_from(self, meter_id: str, envelope: push.Envelope) -> None:
        """Verify, refuse replays and weak protection, and raise what the push says.

        Raises:
            ProtocolError: it is not believed.
        """
        meter = self._config.meters[meter_id]
        model = self._config.models[meter.model]
        assert isinstance(model, DlmsModel)
        context = None
        if envelope.sealed is not None:
            context = self._context(meter_id, model.association.suite)
            if context is None:
                self.counts["no-keys"] += 1
                return
        opened = envelope.open(context, envelope.title)
        title = envelope.title
        schemas = self._schemas[model.name]
        notification = push.read(opened.plain, schemas)
        wanted = next(
            (s.protection for s in model.push.values() if str(s.obis) == notification.setup),
            "authenticated-encrypted",
        )
        if PROTECTION_BITS[wanted] & ~PROTECTION_BITS[envelope.protection]:
            raise errors.Downgraded(f"{envelope.protection} where the model says {wanted}")
        if opened.authenticated:  # an unverified counter is never stored
            keys = self._keys.get(meter_id)
            assert keys.guek is not None
            if not self._counters.accept(
                title, keys.guek.fingerprint(), "push", envelope.counter or 0
            ):
                raise errors.Replayed(f"counter {envelope.counter} was heard before")
            if title and self._by_title.get(title) != meter_id:
                self._by_title[title] = meter_id
        self._raise(meter_id, model.name, notification, authenticated=opened.authenticated)

    def _raise(
        self, meter: str, model: str, notification: push.Notification, *, authenticated: bool
    ) -> None:
        found = push.alerts(notification, self._schemas[model])
        if not found:
            self.counts["no-alert"] += 1
            return
        heard = int(self._clock.now())
        moment = (
            decode_datetime(notification.event_time, self._rules[model])
            if notification.event_time
            else None
        )
        at = moment.at if moment is not None else None
        for alert in found:
            alarm = make_alarm(
                meter,
                alert.code,
                at=heard if at is None else at,
                heard=heard,
                authenticated=authenticated,
                phases=alert.phases,
                event_time=f"invoke-{notification.long_invoke_id}" if at is None else at,
                detail={"push": notification.setup, "bit": alert.number},
            )
            self.counts["alarms"] += 1
            self._journal.alarm(alarm)
