"""Commands of the cloud: checked, run once, answered through the journal.

A command is refused when it is unknown here, not allowed by the configuration, expired, or needs a signature that it
does not have. The id is the record: a repeat is answered with what was answered before and never run again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.acquisition.reading import Reading, read
from edge_core.health import events

if TYPE_CHECKING:
    from edge_core.acquisition.poller import Poller
    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.journal import Journal

log = logging.getLogger(__name__)

REMEMBERED = 1000
AT_ONCE = 16
NEED_SIGNATURE = frozenset(["clock-set", "relay", "image-transfer", "key-change", "fleet-sync"])


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A command as far as it is believed."""

    id: str
    do: str
    meter: str = ""
    args: dict[str, Any] = {}
    expires: int = 0
    sig: str = ""


class Commands:
    """Runs what the cloud asks for."""

    def __init__(self, config: Config, poller: Poller, journal: Journal, clock: Clock) -> None:
        self._allowed = frozenset(config.commands.allow)
        self._poller, self._journal, self._clock = poller, journal, clock
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()

    def take(self, command: str, payload: bytes) -> None:
        """A command arrived; returns at once, the answer goes through the journal."""
        try:
            order = msgspec.json.decode(payload, type=Order)
        except msgspec.DecodeError as error:
            log.warning("command %s is no command: %s", command, error)
            self._answer(command, "failed", error=("MalformedCommand", str(error)))
            return
        if order.id != command:
            self._answer(command, "failed", error=("MalformedCommand", "id differs from the topic"))
            return
        if order.id in self._answers:  # repeated until it is answered: from the record
            self._journal.note("replies", order.id, self._answers[order.id])
            return
        refusal = self._refusal(order)
        if refusal:
            events.command_refused(order.do, order.id, ": ".join(refusal))
            self._answer(order.id, "failed", error=refusal)
            return
        if len(self._running) >= AT_ONCE:
            log.warning("command %s waits: %d run already", order.id, AT_ONCE)
            return  # the cloud repeats it
        self._answer(order.id, "accepted")
        task = asyncio.create_task(self._run(order), name=f"command {order.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _refusal(self, order: Order) -> tuple[str, str] | None:
        if order.do not in self._allowed:
            return "NotAllowed", f"[commands] allow does not name {order.do}"
        if order.expires and self._clock.now() > order.expires:
            return "Expired", f"it expired at {order.expires}"
        if order.do in NEED_SIGNATURE:
            return "NotAllowed", f"{order.do} needs a signature, and this release does not run it"
        if order.do not in ("ping",) and order.meter not in self._poller.meters:
            return "UnknownMeter", f"no meter {order.meter!r} here"
        return None

    async def _run(self, order: Order) -> None:
        try:
            result = await self._do(order)
            self._answer(order.id, "done", **result)
        except TimeoutError:
            self._answer(order.id, "failed", error=("LineSilent", "no answer in time"))
        except errors.OpenDCUError as error:
            self._answer(order.id, "failed", error=(type(error).__name__, str(error)))
        except Exception as error:
            log.exception("command %s failed by a fault of ours", order.id)
            self._answer(order.id, "failed", error=("Fault", repr(error)))

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
                await self._poller.sweep([order.meter])
                return {}
            case "park":
                until = float(order.args.get("until", self._clock.now() + 86_400))
                self._poller.park(order.meter, str(order.args.get("reason", "")), until)
                return {}
            case "unpark":
                self._poller.unpark(order.meter)
                return {}
        raise errors.OpenDCUError(f"{order.do} is not run by this release")

    def _answer(
        self, command: str, state: str, *, error: tuple[str, str] | None = None, **more: Any
    ) -> None:
        body: dict[str, Any] = {"state": state, **more}
        if error is not None:
            body["error"] = {"class": error[0], "message": error[1]}
        self._answers[command] = body
        while len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        self._journal.note("replies", command, body)
