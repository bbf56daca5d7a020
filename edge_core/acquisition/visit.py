"""One visit to one meter: what is due is read, and handed to the journal with its watermark.

Where a read starts (DESIGN section 7, "What is new"): two periods before the smaller of the watermark and the meter's
own clock, so that reads overlap and rows repeated by a clock set back are read with their neighbours; earlier still
when the clock was seen to step back. What is new the journal's ledger decides, never this file. The watermark handed
over never passes the meter's clock or ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.profiles import SAMPLE_PERIOD_S, is_sampled, kinds_of, profile_of
from edge_core.domain import Flag, as_list, make_alarm
from edge_core.schedule.agenda import Job
from edge_core.schedule.calendar import DAY_S, midnight_at_or_before

if TYPE_CHECKING:
    from concurrent.futures import Future
    from zoneinfo import ZoneInfo

    from edge_core.acquisition.drivers import Driver, Memory
    from edge_core.clock import Clock
    from edge_core.config.models import Model
    from edge_core.config.schema import Meter
    from edge_core.domain import Alarm, Block
    from edge_core.journal import Journal

OVERLAP_PERIODS = 2
LIVE_S = DAY_S  # what is older than this when it is read goes behind what is new
SAMPLE_TOLERANCE = 0.2  # of a period: a later sample is no sample of its boundary
CLOCK_STEP_MIN_S = 120.0


@dataclass(slots=True)
class Visited:
    """What a visit brought.

    Attributes:
        done: jobs that need not be done again before they are next due.
        rows: rows handed to the journal, known ones among them.
        appended: the journal's answers, still open.
        no_room: nothing could be asked, because our own disk did not take what must be on it first.
    """

    done: list[Job] = field(default_factory=list)
    rows: int = 0
    appended: list[Future[Any]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    device: str = ""
    offset_s: float | None = None
    error: errors.MeterError | None = None
    no_room: errors.JournalError | None = None


@dataclass(slots=True)
class Visit:
    """A visit under way."""

    meter: Meter
    model: Model
    driver: Driver
    journal: Journal
    clock: Clock
    zone: ZoneInfo
    memory: Memory | None = None
    result: Visited = field(default_factory=Visited)
    stepped_back_s: float = 0.0

    async def run(self, jobs: list[Job]) -> None:
        """Do the jobs in order; what is done stands in `result` even when an error ends the visit.

        Raises:
            MeterError: from the driver, or WrongMeter.
        """
        if is_sampled(self.model):
            jobs = [job for job in jobs if self._in_time(job)]
            if not jobs:
                return
        device = await self.driver.identify()
        self._check_serial(device.serial)
        self.result.device = device.serial
        self._take_notices()
        if not is_sampled(self.model):
            self._note_clock(await self.driver.clock_offset())
        for job in jobs:
            match job:
                case Job.INTERVAL:
                    await self._profile("interval", device.serial)
                case Job.MIDNIGHT:
                    await self._profile("midnight", device.serial)
                case Job.EVENTS:
                    for kind in kinds_of(self.model):
                        if kind.startswith("events"):
                            await self._profile(kind, device.serial)
                case Job.INSTANTANEOUS:
                    await self._profile("instantaneous", device.serial)
                case Job.CLOCK:
                    pass  # measured at each contact
            self.result.done.append(job)

    def _in_time(self, job: Job) -> bool:
        """Is now near enough to the boundary that this sample is for? What is late is a gap, not a reading."""
        now, period = self.clock.now(), SAMPLE_PERIOD_S
        if job is Job.MIDNIGHT:
            late = now - midnight_at_or_before(now, self.zone)
        else:
            late = now % period
        if late <= SAMPLE_TOLERANCE * period:
            return True
        self.result.done.append(job)
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
        if self.memory is None:
            return
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
        """What the driver noticed beside its reads becomes alarms: a counter that moved without us."""
        now = int(self.clock.now())
        for code, detail in getattr(self.driver, "notices", ()):
            self.result.alarms.append(
                make_alarm(
                    self.meter.id,
                    code,
                    at=now,
                    heard=now,
                    authenticated=False,
                    inferred=True,
                    detail=detail,
                )
            )

    def _note_clock(self, offset_s: float | None) -> None:
        """Compare the meter's clock with ours and with the last contact: a step back widens the next reads."""
        self.result.offset_s = offset_s
        if offset_s is None or self.memory is None:
            return
        before = self.memory.get("clock_offset_s")
        step = 0.0 if before is None else offset_s - before
        if before is None or abs(step) >= 1:
            self.memory.put("clock_offset_s", round(offset_s))
        if step <= -max(CLOCK_STEP_MIN_S, self.clock.speed):
            self.stepped_back_s = -step

    async def _profile(self, kind: str, device: str) -> None:
        obis, period_s = profile_of(self.model, kind)
        now = self.clock.now()
        meter_now = now + (self.result.offset_s or 0.0)
        since = None
        if not is_sampled(self.model):
            watermark = self.journal.watermark(self.meter.id, device, obis)
            if watermark is not None:
                reach = OVERLAP_PERIODS * max(period_s, 1) + self.stepped_back_s
                since = int(min(watermark, meter_now) - reach)
        blocks = await self.driver.read_profile(ProfileRequest(kind, since=since))
        for block in blocks:
            if not block.rows:
                continue
            self.result.rows += block.rows
            self.result.appended.append(self._append(block, kind, int(min(meter_now, now))))

    def _append(self, block: Block, kind: str, ceiling: int) -> Future[Any]:
        """Into the journal; what is sampled no meter holds, so it is safe within 200 ms."""
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
        sampled = any(bits & Flag.SAMPLED for _, _, bits in block.flags)
        return self.journal.append(
            block,
            durable="soon" if sampled else "lazy",
            lane="live" if newest > self.clock.now() - LIVE_S else "backlog",
            watermark=min(newest, ceiling),
        )
