"""Who is on a line: framing, addresses, what a meter tells anybody, and which meter model fits. Nothing is configured.

DLMS meters are asked as public client (SAP 16, no authentication) for what every meter shows: system title, names,
serial, clock, invocation counters, object list. Where that does not tell two models apart both are proposed, with what
does. No password and no key is ever tried: meters lock out. Modbus units are asked for
frequency and voltages of every model; a model fits where all of them are possible values, and best where they are
near a nominal voltage.

Bounds: `budget_s` for everything, `wait_s` for each question that nobody answers. One connection or port at a time,
closed before the next is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_core.acquisition.drivers.dlms.channel import (
    DatagramChannel,
    HdlcChannel,
    WrapperChannel,
)
from edge_core.acquisition.drivers.dlms.registers import object_list, text_of
from edge_core.acquisition.drivers.modbus.line import Answered, Ask, Garbled, Silent
from edge_core.acquisition.drivers.modbus.points import Points
from edge_core.acquisition.drivers.modbus.proof import Weight, locate, weigh
from edge_core.acquisition.drivers.modbus.reader import Learned, Reader, Refused, Unanswered
from edge_core.acquisition.drivers.modbus.rtu import RtuLine, Timing
from edge_core.acquisition.drivers.modbus.tcp import TcpLine
from edge_core.acquisition.fitting import Fit, dlms_fits, told_apart
from edge_core.config.models import ModbusModel, load_model, model_names
from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.association import Association, Exchange
from edge_core.protocols.dlms.cosem import Attribute
from edge_core.protocols.dlms.datetime import (
    LOCAL_TO_UTC,
    UNSPECIFIED_DEVIATION,
    UTC_TO_LOCAL,
    ClockRules,
    decode_datetime,
)
from edge_core.protocols.dlms.refusals import Refused as SaidNo
from edge_core.protocols.dlms.terms import Terms
from edge_core.protocols.modbus import codec
from edge_core.protocols.modbus.pdu import ModbusException
from edge_core.protocols.modbus.plan import Span
from edge_core.transports import tcp, udp
from edge_core.transports.serial import SerialStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from edge_core.acquisition.drivers import Tracer
    from edge_core.acquisition.drivers.modbus.line import ModbusLine
    from edge_core.clock import Clock
    from edge_core.transports.stream import Stream

PUBLIC_CLIENT: Final = 16
WAIT_S: Final = 1.5
BUDGET_S: Final = 60.0
CLOCK: Final = "0.0.1.0.0.255"
DEVICE_NAME: Final = "0.0.42.0.0.255"
EQUIPMENT: Final = "0.0.96.1.1.255"
PUBLIC_ASSOCIATION: Final = "0.0.40.0.0.255"
SERIALS: Final = ("0.0.96.1.0.255", "0.0.96.1.2.255")
COUNTERS: Final = tuple(f"0.0.43.1.{x}.255" for x in range(7))
CLOCK_NEAR_S: Final = 1_200.0
"""A clock this near to ours tells the sign of its deviation."""
HDLC_ADDRESSES: Final = ((1, None), (1, 17), (1, 16), (1, 1))
BAUDS: Final = (9600, 19_200)
ABSENT: Final = (10, 11)
"""Exceptions of a gateway whose unit does not answer."""
NEARLY: Final = 3
"""Frequency and voltages at their nominal values, from which on a model that is read otherwise is worth a remark."""


AnyChannel = WrapperChannel | HdlcChannel | DatagramChannel


class Found(msgspec.Struct, kw_only=True):
    """One meter or unit that answered.

    Attributes:
        protocol: dlms or modbus.
        framing: as the lines of a configuration have it.
        address: as the meters of a configuration have it.
        line: further keys of the line: device, baudrate, parity, stopbits, mode_e.
        client: the client SAP that was used; 0 for Modbus.
        title: system title in hex, "" where none was told.
        serial: device serial, "" where none was told.
        name: logical device name, or maker and model.
        equipment: equipment identifier or maker, "" where none was told.
        objects: logical names that the public client is shown.
        counters: invocation counters by OBIS.
        clock: what the meter's clock says: local, deviation, sign (local-to-utc, utc-to-local or ""), off_s.
        fits: models, best first.
        notes: what could not be found out.
    """

    protocol: str
    framing: str
    address: str
    line: dict[str, Any] = {}
    client: int = 0
    title: str = ""
    serial: str = ""
    name: str = ""
    equipment: str = ""
    objects: list[str] = []
    counters: dict[str, int] = {}
    clock: dict[str, Any] = {}
    fits: list[Fit] = []
    notes: list[str] = []

    def best(self) -> list[str]:
        """The models that fit alike and best; [] where none fits."""
        return [fit.model for fit in self.fits if fit.score == self.fits[0].score]


class Budget:
    """What is left of the time."""

    def __init__(self, budget_s: float, wait_s: float) -> None:
        self._time = asyncio.get_running_loop().time
        self._end = self._time() + budget_s
        self._wait_s = wait_s

    def wait_s(self) -> float:
        """How long the next question may wait.

        Raises:
            TimeoutError: the time is over.
        """
        left = self._end - self._time()
        if left <= 0.05:
            raise TimeoutError("the time for this probe is over")
        return min(left, self._wait_s)

    @property
    def over(self) -> bool:
        """Is nothing left?"""
        return self._end - self._time() <= 0.05


@dataclasses.dataclass(slots=True)
class Target:
    """What is probed.

    Attributes:
        host: name or address; "" = a serial device.
        port: TCP port.
        device: serial device.
        bauds: speeds that are tried.
        addresses: HDLC addresses that are tried, logical and physical.
        units: Modbus units that are asked.
        mode_e: an optical head.
        datagrams: UDP alone; else TCP, and UDP where nobody takes a connection.
    """

    host: str = ""
    port: int = 0
    device: str = ""
    bauds: Sequence[int] = BAUDS
    addresses: Sequence[tuple[int, int | None]] = HDLC_ADDRESSES
    units: Sequence[int] = tuple(range(1, 11))
    mode_e: bool = False
    datagrams: bool = False

    @property
    def place(self) -> str:
        """For people."""
        return self.device or f"{self.host}:{self.port}"


async def probe(
    target: Target,
    clock: Clock,
    *,
    wait_s: float = WAIT_S,
    budget_s: float = BUDGET_S,
    tell: Callable[[str], None] = lambda _: None,
    tracer: Tracer | None = None,
) -> list[Found]:
    """Everybody who answers at the target, in the first framing in which anybody does.

    Args:
        target: where to look.
        clock: ours, to judge the meter's by.
        wait_s: longest wait for an answer.
        budget_s: longest time for all of it.
        tell: hears what is being tried.
        tracer: sees every frame.

    Raises:
        OSError: the port cannot be opened, nobody listens, no such host.
    """
    search = _Search(target, clock, Budget(budget_s, wait_s), tell, tracer)
    return await (search.serial() if target.device else search.tcp())


class _Search:
    def __init__(
        self,
        target: Target,
        clock: Clock,
        budget: Budget,
        tell: Callable[[str], None],
        tracer: Tracer | None,
    ) -> None:
        self._target, self._clock, self._budget = target, clock, budget
        self._tell, self._tracer = tell, tracer
        self._models = [load_model(name) for name in model_names()]

    # --- where

    async def tcp(self) -> list[Found]:
        if self._target.datagrams:
            return await self._datagrams()
        try:
            await (await self._connect()).close()  # is anybody there at all?
        except OSError:
            if found := await self._datagrams():
                return found
            raise
        host, port = self._target.host, self._target.port
        place = f"{host}:{port}"

        def rtu() -> ModbusLine:
            timing = Timing.of(9600, "E", 1, self._budget.wait_s())
            return RtuLine(self._connect, place, timing, self._clock)

        def mbap() -> ModbusLine:
            return TcpLine(host, port, self._clock, self._budget.wait_s())

        ways: tuple[Callable[[], Awaitable[list[Found]]], ...] = (
            self._wrapper,
            partial(self._hdlc, self._connect, f"{place}/", {}),
            partial(self._modbus, "modbus-tcp", mbap, f"{place}/", {}),
            partial(self._modbus, "modbus-rtu", rtu, f"{place}/", {}),
        )
        for way in ways:
            if self._budget.over:
                break
            if found := await way():
                return found
        return []

    async def serial(self) -> list[Found]:
        target = self._target
        if target.mode_e:
            return await self._hdlc(self._optical, "", {"device": target.device, "mode_e": True})
        for baud in target.bauds:
            for parity in ("N", "E"):
                if self._budget.over:
                    return []
                settings = {"device": target.device, "baudrate": baud, "parity": parity}
                opener = self._port(baud, parity)
                if parity == "N" and (found := await self._hdlc(opener, "", settings)):
                    return found

                def rtu(baud: int = baud, parity: str = parity, opener: Any = opener) -> ModbusLine:
                    timing = Timing.of(baud, parity, 1, self._budget.wait_s())
                    return RtuLine(opener, target.device, timing, self._clock)

                if found := await self._modbus("modbus-rtu", rtu, "", settings):
                    return found
        return []

    async def _connect(self) -> Stream:
        return await tcp.connect(
            self._target.host,
            self._target.port,
            timeout_s=min(tcp.CONNECT_TIMEOUT_S, self._budget.wait_s() * 2),
            tracer=self._tracer,
        )

    def _port(self, baud: int, parity: str) -> Callable[[], Any]:
        async def opened() -> Stream:
            return SerialStream(
                self._target.device, baudrate=baud, parity=parity, tracer=self._tracer
            )

        return opened

    async def _optical(self) -> Stream:
        from edge_core.acquisition.drivers.dlms.mode_e import sign_on
        from edge_core.config.schema import Line

        line = Line(
            id="probe",
            transport="serial",
            framing="hdlc",
            device=self._target.device,
            mode_e=True,
        )
        return await sign_on(line, self._tracer)

    # --- DLMS

    async def _wrapper(self) -> list[Found]:
        self._tell("wrapper, public client 16")
        stream = await self._connect()
        channel = WrapperChannel(stream, PUBLIC_CLIENT, 1)
        found = await self._public(channel, "wrapper", self._target.place, {})
        return [found] if found else []

    async def _datagrams(self) -> list[Found]:
        self._tell("wrapper by UDP, public client 16")
        target = self._target
        stream = await udp.connect(
            target.host, target.port, timeout_s=self._budget.wait_s() * 2, tracer=self._tracer
        )
        channel = DatagramChannel(stream, PUBLIC_CLIENT, 1)
        found = await self._public(channel, "wrapper", target.place, {"transport": "udp"})
        return [found] if found else []

    async def _hdlc(
        self, opener: Callable[[], Any], prefix: str, settings: dict[str, Any]
    ) -> list[Found]:
        out: list[Found] = []
        for logical, physical in self._target.addresses:
            if self._budget.over or (out and physical is None):
                break
            address = f"{logical}" if physical is None else f"{logical}.{physical}"
            self._tell(f"HDLC address {address}, public client 16")
            try:
                stream = await opener()
            except (TimeoutError, ProtocolError):
                return out  # no optical meter
            channel = HdlcChannel(
                stream,
                PUBLIC_CLIENT,
                logical,
                physical,
                0xFFFF,
                character_s=11 / settings.get("baudrate", 0) if "baudrate" in settings else 0.0,
            )
            try:
                await channel.connect(self._budget.wait_s(), retries=0)
            except (OSError, ProtocolError):
                await stream.close()  # who never answered needs no DISC
                continue
            found = await self._public(channel, "hdlc", prefix + address, settings)
            if found is not None:
                if all((f.serial, f.title) != (found.serial, found.title) for f in out):
                    out.append(found)
                if physical is None:
                    break  # it answers without a physical address: it is alone
        return out

    async def _public(
        self,
        channel: AnyChannel,
        framing: str,
        address: str,
        settings: dict[str, Any],
    ) -> Found | None:
        """What a meter tells the public client, or None where nobody speaks DLMS."""
        association = Association(Terms())
        found = Found(
            protocol="dlms",
            framing=framing,
            address=address,
            line=dict(settings),
            client=PUBLIC_CLIENT,
        )
        try:
            try:
                await self._run(channel, association.open())
            except SaidNo as no:
                found.notes.append(f"the public client is refused: {no}")
                return found
            await self._look(channel, association, found)
        except (OSError, ProtocolError) as broken:
            if not (found.serial or found.name or found.counters or found.clock or found.title):
                return None
            found.notes.append(f"the line broke: {broken}")
        finally:
            await channel.close()
        found.fits = dlms_fits(found, self._models)
        found.notes += told_apart(found.best(), self._models)
        return found

    async def _run(self, channel: AnyChannel, exchange: Exchange[Any]) -> Any:
        try:
            request = next(exchange)
            while True:
                wait_s = self._budget.wait_s()
                request = exchange.send(await channel.exchange(request, wait_s, 4 * wait_s))
        except StopIteration as done:
            return done.value
        finally:
            exchange.close()

    async def _look(self, channel: AnyChannel, association: Association, found: Found) -> None:
        found.title = association.meter_title.hex()

        async def get(class_id: int, obis: str) -> bytes | None:
            with contextlib.suppress(SaidNo):
                data = await self._run(channel, association.get(Attribute(class_id, obis, 2)))
                return bytes(data)
            return None

        if (data := await get(1, DEVICE_NAME)) is not None:
            found.name = text_of(data)
        if (data := await get(1, EQUIPMENT)) is not None:
            found.equipment = text_of(data)
        for obis in SERIALS:
            if not found.serial and (data := await get(1, obis)) is not None:
                found.serial = text_of(data)
        if (data := await get(8, CLOCK)) is not None:
            read_clock(data, found, self._clock.now())
        else:
            found.notes.append("the clock is not shown to the public client")
        if (data := await get(15, PUBLIC_ASSOCIATION)) is not None:
            with contextlib.suppress(ProtocolError):
                found.objects = list(object_list(axdr.decode_whole(data).plain()))
        for obis in COUNTERS:
            if (data := await get(1, obis)) is not None:
                value = axdr.decode_whole(data).value
                if isinstance(value, int):
                    found.counters[obis] = value

    # --- Modbus

    async def _modbus(
        self,
        framing: str,
        opener: Callable[[], ModbusLine],
        prefix: str,
        settings: dict[str, Any],
    ) -> list[Found]:
        out = []
        line = _Remembering(opener(), self._budget)
        try:
            for unit in self._target.units:
                if self._budget.over:
                    break
                self._tell(f"{framing} unit {unit}")
                if not await self._is_there(line, unit):
                    continue
                found = Found(
                    protocol="modbus",
                    framing=framing,
                    address=f"{prefix}{unit}",
                    line=dict(settings),
                )
                sure, most = False, 0
                for model in self._models:  # RTU meters stand behind TCP gateways too
                    if isinstance(model, ModbusModel):
                        weighed = await self._modbus_fit(line, unit, model, found)
                        if weighed is not None:
                            fit, weight = weighed
                            found.fits.append(fit)
                            sure = sure or (weight.mains and weight.nominal > 1)
                            most = max(most, weight.nominal)
                found.fits.sort(key=lambda fit: (-fit.score, fit.model))
                if not found.fits:
                    found.notes.append("frequency and voltages are at the place of no known model")
                if not sure:  # half a value beside half of its neighbour looks like a voltage too
                    found.notes += await self._nearly(line, unit, max(NEARLY, most + 1))
                out.append(found)
        finally:
            await line.close()
        return out

    async def _is_there(self, line: _Remembering, unit: int) -> bool:
        """A unit is there when it answers anything, also with an exception of its own."""
        for function in (3, 4):
            try:
                await line.read(Ask(unit, function, 0, 2, first=True))
            except ModbusException as no:
                if no.code not in ABSENT:
                    return True
            except (Silent, Garbled, TimeoutError):
                return False
            else:
                return True
        return False

    async def _modbus_fit(
        self, line: _Remembering, unit: int, model: ModbusModel, found: Found
    ) -> tuple[Fit, Weight] | None:
        base, why, score = 0, [], 0
        reader = Reader(
            line,
            unit,
            largest=model.link.max_registers_per_read,
            holes=model.link.hole_policy,
            defined=(),
            learned=Learned(),
        )
        try:
            if model.link.addressing == "sunspec_model_relative":
                place = await locate(reader, model, None)
                if place is None:
                    return None
                base, score = place.base, 10
                why.append(f"SunSpec model at {place.base}")
                found.serial = found.serial or place.common.get("serial", "")
                found.name = found.name or " ".join(
                    place.common[k] for k in ("maker", "model") if k in place.common
                )
            elif model.identify is not None:
                at = model.identify
                end = at.address + codec.words_of(at.type, None)
                words = await reader.probe(Span(at.table, at.address, end))
                code = codec.number(at.type, words, at.word_order) if words else None
                if str(code) not in at.values:
                    return None
                score = 6
                why.append(f"register {at.address} says {at.values[str(code)]}")
                if model.history is not None:
                    score += 1
                    why.append("and that kind keeps a load profile")
            weight = await weigh(Points(model, base), reader)
        except (Unanswered, Refused, Silent, Garbled, TimeoutError):
            return None
        if weight.against or not (weight.possible or score):
            return None
        if weight.possible:
            why.append(f"{weight.possible} of frequency and voltages are possible")
        fit = Fit(model.name, score + weight.possible + 2 * weight.nominal, tuple(why))
        return fit, weight

    async def _nearly(self, line: _Remembering, unit: int, least: int) -> list[str]:
        """Models of which `least` values would be nominal in the other word order, or from a base that is off by one."""
        notes = []
        for model in self._models:
            if not isinstance(model, ModbusModel) or model.link.addressing != "absolute":
                continue
            link = model.link
            reader = Reader(
                line, unit, largest=link.max_registers_per_read, holes=link.hole_policy, defined=(), learned=Learned()
            )  # fmt: skip
            own = {p.word_order for p in model.points if codec.words_of(p.type, p.length) > 1}
            other: codec.WordOrder = "little" if "big" in own else "big"
            lowest = min(p.address for p in model.points)
            for shift, order in ((0, other), (-1, None), (1, None), (-1, other), (1, other)):
                if lowest + shift < 0:
                    continue
                try:
                    weight = await weigh(Points(model, shift, order), reader)
                except (Unanswered, Refused, Silent, Garbled, TimeoutError):
                    continue
                if weight.against or weight.nominal < least:
                    continue
                changes = [f'word_order = "{order}"'] if order else []
                changes += (
                    [f"addresses {'one lower' if shift < 0 else 'one higher'}"] if shift else []
                )
                notes.append(
                    f"frequency and voltages fit {model.name} with {' and '.join(changes)}"
                )
        return notes


def read_clock(data: bytes, found: Found, now: float) -> None:
    """What a clock says, into `found`: local time, deviation, and its sign where the clock is near to ours.

    Raises:
        MalformedApdu: no value.
    """
    octets = axdr.decode_whole(data).value
    if not isinstance(octets, bytes) or len(octets) != 12:
        return
    deviation = int.from_bytes(octets[9:11], "big", signed=True)
    told = decode_datetime(octets[:9] + b"\0\0" + octets[11:], ClockRules())
    if told.at is None:
        found.notes.append("the clock holds no time")
        return
    clock: dict[str, Any] = {"local": told.local, "deviation_min": deviation, "sign": ""}
    if deviation == UNSPECIFIED_DEVIATION:
        clock["deviation_min"] = None
        found.notes.append("the clock leaves the deviation unspecified: set `zone` in the model")
    else:
        offsets = {
            name: decode_datetime(octets, ClockRules(sign)).at
            for name, sign in (("local-to-utc", LOCAL_TO_UTC), ("utc-to-local", UTC_TO_LOCAL))
        }
        off = {name: at - now for name, at in offsets.items() if at is not None}
        near = [name for name, off_s in off.items() if abs(off_s) <= CLOCK_NEAR_S]
        if len(near) == 1:
            clock["sign"], clock["off_s"] = near[0], round(off[near[0]], 1)
        elif deviation:
            found.notes.append("the clock is too far from ours to tell the sign of its deviation")
        else:
            clock["off_s"] = round(off.get("local-to-utc", 0.0), 1)
    found.clock = clock


class _Remembering:
    """A line that asks each question once; refusals are remembered too."""

    def __init__(self, line: ModbusLine, budget: Budget) -> None:
        self._line, self._budget = line, budget
        self.cost = line.cost
        self._known: dict[Ask, Answered | ModbusException | Silent | Garbled] = {}

    def owed(self, unit: int) -> frozenset[tuple[int, int]]:
        """See ModbusLine.owed."""
        return self._line.owed(unit)

    async def read(self, ask: Ask, tracer: Tracer | None = None) -> Answered:
        """See ModbusLine.read; TimeoutError when the budget is over."""
        plain = dataclasses.replace(ask, first=False, gap_s=0.0)
        if plain not in self._known:
            self._budget.wait_s()
            try:
                self._known[plain] = await self._line.read(ask, tracer)
            except (ModbusException, Silent, Garbled) as no:
                self._known[plain] = no
        known = self._known[plain]
        if isinstance(known, Exception):
            raise known
        return known

    async def close(self) -> None:
        """See ModbusLine.close."""
        await self._line.close()
