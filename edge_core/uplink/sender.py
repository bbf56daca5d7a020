"""The sender: journals to client to acknowledgement, in three lanes.

Alarms leave in the turn of the loop in which they were heard. Notes and live blocks come next, backlog last. A message
has a number of its own for ever; until it is acked it is sent again with the same octets, 5 s after the PUBACK at
first, 60 s at last. Only an ack of the cloud (the PUBACK, if so configured) sets its rows free in the journal.

States of a part: pending (journal only) -> sent (deliveries, outbox) -> acked -> freed (journal), or aside (refused,
too large, malformed), from where a late ack still frees it. Limits: `MOST_OCTETS` of bulk payload and `MOST_MESSAGES`
wait for acks at a time, whatever is queued; the rest stays in the journal. Nothing here ends the process: a broker
that is away, a full disk and a broken message are conditions, counted and reported.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from edge_core import errors
from edge_core.journal.journals import base_of
from edge_core.uplink.alarm_lane import AlarmLane
from edge_core.uplink.deliveries import PASSING, Deliveries
from edge_core.uplink.outbox import ALARM, NOTE, SEGMENT, Outbox
from edge_core.uplink.packer import Draft, Packer, room_of
from edge_core.uplink.payloads import down, events
from edge_core.uplink.record import Record
from edge_core.uplink.register import Sources
from edge_core.uplink.status import Counts, Hooks, SenderStatus
from edge_core.uplink.topics import Topics
from edge_core.uplink.transmitter import Outcomes, Transmitter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.domain import Alarm
    from edge_core.journal import Journal, Journals
    from edge_core.uplink.clients import Client
    from edge_core.uplink.deliveries import Sent
    from edge_core.uplink.outbox import AsideRow, Item, Ref

T = TypeVar("T")

__all__ = ["Counts", "Hooks", "Sender", "SenderStatus"]

log = logging.getLogger(__name__)

MOST_OCTETS = 4 << 20
MOST_MESSAGES = 400
LINGER_S = 300.0  # civil seconds that live reads wait for company; 16 kB leave at once
BACK_OFF_S = (1.0, 60.0)
STABLE_S = 30.0  # a connection that lasted so long, or carried anything, makes the next back-off short again
NO_ACKS_S = 180.0
UNANSWERED_ATTEMPTS = 10  # with other messages acked meanwhile
SWEEP_S = 3_600.0
UNHEARD_RESENDS = 16  # without any ack in between; then a rest
REST_S = 60.0
LONGEST_NO_ACKS_S = 3_600.0
HOUSEKEEPING_S = 0.5
FAILURE_S = 2.0
LOOK_S = 10.0
ALARMS_LOOKED_AT = 2_000
STOP_S = 1.0


class Sender:
    """Sends what one journal holds, or those of all processes, through one client.

    Args:
        config: `[gateway]`, `[uplink]`, `[alarms]` are used.
        hooks: whom to tell.
        describe: what an event code of a meter means.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal | Journals,
        client: Client,
        clock: Clock,
        *,
        hooks: Hooks | None = None,
        describe: events.Describe = events.unknown,
        rng: random.Random | None = None,
        linger_s: float = LINGER_S,
        no_acks_s: float = NO_ACKS_S,
    ) -> None:
        dcu = config.gateway.id
        self._dcu = dcu
        self._journal, self._client, self._clock = journal, client, clock
        self._hooks = hooks or Hooks()
        self._rng = rng or random.Random()
        self._topics = Topics(
            config.uplink.topic_prefix, dcu, basic_ingest=config.uplink.basic_ingest
        )
        self._linger_s = linger_s / clock.speed
        self._no_acks_s = self._no_acks_after = no_acks_s
        self.counts = Counts()
        self._outbox = Outbox.open(config.data_dir / "uplink.db", clock=clock)
        self._outbox.on_rows = self._hooks.on_rows
        journal.register(Sources(self._outbox))
        self.record = Record(self._outbox)
        self._begin_epoch()
        self._deliveries = Deliveries(self._outbox)
        self._out = Transmitter(
            config,
            client,
            clock,
            self._outbox,
            self._deliveries,
            self.counts,
            Outcomes(self._stored, self._confirmed, self._set_aside, self._again, self._resized),
        )
        self._packer = Packer(
            journal,
            self._topics,
            covered=self._deliveries.covered,
            room=room_of(self._out.limit, dcu),
            describe=describe,
            seen=self._note_seen,
        )
        self._alarms = AlarmLane(
            self._topics,
            emit=self._emit_alarm,
            knows=self._deliveries.knows,
            clock=clock,
            batch_s=config.alarms.batch_ms / 1_000,
            room=self._packer.room,
            narrow=config.uplink.kind == "greengrass",
        )
        self._builder = concurrent.futures.ThreadPoolExecutor(1, "uplink builder")
        self._connected, self._stopping = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commit_told = False
        self._publishing: set[asyncio.Task[None]] = set()
        self._reason = "not yet connected"
        self._notes: deque[Draft] = deque()
        self._notes_after: dict[int, int] = {}
        self._notes_told = True
        self._last_ack = self._looked = self._swept = float("-inf")
        self._unanswered_since: float | None = None
        self._unheard_resends = 0
        self._rest_until = float("-inf")
        self._health: dict[str, Any] | None = None
        self._unreleased: list[Item] = []
        for row in self._outbox.aside.values():
            self._keep_aside(row)  # a kill may have come before the journal had committed it
        journal.on_alarm(self._alarm_from_any_thread)
        journal.on_commit(self._commit_from_any_thread)

    def _begin_epoch(self) -> None:
        """Number on in the journal's epoch, or in a new one where ours cannot know what was used in it."""
        outbox, epoch = self._outbox, self._journal.epoch
        why = ""
        if outbox.was_created and self._journal.is_used():
            why = outbox.was_damaged or "uplink.db is new, the journal is not"
        elif not outbox.was_created and epoch < outbox.epoch:
            why = "the journal is older than uplink.db"
        floor = max(outbox.epoch, epoch)
        for _ in range(3):  # a new epoch is the UTC second, or the last + 1
            if why and epoch <= floor:
                epoch = self._journal.renew_epoch()
        outbox.begin(epoch)
        if why:
            log.warning("uplink: new epoch %d: %s", epoch, why)
            self._hooks.on_new_epoch(epoch, why)

    # --- from outside

    def stop(self) -> None:
        """End in good order; any thread may call it once `run` runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopping.set)
        else:
            self._stopping.set()

    def publish_health(self, body: dict[str, Any]) -> None:
        """Publish how the box is, if connected; the latest only. On the event loop."""
        self._health = body
        if self._connected.is_set() and not self._out.spent_out:
            self._task(self._out.health(self._topics.plain("health"), body))

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish something that is no message of ours, once, and wait for the PUBACK; raises as `Client.publish`."""
        await self._client.publish(topic, payload)

    async def reconnect(self) -> None:
        """End the connection; another follows as after any loss, with the certificate that is due then."""
        await self._client.close()

    def status(self) -> SenderStatus:
        """How the uplink is. Any thread."""
        state = "connected" if self._connected.is_set() else "disconnected"
        return SenderStatus(
            "budget spent" if state == "connected" and self._out.spent_out else state,
            "" if self._connected.is_set() else self._reason,
            self._outbox.epoch,
            len(self._publishing),
            len(self._deliveries.sent),
            self._deliveries.aside,
            self._outbox.failed,
            self.counts,
        )

    async def run(self) -> None:
        """Send until `stop`. Ends within a few seconds of it; what is unacked is sent again by the next run."""
        self._loop = asyncio.get_running_loop()
        workers: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in (
                    ("connection", self._connections()),
                    ("bulk", self._bulk()),
                    ("housekeeping", self._housekeeping()),
                ):
                    workers.append(group.create_task(work, name=f"uplink {name}"))
                await self._stopping.wait()
                if self._publishing:
                    await asyncio.wait(list(self._publishing), timeout=STOP_S)
                for worker in workers:
                    worker.cancel()
        finally:
            self._connected.clear()
            for task in list(self._publishing):
                task.cancel()
            await self._client.close()
            self._loop = None
            self._builder.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._outbox.close)

    # --- wake-ups from other threads

    def _alarm_from_any_thread(self, alarm: Alarm) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended: the journal has it
                loop.call_soon_threadsafe(self._alarm_heard, alarm)

    def _commit_from_any_thread(self) -> None:
        loop = self._loop
        if loop is not None and not self._commit_told:
            self._commit_told = True
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._committed)

    def _committed(self) -> None:
        self._commit_told = False
        self._notes_told = True
        self._out.changed.set()

    def look(self) -> None:
        """Some alarms of other processes did not arrive: find them in their journals. On the event loop."""
        self._alarms.missed = True
        if self._connected.is_set() and not self._out.paused:
            self._task(self._look_for_alarms())

    def _note_seen(self, kind: str, sub: str, body: dict[str, object]) -> None:
        if kind == "replies":
            self.record.answered(sub, body)

    def _alarm_heard(self, alarm: Alarm) -> None:
        if self._connected.is_set() and not self._out.paused:
            self._alarms.heard(alarm, asyncio.get_running_loop())
        else:
            self._alarms.missed = True

    # --- connection

    async def _connections(self) -> None:
        wait = BACK_OFF_S[0]
        lost_logged = False
        while True:
            if not self._clock.synchronised():
                self._reason = "waiting for a valid clock"  # `sent` and TLS need one
                await asyncio.sleep(HOUSEKEEPING_S)
                continue
            began, published = self._clock.monotonic(), self.counts.published
            try:
                await self._client.connect()
                self.counts.connects += 1
                self._on_connected()
                lost_logged = False
                log.info("uplink: connected")
                async for arrived in self._client.messages():
                    self._arrived(arrived.topic, arrived.payload)
                reason = "closed"
            except errors.UplinkError as error:
                reason = str(error)
            except (
                Exception
            ) as error:  # the edge of a room: a client's bug must not end the gateway
                log.exception("uplink: the client failed")
                reason = f"{type(error).__name__}: {error}"
            finally:
                self._connected.clear()
                await self._client.close()
            self._reason = reason
            if not lost_logged:
                log.warning("uplink: not connected: %s", reason)
                lost_logged = True
                self._hooks.on_connected(False, reason)
            if self._clock.monotonic() - began > STABLE_S or self.counts.published > published:
                wait = BACK_OFF_S[0]
            await asyncio.sleep(wait * self._rng.uniform(0.5, 1.0))
            wait = min(BACK_OFF_S[1], wait * 2)

    def _on_connected(self) -> None:
        now = self._clock.monotonic()
        self._unanswered_since = None
        self._out.connected()
        for sent in self._deliveries.sent.values():
            if not sent.published:
                sent.due = now
        self._alarms.missed = True
        self._connected.set()
        self._out.changed.set()
        self._hooks.on_connected(True, "")
        self._task(self._after_connect())

    async def _after_connect(self) -> None:
        await self._look_for_alarms()
        await self._build(self._packer.demote)
        if self._health is not None:
            await self._out.health(self._topics.plain("health"), self._health)

    # --- down

    def _arrived(self, topic: str, payload: bytes) -> None:
        if topic == self._topics.acks:
            try:
                ack = down.decode_ack(payload)
            except ValueError as error:
                self.counts.down_malformed += 1
                log.warning("uplink: an ack that is none: %s", error)
                return
            self._take_ack(ack)
        elif topic.startswith(self._topics.commands):
            if len(payload) > down.MAX_DOWNWARD:
                self.counts.down_malformed += 1
                return
            self._hooks.on_command(topic.removeprefix(self._topics.commands), payload)
        else:
            self._hooks.on_other(topic, payload)

    def _take_ack(self, ack: down.Ack) -> None:
        if ack.dcu != self._dcu or ack.epoch != self._outbox.epoch or self._out.paused:
            self.counts.acks_ignored += 1
            return
        if ack.high > self._outbox.taken:
            self._out.paused = True
            self._task(
                self._renumber(
                    f"the cloud has n = {ack.high}, we used {self._outbox.taken} at most"
                )
            )
            return
        now = self._clock.monotonic()
        self._last_ack, self._unanswered_since = now, None
        self._unheard_resends, self._no_acks_after = 0, self._no_acks_s
        self._acked(ack.acked)
        for n, code, why in ack.rejected:
            self.counts.rejected += 1
            self._set_aside(n, "cloud-refused", f"{code}: {why}")
        self._out.changed.set()

    def _stored(self, n: int) -> None:
        self._acked([(n, n)])

    def _confirmed(self) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = self._clock.monotonic()

    def _resized(self, limit: int) -> None:
        self._packer.room = self._alarms.room = room_of(limit, self._dcu)

    def _acked(self, ranges: Iterable[tuple[int, int]]) -> None:
        numbers, items = self._deliveries.acked(ranges)
        self.counts.acked += len(numbers)
        if items:
            self._release(items)

    def _release(self, items: Sequence[Item]) -> None:
        future = self._journal.release(
            segments=[int(key) for kind, key in items if kind == SEGMENT],
            alarms=[str(key) for kind, key in items if kind == ALARM],
            notes=[int(key) for kind, key in items if kind == NOTE],
        )

        def check(done: concurrent.futures.Future[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                self._unreleased.extend(items)  # the disk refused: housekeeping says it again

        future.add_done_callback(check)

    def _set_aside(self, n: int, cause: str, why: str) -> None:
        row = self._deliveries.refuse(n, cause, why, int(self._clock.now()))
        if row is not None:
            self._report_aside(n, row)

    def _report_aside(self, n: int, row: AsideRow) -> None:
        log.warning("uplink: message %d set aside: %s: %s", n, row.cause, row.why)
        self._keep_aside(row)
        self._hooks.on_aside(n, row.cause, row.why)

    def _keep_aside(self, row: AsideRow) -> None:
        """Tell the journal of items of which nothing else is open: it serves them no more, and keeps them.

        Segments can be read again by their number; refused alarms and notes stay where they can be found again.
        """
        if row.cause in PASSING:
            return
        refused = row.cause == "cloud-refused"  # the one gap cause that fits (DESIGN section 7)
        items = self._deliveries.wholly_aside(row)
        segments = [int(key) for kind, key in items if kind == SEGMENT]
        broken = [int(key) for kind, key in items if kind == NOTE and not refused]
        if segments or broken:
            why = row.why if refused else f"{row.cause}: {row.why}"
            self._journal.set_aside("cloud-refused", why, segments=segments, notes=broken)

    async def _renumber(self, why: str) -> None:
        """A new epoch: everything unacked goes out again under new numbers."""
        log.warning("uplink: this journal is a restored copy: %s", why)
        try:
            epoch = await self._build(self._journal.renew_epoch)
            await self._build(self._outbox.begin, epoch)
            self._deliveries.load()
            await self._build(self._packer.reset)
            self._notes.clear()
            self._notes_after, self._notes_told = {}, True
            self._alarms.missed = True
        finally:
            self._out.paused = False
        self._out.changed.set()
        self._hooks.on_new_epoch(epoch, why)

    # --- up

    def _emit_alarm(self, draft: Draft) -> bool:
        sent = self._out.enter(draft) if self._connected.is_set() else None
        if sent is None:
            return False
        self._task(self._out.transmit(sent))
        return True

    async def _bulk(self) -> None:
        """Resends, notes, live, backlog, in this order, as window, quota and budget allow."""
        while True:
            await self._connected.wait()
            self._out.changed.clear()
            try:
                idle_s = await self._bulk_step()
            except Exception:  # the edge of a room: a file that cannot be read is no end of sending
                log.exception("uplink: the journal cannot be sent from")
                self.counts.failures += 1
                idle_s = FAILURE_S
            if idle_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.005, idle_s)):
                        await self._out.changed.wait()

    async def _bulk_step(self) -> float:
        """Send one message: 0.0. Or say for how many seconds there is nothing to do unless something wakes us."""
        if not self._out.free:
            return HOUSEKEEPING_S
        now = self._clock.monotonic()
        again, idle_s = (None, LOOK_S) if self._out.spent_out else self._next_resend(now)
        if again is not None:
            self.counts.resent += 1
            await self._out.bulk_turn(again)
            self._task(self._out.transmit(again))
            return 0.0
        if idle_s <= 0:
            return HOUSEKEEPING_S
        if len(self._deliveries.sent) >= MOST_MESSAGES or self._deliveries.octets >= MOST_OCTETS:
            return idle_s
        draft = await self._next_note()
        if draft is None and not self._out.spent_out:
            draft, when = await self._build(self._packer.draft, "live", now, self._linger_s)
            if draft is None:
                draft, _ = await self._build(self._packer.draft, "backlog", now, 0.0)
            if when is not None:
                idle_s = min(idle_s, when - now)
        self._book_refusals()
        if draft is None:
            return max(idle_s, 0.005)
        while (sent := self._out.enter(draft)) is None:
            await asyncio.sleep(HOUSEKEEPING_S)  # the disk is full, or a new epoch begins
            if self._out.paused:
                return HOUSEKEEPING_S  # the packer begins again and will make this draft anew
        await self._out.bulk_turn(sent)
        self._task(self._out.transmit(sent))
        return 0.0

    def _next_resend(self, now: float) -> tuple[Sent | None, float]:
        """The first bulk message that is due again, or for how long none is (0 = one is, and may not leave yet)."""
        soonest = now + LOOK_S
        for sent in self._deliveries.sent.values():
            if sent.lane == "alarms" or sent.in_flight:
                continue
            if sent.due > now:
                soonest = min(soonest, sent.due)
            elif not self._out.may_leave(sent):
                return None, 0.0  # nothing may follow it until what is under way is through
            elif sent.published and self._unheard_resends >= UNHEARD_RESENDS:
                # nobody answers: a few now and then are enough to notice when somebody does again
                if now < self._rest_until:
                    soonest = min(soonest, self._rest_until)
                    continue
                self._unheard_resends, self._rest_until = 1, now + REST_S
                return sent, 0.0
            else:
                if sent.published:
                    self._unheard_resends += 1
                    self._rest_until = now + REST_S
                return sent, 0.0
        return None, soonest - now

    async def _next_note(self) -> Draft | None:
        if not self._notes and self._notes_told:
            self._notes_told = False

            def read() -> list[Draft]:
                out = []
                for base in self._journal.heads():
                    after = self._notes_after.get(base, base)
                    for note, drafts in self._packer.note_drafts(after, self._deliveries.knows):
                        self._notes_after[base] = note
                        self._notes_told = True  # perhaps there are more
                        out += drafts
                return out

            self._notes.extend(await self._build(read))
        return self._notes.popleft() if self._notes else None

    def _book_refusals(self) -> None:
        """Set aside what the packer could not put into any message."""
        while self._packer.refused:
            n = self._outbox.take()
            if n is None:
                return
            refusal = self._packer.refused.pop(0)
            row = self._deliveries.refuse_unsent(
                n, refusal.refs, refusal.cause, refusal.why, int(self._clock.now())
            )
            self._report_aside(n, row)

    def _again(self, refs: Iterable[Ref]) -> None:
        parts = list(refs)
        if any(ref.kind == ALARM for ref in parts):
            self._alarms.missed = True
        if any(ref.kind == NOTE for ref in parts):
            self._notes_after, self._notes_told = {}, True
        self._task(self._build(self._packer.again, parts))

    # --- housekeeping

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            if self._unreleased:
                items, self._unreleased = self._unreleased, []
                self._release(items)
            if not self._connected.is_set() or self._out.paused:
                continue
            try:
                await self._keep_house(self._clock.monotonic())
            except Exception:  # the edge of a room, as above
                log.exception("uplink: housekeeping failed")
                self.counts.failures += 1

    async def _keep_house(self, now: float) -> None:
        for sent in list(self._deliveries.sent.values()):
            if sent.lane == "alarms" and not sent.in_flight and sent.due <= now and sent.attempts:
                self.counts.resent += 1
                self._task(self._out.transmit(sent))
        if self._alarms.missed or now - self._looked > LOOK_S:
            self._looked = now
            await self._look_for_alarms()
        await self._watch_acks(now)
        if now - self._swept > SWEEP_S:
            self._swept = now
            await self._sweep()
        if refs := self._deliveries.retry(self._clock.now()):
            self._again(refs)

    async def _look_for_alarms(self) -> None:
        """Alarms that the journal holds and that are not under way."""
        self._alarms.missed = False
        limit = ALARMS_LOOKED_AT + self._deliveries.open_alarms()
        found = await self._build(self._journal.alarms_waiting, limit)
        late = [
            (ALARM, alarm.id) for alarm in found if self._deliveries.released((ALARM, alarm.id))
        ]
        if late:  # acked before the journal had committed them
            self._release(late)
        self._alarms.found(found)

    async def _watch_acks(self, now: float) -> None:
        """Publishing works and nobody answers: make connection and subscription anew. Also single messages."""
        since = self._unanswered_since
        if since is not None and now - since > self._no_acks_after:
            log.warning(
                "uplink: no ack for %.0f s while publishing works: connecting anew", now - since
            )
            self.counts.no_acks += 1
            self._no_acks_after = min(LONGEST_NO_ACKS_S, self._no_acks_after * 2)
            self._unanswered_since = None
            self._hooks.on_no_acks(now - since)
            await self._client.close()
            return
        if now - self._last_ack > 2 * REST_S:
            return
        for sent in list(self._deliveries.sent.values()):
            if (
                sent.lane != "alarms"
                and sent.attempts >= UNANSWERED_ATTEMPTS
                and not sent.in_flight
            ):
                self._set_aside(sent.n, "unanswered", f"{sent.attempts} times, others were acked")

    async def _sweep(self) -> None:
        """Forget records of earlier runs whose items the journal has let go."""
        items = self._deliveries.only_earlier()
        if not items:
            return

        def gone() -> list[Item]:
            segments, notes = {}, {}  # the first that waits, by base
            for base, head in self._journal.heads().items():
                waiting = self._journal.segments(base, lane=None, limit=1)
                segments[base] = waiting[0].id if waiting else head + 1
                first = self._journal.notes_waiting(base, 1)
                notes[base] = first[0].id if first else 0
            alarms = {a.id for a in self._journal.alarms_waiting(1_000_000)}

            def is_gone(kind: str, key: int | str) -> bool:
                if kind == ALARM:
                    return key not in alarms
                firsts = segments if kind == SEGMENT else notes
                first = firsts.get(base_of(int(key)))  # None: so is its file
                return first is None or int(key) < first

            return [(kind, key) for kind, key in items if is_gone(kind, key)]

        self._deliveries.release(await self._build(gone))

    # --- small

    async def _build(self, work: Callable[..., T], *args: Any) -> T:
        """Run in the builder's thread, which alone touches packer and journal reads."""
        return await asyncio.get_running_loop().run_in_executor(self._builder, work, *args)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._publishing.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._publishing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("uplink: %s", error, exc_info=error)
