"""Is the main loop alive? And telling the service manager that it is.

`notify` speaks sd_notify(3): READY=1, WATCHDOG=1, STOPPING=1, STATUS=... over the datagram socket NOTIFY_SOCKET; it
does nothing where there is none. `Watchdog` is a thread that sees the loop's beats: without one for `warn_s` it tells
where the loop stands, without one for `fatal_s` it ends the process with exit code 1, for a loop that stands still is
a fault of ours, and a restart loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from edge_core.health import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_core.clock import Clock

BEAT_S = 1.0


def notify(*states: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager; False where there is none or it does not listen.

    Source: sd_notify(3); `@name` is an abstract socket.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.setblocking(False)
            s.connect("\0" + address[1:] if address[0] == "@" else address)
            s.send("\n".join(states).encode())
    except OSError:
        return False
    return True


def watchdog_period_s(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float:
    """Half the time that systemd's WatchdogSec= allows, in seconds; 0.0 when it does not watch us."""
    try:
        usec = int(environment.get("WATCHDOG_USEC", "0"))
        watched = int(environment.get("WATCHDOG_PID", "0"))
    except ValueError:
        return 0.0
    if usec <= 0 or watched not in (0, os.getpid() if pid is None else pid):
        return 0.0
    return usec / 2e6


class Watchdog:
    """Watches a loop from a thread of its own.

    Args:
        warn_s: without a beat for so long, `events.loop_stalled` tells where the loop stands, once a stall.
        fatal_s: without a beat for so long, the process ends; 0 = never.
        end: how it ends; the default writes all stacks and exits with code 1 at once.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        warn_s: float = 5.0,
        fatal_s: float = 60.0,
        end: Callable[[], None] | None = None,
    ) -> None:
        self._clock = clock
        self._warn_s = warn_s
        self._fatal_s = fatal_s
        self._end = end or _end
        self._beat = clock.monotonic()
        self._loop_thread = 0
        self._told = False
        self._stop = threading.Event()

    async def run(self) -> None:
        """Beat from the loop that runs this, until cancelled; tells systemd as often as it wants."""
        self._loop_thread = threading.get_ident()
        self._beat = self._clock.monotonic()
        wanted_s = watchdog_period_s()
        watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        watcher.start()
        try:
            while True:
                self._beat = self._clock.monotonic()
                if wanted_s:
                    notify("WATCHDOG=1")
                await asyncio.sleep(min(wanted_s or BEAT_S, BEAT_S))
        finally:
            self._stop.set()

    def look(self) -> None:
        """Look at the last beat once; the thread does it all the time."""
        for_s = self._clock.monotonic() - self._beat
        if for_s < self._warn_s:
            self._told = False
            return
        if not self._told:
            self._told = True
            events.loop_stalled(for_s, self._where())
        if self._fatal_s and for_s >= self._fatal_s:
            self._end()

    def _watch(self) -> None:
        while not self._stop.wait(min(BEAT_S, self._warn_s / 2)):
            self.look()

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 documented, for debuggers like this one
        if frame is None:
            return "an unknown place"
        last = traceback.extract_stack(frame)[-1]
        return f"{last.filename}:{last.lineno} in {last.name}"


def _end() -> None:
    with contextlib.suppress(Exception):
        for ident, frame in sys._current_frames().items():  # noqa: SLF001
            sys.stderr.write(f"thread {ident}:\n" + "".join(traceback.format_stack(frame)))
        sys.stderr.flush()
    os._exit(1)
