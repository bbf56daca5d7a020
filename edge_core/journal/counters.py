"""Invocation counters, ours and the meters': ours are never used twice, theirs never accepted twice.

A GCM nonce is a system title and an invocation counter: using one twice under a key gives the key's authentication away.
So ours are reserved on disk in ranges before the first of a range is used (`prepare`, one group commit for thousands of
meters), and whatever was reserved counts as used after a restart. A restored copy of the file knows less than was used: a
new epoch of the journal tells of one, and raises all counters of ours by JUMP (`settle_epoch`). A key that this file has never
seen may have been used under a file that was lost: its user adds JUMP to what the meter says (DESIGN section 7).

Theirs are stored after the tag was verified. What a kill may take back: up to 200 ms of pushes (their alarms are younger than
their counters' commit, or known by their id if replayed), and up to LAZY_S of replies within associations, which answer our
own fresh requests under a key that both sides have just proven; writing those at once would cost more flash than the readings.

Arrays of all identities are held in memory (about 40 octets each) and written in chunks of 64.
"""

# ruff: noqa: S608  table names cannot be parameters; ours are constants
from __future__ import annotations

import contextlib
import importlib.resources
import logging
import sqlite3
import struct
import threading
from array import array
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

from edge_core.errors import CounterExhausted, JournalError, LocalProtocolError
from edge_core.journal import opening, store
from edge_core.journal.writer import SOON_S, GroupCommit, Item

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.clock import Clock

log = logging.getLogger(__name__)

Channel = Literal["association", "push"]

CHUNK = 64
LIMIT = 0xFFFF_FFFF  # the last counter; a key that comes near needs changing
MARGIN = 1_000
END = LIMIT - MARGIN + 1
WINDOW = 64
LAZY_S = 300.0  # how late counters of associations may be stored
MIN_RANGE = 16
JUMP = 65_536  # more than was ever used and not told to the meter, in whatever was lost


class CounterStore:
    """counters.db, with one writer thread. All methods may be called from any thread.

    Attributes:
        was_created: the file is new or was damaged: no counter of ours is known.
        was_damaged: why the former file was set aside, or None.
    """

    def __init__(
        self, path: Path, clock: Clock, lock: store.FileLock, connection: sqlite3.Connection
    ) -> None:
        self.path = path
        self.was_created = False
        self.was_damaged: str | None = None
        self._file_lock, self._db = lock, connection
        self._lock = threading.Lock()
        self._ids: dict[tuple[bytes, str], int] = {}
        self._new: list[tuple[int, bytes, str]] = []
        self._next = array("Q")  # the next of ours; 0 = not prepared since the start
        self._end = array("Q")  # reserved on disk: below this
        self._wanted = array("Q")  # to be reserved
        self._association = array("Q")  # last accepted + 1
        self._push = array("Q")  # highest accepted + 1
        self._window = array("Q")
        self._dirty: set[tuple[str, int]] = set()
        self._epoch = 0
        self._told_s: float | None = None  # a commit for peers is queued within so long
        self._wal_pages = 0
        self._closed = False
        self._load()
        self._group = GroupCommit(f"counters {path.name}", clock, self._commit)

    @classmethod
    def open(cls, path: Path, *, clock: Clock) -> CounterStore:
        """Open or create. A damaged file is set aside, and a fresh one begun (`was_created`).

        Raises:
            DataDirectoryBusy: another process holds the file.
            DiskFull: there is no room for a fresh file.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = store.FileLock(path)
        try:
            fresh = not path.exists() or not path.stat().st_size
            try:
                counters = cls._open(path, clock, lock)
            except (ValueError, struct.error) as error:  # SQLite finds it sound, we do not
                aside = store.set_aside(path, int(clock.now()))
                counters = cls._open(path, clock, lock)
                counters.was_damaged = f"{path}: {error}; set aside as {aside}"
        except BaseException:
            lock.close()
            raise
        counters.was_created = fresh or counters.was_damaged is not None
        return counters

    @classmethod
    def _open(cls, path: Path, clock: Clock, lock: store.FileLock) -> CounterStore:
        schema = importlib.resources.files("edge_core.journal") / "schema" / "counters_v001.sql"
        connection, why = opening.open_file(
            path,
            suspect=True,  # small, and worth a whole check
            schemas=[schema.read_text(encoding="utf-8")],
            now=int(clock.now()),
            takeover=None,
        )
        try:
            counters = cls(path, clock, lock, connection)
        except BaseException:
            connection.close()
            raise
        counters.was_damaged = why
        counters._group.start()
        return counters

    # ---- ours ----------------------------------------------------------------------------------

    def prepare(
        self, title: bytes, fingerprint: str, at_least: int = 0, count: int = 200
    ) -> Future[None]:
        """Reserve counters, so that `next` can be called `count` times.

        Args:
            title: our own system title towards this meter.
            fingerprint: of the key (`Secret.fingerprint`); GMAC and GCM share one counter.
            at_least: the next counter is this or above: one more than the meter last saw.

        Returns:
            Answered at once while `count` are left (ranges are of twice that), else with the next group commit;
            CounterExhausted when the counters under this key come to their end.
        """
        done: Future[None] = Future()
        with self._lock:
            i = self._identify(title, fingerprint)
            start = max(self._next[i] or self._end[i], at_least, 1)
            left = self._end[i] - start if self._end[i] > start else 0
            if self._next[i] and left >= max(count, 1):
                self._next[i] = start
                done.set_result(None)
                return done
            if start + count > LIMIT - MARGIN:
                done.set_exception(
                    CounterExhausted(
                        f"{LIMIT - start if start < LIMIT else 0} invocation counters are left "
                        f"under key {fingerprint}: change the key"
                    )
                )
                return done
            self._wanted[i] = max(self._wanted[i], start + max(2 * count, MIN_RANGE))
            self._wanted[i] = min(self._wanted[i], END)
        return self._submit("reserve", i, start, count)

    def next(self, title: bytes, fingerprint: str) -> int:
        """Use up one counter.

        Raises:
            LocalProtocolError: nothing is reserved: `prepare` was not awaited, or its range is used up.
        """
        with self._lock:
            i = self._ids.get((title, fingerprint))
            if i is None or not self._next[i] or self._next[i] >= self._end[i]:
                raise LocalProtocolError(
                    f"no invocation counter is reserved for title {title.hex()}, key {fingerprint}"
                )
            value = self._next[i]
            self._next[i] = value + 1
            return value

    def settle_epoch(self, epoch: int) -> Future[None]:
        """Raise every counter of ours by JUMP, durably, unless that was done for this epoch of the journal.

        Ranges that are in use keep their length, so that no association under way runs out of counters.
        """
        return self._submit("epoch", epoch)

    def raise_to(self, title: bytes, fingerprint: str, at_least: int) -> Future[None]:
        """Use no counter below `at_least` any more, durably; never lowers anything."""
        return self.prepare(title, fingerprint, at_least)

    def current(self, title: bytes, fingerprint: str) -> int | None:
        """The next counter that would be used; None = this key was never prepared."""
        with self._lock:
            i = self._ids.get((title, fingerprint))
            if i is None or not (self._next[i] or self._end[i]):
                return None
            return self._next[i] or self._end[i]

    # ---- theirs --------------------------------------------------------------------------------

    def accept(self, title: bytes, fingerprint: str, channel: Channel, counter: int) -> bool:
        """Take a counter of a message whose tag was verified; False = a replay, believe nothing of it.

        Args:
            title: the meter's system title.
            channel: within associations counters only rise; pushes may overtake each other by up to 63.
        """
        if not 0 <= counter <= LIMIT:
            return False
        with self._lock:
            i = self._identify(title, fingerprint)
            if channel == "association":
                if counter < self._association[i]:
                    return False
                self._association[i] = counter + 1
            else:
                highest = self._push[i] - 1
                if counter > highest:
                    shift = counter - highest
                    kept = self._window[i] << shift if shift < WINDOW else 0
                    self._window[i] = (kept | 1) & 0xFFFF_FFFF_FFFF_FFFF
                    self._push[i] = counter + 1
                else:
                    bit = 1 << (highest - counter) if highest - counter < WINDOW else 0
                    if not bit or self._window[i] & bit:
                        return False
                    self._window[i] |= bit
            self._dirty.add((channel, i // CHUNK))
            within_s = SOON_S if channel == "push" else LAZY_S
            tell = self._told_s is None or within_s < self._told_s
            if tell:
                self._told_s = within_s
        if tell:
            self._submit("peers", within_s=within_s)
        return True

    def take_windows(self, path: Path) -> None:
        """Take over what another counters.db knows of pushes: a counter that was accepted there is a replay here.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        with contextlib.closing(store.connect(path, reader=True)) as db:
            names = {
                i: (bytes(title), fingerprint)
                for i, title, fingerprint in db.execute(
                    "SELECT id, title, fingerprint FROM identity"
                )
            }
            rows = db.execute("SELECT chunk, body FROM push").fetchall()
        changed = False
        with self._lock:
            for chunk, body in rows:
                values = struct.unpack(f"<{len(body) // 8}Q", body)
                pairs = zip(values[::2], values[1::2], strict=True)
                for i, (highest, window) in enumerate(pairs, start=chunk * CHUNK):
                    if highest and i in names:
                        changed |= self._merge_window(self._identify(*names[i]), highest, window)
        if changed:
            self._submit("peers", within_s=SOON_S)

    def _merge_window(self, i: int, highest: int, window: int) -> bool:
        """What both windows accepted; True when that is more than ours. Called with the lock held."""
        ours, mine = self._push[i], self._window[i]
        if ours >= highest:
            merged = mine | window << (ours - highest) if ours - highest < WINDOW else mine
        else:
            merged = window | mine << (highest - ours) if highest - ours < WINDOW else window
        merged &= 0xFFFF_FFFF_FFFF_FFFF
        if (max(ours, highest), merged) == (ours, mine):
            return False
        self._push[i], self._window[i] = max(ours, highest), merged
        self._dirty.add(("push", i // CHUNK))
        return True

    def flush(self) -> Future[None]:
        """Answered when everything so far is durable."""
        return self._group.flush()

    def close(self, timeout_s: float = 4.0) -> None:
        """Commit what is queued and close."""
        if self._closed:
            return
        self._closed = True
        if self._group.close(timeout_s):
            self._db.close()
            self._file_lock.close()
        else:
            log.error("%s did not come to rest within %g s", self.path, timeout_s)

    # ---- inside --------------------------------------------------------------------------------

    def _submit(self, what: str, *args: Any, within_s: float = 0.0) -> Future[Any]:
        try:
            return self._group.submit(what, *args, within_s=within_s).future
        except RuntimeError as error:
            raise JournalError(f"{self.path} is closed") from error

    def _identify(self, title: bytes, fingerprint: str) -> int:
        """The number of an identity; called with the lock held."""
        key = (bytes(title), fingerprint)
        i = self._ids.get(key)
        if i is None:
            i = self._ids[key] = len(self._next)
            self._new.append((i, *key))
            self._grow(i + 1)
        return i

    def _grow(self, count: int) -> None:
        for column in (
            self._next,
            self._end,
            self._wanted,
            self._association,
            self._push,
            self._window,
        ):
            column.extend([0] * (count - len(column)))

    def _load(self) -> None:
        for (epoch,) in self._db.execute("SELECT value FROM meta WHERE key = 'epoch'"):
            self._epoch = int(epoch)
        for i, title, fingerprint in self._db.execute(
            "SELECT id, title, fingerprint FROM identity"
        ):
            self._ids[bytes(title), fingerprint] = i
        self._grow(max(self._ids.values(), default=-1) + 1)
        for chunk, body in self._db.execute("SELECT chunk, body FROM own"):
            self._place(self._end, chunk, struct.unpack(f"<{len(body) // 8}Q", body))
        for chunk, body in self._db.execute("SELECT chunk, body FROM association"):
            self._place(self._association, chunk, struct.unpack(f"<{len(body) // 8}Q", body))
        for chunk, body in self._db.execute("SELECT chunk, body FROM push"):
            values = struct.unpack(f"<{len(body) // 8}Q", body)
            self._place(self._push, chunk, values[::2])
            self._place(self._window, chunk, values[1::2])

    @staticmethod
    def _place(column: array[int], chunk: int, values: tuple[int, ...]) -> None:
        for i, value in enumerate(values, start=chunk * CHUNK):
            if i < len(column):
                column[i] = value

    def _commit(self, batch: list[Item[Any]]) -> None:
        with self._lock:
            ranges: dict[int, int] = {}
            for item in batch:
                if item.what == "reserve":
                    i, start, count = item.args  # a jump may have come after the asking
                    least = max(self._next[i], start) + count
                    ranges[i] = max(ranges.get(i, 0), self._wanted[i], min(least, END))
            epoch = max((item.args[0] for item in batch if item.what == "epoch"), default=0)
            jump = JUMP if epoch and epoch != self._epoch else 0
            new, self._new = self._new, []
            dirty, self._dirty = self._dirty, set()
            self._told_s = None
            ends = self._end[:]
            for i, end in ranges.items():
                ends[i] = max(ends[i], end)
            if jump:
                ends = array("Q", (min(end + jump, max(end, END)) if end else 0 for end in ends))
            touched = range(len(ends)) if jump else ranges
            rows = [("own", c, _octets(ends, c)) for c in sorted({i // CHUNK for i in touched})]
            for channel, chunk in sorted(dirty):
                columns = (
                    (self._association,) if channel == "association" else (self._push, self._window)
                )
                rows.append((channel, chunk, _octets_of(columns, chunk)))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO identity VALUES (?, ?, ?)", new)
            for table, chunk, body in rows:
                self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (chunk, body))
            if jump:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            with self._lock:
                self._new[:0] = new
                self._dirty |= dirty
            reason = store.translate(error, self.path)
            for item in batch:
                item.future.set_exception(reason)
            return
        with self._lock:
            for i, end in enumerate(ends):  # identities may have joined meanwhile
                self._end[i] = end
            for item in batch:
                if item.what == "reserve":
                    i, start, _ = item.args
                    self._next[i] = max(self._next[i], start)
            if jump:
                self._epoch = epoch
                for i, end in enumerate(ends):
                    if self._next[i]:
                        self._next[i] = min(self._next[i] + jump, end)
        for item in batch:
            item.future.set_result(None)
        self._wal_pages += 2 * len(rows) + 2
        if self._wal_pages > 1000:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._wal_pages = 0


def _octets(column: array[int], chunk: int) -> bytes:
    return _octets_of((column,), chunk)


def _octets_of(columns: tuple[array[int], ...], chunk: int) -> bytes:
    """A chunk of arrays, interleaved."""
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    values = [v for row in zip(*(column[part] for column in columns), strict=True) for v in row]
    return struct.pack(f"<{len(values)}Q", *values)
