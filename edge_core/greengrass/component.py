"""What a gateway has to do with the nucleus that runs it: settings, readiness, updates, self-description.

Holds no gateway: `opendcu component run` runs one and asks and tells here. All of it but the first reading of the
settings goes on beside the gateway, is tried again with back-off, and is never a reason to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from awsiot.eventstreamrpc import EventStreamOperationError, SerializeError
from awsiot.greengrasscoreipc import model

from edge_core import errors
from edge_core.greengrass import launch
from edge_core.greengrass.updates import Notice, Updates
from edge_core.health.watchdog import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_core.greengrass.ipc import Ipc, Link

log = logging.getLogger(__name__)

FIRST_S = 15.0  # for the settings at the start
BACK_OFF_S = (1.0, 60.0)


class Component:
    """One component under a nucleus.

    Args:
        ipc: the way to it.
        name: of the component.
        changed: called on the loop when the settings may have changed.
        busy: why an update should wait, or ""; called on the loop.
    """

    def __init__(
        self,
        ipc: Ipc,
        name: str,
        *,
        changed: Callable[[], object],
        busy: Callable[[], str],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._ipc, self._name, self._changed, self._busy = ipc, name, changed, busy
        self._environment = environment
        self._loop = asyncio.get_running_loop()
        self._updates = Updates(self._ask_loop)
        self._ready = False
        self._told = False
        self._wake = asyncio.Event()
        self.deployment = ""

    async def settings(self) -> dict[str, Any] | None:
        """The component configuration; None when the nucleus does not tell it now."""
        try:
            async with asyncio.timeout(FIRST_S):
                link = await self._ipc.open()
                answer = await link.call(lambda client: client.get_configuration_async())
        except (
            errors.UplinkError,
            EventStreamOperationError,
            SerializeError,
            TimeoutError,
        ) as error:
            log.warning("component: the nucleus does not tell our configuration: %s", error)
            self._ipc.capabilities["configuration"] = False
            return None
        self._ipc.capabilities["configuration"] = True
        return dict(answer.value or {})

    async def run(self) -> None:
        """Keep what hangs on a connection alive, until cancelled."""
        wait = BACK_OFF_S[0]
        try:
            while True:
                try:
                    link = await self._ipc.open()
                    await self._attach(link)
                    wait = BACK_OFF_S[0]
                    await self._stay(link)
                except errors.UplinkError as error:
                    log.debug("component: %s", error)
                await asyncio.sleep(wait)
                wait = min(BACK_OFF_S[1], wait * 2)
        finally:
            self._updates.close()

    async def _stay(self, link: Link) -> None:
        """Until the link ends; tells the state when there is one to tell."""
        ended = asyncio.ensure_future(link.ended.wait())
        try:
            while not link.over:
                self._wake.clear()
                if self._ready and not self._told:
                    self._told = await self._tell_running(link)
                wake = asyncio.ensure_future(self._wake.wait())
                patience = BACK_OFF_S[0] if self._ready and not self._told else None
                await asyncio.wait(
                    [ended, wake], return_when=asyncio.FIRST_COMPLETED, timeout=patience
                )
                wake.cancel()
        finally:
            ended.cancel()

    async def _attach(self, link: Link) -> None:
        """Subscribe to what this nucleus has; an operation that it lacks answers with an error, once a connection."""
        await self._try(
            "configuration-updates",
            link,
            lambda client, **callbacks: client.subscribe_to_configuration_update_async(
                key_path=[], **callbacks
            ),
            lambda _: self._changed(),
        )
        await self._try(
            "component-updates",
            link,
            lambda client, **callbacks: client.subscribe_to_component_updates_async(**callbacks),
            lambda event: self._update(link, event),
            direct=True,
        )

    async def _try(
        self,
        capability: str,
        link: Link,
        start: Any,
        on_event: Callable[[Any], object],
        *,
        direct: bool = False,
    ) -> None:
        try:
            await link.subscribe(start, on_event, direct=direct)
        except (EventStreamOperationError, SerializeError):
            self._ipc.capabilities[capability] = False
        else:
            self._ipc.capabilities[capability] = True

    # --- readiness

    def ready(self) -> None:
        """The gateway runs: tell whoever waits for it, and keep this release to go back to. On the loop."""
        if self._ready:
            return
        self._ready = True
        launch.became_ready(self._environment)
        # lite and plain systemd wait on the socket; lite's UpdateState needs programs that many images lack
        self._told = notify("READY=1", environment=self._environment)
        self._wake.set()

    async def _tell_running(self, link: Link) -> bool:
        try:
            await link.call(
                lambda client: client.update_state_async(state=model.ReportedLifecycleState.RUNNING)
            )
        except (EventStreamOperationError, SerializeError) as error:
            log.warning("component: the nucleus does not take our state: %s", error)
            self._ipc.capabilities["state"] = False
            return False
        self._ipc.capabilities["state"] = True
        return True

    # --- updates

    def _update(self, link: Link, event: Any) -> None:
        """A notice, in awscrt's thread: neither it nor its answer waits for our loop."""
        if event.pre_update_event is not None:
            self._updates.noticed(Notice(event.pre_update_event.deployment_id or "", link.defer))
        if event.post_update_event is not None:
            self.deployment = event.post_update_event.deployment_id or ""

    def _ask_loop(self, limit_s: float) -> str:
        async def ask() -> str:
            return self._busy()

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(limit_s)

    # --- health

    def on_lite(self) -> bool:
        """Is the nucleus a lite? Known by what it cannot do; False until a connection has shown it."""
        return self._ipc.capabilities.get("component-updates") is False

    def about(self) -> dict[str, Any]:
        """What health says of where we run (the kind follows from what the nucleus can do). On the loop."""
        ipc, environment = self._ipc, self._environment
        asked = ipc.capabilities.get("component-updates")
        kind = "" if asked is None else "classic" if asked else "lite"
        refused_s = 0 if ipc.pressed is None else int(self._loop.time() - ipc.pressed)
        return {
            "nucleus": f"{kind} {environment.get('GGC_VERSION', '')}".strip(),
            "greengrass": {
                "component": self._name,
                "release": environment.get(launch.RELEASE, ""),
                "fallback": environment.get(launch.FALLBACK, ""),
                "components": launch.components(environment),
                "deployment": {"id": self.deployment, "at": launch.installed_at(environment)},
                "deferred": self._updates.deferred,
                "connects": ipc.connects,
                "refuses_for_s": refused_s,
                "capabilities": sorted(name for name, works in ipc.capabilities.items() if works),
            },
        }
