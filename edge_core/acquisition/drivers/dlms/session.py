"""One session with one meter: line, counters, association, and errors in a field engineer's words.

A session opens the line, brings our invocation counter above the meter's (once per process and meter, as public client
on a connection of its own), associates, and runs operations of `protocols.dlms.association` over the line.

Invariants: a counter is on disk before it is used; after a refusal that a low counter may explain, the meter's counter
is read once more and the association tried once more, never in a loop; an unauthenticated counter near the end of the
range is never adopted. Every error of line and protocol becomes a `MeterError` here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edge_core.acquisition.causes import refusal_of
from edge_core.acquisition.drivers.dlms import credentials
from edge_core.acquisition.drivers.dlms.channel import (
    DatagramChannel,
    HdlcChannel,
    WrapperChannel,
)
from edge_core.acquisition.drivers.dlms.explaining import Visited, explained
from edge_core.config.values import parse_address
from edge_core.errors import (
    KeyRejected,
    LineSilent,
    MeterError,
    MeterRefused,
    ProtocolError,
)
from edge_core.health import events
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.association import Association, Exchange
from edge_core.protocols.dlms.codes import Conformance, Mechanism
from edge_core.protocols.dlms.cosem import Attribute
from edge_core.protocols.dlms.refusals import (
    ExceptionAnswered,
)
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    AUTHENTICATED_ENCRYPTED,
    ENCRYPTED,
    SecurityContext,
)
from edge_core.protocols.dlms.states import State
from edge_core.protocols.dlms.terms import Terms
from edge_core.transports import tcp, udp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_core.acquisition.drivers import Counters, Site, Tracer
    from edge_core.config.keys import MeterKeys
    from edge_core.config.models import DlmsModel
    from edge_core.config.schema import Line, Meter
    from edge_core.domain import Secret
    from edge_core.protocols.dlms.general import KeyPairs
    from edge_core.transports.stream import Stream

T = TypeVar("T")
AnyChannel = WrapperChannel | HdlcChannel | DatagramChannel

SILENCE_S: Final = 10.0
"""Longest silence after a request, where the line says nothing else."""
SERIAL_SILENCE_S: Final = 3.0
"""The same on a serial line, after our last octet has left: a silent meter keeps the others of the bus waiting."""
WHOLE_S: Final = 60.0
"""Longest time that one answer may take to arrive whole."""
RELEASE_S: Final = 2.0
BUS_S: Final = 300.0
"""Longest wait for others on the same bus."""
COUNTERS_AT_ONCE: Final = 200
KEPT_TERMS: Final = 64
COUNTERS_LEAST: Final = COUNTERS_AT_ONCE // 4
CHALLENGE_OCTETS: Final = 16
COUNTER_JUMP: Final = 65_536
COUNTER_LIMIT: Final = 2**32 - 2**24
"""A counter read without authentication is not believed above this: following it would use up the key."""

_MECHANISMS: Final = {
    "none": Mechanism.NONE,
    "lls": Mechanism.LLS,
    "hls2": Mechanism.HLS2,
    "hls3": Mechanism.HLS3_MD5,
    "hls4": Mechanism.HLS4_SHA1,
    "hls5": Mechanism.HLS5_GMAC,
    "hls6": Mechanism.HLS6_SHA256,
    "hls7": Mechanism.HLS7_ECDSA,
}
_LEVELS: Final = {
    "none": 0,
    "authenticated": AUTHENTICATED,
    "encrypted": ENCRYPTED,
    "authenticated-encrypted": AUTHENTICATED_ENCRYPTED,
}

_synchronised: weakref.WeakKeyDictionary[Any, set[tuple[str, bytes, str]]] = (
    weakref.WeakKeyDictionary()
)
"""Per counter store: (meter, our title, key fingerprint) whose counter was compared with the meter's."""


_terms: dict[tuple[int, bytes, Mechanism, int], tuple[DlmsModel, Terms]] = {}
_ended: dict[str, float] = {}
"""When the last session ended, of meters that want a pause then."""
_buses: weakref.WeakValueDictionary[tuple[str, int], asyncio.Lock] = weakref.WeakValueDictionary()
"""Who speaks on the HDLC bus behind a host:port; each session keeps its lock alive."""


class Session:
    """A line and an association with one meter; see `drivers.open_driver` for the arguments."""

    def __init__(
        self,
        meter: Meter,
        line: Line,
        model: DlmsModel,
        keys: MeterKeys,
        counters: Counters | None,
        tracer: Tracer | None,
        site: Site,
    ) -> None:
        self.meter, self.line, self.model = meter, line, model
        self._keys, self._counters, self._tracer = keys, counters, tracer
        self._channel: AnyChannel | None = None
        self._bus: asyncio.Lock | None = None
        self._reserved = 0
        self._marked: tuple[str, bytes, str] | None = None
        self._opening: Association | None = None
        self.association: Association | None = None
        self.address = parse_address(
            meter.address, transport=line.transport, framing=line.framing, shared=line.address
        )
        self.place = f"{line.id}, {line.transport} {self.address}"
        serial = line.transport == "serial"
        self.silence_s = line.timeout_s or (SERIAL_SILENCE_S if serial else SILENCE_S)
        bits = 9 + line.stopbits + (line.parity != "N" and not line.mode_e)
        self._character_s = bits / line.baudrate if serial else 0.0
        self._whole_s = WHOLE_S + model.association.max_pdu_size * self._character_s
        self.foreign_counter: tuple[int, int] | None = None
        self.answered: Callable[[], None] | None = None  # called once, at the first answer
        security = meter.security or model.association.security
        self.mechanism = _MECHANISMS[security]
        self.level = self._level(security)
        override = model.association.system_title
        self.title = bytes.fromhex(override) if override else site.title

    def _level(self, security: str) -> int:
        """Bits of protection: the model's for the model's own mechanism, else what the mechanism needs."""
        association = self.model.association
        if security == association.security:
            return _LEVELS[association.protection] if association.ciphering != "none" else 0
        return AUTHENTICATED_ENCRYPTED if security == "hls5" else 0

    @property
    def authenticated(self) -> bool:
        """Do answers carry a tag that was verified?"""
        return bool(self.level & AUTHENTICATED)

    @property
    def open(self) -> bool:
        """Is there an association that can be used?"""
        return self.association is not None and self.association.state is State.READY

    @property
    def alive(self) -> bool:
        """Is it open, and the line not ended by the other side, as far as we have heard?"""
        return self.open and isinstance(self._channel, WrapperChannel) and not self._channel.ended

    # --- opening

    async def associate(self) -> Association:
        """Open the line and associate, if that is not done yet.

        Raises:
            MeterError: LineSilent, KeyRejected, MeterRefused, MalformedReply.
        """
        if self.association is not None:
            if self.association.state is State.READY:
                return self.association
            await self.close()
        mark = self._mark()
        fresh = mark is not None and mark not in self._marks()
        if mark is not None and fresh:
            await self._synchronise(mark)
        try:
            return await self._associate_once()
        except MeterError as error:
            await self.close()
            if mark is None or not _counter_may_explain(error):
                if isinstance(error, LineSilent) and error.during == "AARQ":
                    # some meters say nothing to a low counter: the next visit compares before it asks
                    self._marks().discard(mark)
                raise
        self._marks().discard(mark)
        if not fresh:
            await self._synchronise(mark)
        try:
            return await self._associate_once()
        except MeterError as error:
            await self.close()
            if isinstance(error, LineSilent) and _counter_may_explain(error):
                raise self._closed_on_aarq() from error
            raise

    def _closed_on_aarq(self) -> KeyRejected:
        return KeyRejected(
            self.meter.id,
            self.place,
            "AARQ",
            "the meter answers the public client, but closes the line on our ciphered AARQ",
            f"Its invocation counter is not the reason. Check guek and gak of {self.meter.id} in the key file, the "
            f"client SAP {self._client()} and our system title {self.title.hex()}",
        )

    async def _associate_once(self) -> Association:
        association = self._new_association()
        self._opening = association
        during = "AARQ"
        if self.level or self.mechanism is Mechanism.HLS5_GMAC:
            await self._reserve(during)
        channel = await self._connect(self._client())
        challenge = os.urandom(CHALLENGE_OCTETS) if self.mechanism > Mechanism.LLS else b""
        await self._pump(channel, association.open(challenge), during)
        self.association = association
        return association

    def _client(self) -> int:
        return self.meter.client or self.model.association.client

    def _new_association(self) -> Association:
        model, keys = self.model.association, self._keys
        context = None
        if self.level or self.mechanism is Mechanism.HLS5_GMAC:
            guek = self._need_key(keys.guek, "guek")
            with self.step("keys"):
                context = credentials.context(model.suite, guek, keys.gak)
        secret = None
        if self.mechanism is Mechanism.LLS:
            secret = self._need_key(keys.password, "password")
        elif self.mechanism not in (
            Mechanism.NONE,
            Mechanism.HLS5_GMAC,
            Mechanism.HLS7_ECDSA,
        ):
            secret = self._need_key(keys.hls, "hls")
        ciphering = model.ciphering if model.ciphering != "none" else "glo"
        dedicated_key = dedicated = None
        if self.level and ciphering in ("ded", "general-ded"):
            from edge_core.domain import Secret as Key

            dedicated_key = Key(os.urandom(32 if model.suite == 2 else 16))
            dedicated = SecurityContext(model.suite, dedicated_key, keys.gak)
        return Association(
            self._terms(),
            next_counter=self._next_counter if context is not None else None,
            context=context,
            secret=secret,
            accept=self._accept if not self.model.quirks.counter_restarts else None,
            dedicated=dedicated,
            dedicated_key=dedicated_key,
            pairs=self._pairs(),
        )

    def _terms(self) -> Terms:
        """What the associations of all meters of one model have in common; made once."""
        key = (id(self.model), self.title, self.mechanism, self.level)
        found = _terms.get(key)
        if found is None:
            model, quirks = self.model.association, self.model.quirks
            conformance = Terms().conformance
            ciphering = model.ciphering if model.ciphering != "none" else "glo"
            if quirks.general_block_transfer:
                conformance |= Conformance.GENERAL_BLOCK_TRANSFER
            terms = Terms(
                title=self.title,
                mechanism=self.mechanism,
                level=self.level,
                ciphering=ciphering if self.level else "none",
                key_info=model.key_info,
                signed=model.signed,
                object=model.object,
                max_pdu=model.max_pdu_size,
                release=model.release,
                conformance=conformance,
                bare_conformance=quirks.bare_conformance,
            )
            if len(_terms) >= KEPT_TERMS:
                _terms.clear()
            found = _terms[key] = self.model, terms  # with the model, so that its id stays its own
        return found[1]

    def _pairs(self) -> KeyPairs | None:
        """The key pairs of suites 1 and 2, where something of this association needs them."""
        needed = credentials.pairs_needed(
            self.model.association, self.mechanism, ciphered=self.level != 0
        )
        if needed is None:
            return None
        for name in needed:
            self._need_key(getattr(self._keys, name), name)
        with self.step("keys"):
            return credentials.key_pairs(self.model.association.suite, self._keys)

    def _need_key(self, key: Secret | None, name: str) -> Secret:
        if key is None:
            raise KeyRejected(
                self.meter.id,
                self.place,
                "keys",
                f"the key {name} is missing",
                f"Write {name} into the table [{self.meter.id}] of the key file",
            )
        return key

    # --- the line

    async def _connect(self, client: int) -> AnyChannel:
        """Open the line for a client SAP."""
        await self._close_channel()
        with self.step("connect"):
            await self._pause()
            await self._take_bus()
            stream = await self._stream()
            limit = self.model.association.max_pdu_size
            if self.line.framing == "hdlc":
                hdlc = HdlcChannel(
                    stream,
                    client,
                    self.address.logical or 1,
                    self.address.physical,
                    max(limit, 0xFFFF),
                    self.line.turnaround_ms / 1000,
                    self._character_s,
                    self.model.quirks.hdlc_window,
                )
                self._channel = hdlc
                await hdlc.connect(self.silence_s)
            else:
                server = self.address.logical if self.address.logical is not None else 1
                if server == 1:
                    server = self.model.association.server
                kind = DatagramChannel if self.line.transport == "udp" else WrapperChannel
                self._channel = kind(stream, client, server)
        return self._channel

    async def _pause(self) -> None:
        """Leave the meter alone for as long after its last session as its model says."""
        since = asyncio.get_running_loop().time() - _ended.get(self.meter.id, float("-inf"))
        await asyncio.sleep(max(0.0, self.model.quirks.link_pause_s - since))

    async def _take_bus(self) -> None:
        """Wait until nobody else speaks on the bus behind this host:port: HDLC has one speaker at a time."""
        if self.line.framing != "hdlc" or self.line.transport != "tcp":
            return  # a serial port is opened exclusively
        place = (self.address.host, self.address.port)
        lock = _buses.get(place)
        if lock is None:
            lock = _buses[place] = asyncio.Lock()
        try:
            async with asyncio.timeout(BUS_S):
                await lock.acquire()
        except TimeoutError:
            raise TimeoutError(f"others held the line for {BUS_S:g} s") from None
        self._bus = lock

    async def _stream(self) -> Stream:
        line = self.line
        if line.transport == "serial" and line.mode_e:
            from edge_core.acquisition.drivers.dlms.mode_e import sign_on

            optical = await sign_on(line, self._tracer)
            self._character_s = (9 + line.stopbits) / optical.baudrate
            return optical
        if line.transport == "serial":
            from edge_core.transports.serial import SerialStream

            return SerialStream(
                line.device,
                baudrate=line.baudrate,
                parity=line.parity,
                stopbits=line.stopbits,
                tracer=self._tracer,
            )
        if line.transport == "udp":
            return await udp.connect(
                self.address.host,
                self.address.port,
                timeout_s=min(tcp.CONNECT_TIMEOUT_S, self.silence_s),
                tracer=self._tracer,
            )
        return await tcp.connect(
            self.address.host,
            self.address.port,
            timeout_s=min(tcp.CONNECT_TIMEOUT_S, self.silence_s),
            tracer=self._tracer,
            # a line that is always waited on needs none
            keep_alive=bool(self.model.association.keep_s),
        )

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        try:
            if channel is not None:
                await channel.close()
                if self.model.quirks.link_pause_s:
                    _ended[self.meter.id] = asyncio.get_running_loop().time()
        finally:
            bus, self._bus = self._bus, None
            if bus is not None:
                bus.release()

    async def run(self, exchange: Exchange[T], during: str) -> T:
        """Run one operation of the association.

        Args:
            exchange: the operation.
            during: the step for errors, in the standard's terms.

        Raises:
            MeterError.
        """
        channel = self._channel
        if channel is None:
            raise LineSilent(self.meter.id, self.place, during, "the line is closed")
        return await self._pump(channel, exchange, during)

    async def _pump(
        self, channel: AnyChannel, exchange: Exchange[T], during: str, most_s: float = 0.0
    ) -> T:
        """Carry requests and answers of an operation; no answer is waited for longer than `most_s`, 0 = as usual."""
        silence_s, whole_s = self.silence_s, self._whole_s
        if most_s:
            silence_s, whole_s = min(silence_s, most_s), min(whole_s, most_s)
        # no `with self.step`: a context manager per exchange is a tenth of its cost
        try:
            if 0 < self._reserved <= COUNTERS_LEAST:
                await self._reserve(during)
            request = next(exchange)
            while True:
                reply = await channel.exchange(request, silence_s, whole_s)
                if self.answered is not None:
                    tell, self.answered = self.answered, None
                    tell()
                if 0 < self._reserved <= COUNTERS_LEAST:
                    await self._reserve(during)
                request = exchange.send(reply)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        except (OSError, ProtocolError) as cause:
            raise self._failed(during, cause, channel) from cause
        finally:
            exchange.close()

    async def close(self) -> None:
        """Release the association where the model wants it, and the line; never raises."""
        association, self.association = self.association, None
        channel = self._channel
        if association is not None and channel is not None and association.state is State.READY:
            with contextlib.suppress(Exception):
                await self._pump(channel, association.release(), "RLRQ", RELEASE_S)
        with contextlib.suppress(Exception):
            await self._close_channel()
        self._opening = (
            None  # it calls us back for counters: a cycle that would wait for the collector
        )

    # --- counters

    def _mark(self) -> tuple[str, bytes, str] | None:
        """What a synchronised counter belongs to; None where no counter is used."""
        if not self.level and self.mechanism is not Mechanism.HLS5_GMAC:
            return None
        if self._marked is None:
            guek = self._need_key(self._keys.guek, "guek")
            self._marked = self.meter.id, self.title, guek.fingerprint()
        return self._marked

    def _marks(self) -> set[tuple[str, bytes, str]]:
        assert self._counters is not None
        return _synchronised.setdefault(self._counters, set())

    async def _synchronise(self, mark: tuple[str, bytes, str]) -> None:
        """Bring our counter above the meter's view of it."""
        _, title, fingerprint = mark
        counters = self._counters
        if counters is None:
            raise KeyRejected(self.meter.id, self.place, "counters", "there is no counter store")
        obis = self.model.association.counter
        theirs: int | None = None
        if obis:
            theirs = await self._read_counter(obis)
        ours = counters.current(title, fingerprint)
        if theirs is None and obis and ours is None:
            raise KeyRejected(
                self.meter.id,
                self.place,
                f"GET {obis}:2",
                "the meter does not tell its invocation counter, and ours is not known",
                "A guessed counter may be refused or repeat one. Check `counter` of the meter model",
            )
        if theirs is not None and theirs > COUNTER_LIMIT:
            raise KeyRejected(
                self.meter.id,
                self.place,
                f"GET {obis}:2",
                f"the meter claims invocation counter {theirs}, near the end of the range",
                "This value is not authenticated. If it is true the key must be changed",
            )
        if theirs is not None and ours is not None and theirs >= ours:
            self.foreign_counter = (ours, theirs)
        at_least = 0 if theirs is None else theirs + 1
        if ours is None:  # a file that was lost may have used counters that the meter never saw
            at_least += COUNTER_JUMP
        await self._prepare(title, fingerprint, at_least, "counters")
        self._marks().add(mark)

    async def _read_counter(self, obis: str) -> int | None:
        """The meter's last accepted counter, as public client; None if it will not tell."""
        during = f"GET {obis}:2 as public client"
        public = Association(Terms(max_pdu=self.model.association.max_pdu_size))
        channel = await self._connect(self.model.association.counter_client)
        try:
            await self._pump(channel, public.open(), "AARQ as public client")
            data = await self._pump(channel, public.get(Attribute(1, obis, 2)), during)
        except MeterRefused:
            return None
        finally:
            self.association = None
            await self._close_channel()
        with self.step(during):
            value = axdr.decode_whole(data).value
            if not isinstance(value, int) or not 0 <= value < 2**32:
                raise ProtocolError(f"an invocation counter of type {type(value).__name__}")
            return value

    async def _reserve(self, during: str) -> None:
        """Have counters on disk for what comes next."""
        if self._reserved > COUNTERS_LEAST:
            return
        mark = self._mark()
        if mark is not None:
            await self._prepare(mark[1], mark[2], 0, during)

    async def _prepare(self, title: bytes, fingerprint: str, at_least: int, during: str) -> None:
        assert self._counters is not None
        with self.step(during):
            future = self._counters.prepare(title, fingerprint, at_least, COUNTERS_AT_ONCE)
            if future.done():  # the usual case: enough were reserved before
                future.result()
            else:
                await asyncio.wrap_future(future)
        self._reserved = COUNTERS_AT_ONCE

    def _next_counter(self) -> int:
        assert self._counters is not None
        mark = self._marked or self._mark()
        assert mark is not None
        self._reserved -= 1
        return self._counters.next(mark[1], mark[2])

    def _accept(self, title: bytes, counter: int) -> bool:
        assert self._counters is not None
        mark = self._marked or self._mark()
        assert mark is not None
        return self._counters.accept(title, mark[2], "association", counter)

    # --- errors

    @contextlib.contextmanager
    def step(self, during: str, channel: AnyChannel | None = None) -> Iterator[None]:
        """Turn what goes wrong in a step into a MeterError that names meter, line, step and cause."""
        try:
            yield
        except MeterError:
            raise
        except (OSError, ProtocolError) as cause:
            raise self._failed(during, cause, channel) from cause

    def _failed(
        self, during: str, cause: OSError | ProtocolError, channel: AnyChannel | None
    ) -> MeterError:
        """What a step raises; an answer that was refused is counted."""
        refused = refusal_of(cause)
        if refused:
            events.answer_refused(self.meter.id, refused, during)
        return self.explain(during, cause, channel)

    def explain(
        self,
        during: str,
        cause: OSError | ProtocolError,
        channel: AnyChannel | None = None,
    ) -> MeterError:
        """The MeterError that tells a field engineer what went wrong in a step."""
        # once an answer verified, the keys are right: what fails after it was altered on its way
        proven = self._opening is not None and self._opening.peer_counter >= 0
        return explained(
            Visited(
                self.meter.id,
                self.place,
                self.model.name,
                self._client(),
                self.mechanism,
                ciphered=self.level != 0,
                proven=proven,
                heard=channel is not None and channel.heard > 0,
            ),
            during,
            cause,
        )


def _counter_may_explain(error: MeterError) -> bool:
    """May a counter below the meter's be the reason? It answers with an exception, or closes without an octet."""
    if isinstance(error.__cause__, ExceptionAnswered):
        return True
    cause = error.__cause__
    return (
        isinstance(error, LineSilent)
        and isinstance(cause, ConnectionError)
        and error.during == "AARQ"
        and not error.cause.endswith("answer")
    )
