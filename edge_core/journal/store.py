"""One SQLite file as the journal wants it: settings, lock, schema, health, and setting a damaged one aside.

Settings are measured (prototypes, section 1.3): WAL with synchronous = FULL (NORMAL loses what was acknowledged), pages of
1,024 octets (a WAL frame is a page), secure_delete off (Debian builds it on: emptying a table would then write all of it),
no automatic checkpoint (the writer does it when nobody waits).
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from edge_core.errors import DataDirectoryBusy, DiskFull, JournalDamaged, JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PAGE = 1024
SMALL = 4 << 20  # files up to here are checked whole at every start
_FULL_CODES = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,  # quota, file size limit
    sqlite3.SQLITE_IOERR_SHMSIZE,  # no room for the WAL index
    sqlite3.SQLITE_CANTOPEN,  # no room for the WAL
}
_DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class FileLock:
    """Holds `<file>.lock` for one process; its content outlives a damaged file: the last epoch, and a suspicion."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise DataDirectoryBusy(f"{path} is in use by another process") from error

    def read(self) -> dict[str, Any]:
        """What was written last; empty when there is nothing or it is no JSON object."""
        try:
            out = json.loads(os.pread(self._fd, 4096, 0))
        except ValueError:
            return {}
        return out if isinstance(out, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content, durably."""
        text = json.dumps(content).encode()
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
            os.fsync(self._fd)
        except OSError as error:
            raise DiskFull(f"cannot write the lock file: {error}") from error

    def close(self) -> None:
        """Let go."""
        os.close(self._fd)


def connect(path: Path, *, reader: bool = False) -> sqlite3.Connection:
    """Open a file with our settings, creating it when it is no reader's.

    Raises:
        sqlite3.DatabaseError: no database, damaged, or no room.
    """
    fresh = not path.exists() or not path.stat().st_size
    if fresh and not reader:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(
        path, timeout=10.0, isolation_level=None, check_same_thread=False, cached_statements=128
    )
    try:
        for pragma in (
            f"page_size = {PAGE}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = 0",
            "wal_autocheckpoint = 0",
            "cache_size = -1024",
            "temp_store = MEMORY",
            "cell_size_check = 1",
            f"query_only = {int(reader)}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        if fresh and not reader:
            sync_directory(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, schemas: Sequence[str]) -> None:
    """Bring the schema up to the newest of ours, each step in a transaction; a newer one is left as it is."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(schemas, start=1):
        if number <= version:
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script."""
    statement = ""
    for line in script.splitlines():
        line = line.split("--", 1)[0]
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def quick_check(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with the whole file; empty = sound."""
    try:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def demand_sound(connection: sqlite3.Connection, path: Path) -> None:
    """Check the whole file.

    Raises:
        JournalDamaged: something is wrong with it.
    """
    problems = quick_check(connection)
    if problems:
        raise JournalDamaged(f"{path}: {problems[0]}")


def translate(error: sqlite3.Error, path: Path) -> JournalError:
    """Our error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) or 0
    why = f"{path}: {error}"
    if code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        why += _refusal(path.parent)
    if code in _FULL_CODES or code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN):
        return DiskFull(why)
    if code & 0xFF in _DAMAGE_CODES:
        return JournalDamaged(f"{path}: {error}")
    return JournalError(why)


def _refusal(folder: Path) -> str:
    """What the disk itself says to a new file, which SQLite does not pass on: no space, read-only, an error."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        return f" ({error.strerror})"
    return ""


def set_aside(path: Path, stamp: int, folder: Path | None = None) -> Path:
    """Move a file with its WAL into `folder` (`damaged/` beside it); returns where the main file is now."""
    folder = folder or path.parent / "damaged"
    folder.mkdir(mode=0o700, exist_ok=True)
    target, k = folder / f"{path.stem}-{stamp}{path.suffix}", 0
    while target.exists():
        k += 1
        target = folder / f"{path.stem}-{stamp}-{k}{path.suffix}"
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    sync_directory(folder)
    sync_directory(path.parent)
    return target


def sync_directory(folder: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
