"""Reading a journal while it is written: each thread has a read connection of its own, nobody waits for the writer."""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge_core.domain import as_list
from edge_core.errors import DiskFull, JournalDamaged, JournalError
from edge_core.journal import codec, opening, store
from edge_core.journal.book import Book, Names, decodes
from edge_core.journal.records import Aside, Note, Segment, Verification
from edge_core.journal.retention import Generations, Released
from edge_core.journal.transaction import LANES, alarm_key, find_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_core.domain import Alarm, Block
    from edge_core.journal.records import Lane
    from edge_core.journal.transaction import Transaction

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Reading:
    """The reading half of `Journal`."""

    path: Path
    epoch: int
    _writing: Transaction
    _file_lock: store.FileLock

    def __init__(self, keep_s: dict[int, float], max_bytes: int) -> None:
        self._lock = threading.Lock()  # of `_released`, `_hidden` and `_readers`
        self._names = Names()
        self._book = Book(self._names)
        self._released = Released()
        self._generations = Generations(keep_s, max_bytes)
        self._unreadable: set[int] = set()
        self._hidden: set[tuple[str, str]] = set()  # released or set aside, not yet committed
        self._readers: list[sqlite3.Connection] = []
        self._reader = threading.local()
        self._closed = False

    def head(self) -> int:
        """Id of the newest durable segment, 0 = none yet."""
        return self._writing.head

    def heads(self) -> dict[int, int]:
        """Newest durable segment by its base: one journal has the base 0 (journals.py has several)."""
        return {0: self.head()}

    def segments(
        self, after: int, *, lane: Lane | None = None, limit: int = 100, everything: bool = False
    ) -> list[Segment]:
        """Segments with an id above `after`, ascending: those that wait for an ack and that we can read.

        Args:
            everything: also released ones that are still kept.
        """
        out: list[Segment] = []
        head = self.head()
        while len(out) < limit and after < head:
            if not everything:
                with self._lock:
                    first = self._released.next_waiting(after + 1, head)
                if first is None:
                    break
                after = first - 1
            page = self._page(after, lane, max(limit, 16), head)
            if not page:
                break
            after = page[-1].id
            with self._lock:
                out += [
                    s
                    for s in page
                    if everything
                    or not (
                        s.id in self._released
                        or s.id in self._unreadable
                        or ("segment", str(s.id)) in self._hidden
                    )
                ]
        return out[:limit]

    def blocks(self, segment: int) -> list[Block]:
        """Blocks of a segment, also of a released or set-aside one; empty when it was freed.

        Raises:
            JournalDamaged: the segment does not decode: set it aside.
            JournalError: a newer release wrote it: leave it.
        """
        try:
            body, _ = find_segment(self._connection(), self._generations.committed(), segment)
        except sqlite3.DatabaseError as error:
            raise self._damage(error) from error
        if body is None:
            return []
        try:
            return codec.decode(body, self._names.device_of, self._names.layout_of)[0]
        except JournalDamaged as error:
            raise JournalDamaged(f"{self.path}: segment {segment}: {error}") from error

    def find(
        self,
        meter: str,
        *,
        kind: str = "",
        since: int | None = None,
        until: int | None = None,
        written_since: int | None = None,
    ) -> Iterator[Block]:
        """Rows of a meter captured from `since` to `until` (UTC seconds) that the journal still holds, oldest read first.

        Reads every segment that was written at or after `written_since`: for a re-request, not for a routine.
        """
        after = 0 if written_since is None else self._written_before(written_since)
        while page := self.segments(after, limit=200, everything=True):
            after = page[-1].id
            for segment in page:
                if kind and segment.kind != kind:
                    continue
                for block in self.blocks(segment.id):
                    if block.meter != meter:
                        continue
                    rows = [
                        row
                        for row, time in enumerate(as_list(block.times))
                        if (since is None or time >= since) and (until is None or time <= until)
                    ]
                    if rows:
                        yield block if len(rows) == block.rows else block.take(rows)

    def _written_before(self, at: int) -> int:
        """The newest segment below every one that was written at or after a UTC second."""
        first = self.head() + 1
        for generation in self._generations.committed():
            query = f"SELECT min(id) FROM seg{generation.slot} WHERE at >= ?"
            (found,) = self._connection().execute(query, (at,)).fetchone()
            first = first if found is None else min(first, found)
        return first - 1

    def alarms_waiting(self, limit: int = 1000) -> list[Alarm]:
        """Durable alarms that wait for an ack, oldest first."""
        query = "SELECT id, body FROM alarm WHERE body IS NOT NULL ORDER BY n LIMIT ?"
        with self._lock:
            hidden = {alarm_key(i) for what, i in self._hidden if what == "alarm"}
        rows = self._connection().execute(query, (limit + len(hidden),)).fetchall()
        out = [self._decoded(opening.decode_alarm, body) for key, body in rows if key not in hidden]
        return [alarm for alarm in out if alarm is not None][:limit]

    def count_waiting(self) -> tuple[int, int]:
        """Alarms and notes that are durable and wait for an ack."""
        db = self._connection()
        alarms = one(db, "SELECT count(*) FROM alarm WHERE body IS NOT NULL")
        notes = one(db, "SELECT count(*) FROM note")
        with self._lock:
            hidden = list(self._hidden)
        for what, number in hidden:  # acked or set aside, and not yet committed as that
            if what == "alarm":
                query = "SELECT count(*) FROM alarm WHERE id = ? AND body IS NOT NULL"
                alarms -= db.execute(query, (alarm_key(number),)).fetchone()[0]
            elif what == "note":
                notes -= db.execute("SELECT count(*) FROM note WHERE id = ?", (number,)).fetchone()[
                    0
                ]
        return max(0, alarms), max(0, notes)

    def notes_waiting(self, after: int = 0, limit: int = 100) -> list[Note]:
        """Notes with an id above `after` that wait for an ack, ascending."""
        query = "SELECT id, kind, sub, body FROM note WHERE id > ? ORDER BY id LIMIT ?"
        with self._lock:
            hidden = {i for what, i in self._hidden if what == "note"}
        rows = self._connection().execute(query, (after, limit + len(hidden))).fetchall()
        out = [
            (number, kind, sub, self._decoded(opening.decode_note, body))
            for number, kind, sub, body in rows
            if str(number) not in hidden
        ]
        return [Note(n, kind, sub, body) for n, kind, sub, body in out if body is not None][:limit]

    def aside(self, limit: int = 100) -> list[Aside]:
        """What was set aside, oldest first."""
        query = "SELECT what, id, cause, why, at FROM aside ORDER BY at, rowid LIMIT ?"
        return [Aside(*row) for row in self._connection().execute(query, (limit,))]

    def verify(self) -> Verification:
        """Read everything and name what is wrong. Slow: the whole file."""
        db = self._connection()
        problems = [f"file: {p}" for p in store.quick_check(db)]
        count = readings = 0
        for generation in self._generations.committed():
            query = f"SELECT id, readings, body FROM seg{generation.slot} ORDER BY id"
            try:
                for segment, claimed, body in db.execute(query):
                    count += 1
                    try:
                        blocks, _ = codec.decode(body, self._names.device_of, self._names.layout_of)
                    except JournalError as error:
                        problems.append(f"segment {segment}: {error}")
                        continue
                    found = sum(b.readings for b in blocks)
                    readings += found
                    if found != claimed:
                        problems.append(f"segment {segment}: {found} readings, not {claimed}")
            except sqlite3.DatabaseError as error:
                problems.append(f"table seg{generation.slot}: {error}")
        lost = sum(not decodes(body) for (body,) in db.execute("SELECT body FROM ledger"))
        if lost:
            problems.append(f"ledger: {lost} blobs do not decode")
        return Verification(
            segments=count,
            readings=readings,
            alarms=one(db, "SELECT count(*) FROM alarm WHERE body IS NOT NULL"),
            notes=one(db, "SELECT count(*) FROM note"),
            problems=tuple(problems),
        )

    def _page(
        self,
        after: int,
        lane: Lane | None,
        limit: int,
        head: int,
        db: sqlite3.Connection | None = None,
    ) -> list[Segment]:
        """The next segments of all tables, whether released or not."""
        where, args = "", []
        if lane is not None:
            where, args = "AND lane = ?", [LANES.index(lane)]
        db = db or self._connection()
        rows: list[tuple[Any, ...]] = []
        for generation in self._generations.committed():
            if generation.last <= after:
                continue
            rows += db.execute(
                "SELECT id, lane, kind, blocks, readings, length(body), codec FROM "
                f"seg{generation.slot} WHERE id > ? AND id <= ? {where} ORDER BY id LIMIT ?",
                (after, head, *args, limit),
            ).fetchall()
        rows.sort()
        self._unreadable.update(row[0] for row in rows if row[-1] > codec.VERSION)
        return [
            Segment(number, LANES[of], kind, blocks, readings, size)
            for number, of, kind, blocks, readings, size, _ in rows[:limit]
        ]

    def _mean_bytes(self, db: sqlite3.Connection) -> float:
        """Mean size of the newest segments on disk."""
        sizes: list[int] = []
        for generation in self._generations.committed():
            if generation.until is None:
                query = f"SELECT length(body) FROM seg{generation.slot} ORDER BY id DESC LIMIT 50"
                sizes += [size for (size,) in db.execute(query)]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def _connection(self) -> sqlite3.Connection:
        """This thread's own read connection."""
        connection: sqlite3.Connection | None = getattr(self._reader, "connection", None)
        if connection is None:
            if self._closed:
                raise JournalError(f"{self.path} is closed")
            connection = store.connect(self.path, reader=True)
            self._reader.connection = connection
            with self._lock:
                self._readers.append(connection)
        return connection

    def _decoded(self, decode: Callable[[bytes], _T], body: bytes) -> _T | None:
        """A body, or None when it rotted: one bad row blocks nobody, the next start looks at the whole file."""
        try:
            return decode(body)
        except (msgspec.MsgspecError, ValueError):
            log.exception("%s: a row does not decode", self.path)
            self._suspect()
            return None

    def _damage(self, error: sqlite3.DatabaseError) -> JournalError:
        reason = store.translate(error, self.path)
        if isinstance(reason, JournalDamaged):
            self._suspect()
        return reason

    def _suspect(self) -> None:
        """Have the next start check the whole file."""
        with contextlib.suppress(DiskFull):
            self._file_lock.write({"epoch": self.epoch, "suspect": True})


def one(db: sqlite3.Connection, query: str) -> int:
    """The integer that a query gives."""
    return int(db.execute(query).fetchone()[0])
