"""One visit to one meter: what is due is read, and handed to the journal with its watermark.

Where a read starts (DESIGN section 7, "What is new"): two periods before the smaller of the watermark and the meter's
own clock, so that reads overlap and rows repeated by a clock set back are read with their neighbours; earlier still
when the clock was seen to step back. What is new the journal's ledger decides, never this file. The watermark handed
over never passes the meter's clock or ours.

What a meter did not hold in a span that was read gets its cause here, from what stands around it (causes.py) and from
the meter's log of power cuts. After a long absence what is new goes first, and what is older is gone back for (backfill.py).
Long reads come in portions; between two of them others may speak, and the visit may give way: what was read is kept.
Open rows, of a billing month that still runs, are not journalled.

A meter's clock is set, where the configuration allows it, after all its profiles were read up to now, and the set is
journalled as an alarm with the old and the new time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.acquisition import event_codes
from edge_core.acquisition.backfill import (
    ABSENT_PERIODS,
    FRESH_PERIODS,
    ROUND_ROWS,
    Pending,
    Span,
    told,
)
from edge_core.acquisition.causes import (
    GATEWAY_OFF,
    METER_POWER_OFF,
    NO_SUCH_ROW,
    Absence,
    absences,
)
from edge_core.acquisition.deltas import Deltas
from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.profiles import (
    SAMPLE_PERIOD_S,
    held_s,
    is_sampled,
    keeps,
    kinds_of,
    profile_of,
)
from edge_core.acquisition.relaid import doubtful
from edge_core.config.models import DlmsModel
from edge_core.domain import Flag, as_list, make_alarm
from edge_core.schedule.agenda import Job
from edge_core.schedule.calendar import DAY_S, midnight_at_or_before

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from concurrent.futures import Future
    from zoneinfo import ZoneInfo

    from edge_core.acquisition.drivers import Driver, Memory
    from edge_core.clock import Clock
    from edge_core.config.models import Model
    from edge_core.config.schema import Meter
    from edge_core.domain import Alarm, Block, Obis
    from edge_core.journal import Journal, LedgerEntry

log = logging.getLogger(__name__)

OVERLAP_PERIODS = 2
LIVE_S = DAY_S  # what is older than this when it is read goes behind what is new
SAMPLE_TOLERANCE = 0.2  # of a period: a later sample is no sample of its boundary
MIDNIGHT_LATE_S = SAMPLE_PERIOD_S  # beyond it the sample before midnight is nearer to it
KEPT_OUTAGES = 32
CLOCK_STEP_MIN_S = 120.0
CLOCK_LEAVE_S, CLOCK_ALARM_S, CLOCK_FAR_S = 10.0, 300.0, 600.0  # DESIGN section 3, [clock]
ABSENT_CODES = frozenset((3, 4, 9, 11))
"""data-access-result: read-write-denied, object-undefined, object-class-inconsistent, object-unavailable."""
OPEN_ROW_S = 60.0  # a billing row stamped within this of the meter's now is the running month


@dataclass(slots=True)
class Visited:
    """What a visit brought.

    Attributes:
        done: jobs that need not be done again before they are next due.
        rows: rows handed to the journal, known ones among them.
        appended: the journal's answers, still open.
        no_room: nothing could be asked, because our own disk did not take what must be on it first.
        gave_way: it ended early for somebody more urgent; what is left is due at once.
        late: kinds of samples whose boundary had passed too long ago.
        owed: rows are missing that no cause names, and are to be gone back for.
        ask_log: rows are missing for a reason that the meter's event log may tell.
        offset_s, error_s: the meter's clock minus ours, and how far that may be off.
    """

    done: list[Job] = field(default_factory=list)
    rows: int = 0
    appended: list[Future[Any]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    device: str = ""
    offset_s: float | None = None
    error_s: float = 0.0
    late: list[str] = field(default_factory=list)
    gave_way: bool = False
    owed: bool = False
    ask_log: bool = False
    error: errors.MeterError | None = None
    no_room: errors.JournalError | None = None


@dataclass(slots=True)
class Visit:
    """A visit under way.

    Attributes:
        memory: what is known of the meter from earlier visits.
        set_meters: may a meter's clock be set?
        between: called between two portions of a long read; True = somebody more urgent waits for the line.
        unsampled: the cause of a boundary that was not sampled and that nobody named yet.
        pending: what may have to be gone back for.
        answered: called when the meter has said who it is, where the driver did not tell of its first answer.
    """

    meter: Meter
    model: Model
    driver: Driver
    journal: Journal
    clock: Clock
    zone: ZoneInfo
    memory: Memory
    set_meters: bool = False
    between: Callable[[], Awaitable[bool]] | None = None
    unsampled: Callable[[int], str] = lambda _: GATEWAY_OFF
    pending: Pending = field(default_factory=Pending)
    deltas: Deltas = field(default_factory=Deltas)
    answered: Callable[[], None] = lambda: None
    result: Visited = field(default_factory=Visited)

    async def run(self, jobs: list[Job]) -> None:
        """Do the jobs in order; what is done stands in `result` even when an error ends the visit.

        Raises:
            MeterError: from the driver, or WrongMeter.
        """
        sampled = is_sampled(self.model)
        if sampled:
            jobs = [job for job in jobs if self._in_time(job)]
            if not jobs:
                return
        device = await self.driver.identify()
        self.answered()
        self._check_serial(device.serial)
        self.result.device = device.serial
        self._take_notices()
        if not sampled:
            await self._measure_clock()
            if Job.CLOCK in jobs:
                await self._check_firmware()
        for job in jobs:
            for kind in self._kinds(job):
                try:
                    finished = await self._profile(kind, device.serial)
                except errors.MeterRefused as refused:
                    if not self._lacks(kind, refused):
                        raise
                    continue
                self._take_notices()
                if not finished:
                    self.result.gave_way = True
                    return
            if job is Job.BACKFILL and not await self._go_back(device.serial):
                self.result.gave_way = True
                return
            if job is Job.CLOCK and not sampled:
                await self._check_clock(device.serial, jobs)
            self.result.done.append(job)

    def _lacks(self, kind: str, refused: errors.MeterRefused) -> bool:
        """Has this meter no such profile, though its model does? Then its other profiles are read all the same."""
        optional = kind not in ("interval", "midnight")
        if not (optional and refused.during.startswith("GET") and refused.code in ABSENT_CODES):
            return False
        if self.memory.get(f"absent.{kind}") is None:
            self.memory.put(f"absent.{kind}", int(self.clock.now()))
            log.info("%s; its other profiles are read", refused)
        return True

    def _kinds(self, job: Job) -> list[str]:
        """Kinds of profiles that a job reads."""
        wanted = job.name.lower()
        return [
            kind
            for kind in kinds_of(self.model)
            if kind == wanted or (job is Job.EVENTS and kind.startswith("events"))
        ]

    def _in_time(self, job: Job) -> bool:
        """Is now near enough to the boundary that this sample is for? What is late is a gap, not a reading."""
        now, late, allowed = self.clock.now(), 0.0, SAMPLE_TOLERANCE * SAMPLE_PERIOD_S
        if job is Job.MIDNIGHT and not keeps(self.model, "midnight"):
            late, allowed = now - midnight_at_or_before(now, self.zone), MIDNIGHT_LATE_S
        elif job is Job.INTERVAL and not keeps(self.model, "interval"):
            late = now % SAMPLE_PERIOD_S
        if late <= allowed:
            return True
        self.result.done.append(job)
        self.result.late += self._kinds(job)
        return False

    def _check_serial(self, serial: str) -> None:
        """A configured serial must match; without one a new device is a fact, and an alarm."""
        if self.meter.serial and serial != self.meter.serial:
            raise errors.WrongMeter(
                self.meter.id,
                self.meter.line,
                "identify",
                f"the device at {self.meter.address} has serial {serial!r}, expected {self.meter.serial!r}",
                "Nothing was read. Correct `serial` if the meter was exchanged.",
            )
        known = self.memory.get("device")
        if known == serial:
            return
        self.memory.put("device", serial)
        if known is not None:
            now = int(self.clock.now())
            self.result.alarms.append(
                make_alarm(
                    self.meter.id,
                    "wrong-meter",
                    at=now,
                    heard=now,
                    authenticated=False,
                    inferred=True,
                    event_time=serial,
                    detail={"device": serial, "before": known},
                )
            )

    def _take_notices(self) -> None:
        """What the driver noticed beside its reads becomes alarms: a counter that moved, a layout that changed."""
        for code, detail in getattr(self.driver, "notices", ()):
            self._alarm(code, detail)

    def _alarm(self, code: str, detail: dict[str, Any], what: str = "") -> None:
        """An alarm of ours about this meter, now; `what` tells two of one code and second apart."""
        now = int(self.clock.now())
        self.result.alarms.append(
            make_alarm(
                self.meter.id,
                code,
                at=now,
                heard=now,
                authenticated=False,
                inferred=True,
                event_time=f"{what}{now}" if what else None,
                detail=detail,
            )
        )

    async def _check_firmware(self) -> None:
        """New firmware may bring other capture objects and scalers: they are proven again, before anything is read."""
        changed = getattr(self.driver, "firmware_changed", None)
        found = await changed() if changed is not None else None
        if found is not None:
            log.info(
                "meter %s: firmware %r became %r; its layouts are proven again",
                self.meter.id,
                *found,
            )

    def _compare_energies(self, block: Block) -> None:
        """The load profile against the registers, day by day; an alarm when they begin to differ."""
        for day in self.deltas.take(block):
            key = f"mismatch.{day.channel}"
            if day.agrees == (self.memory.get(key) is None):
                continue
            self.memory.put(key, None if day.agrees else day.last)
            if not day.agrees:
                self._alarm(
                    "profile-mismatch",
                    {
                        "channel": day.channel,
                        "from": day.first,
                        "to": day.last,
                        "rows_wh": day.rows // 1000,
                        "register_wh": day.register // 1000,
                    },
                    f"{day.channel} ",
                )

    def _look_at_events(self, block: Block) -> None:
        """After new firmware or another configuration, which the meter's own log tells, layouts are proven again."""
        at = event_codes.relaid_at(block, self.model)
        prove_again = getattr(self.driver, "prove_again", None)
        if at is None or prove_again is None or at <= int(self.memory.get("relaid_event") or 0):
            return
        self.memory.put("relaid_event", at)
        prove_again()

    # --- the meter's clock

    async def _measure_clock(self) -> None:
        """Compare the meter's clock with ours; an alarm when it enters a worse band than at the last contact."""
        began = self.clock.monotonic()
        offset = await self.driver.clock_offset()
        took = self.clock.monotonic() - began
        self.result.offset_s = offset
        self.result.error_s = took / 2 * self.clock.speed + 0.5  # meters tell whole seconds
        if offset is None:
            return
        certain = abs(offset) - self.result.error_s
        band = (certain > CLOCK_ALARM_S) + (certain > CLOCK_FAR_S)
        before = int(self.memory.get("clock_band") or 0)
        if band > before:
            self._alarm("clock", {"offset_s": round(offset), "error_s": round(self.result.error_s)})
        if band != before:
            self.memory.put("clock_band", band)

    def _step_of(self, kind: str) -> float:
        """How far the meter's clock has moved against ours since a kind of profile was read, 0 below what counts."""
        before, offset = self.memory.get(f"offset_s.{kind}"), self.result.offset_s
        if before is None or offset is None:
            return 0.0
        step = offset - float(before)
        return step if abs(step) >= max(CLOCK_STEP_MIN_S, self.clock.speed) else 0.0

    def _settle_clock(self, kind: str, read_to: int | None, rows: Future[Any] | None) -> None:
        """A kind was read under this offset, up to a time on the meter's clock: the next read goes on from here.

        Remembered when the rows are durable: after a kill before that everything is read again.
        """
        remember = functools.partial(_settled, self.memory, kind, self.result.offset_s, read_to)
        if rows is None:
            remember(None)
        else:
            rows.add_done_callback(remember)

    async def _check_clock(self, device: str, jobs: list[Job]) -> None:
        """Set the meter's clock if that is allowed and wanted, after everything was read up to now."""
        offset = self.result.offset_s
        if not self.set_meters or offset is None:
            return
        certain = abs(offset) - self.result.error_s
        setter = getattr(self.driver, "set_clock", None)
        if setter is None or not certain > CLOCK_LEAVE_S or abs(offset) > CLOCK_FAR_S:
            return
        for job in (Job.MIDNIGHT, Job.INTERVAL, Job.BILLING):
            if job not in jobs:
                for kind in self._kinds(job):
                    if not await self._profile(kind, device):
                        return  # somebody more urgent: the clock waits for the next check
        old = self.clock.now() + offset
        await setter()
        new = self.clock.now() + (await self.driver.clock_offset() or 0.0)
        self._alarm(
            "clock",
            {"set": True, "old": round(old), "new": round(new), "offset_s": round(offset)},
            "set ",
        )

    # --- profiles

    async def _profile(self, kind: str, device: str) -> bool:
        """Read a profile from where it was left; False when the visit is to give way before all was read."""
        obis, period_s = profile_of(self.model, kind)
        sampled = not keeps(self.model, kind)
        now = self.clock.now()
        meter_now = now + (self.result.offset_s or 0.0)
        watermark = self.journal.watermark(self.meter.id, device, obis)
        since, step, fresh = None, 0.0, False
        if not sampled and watermark is not None:
            step = self._step_of(kind)
            # a meter whose clock stands before the watermark repeats times: where its second pass was left counts
            left = self.memory.get(f"read_to.{kind}")
            start = min(watermark, meter_now, watermark if left is None else float(left))
            since = int(start - OVERLAP_PERIODS * max(period_s, 1) - max(0.0, -step))
            newest = int(meter_now - FRESH_PERIODS * period_s)
            fresh = (
                kind in self.pending.kinds
                and not step
                and start < meter_now - ABSENT_PERIODS * period_s
                and self._ranged(kind)
            )
            since = newest if fresh else since
        read: list[Block] = []
        async for block, more in self._rows(ProfileRequest(kind, since=since), now, meter_now):
            read += [block] if block is not None else []
            if more and self.between is not None and await self.between():
                self._name_absences(read, watermark, obis, period_s, step)
                return False
        if sampled:
            self._name_unsampled(read, obis, period_s, device, watermark)
            return True
        self._name_absences(read, None if fresh else watermark, obis, period_s, step)
        await self._settle_layout(kind, device, obis, read)
        behind = watermark is not None and meter_now < watermark
        last = self.result.appended[-1] if read else None
        self._settle_clock(kind, int(meter_now) if behind else None, last)
        if fresh:
            self.pending.unproven |= {kind}
            self.result.owed = True
        elif self.pending.doubtful(kind, now):
            if self.pending.spans(self._entry(device, obis), device, kind):
                self.result.owed = True
            else:
                self.pending.prove(kind)
        return True

    def _ranged(self, kind: str) -> bool:
        """Can the meter be asked for rows from here to there?"""
        profile = self.model.profiles[kind] if isinstance(self.model, DlmsModel) else None
        return profile is not None and profile.range in ("inclusive", "exclusive")

    async def _rows(
        self, request: ProfileRequest, now: float, meter_now: float
    ) -> AsyncIterator[tuple[Block | None, bool]]:
        """What a request brings, handed to the journal; and after each answer whether more will follow."""
        async for blocks, more in self._portions(request):
            for block in blocks:
                block = self._closed(block, request.kind, meter_now)
                if not block.rows:
                    continue
                self.result.rows += block.rows
                self.result.appended.append(
                    self._append(block, request.kind, int(min(meter_now, now)))
                )
                yield block, False
            yield None, more

    async def _go_back(self, device: str) -> bool:
        """Read what is missing without a cause, oldest first; False when some of it is left for another round."""
        await asyncio.wrap_future(self.journal.flush())  # the ledger knows what was read just now
        left = ROUND_ROWS
        for kind in kinds_of(self.model):
            if kind not in self.pending.unproven:
                continue
            obis, _ = profile_of(self.model, kind)
            entry = self._entry(device, obis)
            for span in self.pending.spans(entry, device, kind):
                assert entry is not None
                left = await self._read_span(kind, device, obis, span, entry.period, left)
                if left <= 0:
                    return False
            self.pending.prove(kind)
        return True

    async def _read_span(
        self, kind: str, device: str, obis: Obis, span: Span, period: int, left: int
    ) -> int:
        """Ask for a span and name what of it the meter does not hold; returns how many rows are left of this round."""
        now = self.clock.now()
        meter_now = now + (self.result.offset_s or 0.0)
        first, last, before = span
        while first <= last and left > 0:
            end = min(last, first + (left - 1) * period) if self._ranged(kind) else last
            request = ProfileRequest(kind, since=before - period, until=end + period)
            read: list[Block] = []
            whole = True
            async for block, more in self._rows(request, now, meter_now):
                read += [block] if block is not None else []
                if more and self.between is not None and await self.between():
                    whole = False
                    break
            times = [int(at) for block in read for at in as_list(block.times)]
            left -= len(times)
            newest = max([before, *times])
            end = end if whole else min(end, newest)
            for gap in told(
                read, Span(first, last, before), end + period if whole else end, period
            ):
                self._name(device, obis, gap)
            self.pending.reach(device, kind, end, newest)
            first, before = end + period, newest
            if not whole:
                return 0
        return left if first > last else 0

    async def _settle_layout(self, kind: str, device: str, obis: Obis, read: list[Block]) -> None:
        """After a proof that differs: rows since the one before were read again; what the meter lacks is doubted.

        The change is settled when all of it is durable: after a kill before that it is done once more.

        Raises:
            JournalError: the journal has no room.
        """
        relaid = getattr(self.driver, "relaid", None)
        before = relaid(kind) if relaid is not None else None
        if before is None:
            return
        again = {at for block in read for at in as_list(block.times)}
        lost = await asyncio.to_thread(
            doubtful, self.journal, self.meter.id, device, obis, kind, before, again
        )
        doubted = [self._append(block, kind, before) for block in lost]
        await asyncio.wrap_future(self.journal.flush())
        for future in self.result.appended:
            future.result()  # JournalError: it is not settled
        rows = sum(future.result().conflicts for future in doubted)
        if rows:
            log.warning(
                "meter %s: %d rows of %s were read since the last proof of its layout, which no longer holds, and the "
                "meter no longer has them: flagged layout-doubt",
                self.meter.id,
                rows,
                obis,
            )
        self.driver.settled(kind, rows)  # type: ignore[attr-defined]

    async def _portions(self, request: ProfileRequest) -> AsyncIterator[tuple[list[Block], bool]]:
        """Portions of a profile where the driver gives them, else all at once."""
        portions = getattr(self.driver, "portions", None)
        if portions is None:
            yield list(await self.driver.read_profile(request)), False
            return
        async for blocks, more in portions(request):
            yield blocks, more

    def _closed(self, block: Block, kind: str, meter_now: float) -> Block:
        """Without the open row of a billing period that still runs."""
        if kind != "billing":
            return block
        times = as_list(block.times)
        keep = [row for row, at in enumerate(times) if at < meter_now - OPEN_ROW_S]
        return block if len(keep) == len(times) else block.take(keep)

    def _name_absences(
        self, read: list[Block], watermark: int | None, obis: Obis, period_s: int, step: float
    ) -> None:
        """What the meter did not hold between the rows that it gave."""
        if not read or (len(read) == 1 and _gapless(read[0], watermark, period_s)):
            return
        device = read[-1].device
        found = absences(read, known=watermark, period=period_s, stepped_forward=step > 0)
        if not found:
            return
        entry = self._entry(device, obis)
        if entry is not None and watermark is not None:
            # after a clock was set ahead rows beyond the watermark are known, and what lies before them is named
            found = [
                gap
                for gap in found
                if gap.first > watermark + 1
                or not any(watermark < run.last and run.first <= gap.last for run in entry.runs)
            ]
        for gap in found:
            self._name(device, obis, gap)

    def _name(self, device: str, obis: Obis, gap: Absence) -> None:
        """Name what is missing where nobody did; in a power cut that the meter has logged, that is the cause."""
        if gap.cause == NO_SUCH_ROW:
            self.result.ask_log = True
            for off, on in self.memory.get("outages") or ():
                first, last = max(gap.first, off), min(gap.last, on or off)
                if first <= last:
                    self.journal.note_gap(
                        self.meter.id, device, obis, first, last, METER_POWER_OFF, over=""
                    )
        self.journal.note_gap(self.meter.id, device, obis, gap.first, gap.last, gap.cause, over="")

    def _note_outages(self, block: Block) -> None:
        """Power cuts from the meter's log: they are why it holds no rows of that time."""
        known: list[list[int]] = [list(cut) for cut in self.memory.get("outages") or ()]
        found = [list(cut) for cut in known]
        for at, is_on in event_codes.power_of(block, self.model):
            if not is_on and (not found or (found[-1][1] and at >= found[-1][1])):
                found.append([at, 0])
            elif is_on and found and not found[-1][1] and at >= found[-1][0]:
                found[-1][1] = at
        if found == known:
            return
        self.memory.put("outages", found[-KEPT_OUTAGES:])
        for off, on in found:
            if [off, on] in known or not on:
                continue
            for kind in self.pending.kinds:
                obis, period = profile_of(self.model, kind)
                passed = off // period != on // period
                if passed and self.journal.watermark(self.meter.id, block.device, obis):
                    # what was not asked for yet may be there: the row of the moment in which the supply failed
                    self.journal.note_gap(
                        self.meter.id,
                        block.device,
                        obis,
                        off,
                        on,
                        METER_POWER_OFF,
                        over=NO_SUCH_ROW,
                    )

    def _entry(self, device: str, obis: Obis) -> LedgerEntry | None:
        """The ledger of one profile of this meter; costs a look into the journal."""
        for entry in self.journal.ledger(self.meter.id):
            if (entry.device, entry.profile) == (device, obis):
                return entry
        return None

    def _name_unsampled(
        self, read: list[Block], obis: Obis, period_s: int, device: str, watermark: int | None
    ) -> None:
        """Boundaries between the last sample and this one that nobody named when they passed."""
        if not read or not period_s or watermark is None or read[-1].device != device:
            return
        at = max(as_list(read[-1].times))
        start, cause = 0, ""
        for boundary in [*range(watermark + period_s, at - period_s // 2, period_s), 0]:
            why = self.unsampled(boundary) if boundary else ""
            if why == cause:
                continue
            if cause:
                last = (boundary or at) - period_s
                self.journal.note_gap(self.meter.id, device, obis, start, last, cause, over="")
            start, cause = boundary, why

    def _append(self, block: Block, kind: str, ceiling: int) -> Future[Any]:
        """Into the journal; what no meter holds for long is safe within 200 ms."""
        times = as_list(block.times)
        newest = max(times)
        if self.result.offset_s is not None and block.q is None:
            block = msgspec.structs.replace(
                block, q={"clock_offset_s": round(self.result.offset_s)}
            )
        if self.meter.multiplier != 1:
            block = msgspec.structs.replace(block, multiplier=self.meter.multiplier)
        if kind.startswith("events"):
            block = msgspec.structs.replace(block, kind="events")
            proven = not any(bits & Flag.UNAUTHENTICATED for _, _, bits in block.flags)
            self.result.alarms += event_codes.alarms_of(
                block, self.model, self.clock.now(), authenticated=proven
            )
            self._note_outages(block)
            self._look_at_events(block)
        sampled = any(bits & Flag.SAMPLED for _, _, bits in block.flags)
        if not sampled:
            self._compare_energies(block)
        fleeting = sampled or held_s(self.model, kind) <= SAMPLE_PERIOD_S
        return self.journal.append(
            block,
            durable="soon" if fleeting else "lazy",
            lane="live" if newest > self.clock.now() - LIVE_S else "backlog",
            watermark=min(newest, ceiling),
        )


def _settled(
    memory: Memory, kind: str, offset: float | None, read_to: int | None, rows: Future[Any] | None
) -> None:
    """See `Visit._settle_clock`; keeps no visit alive."""
    if rows is not None and (rows.cancelled() or rows.exception() is not None):
        return
    before = memory.get(f"offset_s.{kind}")
    if offset is not None and (before is None or abs(offset - float(before)) >= 1):
        memory.put(f"offset_s.{kind}", round(offset))
    memory.put(f"read_to.{kind}", read_to)


def _gapless(block: Block, known: int | None, period_s: int) -> bool:
    """The usual case, told without a loop: one row a period, from a known one on."""
    first, last = int(block.times[0]), int(block.times[-1])
    return (
        period_s > 0
        and (last - first) // period_s == block.rows - 1
        and (known is None or first <= known + period_s)
    )
