"""What the uplink keeps in uplink.db for the other processes: numbers of their journals, and what is acked of them.

A journal file is one source for as long as its epoch lasts: `number` gives it a number once and for ever, which is part of
every reference in the send records. What is acked (or set aside) of another's file is a row in `freed` with a rising
sequence number; its owner releases it and marks `<born>:<seq>` in its own journal, in or after the commit that made the
release durable; then the row goes. `born` tells this uplink.db from the one before: a mark of that one means nothing.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

import msgspec

from edge_core.journal.journal import RELEASES_AT_ONCE
from edge_core.journal.journals import Freed

if TYPE_CHECKING:
    from edge_core.uplink.outbox import Outbox, Row

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(Freed).decode
_encode = msgspec.msgpack.Encoder().encode


class Sources:
    """A `journals.Register` on an outbox. Any thread."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._pending: dict[tuple[int, str, str], list[Freed]] = {}
        self._segments = 0  # in them
        self._numbers: dict[tuple[str, int], int] = {}
        self._kept: dict[int, list[int]] = {}  # sequence numbers of rows, by source
        self._seq = 0
        db = outbox.reading()
        with contextlib.closing(db), contextlib.suppress(sqlite3.OperationalError):  # no tables yet
            for number, name, epoch in db.execute("SELECT id, name, epoch FROM source"):
                self._numbers[name, epoch] = number
            for seq, source in db.execute("SELECT seq, source FROM freed ORDER BY seq"):
                self._kept.setdefault(source, []).append(seq)
                self._seq = seq
            for (told,) in db.execute("SELECT value FROM meta WHERE key = 'freed'"):
                self._seq = max(self._seq, told)

    def number(self, name: str, epoch: int) -> int:
        """The number of a file in this epoch; a new one is written at once."""
        with self._lock:
            number = self._numbers.get((name, epoch))
            if number is not None:
                return number
            for (other, _), stale in list(self._numbers.items()):
                if other == name:  # that file is gone: nobody will ever take what was freed of it
                    self._outbox.write("DELETE FROM freed WHERE source = ?", stale)
                    self._kept.pop(stale, None)
            number = self._numbers[name, epoch] = max(self._numbers.values(), default=0) + 1
        self._outbox.write("INSERT INTO source VALUES (?, ?, ?)", number, name, epoch)
        return number

    def free(self, number: int, freed: Freed) -> None:
        """Keep this until the owner has taken it; written with the next group, or at once when it is much."""
        with self._lock:
            first, before = not self._pending, self._segments
            self._pending.setdefault((number, freed.cause, freed.why), []).append(freed)
            self._segments += len(freed.segments)
            much = before < RELEASES_AT_ONCE <= self._segments
        if first:
            self._outbox.write_later(self._rows)
        if much:  # a kill would have all of it sent once more
            self._outbox.sync()

    def freed(self, number: int) -> list[Freed]:
        """What is on disk for the owner of a file."""
        with contextlib.closing(self._outbox.reading()) as db:
            return [freed for _, freed in read_freed(db, number, 0)]

    def taken(self, number: int, mark: str) -> None:
        """Drop what the owner's mark names."""
        upto = sequence_of(mark, self._outbox.born)
        with self._lock:
            kept = self._kept.get(number, [])
            if not kept or kept[0] > upto:
                return
            self._kept[number] = [seq for seq in kept if seq > upto]
        self._outbox.write_later(
            lambda: [("DELETE FROM freed WHERE source = ? AND seq <= ?", (number, upto))]
        )

    def _rows(self) -> list[Row]:
        with self._lock:
            pending, self._pending, self._segments = self._pending, {}, 0
            rows: list[Row] = []
            for (number, cause, why), parts in pending.items():
                self._seq += 1
                self._kept.setdefault(number, []).append(self._seq)
                whole = Freed(
                    sorted({i for part in parts for i in part.segments}),
                    [i for part in parts for i in part.alarms],
                    [i for part in parts for i in part.notes],
                    cause,
                    why,
                )
                rows.append(
                    ("INSERT INTO freed VALUES (?, ?, ?)", (self._seq, number, _encode(whole)))
                )
            rows.append(("INSERT OR REPLACE INTO meta VALUES ('freed', ?)", (self._seq,)))
            return rows


def read_freed(db: sqlite3.Connection, number: int, after: int) -> list[tuple[int, Freed]]:
    """Rows for one source with a sequence number above `after`, in their order."""
    out = []
    query = "SELECT seq, body FROM freed WHERE source = ? AND seq > ? ORDER BY seq"
    try:
        rows = db.execute(query, (number, after)).fetchall()
    except sqlite3.OperationalError:  # of a release before, or locked: later
        return []
    for seq, body in rows:
        try:
            out.append((int(seq), _decode(body)))
        except msgspec.MsgspecError as error:  # its rows are sent again, and freed then
            log.warning("uplink.db: what was freed under %d does not decode: %s", seq, error)
    return out


def sequence_of(mark: str, born: int) -> int:
    """How far an owner has taken what an uplink.db freed that was born so; 0 of another one."""
    of, _, upto = mark.partition(":")
    return int(upto) if of == str(born) and upto.isdigit() else 0
