"""Opening a journal file: schema, health, and what to take over from a damaged one."""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import contextlib
import importlib.resources
import logging
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.domain import Alarm
from edge_core.errors import JournalDamaged, JournalError
from edge_core.journal import codec, store
from edge_core.journal.book import Names, decode_layout, take_spare
from edge_core.journal.retention import (
    ALL_SLOTS,
    CHUNK,
    PROFILE,
    SLOTS,
    class_of,
    unpack_ids,
)
from edge_core.journal.salvage import DamagedFile

if TYPE_CHECKING:
    from edge_core.journal.salvage import Value

log = logging.getLogger(__name__)

Takeover = Callable[[Path, sqlite3.Connection], str]

SEGMENT_COLUMNS = 9
_SEGMENT_TABLE = (
    "CREATE TABLE seg{}(id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, kind TEXT NOT NULL, "
    "blocks INTEGER NOT NULL, readings INTEGER NOT NULL, at INTEGER NOT NULL, codec INTEGER NOT NULL, "
    "acks BLOB, body BLOB NOT NULL);"
)


decode_alarm = msgspec.json.Decoder(Alarm).decode
decode_note = msgspec.json.Decoder(dict[str, Any]).decode

_SHAPE = {type(None): "n", int: "i", str: "t", bytes: "b", float: "f"}
_TABLES = {  # by shape: table, and whether its first column is the rowid
    "nt": ("meter(id, name)", True),
    "nit": ("device(id, meter, serial)", True),
    "ntb": ("layout(id, digest, body)", True),
    "niib": ("alarm(id, n, at, body)", True),
    "niin": ("alarm(id, n, at, body)", True),
    "nttb": ("note(id, kind, sub, body)", True),
    "ttttib": ("aside(what, id, cause, why, at, body)", False),
}


def schemas() -> list[str]:
    """Every schema of the journal ever shipped, oldest first."""
    folder = importlib.resources.files("edge_core.journal") / "schema"
    first = (folder / "v001.sql").read_text(encoding="utf-8")
    return [first + "\n".join(_SEGMENT_TABLE.format(slot) for slot in ALL_SLOTS)]


def open_file(
    path: Path, *, suspect: bool, schemas: list[str], now: int, takeover: Takeover | None
) -> tuple[sqlite3.Connection, str | None]:
    """A sound file with the present schema, and why the former one was set aside, if it was.

    Args:
        suspect: check the whole file whatever its size.
        now: UTC second, names the damaged file.
        takeover: copies what can be read of a damaged file into the fresh one; says what.

    Raises:
        DiskFull, JournalError: neither the file nor a fresh one can be opened.
    """
    try:
        return _sound(path, schemas, suspect), None
    except (sqlite3.Error, JournalDamaged) as error:
        reason = error if isinstance(error, JournalDamaged) else store.translate(error, path)
        if not isinstance(reason, JournalDamaged):
            raise reason from error
    return replace_file(path, str(reason), schemas=schemas, now=now, takeover=takeover)


def replace_file(
    path: Path, reason: str, *, schemas: list[str], now: int, takeover: Takeover | None
) -> tuple[sqlite3.Connection, str]:
    """Set a damaged file aside and begin a fresh one; the same arguments and answer as `open_file`."""
    log.error("%s is damaged and set aside: %s", path, reason)
    aside = store.set_aside(path, now)
    try:
        connection = _sound(path, schemas, suspect=False)
    except sqlite3.Error as error:
        raise store.translate(error, path) from error
    why = f"{reason}; set aside as {aside}"
    if takeover is not None:
        try:
            why += "; " + takeover(aside, connection)
        except (sqlite3.Error, OSError) as error:
            log.exception("nothing could be taken over from %s", aside)
            why += f"; nothing could be taken over: {error}"
    return connection, why


def _sound(path: Path, schemas: list[str], suspect: bool) -> sqlite3.Connection:
    connection = store.connect(path)
    try:
        store.migrate(connection, schemas)
        if suspect or path.stat().st_size <= store.SMALL:
            store.demand_sound(connection, path)
        tables = [
            t for (t,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        for table in tables:  # reaches the root and the last page of each
            connection.execute(f"SELECT * FROM {table} ORDER BY 1 DESC LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def take_over(damaged: Path, fresh: sqlite3.Connection) -> str:
    """Copy what can be read of a damaged journal, under its old ids.

    That is names, ledger, alarms, notes, what was set aside, and every unreleased segment that decodes. Released segments
    stay behind: the cloud has them. If one is missing, the ledger stays behind too: it counts rows that are lost here and that
    the meters may still hold; the cloud knows those that come twice. What is there twice (an old version on a page that is not in use any more) is taken once.
    """
    old = DamagedFile(damaged)
    try:
        fresh.execute("BEGIN IMMEDIATE")
        released: dict[int, int] = {}
        for rowid, row in old.rows({2, 3, 4, 6}):
            _take_row(fresh, rowid, row, released)
        for _, row in old.rows({SEGMENT_COLUMNS}):
            for segment in unpack_ids(row[-2]):
                chunk, bit = divmod(segment, CHUNK)
                released[chunk] = released.get(chunk, 0) | 1 << bit
        names = Names()
        names.load(fresh)
        taken, lost = _take_segments(old, fresh, names, released)
        (counted,) = fresh.execute("SELECT coalesce(max(upto), 0) FROM ledger").fetchone()
        head = max([*taken, _newest(released), counted])
        holes = _holes(taken, released, head)
        if (
            holes
        ):  # the ledger counts rows that nobody has: forget it, and read again what the meters hold
            fresh.execute("DELETE FROM ledger")
        _write_state(fresh, taken, head)
        fresh.execute("COMMIT")
    except BaseException:
        if fresh.in_transaction:
            fresh.execute("ROLLBACK")
        raise
    finally:
        old.close()
    told = f"{len(taken)} waiting segments taken over, {lost} do not decode"
    return f"{told}; {holes} are missing, so everything is read again" if holes else told


def _take_row(
    fresh: sqlite3.Connection, rowid: int, row: tuple[Value, ...], released: dict[int, int]
) -> None:
    """Put a row into the table that its shape tells of."""
    shape = "".join(_SHAPE[type(value)] for value in row)
    if shape == "nb" and isinstance(row[1], bytes) and len(row[1]) == CHUNK // 8:
        released[rowid] = released.get(rowid, 0) | int.from_bytes(row[1], "little")
    elif shape == "nib":
        query = "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT(id) DO UPDATE SET upto = excluded.upto, body = excluded.body WHERE excluded.upto > upto"
        fresh.execute(query, (rowid, *row[1:]))
    elif shape == "ntib" and isinstance(row[3], bytes):
        with contextlib.suppress(ValueError, zlib.error, msgspec.MsgspecError):
            take_spare(fresh, row[3])
    elif shape in _TABLES and _decodes(shape, row[-1]):
        table, key = _TABLES[shape]
        values = (rowid, *row[1:]) if key else row
        marks = ", ".join("?" * len(values))
        fresh.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)


def _decodes(shape: str, body: Value) -> bool:
    """Is the body of a layout, alarm or note what it should be? Others have none."""
    decoder = {"ntb": decode_layout, "niib": decode_alarm, "nttb": decode_note}.get(shape)
    if decoder is None or not isinstance(body, bytes):
        return decoder is None
    try:
        decoder(body)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def _take_segments(
    old: DamagedFile, fresh: sqlite3.Connection, names: Names, released: dict[int, int]
) -> tuple[dict[int, int], int]:
    """(class by segment id of what was taken, number of those that do not decode)."""
    taken: dict[int, int] = {}
    lost = 0
    lowest = min(released, default=0)
    for segment, row in old.rows({SEGMENT_COLUMNS}):
        body, kind = row[-1], row[2]
        if not isinstance(body, bytes) or not isinstance(kind, str) or segment in taken:
            continue
        chunk, bit = divmod(segment, CHUNK)
        if chunk < lowest or released.get(chunk, 0) >> bit & 1:
            continue
        class_ = PROFILE
        try:
            blocks, _ = codec.decode(body, names.device_of, names.layout_of)
            class_ = class_of(blocks[0])
        except JournalDamaged:
            lost += 1
            continue
        except JournalError:  # a newer codec: it stays pending
            pass
        query = f"INSERT INTO seg{SLOTS[class_][0]} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        fresh.execute(query, (segment, *row[1:]))
        taken[segment] = class_
    return taken, lost


def _holes(taken: dict[int, int], released: dict[int, int], head: int) -> int:
    """How many segments were neither released nor found, as far as can be told: some may have been released."""
    lowest = min(released, default=0) * CHUNK
    return sum(
        segment not in taken and not released.get(segment // CHUNK, 0) >> segment % CHUNK & 1
        for segment in range(max(lowest, 1), head + 1)
    )


def _newest(released: dict[int, int]) -> int:
    """The highest released id."""
    return max((c * CHUNK + bits.bit_length() - 1 for c, bits in released.items()), default=0)


def _write_state(fresh: sqlite3.Connection, taken: dict[int, int], head: int) -> None:
    """Generations of what was taken; every other id up to the head counts as released."""
    for class_, slots in SLOTS.items():
        mine = [segment for segment, of in taken.items() if of == class_]
        if mine:
            query = f"SELECT min(at), sum(length(body)) FROM seg{slots[0]}"
            since, size = fresh.execute(query).fetchone()
            row = (slots[0], class_, min(mine), max(mine), since, None, size)
            fresh.execute("INSERT INTO generation VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    fresh.execute("DELETE FROM released")
    for chunk in range(head // CHUNK + 1):
        bits = bytearray(CHUNK // 8)
        for bit in range(CHUNK):
            segment = chunk * CHUNK + bit
            if segment <= head and segment not in taken:
                bits[bit >> 3] |= 1 << (bit & 7)
        fresh.execute("INSERT INTO released VALUES (?, ?)", (chunk, bytes(bits)))
    for key, value in (("head", head), ("low", 0)):
        fresh.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
