"""Polling: who is visited when. What a visit does stands in visit.py, who may speak on a line in lines.py.

What is due comes from the agenda, waits in the line's lane by priority, and takes a slot. A meter is visited by one
task at a time. What fails is tried again by the table POLICIES (standing.py) and by nothing else: at once while the
meter was well before, and then as a suspect, after a pause that doubles. On-demand work goes before all scheduled work
of its line, and between the portions of a long read.

Nothing is due while our clock is invalid. When it was set back, what waits is planned again; what it jumped over while
meters without memory should have been sampled is a gap of cause gateway-clock.

Bounds: one queue entry a meter, the slots of lines.py, a visit ends after VISIT_S whatever the meter does, and gives way
after half of that.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo

from edge_core import errors
from edge_core.acquisition.backfill import periodic
from edge_core.acquisition.causes import (
    GATEWAY_CLOCK,
    GATEWAY_OFF,
    JOURNAL_FULL,
    cause_of,
    refusal_of,
)
from edge_core.acquisition.clockwatch import ClockWatch
from edge_core.acquisition.drivers import Site, open_driver
from edge_core.acquisition.kept import KeptSessions
from edge_core.acquisition.lines import Lane, Turn
from edge_core.acquisition.profiles import (
    SAMPLE_PERIOD_S,
    held_s,
    is_sampled,
    keeps,
    kinds_of,
    profile_of,
)
from edge_core.acquisition.standing import LineState, MeterState, policy_of
from edge_core.acquisition.visit import MIDNIGHT_LATE_S, Visit, Visited
from edge_core.config.tables import ConfigErrors
from edge_core.domain import make_alarm
from edge_core.health import events
from edge_core.schedule.agenda import Agenda, Job, Priority
from edge_core.schedule.calendar import (
    Daily,
    Every,
    Rule,
    midnight_at_or_before,
    parse_rule,
    phase_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Future

    from edge_core.acquisition.drivers import Driver, Tracer
    from edge_core.clock import Clock
    from edge_core.config.keys import KeyRing
    from edge_core.config.schema import Config
    from edge_core.journal import CounterStore, Journal
    from edge_core.journal.datadir import Memories

log = logging.getLogger(__name__)
T = TypeVar("T")

VISIT_S = 120.0
LOOK_MIN_S = 0.005
SPREAD_OF_MIDNIGHT_S = 1800.0
FULL_PAUSE_S = 10.0
SILENT_AFTER = 3  # failed visits in a row before the alarm meter-silent

Action = tuple["Callable[[Driver], Awaitable[Any]]", "asyncio.Future[Any]", "Tracer | None"]


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
        counters: CounterStore | None,
        memories: Memories,
        keys: KeyRing,
        clock: Clock,
    ) -> None:
        self.config, self.clock, self.journal = config, clock, journal
        self._counters, self._memories, self._keys = counters, memories, keys
        self._zone = ZoneInfo(config.gateway.timezone)
        self._site = Site(config.gateway.title, config.gateway.timezone)
        self.agenda = Agenda(self._zone)
        self.watch = ClockWatch(
            clock.now(), clock.monotonic(), clock.speed, valid=clock.synchronised()
        )
        self._wake = asyncio.Event()
        self._stopping = False
        self._full_until = 0.0
        self.kept = KeptSessions()
        self.counts: Counter[str] = Counter()
        self.on_block: Callable[[dict[str, Any]], None] | None = None  # `opendcu tap`
        self.lines = {
            line.id: LineState(line, Lane(line.concurrency)) for line in config.lines.values()
        }
        names = set(drivers)
        self.meters: dict[str, MeterState] = {}
        kinds = {name: periodic(model) for name, model in config.models.items()}
        for meter in config.meters.values():
            model = config.models[meter.model]
            if model.about.protocol in names:
                self.meters[meter.id] = MeterState(
                    meter, model, self.lines[meter.line], memories.of(meter.id)
                )
        for state in self.meters.values():
            state.recall(clock.now(), clock.monotonic())
            state.pending.kinds = kinds[state.config.model]
            state.pending.doubt()
            self.agenda.add(state.config.id, self._rules(state), first=0.0)

    def _rules(self, state: MeterState) -> dict[Job, tuple[Rule, float]]:
        """The jobs of one meter, each with its constant phase.

        A meter without a load profile is sampled at each boundary of its capture period, at the same small offset
        every time (equal delays cancel); what a meter keeps itself it is asked for by the schedule, so that its own
        clock has passed the boundary.
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
        for job, kind, text in (
            (Job.INTERVAL, "interval", schedule.interval_reads),
            (Job.MIDNIGHT, "midnight", schedule.midnight_reads),
        ):
            rule = parse_rule(text)
            if held_s(model, kind) > SAMPLE_PERIOD_S and kind in kinds_of(model):
                rules.pop(job, None)
                if rule is not None:
                    spread = rule.period_s if isinstance(rule, Every) else SPREAD_OF_MIDNIGHT_S
                    rules[job] = (rule, phase_of(name, spread))
        for job, kind, text in (
            (Job.BILLING, "billing", schedule.billing),
            (Job.EVENTS, "events", schedule.events),
            (Job.INSTANTANEOUS, "instantaneous", schedule.instantaneous),
            (Job.CLOCK, "", schedule.clock_check),
        ):
            rule = parse_rule(text)
            has = (
                any(k.startswith(kind) for k in kinds_of(model))
                if kind
                else not is_sampled(model) and bool(kinds_of(model))  # some meters only push
            )
            if rule is not None and has:
                spread = rule.period_s if isinstance(rule, Every) else SPREAD_OF_MIDNIGHT_S
                rules[job] = (rule, phase_of(name + kind, spread))
        return rules

    # --- running

    async def run(self) -> None:
        """Poll until `stop`; returns when the visits under way are over or cancelled."""
        try:
            while not self._stopping:
                self._wake.clear()
                self._look_at_clock()
                if self.clock.synchronised():
                    for meter, jobs in self.agenda.take_due(self.clock.now()):
                        state = self.meters[meter]
                        priority = min(job.priority for job in jobs)
                        self._enqueue(
                            state,
                            max(priority, Priority.BACKFILL) if state.backlog else priority,
                            jobs,
                        )
                for line in self.lines.values():
                    self._start(line)
                await self._pause()
        finally:
            visits = [task for line in self.lines.values() for task in line.visits.values()]
            for task in visits:
                task.cancel()
            await asyncio.gather(*visits, return_exceptions=True)
            await self.kept.close()

    def stop(self) -> None:
        """End `run`; visits under way are cancelled, which releases their associations."""
        self._stopping = True
        self._wake.set()

    async def _pause(self) -> None:
        upcoming = self.agenda.next_time()
        real = 1.0
        if upcoming is not None:
            real = min(real, max(0.0, (upcoming - self.clock.now()) / self.clock.speed))
        if not self.clock.synchronised():
            real = 1.0  # what is due stays due
        try:
            async with asyncio.timeout(real):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _look_at_clock(self) -> None:
        """Our own clock: after a step back everything that waits is planned again."""
        now = self.clock.now()
        step = self.watch.look(now, self.clock.monotonic(), valid=self.clock.synchronised())
        if not step:
            return
        self.counts["clock-steps"] += 1
        if step < 0:
            self.agenda.replan(now)
        self._alarm("", "clock", {"step_s": round(step)})

    def _unsampled(self, boundary: int) -> str:
        """Why a boundary was not sampled that nobody named when it passed."""
        return GATEWAY_CLOCK if self.watch.explains(boundary) else GATEWAY_OFF

    def _enqueue(self, state: MeterState, priority: int, work: Any) -> None:
        if state.busy:
            state.held.append((priority, work))
            return
        scheduled = isinstance(work, list)
        state.queued = state.queued or scheduled
        state.line.lane.put(
            priority, state.config.id, work, suspect=scheduled and state.failures > 0
        )

    def _start(self, line: LineState) -> None:
        """Give free slots to who waits."""
        if self._stopping:
            return
        while (turn := line.lane.take(self.clock.monotonic())) is not None:
            state, work = self.meters[turn.meter], turn.work
            scheduled = isinstance(work, list)
            if scheduled:
                state.queued = False
            if state.busy:
                state.held.append((turn.priority, work))
            elif not scheduled or not self._held_back(state, work):
                state.busy = True
                line.visits[turn.meter] = asyncio.create_task(
                    self._serve(state, turn), name=f"visit {turn.meter}"
                )
                continue
            line.lane.end(turn, turn.began, good=False)
        if line.look is None:
            self._look_in(line)

    def _look_in(self, line: LineState) -> None:
        """Come back when a visit has called for too long while others wait."""
        line.look = None
        wait_s = line.lane.look_in(self.clock.monotonic())
        if wait_s is not None and not self._stopping:
            line.look = asyncio.get_running_loop().call_later(
                max(wait_s, LOOK_MIN_S), self._relieve, line
            )

    def _relieve(self, line: LineState) -> None:
        """Silent meters hand their slots on."""
        line.look = None
        for turn in line.lane.relieve(self.clock.monotonic()):
            line.visits[turn.meter].cancel()
        self._start(line)

    def _held_back(self, state: MeterState, jobs: list[Job]) -> bool:
        """Parked meters and a full journal: the jobs come again later."""
        now = self.clock.now()
        if state.parked is not None and now < state.parked[1]:
            self.agenda.again(state.config.id, jobs, state.parked[1])
            return True
        full = self._full_until - self.clock.monotonic()
        if full > 0:
            self._put_off(state, jobs, [], JOURNAL_FULL, full)
            return True
        return False

    async def _serve(self, state: MeterState, turn: Turn[Any]) -> None:
        lane, good = state.line.lane, False
        try:
            if isinstance(turn.work, list):
                good = await self._visit(state, turn)
            else:
                lane.answered(turn, self.clock.monotonic(), counts=False)  # somebody waits for it
                good = await self._act(state, turn.work)
        except asyncio.CancelledError:
            if not turn.put_off or self._stopping:
                raise
            # broken off because it did not answer while others waited: it comes again as a suspect
            self.counts["put-off"] += 1
            state.queued = True
            lane.put(turn.priority, turn.meter, turn.work, suspect=True)
        finally:
            state.line.visits.pop(turn.meter, None)
            state.busy = False
            lane.end(turn, self.clock.monotonic(), good=good)
            held, state.held = state.held, []
            for priority, waiting in held:
                self._enqueue(state, priority, waiting)
            self._start(state.line)
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
            memory=state.memory,
            clock=self.clock,
            tracer=tracer,
            site=self._site,
        )

    async def _visit(self, state: MeterState, turn: Turn[list[Job]]) -> bool:
        """One visit with the retries of the policy; the agenda learns what was done and what was not.

        Returns:
            True when everything was read.
        """
        meter, jobs = state.config.id, turn.work
        left = list(jobs)
        error: errors.MeterError | None = None
        attempt = 0
        while True:
            visited = await self._attempt(state, left, turn)
            left = [job for job in left if job not in visited.done]
            error = visited.error
            if visited.no_room is not None:
                # not the meter's fault, and no reason to ask it again soon
                self._refused(meter, visited.no_room)
                self.agenda.again(meter, left, self.clock.now() + FULL_PAUSE_S * self.clock.speed)
                return False
            if error is None or not left:
                break
            policy = policy_of(error)
            if attempt >= policy.retries or turn.suspect:
                break
            attempt += 1
            await asyncio.sleep(policy.delay_s)
        now = self.clock.now()
        done = [job for job in jobs if job not in left]
        if error is None:
            state.backlog = visited.gave_way
            if visited.device:  # else it was too late to ask
                self._succeeded(state)
            if visited.gave_way:
                self.agenda.again(meter, left, now)
            self.agenda.done(meter, done, now)
            if visited.owed:
                self.agenda.again(meter, [Job.BACKFILL], now)
            if visited.ask_log and Job.EVENTS not in jobs:
                self.agenda.now_due(meter, [Job.EVENTS], now)
            return True
        self._failed(state, error)
        self._put_off(state, left, done, state.cause, policy_of(error).pause_s(state.failures))
        return False

    def _put_off(
        self, state: MeterState, left: list[Job], done: list[Job], cause: str, pause_s: float
    ) -> None:
        """What the meter keeps is due again after a pause of real seconds; a boundary that has passed is not sampled later.

        Nor is a midnight, once the sample before it is nearer.
        """
        now = self.clock.now()
        due = now + pause_s * self.clock.speed
        near = due - midnight_at_or_before(now, self._zone) <= MIDNIGHT_LATE_S
        kept = [
            job
            for job in left
            if keeps(state.model, job.name.lower()) or (job is Job.MIDNIGHT and near)
        ]
        lost = [job for job in left if job not in kept]
        self._miss(state, lost, cause)
        self.agenda.again(state.config.id, kept, due)
        self.agenda.done(state.config.id, done + lost, now)

    def _miss(self, state: MeterState, jobs: list[Job], cause: str) -> None:
        """The samples of these jobs were not taken, and nobody can take them later."""
        for job in jobs:
            kind = job.name.lower()
            if kind in ("interval", "midnight"):
                self._miss_kind(state, kind, cause)

    def _miss_kind(self, state: MeterState, kind: str, cause: str) -> None:
        if not state.device:
            return  # never read: the completeness figures count it by the meter list
        now = self.clock.now()
        if kind == "midnight":
            boundary = midnight_at_or_before(now, self._zone)
        else:
            boundary = int(now // SAMPLE_PERIOD_S) * SAMPLE_PERIOD_S
        obis, _ = profile_of(state.model, kind)
        if self.journal.watermark(state.config.id, state.device, obis) is None:
            return
        self.journal.note_gap(state.config.id, state.device, obis, boundary, boundary, cause)

    async def _between(self, state: MeterState, turn: Turn[Any], driver: Driver) -> bool:
        """Between two portions of a long read: who asked for this meter is served, who needs the line gets it."""
        held, state.held = state.held, []
        for priority, work in held:
            if (
                isinstance(work, list) or work[2] is not None
            ):  # scheduled, or with a trace of its own
                state.held.append((priority, work))
            else:
                await self._run_action(work, driver)
        if self.clock.monotonic() - turn.began > VISIT_S / 2:
            return True
        return state.line.lane.urgent(turn.priority)

    async def _attempt(self, state: MeterState, jobs: list[Job], turn: Turn[list[Job]]) -> Visited:
        kept = self.kept.take(state.config.id)
        if kept is not None:
            result = await self._attempt_with(kept, state, jobs, turn)
            given_up = result.error is not None and not result.rows
            if not given_up or isinstance(result.error, errors.WrongMeter):
                return result
            # the meter had given the association up, with a word or without: another one will tell
        try:
            driver = self.driver(state)
        except errors.KeyRejected as error:
            refused = Visited()
            refused.error = error
            return refused
        return await self._attempt_with(driver, state, jobs, turn)

    async def _attempt_with(
        self, driver: Driver, state: MeterState, jobs: list[Job], turn: Turn[list[Job]]
    ) -> Visited:
        def answered() -> None:
            state.line.lane.answered(turn, self.clock.monotonic())

        listen = getattr(driver, "on_answer", None)
        if listen is not None:
            listen(answered)
        visit = Visit(
            state.config,
            state.model,
            driver,
            self.journal,
            self.clock,
            self._zone,
            state.memory,
            set_meters=self.config.clock.set_meters == "on",
            between=lambda: self._between(state, turn, driver),
            unsampled=self._unsampled,
            pending=state.pending,
            deltas=state.deltas,
            answered=answered,
        )
        well = False
        try:
            async with asyncio.timeout(VISIT_S):
                await visit.run(jobs)
            well = True
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
            if not well or self._stopping or not self.kept.keep(state.config.id, driver):
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
        for kind in result.late:
            self._miss_kind(state, kind, state.cause or GATEWAY_OFF)
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
        state.pending.doubt()  # later rows may be taken
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
                self._alarm(state.config.id, "meter-back", {"silent_s": round(lost)})
        state.regain()

    def _failed(self, state: MeterState, error: errors.MeterError) -> None:
        self.counts["failures"] += 1
        refused = refusal_of(error.__cause__)
        if refused:
            self.counts[refused] += 1
        cause = cause_of(error)
        self.counts[cause] += 1
        news = state.lose(self.clock.now(), self.clock.monotonic(), error, cause)
        if news:
            events.meter_lost(state.config.id, error)
        if isinstance(error, errors.KeyRejected) and news:
            self._alarm(state.config.id, "key-rejected", {"cause": str(error)})
        elif isinstance(error, errors.WrongMeter) and news:
            self._alarm(state.config.id, "wrong-meter", {"cause": str(error)})
        elif state.failures == SILENT_AFTER and not state.silent_alarm:
            state.silent_alarm = True
            self._alarm(state.config.id, "meter-silent", {"cause": str(error)})

    def _alarm(self, meter: str, code: str, detail: dict[str, Any]) -> None:
        now = int(self.clock.now())
        self.journal.alarm(
            make_alarm(
                meter,
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
        self._start(state.line)
        async with asyncio.timeout(timeout_s):
            return await future

    async def _act(self, state: MeterState, work: Action) -> bool:
        _, future, tracer = work
        if future.done():  # nobody waits any more
            return False
        await self.kept.release(state.config.id)
        try:
            driver = self.driver(state, tracer)
        except errors.KeyRejected as error:
            future.set_exception(error)
            return False
        try:
            return await self._run_action(work, driver)
        finally:
            if not future.done():  # cancelled: the gateway stops
                future.cancel()
            await driver.close()

    async def _run_action(self, work: Action, driver: Driver) -> bool:
        action, future, _ = work
        if future.done():
            return False
        try:
            async with asyncio.timeout(VISIT_S):
                result = await action(driver)
        except Exception as error:  # noqa: BLE001 whoever asked gets it
            if not future.done():
                future.set_exception(error)
            return False
        if not future.done():
            future.set_result(result)
        return True

    async def sweep(self, meters: Iterable[str] | None = None, timeout_s: float = 60.0) -> int:
        """Visit meters (None = all) as soon as their lines allow, whatever their back-off says.

        Of a meter that is sampled only what it keeps is due: a sample of now is none of a boundary that has passed.

        Returns:
            How many were read since the call; at most `timeout_s` real seconds are waited.
        """
        began = self.clock.now()
        names = list(self.meters if meters is None else meters)
        for name in names:
            state = self.meters[name]
            if keeps(state.model, "interval") and not state.queued:  # who waits is visited anyway
                jobs = [Job.INTERVAL] if is_sampled(state.model) else None
                self.agenda.now_due(name, jobs, began)
        self._wake.set()
        wanted = [self.meters[n] for n in names if keeps(self.meters[n].model, "interval")]
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while loop.time() < until:
            read = sum(1 for s in wanted if (s.last_read or 0) >= began)
            if read == len(wanted):
                break
            await asyncio.sleep(0.05)
        return sum(1 for s in wanted if (s.last_read or 0) >= began)

    async def go_back(self, meter: str, timeout_s: float = 60.0) -> int:
        """Look for what is missing without a cause and read it, and all that is due; as `sweep`."""
        self.meters[meter].pending.doubt()
        return await self.sweep([meter], timeout_s)

    def park(self, meter: str, reason: str, until: float) -> None:
        """Leave a meter alone until a civil instant; it is excused meanwhile."""
        self.meters[meter].park(self.clock.now(), until, reason)

    def unpark(self, meter: str) -> None:
        """Visit a parked meter again, now."""
        now = self.clock.now()
        self.meters[meter].unpark(now)
        self.agenda.now_due(meter, None, now)
        self._wake.set()
