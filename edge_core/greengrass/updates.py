"""Answers every update notice of the nucleus, at once, from a thread that cannot block.

Classic asks every subscriber before every deployment, also of other components; one that does not answer delays each
deployment by the full timeout, so no notice stays without an answer whatever state our loop is in. While work is open
that should not be cut (a midnight run, an alarm that is not out yet) the answer is to ask again in STEP_S, until a
deployment was put off for CAP_S in all: SIGTERM is safe at any moment, so waiting is a courtesy to the meters.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.clock import Clock

log = logging.getLogger(__name__)

STEP_S = 60.0
CAP_S = 1800.0
ASK_S = 1.0
MOST_REMEMBERED = 20


class Notice(NamedTuple):
    """One question of the nucleus.

    Attributes:
        deployment: its id.
        answer: sends the answer: (deployment, recheck after so many ms, why); may raise.
    """

    deployment: str
    answer: Callable[[str, int, str], Any]


class Updates:
    """The thread.

    Args:
        busy: asks the loop, from this thread, why an update should wait: a reason, or "". Returns within ASK_S, or
            raises TimeoutError.
    """

    def __init__(self, busy: Callable[[float], str], clock: Clock | None = None) -> None:
        self._busy, self._clock = busy, clock or SystemClock()
        self._notices: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._since: dict[str, float] = {}
        self.deferred = 0
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)
        self._thread.start()

    def noticed(self, notice: Notice) -> None:
        """A notice arrived; any thread, never waits."""
        self._notices.put(notice)

    def close(self) -> None:
        """End the thread after the notices that it has."""
        self._notices.put(None)

    def _run(self) -> None:
        while (notice := self._notices.get()) is not None:
            wait_s, why = self.decide(notice.deployment)
            if wait_s:
                self.deferred += 1
                log.info("update %s is put off by %.0f s: %s", notice.deployment, wait_s, why)
            with contextlib.suppress(
                Exception
            ):  # the connection broke: the nucleus asks again, or goes on
                notice.answer(notice.deployment, int(wait_s * 1_000), why)

    def decide(self, deployment: str) -> tuple[float, str]:
        """For how many seconds a deployment should wait, and why; 0.0 = go."""
        now = self._clock.monotonic()
        if len(self._since) > MOST_REMEMBERED:
            self._since.clear()
        left = CAP_S - (now - self._since.get(deployment, now))
        if left <= 0:
            self._since.pop(deployment, None)
            return 0.0, ""
        try:
            why = self._busy(ASK_S)
        except Exception:  # noqa: BLE001 a loop that does not answer must not hold up the deployment that repairs it
            why = ""
        if not why:
            self._since.pop(deployment, None)
            return 0.0, ""
        self._since.setdefault(deployment, now)
        return min(STEP_S, left), why
