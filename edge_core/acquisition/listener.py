"""The listener: data-notifications and last gasps, by UDP and TCP, and on the lines of meters that only speak.

Meters whose model has no profiles are never asked: their line (a serial HAN port, or a serial server's TCP port) is
opened here, heard, and opened again by its path when it fails. Values become rows of kind instantaneous (`pushed`).

A last gasp is heard in one datagram and leaves at once: the journal's alarms lane hands it to the sender before its
commit. The UDP socket has a thread of its own and a large receive buffer, so that five thousand meters may gasp in
one second; what the kernel dropped all the same is counted from the socket itself.

What is believed (DESIGN section 7): the meter is found by the system title (learned at the association, or `title` in
the configuration), a push in the clear by the device that it names, else by the sender's address; the tag must verify
under that meter's keys; the counter must be new in a 64-wide window; the protection must be at least what the model's
push setup says. Everything else is counted by its cause and goes nowhere.

A meter that only speaks and falls silent is told once, and once when it is back (`silence`).

Limits: a datagram or WPDU has MAX_APDU octets; MAX_STREAMS TCP senders at a time, each silent for at most STREAM_S, and
as many UDP senders whose push comes in pieces.
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
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from edge_core import errors
from edge_core.acquisition.pushed import Values
from edge_core.acquisition.senders import Senders
from edge_core.acquisition.silence import Silences, expected_of
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
from edge_core.protocols.dlms.push_frames import PushFrames
from edge_core.protocols.dlms.security import SecurityContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Future

    from edge_core.acquisition.drivers import Counters
    from edge_core.clock import Clock
    from edge_core.config.keys import KeyRing
    from edge_core.config.models import PushSetup
    from edge_core.config.schema import Config, Line, Meter
    from edge_core.journal import Journal
    from edge_core.journal.datadir import Memories
    from edge_core.transports.stream import Stream

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 << 20
MAX_DATAGRAM = 65_535
MAX_APDU = 16_384
MAX_STREAMS = 256
WRAPPER = 8  # octets of its header
STREAM_S = 120.0
RECENT_SENDERS = 4096
BIND_AGAIN_S = 2.0
LINE_PAUSE_S = 0.5
LINE_PAUSE_MAX_S = 30.0
LOOK_S = 1.0
SO_RXQ_OVFL = 40  # Linux: the kernel adds its drop count to each datagram
SO_RCVBUFFORCE = 33

PROTECTION_BITS = {"none": 0, "authenticated": 1, "encrypted": 2, "authenticated-encrypted": 3}


def line_name(line: str) -> str:
    """How a line that is only heard is named as a sender."""
    return f"line {line}"


def _same(envelope: push.Envelope) -> push.Envelope:
    return envelope


class Listener:
    """Hears what meters say unasked.

    Attributes:
        counts: heard, alarms, repeated, and one count per cause of refusal: malformed, unknown-sender, tag-invalid,
            replayed, downgraded, no-keys, no-alert, kernel-drops; lines-opened; values, and for pushes of values that made no row
            no-values, no-device, wrong-meter, thinned, not-stored; silent, and back for meters that only speak.
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
        self._senders = Senders(config.meters, memories.get, clock)
        self._schemas: dict[str, push.Schemas] = {}
        self._rules: dict[str, ClockRules] = {}
        self._contexts: OrderedDict[str, SecurityContext] = OrderedDict()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._servers: list[asyncio.Server] = []
        self._streams: set[asyncio.Task[None]] = set()
        self._closing = False
        self._pieces: OrderedDict[tuple[str, int], PushFrames] = OrderedDict()
        self._pieces_lock = threading.Lock()
        self._values = Values(memories.get, memories.put)
        self._lines: list[asyncio.Task[None]] = []
        expected: dict[str, int] = {}
        for meter in config.meters.values():
            model = config.models[meter.model]
            if isinstance(model, DlmsModel):
                self._know(meter, model)
                expected[meter.id] = expected_of(model)
        self.silences = Silences(expected, memories.get, memories.put, clock)

    def _know(self, meter: Meter, model: DlmsModel) -> None:
        self._senders.know(meter.id, title=bytes.fromhex(meter.title), device=meter.serial)
        if not model.profiles:
            self._senders.know(meter.id, place=line_name(meter.line))
        self._senders.know(meter.id, place=self._config.address_of(meter).host)
        if model.name not in self._schemas:
            self._schemas[model.name] = push.schemas_of(model.push)
            self._rules[model.name] = ClockRules(
                UTC_TO_LOCAL if model.time.deviation == "utc-to-local" else LOCAL_TO_UTC,
                ZoneInfo(model.time.zone) if model.time.zone else self._zone,
            )

    # --- sockets

    async def start(self) -> None:
        """Bind every address of [push] listen; one that another program holds is tried again until it is free."""
        for url in self._config.push.listen:
            try:
                await self._bind(url)
            except OSError as error:
                events.push_port_taken(url, error.strerror or str(error))
                task = asyncio.create_task(self._bind_later(url), name=f"push {url}")
                self._lines.append(task)
        for name in dict.fromkeys(
            m.line for m in self._config.meters.values() if self._only_speaks(m)
        ):
            line = self._config.lines[name]
            if line.transport != "udp":
                task = asyncio.create_task(self._hear_line(line), name=f"push line {name}")
                self._lines.append(task)
        if self.silences.watched:
            task = asyncio.create_task(self._watch_silence(), name="push silence")
            self._lines.append(task)

    async def _watch_silence(self) -> None:
        """Tell who fell silent, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for meter, quiet_s in self.silences.overdue():
                line = self._config.meters[meter].line
                error = errors.LineSilent(
                    meter,
                    line,
                    "push",
                    f"nothing was heard for {quiet_s:.0f} s",
                    "Is the port enabled, is the adapter plugged in, does the meter have power?",
                )
                self.counts["silent"] += 1
                events.meter_lost(meter, error)
                self._own_alarm(meter, "meter-silent", {"cause": str(error)})

    def _own_alarm(self, meter: str, code: str, detail: dict[str, Any]) -> None:
        """An alarm of ours about a meter, now."""
        now = int(self._clock.now())
        alarm = make_alarm(
            meter, code, at=now, heard=now, authenticated=False, inferred=True, detail=detail
        )
        self._journal.alarm(alarm)

    async def _bind(self, url: str) -> None:
        """One address of [push] listen.

        Raises:
            OSError: it cannot be bound.
        """
        scheme, _, place = url.partition("://")
        host, _, port = place.rpartition(":")
        host = host.strip("[]")
        if scheme == "udp":
            self._listen_udp(host, int(port))
        else:
            server = await asyncio.start_server(self._accept, host, int(port), limit=MAX_APDU * 2)
            self._servers.append(server)

    async def _bind_later(self, url: str) -> None:
        """Outside faults never end the process: the port is asked for until it is ours."""
        while True:
            await asyncio.sleep(BIND_AGAIN_S)
            try:
                await self._bind(url)
            except OSError:
                continue
            events.push_port_bound(url)
            return

    def _only_speaks(self, meter: Meter) -> bool:
        model = self._config.models[meter.model]
        return isinstance(model, DlmsModel) and not model.profiles

    async def _hear_line(self, line: Line) -> None:
        """A line that is only listened to, for ever; opened again, by its path or address, when it fails."""
        pause_s = LINE_PAUSE_S
        told = ""
        while True:
            try:
                stream = await self._open_line(line)
                self.counts["lines-opened"] += 1
                try:
                    async for _ in self._heard_on(line, stream):
                        pause_s, told = LINE_PAUSE_S, ""
                finally:
                    await stream.close()
            except (OSError, errors.ProtocolError) as error:
                if str(error) != told:  # once until it changes or the line is back
                    log.warning("line %s: %s; it is opened again", line.id, error)
                    told = str(error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LINE_PAUSE_MAX_S)

    async def _open_line(self, line: Line) -> Stream:
        if line.transport == "serial":
            from edge_core.transports.serial import SerialStream

            return SerialStream(
                line.device, baudrate=line.baudrate, parity=line.parity, stopbits=line.stopbits
            )
        from edge_core.transports import tcp

        meter = next(m for m in self._config.meters.values() if m.line == line.id)
        address = self._config.address_of(meter)
        return await tcp.connect(address.host, address.port)

    async def _heard_on(self, line: Line, stream: Stream) -> AsyncIterator[None]:
        """Yields after each stretch of octets that was heard."""
        frames = PushFrames("serial" if line.framing == "hdlc" else line.framing)
        sender = line_name(line.id)
        while True:
            try:
                octets = await stream.read(STREAM_S)
            except TimeoutError:
                frames.silent()
                continue
            before = frames.damaged
            for envelope in frames.feed(octets):
                self._guarded(functools.partial(_same, envelope), sender)
            for _ in range(frames.damaged - before):
                self._drop("malformed", sender)
            yield

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
        try:
            receiver.bind((host, port))
        except OSError:
            receiver.close()
            raise
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
        frames = PushFrames()
        try:
            while len(self._streams) <= MAX_STREAMS:
                async with asyncio.timeout(STREAM_S):
                    octets = await reader.read(65_536)
                if not octets:
                    return
                damaged = frames.damaged
                for envelope in frames.feed(octets):
                    self._guarded(functools.partial(_same, envelope), sender)
                for _ in range(frames.damaged - damaged):
                    self._drop("malformed", sender)
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
        tasks = [*self._streams, *self._lines]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
        if datagram[:1] in (b"\x7e", b"\x68") or datagram[WRAPPER:][:1] == b"\xe0":
            self._hear_in_pieces(datagram, sender)
            return
        self._guarded(functools.partial(push.open_datagram, datagram), sender)

    def _hear_in_pieces(self, datagram: bytes, sender: str) -> None:
        """Frames of a serial line, or blocks of a general block transfer: several datagrams may make one push."""
        key = (sender, datagram[0])
        with self._pieces_lock:
            frames = self._pieces.pop(key, None) or PushFrames()
            damaged = frames.damaged
            try:
                envelopes = frames.feed(datagram)
            except errors.ProtocolError:
                self._drop("malformed", sender)
                return
            self._pieces[key] = frames
            while len(self._pieces) > MAX_STREAMS:
                self._pieces.popitem(last=False)
        for _ in range(frames.damaged - damaged):
            self._drop("malformed", sender)
        for envelope in envelopes:
            self._guarded(functools.partial(_same, envelope), sender)

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
        candidates = self._senders.candidates(
            envelope, sender, line=sender.startswith(line_name(""))
        )
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
        known = self._setup_of(model, notification)
        wanted = known.protection if known is not None else "authenticated-encrypted"
        if PROTECTION_BITS[wanted] & ~PROTECTION_BITS[envelope.protection]:
            raise errors.Downgraded(f"{envelope.protection} where the model says {wanted}")
        if opened.authenticated:  # an unverified counter is never stored
            keys = self._keys.get(meter_id)
            assert keys.guek is not None
            if not self._counters.accept(
                title, keys.guek.fingerprint(), "push", envelope.counter or 0
            ):
                raise errors.Replayed(f"counter {envelope.counter} was heard before")
            self._senders.know(meter_id, title=title)
        silent_s = self.silences.heard(meter_id)
        if silent_s is not None:
            self.counts["back"] += 1
            events.meter_back(meter_id, silent_s, 1)
            self._own_alarm(meter_id, "meter-back", {"silent_s": round(silent_s)})
        setup = self._setup_of(model, notification)
        if setup is not None and setup.carries == "values":
            self._keep(meter, model, setup, notification, authenticated=opened.authenticated)
        else:
            self._raise(meter_id, model.name, notification, authenticated=opened.authenticated)

    @staticmethod
    def _setup_of(model: DlmsModel, notification: push.Notification) -> PushSetup | None:
        """The push setup that a notification names, else the only one that the model has."""
        for setup in model.push.values():
            if str(setup.obis) == notification.setup:
                return setup
        setups = list(model.push.values())
        return setups[0] if len(setups) == 1 and not notification.setup else None

    def _keep(
        self,
        meter: Meter,
        model: DlmsModel,
        setup: PushSetup,
        notification: push.Notification,
        *,
        authenticated: bool,
    ) -> None:
        """Pushed values to the journal."""
        block, why = self._values.block(
            meter,
            model,
            setup,
            notification,
            self._rules[model.name],
            now=self._clock.now(),
            synchronised=self._clock.synchronised(),
            authenticated=authenticated,
        )
        if block is None:
            self.counts[why] += 1
            return
        self.counts["values"] += 1
        self._journal.append(block, durable="soon").add_done_callback(self._stored)

    def _stored(self, done: Future[Any]) -> None:
        if not done.cancelled() and done.exception() is not None:
            self.counts["not-stored"] += 1

    def _raise(
        self, meter: str, model: str, notification: push.Notification, *, authenticated: bool
    ) -> None:
        found = self._news(meter, notification, self._schemas[model])
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
                detail={"push": notification.setup, "word": alert.word, "bit": alert.number},
            )
            self.counts["alarms"] += 1
            self._journal.alarm(alarm)

    def _news(
        self, meter: str, notification: push.Notification, schemas: push.Schemas
    ) -> tuple[push.Alert, ...]:
        """What a push says that the one before it did not; all of it, where nothing of it is new: it was sent for a reason."""
        words = push.latched(notification, schemas)
        if not words:
            return push.alerts(notification, schemas)
        before = {obis: self._memories.get(meter, f"latched.{obis}") or 0 for obis in words}
        for obis, value in words.items():
            self._memories.put(meter, f"latched.{obis}", value or None)
        return push.alerts(notification, schemas, before) or push.alerts(notification, schemas)
