"""Files that lie: bit rot, torn pages, cut files, foreign files. The start goes on, and what can be read is not lost."""

import contextlib
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from edge_core.errors import JournalDamaged, JournalError
from edge_core.journal import Appended, Journal
from tests.integration.journal.conftest import (
    INTERVAL,
    PERIOD,
    T0,
    make_alarm,
    make_block,
    rows_in,
)

pytestmark = pytest.mark.integration
PROFILE = INTERVAL.profile
KNOWN = Path(__file__).parents[2] / "data" / "journals"


def build(journal):
    """60 segments of 20 meters, 20 of them released, alarms, notes."""
    for i in range(60):
        for m in range(20):
            journal.append(make_block(f"GP{m}", 4 * i))
        journal.flush().result()
    alarms = [make_alarm(at=T0 + i) for i in range(50)]
    for alarm in alarms:
        journal.alarm(alarm)
    for i in range(10):
        journal.note("replies", f"c{i}", {"n": i})
    journal.release(segments=range(1, 21))
    journal.flush().result()


def test_a_file_that_is_no_database(opening, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal.db").write_bytes(b"\x00\xff" * 5000)
    journal = opening()
    assert "set aside" in journal.was_damaged
    assert journal.status().damaged == journal.was_damaged
    assert journal.append(make_block(), durable="now").result(5) == Appended(4, 0, 0)
    (aside,) = (tmp_path / "a" / "damaged").iterdir()
    assert aside.read_bytes().startswith(b"\x00\xff")


def test_an_empty_file_is_a_fresh_journal(opening, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal.db").touch()
    journal = opening()
    assert journal.was_damaged is None
    assert journal.append(make_block(), durable="now").result(5) == Appended(4, 0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_loses_no_more_than_what_it_hit(opening, tmp_path, seed):
    rng = random.Random(seed)
    journal = opening()
    build(journal)
    everything, _ = rows_in(journal)
    epoch = journal.epoch
    journal.close()
    path = tmp_path / "a" / "journal.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(rng.choice((1, 1, 2, 5))):
            file.seek(rng.randrange(0, size, 1024) + rng.choice((0, 0, 300)))
            file.write(rng.choice((os.urandom(1024), bytes(1024), os.urandom(3), b"\xff" * 64)))
    journal = opening()
    hurt = set()
    rows: dict = {}
    for segment in journal.segments(0, limit=1000):
        try:
            for b in journal.blocks(segment.id):
                rows |= {
                    (b.meter, b.device, t, 0): tuple(c[i] for c in b.columns)
                    for i, t in enumerate(b.times)
                }
        except JournalDamaged:
            hurt.add(segment.id)
    assert all(values == _values(*key) for key, values in rows.items())
    lost = len(set(everything) - set(rows))
    assert lost <= 0.3 * len(everything)
    if journal.was_damaged:
        assert journal.epoch > epoch
        assert list((tmp_path / "a" / "damaged").glob("journal-*.db"))
        assert journal.verify().problems == ()
    # every row that the ledger does not hold is taken again; the meter delivers the rest again
    again = {
        f"GP{m}": journal.append(make_block(f"GP{m}", 0, 240), durable="now").result(10)
        for m in range(20)
    }
    assert all(a.new + a.known + a.conflicts == 240 for a in again.values())
    assert journal.alarm(make_alarm(at=T0 + 999)).result(5) is True
    assert journal.note("replies", "z", {}).result(5)


def test_a_cut_file(opening, tmp_path):
    journal = opening()
    build(journal)
    journal.close()
    path = tmp_path / "a" / "journal.db"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 3 // 4)
    journal = opening()
    assert journal.was_damaged
    assert "taken over" in journal.was_damaged
    rows, _ = rows_in(journal)
    assert len(rows) > 500
    assert all(r == _values(*k) for k, r in rows.items())
    head = journal.head()
    journal.append(make_block("NEW"), durable="now").result(5)
    assert journal.segments(head)[0].id == head + 1
    assert journal.watermark("NEW", "D1", PROFILE) == T0 + 3 * PERIOD
    journal.close()
    assert opening().was_damaged is None


def test_rows_of_a_segment_that_was_lost_are_new_when_they_are_read_again(opening, tmp_path):
    """The ledger on disk counts them as known: what the meters still hold would never be delivered."""
    journal = opening()
    journal.append(make_block("M1"), durable="now").result(5)
    journal.append(make_block("M2"), durable="now").result(5)
    journal.close()  # saves the ledger
    path = tmp_path / "a" / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [t for (t,) in db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'seg%'")]
        assert sum(db.execute(f"DELETE FROM {t} WHERE id = 1").rowcount for t in tables) == 1
        db.commit()
        db.execute("VACUUM")
    with path.open("r+b") as file:
        file.write(bytes(100))
    journal = opening()
    assert "1 are missing" in journal.was_damaged
    assert journal.append(make_block("M1"), durable="now").result(5).new == 4
    again = journal.append(make_block("M2"), durable="now").result(5)
    assert (again.new, again.known) == (0, 4)  # that one was found


def _values(meter, device, time, _):
    row = (time - T0) // PERIOD
    return tuple(c[0] for c in make_block(meter, row, 1, device=device).columns)


def test_damage_that_only_shows_when_read_is_checked_at_the_next_start(opening, tmp_path):
    """Big enough that a start does not check the whole file."""
    journal = opening()
    blocks = 0
    while journal.path.stat().st_size < 5 << 20:
        for m in range(40):
            columns = tuple([random.getrandbits(60) for _ in range(96)] for _ in range(4))
            journal.append(make_block(f"GP{m}", 96 * blocks, 96, columns=columns))
        blocks += 1
        journal.flush().result()
    journal.close()
    journal = opening()
    path = journal.path
    journal.close()
    db = sqlite3.connect(path)
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'seg0'").fetchone()
    db.close()
    with path.open("r+b") as file:  # wild pointers in an interior page
        file.seek((root - 1) * 1024 + 12)
        file.write(b"\x7f\xff\x7f\xff" * 40)
    journal = opening()
    if journal.was_damaged is None:
        errors = 0
        for segment in range(1, journal.head() + 1):
            try:
                journal.blocks(segment)
            except JournalError:
                errors += 1
        assert errors
        assert journal.verify().problems
        journal.close()
        journal = opening()
    assert "set aside" in journal.was_damaged
    journal.close()
    assert opening().was_damaged is None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE layout SET body = x'0102'",
        "UPDATE meta SET value = 'abc' WHERE key = 'head'",
        "UPDATE released SET bits = 'text'",
    ],
)
def test_rows_that_make_no_sense_are_damage_too(opening, tmp_path, change):
    journal = opening()
    build(journal)
    everything, _ = rows_in(journal)
    journal.close()
    db = sqlite3.connect(tmp_path / "a" / "journal.db")
    assert db.execute(change).rowcount
    db.commit()
    db.close()
    journal = opening()
    assert "set aside" in journal.was_damaged
    rows, _ = rows_in(journal)
    assert everything.items() <= rows.items()  # what was released may come again


def test_an_alarm_or_note_that_rotted_blocks_nobody(opening, tmp_path):
    journal = opening()
    build(journal)
    journal.close()
    db = sqlite3.connect(tmp_path / "a" / "journal.db")
    db.execute("UPDATE alarm SET body = x'7b' WHERE n = 3")
    db.execute("UPDATE note SET body = x'ff' WHERE id = 4")
    db.commit()
    db.close()
    journal = opening()
    assert len(journal.alarms_waiting()) == 49
    assert [n.id for n in journal.notes_waiting()] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_a_ledger_blob_that_does_not_decode_costs_a_second_delivery_only(opening, tmp_path):
    journal = opening()
    build(journal)
    journal.close()
    db = sqlite3.connect(tmp_path / "a" / "journal.db")
    db.execute("UPDATE ledger SET body = x'0102'")
    db.commit()
    db.close()
    journal = opening()
    assert journal.watermark("GP1", "D1", PROFILE) is None
    assert "ledger" in journal.verify().problems[0]
    assert journal.append(make_block("GP1", 0, 8), durable="now").result(5) == Appended(8, 0, 0)
    assert journal.append(make_block("GP1", 0, 8), durable="now").result(5) == Appended(0, 8, 0)


@pytest.mark.parametrize("name", sorted(p.name for p in KNOWN.glob("v*.db")) or ["none"])
def test_every_schema_ever_released_opens_and_opens_again(opening, tmp_path, name):
    folder = tmp_path / "a"
    folder.mkdir()
    shutil.copy(KNOWN / name, folder / "journal.db")
    for n in range(2):
        journal: Journal = opening()
        assert journal.was_damaged is None
        assert journal.verify().problems == ()
        rows, count = rows_in(journal)
        assert count == len(rows) == 3 * 8
        assert rows["GP2", "D1", T0 + 5 * PERIOD, 0] == _values("GP2", "D1", T0 + 5 * PERIOD, 0)
        assert journal.alarms_waiting() == [make_alarm("GP1")]
        assert [(note.kind, note.body) for note in journal.notes_waiting()] == [
            ("replies", {"state": "done"})
        ]
        assert journal.alarm(make_alarm("GP2")).result(5) is False  # acked, still known
        assert [a.id for a in journal.aside()] == ["4"]
        entry = next(e for e in journal.ledger("GP1") if e.profile == PROFILE)
        assert (entry.captured, entry.repeats, entry.holes[0].cause) == (9, 1, "line-silent")
        put = journal.append(make_block("GP1", 6, 2 + n), durable="now").result(5)
        assert (put.new, put.known) == (0, 2) if n == 0 else (put.known, put.new) == (2, 1)
        if n:
            assert rows_in(journal)[1] == 25
        journal.close()
