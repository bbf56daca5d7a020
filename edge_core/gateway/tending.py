"""Looking after journals that no process writes any more: the uplink's process does it, at its start and once an hour.

Such a file is opened as its writer would open it: checked, set aside if it is damaged, freed of what the cloud has. It is
closed at once; its rows are read and sent like those of any other process. When nothing of it waits and its keeping time
is over, it goes. A process that comes back for its file waits these moments (`split.open_journal`).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING

from edge_core.errors import DataDirectoryBusy, JournalError
from edge_core.gateway.inbox import take_freed
from edge_core.gateway.split import others_of
from edge_core.journal import Journal
from edge_core.journal.journals import TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.journal.datadir import DataDirectory

log = logging.getLogger(__name__)

IDLE = "idle-since"
"""Key of the mark that says since when (UTC s) a file without a process has nothing that waits."""


def tend(
    config: Config,
    directory: DataDirectory,
    own: Path,
    clock: Clock,
    on_damage: Callable[[str], object],
) -> None:
    """Look after each journal but our own that no process has open.

    Args:
        on_damage: told why a file was set aside.
    """
    for path in others_of(directory, own):
        try:
            _tend(config, directory, path, clock, on_damage)
        except DataDirectoryBusy:
            continue  # its process runs
        except (JournalError, sqlite3.Error, OSError) as error:
            log.warning("%s has no process and cannot be opened: %s", path.name, error)


def _tend(
    config: Config,
    directory: DataDirectory,
    path: Path,
    clock: Clock,
    on_damage: Callable[[str], object],
) -> None:
    journal = Journal.open(
        path,
        clock=clock,
        max_bytes=int(config.journal.max_bytes),
        alarm_reserve_bytes=int(config.journal.alarm_reserve_bytes),
        keep_acked_s=float(config.journal.keep_acked),
        keep_long_s=float(config.journal.keep_long),
    )
    with contextlib.closing(journal):
        if journal.was_damaged:
            on_damage(journal.was_damaged)
        with contextlib.suppress(sqlite3.Error):  # an uplink.db that cannot be read: next time
            take_freed(directory.uplink, journal, journal.marks().get(TAKEN, ""))
        journal.flush().result()
        status = journal.status()
        waiting = status.segments_waiting + status.alarms_waiting + status.notes_waiting
        if waiting or status.aside or not clock.synchronised():
            return
        since = journal.marks().get(IDLE, "")
        if not since.isdigit():
            journal.mark(IDLE, str(int(clock.now())))
            return
        keep = max(float(config.journal.keep_acked), float(config.journal.keep_long))
        if clock.now() - int(since) < keep:
            return
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        log.info("%s holds nothing that is still kept, and is gone", path.name)
