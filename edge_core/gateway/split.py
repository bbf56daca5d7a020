"""Roles in several processes: what each of them writes, and what passes from one to the other when the split changes.

One writer a file. The process with the role `uplink` writes journal.db and uplink.db, whatever else it does; each other
process writes `journal-<role>.db`, named by the first of its roles in the order of ROLES. So one process for all roles has
one journal, as ever; and when one process becomes four, or four become one, every file keeps its writer or becomes one
that the uplink reads to its end.

The ledger goes where the meters are polled: a process takes over, before it polls, what other files know of its meters.
An entry that is taken over stands for rows in the other file; if that file is lost (a new epoch), so is the entry.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from typing import TYPE_CHECKING

from edge_core.config.schema import ROLES
from edge_core.errors import DataDirectoryBusy, JournalError
from edge_core.journal import Journal
from edge_core.journal.elsewhere import Elsewhere, forget_ledger, state_of
from edge_core.uplink.outbox import open_reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.journal import CounterStore
    from edge_core.journal.datadir import DataDirectory

log = logging.getLogger(__name__)

ACQUISITION = ("dlms", "modbus", "push")
TENDED_S = 10.0
"""How long a file is waited for that the uplink's process looks after at this moment."""
METERS_AT_ONCE = 64
TAKEN_FROM = "ledger-of:"


def name_of(roles: Iterable[str]) -> str:
    """The name of the files of a process with these roles: "" with the uplink, else its first role."""
    mine = set(roles)
    return "" if "uplink" in mine else next(role for role in ROLES if role in mine)


def share_of(config: Config, roles: Iterable[str]) -> int:
    """Octets of `[journal] max_bytes` that the journal of a process with these roles may have.

    All roles of acquisition have seven eighths, by how many of them are in use and in this process; the uplink's and the
    detector's own journals, which hold alarms, answers and findings, a sixteenth each.
    """
    whole = int(config.journal.max_bytes)
    used: set[str] = {config.models[meter.model].about.protocol for meter in config.meters.values()}
    used |= {"push"} if config.push.listen else set()
    mine = set(roles)
    if "uplink" in mine and not (used - mine):
        return whole
    parts = len(used & mine) / max(1, len(used)) * 7 / 8
    parts += 1 / 16 * ("uplink" in mine) + 1 / 16 * ("detector" in mine)
    return max(int(whole * parts), whole // 16)


def open_journal(
    config: Config, directory: DataDirectory, roles: Sequence[str], clock: Clock
) -> Journal:
    """The journal that this process writes; the caller holds the locks of its roles.

    Raises:
        DataDirectoryBusy: another process has the file.
        DiskFull: there is no room for a fresh one.
    """
    path = directory.journal(name_of(roles))
    if others := list(others_of(directory, path)):
        _forget_what_is_lost(path, others)
    most = share_of(config, roles)
    reserve = int(config.journal.alarm_reserve_bytes)
    if most < int(config.journal.max_bytes):
        reserve = min(reserve, most // 2)
        if path.exists():  # of a time when this process had more to do: room to empty it
            most = max(most, path.stat().st_size + reserve)
    until = clock.monotonic() + TENDED_S
    while True:
        try:
            return Journal.open(
                path,
                clock=clock,
                max_bytes=most,
                alarm_reserve_bytes=reserve,
                keep_acked_s=float(config.journal.keep_acked),
                keep_long_s=float(config.journal.keep_long),
            )
        except DataDirectoryBusy:
            # the locks of our roles are ours: only who looks after files without a writer can have it
            if clock.monotonic() > until:
                raise
            time.sleep(0.02)


def others_of(directory: DataDirectory, path: Path) -> list[Path]:
    """The journals of the directory but this one."""
    return [p for p in sorted(directory.path.glob("journal*.db")) if p != path]


def pace_of_memories(roles: Iterable[str]) -> dict[str, float]:
    """How soon memories are written, and read again: who hears pushes must know titles that who polls has learned."""
    mine = set(roles)
    if "dlms" in mine and "push" not in mine:
        return {"write_s": 5.0}
    return {"follow_s": 5.0} if "push" in mine and "dlms" not in mine else {}


# The ledger -----------------------------------------------------------------------------------------------------------


def take_ledgers(journal: Journal, directory: DataDirectory, meters: Sequence[str]) -> int:
    """Take over what other files know of these meters, if they know more than ours; how many entries were.

    A file that has not changed since it was last read is not read again.
    """
    marks: dict[str, str] | None = None
    taken = 0
    for path in others_of(directory, journal.path):
        if not meters:
            return 0
        marks = journal.marks() if marks is None else marks
        epoch, head = state_of(path)
        key, state = TAKEN_FROM + path.name, f"{epoch}:{head}"
        if not epoch or marks.get(key) == state:
            continue
        try:
            taken += _take_ledger(journal, path, meters)
        except (JournalError, sqlite3.Error) as error:
            log.warning("the ledger of %s was not taken over: %s", path.name, error)
            continue
        journal.mark(key, state)
    if taken:
        journal.flush().result()
        log.info("%d ledger entries taken over from other journals", taken)
    return taken


def _take_ledger(journal: Journal, path: Path, meters: Sequence[str]) -> int:
    taken = 0
    with contextlib.closing(Elsewhere(path)) as other:
        for first in range(0, len(meters), METERS_AT_ONCE):
            entries = list(other.entries(meters[first : first + METERS_AT_ONCE]))
            if entries:
                taken += journal.take_entries(entries).result()
    return taken


def _forget_what_is_lost(path: Path, others: Sequence[Path]) -> None:
    """Entries that were taken over from a file that began anew since: its rows may be lost, so they are read again."""
    try:
        marks = _marks(path)
    except sqlite3.Error:
        return  # there is none, or it is damaged: then its ledger is begun anew anyway
    for other in others:
        mark = marks.get(TAKEN_FROM + other.name, "")
        epoch, _ = state_of(other)
        if mark and epoch and mark.partition(":")[0] != str(epoch):
            log.warning("%s began anew: what %s knows by it is read again", other.name, path.name)
            forget_ledger(path, TAKEN_FROM)
            return


def _marks(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as db:
        return {k: v for k, v in db.execute("SELECT key, value FROM meta") if isinstance(v, str)}


# Counters -------------------------------------------------------------------------------------------------------------


def take_windows(counters: CounterStore, directory: DataDirectory) -> None:
    """Take over the push windows of the other file of counters: a push that was heard is a replay, whoever heard it."""
    for path in (directory.counters_of(["dlms"]), directory.counters_of(["push"])):
        if path != counters.path and path.exists():
            try:
                counters.take_windows(path)
            except (JournalError, sqlite3.Error) as error:
                log.warning("push windows of %s were not taken over: %s", path.name, error)


def joint_epoch(own: int, uplink: int) -> int:
    """One number for two epochs: another one when either changes."""
    return (uplink * 1_000_003 + own) & (1 << 62) - 1


def epoch_of(path: Path) -> int:
    """The epoch of the uplink by its uplink.db; 0 where there is none."""
    try:
        with contextlib.closing(open_reader(path)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    except sqlite3.Error:
        return 0
    return int(row[0]) if row else 0
