"""The one transaction that writes a journal: everything of a group commit, or nothing of it.

Owned by the writer thread. `run` commits a batch of items and answers their futures; when there is no room, profile rows are
refused (DiskFull) and the rest of the batch is committed without them.
"""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import hashlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.domain import Alarm
from edge_core.errors import DiskFull, JournalDamaged, JournalError
from edge_core.journal import codec, store
from edge_core.journal.merging import Event, event_of, merged
from edge_core.journal.records import Appended
from edge_core.journal.retention import LONG, SAMPLES, class_of, pack_ids

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from edge_core.clock import Clock
    from edge_core.domain import Block
    from edge_core.journal.book import Book, Names
    from edge_core.journal.ledger import Entry
    from edge_core.journal.records import Lane
    from edge_core.journal.retention import Generation, Generations, Released
    from edge_core.journal.writer import Item

log = logging.getLogger(__name__)

LANES: tuple[Lane, ...] = ("live", "backlog")
MAX_SEGMENT_READINGS = 4_000
RETIRE_EVERY_S = 3600
KEEP_ALARM_IDS_S = 400 * 86_400
HOLD_S = 48 * 3600
"""How long a reader that lags behind may keep released segments from being freed (civil seconds)."""
_json = msgspec.json.Encoder()
_decode_alarm = msgspec.json.Decoder(Alarm).decode


class _NoRoom(Exception):
    """The configured limit is reached, within the transaction."""


class Transaction:
    """Writes batches.

    Attributes:
        head: newest durable segment id.
        full: profile rows were refused in the last batch that had some.
        merged: alarms that others stand for since the start, because even the reserve was full.
        holds: cursors of readers (the detector's) that segments wait for; see `Journal.hold`.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        clock: Clock,
        *,
        names: Names,
        book: Book,
        generations: Generations,
        released: Released,
        lock: threading.Lock,
        head: int,
        max_bytes: int,
        reserve_bytes: int,
        complete_ledger: Callable[[], None],
    ) -> None:
        self._complete_ledger = complete_ledger
        self._db, self._path, self._clock = connection, path, clock
        self._names, self._book = names, book
        self._generations, self._released, self._lock = generations, released, lock
        self.head = head
        self._max_bytes, self._reserve_bytes = max_bytes, reserve_bytes
        self._next = head + 1
        self._everything = False
        self._acks: bytes | None = None  # ride along with the next segment
        self._marked: list[int] = []  # released by this transaction itself
        self._retired_at = clock.now()
        self.holds: dict[str, int] = {}
        self._asides = self._count("aside")
        self._alarm_number = self._count("alarm", "max(n)", "WHERE body IS NOT NULL") or 0
        self.full = False
        self._standing: dict[Event, int] | None = None  # while the reserve is full; see _merge
        self.commits = self.readings = self.conflicts = self.refused = self.bytes = 0
        self.merged = 0
        self.wal_pages = 0
        self.damaged: str | None = None
        # one page each; a page count that SQLite itself enforces, with room for releases beyond our limit
        pages = (max_bytes >> 10) + 512
        connection.execute(f"PRAGMA max_page_count = {pages}")

    # ---- the batch -----------------------------------------------------------------------------

    def run(self, batch: list[Item[Any]]) -> None:
        """Commit a batch and answer its futures. Never raises for what belongs to an item."""
        while batch:
            try:
                answers = self._attempt(batch)
            except (sqlite3.Error, _NoRoom, OSError) as error:
                self._roll_back()
                reason = self._reason(error)
                refused = [i for i in batch if i.what == "append" and not _reserved(i)]
                if not isinstance(reason, DiskFull) or not refused:
                    refused = batch
                if isinstance(reason, DiskFull):
                    self.full = True
                    self.refused += len(refused)
                elif isinstance(reason, JournalDamaged):
                    self.damaged = str(reason)
                batch = [i for i in batch if i not in refused]
                for item in refused:
                    item.future.set_exception(reason)
            except BaseException:
                self._roll_back()
                raise
            else:
                for item, answer in answers:
                    if isinstance(answer, DiskFull):
                        item.future.set_exception(answer)
                    else:
                        item.future.set_result(answer)
                return

    def _reason(self, error: Exception) -> JournalError:
        if isinstance(error, _NoRoom):
            return DiskFull(f"{self._path}: {self._max_bytes >> 20} MiB are used up and not acked")
        if isinstance(error, sqlite3.Error):
            return store.translate(error, self._path)
        return JournalError(f"{self._path}: {error}")

    def _attempt(self, batch: list[Item[Any]]) -> list[tuple[Item[Any], Any]]:
        self._db.execute("BEGIN IMMEDIATE")
        answers: list[tuple[Item[Any], Any]] = []
        appends = []
        for item in batch:
            if item.what == "append":
                appends.append(item)
            else:
                answers.append((item, getattr(self, f"_do_{item.what}")(*item.args)))
        with self._lock:
            riding = self._released.fresh()
        self._acks = pack_ids(riding) if riding else None
        had_profile_rows = any(not _reserved(i) for i in appends)
        counted, readings = self._append(appends)
        answers += zip(appends, counted, strict=True)
        if self._clock.now() - self._retired_at >= RETIRE_EVERY_S:
            self._retire()
        alarms = any(item.what == "alarm" for item in batch)
        everything = self._everything or self._book.due(2 if alarms else 1)  # some 20 ms
        if self._acks or self._marked or everything:  # nothing took them along
            with self._lock:
                self._released.save(self._db)
        if everything:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('head', ?)", (self._next - 1,))
            self._generations.save(self._db)
        size = self._book.save(self._db, self._next - 1, everything=everything)
        if self._names.spare_due(now=everything):
            self._names.save_spare(self._db, int(self._clock.now()))
        self._db.execute("COMMIT")
        self._book.commit(everything=everything)
        if not everything:
            self._book.grown(self._next - 1 - self.head, readings)
        self._names.commit()
        self._generations.commit()
        with self._lock:
            self._released.saved(len(riding))
            self.head = self._next - 1
        self._marked = []
        self._everything = False
        self.commits += 1
        self.readings += readings
        self.conflicts += sum(a.conflicts for a in counted)
        self.wal_pages += 4 + 2 * (len(batch) - len(appends)) + (size >> 9)
        if had_profile_rows:
            self.full = False
        return answers

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            log.exception("rollback failed")
        self._names.rollback()
        self._book.rollback()
        self._generations.rollback()
        with self._lock:
            self._released.unsaved()
            self._released.discard(self._marked)
        self._marked = []
        self._next = self.head + 1
        self._everything = False
        self._standing = None
        self._asides = -1  # count again

    # ---- blocks --------------------------------------------------------------------------------

    def _append(self, items: list[Item[Any]]) -> tuple[list[Appended], int]:
        """Blocks into segments; what each of them brought, and readings written."""
        out = []
        groups: dict[tuple[str, int, int], list[tuple[Block, int, int | None]]] = {}
        for item in items:
            block, lane, watermark = item.args
            device = self._names.device(self._db, block.meter, block.device)
            absorbed = self._book.absorb(self._db, device, block, watermark)
            kept = absorbed.of(block)
            rows = kept.rows if kept else 0
            out.append(Appended(rows - absorbed.conflicts, absorbed.known, absorbed.conflicts))
            if kept is not None:
                key = (block.kind, LANES.index(lane), class_of(block))
                groups.setdefault(key, []).append((kept, device, watermark))
        readings = 0
        for (kind, lane, class_), members in groups.items():
            chunk: list[tuple[Block, int, int | None]] = []
            weight = 0
            for member in members:
                if chunk and weight + member[0].readings > MAX_SEGMENT_READINGS:
                    self._write(kind, lane, class_, chunk, weight)
                    chunk, weight = [], 0
                chunk.append(member)
                weight += member[0].readings
                readings += member[0].readings
            self._write(kind, lane, class_, chunk, weight)
        return out, readings

    def _write(
        self,
        kind: str,
        lane: int,
        class_: int,
        members: list[tuple[Block, int, int | None]],
        readings: int,
    ) -> None:
        """One segment into the table of its class."""
        body = codec.encode(
            [block for block, _, _ in members],
            [device for _, device, _ in members],
            [self._names.layout(self._db, block.layout) for block, _, _ in members],
            [(i, mark) for i, (_, _, mark) in enumerate(members) if mark is not None],
        )
        self._need(len(body), reserved=class_ == LONG, samples=class_ != SAMPLES)
        now = int(self._clock.now())
        segment = self._next
        slot = self._generations.slot_for(self._db, class_, segment, now)
        self._db.execute(
            f"INSERT INTO seg{slot} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (segment, lane, kind, len(members), readings, now, codec.VERSION, self._acks, body),
        )
        self._acks = None
        self._generations.filled(slot, segment, len(body))
        self._next += 1
        self.bytes += len(body)
        self.wal_pages += 2 + (len(body) >> 10)

    # ---- everything else: one method per kind of item -----------------------------------------

    def _do_alarm(self, alarm_id: str, body: bytes) -> bool | DiskFull:
        try:
            self._need(len(body), reserved=True)
            self._standing = None
        except _NoRoom as error:
            known = "SELECT 1 FROM alarm WHERE id = ?"
            if self._db.execute(known, (alarm_key(alarm_id),)).fetchone() is not None:
                return False
            try:
                body = self._merge(alarm_id, body)
            except _NoRoom:  # what was merged stays, and others of this commit
                self.refused += 1
                return DiskFull(str(self._reason(error)))
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO alarm VALUES (?, ?, ?, ?)",
            (alarm_key(alarm_id), self._alarm_number + 1, int(self._clock.now()), body),
        )
        self._alarm_number += cursor.rowcount
        return bool(cursor.rowcount)

    def _merge(self, alarm_id: str, body: bytes) -> bytes:
        """Room for an alarm where even the reserve is full, made from alarms of the same event; its body then.

        The first time all that waits is looked at, and each event is remembered with the alarm that stands for it.
        """
        self.full = True
        new = _decode_alarm(body)
        key, event = alarm_key(alarm_id), event_of(new)
        first_look = self._standing is None
        if self._standing is None:
            self._standing = self._merge_all()
        standing = self._standing.get(event)
        row = self._db.execute(
            "SELECT body FROM alarm WHERE id = ? AND body IS NOT NULL", (standing,)
        ).fetchone()
        if row is not None:
            self._db.execute("UPDATE alarm SET body = NULL WHERE id = ?", (standing,))
            body = _json.encode(merged([_decode_alarm(row[0]), new]))
            self.merged += 1
        elif row is None and first_look:
            self._need(len(body), reserved=True)
        elif row is None:
            raise _NoRoom
        self._standing[event] = key
        return body

    def _merge_all(self) -> dict[Event, int]:
        """Merge alarms that wait, event by event; the number of the one that stands for each."""
        groups: dict[Event, list[tuple[int, Alarm]]] = {}
        query = "SELECT id, body FROM alarm WHERE body IS NOT NULL ORDER BY n"
        for key, body in self._db.execute(query).fetchall():
            try:
                alarm = _decode_alarm(body)
            except (msgspec.MsgspecError, ValueError):
                continue  # it rotted: the next start looks at the whole file
            groups.setdefault(event_of(alarm), []).append((key, alarm))
        for members in groups.values():
            if len(members) > 1:
                one = _json.encode(merged([alarm for _, alarm in members]))
                self._db.execute("UPDATE alarm SET body = ? WHERE id = ?", (one, members[-1][0]))
                gone = [(key,) for key, _ in members[:-1]]
                self._db.executemany("UPDATE alarm SET body = NULL WHERE id = ?", gone)
                self.merged += len(gone)
        return {event: members[-1][0] for event, members in groups.items()}

    def _do_note(self, kind: str, sub: str, body: bytes) -> int:
        self._need(len(body), reserved=True)
        cursor = self._db.execute(
            "INSERT INTO note(kind, sub, body) VALUES (?, ?, ?)", (kind, sub, body)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _do_gap(
        self,
        meter: str,
        device: str,
        profile: str,
        first: int,
        last: int,
        cause: str,
        over: str | None,
    ) -> None:
        number = self._names.device(self._db, meter, device)
        entry = self._book.stage(self._db, (number, profile), "interval")
        entry.note_gap(first, last, cause, over=over)
        self._book.at_once((number, profile))

    def _do_release(self, segments: list[int], alarms: list[str], notes: list[int]) -> None:
        self._db.executemany(
            "UPDATE alarm SET body = NULL WHERE id = ?", [(alarm_key(a),) for a in alarms]
        )
        self._db.executemany("DELETE FROM note WHERE id = ?", [(n,) for n in notes])
        if self._asides < 0:
            self._asides = self._count("aside")
        if self._asides:
            gone = [("segment", str(s)) for s in segments] + [("alarm", a) for a in alarms]
            gone += [("note", str(n)) for n in notes]
            cursor = self._db.executemany("DELETE FROM aside WHERE what = ? AND id = ?", gone)
            self._asides -= max(0, cursor.rowcount)

    def _do_aside(
        self, cause: str, why: str, segments: list[int], alarms: list[str], notes: list[int]
    ) -> None:
        now = int(self._clock.now())
        rows: list[tuple[Any, ...]] = []
        for segment in segments:
            found, _ = find_segment(self._db, self._generations, segment)
            if found is not None:
                rows.append(("segment", str(segment), cause, why, now, found))
        for alarm in alarms:
            query = "SELECT body FROM alarm WHERE id = ? AND body IS NOT NULL"
            for (body,) in self._db.execute(query, (alarm_key(alarm),)).fetchall():
                rows.append(("alarm", alarm, cause, why, now, body))
        for note in notes:
            query = "SELECT kind, sub, body FROM note WHERE id = ?"
            for kind, sub, body in self._db.execute(query, (note,)).fetchall():
                whole = _json.encode({"kind": kind, "sub": sub, "body": msgspec.Raw(body)})
                rows.append(("note", str(note), cause, why, now, whole))
        self._need(sum(len(row[-1]) for row in rows), reserved=True)
        self._db.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._mark([int(row[1]) for row in rows if row[0] == "segment"])
        self._asides = self._count("aside")
        self._db.executemany(
            "UPDATE alarm SET body = NULL WHERE id = ?", [(alarm_key(a),) for a in alarms]
        )
        self._db.executemany("DELETE FROM note WHERE id = ?", [(n,) for n in notes])

    def _mark(self, segments: list[int]) -> None:
        with self._lock:
            self._marked += self._released.add(segments, self.head)

    def _do_epoch(self, epoch: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))

    def _do_mark(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _do_entries(self, entries: list[tuple[str, str, str, Entry]]) -> int:
        """Take over ledger entries of another journal where they know more than ours."""
        taken = 0
        for meter, device, profile, theirs in entries:
            key = (self._names.device(self._db, meter, device), profile)
            ours = self._book.stage(self._db, key, theirs.kind)
            if _known(theirs) > _known(ours):
                for field in theirs.__struct_fields__:
                    setattr(ours, field, getattr(theirs, field))
                self._book.at_once(key)
                taken += 1
        return taken

    def _do_flush(self) -> None:
        pass

    def _do_snapshot(self) -> None:
        self._everything = True

    # ---- room ----------------------------------------------------------------------------------

    def used_bytes(self, connection: sqlite3.Connection | None = None) -> int:
        """Pages in use."""
        db = connection or self._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * store.PAGE

    def _need(self, size: int, *, reserved: bool, samples: bool = True) -> None:
        """Make room for a body, or refuse it."""
        limit = self._max_bytes - (0 if reserved else self._reserve_bytes)
        size += size // 8 + 2 * store.PAGE
        if self.used_bytes() + size > limit:
            self._make_room(limit - size, samples=samples)
            if self.used_bytes() > limit - size:
                raise _NoRoom

    def _make_room(self, limit: int, *, samples: bool) -> None:
        """Free released segments, oldest first, then samples, until no more than `limit` is in use."""
        self._complete_ledger()  # what is freed cannot be replayed
        with self._lock:
            whole = self._generations.releasable(self._released)
        for generation in whole:
            if self.used_bytes() <= limit:
                return
            self._empty(generation)
        for generation in list(self._generations):
            if self.used_bytes() <= limit:
                return
            ids = [i for i, free in self._ids(generation) if free]
            self._everything = self._everything or bool(ids)
            for first in range(0, len(ids), 64):
                self._db.executemany(
                    f"DELETE FROM seg{generation.slot} WHERE id = ?",
                    [(i,) for i in ids[first : first + 64]],
                )
                if self.used_bytes() <= limit:
                    return
        if samples:
            self._give_up_samples(limit)

    def _give_up_samples(self, limit: int) -> None:
        """Unacked samples, oldest first: missing from now on, cause journal-full."""
        for generation in [g for g in self._generations if g.class_ == SAMPLES]:
            for segment, _ in self._ids(generation):
                if self.used_bytes() <= limit:
                    return
                body, _ = find_segment(self._db, self._generations, segment)
                if body is None:
                    continue
                blocks, _ = codec.decode(body, self._names.device_of, self._names.layout_of)
                for block in blocks:
                    device = self._names.device(self._db, block.meter, block.device)
                    key = (device, block.layout.profile)
                    self._book.stage(self._db, key, block.kind).forget(block, "journal-full")
                    self._book.at_once(key)
                self._db.execute(f"DELETE FROM seg{generation.slot} WHERE id = ?", (segment,))
                self._everything = True
                self._mark([segment])

    def _ids(self, generation: Generation) -> list[tuple[int, bool]]:
        """(segment, is it released) of a table."""
        rows = self._db.execute(f"SELECT id FROM seg{generation.slot} ORDER BY id").fetchall()
        with self._lock:
            return [(segment, segment in self._released) for (segment,) in rows]

    def _empty(self, generation: Generation) -> None:
        """Empty a table; the ledger must not depend on its segments any more."""
        self._generations.empty(self._db, generation)
        self._everything = True

    def _retire(self) -> None:
        """Once an hour: what was kept long enough."""
        now = int(self._clock.now())
        self._retired_at = now
        self._complete_ledger()
        passed = min(self.holds.copy().values(), default=None)
        for generation in self._generations.expired(now):
            if (
                passed is not None
                and generation.last > passed
                and generation.until is not None
                and now - generation.until < HOLD_S
            ):
                continue  # a reader has not been there
            waiting = [i for i, free in self._ids(generation) if not free]
            if len(waiting) > 32 and len(waiting) * 20 > generation.last - generation.first:
                continue  # most of it still waits: later
            if waiting:
                slot = self._generations.slot_for(self._db, generation.class_, self._next, now)
                self._generations.rescue(self._db, generation, waiting, slot)
            self._empty(generation)
        self._db.execute(
            "DELETE FROM alarm WHERE body IS NULL AND at < ?", (now - KEEP_ALARM_IDS_S,)
        )

    def _count(self, table: str, what: str = "count(*)", where: str = "") -> int:
        return int(self._db.execute(f"SELECT {what} FROM {table} {where}").fetchone()[0] or 0)

    def checkpoint(self) -> None:
        """Move the WAL into the file; the next commit may start the WAL afresh."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:
            log.exception("checkpoint failed")
        self.wal_pages = 0


def _known(entry: Entry) -> tuple[int, int, int]:
    """How much an entry knows: of two for one profile of one device, the later one has more rows."""
    return entry.captured, entry.newest, entry.watermark or 0


def _reserved(item: Item[Any]) -> bool:
    """May an append use the reserve?"""
    return class_of(item.args[0]) == LONG


def alarm_key(alarm_id: str) -> int:
    """The 64 bits under which an alarm is kept."""
    try:
        octets = bytes.fromhex(alarm_id)
    except ValueError:
        octets = b""
    if len(octets) != 8:
        octets = hashlib.sha256(alarm_id.encode()).digest()[:8]
    return int.from_bytes(octets, "big", signed=True)


def find_segment(
    connection: sqlite3.Connection, generations: Iterable[Generation], segment: int
) -> tuple[bytes | None, bytes | None]:
    """Body of a segment, wherever it is, and the releases that came with it; (None, None) when it was freed."""
    for generation in generations:
        if generation.first <= segment <= generation.last:
            query = f"SELECT body, acks FROM seg{generation.slot} WHERE id = ?"
            row = connection.execute(query, (segment,)).fetchone()
            if row is not None:
                return row[0], row[1]
    row = connection.execute(
        "SELECT body FROM aside WHERE what = 'segment' AND id = ?", (str(segment),)
    ).fetchone()
    return (row[0], None) if row is not None else (None, None)
