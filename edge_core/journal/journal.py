"""The journal: what was acquired is durable here before anyone acts on it; alarms are told at once and made durable beside.

One file, one writer thread with natural group commit (writer.py), one transaction per group (transaction.py). The unit on
disk is the segment (codec.py); which rows are new is decided by the ledger (ledger.py, book.py) in the transaction that
appends them; room comes back by emptying whole generations (retention.py).

Invariants: an answered future means that SQLite has synced; an unanswered one means nothing. A segment id, a note id and an
alarm id are never used for anything else within an epoch. Kill-safe at any point: after a kill the file holds exactly some
prefix of the group commits. An opened journal serves segments, ledger and watermarks and takes alarms at once; the ledger
is complete in memory some milliseconds later (replay.py; appends wait for it).

Limits: `max_bytes` for the file, the WAL beside it adds about 4 MiB. MAX_UNWRITTEN readings wait in memory for a slow disk,
then appends are refused. Between a commit and its snapshot of the ledger (book.py) lie at most 128 segments, which are
read again after a kill.
"""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import contextlib
import logging
import sqlite3
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.errors import DiskFull, JournalError
from edge_core.journal import codec, opening, store
from edge_core.journal.reading import Reading, one
from edge_core.journal.records import JournalStatus, LedgerEntry
from edge_core.journal.replay import Replay
from edge_core.journal.retention import LONG, PROFILE, SAMPLES, unpack_ids
from edge_core.journal.transaction import Transaction, alarm_key
from edge_core.journal.writer import LAZY_S, SOON_S, GroupCommit, Item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_core.clock import Clock
    from edge_core.domain import Alarm, Block, Obis
    from edge_core.journal.ledger import Entry
    from edge_core.journal.records import Appended, Durable, Lane

MIB = 1 << 20
MAX_UNWRITTEN = 500_000
RELEASES_AT_ONCE = 4
"""So many acked segments are worth a commit of their own: a fifth more commits at most, in a drain; a kill repeats less."""
RELEASE_SOON_S = 1.0
_WITHIN_S = {"lazy": LAZY_S, "soon": SOON_S, "now": 0.0}
_REMEMBERED_ALARMS = 8192
_WITHOUT_LEDGER = {"alarm", "note", "release", "aside", "epoch", "mark"}
_CHECKPOINT_PAGES = 700  # a WAL that keeps growing costs twice as much
_CHECKPOINT_PAGES_LATEST = 4000  # even if somebody waits
_json = msgspec.json.Encoder()

log = logging.getLogger(__name__)


class Journal(Reading):
    """One journal file. All methods may be called from any thread; none of them waits for the disk, except reads.

    Attributes:
        epoch: rises whenever the file is created, set aside, restored, or finds itself on another machine.
        was_damaged: why the former file was set aside at this start, and what was taken over; None = it was sound.
        was_created: there was no file at this start.
        was_copied: why the epoch is new though the file is sound: it is a copy, or comes from another machine; else None.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        lock: store.FileLock,
        connection: sqlite3.Connection,
        *,
        max_bytes: int,
        alarm_reserve_bytes: int,
        keep_s: dict[int, float],
    ) -> None:
        super().__init__(keep_s, max_bytes)
        self.path, self._file_lock = path, lock
        self.epoch = 0
        self.was_damaged: str | None = None
        self.was_copied: str | None = None
        self.was_created = False
        self._clock, self._db = clock, connection
        self._max_bytes, self._reserve_bytes = max_bytes, alarm_reserve_bytes
        self._names.load(connection)
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        self._released.load(connection, int(meta.get("low", 0)))
        head = max(self._generations.load(connection), int(meta.get("head", 0)))
        upto = int(meta.get("upto", 0))
        self._replay = Replay(
            connection, self._names, self._book, self._generations, self._damaged_meanwhile
        )
        self._replay.begin(upto, head)
        self._writing = Transaction(
            connection,
            path,
            clock,
            names=self._names,
            book=self._book,
            generations=self._generations,
            released=self._released,
            lock=self._lock,
            head=head,
            max_bytes=max_bytes,
            reserve_bytes=alarm_reserve_bytes,
            complete_ledger=self._replay.finish,
        )
        self._take_riding_releases(upto, head)
        self._seen: dict[str, None] = {}  # alarm ids, oldest first
        self._alarm_callbacks: list[Callable[[Alarm], None]] = []
        self._commit_callbacks: list[Callable[[], None]] = []
        self._opened_at = clock.now()
        self._group = GroupCommit(f"journal {path.name}", clock, self._commit, self._replay.step)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        max_bytes: int = 512 * MIB,
        alarm_reserve_bytes: int = 16 * MIB,
        keep_acked_s: float = 60 * 86_400,
        keep_long_s: float = 400 * 86_400,
        machine_id: Path = Path("/etc/machine-id"),
    ) -> Journal:
        """Open or create. A damaged file is set aside into `damaged/` beside it, and what can be read of it is taken over.

        Args:
            keep_acked_s: how long released segments stay for re-reads while room lasts (civil seconds).
            keep_long_s: the same for midnights and billing.
            machine_id: a file that tells this machine from the one a copied journal comes from.

        Raises:
            DataDirectoryBusy: another process (or another Journal) holds the file.
            DiskFull: there is no room for a fresh file.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = store.FileLock(path)
        try:
            told, fresh = lock.read(), not path.exists()
            now, schemas, takeover = int(clock.now()), opening.schemas(), opening.take_over
            connection, why = opening.open_file(
                path, suspect=bool(told.get("suspect")), schemas=schemas, now=now, takeover=takeover
            )
            keep = {PROFILE: keep_acked_s, LONG: keep_long_s, SAMPLES: keep_acked_s}
            limits = {"max_bytes": max_bytes, "alarm_reserve_bytes": alarm_reserve_bytes}
            try:
                journal = cls(path, clock, lock, connection, keep_s=keep, **limits)
            except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError, TypeError) as error:
                # SQLite finds it sound, we do not
                connection.close()
                connection, why = opening.replace_file(
                    path, repr(error), schemas=schemas, now=now, takeover=takeover
                )
                journal = cls(path, clock, lock, connection, keep_s=keep, **limits)
            journal.was_damaged, journal.was_created = why, fresh
            machine = machine_id.read_text().strip() if machine_id.exists() else ""
            try:
                journal.settle_epoch(int(told.get("epoch", 0)), machine)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            lock.close()
            raise store.translate(error, path) from error
        except BaseException:
            lock.close()
            raise
        journal._group.start()
        return journal

    # ---- writing -------------------------------------------------------------------------------

    def append(
        self,
        block: Block,
        *,
        durable: Durable = "lazy",
        lane: Lane = "live",
        watermark: int | None = None,
    ) -> Future[Appended]:
        """Keep the rows that the ledger lacks.

        Args:
            durable: lazy = committed at 1,000 readings, after 60 s or by `flush`; soon = within 200 ms; now = at once.
            watermark: where the next read of this profile starts; never moves back; None = the newest row of the block.

        Returns:
            Answered when the rows are durable; DiskFull when there is no room (nothing of the block is kept then).

        Raises:
            ValueError, TypeError: the block contradicts itself.
        """
        codec.check(block)
        future: Future[Appended]
        if self._group.waiting() > MAX_UNWRITTEN:
            future = Future()
            future.set_exception(DiskFull(f"{self.path}: the disk does not keep up"))
            return future
        return self._submit(
            "append",
            block,
            lane,
            watermark,
            within_s=_WITHIN_S[durable],
            weight=max(1, block.readings),
        )

    def alarm(self, alarm: Alarm) -> Future[bool]:
        """Tell the subscribers now, in this thread, and make the alarm durable beside.

        Returns:
            True when it was new, False when its id was known (then nobody is told).
        """
        if self._first_time(alarm.id):
            for callback in self._alarm_callbacks:
                try:
                    callback(alarm)
                except Exception:
                    log.exception("a subscriber of alarms failed")
        future: Future[bool] = self._submit("alarm", alarm.id, _json.encode(alarm))
        future.add_done_callback(lambda done: self._forget_failed(alarm.id, done))
        return future

    def note(self, kind: str, sub: str, body: dict[str, Any]) -> Future[int]:
        """Journal a message that is no block; answered with its id, within 200 ms."""
        return self._submit("note", kind, sub, _json.encode(body), within_s=SOON_S)

    def note_gap(
        self,
        meter: str,
        device: str,
        profile: Obis,
        first: int,
        last: int,
        cause: str,
        *,
        over: str | None = None,
    ) -> Future[None]:
        """Name the cause of rows that are missing from first to last (UTC seconds, both included).

        Args:
            over: only where this cause was named before, "" = only where none was; None = whatever was said.
        """
        if first > last:
            raise ValueError(f"a gap from {first} to {last}")
        # names of a configuration are no plain text, and the book holds nothing else
        return self._submit(
            "gap", meter, device, str(profile), first, last, cause, over, within_s=LAZY_S
        )

    def release(
        self,
        *,
        segments: Iterable[int] = (),
        alarms: Iterable[str] = (),
        notes: Iterable[int] = (),
    ) -> Future[None]:
        """Acked by the cloud: served no more from now on, durable with the next group commit.

        That is 60 s at most, and a second once RELEASES_AT_ONCE segments wait for it. What is unknown or released already
        is ignored. A kill before that commit means a resend.
        """
        some, alarm_ids, note_ids = list(segments), list(alarms), list(notes)
        with self._lock:
            self._released.add(some, self._writing.head)
            many = self._released.waiting() >= RELEASES_AT_ONCE
        within_s = RELEASE_SOON_S if many else LAZY_S
        return self._hiding(
            [], alarm_ids, note_ids, "release", some, alarm_ids, note_ids, within_s=within_s
        )

    def set_aside(
        self,
        cause: str,
        why: str = "",
        *,
        segments: Iterable[int] = (),
        alarms: Iterable[str] = (),
        notes: Iterable[int] = (),
    ) -> Future[None]:
        """Refused for good: served no more, kept with the cause (of DESIGN section 7) until a later release."""
        some, alarm_ids, note_ids = list(segments), list(alarms), list(notes)
        return self._hiding(
            some, alarm_ids, note_ids, "aside", cause, why, some, alarm_ids, note_ids
        )

    def mark(self, key: str, value: str) -> Future[None]:
        """Keep a word beside the segments; durable with a later group commit, never before what was said before it."""
        return self._submit("mark", key, value, within_s=LAZY_S)

    def marks(self) -> dict[str, str]:
        """What was marked and is durable, by key."""
        rows = self._connection().execute("SELECT key, value FROM meta")
        return {key: value for key, value in rows if isinstance(value, str)}

    def take_entries(self, entries: list[tuple[str, str, str, Entry]]) -> Future[int]:
        """Take over ledger entries (meter, device, profile) of another journal that know more than ours; how many did."""
        return self._submit("entries", entries)

    def hold(self, name: str, cursor: int) -> None:
        """A reader has all segments up to `cursor`: later ones are not freed for it when their time is over.

        For 48 hours after they were filled at most, and never when room is needed. Not durable: a reader tells its
        cursor again after a start. `segments(cursor, everything=True)` is how it goes on.
        """
        self._writing.holds[name] = cursor

    def flush(self) -> Future[None]:
        """Answered when everything handed over before is durable (or refused)."""
        return self._group.flush()

    def renew_epoch(self) -> int:
        """Begin a new epoch, because this journal turned out to be a restored copy. Waits for the disk."""
        epoch = max(int(self._clock.now()), self.epoch + 1)
        self._submit("epoch", epoch).result()
        self._remember_epoch(epoch)
        return epoch

    def close(self, timeout_s: float = 4.0) -> None:
        """Commit what is queued and close. After the timeout the rest is left to the next start, as after a kill."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):
            self._group.submit("snapshot")
        done = self._group.close(timeout_s)
        with self._lock:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        if done:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._file_lock.close()
        else:
            log.error("%s did not come to rest within %g s", self.path, timeout_s)

    # ---- hearing of it -------------------------------------------------------------------------

    def on_alarm(self, callback: Callable[[Alarm], None]) -> None:
        """Call back with every new alarm, in the thread of who raises it, before it is durable."""
        self._alarm_callbacks.append(callback)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back after every group commit, in the writer thread; must return at once."""
        self._commit_callbacks.append(callback)

    # ---- reading -------------------------------------------------------------------------------

    def watermark(self, meter: str, device: str, profile: Obis) -> int | None:
        """UTC second from which the next read starts; None = nothing is known of this device yet."""
        number = self._names.known(meter, device)
        if number is None:
            return None
        entry = self._replay.entry(self._connection(), meter, (number, profile))
        return entry.watermark if entry else None

    def ledger(self, meter: str) -> list[LedgerEntry]:
        """What is known of each profile of each device of a meter; oldest device first."""
        return [
            entry.view(meter, self._names.device_of(device)[1], profile)
            for device, profile, entry in self._replay.entries(self._connection(), meter)
        ]

    def status(self) -> JournalStatus:
        """Figures of now."""
        db, writing = self._connection(), self._writing
        used = writing.used_bytes(db)
        with self._lock:
            waiting = writing.head + 1 - self._released.count()
        kept = sum(g.bytes for g in self._generations.committed())
        mean = self._mean_bytes(db)
        bytes_waiting = min(int(waiting * mean), used)
        elapsed_h = (self._clock.now() - self._opened_at) / 3600
        rate = writing.bytes / elapsed_h if elapsed_h >= 0.1 else 0.0
        room = self._max_bytes - self._reserve_bytes - used + max(0, kept - bytes_waiting)
        alarms, notes = self.count_waiting()
        return JournalStatus(
            path=self.path,
            epoch=self.epoch,
            head=writing.head,
            segments_waiting=waiting,
            bytes_waiting=bytes_waiting,
            alarms_waiting=alarms,
            notes_waiting=notes,
            aside=one(db, "SELECT count(*) FROM aside"),
            used_bytes=used,
            max_bytes=self._max_bytes,
            reserve_bytes=self._reserve_bytes,
            hours_left=max(0.0, room / rate) if rate else None,
            full=writing.full,
            refused=writing.refused,
            commits=writing.commits,
            readings=writing.readings,
            conflicts=writing.conflicts,
            unreadable=len(self._unreadable),
            damaged=writing.damaged or self.was_damaged,
            merged=writing.merged,
        )

    def is_used(self) -> bool:
        """Does it hold, or did it hold, something that may have been sent?"""
        status = self.status()
        waiting = status.alarms_waiting or status.notes_waiting or status.aside
        return bool(status.head or waiting)

    def names(self) -> dict[int, str]:
        """File names by base."""
        return {0: self.path.name}

    def epochs(self) -> dict[int, int]:
        """Epochs by base."""
        return {0: self.epoch}

    def register(self, register: object) -> None:
        """One journal has no files of others to number (`Journals` has)."""

    # ---- inside --------------------------------------------------------------------------------

    def settle_epoch(self, told: int, machine: str) -> None:
        """Keep the epoch of the file, or begin one: the file is new, a copy, or was made on another machine.

        A copy is known by its inode number. One on a file system whose numbers change with every mount begins more epochs than
        it needs, which costs a few resends; one of a whole disk has them all right, and is found out by the acks' `high`.

        Args:
            told: the last epoch that the lock file knows of; 0 = none.
        """
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        epoch = int(meta.get("epoch", 0))
        inode = self.path.stat().st_ino & (1 << 63) - 1  # what SQLite holds
        if epoch and not self.was_damaged:
            if meta.get("machine", machine) != machine:
                self.was_copied = "the journal comes from another machine"
            elif meta.get("inode", inode) != inode:
                self.was_copied = "the journal is a copy of the file that was written here"
        if not epoch or self.was_damaged or self.was_copied:
            epoch = max(int(self._clock.now()), epoch + 1, told + 1)
        self._db.execute("BEGIN IMMEDIATE")
        for key, value in (("epoch", epoch), ("machine", machine), ("inode", inode)):
            if meta.get(key) != value:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        self._db.execute("COMMIT")
        self._remember_epoch(epoch)

    def _remember_epoch(self, epoch: int) -> None:
        if self._file_lock.read() != {"epoch": epoch}:
            self._file_lock.write({"epoch": epoch})
        self.epoch = epoch

    def _take_riding_releases(self, after: int, head: int) -> None:
        """Releases that stand in segments younger than the last snapshot."""
        for generation in self._generations.committed():
            query = f"SELECT acks FROM seg{generation.slot} WHERE id > ? AND acks IS NOT NULL"
            for (acks,) in self._db.execute(query, (after,)):
                self._released.add(unpack_ids(acks), head)
        self._released.saved(len(self._released.fresh()))

    def _damaged_meanwhile(self, error: sqlite3.DatabaseError) -> None:
        self._writing.damaged = str(self._damage(error))

    def _commit(self, batch: list[Item[Any]]) -> None:
        """One group commit, in the writer thread."""
        was_damaged = self._writing.damaged
        if not self._book.complete:
            rest = [item for item in batch if item.what not in _WITHOUT_LEDGER]
            if any(item.what != "flush" for item in rest):
                self._writing.run([item for item in batch if item.what in _WITHOUT_LEDGER])
                batch = rest  # a flush among them is answered after them
                self._replay.finish()
        self._writing.run(batch)
        if self._writing.damaged and not was_damaged:
            self._suspect()
        for callback in self._commit_callbacks:
            try:
                callback()
            except Exception:
                log.exception("a subscriber of commits failed")
        pages = self._writing.wal_pages
        if pages >= _CHECKPOINT_PAGES_LATEST or (
            pages >= _CHECKPOINT_PAGES and not self._group.urgent()
        ):
            self._writing.checkpoint()

    def _submit(self, what: str, *args: Any, within_s: float = 0.0, weight: int = 0) -> Future[Any]:
        try:
            return self._group.submit(what, *args, within_s=within_s, weight=weight).future
        except RuntimeError as error:
            raise JournalError(f"{self.path} is closed") from error

    def _hiding(
        self,
        segments: list[int],
        alarms: list[str],
        notes: list[int],
        what: str,
        *args: Any,
        within_s: float = LAZY_S,
    ) -> Future[None]:
        """Submit, and serve these no more from now on."""
        keys = {("segment", str(s)) for s in segments} | {("alarm", a) for a in alarms}
        keys |= {("note", str(n)) for n in notes}
        with self._lock:
            self._hidden |= keys
        future: Future[None] = self._submit(what, *args, within_s=within_s)

        def shown_or_gone(_: Future[None]) -> None:
            with self._lock:
                self._hidden -= keys

        future.add_done_callback(shown_or_gone)
        return future

    def _first_time(self, alarm_id: str) -> bool:
        """Was this id never heard? Remembers it."""
        with self._lock:
            if alarm_id in self._seen:
                return False
            self._seen[alarm_id] = None
            if len(self._seen) > _REMEMBERED_ALARMS:
                del self._seen[next(iter(self._seen))]
        try:
            query = "SELECT 1 FROM alarm WHERE id = ?"
            return self._connection().execute(query, (alarm_key(alarm_id),)).fetchone() is None
        except sqlite3.Error:
            return True  # better told twice than not at all

    def _forget_failed(self, alarm_id: str, done: Future[bool]) -> None:
        if done.exception() is not None:
            with self._lock:
                self._seen.pop(alarm_id, None)
