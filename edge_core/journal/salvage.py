"""Reading the rows of a damaged journal file without SQLite: page by page, so that a lost tree costs no leaf of it.

Only leaf pages of tables are read (page size store.PAGE, no reserved octets, as we create them), with the committed frames of
the WAL laid over the file, and without the free list as far as it can be followed. Which table a row belongs to is told by its
shape (number and kinds of its values); the caller proves the content. Any octets are read or skipped, in bounded time.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5 (free list), 1.6 (b-tree pages), 2 (records) and 4 (WAL).
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

from edge_core.journal.store import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Value = int | bytes | str | float | None
Row = tuple[int, tuple[Value, ...]]  # rowid, columns

_TABLE_LEAF = 13
_MAX_LOCAL = PAGE - 35
_MIN_LOCAL = (PAGE - 12) * 32 // 255 - 23
_MAX_PAYLOAD = 64 << 20
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class DamagedFile:
    """The pages of a file and its WAL."""

    def __init__(self, path: Path) -> None:
        self._data = b""
        self._map: mmap.mmap | None = None
        if path.stat().st_size:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._frames = _wal_frames(path.with_name(path.name + "-wal"))
        size = len(self._map) if self._map is not None else 0
        self._count = max([-(-size // PAGE), *self._frames])
        self._free = self._free_pages()

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()

    def rows(self, columns: set[int]) -> Iterator[Row]:
        """Every row with so many columns that can be read."""
        for number in range(1, self._count + 1):
            if number in self._free:
                continue
            page = self._page(number)
            start = 100 if number == 1 else 0
            if len(page) != PAGE or page[start] != _TABLE_LEAF:
                continue
            cells = int.from_bytes(page[start + 3 : start + 5], "big")
            for i in range(min(cells, PAGE // 4)):
                at = start + 8 + 2 * i
                pointer = int.from_bytes(page[at : at + 2], "big")
                try:
                    row = self._cell(page, pointer, columns)
                except (IndexError, ValueError, struct.error):
                    continue
                if row is not None:
                    yield row

    def _page(self, number: int) -> bytes:
        frame = self._frames.get(number)
        if frame is not None:
            return frame
        if self._map is None:
            return b""
        return self._map[(number - 1) * PAGE : number * PAGE]

    def _free_pages(self) -> set[int]:
        """Pages that the free list names; what it cannot name is read like any other."""
        free: set[int] = set()
        trunk = int.from_bytes(self._page(1)[32:36], "big")
        while 0 < trunk <= self._count and trunk not in free:
            free.add(trunk)
            page = self._page(trunk)
            count = min(int.from_bytes(page[4:8], "big"), PAGE // 4 - 2)
            free.update(n for (n,) in struct.iter_unpack(">I", page[8 : 8 + 4 * count]))
            trunk = int.from_bytes(page[:4], "big")
        return free

    def _cell(self, page: bytes, at: int, columns: set[int]) -> Row | None:
        size, at = _varint(page, at)
        rowid, at = _varint(page, at)
        if not 0 < size <= _MAX_PAYLOAD:
            raise ValueError(f"a row of {size} octets")
        local = size
        if size > _MAX_LOCAL:
            local = _MIN_LOCAL + (size - _MIN_LOCAL) % (PAGE - 4)
            local = local if local <= _MAX_LOCAL else _MIN_LOCAL
        payload = page[at : at + local]
        kinds = _kinds(payload)
        if len(kinds) not in columns:
            return None
        if size > local:
            payload = self._overflow(
                payload, int.from_bytes(page[at + local : at + local + 4], "big"), size
            )
        if len(payload) != size:
            raise ValueError("a row is cut off")
        if rowid >= 1 << 63:
            rowid -= 1 << 64
        return rowid, _values(payload, kinds)

    def _overflow(self, start: bytes, number: int, size: int) -> bytes:
        parts, have = [start], len(start)
        while have < size:
            page = self._page(number) if 0 < number <= self._count else b""
            if len(page) != PAGE:
                raise ValueError("a chain of pages breaks off")
            parts.append(page[4 : 4 + size - have])
            have += len(parts[-1])
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


def _wal_frames(path: Path) -> dict[int, bytes]:
    """The newest committed page of each number in a WAL."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    salts = data[16:24]
    committed: dict[int, bytes] = {}
    open_: dict[int, bytes] = {}
    for at in range(32, len(data) - PAGE - 23, PAGE + 24):
        number, size = struct.unpack_from(">II", data, at)
        if data[at + 8 : at + 16] != salts or not 0 < number < 1 << 31:
            break
        open_[number] = data[at + 24 : at + 24 + PAGE]
        if size:
            committed.update(open_)
            open_ = {}
    return committed


def _varint(octets: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        octet = octets[at + i]
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            return value, at + i + 1
    return value << 8 | octets[at + 8], at + 9


def _kinds(payload: bytes) -> list[int]:
    """Serial types of a record."""
    end, at = _varint(payload, 0)
    if not 0 < end <= min(len(payload), 200):
        raise ValueError("a header that is too long")
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    return kinds


def _values(payload: bytes, kinds: list[int]) -> tuple[Value, ...]:
    at = _varint(payload, 0)[0]
    out: list[Value] = []
    for kind in kinds:
        size = _INTEGERS.get(kind, (kind - 12) // 2 if kind >= 12 else 8 if kind == 7 else 0)
        octets = payload[at : at + size]
        if len(octets) != size:
            raise ValueError("a value is cut off")
        at += size
        if kind == 0:
            out.append(None)
        elif kind in _INTEGERS:
            out.append(int.from_bytes(octets, "big", signed=True))
        elif kind == 7:
            out.append(struct.unpack(">d", octets)[0])
        elif kind in (8, 9):
            out.append(kind - 8)
        elif kind < 12:
            raise ValueError(f"serial type {kind}")
        elif kind & 1:
            out.append(octets.decode())
        else:
            out.append(octets)
    return tuple(out)
