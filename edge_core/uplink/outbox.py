"""uplink.db: message numbers, send records and what was acked or refused of things that wait as a whole.

What stands here, and why it is enough:
- `reserved`: numbers up to it may have been used in this epoch. A range is on disk before the first of it is used, and
  burnt at a restart, with a part of SKIP by chance: (epoch, n) names one transmission for ever, even if the disk is restored.
- send records (n, references, SHA-256): by them a late ack of an earlier run still frees its rows. They are committed
  with the next group, LAZY_S at most, never before publishing; a record whose ack comes within that time is never
  written. One that a crash swallowed costs a second transmission under a new number, nothing else.
- acked ranges of items that are acked in part, and the messages set aside, so that a restart does not send them again.
- what other processes read here: what is acked of their journals (register.py), and commands (record.py).

An item is a segment of the journal (its parts are its rows, numbered through its blocks), a note (parts: what it was
cut into) or an alarm (one part). The thread that writes is the only one that touches the file. A full disk is no
reason to stop: numbers go on while reserved ones last, what could not be written is kept and tried again.
A damaged file is set aside into damaged/ and a fresh one begun; the caller then needs a new epoch.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from edge_core.clock import Clock

log = logging.getLogger(__name__)

RANGE = 10_000  # numbers reserved at a time: days of normal traffic, and only 8 octets are written
SKIP = 1 << 20
"""How far a restart goes on at most. By chance: two lives of a restored disk would else name the same numbers."""
LAZY_S = 5.0
RETRY_S = 2.0
RECORD_VERSION = 1
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sends (n INTEGER PRIMARY KEY, refs BLOB NOT NULL, sha256 BLOB NOT NULL);
CREATE TABLE acked (kind TEXT, key, total INTEGER NOT NULL, ranges BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE aside (n INTEGER PRIMARY KEY, refs BLOB NOT NULL, cause TEXT NOT NULL, why TEXT NOT NULL, at INTEGER NOT NULL);
"""
ADDED = """
CREATE TABLE IF NOT EXISTS source (id INTEGER PRIMARY KEY, name TEXT NOT NULL, epoch INTEGER NOT NULL, UNIQUE (name, epoch));
CREATE TABLE IF NOT EXISTS freed (seq INTEGER PRIMARY KEY, source INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS command (id TEXT PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL,
    expires INTEGER NOT NULL, payload BLOB NOT NULL, answer BLOB) WITHOUT ROWID;
"""
"""Since release 0.2: a release before it leaves these alone."""

Item = tuple[str, int | str]
"""("s", segment) | ("n", note) | ("a", alarm id)."""

SEGMENT, NOTE, ALARM = "s", "n", "a"


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """Parts `first` to `end` (excluded) of an item that has `total`."""

    kind: str
    key: int | str
    first: int
    end: int
    total: int

    @property
    def item(self) -> Item:
        """The item."""
        return self.kind, self.key


Ranges = list[tuple[int, int]]
"""Ascending, disjoint, not touching; ends excluded."""


def add_range(ranges: Ranges, first: int, end: int) -> Ranges:
    """The ranges with one more."""
    out: Ranges = []
    for a, b in ranges:
        if b < first or end < a:
            out.append((a, b))
        else:
            first, end = min(a, first), max(b, end)
    out.append((first, end))
    out.sort()
    return out


class AsideRow(NamedTuple):
    """A message that will not be sent again by itself."""

    refs: tuple[Ref, ...]
    cause: str
    why: str
    at: int


class _Refs(msgspec.Struct, frozen=True, array_like=True):
    version: int
    refs: tuple[Ref, ...] = ()


def pack(refs: Iterable[Ref]) -> bytes:
    """References as they stand on disk."""
    return msgspec.msgpack.encode(_Refs(RECORD_VERSION, tuple(refs)))


def unpack(octets: bytes) -> tuple[Ref, ...] | None:
    """References from disk; None when a newer release wrote them, which are left as they are."""
    try:
        record = msgspec.msgpack.decode(octets, type=_Refs)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
    return record.refs if record.version == RECORD_VERSION else None


Row = tuple[str, tuple[object, ...]]
"""A statement of register.py or record.py, and its parameters."""


@dataclass(slots=True)
class _Batch:
    """What waits to be written in one transaction."""

    wipe: bool = False
    extend: bool = False
    records: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    forget: set[int] = field(default_factory=set)
    partials: dict[Item, tuple[int, Ranges] | None] = field(default_factory=dict)
    asides: dict[int, AsideRow | None] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    makers: list[Callable[[], list[Row]]] = field(default_factory=list)
    waiting: list[Future[None]] = field(default_factory=list)

    def behind(self, earlier: _Batch) -> _Batch:
        """This one, said after an earlier one that could not be written."""
        more: dict[str, Any] = {
            "rows": earlier.rows + self.rows,
            "makers": earlier.makers + self.makers,
            "waiting": earlier.waiting + self.waiting,
        }
        if self.wipe:
            return replace(self, **more)
        records = earlier.records | self.records
        return _Batch(
            earlier.wipe,
            self.extend or earlier.extend,
            {n: record for n, record in records.items() if n not in self.forget},
            earlier.forget | self.forget,
            earlier.partials | self.partials,
            earlier.asides | self.asides,
            earlier.figures | self.figures,
            **more,
        )


def _nothing() -> None:
    """What is called back where nobody listens."""


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection to an uplink.db that only reads.

    Raises:
        sqlite3.Error: there is none.
    """
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5.0)
    db.execute("PRAGMA query_only = 1")
    return db


class Outbox:
    """The file and the thread that writes it. All methods may be called from any thread."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.was_damaged = ""
        self.was_created = False
        self._clock = clock
        self._changed = threading.Condition()
        self._tables_added = False
        self._db = self._open()
        self.epoch = self._meta("epoch")
        self.born = self._meta("born")
        self.earlier: dict[int, tuple[Ref, ...]] = {}
        self.acked: dict[Item, tuple[int, Ranges]] = {}
        self.aside: dict[int, AsideRow] = {}
        self._load()
        self._next = self._limit = self._meta("reserved") + 1
        self._day, self._spent = self._meta("day"), self._meta("spent")
        self._batch = _Batch(extend=True)
        if not self.born:
            self.born = self._batch.figures["born"] = secrets.randbits(62) | 1
        self._on_disk: set[int] = set(self.earlier)  # or on the way there
        self._urgent = False
        self._dirty_since: float | None = None
        self._extending = True
        self._closing = False
        self.failed = ""
        self.on_rows: Callable[[], object] = _nothing
        """Called in the writer's thread when statements of collaborators are durable."""
        self._thread = threading.Thread(target=self._write_loop, name="outbox", daemon=True)

    @classmethod
    def open(cls, path: Path, *, clock: Clock) -> Outbox:
        """Open or create the file and begin to write. `begin` must be called before the first `take`."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(path, clock)

    def begin(self, epoch: int) -> None:
        """Number on in this epoch, and wait until the first range is on disk (or the disk refused, which is retried).

        Another epoch than the last one begins at 1; what is known of the old one's messages is dropped.
        """
        with self._changed:
            self._switch(epoch)
            if not self._thread.is_alive():
                self._thread.start()
        with contextlib.suppress(TimeoutError):
            self.sync().result(timeout=5.0)

    def _switch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self.earlier.clear()
            self.acked.clear()
            self.aside.clear()
            self._on_disk.clear()
            self._batch = _Batch(
                wipe=True, figures={"epoch": epoch, "reserved": 0, "born": self.born}
            ).behind(self._batch)
            self._next = self._limit = 1
        else:
            self._next = self._limit = self._limit + secrets.randbelow(SKIP)
        self._batch.extend = True
        self._touch(urgent=True)

    # --- numbers

    def take(self) -> int | None:
        """The next number; None while none is reserved (the disk is full, or 10,000 went within a sync)."""
        with self._changed:
            if self._limit - self._next <= RANGE // 2 and not self._extending:
                self._batch.extend = self._extending = True
                self._touch(urgent=True)
            if self._next >= self._limit:
                return None
            n = self._next
            self._next += 1
            return n

    @property
    def reserved(self) -> int:
        """The highest number that may have been used in this epoch."""
        with self._changed:
            return self._limit - 1

    @property
    def taken(self) -> int:
        """The highest number used in this epoch, or burnt at a restart.

        A cloud that has a higher one has it from another life of this file. What is merely reserved tells nothing: both lives
        reserve the same range when the copy was made before the last restart.
        """
        with self._changed:
            return self._next - 1

    # --- what the sender says

    def record(self, n: int, refs: tuple[Ref, ...], sha256: bytes) -> None:
        """Message n carries these parts."""
        with self._changed:
            self._batch.records[n] = (pack(refs), sha256)
            self._touch()

    def forget(self, n: int) -> None:
        """Nothing of message n is open any more."""
        with self._changed:
            self._batch.records.pop(n, None)
            self.earlier.pop(n, None)
            if n in self._on_disk:
                self._batch.forget.add(n)
                self._touch()
            if self.aside.pop(n, None) is not None:
                self._batch.asides[n] = None
                self._touch()

    def keep_partial(self, item: Item, total: int, ranges: Ranges) -> None:
        """These parts of the item are acked, others are not."""
        with self._changed:
            self.acked[item] = (total, ranges)
            self._batch.partials[item] = (total, list(ranges))
            self._touch()

    def drop_partial(self, item: Item) -> None:
        """The item is acked as a whole, or gone."""
        with self._changed:
            if self.acked.pop(item, None) is not None:
                self._batch.partials[item] = None
                self._touch()

    def set_aside(self, n: int, row: AsideRow) -> None:
        """Message n will not be sent again by itself; committed at once."""
        with self._changed:
            self.aside[n] = row
            self._batch.asides[n] = row
            self._batch.records.pop(n, None)
            if n in self._on_disk:
                self._batch.forget.add(n)
            self._touch(urgent=True)

    def spent(self, day: int) -> int:
        """Octets published on this civil day."""
        with self._changed:
            return self._spent if day == self._day else 0

    def spend(self, day: int, octets: int) -> None:
        """Count octets of a civil day; written with the next group, so a kill may forget LAZY_S of them."""
        with self._changed:
            if day != self._day:
                self._day, self._spent = day, 0
            self._spent += octets
            self._batch.figures |= {"day": day, "spent": self._spent}
            self._touch()

    def write(self, sql: str, *values: object) -> None:
        """A statement of a collaborator, after those said before, committed at once."""
        with self._changed:
            self._batch.rows.append((sql, values))
            self._touch(urgent=True)

    def write_later(self, make: Callable[[], list[Row]]) -> None:
        """Statements of a collaborator, asked for (in the writer's thread) when the next group is committed."""
        with self._changed:
            self._batch.makers.append(make)
            self._touch()

    def reading(self) -> sqlite3.Connection:
        """A connection for a collaborator that only reads; the caller closes it."""
        return open_reader(self.path)

    def sync(self) -> Future[None]:
        """Done when everything said before is on disk."""
        future: Future[None] = Future()
        with self._changed:
            if not self._thread.is_alive():
                future.set_result(None)
                return future
            self._batch.waiting.append(future)
            self._touch(urgent=True)
        return future

    def close(self, timeout_s: float = 3.0) -> None:
        """Write what waits and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        else:
            self._db.close()

    # --- the writer

    def _touch(self, *, urgent: bool = False) -> None:
        self._urgent |= urgent
        if self._dirty_since is None:
            self._dirty_since = self._clock.monotonic()
            self._changed.notify_all()
        if urgent:
            self._changed.notify_all()

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._urgent:
                    if self._dirty_since is None:
                        self._changed.wait()
                        continue
                    left = self._dirty_since + LAZY_S - self._clock.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                closing = self._closing
            done = self._commit()
            with self._changed:
                if closing:
                    break
                if not done:
                    self._changed.wait(RETRY_S)
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _commit(self) -> bool:
        """Write what waits in one transaction. False when the disk refused; then all of it waits on."""
        with self._changed:
            batch, self._batch = self._batch, _Batch()
            self._urgent, self._dirty_since = False, None
            self._on_disk |= batch.records.keys()
            epoch, reserve = self.epoch, self._limit - 1 + RANGE
        if batch.extend:
            batch.figures["reserved"] = reserve
        makers, batch.makers = batch.makers, []
        batch.rows += [row for make in makers for row in make()]
        try:
            self._write(batch)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            with self._changed:
                self._batch = self._batch.behind(batch)
                self._touch(urgent=True)
            if not self.failed:
                log.error(  # noqa: TRY400 the message says it all, and it comes once
                    "outbox: cannot write %s: %s; sending goes on", self.path.name, error
                )
            self.failed = str(error)
            return False
        with self._changed:
            if epoch == self.epoch:
                self._on_disk -= batch.forget
                if batch.extend:
                    self._limit = reserve + 1
                    self._extending = False
        if self.failed:
            log.info("outbox: %s can be written again", self.path.name)
            self.failed = ""
        for future in batch.waiting:
            future.set_result(None)
        if batch.rows:
            self.on_rows()
        return True

    def _write(self, batch: _Batch) -> None:
        db = self._db
        if not self._tables_added:
            self._add_tables(db)
        db.execute("BEGIN IMMEDIATE")
        if batch.wipe:
            db.execute("DELETE FROM sends")
            db.execute("DELETE FROM acked")
            db.execute("DELETE FROM aside")
        db.executemany("DELETE FROM sends WHERE n = ?", [(n,) for n in batch.forget])
        db.executemany(
            "INSERT OR REPLACE INTO sends VALUES (?, ?, ?)",
            [(n, *record) for n, record in batch.records.items()],
        )
        for item, partial in batch.partials.items():
            if partial is None:
                db.execute("DELETE FROM acked WHERE kind = ? AND key = ?", item)
            else:
                db.execute(
                    "INSERT OR REPLACE INTO acked VALUES (?, ?, ?, ?)",
                    (*item, partial[0], msgspec.msgpack.encode(partial[1])),
                )
        for n, row in batch.asides.items():
            if row is None:
                db.execute("DELETE FROM aside WHERE n = ?", (n,))
            else:
                db.execute(
                    "INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?)",
                    (n, pack(row.refs), *row[1:]),
                )
        for sql, values in batch.rows:
            db.execute(sql, values)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", batch.figures.items())
        db.execute("COMMIT")

    # --- opening

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError:
            raise  # locked, or no room: not damage
        except sqlite3.DatabaseError as error:
            self.was_damaged = str(error)
        aside = self.path.parent / "damaged"
        aside.mkdir(mode=0o700, exist_ok=True)
        stamp = int(self._clock.now())
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside / f"{stamp}-{part.name}")
        log.error(
            "outbox: %s was damaged (%s); set aside, begun anew", self.path.name, self.was_damaged
        )
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            db.execute("PRAGMA page_size = 1024")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = 0")
            db.execute("PRAGMA journal_size_limit = 1048576")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self.was_created = True
                db.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
                )
            with contextlib.suppress(sqlite3.OperationalError):  # no room: with the first commit
                self._add_tables(db)
            if version and (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)  # noqa: TRY301 one place that closes it
        except BaseException:
            db.close()
            raise
        return db

    def _add_tables(self, db: sqlite3.Connection) -> None:
        db.executescript(ADDED)
        self._tables_added = True

    def _meta(self, key: str) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def _load(self) -> None:
        for n, octets in self._db.execute("SELECT n, refs FROM sends"):
            if (refs := unpack(octets)) is not None:
                self.earlier[n] = refs
        for kind, key, total, octets in self._db.execute(
            "SELECT kind, key, total, ranges FROM acked"
        ):
            self.acked[kind, key] = (total, msgspec.msgpack.decode(octets, type=Ranges))
        for n, octets, cause, why, at in self._db.execute(
            "SELECT n, refs, cause, why, at FROM aside"
        ):
            if (refs := unpack(octets)) is not None:
                self.aside[n] = AsideRow(refs, cause, why, at)
