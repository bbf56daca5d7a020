"""What a meter never forgets: its invocation counters, and every violation of their rules.

Two files in the state folder, both fit for SIGKILL at any point:
  * `counters.bin`, memory-mapped: one record of 32 octets per (device, key): fingerprint (8), last counter accepted from
    the management client (8), from the reading client (8), the meter's own last counter (8). The kernel keeps what was
    written when the process dies.
  * `record.jsonl`, appended line by line: violations (`"violation": true`) and remarks, with the real time.
A violation is a counter that is not above the last accepted one, or a nonce used twice. Counts survive a restart.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.clock import Clock

_RECORD = struct.Struct(">QQQQ")
_GROW = 256 * _RECORD.size


class Record:
    """Counters and violations of one fleet, kept in a folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self.path = folder / "record.jsonl"
        self.violations = 0
        if self.path.exists():
            with self.path.open(encoding="utf-8") as lines:
                self.violations = sum('"violation": true' in line for line in lines)
        self._lines = self.path.open("a", buffering=1, encoding="utf-8")
        self._file = (folder / "counters.bin").open("a+b")
        if self._file.seek(0, 2) % _GROW or not self._file.tell():
            self._file.truncate((self._file.tell() // _GROW + 1) * _GROW)
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._where: dict[int, int] = {}
        self._end = 0
        while self._end < len(self._map):
            fingerprint = _RECORD.unpack_from(self._map, self._end)[0]
            if not fingerprint:
                break
            self._where[fingerprint] = self._end
            self._end += _RECORD.size

    def counters(self, serial: str, key: bytes, first_own: int, first_accepted: int) -> Counters:
        """The counters of a device under a key; a pair seen for the first time starts with the given values."""
        digest = hashlib.sha256(serial.encode() + b"/" + key).digest()
        fingerprint = int.from_bytes(digest[:8], "big") | 1
        place = self._where.get(fingerprint)
        if place is None:
            if self._end == len(self._map):
                self._file.truncate(self._end + _GROW)
                self._map.resize(self._end + _GROW)
            place = self._where[fingerprint] = self._end
            self._end += _RECORD.size
            _RECORD.pack_into(
                self._map, place, fingerprint, first_accepted, first_accepted, first_own
            )
        return Counters(self, place)

    def load(self, place: int, field: int) -> int:
        """One field of the record at `place`."""
        at = place + 8 * field
        return int.from_bytes(self._map[at : at + 8], "big")

    def store(self, place: int, field: int, value: int) -> None:
        """Change one field of the record at `place`."""
        at = place + 8 * field
        self._map[at : at + 8] = value.to_bytes(8, "big")

    def violation(self, meter: str, what: str, **more: object) -> None:
        """Write down that a rule was broken."""
        self.violations += 1
        self.note(meter, what, violation=True, **more)

    def note(self, meter: str, what: str, **more: object) -> None:
        """Write down something worth knowing."""
        line = {"at": round(self._clock.now(), 3), "meter": meter, "what": what, **more}
        self._lines.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Release both files."""
        self._lines.close()
        self._map.close()
        self._file.close()


class Counters:
    """The counters of one device under one key; every change is in the file at once."""

    __slots__ = ("_place", "_record")

    def __init__(self, record: Record, place: int) -> None:
        self._record, self._place = record, place

    def accepted(self, *, reading: bool = False) -> int:
        """The last counter accepted from the management (or the reading) client."""
        return self._record.load(self._place, 2 if reading else 1)

    def accept(self, counter: int, *, reading: bool = False) -> None:
        self._record.store(self._place, 2 if reading else 1, counter)

    def next_own(self) -> int:
        """The meter's next invocation counter."""
        value = self._record.load(self._place, 3) + 1
        self._record.store(self._place, 3, value)
        return value
