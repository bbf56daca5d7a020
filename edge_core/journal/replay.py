"""The ledger after a kill: segments younger than its last snapshot are absorbed again, in the background and on demand.

The writer thread absorbs one segment after the other while nothing else is due (`step`), or all that are left before it
appends anything (`finish`). Whoever asks for a meter meanwhile does not wait for the others: `entries` lays what the
segments hold of this meter onto the entries as far as they have come, in copies of its own. A list of which segments hold
which devices, made at the first question, says where to look.

Invariants: an answer counts every row that was durable when the journal was opened. Nothing here writes to the file.
"""

# ruff: noqa: S608  table names cannot be parameters; ours are slot numbers
from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

from edge_core.errors import JournalError
from edge_core.journal import codec
from edge_core.journal.ledger import Entry
from edge_core.journal.transaction import find_segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.domain import Obis
    from edge_core.journal.book import Book, Key, Names
    from edge_core.journal.retention import Generations

log = logging.getLogger(__name__)


class Replay:
    """Segments above `after`, up to `upto`, on their way into the book.

    Args:
        connection: the writer's.
        damaged: told what the file says when it cannot be read.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        names: Names,
        book: Book,
        generations: Generations,
        damaged: Callable[[sqlite3.DatabaseError], None],
    ) -> None:
        self._db, self._names, self._book, self._generations = connection, names, book, generations
        self._damaged = damaged
        self._lock = threading.Lock()  # book and `_after` move together
        self._listing = threading.Lock()
        self._holding: dict[int, list[int]] | None = None  # device: segments
        self._first = self._after = self._upto = 0
        self.done = threading.Event()

    def begin(self, after: int, upto: int) -> None:
        """Absorb the segments above `after` up to `upto`."""
        self._first, self._after, self._upto = after, after, upto

    def step(self) -> bool:
        """Absorb the next segment; False when there is none. In the writer thread."""
        try:
            segment, readings, body = self._next()
        except sqlite3.DatabaseError as error:
            self._damaged(error)
            segment, readings, body = 0, 0, b""
        if not segment:
            with self._lock:
                self._book.complete = True
                self.done.set()
            self._holding = None
            return False
        try:
            blocks, caps = codec.decode(body, self._names.device_of, self._names.layout_of)
            with self._lock:
                self._book.replay(self._db, segment, blocks, dict(caps))
                self._after = segment
        except JournalError:
            # its rows are delivered again when they are read again
            log.exception("segment %d is not in the ledger", segment)
            self._after = segment
        self._book.grown(1, readings)
        return True

    def finish(self) -> None:
        """Absorb all that is left. In the writer thread."""
        while not self._book.complete:
            self.step()

    def entry(self, connection: sqlite3.Connection, meter: str, key: Key) -> Entry | None:
        """The entry of one profile of one device of a meter, complete; any thread, with a connection of its own."""
        if self.done.is_set():
            return self._book.entry(connection, key)
        found = (entry for *of, entry in self.entries(connection, meter) if tuple(of) == key)
        return next(found, None)

    def entries(self, connection: sqlite3.Connection, meter: str) -> list[tuple[int, Obis, Entry]]:
        """(device number, profile, entry) of a meter, complete; any thread, with a connection of its own."""
        devices = set(self._names.devices_of(meter))
        with self._lock:
            found = self._book.entries(connection, meter)
            if self.done.is_set() or not devices:
                return found
            after = self._after
        entries: dict[Key, Entry] = {(device, profile): entry for device, profile, entry in found}
        holding = self._listed(connection)
        for segment in sorted({s for d in devices for s in holding.get(d, ()) if s > after}):
            body, _ = find_segment(connection, self._generations.committed(), segment)
            try:
                blocks, caps = codec.decode(
                    body or b"", self._names.device_of, self._names.layout_of
                )
            except JournalError:
                continue  # as `step` does
            marks = dict(caps)
            for i, block in enumerate(blocks):
                device = self._names.known(block.meter, block.device)
                if device not in devices or device is None:
                    continue
                key = (device, block.layout.profile)
                if segment > self._book.counted(key, block.kind):
                    entry = entries.setdefault(key, Entry(kind=block.kind))
                    entry.absorb(block, marks.get(i))
        return [(*key, entry) for key, entry in sorted(entries.items(), key=lambda item: item[0])]

    def _next(self) -> tuple[int, int, bytes]:
        """Id, readings and body of the next segment; zeros when there is none."""
        best = (0, 0, b"")
        for generation in self._generations.committed():
            if generation.last <= self._after:
                continue
            query = f"SELECT id, readings, body FROM seg{generation.slot} WHERE id > ? AND id <= ? ORDER BY id LIMIT 1"
            row = self._db.execute(query, (self._after, self._upto)).fetchone()
            if row is not None and (not best[0] or row[0] < best[0]):
                best = row
        return best

    def _listed(self, connection: sqlite3.Connection) -> dict[int, list[int]]:
        """Which segments hold rows of which devices."""
        with self._listing:
            holding = self._holding
            if holding is None:
                holding = {}
                for generation in self._generations.committed():
                    query = f"SELECT id, body FROM seg{generation.slot} WHERE id > ? AND id <= ?"
                    # from the first on: whoever asked may have seen the book less far than it is now
                    for segment, body in connection.execute(query, (self._first, self._upto)):
                        for device in codec.devices(body):
                            holding.setdefault(device, []).append(segment)
                self._holding = holding
            return holding
