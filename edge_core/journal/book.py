"""Names and ledger of a journal file, in memory as small octet strings, on disk in blobs of 64 meters.

The ledger moves in the transaction that appends the rows, because the rows themselves say how it moves: a group's blob
carries the segment up to which it counts (`upto`), and what younger segments hold is absorbed again after the next start.
Writing all touched blobs only every SNAPSHOT_SEGMENTS segments costs 1 byte per reading whatever the order of the meters,
against 15 when each commit writes the blobs that it touches. What no segment tells (a noted gap, a watermark without rows,
rows given up) writes its blob at once.

Blobs are read when a meter of theirs is first asked for. Changes are staged and seen by others after `commit`.
"""

from __future__ import annotations

import logging
import threading
import zlib
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import msgspec

from edge_core.domain import Layout
from edge_core.errors import JournalDamaged
from edge_core.journal.ledger import Absorbed, Entry

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from edge_core.domain import Block, Obis

SNAPSHOT_SEGMENTS = 128
SNAPSHOT_READINGS = 128_000
METERS_PER_BLOB = 64
log = logging.getLogger(__name__)
_CLASSES = {"interval": 0, "midnight": 1, "billing": 2, "instantaneous": 3, "events": 4}

Key = tuple[int, str]  # device number, profile

Packed = tuple[
    bytes, bytes
]  # an entry without, and its tail hashes: what compresses and what does not
SQUEEZE_OCTETS = 512  # an entry with many gaps is kept compressed in memory

_entry = msgspec.msgpack.Decoder(Entry)
_group = msgspec.msgpack.Decoder(tuple[list[int], list[str], list[bytes], list[int], bytes])
decode_layout = msgspec.msgpack.Decoder(Layout).decode
_spare = msgspec.msgpack.Decoder(
    tuple[list[tuple[int, str]], list[tuple[int, int, str]], list[tuple[int, str, bytes]]]
)
_encode = msgspec.msgpack.Encoder().encode


class Names:
    """Numbers of meters, devices and layouts. New ones are taken back by `rollback`."""

    def __init__(self) -> None:
        self._meters: dict[str, int] = {}
        self._devices: dict[tuple[str, str], int] = {}
        self._by_meter: dict[str, list[int]] = {}
        self._device_of: dict[int, tuple[str, str]] = {}
        self._layouts: dict[str, int] = {}
        self._layout_of: dict[int, Layout] = {}
        self._fresh: list[Callable[[], object]] = []
        self._copied = self._copying = (0, 0)  # devices and layouts in the second copy

    def load(self, connection: sqlite3.Connection) -> None:
        """Read the tables of a journal file.

        Raises:
            msgspec.MsgspecError: a layout does not decode.
        """
        names = dict(connection.execute("SELECT id, name FROM meter"))
        self._meters = {name: number for number, name in names.items()}
        for number, meter, serial in connection.execute("SELECT id, meter, serial FROM device"):
            if meter in names:
                self._enter_device(number, names[meter], serial)
        for number, digest, body in connection.execute("SELECT id, digest, body FROM layout"):
            self._layouts[digest] = number
            self._layout_of[number] = decode_layout(body)
        if connection.execute("SELECT count(*) FROM spare").fetchone()[0]:
            self._copied = self._copying = (0, len(self._layouts))  # devices with the next blobs

    def device(self, connection: sqlite3.Connection, meter: str, serial: str) -> int:
        """The number of a device, given one if it has none."""
        number = self._devices.get((meter, serial))
        if number is not None:
            return number
        owner = self._meters.get(meter)
        if owner is None:
            owner = _inserted(connection.execute("INSERT INTO meter(name) VALUES (?)", (meter,)))
            self._meters[meter] = owner
            self._fresh.append(lambda: self._meters.pop(meter))
        number = _inserted(
            connection.execute("INSERT INTO device(meter, serial) VALUES (?, ?)", (owner, serial))
        )
        self._enter_device(number, meter, serial)
        self._fresh.append(lambda: self._drop_device(number))
        return number

    def layout(self, connection: sqlite3.Connection, layout: Layout) -> int:
        """The number of a layout, given one if it has none."""
        number = self._layouts.get(layout.digest)
        if number is None:
            digest = layout.digest
            number = _inserted(
                connection.execute(
                    "INSERT INTO layout(digest, body) VALUES (?, ?)", (digest, _encode(layout))
                )
            )
            self._layouts[digest] = number
            self._layout_of[number] = layout
            self._fresh.append(lambda: self._layouts.pop(digest))
        return number

    def device_of(self, number: int) -> tuple[str, str]:
        """(meter, device) of a number; KeyError when there is none."""
        return self._device_of[number]

    def layout_of(self, number: int) -> Layout:
        """The layout of a number; KeyError when there is none."""
        return self._layout_of[number]

    def known(self, meter: str, serial: str) -> int | None:
        """The number of a device, if it has one."""
        return self._devices.get((meter, serial))

    def devices_of(self, meter: str) -> list[int]:
        """Device numbers of a meter."""
        return list(self._by_meter.get(meter, ()))

    def group_of(self, number: int) -> int:
        """Which 64 meters a device belongs to."""
        return self._meters[self._device_of[number][0]] // METERS_PER_BLOB

    def spare_due(self, *, now: bool) -> bool:
        """Is a second copy wanted: at once for a new layout, else when blobs are written anyway (`now`)?"""
        devices, layouts = self._copied
        return layouts != len(self._layouts) or (now and devices != len(self._devices))

    def save_spare(self, connection: sqlite3.Connection, now: int) -> None:
        """Write the second copy in the caller's transaction."""
        everything = (
            [(number, name) for name, number in self._meters.items()],
            [(n, self._meters[m], serial) for (m, serial), n in self._devices.items()],
            [(n, digest, _encode(self._layout_of[n])) for digest, n in self._layouts.items()],
        )
        body = zlib.compress(_encode(everything))
        connection.execute("INSERT OR REPLACE INTO spare VALUES (1, 'names', ?, ?)", (now, body))
        self._copying = (len(self._devices), len(self._layouts))

    def commit(self) -> None:
        """New names are durable."""
        self._fresh.clear()
        self._copied = self._copying

    def rollback(self) -> None:
        """New names do not exist."""
        for undo in reversed(self._fresh):
            undo()
        self._fresh.clear()
        self._copying = self._copied

    def _enter_device(self, number: int, meter: str, serial: str) -> None:
        self._devices[meter, serial] = number
        self._device_of[number] = (meter, serial)
        self._by_meter.setdefault(meter, []).append(number)

    def _drop_device(self, number: int) -> None:
        meter, serial = self._device_of.pop(number)
        del self._devices[meter, serial]
        self._by_meter[meter].remove(number)


def take_spare(connection: sqlite3.Connection, body: bytes) -> None:
    """Enter what a second copy knows into the tables of a fresh file; what is there already stays.

    Raises:
        ValueError, zlib.error, msgspec.MsgspecError: the copy does not decode.
    """
    meters, devices, layouts = _spare.decode(zlib.decompress(body))
    connection.executemany("INSERT OR IGNORE INTO meter VALUES (?, ?)", meters)
    connection.executemany("INSERT OR IGNORE INTO device VALUES (?, ?, ?)", devices)
    connection.executemany("INSERT OR IGNORE INTO layout VALUES (?, ?, ?)", layouts)


def _inserted(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _pack(entry: Entry) -> Packed:
    hashes, entry.tail_hashes = entry.tail_hashes, b""
    runs = entry.runs
    entry.shorten()
    octets = _encode(entry)
    entry.tail_hashes, entry.runs, entry.spans = hashes, runs, b""
    return _squeeze(octets), hashes


def _squeeze(octets: bytes) -> bytes:
    return octets if len(octets) < SQUEEZE_OCTETS else zlib.compress(octets, 1)


def _spread(octets: bytes) -> bytes:
    """The entry as msgpack; an array never begins as a zlib stream does."""
    return zlib.decompress(octets) if octets[:1] == b"\x78" else octets


def _unpack(packed: Packed) -> Entry:
    entry = _entry.decode(_spread(packed[0]))
    entry.lengthen()
    entry.tail_hashes = packed[1]
    return entry


def _pack_group(entries: dict[Key, Packed]) -> bytes:
    """Column by column: the entries of neighbours are nearly the same, only their hashes are not."""
    keys = sorted(entries)
    return zlib.compress(
        _encode(
            (
                [b - a for a, b in pairwise([0, *(device for device, _ in keys)])],
                [profile for _, profile in keys],
                [_spread(entries[key][0]) for key in keys],
                [len(entries[key][1]) for key in keys],
                b"".join(entries[key][1] for key in keys),
            )
        )
    )


def _unpack_group(body: bytes) -> dict[Key, Packed]:
    devices, profiles, octets, lengths, hashes = _group.decode(zlib.decompress(body))
    ends = list(accumulate(lengths))
    parts = [hashes[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    keys = zip(accumulate(devices), profiles, strict=True)
    return dict(zip(keys, zip(map(_squeeze, octets), parts, strict=True), strict=True))


def decodes(body: bytes) -> bool:
    """Is this a blob of the ledger, with entries that can be read?"""
    try:
        for packed in _unpack_group(body).values():
            _unpack(packed)
    except (ValueError, zlib.error, msgspec.MsgspecError):
        return False
    return True


@dataclass(slots=True)
class _Blob:
    """The entries of 64 meters of one class of profiles."""

    upto: int
    entries: dict[Key, Packed]


class Book:
    """The ledger of a journal file."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._lock = threading.Lock()  # loading, by the writer or by a reader
        self._blobs: dict[int, _Blob] = {}
        self._loaded: set[int] = set()
        self._place: dict[Key, int] = {}
        self._staged: dict[Key, tuple[int, Entry]] = {}
        self._dirty: set[int] = set()
        self._at_once: set[int] = set()
        self._written: list[tuple[int, int]] = []
        self.complete = False  # everything is replayed: before that no snapshot
        self.lost = 0  # blobs that did not decode
        self._segments = self._readings = 0  # committed since the last snapshot

    def entry(self, connection: sqlite3.Connection, key: Key) -> Entry | None:
        """The committed entry, a copy."""
        self._load(connection, self._names.group_of(key[0]))
        place = self._place.get(key)
        return None if place is None else _unpack(self._blobs[place].entries[key])

    def entries(self, connection: sqlite3.Connection, meter: str) -> list[tuple[int, Obis, Entry]]:
        """(device number, profile, entry) of a meter."""
        devices = set(self._names.devices_of(meter))
        if not devices:
            return []
        group = self._names.group_of(next(iter(devices)))
        self._load(connection, group)
        with self._lock:
            found = [
                (*key, packed)
                for place in range(group * 16, group * 16 + 16)
                if place in self._blobs
                for key, packed in self._blobs[place].entries.items()
                if key[0] in devices
            ]
        return [(device, profile, _unpack(packed)) for device, profile, packed in sorted(found)]

    def counted(self, key: Key, kind: str) -> int:
        """Up to which segment the blob counts on disk that holds this entry, or would hold it; -1 = no segment."""
        place = self._place.get(key)
        if place is None:
            place = self._names.group_of(key[0]) * 16 + _CLASSES.get(kind.partition("-")[0], 15)
        blob = self._blobs.get(place)
        return -1 if blob is None else blob.upto

    def stage(self, connection: sqlite3.Connection, key: Key, kind: str) -> Entry:
        """The entry as it stands inside this transaction, to be changed."""
        staged = self._staged.get(key)
        if staged is None:
            group = self._names.group_of(key[0])
            self._load(connection, group)
            place = self._place.get(key)
            if place is None:
                place = group * 16 + _CLASSES.get(kind.partition("-")[0], 15)
                entry = Entry(kind=kind)
            else:
                entry = _unpack(self._blobs[place].entries[key])
            staged = self._staged[key] = (place, entry)
        return staged[1]

    def absorb(
        self, connection: sqlite3.Connection, device: int, block: Block, watermark: int | None
    ) -> Absorbed:
        """Take in a block within this transaction."""
        key = (device, block.layout.profile)
        entry = self.stage(connection, key, block.kind)
        before, steps = entry.watermark, entry.steps
        out = entry.absorb(block, watermark)
        kept = block.rows if out.rows is None else len(out.rows)
        untold = out.stepped if kept else entry.watermark != before or entry.steps is not steps
        if untold:
            self._at_once.add(self._staged[key][0])  # no segment will tell of it
        return out

    def at_once(self, key: Key) -> None:
        """Write the blob of a staged entry in this transaction: no segment tells of the change."""
        self._at_once.add(self._staged[key][0])

    def replay(
        self,
        connection: sqlite3.Connection,
        segment: int,
        blocks: list[Block],
        caps: dict[int, int],
    ) -> None:
        """Absorb a segment again that was committed after the blobs were written."""
        for i, block in enumerate(blocks):
            device = self._names.known(block.meter, block.device)
            if device is None:
                raise JournalDamaged(f"meter {block.meter} has no number")
            key = (device, block.layout.profile)
            self.stage(connection, key, block.kind)
            place = self._staged[key][0]
            if place in self._blobs and segment <= self._blobs[place].upto:
                del self._staged[key]
                continue
            self.absorb(connection, device, block, caps.get(i))
        self._at_once.clear()
        self.commit()

    def grown(self, segments: int, readings: int) -> None:
        """So much was committed without its blobs."""
        self._segments += segments
        self._readings += readings

    def due(self, patience: int = 1) -> bool:
        """Is it time to write all touched blobs? With a patience of 2, twice as late."""
        if not self.complete:
            return False
        segments, readings = SNAPSHOT_SEGMENTS * patience, SNAPSHOT_READINGS * patience
        return self._segments >= segments or self._readings >= readings

    def save(self, connection: sqlite3.Connection, upto: int, *, everything: bool) -> int:
        """Write blobs in the caller's transaction, counting up to and with segment `upto`; returns their octets."""
        places = set(self._at_once)
        if everything:
            places |= self._dirty | {place for place, _ in self._staged.values()}
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('upto', ?)", (upto,))
        size = 0
        for place in sorted(places):
            blob = self._blobs.get(place)
            entries = dict(blob.entries) if blob else {}
            entries.update({k: _pack(e) for k, (p, e) in self._staged.items() if p == place})
            body = _pack_group(entries)
            connection.execute(
                "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?)", (place, upto, body)
            )
            self._written.append((place, upto))
            size += len(body)
        return size

    def commit(self, *, everything: bool = False) -> None:
        """What was staged is durable."""
        with self._lock:
            for key, (place, entry) in self._staged.items():
                blob = self._blobs.setdefault(place, _Blob(-1, {}))
                blob.entries[key] = _pack(entry)
                self._place[key] = place
                self._dirty.add(place)
            for place, written in self._written:
                self._blobs[place].upto = written
                self._dirty.discard(place)
            if everything:
                self._segments = self._readings = 0
        self.rollback()

    def rollback(self) -> None:
        """What was staged did not happen."""
        self._staged = {}
        self._at_once = set()
        self._written = []

    def _load(self, connection: sqlite3.Connection, group: int) -> None:
        if group in self._loaded:
            return
        with self._lock:
            if group in self._loaded:
                return
            rows = connection.execute(
                "SELECT id, upto, body FROM ledger WHERE id BETWEEN ? AND ?",
                (group * 16, group * 16 + 15),
            )
            for place, upto, body in rows:
                try:
                    entries = _unpack_group(body)
                except (ValueError, zlib.error, msgspec.MsgspecError):
                    # rows of these meters will be delivered again, under the same identity
                    log.exception("ledger blob %d does not decode", place)
                    self.lost += 1
                    entries = {}
                self._blobs[place] = _Blob(upto, entries)
                for key in self._blobs[place].entries:
                    self._place[key] = place
            self._loaded.add(group)
