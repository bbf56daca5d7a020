"""What a running gateway shows and answers: the console's view and the control socket's handlers.

Everything here returns plain JSON-like values and changes nothing, but the handlers that say so (sweep, flush, park).
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.acquisition import reading
from edge_core.acquisition.completeness import owed
from edge_core.acquisition.tracing import Trace
from edge_core.health import metrics
from edge_core.health.merging import merged_health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from edge_core.acquisition.standing import MeterState
    from edge_core.domain import Alarm
    from edge_core.gateway.root import Gateway
    from edge_core.transports.control import Handler, Request

RECENT_ALARMS = 200
TAP_QUEUE = 1000


class Views:
    """Looks into the rooms of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._alarms: deque[Alarm] = deque(maxlen=RECENT_ALARMS)
        self._taps: set[asyncio.Queue[dict[str, Any]]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        (gateway.journals or gateway.journal).on_alarm(self._alarms.append)
        gateway.journal.on_alarm(self._heard)

    def _heard(self, alarm: Alarm) -> None:
        if self._loop is not None and self._taps:
            self._loop.call_soon_threadsafe(self._tell, {"alarm": msgspec.to_builtins(alarm)})

    def _tell(self, document: dict[str, Any]) -> None:
        for queue in self._taps:
            if not queue.full():
                queue.put_nowait(document)

    # --- the view

    def overview(self) -> dict[str, Any]:
        """The box at a glance."""
        gateway = self._gateway
        listener = gateway.listener
        return {
            "gateway": gateway.config.gateway.id,
            "roles": list(gateway.roles),
            "civil": int(gateway.clock.now()),
            "speed": gateway.clock.speed,
            "timezone": gateway.config.gateway.timezone,
            **self.health(),
            "journal": msgspec.to_builtins(gateway.journal.status(), enc_hook=str),
            "polling": dict(gateway.poller.counts),
            "pushes": dict(listener.counts) if listener is not None else {},
            "uplink_counts": self._uplink_counts(),
        }

    def health(self) -> dict[str, Any]:
        """The body of a health message (DESIGN section 6)."""
        from edge_core.gateway.root import resident_mb

        gateway = self._gateway
        states = gateway.poller.meters.values()
        now = gateway.clock.now()
        journal = gateway.journal.status()
        uplink: dict[str, Any] = {"state": "off", "in_flight": 0, "aside": journal.aside}
        if gateway.sender is not None:
            status = gateway.sender.status()
            uplink = {
                "state": status.state,
                "reason": status.reason,
                "in_flight": status.in_flight,
                "unacked": status.unacked,
                "aside": status.aside,
            }
        return {
            "version": gateway.version,
            "uptime_s": gateway.uptime_s(),
            "depth": journal.segments_waiting,
            "hours_left": None if journal.hours_left is None else int(journal.hours_left),
            "meters": {
                "total": len(gateway.poller.meters),
                "silent": sum(1 for s in states if s.failures) + len(self._fell_silent()),
                "parked": sum(1 for s in states if s.parked and now < s.parked[1]),
            },
            "clock": {
                "synced": gateway.clock.synchronised(),
                "step_s": round(gateway.poller.watch.last_step_s),
            },
            "uplink": uplink,
            "memory_mb": resident_mb(),
            **gateway.about(),
        }

    async def whole_health(self) -> dict[str, Any]:
        """The same of all processes of this gateway together."""
        others = await self._gateway.peers.ask({"do": "health"})
        body = merged_health([self.health(), *others.values()])
        # meters whose process is away are still on the list
        body["meters"]["total"] = len(self._gateway.config.meters)
        return body

    def _uplink_counts(self) -> dict[str, Any]:
        sender = self._gateway.sender
        return {} if sender is None else dataclasses.asdict(sender.status().counts)

    def meters(self) -> list[dict[str, Any]]:
        """One line per meter."""
        return [self._row(state) for state in self._gateway.poller.meters.values()]

    def _fell_silent(self) -> frozenset[str]:
        """Meters that only speak, and do not."""
        listener = self._gateway.listener
        return listener.silences.silent if listener is not None else frozenset()

    def _spoken(self, row: dict[str, Any]) -> dict[str, Any]:
        """The line of a meter that only speaks: when it was heard takes the place of when it was read."""
        listener = self._gateway.listener
        quiet_s = listener.silences.quiet_s(row["meter"]) if listener is not None else None
        if quiet_s is None:
            return row
        row["last_read"] = int(self._gateway.clock.now() - quiet_s)
        if row["meter"] in self._fell_silent():
            text = f"nothing was pushed for {quiet_s:.0f} s"
            row |= {"state": "silent", "error": text, "error_class": "LineSilent", "failures": 1}
        elif row["state"] == "not yet read":
            row["state"] = "ok"
        return row

    def _row(self, state: MeterState) -> dict[str, Any]:
        now = self._gateway.clock.now()
        if state.parked and now < state.parked[1]:
            word = "parked"
        elif state.failures:
            word = "silent"
        else:
            word = "reading" if state.busy else ("ok" if state.last_read else "not yet read")
        row = {
            "meter": state.config.id,
            "line": state.config.line,
            "model": state.config.model,
            "device": state.device,
            "state": word,
            "last_read": None if state.last_read is None else int(state.last_read),
            "rows": state.rows,
            "failures": state.failures,
            "error": None if state.last_error is None else str(state.last_error),
            "error_class": None if state.last_error is None else type(state.last_error).__name__,
            "clock_offset_s": None if state.offset_s is None else round(state.offset_s),
        }
        return self._spoken(row)

    def meter(self, meter: str) -> dict[str, Any]:
        """Everything known of one meter: why is it silent, what is delivered, what is missing.

        Raises:
            KeyError: no such meter in this process.
        """
        state = self._gateway.poller.meters[meter]
        due = self._gateway.poller.agenda.due_times(meter)
        return self._row(state) | {
            "address": state.config.address,
            "due": {job.name.lower(): int(when) for job, when in due.items()},
            "ledger": self.gaps(meter),
        }

    def gaps(self, meter: str) -> list[dict[str, Any]]:
        """The ledger of one meter; what a failing meter owes is missing for the cause of its failure."""
        state = self._gateway.poller.meters[meter]
        now = self._gateway.clock.now()
        out = []
        for entry in self._gateway.journal.ledger(meter):
            holes = [*entry.holes, *owed(entry, state.cause if state.failures else "", now)]
            missing = sum(hole.rows for hole in holes)
            out.append(
                dataclasses.asdict(entry)
                | {
                    "holes": [dataclasses.asdict(hole) for hole in holes],
                    "missing": missing,
                    "due": entry.captured + missing,
                }
            )
        return out

    def alarms(self) -> list[dict[str, Any]]:
        """The latest alarms, newest first."""
        return [msgspec.to_builtins(alarm) for alarm in reversed(self._alarms)]

    def events(self) -> list[dict[str, Any]]:
        """Meters that fail now, with their reasons."""
        return [row for row in self.meters() if row["failures"]]

    # --- the control socket

    def handlers(self) -> Mapping[str, Handler]:
        """What control.sock answers."""
        self._loop = asyncio.get_running_loop()
        return {
            "ping": self._ping,
            "overview": self._overview,
            "health": self._health,
            "meters": self._meters,
            "meter": self._meter,
            "gaps": self._gaps,
            "completeness": self._completeness,
            "alarms": self._recent_alarms,
            "journal-status": self._journal_status,
            "metrics": self._metrics,
            "tap": self._tap,
            "read": self._read,
            "sweep": self._sweep,
            "flush": self._flush,
            "park": self._park,
            "unpark": self._unpark,
            "renew": self._renew,
        }

    async def _ping(self, request: Request) -> Any:  # noqa: ARG002 every handler takes its request
        gateway = self._gateway
        return {
            "gateway": gateway.config.gateway.id,
            "version": gateway.version,
            "roles": list(gateway.roles),
        }

    async def _overview(self, request: Request) -> Any:  # noqa: ARG002
        return self.overview()

    async def _health(self, request: Request) -> Any:  # noqa: ARG002
        return self.health()

    async def _meters(self, request: Request) -> Any:  # noqa: ARG002
        return self.meters()

    async def _meter(self, request: Request) -> Any:
        return self.meter(self._known(request))

    async def _gaps(self, request: Request) -> Any:
        names = (
            [self._known(request)] if request.get("meter") else list(self._gateway.poller.meters)
        )
        return {name: self.gaps(name) for name in names}

    async def _completeness(self, request: Request) -> Any:
        """Figures of a civil day, counted now."""
        day = str(request.get("day", ""))
        try:
            date = dt.date.fromisoformat(day)
        except ValueError:
            raise errors.ControlError(f"day is {day!r}, not YYYY-MM-DD") from None
        return await asyncio.to_thread(self._gateway.daily.count, date)

    async def _recent_alarms(self, request: Request) -> Any:  # noqa: ARG002
        return self.alarms()

    async def _journal_status(self, request: Request) -> Any:  # noqa: ARG002
        return msgspec.to_builtins(self._gateway.journal.status(), enc_hook=str)

    async def _metrics(self, request: Request) -> Any:  # noqa: ARG002
        return metrics.REGISTRY.snapshot()

    async def _tap(self, request: Request) -> AsyncIterator[Any]:  # noqa: ARG002
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(TAP_QUEUE)
        self._taps.add(queue)
        self._gateway.poller.on_block = self._block
        try:
            while True:
                yield await queue.get()
        finally:
            self._taps.discard(queue)
            if not self._taps:
                self._gateway.poller.on_block = None

    def _block(self, document: dict[str, Any]) -> None:
        self._tell({"block": document})

    async def _read(self, request: Request) -> Any:
        """`opendcu read` while the gateway runs: between the scheduled visits of the meter's line."""
        meter = self._known(request)
        state = self._gateway.poller.meters[meter]
        wanted = msgspec.convert(
            {k: v for k, v in request.items() if k not in ("do", "meter")}, reading.Reading
        )
        lines: list[str] = []
        document = await self._gateway.poller.on_demand(
            meter,
            lambda driver: reading.read(
                driver, wanted, meter=state.config, model=state.model, clock=self._gateway.clock
            ),
            tracer=Trace(state.line.config.framing, lines.append) if wanted.trace else None,
        )
        return document | ({"trace": lines} if wanted.trace else {})

    async def _sweep(self, request: Request) -> Any:
        """Visit meters now, flush, and say how many were read."""
        meters = request.get("meters")
        read = await self._gateway.poller.sweep(meters, float(request.get("timeout_s", 60.0)))
        await asyncio.wrap_future(self._gateway.journal.flush())
        return {"read": read}

    async def _flush(self, request: Request) -> Any:  # noqa: ARG002
        await asyncio.wrap_future(self._gateway.journal.flush())
        return {"flushed": True}

    async def _park(self, request: Request) -> Any:
        until = float(request.get("until", self._gateway.clock.now() + 86_400))
        self._gateway.poller.park(self._known(request), str(request.get("reason", "")), until)
        return {"parked_until": int(until)}

    async def _unpark(self, request: Request) -> Any:
        self._gateway.poller.unpark(self._known(request))
        return {"parked_until": None}

    async def _renew(self, request: Request) -> Any:  # noqa: ARG002
        """Obtain another certificate, and show it at a new connection."""
        gateway = self._gateway
        if gateway.services is None or gateway.sender is None:
            raise errors.ControlError(
                "this gateway renews no certificate: [uplink] kind is not aws"
            )
        number = await gateway.services.renew()
        await gateway.sender.reconnect()
        return {"certificate": number}

    def _known(self, request: Request) -> str:
        meter = str(request.get("meter", ""))
        if meter not in self._gateway.poller.meters:
            raise errors.NotHere(f"no meter {meter!r} is polled by this process")
        return meter
