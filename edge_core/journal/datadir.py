"""The data directory: who may use it, where everything in it is, and what drivers remember of meters.

    <data_dir>/ (0700)
      journal.db | journal-<role>.db   uplink.db   counters.db | counters-push.db   detector.db
      cache/memory.db    what drivers learned: capture objects, scalers, limits; losing it costs one more read a meter
      damaged/           files that were set aside, never deleted by us
      lock.<role>        flock'ed by the process that plays the role; holds its pid as text
      control.sock | control-<role>.sock   wake-<role>.sock

<role> is the first role of a process; the one with the uplink has the names without a role. One process a role: two gateways on one directory would use the same invocation counters twice. The kernel drops the
lock with the process, so a kill leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from edge_core.errors import ConfigError, DataDirectoryBusy
from edge_core.journal import store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

log = logging.getLogger(__name__)


class DataDirectory:
    """Paths of one data directory; nothing is made before `prepare`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.uplink = self.path / "uplink.db"
        self.counters = self.path / "counters.db"
        self.detector = self.path / "detector.db"
        self.cache = self.path / "cache"
        self.damaged = self.path / "damaged"
        self.control = self.control_of("")

    def control_of(self, role: str) -> Path:
        """Where the process with the uplink (""), or another one, answers requests."""
        return self.path / (f"control-{role}.sock" if role else "control.sock")

    def controls(self) -> list[Path]:
        """Where processes may answer, the one with the uplink first; a killed one leaves its socket behind."""
        return [self.control, *sorted(self.path.glob("control-*.sock"))]

    def counters_of(self, roles: Iterable[str]) -> Path:
        """The counters of a process: who associates has counters.db, who only hears pushes a file for their windows."""
        return self.counters if "dlms" in set(roles) else self.path / "counters-push.db"

    def journal(self, role: str = "") -> Path:
        """The journal of one process (""), or of a role that has a process of its own."""
        return self.path / (f"journal-{role}.db" if role else "journal.db")

    def wake(self, role: str) -> Path:
        """The datagram socket that wakes a role up."""
        return self.path / f"wake-{role}.sock"

    def prepare(self) -> Self:
        """Make the directory and its folders with mode 0700, and take rights away that others have on it.

        Raises:
            ConfigError: it cannot be made, belongs to somebody else, or is not writable.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
                self.path.chmod(0o700)
            self.cache.mkdir(mode=0o700, exist_ok=True)
            self.damaged.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                str(self.path),
                "gateway",
                "data_dir",
                f"cannot be used: {error.strerror}",
                "check its owner and mode",
            ) from None
        return self

    def lock(self, roles: Iterable[str]) -> Locks:
        """Take the locks of all the roles, or none.

        Raises:
            DataDirectoryBusy: another process plays one of them; names role and pid.
        """
        locks = Locks()
        try:
            for role in sorted(set(roles)):
                locks.take(self.path / f"lock.{role}", role)
        except BaseException:
            locks.close()
            raise
        return locks

    def holder(self, role: str) -> int | None:
        """Pid of the process that plays a role, or None."""
        try:
            descriptor = os.open(self.path / f"lock.{role}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return _pid_in(descriptor)
        finally:
            os.close(descriptor)

    def set_aside(self, file: Path, *, at: float) -> Path:
        """Move a damaged SQLite file, its WAL with it, into damaged/; `at` (UTC epoch seconds) names it there."""
        return store.set_aside(file, int(at), self.damaged)


class Locks:
    """Locks held until `close` or the end of the process."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def take(self, file: Path, role: str) -> None:
        """Take one lock.

        Raises:
            DataDirectoryBusy: another process holds it.
        """
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            who = f"process {pid}" if pid else "another process"
            raise DataDirectoryBusy(
                f"{file.parent}: {who} plays the role {role} there; one gateway a data directory. "
                "Stop it, or give this one another gateway.data_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._held.append(descriptor)

    def close(self) -> None:
        """Release them all."""
        while self._held:
            os.close(self._held.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else None


# What drivers remember ------------------------------------------------------------------------------------------------


class Memories:
    """The memories of all meters, in `cache/memory.db`.

    Held in RAM as JSON (equal values of many meters are held once) and written by a thread of its own every
    `write_s` seconds while something changed, and at `close`. A damaged file is set aside and begun anew: what it
    held is learned again. Thread-safe. Values over MAX_VALUE_OCTETS are held, not written.

    Several processes may have the file open, each with meters or keys of its own; one that follows (`follow_s`) sees so
    many seconds later what the others wrote.
    """

    MAX_VALUE_OCTETS = 256 << 10
    busy_s = 5.0
    """How long another process's lock on the file is waited for."""

    def __init__(
        self,
        directory: DataDirectory,
        *,
        now: float = 0.0,
        write_s: float = 60.0,
        follow_s: float | None = None,
    ) -> None:
        self._directory = directory
        self._file = directory.cache / "memory.db"
        self._write_s, self._follow_s = write_s, follow_s
        self._seen: tuple[int, int] | None = None
        self._guard = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._dirty: set[tuple[str, str]] = set()
        self._forgotten: set[str] = set()
        self._held: dict[str, dict[str, bytes]] = {}
        self._shared: dict[bytes, bytes] = {}
        self._read(now)
        self._thread = threading.Thread(target=self._keep_writing, name="memories", daemon=True)
        self._thread.start()

    def of(self, meter: str) -> MeterMemory:
        """The memory of a meter."""
        return MeterMemory(self, meter)

    def get(self, meter: str, key: str) -> Any:
        """A fresh copy of what was put, or None."""
        with self._guard:
            octets = self._held.get(meter, _NOTHING).get(key)
        return None if octets is None else msgspec.json.decode(octets)

    def put(self, meter: str, key: str, value: Any) -> None:
        """Remember a JSON-like value; None forgets it."""
        octets = None if value is None else msgspec.json.encode(value)
        with self._guard:
            held = self._held.setdefault(meter, {})
            if held.get(key) == octets:
                return
            if octets is None:
                held.pop(key, None)
            else:
                held[key] = self._shared.setdefault(octets, octets)
            self._dirty.add((meter, key))
        self._changed.set()

    def forget(self, meter: str) -> None:
        """Forget everything of a meter: it was replaced."""
        with self._guard:
            if self._held.pop(meter, None) is None:
                return
            self._forgotten.add(meter)
            self._dirty = {entry for entry in self._dirty if entry[0] != meter}
        self._changed.set()

    def write(self) -> None:
        """Write what changed, now; a failure is logged and tried again later."""
        with self._writing:
            with self._guard:
                forgotten, self._forgotten = self._forgotten, set()
                dirty, self._dirty = self._dirty, set()
                rows = [
                    (meter, key, self._held.get(meter, _NOTHING).get(key)) for meter, key in dirty
                ]
                held = {octets for of_meter in self._held.values() for octets in of_meter.values()}
                self._shared = {octets: octets for octets in held}
            if not rows and not forgotten:
                return
            try:
                with _connect(self._file, self.busy_s) as connection:
                    connection.executemany(
                        "DELETE FROM memory WHERE meter = ?", [(m,) for m in forgotten]
                    )
                    connection.executemany(
                        "DELETE FROM memory WHERE meter = ? AND key = ?",
                        [(m, k) for m, k, v in rows if v is None or len(v) > self.MAX_VALUE_OCTETS],
                    )
                    connection.executemany(
                        "INSERT OR REPLACE INTO memory VALUES (?, ?, ?)",
                        [
                            (m, k, v)
                            for m, k, v in rows
                            if v is not None and len(v) <= self.MAX_VALUE_OCTETS
                        ],
                    )
            except sqlite3.Error as error:
                log.warning(
                    "what drivers remember could not be written", extra={"cause": str(error)}
                )
                with self._guard:
                    self._forgotten |= forgotten
                    self._dirty |= dirty

    def close(self) -> None:
        """Write and stop."""
        self._closing.set()
        self._changed.set()
        self._thread.join()
        self.write()

    def _read(self, now: float) -> None:
        try:
            with _connect(self._file, self.busy_s) as connection:
                for meter, key, value in connection.execute("SELECT meter, key, value FROM memory"):
                    msgspec.json.decode(value)
                    self._held.setdefault(meter, {})[key] = self._shared.setdefault(value, value)
        except sqlite3.OperationalError as error:  # locked, full, unreadable: not damaged
            log.warning("what drivers remember could not be read", extra={"cause": str(error)})
        except (sqlite3.DatabaseError, msgspec.DecodeError, TypeError) as error:
            self._held.clear()
            self._shared.clear()
            aside = self._directory.set_aside(self._file, at=now)
            log.warning(
                "what drivers remember is damaged and is learned anew",
                extra={"file": str(aside), "cause": str(error)},
            )

    def _keep_writing(self) -> None:
        while not self._closing.is_set():
            if not self._changed.wait(self._follow_s):
                self._follow()
                continue
            self._closing.wait(self._write_s)
            self._changed.clear()
            self.write()
            if self._follow_s is not None:
                self._follow()

    def _follow(self) -> None:
        """Take over what another process wrote since, but for what waits to be written here."""
        try:
            seen = _state(self._file)
            if seen == self._seen:
                return
            with _connect(self._file, self.busy_s) as connection:
                rows = connection.execute("SELECT meter, key, value FROM memory").fetchall()
            for _, _, value in rows:
                msgspec.json.decode(value)
        except (OSError, sqlite3.Error, msgspec.DecodeError, TypeError) as error:
            log.info("what other processes remember could not be read", extra={"cause": str(error)})
            return
        self._seen = seen
        with self._guard:
            for meter, key, value in rows:
                if (meter, key) not in self._dirty and meter not in self._forgotten:
                    held = self._held.setdefault(meter, {})
                    if held.get(key) != value:
                        held[key] = self._shared.setdefault(value, value)


_NOTHING: dict[str, bytes] = {}


def _state(file: Path) -> tuple[int, int]:
    """Changes when another process writes the file: of its WAL, or of itself where there is none."""
    wal = file.with_name(file.name + "-wal")
    found = (wal if wal.exists() else file).stat()
    return found.st_mtime_ns, found.st_size


class MeterMemory:
    """The `Memory` of one meter that drivers are given."""

    __slots__ = ("_all", "_meter")

    def __init__(self, memories: Memories, meter: str) -> None:
        self._all = memories
        self._meter = meter

    def get(self, key: str) -> Any:
        """What was put under the key, or None."""
        return self._all.get(self._meter, key)

    def put(self, key: str, value: Any) -> None:
        """Remember a JSON-like value."""
        self._all.put(self._meter, key, value)


@contextmanager
def _connect(file: Path, busy_s: float) -> Iterator[sqlite3.Connection]:
    """A connection for one transaction: committed at the end, rolled back by an error, closed either way."""
    connection = sqlite3.connect(file, timeout=busy_s)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS memory (meter TEXT, key TEXT, value BLOB NOT NULL, "
            "PRIMARY KEY (meter, key)) WITHOUT ROWID"
        )
        yield connection
        connection.commit()
    finally:
        connection.close()
