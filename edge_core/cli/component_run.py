"""A gateway under a nucleus: the composition of `Gateway` and `Component`, its signals and its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import uvloop

from edge_core.clock import SystemClock
from edge_core.config.keys import KeyRing
from edge_core.config.tables import ConfigErrors
from edge_core.gateway import Gateway
from edge_core.greengrass import launch, settings
from edge_core.greengrass.restarts import Restarts
from edge_core.health import events, logs
from edge_core.schedule.agenda import Job

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.config.schema import Config
    from edge_core.greengrass.component import Component

log = logging.getLogger(__name__)

READY_S = 100.0  # a nucleus gives a start 120 s, and a start that hangs is a fault of ours
LEAVE_S = 0.5
KEYS_S = (2.0, 60.0)  # between tries to get keys from a cloud that was away at the start


class Runner:
    """Gateways one after another, as the settings change, until a signal or a fault.

    Args:
        work: the component's work directory.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.name = os.environ.get("OPENDCU_COMPONENT", "io.opendcu.Gateway")
        self.roles = settings.ROLES.get(self.name, ())
        self.clock = SystemClock.from_environment()
        self.code: int | None = None
        self.gateway: Gateway | None = None
        self.following: Config | None = None
        self.component: Component | None = None
        self._raw: dict[str, Any] = {}
        self._reloading: asyncio.Task[None] | None = None
        self._stale = False
        self._fallback = os.environ.get(launch.FALLBACK, "")

    async def run(self) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end, 0)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        deadline = threading.Timer(READY_S, _never_ready)
        deadline.daemon = True
        deadline.start()
        beside: list[asyncio.Task[Any]] = []
        try:
            self._find_nucleus()
            self._raw = await self._first_settings()
            config = self._configure(self._raw)
            logs.set_up(config.logs.level)
            for warning in config.warnings:
                log.warning("%s", warning)
            if self.component is not None:
                beside.append(asyncio.create_task(self.component.run(), name="component"))
            while self.code is None:
                self.gateway = Gateway(config, self.clock, roles=self.roles)
                if self.component is not None:
                    self.gateway.about = self.component.about
                    self.gateway.on_lite = self.component.on_lite
                readiness = asyncio.create_task(self._when_running(self.gateway, deadline))
                keys = asyncio.create_task(self._until_keys(self.gateway), name="keys")
                try:
                    await self.gateway.run()
                finally:
                    readiness.cancel()
                    keys.cancel()
                    self.gateway = None
                if self.following is None:
                    break
                config, self.following = self.following, None
        finally:
            if deadline.is_alive() and self.code == 0:
                launch.stopped_in_time()
            deadline.cancel()
            for task in beside:
                task.cancel()
            await self._leave_nucleus()
        return (
            1 if self.code is None else self.code
        )  # nobody asked us to end: the nucleus must see it

    def end(self, code: int) -> None:
        """End all, with this code; on the loop."""
        self.code = self.code or code
        self.following = None
        if self.gateway is not None:
            self.gateway.stop()

    # --- the nucleus

    def _find_nucleus(self) -> None:
        if not os.environ.get("AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"):
            log.info("no nucleus started us: running with gateway.toml alone")
            return
        from edge_core.greengrass.component import Component
        from edge_core.greengrass.ipc import shared

        ipc = shared()
        ipc.restarts = Restarts(self.work / "restarts.json", end=lambda _: self.end(1))
        self.component = Component(ipc, self.name, changed=self.reload, busy=self.busy)

    async def _leave_nucleus(self) -> None:
        if self.component is None:
            return
        from edge_core.greengrass import ipc

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await ipc.shared().drop()
        ipc.forget()

    async def _first_settings(self) -> dict[str, Any]:
        """From the nucleus, or as they were at the last start that had some."""
        raw = None if self.component is None else await self.component.settings()
        if raw is None:
            return settings.kept(self.work)
        settings.keep(self.work, raw)
        return raw

    def _configure(self, raw: dict[str, Any]) -> Config:
        return settings.configure(raw, self.work, nucleus=self.component is not None)

    async def _when_running(self, gateway: Gateway, deadline: threading.Timer) -> None:
        """The self-check is the gateway's own start: files opened, sockets bound, every room begun."""
        await gateway.running.wait()
        deadline.cancel()
        fallback, self._fallback = self._fallback, ""
        if fallback:
            gateway.alarm(
                "release-fallback",
                {"failed": fallback, "runs": os.environ.get(launch.RELEASE, "")},
            )
        if self.component is not None:
            self.component.ready()
        else:
            launch.became_ready()

    async def _until_keys(self, gateway: Gateway) -> None:
        """Start the gateway anew with its keys, once the cloud that keeps them answers."""
        wait, most = KEYS_S
        if gateway.keys.unavailable is not None:
            log.warning("keys: no ciphered meter is read now: %s", gateway.keys.unavailable)
        while gateway.keys.unavailable is not None:
            await asyncio.sleep(wait)
            wait = min(most, wait * 2)
            ring = await asyncio.to_thread(KeyRing.of, gateway.config)
            if ring.unavailable is None and self.following is None and self.code is None:
                log.info("keys: they are here now, the gateway starts anew with them")
                self.following = gateway.config
                gateway.stop(another_follows=True)
                return

    def busy(self) -> str:
        """Why an update should wait, or ""; on the loop."""
        gateway = self.gateway
        if gateway is None:
            return ""
        now, agenda = gateway.clock.now(), gateway.poller.agenda
        for meter in gateway.poller.meters:
            due = agenda.due_times(meter).get(Job.MIDNIGHT)
            if due is not None and due <= now:
                return "a midnight run is open"
        journals = gateway.journals  # those of other processes too, where we send for them
        if gateway.sender is not None and journals and journals.status().alarms_waiting:
            return "an alarm is not out yet"
        return ""

    # --- changes

    def reload(self) -> None:
        """Read settings and files again; on the loop."""
        self._stale = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_until_fresh(), name="reload")

    async def _reload_until_fresh(self) -> None:
        """A change that comes while we read is read after it."""
        while self._stale:
            self._stale = False
            await self._reload()

    async def _reload(self) -> None:
        raw = None if self.component is None else await self.component.settings()
        if raw is None:
            raw = self._raw
        try:
            fresh = self._configure(raw)
            KeyRing.of(fresh)
        except ConfigErrors as errors:
            events.reload_refused([str(error) for error in errors.errors])
            return
        if raw != self._raw:
            settings.keep(self.work, raw)
            self._raw = raw
        gateway = self.gateway
        if gateway is None or self.code is not None:
            return
        changed = [
            name
            for name in fresh.__struct_fields__
            if getattr(fresh, name) != getattr(gateway.config, name)
        ]
        if not changed:
            return
        events.reloaded(changed)
        logs.set_up(fresh.logs.level)
        self.following = fresh
        gateway.stop(another_follows=True)


def _never_ready() -> None:
    sys.stderr.write(f"opendcu: not ready within {READY_S:.0f} s; the threads stand at:\n")
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


def main(work: Path) -> int:
    """Run until the end."""
    logs.set_up("info")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Runner(work.resolve()).run())
