"""DLMS meters: profiles as blocks, registers as registers; see `acquisition.drivers.Driver` for the contract.

A visit with everything known costs: connect, AARQ, pass 3, GET clock, one GET per profile, RLRQ. Serial and nameplate
are read again when another system title answers; meters without one (no ciphering) tell their serial each time.

Invariants: rows are whatever the meter holds for the asked range, in its buffer order; what it sends beyond the range
is dropped, also where it ignores the selection. Layouts are proven before rows are read under them, and again when
rows do not fit. Without an authenticated answer every row is flagged UNAUTHENTICATED.
Limits: ROWS_AT_ONCE rows (SLOW_ROWS_AT_ONCE on slow lines) are asked for in one request; longer histories take several.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Final

from edge_core.acquisition.drivers import Device, ProfileRequest
from edge_core.acquisition.drivers.dlms import proving, registers
from edge_core.acquisition.drivers.dlms.learned import (
    DISTRUSTED,
    Changes,
    LayoutChange,
    Learned,
    clock_rules,
    plan_of,
    remember,
    remembered,
    whole_number,
)
from edge_core.acquisition.drivers.dlms.session import Session
from edge_core.domain import Block, Flag, RegisterReading, as_list
from edge_core.domain.block import runs_of
from edge_core.errors import MalformedReply, MeterRefused, ProtocolError
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.codes import Conformance
from edge_core.protocols.dlms.cosem import Attribute, CaptureObject, EntrySelector, RangeSelector
from edge_core.protocols.dlms.datetime import decode_datetime, encode_datetime
from edge_core.protocols.dlms.layouts import ColumnMismatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from edge_core.acquisition.drivers import Counters, Memory, Site, Tracer
    from edge_core.clock import Clock
    from edge_core.config.keys import MeterKeys
    from edge_core.config.models import DlmsModel, Profile
    from edge_core.config.schema import Line, Meter
    from edge_core.domain import Obis
    from edge_core.protocols.dlms.cosem import Selector
    from edge_core.protocols.dlms.datetime import ClockRules
    from edge_core.protocols.dlms.shapes import Rows

ROWS_AT_ONCE: Final = 2_000
SLOW_ROWS_AT_ONCE: Final = 240
"""On serial lines and HDLC: some 15 s at 9,600 baud, after which others may speak."""
DAY_S: Final = 86_400
OLDEST: Final = 946_684_800  # 2000-01-01: no smart meter holds rows from before
PROFILE_CLASS: Final = 7
CLOCK_CLASS: Final = 8
DATA_CLASS: Final = 1
ATTRIBUTES_AT_ONCE: Final = 8


class Driver:
    """One session with one DLMS meter.

    Attributes:
        observer: hears each value that was read, deciphered, as A-XDR; for a second opinion.
    """

    def __init__(
        self,
        meter: Meter,
        line: Line,
        model: DlmsModel,
        keys: MeterKeys,
        counters: Counters | None,
        memory: Memory,
        clock: Clock,
        tracer: Tracer | None = None,
        *,
        site: Site,
    ) -> None:
        self._meter, self._model, self._memory, self._clock = meter, model, memory, clock
        self._rules = clock_rules(model, site.timezone)
        self.session = Session(meter, line, model, keys, counters, tracer, site)
        self.observer: Callable[[str, bytes], None] | None = None
        slow = line.transport == "serial" or line.framing == "hdlc"
        self._rows_at_once = SLOW_ROWS_AT_ONCE if slow else ROWS_AT_ONCE
        self._device: Device | None = None
        self._offset_s: float | None = None
        self._changes = Changes(memory)
        self._notices: list[tuple[str, dict[str, Any]]] = []

    def on_answer(self, call: Callable[[], None]) -> None:
        """Call once, when the meter gives its first answer, whatever it is."""
        self.session.answered = call

    # --- kept between visits

    @property
    def keep_s(self) -> float:
        """For how many seconds this session may stay open unused; 0 = it is to be closed."""
        alone = self.session.line.framing == "wrapper" and self.session.line.transport == "tcp"
        return self._model.association.keep_s if alone and self.session.open else 0

    def resume(self) -> bool:
        """Begin another visit with this session; False when it is no longer open."""
        self._offset_s, self._changes = None, Changes(self._memory)
        return self.session.alive

    # --- who and when

    async def identify(self) -> Device:
        association = await self.session.associate()
        if self._device is not None:
            return self._device
        title = association.meter_title
        known = self._memory.get("identity")
        if title and isinstance(known, dict) and known.get("title") == title.hex():
            self._device = Device(known["serial"], title, known["nameplate"])
            return self._device
        serial = await self._text(self._model.association.serial)
        if not serial:
            raise MalformedReply(
                self._meter.id, self.session.place, "identify", "the serial number is empty"
            )
        same = isinstance(known, dict) and known.get("serial") == serial
        nameplate = known["nameplate"] if same else await self._nameplate()
        self._memory.put(
            "identity", {"title": title.hex(), "serial": serial, "nameplate": nameplate}
        )
        self._device = Device(serial, title, nameplate)
        return self._device

    async def _nameplate(self) -> dict[str, str]:
        """The nameplate objects of the model that this meter has."""
        out = {}
        for name, obis in self._model.association.nameplate.items():
            try:
                out[name] = await self._text(obis)
            except MeterRefused:
                continue
        return out

    async def _text(self, obis: Obis) -> str:
        """A nameplate object as text."""
        data = await self.get(Attribute(DATA_CLASS, obis, 2))
        with self.session.step(f"GET {obis}:2"):
            return registers.text_of(data)

    async def clock_offset(self) -> float | None:
        await self.session.associate()
        if self._offset_s is None:
            before = self._clock.now()
            data = await self.get(Attribute(CLOCK_CLASS, self._model.time.clock, 2))
            after = self._clock.now()
            with self.session.step(f"GET {self._model.time.clock}:2"):
                value = axdr.decode_whole(data).value
            at = decode_datetime(value, self._rules).at if isinstance(value, bytes) else None
            if at is None:
                return None
            self._offset_s = at - (before + after) / 2
        return self._offset_s

    async def set_clock(self) -> float | None:
        """Set the meter's clock to ours; returns how far it was off before, in civil seconds.

        Raises:
            MeterError: MeterRefused where this client may not.
        """
        before = await self.clock_offset()
        association = await self.session.associate()
        obis = self._model.time.clock
        stamp = encode_datetime(round(self._clock.now()), self._rules)
        data = axdr.encode(axdr.octet_string(stamp))
        await self.session.run(
            association.set(Attribute(CLOCK_CLASS, obis, 2), data), f"SET {obis}:2"
        )
        self._offset_s = None
        return before

    @property
    def notices(self) -> list[tuple[str, dict[str, Any]]]:
        """What was noticed beside since the last look: alarm code and detail."""
        found, self._notices = self._notices, []
        moved, self.session.foreign_counter = self.session.foreign_counter, None
        if moved is not None:
            found.append(("foreign-client", {"ours": moved[0], "theirs": moved[1]}))
        return found

    # --- profiles

    async def read_profile(self, request: ProfileRequest) -> Sequence[Block]:
        return [block async for blocks, _ in self.portions(request) for block in blocks]

    async def portions(self, request: ProfileRequest) -> AsyncIterator[tuple[list[Block], bool]]:
        """The same, as the answers come: blocks, and whether more will follow. Other requests may go in between."""
        device = await self.identify()
        profile = self._profile(request.kind)
        learned = await self._learn(request.kind, profile, device.serial)
        request = self._since_the_last_proof(request, learned)
        wanted = await self._portions(request, profile, learned)
        for left, (since, until, selector) in zip(
            range(len(wanted) - 1, -1, -1), wanted, strict=True
        ):
            data = await self.get(Attribute(PROFILE_CLASS, profile.obis, 2), selector)
            try:
                rows = self._decode(data, profile, learned)
            except ColumnMismatch:
                learned = await self._prove(request.kind, profile, device.serial)
                earlier = self._since_the_last_proof(request, learned)
                if earlier != request:  # what was read since the last proof is read again, whole
                    async for portion in self.portions(earlier):
                        yield portion
                    return
                with self.session.step(f"GET {profile.obis}:2"):
                    rows = self._decode(data, profile, learned)
            blocks = [
                block
                for part in rows
                if (block := self._block(request.kind, part, learned, since, until)) is not None
            ]
            yield blocks, left > 0

    def relaid(self, kind: str) -> int | None:
        """When the last proof of a kind was made that a later one disproved; None where nothing is to be set right.

        Rows captured since were read under a layout that may be wrong. They come again with each read that begins
        before, flagged by `q["relaid"]`, until `settled`.
        """
        change = self._changes.get(kind)
        return change.proven_before if change is not None else None

    def settled(self, kind: str, doubted: int = 0) -> None:
        """All rows since a disproved proof were read again and are safe; so many the meter no longer held."""
        change = self._changes.settle(kind)
        for code, detail in self._notices:
            if change is not None and detail.get("proven_before") == change.proven_before:
                assert code == "layout-changed"
                detail["doubted"] = doubted

    def prove_again(self) -> None:
        """Believe no proof that was made until now: the meter has new firmware, or somebody configured it."""
        self._memory.put(DISTRUSTED, int(self._clock.now()))

    async def firmware_changed(self) -> tuple[str, str] | None:
        """Compare the firmware with the remembered one; what it was and is, where that differs, and nothing is proven."""
        device = await self.identify()
        obis = self._model.association.nameplate.get("firmware")
        if not obis:
            return None
        try:
            now = await self._text(obis)
        except MeterRefused:
            return None
        before = device.nameplate.get("firmware", "")
        if now == before:
            return None
        nameplate = device.nameplate | {"firmware": now}
        self._device = dataclasses.replace(device, nameplate=nameplate)
        self._memory.put(
            "identity",
            {"title": device.title.hex(), "serial": device.serial, "nameplate": nameplate},
        )
        if not before:
            return None
        self.prove_again()
        return before, now

    def _since_the_last_proof(self, request: ProfileRequest, learned: Learned) -> ProfileRequest:
        """The request; when a proof of this session differs from the one before, back to that one."""
        change = self._changes.get(request.kind)
        if change is None or request.since is None:
            return request
        first = change.proven_before - 2 * max(learned.period, 60)
        return dataclasses.replace(request, since=min(request.since, first))

    def _profile(self, kind: str) -> Profile:
        try:
            return self._model.profiles[kind]
        except KeyError:
            raise MeterRefused(
                self._meter.id,
                self.session.place,
                kind,
                f"the meter model {self._model.name} has no profile {kind}",
                f"It has {', '.join(self._model.profiles) or 'none'}",
            ) from None

    def _decode(self, data: bytes, profile: Profile, learned: Learned) -> list[Rows]:
        """Rows of a buffer; ColumnMismatch goes to the caller, anything else is a MalformedReply."""
        try:
            return plan_of(learned, profile, self._rules).decode(data)
        except ColumnMismatch:
            raise
        except ProtocolError as cause:
            raise self.session.explain(f"GET {profile.obis}:2", cause) from cause

    def _block(
        self, kind: str, rows: Rows, learned: Learned, since: int | None, until: int | None
    ) -> Block | None:
        """A block of the rows within the range, or None when there is neither row nor remark."""
        assert self._device is not None
        times = as_list(rows.times)
        flags = rows.flags
        if not self.session.authenticated:
            bits = [int(Flag.UNAUTHENTICATED)] * len(times)
            for first, count, value in flags:
                for row in range(first, first + count):
                    bits[row] |= value
            flags = runs_of(bits)
        change = self._changes.get(kind)
        if change is not None and change.rescaled:
            flags = _doubted(flags, times, change)
        quality: dict[str, Any] = {"unplaced": rows.unplaced} if rows.unplaced else {}
        if change is not None:
            quality["relaid"] = change.proven_before
        block = Block(
            meter=self._meter.id,
            device=self._device.serial,
            kind=kind,
            layout=rows.layout,
            times=rows.times,
            columns=rows.columns,
            occ=rows.occ,
            flags=flags,
            tz=rows.tz,
            multiplier=self._meter.multiplier,
            read_at=int(self._clock.now()),
            proven_at=learned.proven_at,
            q=quality or None,
        )
        low = since if since is not None else OLDEST
        high = until if until is not None else 1 << 62
        if times and (min(times) < low or max(times) > high):
            block = block.take([i for i, t in enumerate(times) if low <= t <= high])
        return block if block.rows or rows.unplaced else None

    async def _portions(
        self, request: ProfileRequest, profile: Profile, learned: Learned
    ) -> list[tuple[int | None, int | None, Selector | None]]:
        """What to ask for, oldest first: (since, until) that each answer is cut to, and the selector."""
        whole: list[tuple[int | None, int | None, Selector | None]] = [
            (request.since, request.until, None)
        ]
        association = await self.session.associate()
        if profile.range == "ignored" or Conformance.SELECTIVE_ACCESS not in association.negotiated:
            return whole
        if request.by_entry or profile.range == "entry":
            return await self._by_entry(request, profile, learned)
        period = learned.period or profile.period_s
        reach = 64 * self._rows_at_once
        if request.since is None and request.until is None:
            held = await self._entries_in_use(profile.obis)
            if held is None or held <= self._rows_at_once:
                return whole
            reach = held + DAY_S // max(period, 1)
        now = self._clock.now() + max(self._offset_s or 0.0, 0.0)
        until = request.until if request.until is not None else int(now) + DAY_S
        since = request.since if request.since is not None else OLDEST
        step = self._rows_at_once * period if period else 0
        cuts: list[int] = []
        if step:
            # the oldest portion reaches back as far as it takes, the others hold so many rows at most
            first = max(since, until - reach * period)
            cuts = list(range(until - step, first, -step))[::-1]
        bounds = [since, *cuts, until + 1]
        return [
            (
                a if a != OLDEST or request.since is not None else None,
                b - 1,
                self._range(a, b - 1, profile, period),
            )
            for a, b in itertools.pairwise(bounds)
        ]

    def _range(self, since: int, until: int, profile: Profile, period: int) -> RangeSelector:
        """Selective access by range, in the style of the model."""
        quirks = self._model.quirks
        if profile.range == "exclusive":
            since -= period or 60
        if quirks.second_in_range:
            since, until = since - since % 60, until + -until % 60

        def stamp(at: int) -> Any:
            return axdr.octet_string(
                encode_datetime(
                    max(at, OLDEST),
                    self._rules,
                    deviation=not quirks.bare_range_time,
                    weekday=not quirks.bare_range_time,
                )
            )

        return RangeSelector(
            CaptureObject(CLOCK_CLASS, self._model.time.clock, 2, 0), stamp(since), stamp(until)
        )

    async def _by_entry(
        self, request: ProfileRequest, profile: Profile, learned: Learned
    ) -> list[tuple[int | None, int | None, Selector | None]]:
        """Entries newest enough to hold the range, in portions, oldest first; shifts while reading only overlap."""
        held = await self._entries_in_use(profile.obis)
        if held is None:
            return [(request.since, request.until, None)]
        period = learned.period or profile.period_s
        wanted = held
        if request.since is not None and period:
            newest = self._clock.now() + max(self._offset_s or 0.0, 0.0)
            wanted = min(held, max(0, int((newest - request.since) // period)) + 3)
        portions: list[tuple[int, int]] = []
        if profile.entry_base == "oldest":
            first = held - wanted + 1
            while first <= held:
                last = min(first + self._rows_at_once - 1, held)
                portions.append((first, 0 if last == held else last))
                first = last + 1
        else:
            first = 1
            while first <= wanted:
                last = min(first + self._rows_at_once - 1, wanted)
                portions.append((first, last))
                first = last + 1
            portions.reverse()
        return [(request.since, request.until, EntrySelector(a, b)) for a, b in portions]

    async def _entries_in_use(self, obis: Obis) -> int | None:
        """Attribute 7 of a profile, or None if the meter does not tell."""
        try:
            data = await self.get(Attribute(PROFILE_CLASS, obis, 7))
        except MeterRefused:
            return None
        with self.session.step(f"GET {obis}:7"):
            return whole_number(data)

    # --- what profiles hold

    async def _learn(self, kind: str, profile: Profile, serial: str) -> Learned:
        """Capture objects and scalers, from memory while they hold."""
        known = remembered(self._memory.get, kind)
        distrusted = int(self._memory.get(DISTRUSTED) or 0)
        if known is not None and known.holds(serial, self._clock.now(), distrusted):
            return known
        return await self._prove(kind, profile, serial)

    async def _prove(self, kind: str, profile: Profile, serial: str) -> Learned:
        """Read capture objects and scalers from the meter, and remember them."""
        learned = await proving.learn(self, profile, serial, int(self._clock.now()))
        obis = profile.obis
        with self.session.step(f"GET {obis}:3"):
            plan_of(learned, profile, self._rules)
        self._compare(kind, profile, remembered(self._memory.get, kind), learned)
        remember(self._memory.put, kind, learned)
        return learned

    def _compare(self, kind: str, profile: Profile, before: Learned | None, now: Learned) -> None:
        """Name what differs from the proof before: rows in between may have been read under the wrong layout."""
        if before is None or before.device != now.device:
            return
        change = LayoutChange.between(before, now)
        if change is None:
            return
        self._changes.found(kind, change)
        self._notices.append(
            (
                "layout-changed",
                {
                    "profile": str(profile.obis),
                    "proven_before": before.proven_at,
                    "added": list(change.added),
                    "removed": list(change.removed),
                    "rescaled": list(change.rescaled),
                    "period": [before.period, now.period],
                },
            )
        )

    # --- single values

    async def read_registers(self, what: str) -> Sequence[RegisterReading]:
        await self.identify()
        return await registers.read(self, what)

    async def read_row(self, kind: str) -> list[RegisterReading] | None:
        """The newest row of a profile as single values, or None when it has none."""
        blocks = [block for block in await self.read_profile(ProfileRequest(kind)) if block.rows]
        if not blocks:
            return None
        block = blocks[-1]
        return [
            RegisterReading(c.obis, "", c.attribute, as_list(values)[-1], c.scaler, c.unit)
            for c, values in zip(block.layout.cols, block.columns, strict=True)
        ]

    @property
    def rules(self) -> ClockRules:
        """How the meter writes time."""
        return self._rules

    @property
    def model(self) -> DlmsModel:
        """The model that the meter is read by."""
        return self._model

    @property
    def memory(self) -> Memory:
        """What is known from earlier sessions."""
        return self._memory

    async def get(self, attribute: Attribute, selector: Selector | None = None) -> bytes:
        """One attribute as A-XDR.

        Raises:
            MeterError: MeterRefused when the meter says no.
        """
        association = await self.session.associate()
        data = await self.session.run(association.get(attribute, selector), f"GET {attribute}")
        if self.observer is not None:
            self.observer(f"GET {attribute}", data)
        return data

    async def get_all(self, attributes: Sequence[Attribute]) -> list[bytes | None]:
        """Several attributes as A-XDR, None where the meter says no: at once where model and meter have that, else in turn.

        Raises:
            MeterError.
        """
        association = await self.session.associate()
        if not (
            self._model.quirks.get_with_list
            and Conformance.MULTIPLE_REFERENCES in association.negotiated
        ):
            return [await self._get_or_none(attribute) for attribute in attributes]
        found: list[bytes | None] = []
        for first in range(0, len(attributes), ATTRIBUTES_AT_ONCE):
            part = attributes[first : first + ATTRIBUTES_AT_ONCE]
            results = await self.session.run(
                association.get_list([(attribute, None) for attribute in part]),
                f"GET {part[0]} and {len(part) - 1} others",
            )
            for attribute, result in zip(part, results, strict=True):
                found.append(result.data if result.result == 0 else None)
                if self.observer is not None and result.result == 0:
                    self.observer(f"GET {attribute}", result.data)
        return found

    async def _get_or_none(self, attribute: Attribute) -> bytes | None:
        try:
            return await self.get(attribute)
        except MeterRefused:
            return None

    async def close(self) -> None:
        await self.session.close()


def _doubted(
    flags: Sequence[tuple[int, int, int]], times: Sequence[int], change: LayoutChange
) -> tuple[tuple[int, int, int], ...]:
    """Flags with LAYOUT_DOUBT on the rows between two proofs whose scalers differ: either may hold for them."""
    bits = [
        int(Flag.LAYOUT_DOUBT) if change.proven_before < at <= change.proven_now else 0
        for at in times
    ]
    for first, count, value in flags:
        for row in range(first, first + count):
            bits[row] |= value
    return runs_of(bits)
