"""Opening a journal file: schema, health, and what to take over from a damaged one."""

# ruff: noqa: S608  table names cannot be parameters; ours are constants and slot numbers
from __future__ import annotations

import importlib.resources
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

from edge_core.errors import JournalDamaged, JournalError
from edge_core.journal import codec, store
from edge_core.journal.book import Names
from edge_core.journal.retention import ALL_SLOTS, CHUNK, SLOTS, Released

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

_SEGMENT_TABLE = (
    "CREATE TABLE seg{}(id INTEGER PRIMARY KEY, lane INTEGER NOT NULL, kind TEXT NOT NULL, "
    "blocks INTEGER NOT NULL, readings INTEGER NOT NULL, at INTEGER NOT NULL, codec INTEGER NOT NULL, "
    "body BLOB NOT NULL);"
)


def schemas() -> list[str]:
    """Every schema of the journal ever shipped, oldest first."""
    folder = importlib.resources.files("edge_core.journal") / "schema"
    first = (folder / "v001.sql").read_text(encoding="utf-8")
    return [first + "\n".join(_SEGMENT_TABLE.format(slot) for slot in ALL_SLOTS)]


def open_file(
    path: Path,
    *,
    suspect: bool,
    schemas: list[str],
    now: int,
    takeover: Callable[[Path, sqlite3.Connection], str] | None,
) -> tuple[sqlite3.Connection, str | None]:
    """A sound file with the present schema, and why the former one was set aside, if it was.

    Args:
        suspect: a former run saw damage: check the whole file whatever its size.
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
        except sqlite3.Error as error:
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
    """Copy names, ledger, alarms, notes, what was set aside and every unreleased segment that decodes, under their old ids.

    Released segments stay behind: the cloud has them.
    """
    old = store.connect(damaged)
    try:
        fresh.execute("BEGIN IMMEDIATE")
        for table, columns, key in (
            ("meter", "id, name", "id"),
            ("device", "id, meter, serial", "id"),
            ("layout", "id, digest, body", "id"),
            ("ledger", "id, upto, body", "id"),
            ("released", "chunk, bits", "chunk"),
            ("aside", "what, id, cause, why, at, body", "rowid"),
            ("alarm", "id, n, at, body", "id"),
            ("note", "id, kind, sub, body", "id"),
        ):
            marks = ", ".join("?" * len(columns.split(", ")))
            for row in store.readable_rows(old, table, columns, key):
                fresh.execute(f"INSERT OR IGNORE INTO {table}({columns}) VALUES ({marks})", row)
        meta = _meta(old)
        for key, value in meta.items():
            fresh.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        names, released = Names(), Released()
        names.load(fresh)
        released.load(fresh, int(meta.get("low", 0)))
        taken, lost = _take_segments(old, fresh, names, released)
        head = max([int(meta.get("head", 0)), *taken])
        _write_state(fresh, taken, head)
        fresh.execute("COMMIT")
    except BaseException:
        if fresh.in_transaction:
            fresh.execute("ROLLBACK")
        raise
    finally:
        old.close()
    return f"{len(taken)} waiting segments taken over, {lost} do not decode"


def _meta(old: sqlite3.Connection) -> dict[str, Any]:
    try:
        return dict(old.execute("SELECT key, value FROM meta"))
    except sqlite3.DatabaseError:
        return {}


def _take_segments(
    old: sqlite3.Connection, fresh: sqlite3.Connection, names: Names, released: Released
) -> tuple[dict[int, int], int]:
    """(class by segment id of what was taken, number of those that do not decode)."""
    taken: dict[int, int] = {}
    lost = 0
    for class_, slots in SLOTS.items():
        for slot in slots:
            columns = "id, lane, kind, blocks, readings, at, codec, body"
            for row in store.readable_rows(old, f"seg{slot}", columns, "id"):
                if row[0] in released or row[0] in taken:
                    continue
                try:
                    codec.decode(row[-1], names.device_of, names.layout_of)
                except JournalDamaged:
                    lost += 1
                    continue
                except JournalError:  # a newer codec: it stays pending
                    pass
                fresh.execute(f"INSERT INTO seg{slots[0]} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                taken[row[0]] = class_
    return taken, lost


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
