"""Polling: lines, fairness, retry policy. What a visit does stands in visit.py.

Each line has a number of slots (`concurrency`); a serial line has one. What is due comes from the agenda, waits in the
line's queue by priority, and takes a slot. Meters that failed last time share a quarter of the slots, so that dead
meters, which cost a whole time-out each, do not lengthen the round of the others. A meter is visited by one task at a
time. What fails is tried again by the table POLICIES and by nothing else.

Bounds: one queue entry a meter, `concurrency` tasks a line, a visit ends after VISIT_S whatever the meter does.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

from edge_core import errors
from edge_core.acquisition.drivers import Site, open_driver
from edge_core.acquisition.profiles import SAMPLE_PERIOD_S, is_sampled, kinds_of
from edge_core.acquisition.visit import Visit, Visited
from edge_core.config.tables import ConfigErrors
from edge_core.domain import make_alarm
from edge_core.health import events
from edge_core.schedule.agenda import Agenda, Job, Priority
from edge_core.schedule.calendar import Daily, Every, Rule, parse_rule, phase_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Future

    from edge_core.acquisition.drivers import Driver, Tracer
    from edge_core.clock import Clock
    from edge_core.config.keys import KeyRing
    from edge_core.config.models import Model
    from edge_core.config.schema import Config, Line, Meter
    from edge_core.journal import CounterStore, Journal
    from edge_core.journal.datadir import Memories

log = logging.getLogger(__name__)
T = TypeVar("T")

VISIT_S = 120.0
SPREAD_OF_MIDNIGHT_S = 1800.0
FULL_PAUSE_S = 10.0
SILENT_AFTER = 3  # failed visits in a row before the alarm meter-silent


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do after an error. Seconds are real ones: lines and lock-outs do not scale.

    Attributes:
        retries: further attempts in the same visit, `delay_s` apart.
        first_s: the first pause before the next visit; doubles with each failed visit up to `max_s`.
    """

    retries: int
    delay_s: float
    first_s: float
    max_s: float


POLICIES: dict[type[errors.MeterError], Policy] = {
    errors.LineSilent: Policy(retries=1, delay_s=0.5, first_s=5, max_s=600),
    errors.MalformedReply: Policy(retries=1, delay_s=0.2, first_s=5, max_s=600),
    errors.MeterRefused: Policy(retries=0, delay_s=0, first_s=30, max_s=3600),
    errors.KeyRejected: Policy(retries=0, delay_s=0, first_s=60, max_s=6 * 3600),
    errors.WrongMeter: Policy(retries=0, delay_s=0, first_s=300, max_s=3600),
}


@dataclass(slots=True)
class MeterState:
    """What the poller knows of one meter while it runs."""

    config: Meter
    model: Model
    line: LineState
    failures: int = 0
    lost_at: float | None = None  # monotonic
    last_read: float | None = None  # civil
    last_error: errors.MeterError | None = None
    rows: int = 0
    silent_alarm: bool = False
    parked: tuple[str, float] | None = None  # reason, civil end
    busy: bool = False
    held: list[tuple[int, Any]] = field(default_factory=list)  # asked for during a visit
    device: str = ""
    offset_s: float | None = None


Action = tuple["Callable[[Driver], Awaitable[Any]]", "asyncio.Future[Any]", "Tracer | None"]


@dataclass(slots=True)
class LineState:
    """One line: its free slots and who waits for one."""

    config: Line
    free: int
    free_for_suspects: int
    healthy: list[tuple[int, int, str, Any]] = field(default_factory=list)
    suspects: list[tuple[int, int, str, Any]] = field(default_factory=list)


class Poller:
    """Polls the meters whose driver is among `drivers`.

    Args:
        config: the gateway's configuration.
        drivers: names of the drivers that this process runs: dlms, modbus.
    """

    def __init__(
        self,
        config: Config,
        *,
        drivers: Iterable[str],
        journal: Journal,
        counters: CounterStore,
        memories: Memories,
        keys: KeyRing,
        clock: Clock,
    ) -> None:
        self.config, self.clock, self.journal = config, clock, journal
        self._counters, self._memories, self._keys = counters, memories, keys
        self._zone = ZoneInfo(config.gateway.timezone)
        self._site = Site(config.gateway.title, config.gateway.timezone)
        self.agenda = Agenda(self._zone)
        self._sequence = itertools.count()
        self._wake = asyncio.Event()
        self._stopping = False
        self._full_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        self.on_block: Callable[[dict[str, Any]], None] | None = None  # `opendcu tap`
        self.lines = {
            line.id: LineState(line, line.concurrency, max(1, line.concurrency // 4))
            for line in config.lines.values()
        }
        names = set(drivers)
        self.meters: dict[str, MeterState] = {}
        for meter in config.meters.values():
            model = config.models[meter.model]
            if model.about.protocol in names:
                self.meters[meter.id] = MeterState(meter, model, self.lines[meter.line])
        for state in self.meters.values():
            self.agenda.add(state.config.id, self._rules(state), first=0.0)

    def _rules(self, state: MeterState) -> dict[Job, tuple[Rule, float]]:
        """The jobs of one meter, each with its constant phase.

        A meter without a load profile is sampled at each boundary of its capture period, at the same small offset
        every time (equal delays cancel); one with a load profile is asked for what it remembers, any time.
        """
        schedule, name, model = self.config.schedule, state.config.id, state.model
        rules: dict[Job, tuple[Rule, float]] = {}
        if is_sampled(model):
            period = SAMPLE_PERIOD_S
            peers = sum(1 for m in self.config.meters.values() if m.line == state.config.line)
            offset = phase_of(name, min(period / 20, peers * 0.2))
            if "interval" in kinds_of(model):
                rules[Job.INTERVAL] = (Every(period), offset)
            if "midnight" in kinds_of(model):
                rules[Job.MIDNIGHT] = (Daily(0), offset)
        else:
            for job, kind, text in (
                (Job.INTERVAL, "interval", schedule.interval_reads),
                (Job.MIDNIGHT, "midnight", schedule.midnight_reads),
            ):
                rule = parse_rule(text)
                if rule is not None and kind in kinds_of(model):
                    spread = rule.period_s if isinstance(rule, Every) else SPREAD_OF_MIDNIGHT_S
                    rules[job] = (rule, phase_of(name, spread))
        for job, kind, text in (
            (Job.EVENTS, "events", schedule.events),
            (Job.INSTANTANEOUS, "instantaneous", schedule.instantaneous),
        ):
            rule = parse_rule(text)
            if rule is not None and any(k.startswith(kind) for k in kinds_of(model)):
                spread = rule.period_s if isinstance(rule, Every) else SPREAD_OF_MIDNIGHT_S
                rules[job] = (rule, phase_of(name + kind, spread))
        return rules

    # --- running

    async def run(self) -> None:
        """Poll until `stop`; returns when the visits under way are over or cancelled."""
        try:
            while not self._stopping:
                self._wake.clear()
                if self.clock.synchronised():
                    for meter, jobs in self.agenda.take_due(self.clock.now()):
                        priority = min(job.priority for job in jobs)
                        self._enqueue(self.meters[meter], priority, jobs)
                    for line in self.lines.values():
                        self._start(line)
                await self._pause()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """End `run`; visits under way are cancelled, which releases their associations."""
        self._stopping = True
        self._wake.set()

    async def _pause(self) -> None:
        upcoming = self.agenda.next_time()
        real = 1.0
        if upcoming is not None:
            real = min(real, max(0.0, (upcoming - self.clock.now()) / self.clock.speed))
        try:
            async with asyncio.timeout(real):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _enqueue(self, state: MeterState, priority: int, work: Any) -> None:
        if state.busy:
            state.held.append((priority, work))
            return
        queue = state.line.suspects if state.failures else state.line.healthy
        heapq.heappush(queue, (priority, next(self._sequence), state.config.id, work))

    def _start(self, line: LineState) -> None:
        """Give free slots to who waits: the healthy by priority, suspects within their share."""
        while line.free:
            if line.suspects and line.free_for_suspects:
                queue = line.suspects
                if line.healthy and line.healthy[0][0] < queue[0][0]:
                    queue = line.healthy
            elif line.healthy:
                queue = line.healthy
            else:
                return
            suspect = queue is line.suspects
            priority, _, meter, work = heapq.heappop(queue)
            state = self.meters[meter]
            if state.busy:
                state.held.append((priority, work))
                continue
            if isinstance(work, list) and self._held_back(state, work):
                continue
            line.free -= 1
            line.free_for_suspects -= suspect
            state.busy = True
            task = asyncio.create_task(self._serve(state, work, suspect), name=f"visit {meter}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _held_back(self, state: MeterState, jobs: list[Job]) -> bool:
        """Parked meters and a full journal: the jobs come again later."""
        now = self.clock.now()
        if state.parked is not None and now < state.parked[1]:
            self.agenda.again(state.config.id, jobs, state.parked[1])
            return True
        full = self._full_until - self.clock.monotonic()
        if full > 0:
            self.agenda.again(state.config.id, jobs, now + full * self.clock.speed)
            return True
        return False

    async def _serve(self, state: MeterState, work: Any, suspect: bool) -> None:
        try:
            if isinstance(work, list):
                await self._visit(state, work)
            else:
                await self._act(state, work)
        finally:
            state.busy = False
            state.line.free += 1
            state.line.free_for_suspects += suspect
            held, state.held = state.held, []
            for priority, waiting in held:
                self._enqueue(state, priority, waiting)
            self._wake.set()

    def driver(self, state: MeterState, tracer: Tracer | None = None) -> Driver:
        """A fresh session with a meter; the caller closes it.

        Raises:
            KeyRejected: the keys of this meter are no keys, or their command failed.
        """
        try:
            keys = self._keys.get(state.config.id)
        except ConfigErrors as error:
            raise errors.KeyRejected(
                state.config.id, state.config.line, "keys", str(error), "See `opendcu check`."
            ) from error
        return open_driver(
            state.config,
            state.line.config,
            state.model,
            keys=keys,
            counters=self._counters,
            memory=self._memories.of(state.config.id),
            clock=self.clock,
            tracer=tracer,
            site=self._site,
        )

    async def _visit(self, state: MeterState, jobs: list[Job]) -> None:
        """One visit with the retries of the policy; the agenda learns what was done and what was not."""
        meter = state.config.id
        left = list(jobs)
        error: errors.MeterError | None = None
        attempt = 0
        while True:
            visited = await self._attempt(state, left)
            left = [job for job in left if job not in visited.done]
            error = visited.error
            if (
                visited.no_room is not None
            ):  # not the meter's fault, and no reason to ask it again soon
                self._refused(meter, visited.no_room)
                self.agenda.again(meter, left, self.clock.now() + FULL_PAUSE_S * self.clock.speed)
                return
            if error is None or not left:
                break
            policy = policy_of(error)
            if attempt >= policy.retries:
                break
            attempt += 1
            await asyncio.sleep(policy.delay_s)
        now = self.clock.now()
        if error is None:
            self._succeeded(state)
            self.agenda.done(meter, jobs, now)
            return
        self._failed(state, error)
        policy = policy_of(error)
        wait_s = min(policy.max_s, policy.first_s * 2 ** min(state.failures - 1, 20))
        done = [job for job in jobs if job not in left]
        if is_sampled(state.model):  # a boundary that has passed is not sampled later
            self.agenda.done(meter, jobs, now)
        else:
            self.agenda.again(meter, left, now + wait_s * self.clock.speed)
            self.agenda.done(meter, done, now)

    async def _attempt(self, state: MeterState, jobs: list[Job]) -> Visited:
        try:
            driver = self.driver(state)
        except errors.KeyRejected as error:
            refused = Visited()
            refused.error = error
            return refused
        visit = Visit(state.config, state.model, driver, self.journal, self.clock, self._zone)
        visit.memory = self._memories.of(state.config.id)
        try:
            async with asyncio.timeout(VISIT_S):
                await visit.run(jobs)
        except errors.MeterError as error:
            visit.result.error = error
        except errors.JournalError as error:  # counters must be on disk before they are used
            visit.result.no_room = error
        except TimeoutError as cause:
            visit.result.error = errors.LineSilent(
                state.config.id, state.config.line, "visit", f"not done within {VISIT_S:.0f} s"
            )
            visit.result.error.__cause__ = cause
        except Exception as unexpected:
            log.exception("visit of meter %s failed by a fault of ours", state.config.id)
            self.counts["faults"] += 1
            visit.result.error = errors.MalformedReply(
                state.config.id, state.config.line, "visit", f"fault of ours: {unexpected!r}"
            )
        finally:
            await driver.close()
        result = visit.result
        for future in result.appended:
            future.add_done_callback(functools.partial(self._appended, state))
        state.rows += result.rows
        if self.on_block is not None and result.rows:
            self.on_block(
                {
                    "meter": state.config.id,
                    "rows": result.rows,
                    "jobs": [j.name for j in result.done],
                }
            )
        if result.device:
            state.device = result.device
        if result.offset_s is not None:
            state.offset_s = result.offset_s
        for alarm in result.alarms:
            self.journal.alarm(alarm)
        return result

    def _appended(self, state: MeterState, future: Future[Any]) -> None:
        """From the journal's writer thread: what became of a block."""
        error = None if future.cancelled() else future.exception()
        if error is None:
            if not future.cancelled() and future.result().conflicts:
                now = int(self.clock.now())
                self.journal.alarm(
                    make_alarm(
                        state.config.id,
                        "value-conflict",
                        at=now,
                        heard=now,
                        authenticated=False,
                        inferred=True,
                        detail={"rows": future.result().conflicts},
                    )
                )
            return
        self._refused(state.config.id, error)

    def _refused(self, meter: str, error: BaseException) -> None:
        """Our disk takes nothing: acquisition pauses, the meters' memory is the deeper buffer. Any thread."""
        self._full_until = self.clock.monotonic() + FULL_PAUSE_S
        self.counts["refused-by-journal"] += 1
        events.journal_refused(meter, error)

    # --- what became of a meter

    def _succeeded(self, state: MeterState) -> None:
        state.last_read = self.clock.now()
        self.counts["visits"] += 1
        if state.failures:
            lost = self.clock.monotonic() - (state.lost_at or self.clock.monotonic())
            events.meter_back(state.config.id, lost, state.failures)
            if state.silent_alarm:
                self._alarm(state, "meter-back", {"silent_s": round(lost)})
        state.failures, state.lost_at, state.last_error = 0, None, None
        state.silent_alarm = False

    def _failed(self, state: MeterState, error: errors.MeterError) -> None:
        self.counts["failures"] += 1
        state.failures += 1
        state.last_error = error
        if state.failures == 1:
            state.lost_at = self.clock.monotonic()
            events.meter_lost(state.config.id, error)
        if isinstance(error, errors.KeyRejected) and state.failures == 1:
            self._alarm(state, "key-rejected", {"cause": str(error)})
        elif isinstance(error, errors.WrongMeter) and state.failures == 1:
            self._alarm(state, "wrong-meter", {"cause": str(error)})
        elif state.failures == SILENT_AFTER and not state.silent_alarm:
            state.silent_alarm = True
            self._alarm(state, "meter-silent", {"cause": str(error)})

    def _alarm(self, state: MeterState, code: str, detail: dict[str, Any]) -> None:
        now = int(self.clock.now())
        self.journal.alarm(
            make_alarm(
                state.config.id,
                code,
                at=now,
                heard=now,
                authenticated=False,
                inferred=True,
                detail=detail,
            )
        )

    # --- on demand

    async def on_demand(
        self,
        meter: str,
        action: Callable[[Driver], Awaitable[T]],
        *,
        tracer: Tracer | None = None,
        timeout_s: float = VISIT_S,
    ) -> T:
        """Run `action` with a session of the meter, before all scheduled work of its line.

        Raises:
            KeyError: no such meter here.
            MeterError: what the session raised.
            TimeoutError: no slot, or no end, within `timeout_s` real seconds.
        """
        state = self.meters[meter]
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._enqueue(state, Priority.ON_DEMAND, (action, future, tracer))
        self._wake.set()
        async with asyncio.timeout(timeout_s):
            return await future

    async def _act(self, state: MeterState, work: Action) -> None:
        action, future, tracer = work
        if future.done():  # nobody waits any more
            return
        try:
            driver = self.driver(state, tracer)
        except errors.KeyRejected as error:
            future.set_exception(error)
            return
        try:
            async with asyncio.timeout(VISIT_S):
                result = await action(driver)
            if not future.done():
                future.set_result(result)
        except Exception as error:  # noqa: BLE001 whoever asked gets it
            if not future.done():
                future.set_exception(error)
        finally:
            if not future.done():  # cancelled: the gateway stops
                future.cancel()
            await driver.close()

    async def sweep(self, meters: Iterable[str] | None = None, timeout_s: float = 60.0) -> int:
        """Visit meters (None = all) as soon as their lines allow, whatever their back-off says.

        Returns:
            How many were read since the call; at most `timeout_s` real seconds are waited.
        """
        began = self.clock.now()
        names = list(self.meters if meters is None else meters)
        for name in names:
            state = self.meters[name]
            if not is_sampled(state.model):
                self.agenda.now_due(name, None, began)
        self._wake.set()
        wanted = [self.meters[n] for n in names if not is_sampled(self.meters[n].model)]
        until = self.clock.monotonic() + timeout_s
        while self.clock.monotonic() < until:
            read = sum(1 for s in wanted if (s.last_read or 0) >= began)
            if read == len(wanted):
                break
            await asyncio.sleep(0.05)
        return sum(1 for s in wanted if (s.last_read or 0) >= began)

    def park(self, meter: str, reason: str, until: float) -> None:
        """Leave a meter alone until a civil instant; it is excused meanwhile."""
        self.meters[meter].parked = (reason, until)

    def unpark(self, meter: str) -> None:
        """Visit a parked meter again, now."""
        self.meters[meter].parked = None
        self.agenda.now_due(meter, None, self.clock.now())
        self._wake.set()


def policy_of(error: errors.MeterError) -> Policy:
    """The row of POLICIES for an error."""
    for kind in type(error).__mro__:
        if kind in POLICIES:
            return POLICIES[kind]
    return POLICIES[errors.LineSilent]
