"""Builds every room from the configuration, runs them, stops them in order.

One process plays all roles, or several share them (split.py): each writes a journal of its own, the one with the uplink
reads the others' as well and speaks for all. Start: lock, journal, counters, then what writes (listener, poller), then what sends. Stop: what writes first, then a
flush, then the sender, then the files. SIGTERM is safe within STOP_S at any point; what is not flushed by then is
still in the meters, and the watermark knows it.

Broker, meters, disk and clock are never a reason to end; a fault of our own in one room ends the process with its
traceback, for a service manager to start it again from a clean state.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
from typing import TYPE_CHECKING, Any

from edge_core import __version__
from edge_core.acquisition.event_codes import describe
from edge_core.acquisition.poller import Poller
from edge_core.config.keys import KeyRing
from edge_core.domain import make_alarm
from edge_core.gateway import split, wires
from edge_core.gateway.commands import Desk, Runner
from edge_core.gateway.daily import Daily
from edge_core.gateway.inbox import Inbox
from edge_core.gateway.peers import Peers
from edge_core.gateway.room import RoomWatch
from edge_core.gateway.tending import tend
from edge_core.gateway.views import Views
from edge_core.gateway.whole import WholeView
from edge_core.health import events
from edge_core.health.watchdog import Watchdog, notify
from edge_core.journal import CounterStore, Journals
from edge_core.journal.datadir import DataDirectory, Memories
from edge_core.transports.control import ControlServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Future

    from edge_core.acquisition.listener import Listener
    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.domain import Alarm
    from edge_core.uplink.payloads.events import Meaning
    from edge_core.uplink.sender import Sender
    from edge_core.uplink.services import Services

log = logging.getLogger(__name__)
STOP_S = 4.0
HOUSEKEEPING_S = 60.0
TEND_S = 3_600.0
POLLING_ROLES = ("dlms", "modbus")


class Gateway:
    """One process of a gateway, with the roles that it plays.

    Args:
        config: checked configuration.
        roles: overrides `[gateway] roles`.

    Raises (on construction):
        DataDirectoryBusy: another process plays one of the roles on this data directory.
        ConfigErrors: the keys cannot be read.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        *,
        roles: Sequence[str] = (),
    ) -> None:
        self.config, self.clock = config, clock
        self.roles = tuple(roles or config.gateway.roles)
        self._began = self._uplink_lost = clock.monotonic()
        self.name = split.name_of(self.roles)
        self.directory = DataDirectory(config.gateway.data_dir).prepare()
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            opening.enter_context(self.directory.lock(self.roles))
            self.keys = KeyRing.of(config)
            self.journal = split.open_journal(config, self.directory, self.roles, clock)
            opening.callback(self.journal.close, STOP_S)
            split.take_ledgers(self.journal, self.directory, self._polled())
            self.journals: Journals | None = None
            if set(wires.FOLLOWERS) & set(self.roles):
                self.journals = Journals(self.journal, clock)
                opening.callback(self.journals.close)
            self.counters: CounterStore | None = None
            if {"dlms", "push"} & set(self.roles):
                path = self.directory.counters_of(self.roles)
                self.counters = CounterStore.open(path, clock=clock)
                opening.callback(self.counters.close, STOP_S)
                split.take_windows(self.counters, self.directory)
                # another epoch than theirs: a copy, or begun anew; waits, for no counter may be used before
                self.counters.settle_epoch(self._epoch()).result()
            self.memories = Memories(
                self.directory, now=clock.now(), **split.pace_of_memories(self.roles)
            )
            opening.callback(self.memories.close)
            self._open = opening.pop_all()
        self.poller = Poller(
            config,
            drivers=[role for role in POLLING_ROLES if role in self.roles],
            journal=self.journal,
            counters=self.counters,
            memories=self.memories,
            keys=self.keys,
            clock=clock,
        )
        self.listener = self._make_listener() if "push" in self.roles else None
        self.sender: Sender | None = None
        self.runner = Runner(self.poller, self.journal, clock, self.directory.uplink)
        self.inbox = Inbox(
            self.directory.uplink,
            self.journal,
            on_epoch=self._on_epoch,
            on_orders=lambda: self.runner.look(self.roles),
        )
        self.wires = wires.Wires(
            self.directory,
            self.name,
            self.roles,
            self.journal,
            self.journals,
            on_news=self.inbox.wake,
            on_look=self._look,
        )
        self.about: Callable[[], dict[str, Any]] = dict  # what whoever runs us adds to health
        self.configure: Callable[[dict[str, Any]], None] | None = (
            None  # checks and keeps what the cloud sets
        )
        self.configured: Callable[[], None] = lambda: None  # it was answered: use it
        self.services: Services | None = None
        self.on_lite: Callable[[], bool] = (
            bool  # does a nucleus lite run us? It may show only later
        )
        self.peers = Peers(self.directory, self.directory.control_of(self.name))
        self.daily = Daily(config, self.poller, self.journal, self.memories, clock, self.peers)
        self.views = Views(self)
        self.running = asyncio.Event()  # every room has begun
        self._stopping = asyncio.Event()
        self._another_follows = False

    # --- life

    async def run(self) -> None:
        """Run until `stop`.

        Raises:
            ExceptionGroup: a fault of our own in one of the rooms.
        """
        try:
            await self._run()
        finally:
            self._open.close()

    def stop(self, *, another_follows: bool = False) -> None:
        """Begin to end; from the event loop. After a reload another gateway follows in this process."""
        self._another_follows = another_follows
        self._stopping.set()

    async def _run(self) -> None:
        if self.listener is not None:
            await self.listener.start()
        control = ControlServer(self.directory.control_of(self.name), self.views.handlers())
        await control.start()
        self.wires.start(asyncio.get_running_loop())
        self._raise_start_alarms()
        background: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as rooms:

                def room(name: str, work: Coroutine[Any, Any, None]) -> None:
                    background.append(rooms.create_task(work, name=name))

                if "uplink" in self.roles and self.journals is not None:
                    self.sender = self._make_sender(self.journals)
                    await self.runner.take_up((*self.roles, "uplink"), self.journals)
                    self.runner.look(self.roles)  # given to another process, before roles changed
                    room("uplink", self.sender.run())
                    room("tending", self._tend())
                    if self.services is not None:
                        room("services", self.services.run())
                else:
                    await self.runner.take_up(self.roles, self.journal)
                    room("inbox", self.inbox.run())
                polling = rooms.create_task(self.poller.run(), name="poller")
                room("health", self._report_health())
                if not self.name:
                    room("completeness", self.daily.run())
                if "detector" in self.roles:
                    self._add_detector(room)
                if "console" in self.roles:
                    self._add_console(room)
                room("watchdog", Watchdog(self.clock).run())
                self.journal.on_alarm(self._tell_alarm)
                settle_memory()
                events.started(self.version, self.roles, len(self.poller.meters))
                notify("READY=1")
                self.running.set()
                await self._stopping.wait()
                if not self._another_follows:
                    notify("STOPPING=1")  # systemd would kill a process that says so and stays
                events.stopping("asked to")
                await self._stop_rooms(polling, background)
        finally:
            if self.listener is not None:
                await self.listener.close()
            self.wires.close()
            await control.close()

    async def _stop_rooms(
        self, polling: asyncio.Task[None], background: list[asyncio.Task[None]]
    ) -> None:
        """Writers, flush, sender; each step bounded, all within STOP_S."""
        self.runner.close()
        self.poller.stop()
        await asyncio.wait([polling], timeout=1.0)
        polling.cancel()
        if self.listener is not None:
            await self.listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.wrap_future(self.journal.flush())
        if self.sender is not None:
            self.sender.stop()
        await asyncio.sleep(0)
        if background:
            sending = [t for t in background if t.get_name() == "uplink"]
            for task in background:
                if task not in sending:
                    task.cancel()
            if sending:
                await asyncio.wait(sending, timeout=1.5)
            for task in background:
                task.cancel()

    # --- rooms

    def _make_listener(self) -> Listener:
        from edge_core.acquisition.listener import Listener

        assert self.counters is not None
        return Listener(
            self.config,
            journal=self.journal,
            counters=self.counters,
            memories=self.memories,
            keys=self.keys,
            clock=self.clock,
        )

    def _make_sender(self, journals: Journals) -> Sender:
        from edge_core.gateway.services import make_services
        from edge_core.uplink.clients import make_client
        from edge_core.uplink.sender import Hooks, Sender
        from edge_core.uplink.topics import Topics

        topics = Topics(self.config.uplink.topic_prefix, self.config.gateway.id)
        services = self.services = make_services(
            self,
            lambda topic, payload: sender.publish(topic, payload),
            lambda: sender.reconnect(),
        )
        hooks = Hooks(
            on_command=lambda command, payload: desk.take(command, payload),
            on_no_acks=self._on_no_acks,
            on_new_epoch=self._on_new_epoch,
            on_aside=lambda n, cause, why: events.message_set_aside(n, f"{cause}: {why}"),
            on_connected=self._on_connected,
            on_rows=self.wires.news,
        )
        if services is not None:
            hooks.on_other = services.heard
        client = make_client(
            self.config,
            topics.subscription,
            also=services.topics if services is not None else (),
            certificates=services.certificates if services is not None else None,
        )
        sender = Sender(
            self.config, journals, client, self.clock, hooks=hooks, describe=self._describe
        )
        desk = Desk(self.config, self.runner, sender.record, self.clock, (*self.roles, "uplink"))
        return sender

    def _look(self) -> None:
        if self.sender is not None:
            self.sender.look()

    async def _tend(self) -> None:
        """Look after the journals of processes that are no more."""
        while True:
            await asyncio.to_thread(
                tend, self.config, self.directory, self.journal.path, self.clock, self._on_damage
            )
            await asyncio.sleep(TEND_S)

    def _on_damage(self, why: str) -> None:
        events.journal_damaged(why)
        self.alarm("journal-damaged", {"cause": why})

    def _polled(self) -> list[str]:
        """The meters that this process polls."""
        models = self.config.models
        return [
            meter.id
            for meter in self.config.meters.values()
            if models[meter.model].about.protocol in self.roles
        ]

    def _epoch(self, uplink: int = 0) -> int:
        """What tells the counters that something was restored: the epoch of our journal and, elsewhere, the uplink's."""
        if not self.name:
            return self.journal.epoch
        return split.joint_epoch(
            self.journal.epoch, uplink or split.epoch_of(self.directory.uplink)
        )

    def _on_epoch(self, epoch: int) -> None:
        """The uplink's epoch, in a process without it."""
        if self.counters is not None:
            self.counters.settle_epoch(self._epoch(epoch)).add_done_callback(_tell_jump)

    def _describe(self, meter: str, log: str, code: int) -> Meaning:
        """What an event code of a meter means."""
        from edge_core.uplink.payloads.events import Meaning

        config = self.config.meters.get(meter)
        known = config and describe(self.config.models[config.model], log, code)
        return Meaning(known.severity, known.iec61968) if known else Meaning()

    def _on_no_acks(self, seconds: float) -> None:
        events.no_acks(seconds)
        self.alarm("no-acks", {"seconds": round(seconds)})

    def _on_connected(self, connected: bool, reason: str) -> None:
        now = self.clock.monotonic()
        if self.services is not None:
            self.services.connected(connected)
        if connected:
            events.uplink_up(self.config.uplink.url, now - self._uplink_lost)
        else:
            self._uplink_lost = now
            events.uplink_down(self.config.uplink.url, reason)

    def _on_new_epoch(self, epoch: int, why: str) -> None:
        if self.counters is not None:
            self.counters.settle_epoch(epoch).add_done_callback(_tell_jump)
        self.alarm("journal-damaged", {"epoch": epoch, "cause": why})

    def _add_detector(self, room: Any) -> None:
        try:
            from edge_core.detector import Detector
        except ImportError as missing:
            log.info("detector: not started, %s is not installed", missing.name)
            return
        assert self.journals is not None
        room("detector", Detector(self.config, self.journals, self.clock).run())

    def _add_console(self, room: Any) -> None:
        try:
            from edge_core.console import serve
        except ImportError as missing:
            log.info("console: not started, %s is not installed", missing.name)
            return
        whole = WholeView(self.views, self.peers, self.clock)
        room("console", serve(self.config, whole))
        room("console's view", whole.run())

    # --- health

    def alarm(self, code: str, detail: dict[str, Any]) -> None:
        """An alarm of the gateway itself."""
        now = int(self.clock.now())
        self.journal.alarm(
            make_alarm(
                "", code, at=now, heard=now, authenticated=False, inferred=True, detail=detail
            )
        )

    @staticmethod
    def _tell_alarm(alarm: Alarm) -> None:
        events.alarm_raised(alarm.code, alarm.meter, alarm.class_)

    def _raise_start_alarms(self) -> None:
        events.journal_opened(self.journal.epoch, self.journal.status().segments_waiting)
        if self.journal.was_damaged:
            events.journal_damaged(self.journal.was_damaged)
            self.alarm("journal-damaged", {"cause": self.journal.was_damaged})
        if self.journal.was_copied:
            log.warning("new epoch %d: %s", self.journal.epoch, self.journal.was_copied)
            self.alarm(
                "journal-damaged", {"epoch": self.journal.epoch, "cause": self.journal.was_copied}
            )
        if self.counters is not None and self.counters.was_damaged:
            events.journal_damaged(self.counters.was_damaged)
            self.alarm("journal-damaged", {"cause": self.counters.was_damaged})
        if (
            self.config.warnings
        ):  # never a reason not to start: the release before must start on this file too
            self.alarm("config-unknown-key", {"keys": list(self.config.warnings[:20])})

    async def _report_health(self) -> None:
        """Publish health at its period, and raise alarms when room ends."""
        room, valid = RoomWatch(), True
        last = float("-inf")
        while True:
            for code, detail in room.look(self.journal.status()):
                self.alarm(code, detail)
            if valid != self.clock.synchronised():
                valid = not valid
                (events.clock_valid if valid else events.clock_invalid)()
            events.summarise()
            now = self.clock.monotonic()
            period = self.health_period_s()
            if self.sender is not None and now >= last + period:
                self.sender.publish_health(await self.views.whole_health())
                last = max(last + period, now - period)  # without drift
            await asyncio.sleep(min(period, HOUSEKEEPING_S))

    def health_period_s(self) -> float:
        """Seconds between health messages now: on lite, whose links are thin, they are fewer."""
        return self.config.health.every_s(lite=self.on_lite())

    def uptime_s(self) -> int:
        """Real seconds since the start."""
        return int(self.clock.monotonic() - self._began)

    @property
    def version(self) -> str:
        """Of the program."""
        return __version__


def _tell_jump(done: Future[None]) -> None:
    """The counters jumped; where the disk refused, the next start finds the epoch changed, and jumps."""
    if done.exception() is not None:
        log.error("the invocation counters were not raised for the new epoch: %s", done.exception())


def settle_memory() -> None:
    """What was built for the start stays for ever: the garbage collector need not walk it again and again.

    Visits make and drop thousands of small objects that reference counting frees; young collections come more seldom.
    """
    gc.unfreeze()  # of a gateway before a reload
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def resident_mb() -> int:
    """Resident memory of this process in MB, 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 read each minute, as cheap as it gets
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):
        return 0
