"""A journal that another process writes, or wrote: read here, never written.

What is waiting is what the file holds and neither its own releases nor `release` here name. The file is looked at again
whenever its owner committed; one that was set aside, or that began a new epoch, is `gone`: its segment numbers mean
something else now, and whoever reads on opens it anew.
"""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

import msgspec

from edge_core.errors import JournalError
from edge_core.journal import codec, store
from edge_core.journal.book import Names
from edge_core.journal.reading import Reading
from edge_core.journal.retention import Generations, unpack_ids
from edge_core.journal.transaction import alarm_key, find_segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edge_core.domain import Alarm, Block, Obis
    from edge_core.journal.ledger import Entry
    from edge_core.journal.records import Lane, Note, Segment, Verification

log = logging.getLogger(__name__)

MANY_HIDDEN = 1_000


class Elsewhere(Reading):
    """The reading half of a journal file. All methods may be called from any thread.

    Attributes:
        name: of the file.
        epoch: of the file when it was opened.
        gone: the file is another one by now.

    Raises (on construction):
        JournalError: there is no journal, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__({}, 0)
        self.path, self.name = path, path.name
        self.gone = False
        self._head = 0
        self._looking = threading.Lock()
        self._counts = (-1, -1)
        try:
            self._inode = path.stat().st_ino
            db = self._connection()
            meta = dict(db.execute("SELECT key, value FROM meta"))
            self.epoch = int(meta.get("epoch", 0))
            self._released.load(db, int(meta.get("low", 0)))
            self._look(db)
            self._take_riding(db, int(meta.get("upto", 0)))
        except (sqlite3.Error, OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            self.close()
            raise JournalError(f"{path} cannot be read: {error}") from error
        if not self.epoch:
            self.close()
            raise JournalError(f"{path} has just begun")

    def look(self) -> None:
        """See what its owner has committed meanwhile; `gone` when it is another file now."""
        if not self.gone:
            try:
                self.gone = self.path.stat().st_ino != self._inode
            except FileNotFoundError:
                self.gone = True
        db = self._connection()
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if self.gone or version == getattr(self._reader, "version", None):
            return
        with self._looking:
            self._look(db)
        self._reader.version = version

    def head(self) -> int:
        """Id of the newest durable segment as last looked at."""
        return self._head

    def segments(
        self, after: int, *, lane: Lane | None = None, limit: int = 100, everything: bool = False
    ) -> list[Segment]:
        """As `Reading.segments`, of what is there by now."""
        self.look()
        return super().segments(after, lane=lane, limit=limit, everything=everything)

    def blocks(self, segment: int) -> list[Block]:
        """As `Reading.blocks`."""
        self.look()
        return super().blocks(segment)

    def entries(self, meters: Iterable[str]) -> Iterator[tuple[str, str, Obis, Entry]]:
        """The ledger of these meters: (meter, device, profile, entry).

        At the first call, what was committed after the ledger was last written is read again.
        """
        self.look()
        if not self._book.complete:
            self._complete_book()
        db = self._connection()
        for meter in meters:
            for device, profile, entry in self._book.entries(db, meter):
                yield meter, self._names.device_of(device)[1], profile, entry

    def mark(self, key: str) -> str:
        """What its owner marked under this key, or ""."""
        row = self._connection().execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def release(self, segments: Iterable[int], alarms: Iterable[str], notes: Iterable[int]) -> None:
        """Serve these no more."""
        with contextlib.suppress(JournalError, sqlite3.Error):
            self.look()
        with self._lock:
            self._released.add(segments, self._head)
            self._hidden |= {("alarm", a) for a in alarms} | {("note", str(n)) for n in notes}
        if len(self._hidden) > MANY_HIDDEN:
            self._forget_hidden()

    def waiting(self, segment: int) -> bool:
        """Is the segment served?"""
        with self._lock:
            return 0 < segment <= self._head and segment not in self._released

    def holding(self, alarms: Iterable[str]) -> list[str]:
        """Those of the alarms that wait here, as far as can be read."""
        query = "SELECT 1 FROM alarm WHERE id = ? AND body IS NOT NULL"
        out: list[str] = []
        with contextlib.suppress(JournalError, sqlite3.Error):
            db = self._connection()
            out += (a for a in alarms if db.execute(query, (alarm_key(a),)).fetchone())
        return out

    def alarms_waiting(self, limit: int = 1000) -> list[Alarm]:
        """As `Reading.alarms_waiting`."""
        return [] if self.gone else super().alarms_waiting(limit)

    def notes_waiting(self, after: int = 0, limit: int = 100) -> list[Note]:
        """As `Reading.notes_waiting`."""
        return [] if self.gone else super().notes_waiting(after, limit)

    def verify(self) -> Verification:
        """As `Reading.verify`, of one moment: its owner goes on meanwhile."""
        db = self._connection()
        db.execute("BEGIN")
        try:
            with self._looking:
                self._look(db)
            return super().verify()
        finally:
            db.execute("ROLLBACK")

    def is_used(self) -> bool:
        """Was anything ever journalled here that may have been sent?"""
        db = self._connection()
        tables = ("alarm", "note", "aside")
        return bool(self._head) or any(
            db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables
        )

    def close(self) -> None:
        """Close the connections of all threads."""
        self._closed = True
        with self._lock:
            readers, self._readers = self._readers, []
        for reader in readers:
            with contextlib.suppress(sqlite3.Error):
                reader.close()

    # ---- inside --------------------------------------------------------------------------------

    def _look(self, db: sqlite3.Connection) -> None:
        meta = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'head')"))
        if int(meta.get("epoch", 0)) != self.epoch:
            self.gone = True
            return
        counts = db.execute(
            "SELECT (SELECT count(*) FROM device), (SELECT count(*) FROM layout)"
        ).fetchone()
        if counts != self._counts:
            names = Names()
            names.load(db)
            self._names, self._counts = names, counts
            self._book = type(self._book)(names)
        generations = Generations({}, 0)
        head = max(generations.load(db), int(meta.get("head", 0)))
        self._generations = generations
        self._head = max(self._head, head)

    def _take_riding(self, db: sqlite3.Connection, upto: int) -> None:
        """Releases that stand in segments younger than the last snapshot."""
        for generation in self._generations.committed():
            query = f"SELECT acks FROM seg{generation.slot} WHERE id > ? AND acks IS NOT NULL"
            for (acks,) in db.execute(query, (upto,)):
                self._released.add(unpack_ids(acks), self._head)

    def _complete_book(self) -> None:
        """Have the ledger count every segment: those above `upto` are read again."""
        db = self._connection()
        row = db.execute("SELECT value FROM meta WHERE key = 'upto'").fetchone()
        after = int(row[0]) if row else 0
        while page := self._page(after, None, 100, self._head, db):
            for segment in page:
                after = segment.id
                body = find_segment(db, self._generations.committed(), segment.id)[0]
                try:
                    blocks, caps = codec.decode(
                        body or b"", self._names.device_of, self._names.layout_of
                    )
                    self._book.replay(db, segment.id, blocks, dict(caps))
                except JournalError as error:
                    log.warning("%s: segment %d is not in the ledger: %s", self.name, after, error)
        self._book.complete = True

    def _forget_hidden(self) -> None:
        """Keep only what the file still holds of what is hidden."""
        db = self._connection()
        alarms = {key for (key,) in db.execute("SELECT id FROM alarm WHERE body IS NOT NULL")}
        notes = {str(number) for (number,) in db.execute("SELECT id FROM note")}
        with self._lock:
            self._hidden = {
                (what, key)
                for what, key in self._hidden
                if (what == "note" and key in notes)
                or (what == "alarm" and alarm_key(key) in alarms)
            }

    def _suspect(self) -> None:
        """Its owner finds out by itself: the file is not ours to mark."""


def state_of(path: Path) -> tuple[int, int]:
    """(epoch, newest segment) of a journal file as it is now; zeros where it cannot be read."""
    try:
        connection = store.connect(path, reader=True)
    except (sqlite3.Error, OSError):
        return 0, 0
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        head = max(Generations({}, 0).load(connection), int(meta.get("head", 0)))
        return int(meta.get("epoch", 0)), head
    except (sqlite3.Error, ValueError, TypeError):
        return 0, 0
    finally:
        connection.close()


def forget_ledger(path: Path, marks: str) -> None:
    """Forget the ledger of a journal that nobody has open, and the marks that begin so: its own segments tell it again.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    connection = store.connect(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM ledger")
        connection.execute(
            "DELETE FROM meta WHERE key = 'upto' OR substr(key, 1, ?) = ?", (len(marks), marks)
        )
        connection.execute("COMMIT")
    finally:
        connection.close()
