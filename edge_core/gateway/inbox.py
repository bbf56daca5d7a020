"""What the uplink's process tells another one through uplink.db: what the cloud has, and commands. Read here, never written.

What is acked of our journal is released in it; how far is marked in the same file, in or after the commit that makes the
release durable, so that a kill at any point releases again what was released, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING

from edge_core.journal.journals import TAKEN
from edge_core.uplink.outbox import open_reader
from edge_core.uplink.register import read_freed, sequence_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_core.journal import Journal

log = logging.getLogger(__name__)

LOOK_S = 10.0
RETRY_S = 2.0


class Inbox:
    """Follows uplink.db while it runs.

    Args:
        path: of uplink.db.
        on_epoch: told the uplink's epoch, at the start and when it changes.
        on_orders: called when there may be commands; on the event loop.
    """

    def __init__(
        self,
        path: Path,
        journal: Journal,
        *,
        on_epoch: Callable[[int], object],
        on_orders: Callable[[], object],
    ) -> None:
        self._path, self._journal = path, journal
        self._on_epoch, self._on_orders = on_epoch, on_orders
        self._woken = asyncio.Event()
        self._mark = ""
        self._epoch = 0

    def wake(self) -> None:
        """There is something new; on the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        self._mark = (await asyncio.to_thread(self._journal.marks)).get(TAKEN, "")
        while True:
            self._woken.clear()
            try:
                epoch = await asyncio.to_thread(self.take)
            except sqlite3.Error as error:  # busy, or damaged: its owner finds out
                log.info("uplink.db cannot be read now: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if epoch and epoch != self._epoch:
                self._epoch = epoch
                self._on_epoch(epoch)
            self._on_orders()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()

    def take(self) -> int:
        """Release what is acked; the epoch of the uplink, 0 while there is none."""
        epoch, self._mark = take_freed(self._path, self._journal, self._mark)
        return epoch


def take_freed(path: Path, journal: Journal, mark: str) -> tuple[int, str]:
    """Release, or set aside, what uplink.db says of our journal behind a mark.

    Returns:
        (epoch of the uplink, the mark now).

    Raises:
        sqlite3.Error: uplink.db cannot be read.
    """
    if not path.exists():
        return 0, mark
    with contextlib.closing(open_reader(path)) as db:
        meta = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'born')"))
        born = meta.get("born", 0)
        found = db.execute(
            "SELECT id FROM source WHERE name = ? AND epoch = ?", (journal.path.name, journal.epoch)
        ).fetchone()
        rows = read_freed(db, found[0], sequence_of(mark, born)) if found else []
    for _, freed in rows:
        if freed.cause:
            journal.set_aside(
                freed.cause,
                freed.why,
                segments=freed.segments,
                alarms=freed.alarms,
                notes=freed.notes,
            )
        else:
            journal.release(segments=freed.segments, alarms=freed.alarms, notes=freed.notes)
    if rows:
        mark = f"{born}:{rows[-1][0]}"
        journal.mark(TAKEN, mark)
    return int(meta.get("epoch", 0)), mark
