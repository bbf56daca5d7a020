"""Sessions that stay open between visits, where the meter model allows it (`keep_s`).

The next visit then costs no connect, no AARQ and no HLS passes. Bounds: MOST sessions, and a quarter of the file
descriptors that this process may have; who was used longest ago is released for another, and everybody after the time
that the model allows. A session is used by one visit at a time: it leaves the pool when it is taken. A meter has one
session: `release` before another one is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_core.acquisition.drivers import Driver

MOST = 1_000  # some 10 kB each
SHARE_OF_FILES = 4


class KeptSessions:
    """The pool.

    Args:
        most: how many at most; None = what memory and file descriptors allow.
    """

    def __init__(self, most: int | None = None) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            files = MOST * SHARE_OF_FILES
        self.most = min(MOST, files // SHARE_OF_FILES) if most is None else most
        self._kept: dict[str, tuple[Driver, asyncio.TimerHandle]] = {}  # least recently used first
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, meter: str) -> bool:
        return meter in self._kept

    def take(self, meter: str) -> Driver | None:
        """The open session of a meter, no longer kept; None when there is none that still lives."""
        entry = self._kept.pop(meter, None)
        if entry is None:
            return None
        driver, timer = entry
        timer.cancel()
        resume = getattr(driver, "resume", None)
        if resume is not None and resume():
            return driver
        self._close(driver)
        return None

    def keep(self, meter: str, driver: Driver) -> bool:
        """Keep the session of a meter until it is taken or its time is over; False when its model does not allow that."""
        keep_s = getattr(driver, "keep_s", 0)
        if not keep_s or not self.most:
            return False
        self._forget(meter)
        while len(self._kept) >= self.most:
            self._forget(next(iter(self._kept)))
        timer = asyncio.get_running_loop().call_later(keep_s, self._forget, meter)
        self._kept[meter] = driver, timer
        return True

    async def release(self, meter: str) -> None:
        """Close the session of a meter, if there is one."""
        entry = self._kept.pop(meter, None)
        if entry is not None:
            entry[1].cancel()
            await entry[0].close()

    async def close(self) -> None:
        """Close all."""
        for meter in list(self._kept):
            self._forget(meter)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _forget(self, meter: str) -> None:
        entry = self._kept.pop(meter, None)
        if entry is not None:
            entry[1].cancel()
            self._close(entry[0])

    def _close(self, driver: Driver) -> None:
        task = asyncio.ensure_future(driver.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
