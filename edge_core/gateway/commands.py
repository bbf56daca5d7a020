"""Commands of the cloud: checked, run once, answered through the journal.

The desk stands in the uplink's process: it refuses what is unknown here, not allowed by the configuration, expired, or
needs a signature that it does not have; what it believes it writes into the record (uplink/record.py) and gives to the
process that polls the meter. The runner stands in each process that polls. A repeat of an id is answered from the record
and never run again, also after a restart; what was under way when its process ended is answered as failed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.acquisition.reading import Reading, read
from edge_core.health import events
from edge_core.uplink.record import FINISHED, Order, open_orders

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from pathlib import Path

    from edge_core.acquisition.poller import Poller
    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.journal import Journal, Journals
    from edge_core.uplink.record import Record

log = logging.getLogger(__name__)

AT_ONCE = 16
BEGUN = 10_000
NEED_SIGNATURE = frozenset(["clock-set", "relay", "image-transfer", "key-change", "fleet-sync"])
SPARED_REPLIES = 10_000


class Runner:
    """Runs commands for the meters that this process polls.

    Args:
        journal: answers go through it.
        path: of uplink.db.
    """

    def __init__(self, poller: Poller, journal: Journal, clock: Clock, path: Path) -> None:
        self._poller, self._journal, self._clock, self._path = poller, journal, clock, path
        self._begun: dict[str, None] = {}  # taken in this run of the process, oldest first
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def claim(self, command: str) -> bool:
        """Take one of the AT_ONCE places; `run` gives it back."""
        if len(self._running) >= AT_ONCE:
            return False
        self._running.add(command)
        return True

    def close(self) -> None:
        """Cancel what runs: the next start answers that it failed."""
        for task in self._tasks:
            task.cancel()

    async def take_up(self, roles: Iterable[str], journals: Journal | Journals) -> None:
        """At the start: end what was begun and not answered. Nothing that was begun runs again.

        Args:
            journals: where answers may wait that the record does not know yet.
        """
        states = await asyncio.to_thread(_answers_waiting, journals)
        for state, order in await asyncio.to_thread(
            open_orders, self._path, roles, ("given", "accepted")
        ):
            answered = states.get(order.id, "")
            if answered in FINISHED or not (answered or state == "accepted"):
                continue
            self._begin(order.id)
            why = "the gateway ended while it ran"
            self.answer(order.id, "failed", error=("Interrupted", why))

    def look(self, roles: Iterable[str]) -> None:
        """Begin what is given to these roles in the record; on the event loop."""
        self._spawn(self._take_given(list(roles)), "given commands")

    async def _take_given(self, roles: list[str]) -> None:
        given = await asyncio.to_thread(open_orders, self._path, roles, ("given",))
        for _, order in given:
            if order.id in self._begun:
                continue
            if order.expires and self._clock.now() > order.expires:
                self._begin(order.id)
                self.answer(order.id, "failed", error=("Expired", f"it expired at {order.expires}"))
                continue
            if not self.claim(order.id):
                return  # the rest at the next look
            self._begin(order.id)
            self._spawn(self._accept_and_run(order), f"command {order.id}")

    def _begin(self, command: str) -> None:
        self._begun[command] = None
        if len(self._begun) > BEGUN:
            del self._begun[next(iter(self._begun))]

    async def _accept_and_run(self, order: Order) -> None:
        """The answer `accepted` is durable before anything happens."""
        try:
            await asyncio.wrap_future(self.answer(order.id, "accepted"))
        except errors.JournalError as error:
            log.warning("command %s waits: %s", order.id, error)
            self._begun.pop(order.id, None)
            self._running.discard(order.id)
            return
        await self.run(order)

    async def run(self, order: Order) -> dict[str, Any]:
        """Run a command that is accepted, and answer it; the answer."""
        try:
            body: dict[str, Any] = {"state": "done", **await self._do(order)}
        except TimeoutError:
            body = _failed("LineSilent", "no answer in time")
        except errors.OpenDCUError as error:
            body = _failed(type(error).__name__, str(error))
        except Exception as error:
            log.exception("command %s failed by a fault of ours", order.id)
            body = _failed("Fault", repr(error))
        finally:
            self._running.discard(order.id)
        self._journal.note("replies", order.id, body)
        return body

    async def _do(self, order: Order) -> dict[str, Any]:
        match order.do:
            case "ping":
                return {}
            case "read":
                reading = msgspec.convert(order.args, Reading)
                state = self._poller.meters[order.meter]
                reply = await self._poller.on_demand(
                    order.meter,
                    lambda driver: read(
                        driver, reading, meter=state.config, model=state.model, clock=self._clock
                    ),
                )
                return {
                    key: reply[key] for key in ("layouts", "blocks", "registers") if reply.get(key)
                }
            case "backfill":
                await self._poller.go_back(order.meter)
                return {}
            case "park":
                until = float(order.args.get("until", self._clock.now() + 86_400))
                self._poller.park(order.meter, str(order.args.get("reason", "")), until)
                return {}
            case "unpark":
                self._poller.unpark(order.meter)
                return {}
        raise errors.OpenDCUError(f"{order.do} is not run by this release")

    def answer(self, command: str, state: str, *, error: tuple[str, str] | None = None) -> Any:
        """Journal a reply; a future of its id."""
        return self.reply(command, {"state": state} if error is None else _failed(*error))

    def reply(self, command: str, body: dict[str, Any]) -> Any:
        """Journal a reply; a future of its id."""
        return self._journal.note("replies", command, body)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), error, exc_info=error)


class Desk:
    """Takes commands from the uplink.

    Args:
        roles: of this process; what others poll is given to them.
    """

    def __init__(
        self, config: Config, runner: Runner, record: Record, clock: Clock, roles: Iterable[str]
    ) -> None:
        self._config, self._runner, self._record, self._clock = config, runner, record, clock
        self._allowed = frozenset(config.commands.allow)
        self._roles = frozenset(roles)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, command: str, payload: bytes) -> None:
        """A command arrived; returns at once, the answer goes through the journal."""
        try:
            order = msgspec.json.decode(payload, type=Order)
        except msgspec.DecodeError as error:
            log.warning("command %s is no command: %s", command, error)
            self._runner.answer(command, "failed", error=("MalformedCommand", str(error)))
            return
        if order.id != command:
            why = "id differs from the topic"
            self._runner.answer(command, "failed", error=("MalformedCommand", why))
            return
        state = self._record.state(order.id)
        if state:  # repeated until it is answered: from the record
            if state != "given":
                self._spawn(self._repeat(order.id, state))
            return
        refusal = self._refusal(order)
        role = self._role_of(order)
        if refusal:
            events.command_refused(order.do, order.id, ": ".join(refusal))
            self._record.enter(order, "failed", role, self._clock.now(), _failed(*refusal))
            self._runner.answer(order.id, "failed", error=refusal)
        elif role not in self._roles:
            self._record.enter(order, "given", role, self._clock.now())
        elif not self._runner.claim(order.id):
            log.warning("command %s waits: %d run already", order.id, AT_ONCE)
            # the cloud repeats it
        else:
            self._spawn(self._run(order, role))

    def _role_of(self, order: Order) -> str:
        """Who runs it: the role that polls the meter; without a meter it is ours."""
        meter = self._config.meters.get(order.meter)
        if order.do == "ping" or meter is None:
            return "uplink"
        return self._config.models[meter.model].about.protocol

    def _refusal(self, order: Order) -> tuple[str, str] | None:
        if order.do not in self._allowed:
            return "NotAllowed", f"[commands] allow does not name {order.do}"
        if order.expires and self._clock.now() > order.expires:
            return "Expired", f"it expired at {order.expires}"
        if order.do in NEED_SIGNATURE:
            return "NotAllowed", f"{order.do} needs a signature, and this release does not run it"
        if order.do not in ("ping",) and order.meter not in self._config.meters:
            return "UnknownMeter", f"no meter {order.meter!r} here"
        return None

    async def _run(self, order: Order, role: str) -> None:
        """In this process: it is on disk that the command was begun, and then it begins."""
        await asyncio.wrap_future(self._record.enter(order, "accepted", role, self._clock.now()))
        self._runner.answer(order.id, "accepted")
        body = await self._runner.run(order)
        self._record.answered(order.id, body)

    async def _repeat(self, command: str, state: str) -> None:
        body = await asyncio.to_thread(self._record.answer, command)
        if body is None:
            self._runner.answer(command, state)
        else:
            self._runner.reply(command, body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a command failed by a fault of ours: %s", error, exc_info=error)


def _failed(class_: str, message: str) -> dict[str, Any]:
    return {"state": "failed", "error": {"class": class_, "message": message}}


def _answers_waiting(journals: Journal | Journals) -> dict[str, str]:
    """The last state of each command whose replies still wait in a journal."""
    out: dict[str, str] = {}
    for base in journals.heads():
        for note in journals.notes_waiting(base, SPARED_REPLIES):
            if note.kind == "replies" and out.get(note.sub) not in FINISHED:
                out[note.sub] = str(note.body.get("state", ""))
    return out
