"""What may go: released segments by generation, oldest first.

A *class* of segments (profile rows, midnights and billing, samples) has a ring of tables; one of them is filled, the others
hold older generations. A generation is emptied whole once all of it is released and its keeping time is over, or room is
needed: emptying a table writes 0.1 byte per reading, deleting rows 13 (prototypes, section 1.3). All of this happens inside
the transaction of the caller; the state here follows only when it was committed (`commit`, `rollback`).
"""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edge_core.domain import Flag

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Iterator

    from edge_core.domain import Block

PROFILE, LONG, SAMPLES = 0, 1, 2
SLOTS = {PROFILE: range(10), LONG: range(10, 16), SAMPLES: range(16, 26)}
ALL_SLOTS = range(26)
CHUNK = 4096
MAX_RUN = 1 << 20  # of released ids in one commit
_LONG_KINDS = ("midnight", "billing")
_FULL = bytearray(b"\xff" * (CHUNK // 8))


class Released:
    """Which segment ids are released (acked or set aside): a bit each, in chunks.

    Chunks below `low` are all released and stand nowhere. Ids start at 1.
    """

    def __init__(self) -> None:
        self.low = 0
        self._bits: dict[int, bytearray] = {}
        self._dirty: set[int] = set()
        self._saving: set[int] = set()
        self._fresh: list[int] = []
        self._saving_fresh = 0
        self._next_low = 0
        self._count = 1  # id 0 does not exist

    def load(self, connection: sqlite3.Connection, low: int) -> None:
        """Read what a journal file says."""
        self.low = self._next_low = low
        rows = connection.execute("SELECT chunk, bits FROM released WHERE chunk >= ?", (low,))
        self._bits = {chunk: bytearray(bits) for chunk, bits in rows}
        if not low and 0 not in self._bits:
            self._bits[0] = bytearray((1, *bytes(CHUNK // 8 - 1)))
        ones = sum(int.from_bytes(bits, "big").bit_count() for bits in self._bits.values())
        self._count = low * CHUNK + ones

    def __contains__(self, segment: int) -> bool:
        chunk, bit = divmod(segment, CHUNK)
        if chunk < self.low:
            return True
        bits = self._bits.get(chunk)
        return bits is not None and bool(bits[bit >> 3] >> (bit & 7) & 1)

    def count(self) -> int:
        """Released ids, the id 0 among them."""
        return self._count

    def add(self, segments: Iterable[int], head: int) -> list[int]:
        """Mark ids up to `head`; returns those that were not marked before."""
        fresh = []
        for segment in segments:
            if not 0 < segment <= head or segment in self:
                continue
            chunk, bit = divmod(segment, CHUNK)
            bits = self._bits.setdefault(chunk, bytearray(CHUNK // 8))
            bits[bit >> 3] |= 1 << (bit & 7)
            self._dirty.add(chunk)
            self._count += 1
            fresh.append(segment)
        self._fresh += fresh
        return fresh

    def fresh(self) -> list[int]:
        """Marked ids that stand nowhere on disk yet."""
        return list(self._fresh)

    def waiting(self) -> int:
        """How many of them."""
        return len(self._fresh)

    def discard(self, segments: Collection[int]) -> None:
        """Take back marks that were not saved."""
        for segment in segments:
            chunk, bit = divmod(segment, CHUNK)
            self._bits[chunk][bit >> 3] &= ~(1 << (bit & 7))
            self._count -= 1
        if segments:
            self._fresh = [i for i in self._fresh if i not in segments]

    def all_of(self, first: int, last: int) -> bool:
        """Is every id from first to last released?"""
        return self.next_waiting(first, last) is None

    def next_waiting(self, first: int, last: int) -> int | None:
        """The lowest unreleased id from first to last."""
        segment = max(first, self.low * CHUNK)
        while segment <= last:
            chunk, bit = divmod(segment, CHUNK)
            bits = self._bits.get(chunk)
            if bits is None:
                return segment
            octet = bits[bit >> 3]
            if not bit & 7 and octet == 0xFF:
                segment += 8
            elif octet >> (bit & 7) & 1:
                segment += 1
            else:
                return segment
        return None

    def save(self, connection: sqlite3.Connection) -> None:
        """Write the changed chunks in the caller's transaction; then `saved` or `unsaved`."""
        self._saving, self._dirty = self._dirty, set()
        self._saving_fresh = len(self._fresh)
        low = self.low
        while self._bits.get(low) == _FULL:
            low += 1
        if low > self.low:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('low', ?)", (low,))
            connection.execute("DELETE FROM released WHERE chunk < ?", (low,))
        connection.executemany(
            "INSERT OR REPLACE INTO released VALUES (?, ?)",
            [(c, bytes(self._bits[c])) for c in sorted(self._saving) if c >= low],
        )
        self._next_low = low

    def saved(self, fresh: int) -> None:
        """A transaction is durable that saved the chunks or took along the first `fresh` ids of `fresh()`."""
        if self._saving:
            fresh = self._saving_fresh
        del self._fresh[:fresh]
        self._saving = set()
        for chunk in range(self.low, self._next_low):
            del self._bits[chunk]
        self.low = self._next_low

    def unsaved(self) -> None:
        """The transaction of `save` did not happen."""
        self._dirty |= self._saving
        self._saving = set()
        self._next_low = self.low


def pack_ids(segments: Iterable[int]) -> bytes:
    """Ids as runs."""
    runs: list[list[int]] = []
    for segment in sorted(segments):
        if runs and sum(runs[-1]) == segment:
            runs[-1][1] += 1
        else:
            runs.append([segment, 1])
    return msgspec.msgpack.encode(runs)


def unpack_ids(octets: object) -> list[int]:
    """The ids of `pack_ids`; none of anything else."""
    if not isinstance(octets, bytes):
        return []
    try:
        runs = msgspec.msgpack.decode(octets, type=list[tuple[int, int]])
    except msgspec.MsgspecError:
        return []
    return [i for first, count in runs if count <= MAX_RUN for i in range(first, first + count)]


@dataclass(frozen=True, slots=True)
class Generation:
    """A segment table in use: ids first to last, filled from `since` until `until` (None = still being filled)."""

    slot: int
    class_: int
    first: int
    last: int
    since: int
    until: int | None
    bytes: int


class Generations:
    """The segment tables in use. Changes are staged until `commit`."""

    def __init__(self, keep_s: dict[int, float], max_bytes: int) -> None:
        self._keep_s = keep_s
        self._share = max(max_bytes // 16, 64 << 10)
        self._staged: dict[int, Generation | None] = {}
        self._all: dict[int, Generation] = {}

    def load(self, connection: sqlite3.Connection) -> int:
        """Read what a journal file says; returns the highest segment id there is."""
        rows = connection.execute(
            "SELECT slot, class, first, last, since, until, bytes FROM generation"
        ).fetchall()
        head = 0
        for row in rows:
            generation = Generation(*row)
            # the row of a generation that is being filled is written when it begins and when it ends, not per commit
            last = connection.execute(f"SELECT max(id) FROM seg{generation.slot}").fetchone()[0]
            last = max(generation.last, last or 0)
            self._all[generation.slot] = replace(generation, last=last)
            head = max(head, last)
        return head

    def commit(self) -> None:
        """What was staged is durable."""
        everything = dict(self._all)
        for slot, generation in self._staged.items():
            if generation is None:
                everything.pop(slot, None)
            else:
                everything[slot] = generation
        self._all = everything  # swapped, for readers in other threads
        self._staged = {}

    def rollback(self) -> None:
        """What was staged did not happen."""
        self._staged = {}

    def committed(self) -> list[Generation]:
        """Generations as readers may see them, by slot."""
        return list(self._all.values())

    def __iter__(self) -> Iterator[Generation]:
        """Generations with what is staged, oldest first."""
        everything = {**self._all, **self._staged}
        return iter(sorted((g for g in everything.values() if g), key=lambda g: g.first))

    def slot_for(self, connection: sqlite3.Connection, class_: int, segment: int, now: int) -> int:
        """The table that takes the next segment of a class; begins a generation when it is time to."""
        mine = [g for g in self if g.class_ == class_]
        current = next((g for g in mine if g.until is None), None)
        slots = SLOTS[class_]
        if current is not None:
            age = now - current.since
            full = age >= self._keep_s[class_] / (len(slots) - 2) or current.bytes >= self._share
            if not full or len(mine) == len(slots):
                return current.slot
            self._put(connection, replace(current, until=now))
        used = {g.slot for g in mine}
        slot = next(s for s in slots if s not in used)
        self._put(connection, Generation(slot, class_, segment, segment, now, None, 0))
        return slot

    def filled(self, slot: int, segment: int, size: int) -> None:
        """A segment went into a table."""
        generation = self._staged.get(slot) or self._all[slot]
        self._staged[slot] = replace(
            generation,
            first=min(generation.first, segment),
            last=max(generation.last, segment),
            bytes=generation.bytes + size,
        )

    def expired(self, now: int) -> list[Generation]:
        """Generations whose keeping time is over, oldest first."""
        return [g for g in self if g.until is not None and g.until + self._keep_s[g.class_] < now]

    def releasable(self, released: Released) -> list[Generation]:
        """Generations that may go when room is needed, oldest first: all of it is released."""
        return [g for g in self if released.all_of(g.first, g.last)]

    def empty(self, connection: sqlite3.Connection, generation: Generation) -> None:
        """Empty the table of a generation in the caller's transaction."""
        connection.execute(f"DELETE FROM seg{generation.slot}")
        connection.execute("DELETE FROM generation WHERE slot = ?", (generation.slot,))
        self._staged[generation.slot] = None

    def save(self, connection: sqlite3.Connection) -> None:
        """Write how far the generations are filled; else only their beginnings and ends are on disk."""
        for generation in self:
            if generation.until is None:
                self._put(connection, generation)

    def rescue(
        self, connection: sqlite3.Connection, old: Generation, segments: list[int], slot: int
    ) -> None:
        """Copy what is not yet released out of a generation that is to be emptied."""
        for segment in segments:
            connection.execute(
                f"INSERT INTO seg{slot} SELECT * FROM seg{old.slot} WHERE id = ?", (segment,)
            )
            self.filled(slot, segment, 0)
        self._put(connection, self._staged[slot] or old)

    def _put(self, connection: sqlite3.Connection, generation: Generation) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO generation VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                generation.slot,
                generation.class_,
                generation.first,
                generation.last,
                generation.since,
                generation.until,
                generation.bytes,
            ),
        )
        self._staged[generation.slot] = generation


def class_of(block: Block) -> int:
    """Class of retention of a block."""
    if block.kind in _LONG_KINDS:
        return LONG
    if block.flags and any(bits & Flag.SAMPLED for _, _, bits in block.flags):
        return SAMPLES
    return PROFILE
