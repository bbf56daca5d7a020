"""The Modbus driver: one session with one unit, from identification to sampled profiles.

A Modbus meter (with few exceptions, whose models have a table [history]: `history.py`) remembers nothing: its cumulative registers are read at the boundary and stand
for the row that a load profile would hold, flagged SAMPLED. The row carries its nominal boundary as time, and in `q`
when it was really sampled (`at`, the middle of the exchange) and between which instants the meter can have latched it
(`bound`, both in epoch milliseconds): at a power P the register at the boundary differs from the row by at most
P x (distance of the bound). Intervals are differences of rows, so they telescope exactly.

Identity: the serial of the nameplate where the model has one, else the configured serial, else `unit-<n>`. A counter
that falls, and is confirmed by a second reading, begins a new series: `device` becomes `<serial>/<k>`, so that no
negative interval can arise. A fall from above 90 % to below 10 % of a counter's range is a roll-over, noted in `q`.
On first contact, and daily, the model is proven: identification code, then frequency and voltage; a wrong word order
or address base is named, and nothing is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from edge_core.acquisition.drivers import Device, Site
from edge_core.acquisition.drivers.modbus import proof
from edge_core.acquisition.drivers.modbus.blocks import Blocks
from edge_core.acquisition.drivers.modbus.history import Unusable, Window, last_period
from edge_core.acquisition.drivers.modbus.points import COARSE, SERIAL, Points, Sum, clock_of
from edge_core.acquisition.drivers.modbus.pool import Lease
from edge_core.acquisition.drivers.modbus.reader import Learned, Reader, Refused, Unanswered
from edge_core.acquisition.drivers.modbus.series import Counter, Series
from edge_core.acquisition.drivers.modbus.window import Channel
from edge_core.acquisition.profiles import profile_of
from edge_core.config.history import PeriodHistory
from edge_core.config.values import parse_address
from edge_core.domain import RegisterReading
from edge_core.errors import LineSilent, MalformedReply, MeterError, MeterRefused, WrongMeter
from edge_core.protocols.modbus import codec
from edge_core.protocols.modbus.plan import Span
from edge_core.schedule.calendar import at_civil_minute, midnight_at_or_before

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from edge_core.acquisition.drivers import Memory, ProfileRequest, Tracer
    from edge_core.acquisition.drivers.modbus.reader import Bulk
    from edge_core.clock import Clock
    from edge_core.config.models import ModbusModel, Point
    from edge_core.config.schema import Line, Meter
    from edge_core.domain import Block

EARLY = 0.02  # of a period: a sample that much before a boundary belongs to it
PROVEN_S = 86_400
RELEARN_S = 7 * 86_400
GATEWAY_SILENT = (10, 11)


class Driver:
    """See `edge_core.acquisition.drivers.Driver`.

    Args:
        meter: which, and where.
        line: its line.
        model: its model.
        keys: unused: Modbus has none.
        counters: unused.
        memory: what is known of this meter: key "modbus" for what rarely changes, "modbus-series" for counters.
        clock: stamps samples.
        tracer: sees plans and frames.
        site: the gateway's civil time.
    """

    def __init__(
        self,
        meter: Meter,
        line: Line,
        model: ModbusModel,
        keys: object,  # noqa: ARG002 one constructor for all drivers
        counters: object,  # noqa: ARG002
        memory: Memory,
        clock: Clock,
        tracer: Tracer | None = None,
        *,
        site: Site | None = None,
    ) -> None:
        self._meter = meter
        self._line = line
        self._model = model
        self._memory = memory
        self._clock = clock
        self._tracer = tracer
        self._zone = ZoneInfo((site or Site()).timezone)
        self._address = parse_address(
            meter.address, transport=line.transport, framing=line.framing, shared=line.address
        )
        known = memory.get("modbus")
        self._known: dict[str, Any] = dict(known) if isinstance(known, dict) else {}
        self._learned = _learned(self._known, clock.now())
        self._points = Points(model, self._known.get("base") or 0, self._known.get("order"))
        self._lease: Lease | None = None
        self._reader: Reader | None = None
        self._device: Device | None = None

    # --- the protocol

    async def identify(self) -> Device:
        """See Driver.identify; proves the model when that was long ago."""
        if self._device is None:
            with self._named():
                self._device = await self._identify()
        return self._device

    async def clock_offset(self) -> float | None:
        """Meter clock minus ours in seconds, for the few models that have one."""
        point = self._points.clock()
        if point is None:
            return None
        await self.identify()
        with self._named():
            bulk = await self._read(self._points.spans([point]))
        registers = bulk.words[self._points.span(point)]
        moment = clock_of(point.form, registers) if registers else None
        if moment is None:
            return None
        ours = (bulk.sent_at + bulk.heard_at) / 2
        return moment.replace(tzinfo=self._zone).timestamp() - ours

    async def read_profile(self, request: ProfileRequest) -> Sequence[Block]:
        """The sample of now, as one row; of what the meter keeps itself, the rows that it has.

        Empty when a meter that keeps nothing is asked for rows of another time: there are none.
        """
        kind = request.kind
        if kind == "interval" and self._model.history is not None:
            return [block async for blocks, _ in self.portions(request) for block in blocks]
        items = self._profile_items(kind)
        if kind == "midnight" and self._model.midnight.history:
            return await self._kept_midnights(request)
        _, period = profile_of(self._model, kind)
        time = self._boundary(kind, period, self._clock.now(), request.until)
        if not self._clock.now() - time < max(period, 1) or time < (request.since or 0):
            return []
        device = await self.identify()
        with self._named():
            bulk = await self._read(self._points.spans(items))
            series = Series.load(self._memory.get("modbus-series"), device.serial)
            rolled: list[str] = []
            if kind != "instantaneous":
                bulk, rolled = await self._continue(series, items, bulk)
        readings = [self._points.reading(item, bulk.words) for item in items]
        if kind == "interval":
            self._refuse_coarse(readings)
        return [self._blocks(series.device).sample(kind, time, readings, bulk, rolled)]

    async def portions(
        self, request: ProfileRequest
    ) -> AsyncIterator[tuple[Sequence[Block], bool]]:
        """What `read_profile` reads, in portions of about a day, oldest first; the second value says that more follow."""
        history = self._model.history
        if request.kind != "interval" or history is None:
            yield await self.read_profile(request), False
            return
        device = await self.identify()
        blocks = self._blocks(device.serial)
        with self._named(), self._usable():
            assert self._reader is not None, "identify() opens the session"
            if isinstance(history, PeriodHistory):
                period, heard_at = await last_period(history, self._points, self._reader)
                until = request.until
                wanted = period and (request.since or 0) <= period.time <= (until or period.time)
                yield (
                    [blocks.last_period(history, period, heard_at)] if period and wanted else [],
                    False,
                )
                return
            codes = frozenset(str(p.obis) for p in self._points.all if p.obis and p.unit)
            window = Window(history, codes, self._reader, self._zone)
            channels = await self._channels(window)
            async for portion in window.portions(
                channels, request.since, request.until, self._clock.now()
            ):
                block = blocks.profile(history, portion, self._clock.now())
                yield [block] if block.rows else [], portion.more

    async def _channels(self, window: Window) -> tuple[Channel, ...]:
        """What the channels of a load profile store; found out daily."""
        now = self._clock.now()
        known = self._known.get("channels")
        if known and 0 <= now - known[0] < PROVEN_S:
            return tuple(Channel(*fields) for fields in known[1])
        channels = await window.channels()
        rows = [[c.number, c.obis, c.scaler, c.type, c.minutes] for c in channels]
        self._remember(channels=[int(now), rows])
        return channels

    async def _kept_midnights(self, request: ProfileRequest) -> Sequence[Block]:
        """The midnights that the meter keeps itself, dated by its own clock: no samples, and never too late."""
        history = self._model.midnight.history
        clock = self._points.clock()
        assert clock is not None, "a model with a history of midnights has a clock"
        device = await self.identify()
        kept = {name: self._points.named(names) for name, names in history.items()}
        with self._named():
            bulk = await self._read(
                self._points.spans([clock, *(item for items in kept.values() for item in items)])
            )
        registers = bulk.words[self._points.span(clock)]
        moment = clock_of(clock.form, registers) if registers else None
        if moment is None:
            raise self._refused(
                "read midnight", "the meter's clock holds no time, so its midnights have no date"
            )
        offset = moment.replace(tzinfo=self._zone).timestamp() - (bulk.sent_at + bulk.heard_at) / 2
        days = range(max(len(items) for items in kept.values()))
        times = [
            at_civil_minute(moment.date() - dt.timedelta(days=day), 0, self._zone) for day in days
        ]
        rows = [
            day
            for day in reversed(days)  # oldest first
            if (request.since or 0) <= times[day] <= (request.until or times[day])
        ]
        if not rows:
            return []
        counters = [self._points.reading(item, bulk.words) for item in self._points.named(kept)]
        columns = [
            [self._points.reading(items[day], bulk.words) for day in rows]
            for items in kept.values()
        ]
        at = [times[day] for day in rows]
        return [self._blocks(device.serial).midnights(at, counters, columns, bulk.heard_at, offset)]

    async def read_registers(self, what: str) -> Sequence[RegisterReading]:
        """One of instantaneous (all measured points), nameplate, status, clock, an OBIS code or a point's name."""
        items = self._register_items(what)
        await self.identify()
        with self._named():
            bulk = await self._read(self._points.spans(items))
        readings = [self._points.reading(item, bulk.words) for item in items]
        if what == "nameplate" and "sunspec" in self._model.link.addressing:
            readings += self._common_readings()
        return readings

    async def close(self) -> None:
        """See Driver.close."""
        self._reader = None
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
            await asyncio.sleep(
                0
            )  # so that the line's lingering begins, whatever the loop does next

    # --- what to read

    def _profile_items(self, kind: str) -> list[Point | Sum]:
        if kind == "instantaneous":
            return [p for p in self._points.of_kinds("instantaneous", "cumulative") if p.obis]
        if kind not in ("interval", "midnight"):
            raise self._refused(f"read {kind}", f"a {self._model.name} keeps no {kind}")
        sampling = self._model.interval if kind == "interval" else self._model.midnight
        if not sampling.points:
            raise self._refused(
                f"read {kind}",
                sampling.refused or f"the model names no registers for {kind}",
                "Read instantaneous values instead.",
            )
        return self._points.named(sampling.points)

    def _register_items(self, what: str) -> list[Point | Sum]:
        points = self._points
        if what == "instantaneous":
            return [*points.of_kinds("instantaneous", "cumulative"), *points.sums.values()]
        if what in ("nameplate", "status"):
            return list(points.of_kinds(what))
        if what == "clock":
            clock = points.clock()
            if clock is None:
                raise self._refused(
                    "read clock", f"a {self._model.name} has no clock that Modbus shows"
                )
            return [clock]
        obis, colon, attribute = what.partition(":")
        if colon and attribute != "2":
            raise self._refused(f"read {what}", "a Modbus register has attribute 2 only")
        if found := points.with_obis(obis):
            return found
        if obis in points.by_name or obis in points.sums:
            return points.named([obis])
        raise self._refused(
            f"read {what}",
            f"the model {self._model.name} has no such point",
            "Its points are in edge_core/acquisition/meters, by OBIS code and name.",
        )

    def _refuse_coarse(self, readings: Iterable[RegisterReading]) -> None:
        """SunSpec: only the scale register tells how coarse the counters of this meter are."""
        coarse = [r.name for r in readings if r.scaler >= COARSE]
        if coarse:
            raise self._refused(
                "read interval",
                f"{', '.join(coarse)} count in steps of 10^{COARSE} and more: too coarse for intervals",
            )

    def _blocks(self, device: str) -> Blocks:
        proven_at = int(self._known.get("proven_at") or self._clock.now())
        return Blocks(self._meter, self._model, device, self._zone, proven_at)

    def _boundary(self, kind: str, period: int, at: float, until: int | None) -> int:
        """The nominal time of a row sampled at `at`; `until` may name an earlier boundary."""
        if kind == "instantaneous":
            return int(at)
        if kind == "midnight":
            return midnight_at_or_before(at if until is None else min(at, until), self._zone)
        moment = at + EARLY * period
        if until is not None:
            moment = min(moment, until)
        return int(moment // period) * period

    # --- the session

    async def _identify(self) -> Device:
        if self._lease is None:
            self._lease = Lease(self._line, self._address, self._clock)
        self._reader = self._new_reader()
        if self._model.link.addressing == "sunspec_model_relative":
            await self._locate()
        points, items = (
            self._points,
            self._points.named([SERIAL] if SERIAL in self._points.by_name else []),
        )
        serial = ""
        if items:
            bulk = await self._read(points.spans(items))
            value = points.reading(items[0], bulk.words).value
            serial = "" if value in (None, 0) else str(value).strip()
        elif common := self._known.get("common"):
            serial = common.get("serial", "")
        self._check_serial(serial)
        serial = serial or self._meter.serial or f"unit-{self._address.unit}"
        if serial != self._known.get("serial"):
            self._forget(serial)
        now = self._clock.now()
        if not 0 <= now - (self._known.get("proven_at") or 0) < PROVEN_S:
            await self._prove()
            self._remember(proven_at=int(now))
        return Device(serial, nameplate={"model": self._known.get("kind") or self._model.name})

    async def _prove(self) -> None:
        """Is it this model, in this word order, from this base? Raises WrongMeter with what was found."""
        assert self._reader is not None
        identify = self._model.identify
        if identify is not None and self._model.link.addressing == "absolute":
            start = identify.address + self._points.base
            span = Span(identify.table, start, start + codec.words_of(identify.type, None))
            words = await self._reader.probe(span)
            raw = None if words is None else codec.number(identify.type, words, identify.word_order)
            kind = identify.values.get(str(raw))
            if kind is None:
                raise WrongMeter(
                    self._meter.id,
                    self._where(),
                    f"identify (register {start})",
                    f"the code there is {raw}, a {self._model.name} has one of "
                    f"{', '.join(sorted(identify.values))}",
                    "Check the model; a new variant of the family needs its code in the model file.",
                )
            self._remember(kind=kind)
        found = await proof.prove(self._points, self._reader)
        if found.problem:
            raise WrongMeter(
                self._meter.id, self._where(), "prove the model", found.problem, found.hint
            )
        if found.order and self._model.link.word_order_selectable:
            self._points = Points(self._model, self._points.base, found.order)
            self._remember(order=found.order)

    async def _locate(self) -> None:
        """Find the SunSpec model, at its remembered place or by walking the chain."""
        assert self._reader is not None
        place = await proof.locate(self._reader, self._model, self._known.get("base"))
        if place is None:
            raise WrongMeter(
                self._meter.id,
                self._where(),
                "walk the SunSpec models",
                "no marker SunS at 40000, 50000 or 0, or no meter model behind it",
                "Is it the right unit? Meters behind inverters have units of their own.",
            )
        if place.base != self._points.base:
            self._points = Points(self._model, place.base, self._known.get("order"))
            self._remember(base=place.base)
            self._reader = self._new_reader()
            self._reader.answered = True
        if place.common:
            self._remember(common=place.common)

    def _common_readings(self) -> list[RegisterReading]:
        """The SunSpec common model, which stands outside the points."""
        common = self._known.get("common") or {}
        obis = {"serial": "0.0.96.1.0.255", "version": "1.0.0.2.0.255"}
        names = {
            "serial": SERIAL,
            "version": "active_firmware",
            "maker": "vendor_name",
            "model": "meter_model",
        }
        return [
            RegisterReading(obis.get(key), names[key], 2, text, 0, "")
            for key, text in common.items()
            if key in names and text
        ]

    async def _continue(
        self, series: Series, items: Sequence[Point | Sum], bulk: Bulk
    ) -> tuple[Bulk, list[str]]:
        """Compare counters with the last sample; a fall is believed after a second reading."""
        counters = self._counters(items, bulk)
        verdict = series.compare(counters)
        if verdict.fallen:
            bulk = await self._read(self._points.spans(items))
            counters = self._counters(items, bulk)
            verdict = series.compare(counters)
        series.take(counters, verdict)
        self._memory.put("modbus-series", series.save())
        return bulk, list(verdict.rolled)

    def _counters(self, items: Sequence[Point | Sum], bulk: Bulk) -> list[Counter]:
        counters = []
        for item in items:
            reading = self._points.reading(item, bulk.words)
            if isinstance(reading.value, int):
                parts = item.parts if isinstance(item, Sum) else (item,)
                counters.append(
                    Counter(
                        item.name, reading.value, reading.scaler, _modulus(parts, reading.scaler)
                    )
                )
        return counters

    async def _read(self, spans: set[Span]) -> Bulk:
        assert self._reader is not None, "identify() opens the session"
        bulk = await self._reader.read(spans)
        self._reader.settle(bulk)
        if self._learned.changed:
            self._remember(**_saved(self._learned, self._clock.now()))
            self._learned.changed = False
        return bulk

    def _new_reader(self) -> Reader:
        assert self._lease is not None
        link = self._model.link
        return Reader(
            self._lease.line,
            self._address.unit or 0,
            largest=link.max_registers_per_read,
            holes=link.hole_policy,
            defined=self._points.defined,
            learned=self._learned,
            gap_s=max(link.gap_s, self._line.turnaround_ms / 1000),
            tracer=self._tracer,
        )

    # --- memory

    def _remember(self, **facts: Any) -> None:
        self._known.update(facts)
        self._memory.put("modbus", dict(self._known))

    def _forget(self, serial: str) -> None:
        """Another meter stands here: what was learned of the old one is void."""
        keep: dict[str, Any] = {
            key: self._known[key] for key in ("base", "common") if key in self._known
        }
        self._known = {**keep, "serial": serial}
        self._learned.largest = None
        self._learned.refused.clear()
        if self._points.order is not None:
            self._points = Points(self._model, self._points.base)
        self._remember()

    def _check_serial(self, serial: str) -> None:
        if serial and self._meter.serial and serial != self._meter.serial:
            raise WrongMeter(
                self._meter.id,
                self._where(),
                "identify",
                f"the device has serial {serial!r}, expected {self._meter.serial!r}",
                "Nothing was read. Correct `serial` if the meter was exchanged.",
            )

    # --- errors

    def _where(self) -> str:
        kind = "serial" if self._line.transport == "serial" else self._line.framing
        device = f" {self._line.device}" if self._line.transport == "serial" else ""
        return f"{self._line.id}, {kind}{device} {self._address}"

    def _refused(
        self, during: str, cause: str, hint: str = "", code: int | None = None
    ) -> MeterRefused:
        return MeterRefused(self._meter.id, self._where(), during, cause, hint, code=code)

    @contextlib.contextmanager
    def _usable(self) -> Any:
        """Turn what makes a history useless into an error that names meter, line and step."""
        try:
            yield
        except Unusable as unusable:
            self._known.pop("channels", None)  # set up anew, perhaps
            self._remember()
            raise self._refused("read the load profile", str(unusable), unusable.hint) from unusable

    @contextlib.contextmanager
    def _named(self) -> Any:
        """Turn what reader and line raise into errors that name meter, line and step."""
        try:
            yield
        except Refused as refusal:
            during, cause = str(refusal.ask), str(refusal)
            if refusal.code in GATEWAY_SILENT:
                raise LineSilent(
                    self._meter.id,
                    self._where(),
                    during,
                    cause,
                    "The gateway is there, the meter behind it is not: check its address and wiring.",
                    code=refusal.code,
                ) from refusal
            raise self._refused(during, cause, _hint(refusal.code), refusal.code) from refusal
        except Unanswered as trouble:
            kind: type[MeterError] = MalformedReply if trouble.garbled else LineSilent
            hint = (
                "Two units with one address, noise, or a wrong baud rate or parity look like this."
                if trouble.garbled
                else "Check address, wiring and supply of the meter."
            )
            raise kind(
                self._meter.id, self._where(), str(trouble.ask), str(trouble), hint
            ) from trouble


def _hint(code: int) -> str:
    return {
        1: "The meter does not know this function: the model's table (holding, input) does not fit.",
        2: "The registers do not exist in this meter: check the model.",
        3: "The meter takes fewer registers at once: check max_registers_per_read of the model.",
        4: "The meter reports an internal failure; it may pass.",
        5: "The meter is still working on an earlier command.",
        6: "The meter or the gateway is busy with another master.",
    }.get(code, "")


def _modulus(parts: Sequence[Point], scaler: int) -> int:
    """The number at which a counter begins at 0 again, in the scaler; 0 = not known."""
    if len(parts) != 1:
        return 0
    point = parts[0]
    widths = {"uint16": 1 << 16, "uint32": 1 << 32, "acc32": 1 << 32, "int32": 1 << 31}
    raw = point.modulus or widths.get(point.type, 0)
    shift = point.scale - scaler if point.type in codec.FLOATS else 0
    return raw * 10**shift if shift >= 0 else 0


def _learned(known: dict[str, Any], now: float) -> Learned:
    """What earlier sessions learned; after a week it is found out anew, firmware changes."""
    if not 0 <= now - (known.get("learned_at") or 0) < RELEARN_S:
        return Learned()
    refused = {Span(str(t), int(a), int(b)) for t, a, b in known.get("refused") or ()}
    return Learned(known.get("largest"), refused)


def _saved(learned: Learned, now: float) -> dict[str, Any]:
    return {
        "learned_at": int(now),
        "largest": learned.largest,
        "refused": [[s.table, s.start, s.end] for s in sorted(learned.refused)],
    }
