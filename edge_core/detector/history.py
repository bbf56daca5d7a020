"""detector.db: the history of every meter, and how far the journal was read, always together in one transaction.

What is kept of a meter is 48 half hours a day for KEEP_DAYS days, as 16-bit codes on a logarithmic scale (0.1 % steps,
0 = exactly nothing, MISSING = no reading), 64 meters to a row, deflated: 84 octets a meter and day of real load, 29 MB
for 5,000 meters. A day is *open* while its rows arrive: energy and seconds of every half hour, written as they are, so that
after a restart the next row goes on where the last one stopped. Reading the journal again from the stored cursor gives
the same state as never having stopped.

Limits: MAX_METERS meters; rows are written by day and group, so a day of 5,000 meters costs some 80 rows.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector.days import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEEP_DAYS = 70
GROUP = 64
MAX_METERS = 100_000
MISSING = 0xFFFF
KEEP_LOGITS = 20
"""Days; more than any model averages over."""
NO_LOGIT = -32768
_STEPS = 1000.0  # codes per factor e
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meter(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- seconds and energies of the half hours of a day that is still arriving, meter id = part * 64 + row
CREATE TABLE IF NOT EXISTS open(day INTEGER, part INTEGER, body BLOB NOT NULL, evidence BLOB NOT NULL, PRIMARY KEY(day, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history(day INTEGER, part INTEGER, body BLOB NOT NULL, PRIMARY KEY(day, part)) WITHOUT ROWID;
-- per meter: UTC s, registers and device of the newest row, float64[64][4]
CREATE TABLE IF NOT EXISTS newest(part INTEGER PRIMARY KEY, body BLOB NOT NULL);
-- what is being watched: one row an episode, open while until_day IS NULL
CREATE TABLE IF NOT EXISTS finding(id TEXT PRIMARY KEY, meter INTEGER NOT NULL, kind TEXT NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, rev INTEGER NOT NULL, state TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS finding_meter ON finding(meter, kind, first);
-- daily scores of the model, thousandths, meter by meter: int16[64], -1 = not scored
CREATE TABLE IF NOT EXISTS score(day INTEGER, part INTEGER, body BLOB NOT NULL, PRIMARY KEY(day, part)) WITHOUT ROWID;
-- what a model said of single days, so that the next day's mean needs one day of features: thousandths, int16[64]
CREATE TABLE IF NOT EXISTS logit(day INTEGER, part INTEGER, model TEXT, body BLOB NOT NULL, PRIMARY KEY(day, part, model)) WITHOUT ROWID;
"""

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.uint16]


def encode(wh: npt.NDArray[Any]) -> Codes:
    """Energies as codes; not-a-number and negative ones are missing."""
    known = np.isfinite(wh) & (wh >= 0)
    code = np.rint(np.log1p(np.where(known, wh, 0).astype(np.float64)) * _STEPS)
    return np.where(known, np.minimum(code, MISSING - 1), MISSING).astype(np.uint16)


def decode(codes: Codes) -> Floats:
    """Energies in Wh; not-a-number where missing."""
    wh: Floats = np.expm1(codes.astype(np.float32) / np.float32(_STEPS))
    wh[codes == MISSING] = np.nan
    return wh


def encode_logits(logits: Floats) -> npt.NDArray[np.int16]:
    """Logits in thousandths; not-a-number becomes NO_LOGIT."""
    known = np.isfinite(logits)
    scaled = np.clip(np.rint(np.where(known, logits, 0) * 1000), -32767, 32767)
    return np.where(known, scaled, NO_LOGIT).astype(np.int16)


class Store:
    """The file. One thread at a time; `begin` to `commit` is one transaction.

    Args:
        reader: only read, from an existing file.

    Raises:
        sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path, *, reader: bool = False) -> None:
        if not reader and not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self.path = path
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if reader else 'rw'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=10.0,
        )
        self._db.execute("PRAGMA cache_size = -512")
        if not reader:
            self._db.execute(
                "PRAGMA page_size = 1024"
            )  # a group's day is about 5 kB: pages of 4 kB waste a third
            self._db.execute("PRAGMA journal_mode = WAL")
            # Losing the last commit in a power cut is harmless: the cursor is lost with it, and the journal is read again.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.executescript(f"BEGIN;{SCHEMA}COMMIT;")
        self.meters: dict[str, int] = {
            name: number for number, name in self._db.execute("SELECT id, name FROM meter")
        }
        self.names = {number: name for name, number in self.meters.items()}

    def quick_check(self) -> None:
        """Have SQLite look through the file.

        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin(self) -> None:
        """Begin a transaction."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End it."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Take everything since `begin` back."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # ---- small things

    def meta(self, key: str, default: Any = None) -> Any:
        """A value of the file."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def number(self, meter: str) -> int:
        """The number of a meter, given at its first row (in the transaction of the next save).

        Raises:
            OverflowError: more than MAX_METERS.
        """
        known = self.meters.get(meter)
        if known is None:
            known = len(self.meters)
            if known >= MAX_METERS:
                raise OverflowError(f"more than {MAX_METERS} meters")
            self.meters[meter] = known
            self.names[known] = meter
        return known

    def save_meters(self) -> None:
        """Write the numbers that were given."""
        have = self._db.execute("SELECT count(*) FROM meter").fetchone()[0]
        new = [(n, self.names[n]) for n in range(have, len(self.names))]
        self._db.executemany("INSERT INTO meter VALUES (?, ?)", new)

    # ---- days

    def put_history(self, day: int, part: int, codes: Codes) -> None:
        """Keep the half hours of a group of meters, shape (64, 48); known ones replace those kept before."""
        before = self.history(day, part)
        if before is not None:
            codes = np.where(codes == MISSING, before, codes)
        self._db.execute(
            "INSERT OR REPLACE INTO history VALUES (?, ?, ?)", (day, part, _pack(codes))
        )

    def history(self, day: int, part: int) -> Codes | None:
        """The half hours of a group on a day, shape (64, 48), or None."""
        row = self._db.execute(
            "SELECT body FROM history WHERE day = ? AND part = ?", (day, part)
        ).fetchone()
        return None if row is None else _unpack(row[0], np.uint16, (GROUP, SLOTS))

    def window(self, part: int, first: int, last: int) -> Codes:
        """The half hours of a group from day `first` to `last`, shape (64, days, 48)."""
        out = np.full((GROUP, last - first + 1, SLOTS), MISSING, np.uint16)
        query = "SELECT body FROM history WHERE day = ? AND part = ?"
        for day in range(first, last + 1):  # one by one: a range would walk over all groups
            row = self._db.execute(query, (day, part)).fetchone()
            if row is not None:
                out[:, day - first] = _unpack(row[0], np.uint16, (GROUP, SLOTS))
        return out

    def days(self) -> tuple[int, int] | None:
        """First and last day of the history, None when it is empty."""
        first, last = self._db.execute("SELECT min(day), max(day) FROM history").fetchone()
        return None if first is None else (int(first), int(last))

    def parts(self) -> int:
        """How many groups of meters there are."""
        return -(-len(self.meters) // GROUP)

    def forget_before(self, day: int) -> None:
        """Drop days that are too old."""
        for table in ("history", "score", "open"):
            self._db.execute(f"DELETE FROM {table} WHERE day < ?", (day,))  # noqa: S608 our own names
        newest = self._db.execute("SELECT max(day) FROM logit").fetchone()[0] or 0
        self._db.execute("DELETE FROM logit WHERE day < ?", (newest - KEEP_LOGITS,))
        self._db.execute("DELETE FROM finding WHERE last < ?", (day,))

    # ---- what is still arriving

    def put_open(self, day: int, part: int, body: bytes, evidence: dict[str, Any]) -> None:
        """Keep an open day of a group."""
        self._db.execute(
            "INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?)",
            (day, part, zlib.compress(body, 1), json.dumps(evidence).encode()),
        )

    def drop_open(self, day: int, part: int) -> None:
        """It is closed."""
        self._db.execute("DELETE FROM open WHERE day = ? AND part = ?", (day, part))

    def opened(self) -> Iterable[tuple[int, int, bytes, dict[str, Any]]]:
        """All open days: (day, part, body, evidence)."""
        for day, part, body, evidence in self._db.execute("SELECT * FROM open ORDER BY day, part"):
            yield day, part, zlib.decompress(body), json.loads(evidence)

    def put_newest(self, part: int, rows: npt.NDArray[np.float64]) -> None:
        """Keep the newest rows of a group, shape (64, 4): UTC s, import register, export register, device."""
        self._db.execute(
            "INSERT OR REPLACE INTO newest VALUES (?, ?)", (part, zlib.compress(rows.tobytes(), 1))
        )

    def newest(self) -> Iterable[tuple[int, npt.NDArray[np.float64]]]:
        """The newest rows: (part, rows)."""
        for part, body in self._db.execute("SELECT part, body FROM newest ORDER BY part"):
            yield part, np.frombuffer(zlib.decompress(body), np.float64).reshape(GROUP, 4).copy()

    # ---- findings and scores

    def put_scores(self, day: int, part: int, scores: list[int]) -> None:
        """Keep the scores of a group on a day: thousandths, -1 = none."""
        self._db.execute(
            "INSERT OR REPLACE INTO score VALUES (?, ?, ?)",
            (day, part, np.array(scores, np.int16).tobytes()),
        )

    def put_logits(self, day: int, part: int, model: str, thousandths: list[int]) -> None:
        """Keep what a model said of a group on a day, as `encode_logits` gives it."""
        self._db.execute(
            "INSERT OR REPLACE INTO logit VALUES (?, ?, ?, ?)",
            (day, part, model, np.array(thousandths, np.int16).tobytes()),
        )

    def logits(self, model: str, first: int, last: int) -> Iterable[tuple[int, int, Floats]]:
        """What a model said from day `first` to `last`: (day, part, logits of shape (64,))."""
        query = "SELECT day, part, body FROM logit WHERE day BETWEEN ? AND ? AND model = ?"
        for day, part, body in self._db.execute(query, (first, last, model)):
            raw = np.frombuffer(body, np.int16)
            yield day, part, np.where(raw == NO_LOGIT, np.nan, raw / np.float32(1000))

    def scores(self, part: int, first: int, last: int) -> npt.NDArray[np.int16]:
        """Scores of a group from day `first` to `last`, shape (64, days), -1 = none."""
        out = np.full((GROUP, last - first + 1), -1, np.int16)
        query = "SELECT day, body FROM score WHERE part = ? AND day BETWEEN ? AND ?"
        for day, body in self._db.execute(query, (part, first, last)):
            out[:, day - first] = np.frombuffer(body, np.int16)
        return out

    def put_finding(self, row: tuple[str, int, str, int, int, int, str, dict[str, Any]]) -> None:
        """Keep a finding: id, meter number, kind, first day, last day, rev, state (open, closed), message."""
        self._db.execute(
            "INSERT OR REPLACE INTO finding VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*row[:7], json.dumps(row[7], ensure_ascii=False).encode()),
        )

    def findings(
        self, meter: int | None = None, *, only_open: bool = False
    ) -> list[dict[str, Any]]:
        """Findings, oldest first: id, meter, kind, first, last, rev, state, body."""
        where = ["1"]
        args: list[Any] = []
        if meter is not None:
            where.append("meter = ?")
            args.append(meter)
        if only_open:
            where.append("state = 'open'")
        query = f"SELECT * FROM finding WHERE {' AND '.join(where)} ORDER BY first, id"  # noqa: S608
        keys = ("id", "meter", "kind", "first", "last", "rev", "state", "body")
        return [
            dict(zip(keys, (*row[:7], json.loads(row[7])), strict=True))
            for row in self._db.execute(query, args)
        ]


def _pack(values: npt.NDArray[Any]) -> bytes:
    """Deflated with the high octets apart from the low ones: they repeat."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T
    return zlib.compress(planes.tobytes(), 6)


def _unpack(body: bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
    raw = np.frombuffer(zlib.decompress(body), np.uint8)
    size = np.dtype(dtype).itemsize
    return np.ascontiguousarray(raw.reshape(size, -1).T).view(dtype).reshape(shape)
