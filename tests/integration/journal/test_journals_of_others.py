"""Journals of several processes as one: read while they are written, freed through uplink.db, taken over at a change."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge_core.clock import ManualClock, SystemClock
from edge_core.config.schema import Config
from edge_core.config.schema import Gateway as GatewayTable
from edge_core.gateway import split
from edge_core.gateway.inbox import take_freed
from edge_core.gateway.tending import tend
from edge_core.journal import Journal, Journals
from edge_core.journal.datadir import DataDirectory
from edge_core.journal.elsewhere import Elsewhere
from edge_core.journal.journals import TAKEN, base_of
from edge_core.uplink.outbox import Outbox
from edge_core.uplink.register import Sources
from tests.conftest import eventually_sync
from tests.integration.journal.conftest import make_alarm, make_block

CLOCK = SystemClock()


@pytest.fixture
def opened(tmp_path):
    """Journals by file name; all are closed at the end."""
    made = []

    def open_(name):
        made.append(Journal.open(tmp_path / name, clock=CLOCK))
        return made[-1]

    yield open_
    for journal in made:
        journal.close()


@pytest.fixture
def outbox(tmp_path):
    box = Outbox.open(tmp_path / "uplink.db", clock=CLOCK)
    box.begin(1764000000)
    yield box
    box.close()


@pytest.fixture
def several(opened, outbox):
    """The uplink's own journal and its look at all."""
    journals = Journals(opened("journal.db"), CLOCK)
    journals.register(Sources(outbox))
    yield journals
    journals.close()


def put(journal, *blocks):
    """A segment each, durable."""
    for block in blocks:
        journal.append(block, durable="now").result(10)


def waiting(journals):
    """(file, meter, first time) of every block that waits."""
    out = []
    for base, name in journals.names().items():
        after = base
        while page := journals.segments(after, limit=50):
            for segment in page:
                after = segment.id
                assert base_of(segment.id) == base
                out += [(name, b.meter, int(b.times[0])) for b in journals.blocks(segment.id)]
    return out


def ids(journals, name):
    base = next(base for base, of in journals.names().items() if of == name)
    return [segment.id for segment in journals.segments(base, limit=1000)]


def test_what_others_write_is_read_as_it_is_committed(opened, several):
    dlms = opened("journal-dlms.db")
    put(dlms, make_block("GP1"))
    several.look()
    put(several.own, make_block("UP1"))
    assert {name for name, _, _ in waiting(several)} == {"journal.db", "journal-dlms.db"}
    put(dlms, make_block("GP2"), make_block("GP3", kind="midnight"))  # new names, a new layout
    dlms.alarm(make_alarm("GP2")).result(10)
    dlms.note("replies", "c-1", {"state": "done"}).result(10)
    assert {meter for _, meter, _ in waiting(several)} == {"UP1", "GP1", "GP2", "GP3"}
    assert [alarm.meter for alarm in several.alarms_waiting()] == ["GP2"]
    base = max(several.heads())
    assert [(n.kind, n.sub) for n in several.notes_waiting(base)] == [("replies", "c-1")]
    assert several.notes_waiting(0) == []


def test_what_is_acked_is_freed_by_its_owner(opened, several, outbox, tmp_path):
    dlms = opened("journal-dlms.db")
    put(dlms, *(make_block(f"GP{i}") for i in range(3)))
    alarm = make_alarm()
    dlms.alarm(alarm).result(10)
    note = dlms.note("replies", "c-1", {"state": "done"}).result(10)
    several.look()
    segments = ids(several, "journal-dlms.db")
    base = base_of(segments[0])
    several.release(segments=segments[:-1], alarms=[alarm.id], notes=[base + note])
    assert ids(several, "journal-dlms.db") == segments[-1:]  # served no more, at once
    assert several.alarms_waiting() == []
    assert several.notes_waiting(base) == []
    several.set_aside("cloud-refused", "why", segments=segments[-1:])
    assert ids(several, "journal-dlms.db") == []
    outbox.sync().result(10)
    assert dlms.status().segments_waiting == 3
    epoch, mark = take_freed(outbox.path, dlms, "")
    assert epoch == outbox.epoch
    dlms.flush().result(10)
    status = dlms.status()
    assert (status.segments_waiting, status.alarms_waiting, status.notes_waiting) == (0, 0, 0)
    assert [(a.what, a.cause, a.why) for a in dlms.aside()] == [("segment", "cloud-refused", "why")]
    assert dlms.marks()[TAKEN] == mark
    several.look()  # sees the mark: what is freed is kept no longer
    outbox.sync().result(10)
    with contextlib.closing(sqlite3.connect(tmp_path / "uplink.db")) as db:
        assert db.execute("SELECT count(*) FROM freed").fetchone() == (0,)
    assert take_freed(outbox.path, dlms, mark) == (epoch, mark)


def test_a_restart_of_the_uplink_before_the_owner_has_taken_it(opened, several, outbox, tmp_path):
    dlms = opened("journal-dlms.db")
    put(dlms, make_block("GP1"), make_block("GP2"))
    several.look()
    first, second = ids(several, "journal-dlms.db")
    several.release(segments=[first])
    outbox.sync().result(10)
    outbox.close()
    again = Outbox.open(tmp_path / "uplink.db", clock=CLOCK)
    again.begin(1764000000)
    journals = Journals(several.own, CLOCK)
    journals.register(Sources(again))
    assert ids(journals, "journal-dlms.db") == [second]  # the same number, and not again
    journals.close()
    again.close()


def test_a_mark_of_another_uplink_db_means_nothing(opened, several, outbox):
    dlms = opened("journal-dlms.db")
    put(dlms, make_block("GP1"))
    several.look()
    several.release(segments=ids(several, "journal-dlms.db"))
    outbox.sync().result(10)
    _, mark = take_freed(outbox.path, dlms, f"{outbox.born + 1}:999")
    assert mark == f"{outbox.born}:1"
    dlms.flush().result(10)
    assert dlms.status().segments_waiting == 0


def test_an_ack_for_a_file_that_was_set_aside_frees_nothing_of_the_next(
    opened, several, outbox, tmp_path
):
    dlms = opened("journal-dlms.db")
    put(dlms, make_block("GP1"))
    several.look()
    old = ids(several, "journal-dlms.db")
    dlms.close()
    for suffix in ("", "-wal", "-shm"):  # the last epoch is remembered beside it
        (tmp_path / f"journal-dlms.db{suffix}").unlink(missing_ok=True)
    fresh = opened("journal-dlms.db")
    put(fresh, make_block("GP2"))
    several.look()
    new = ids(several, "journal-dlms.db")
    assert base_of(new[0]) != base_of(old[0])
    assert new[0] - base_of(new[0]) == old[0] - base_of(old[0])  # the same id within the file
    several.release(segments=old)
    several.set_aside("cloud-refused", segments=old)
    assert ids(several, "journal-dlms.db") == new
    outbox.sync().result(10)
    take_freed(outbox.path, fresh, "")
    fresh.flush().result(10)
    assert fresh.status().segments_waiting == 1


def test_a_file_that_cannot_be_read_stops_nobody(opened, several, tmp_path):
    put(several.own, make_block("UP1"))
    (tmp_path / "journal-dlms.db").write_bytes(os.urandom(8192))
    (tmp_path / "journal-modbus.db").touch()
    put(opened("journal-push.db"), make_block("PU1"))
    several.look()
    assert {meter for _, meter, _ in waiting(several)} == {"UP1", "PU1"}


WRITER = """
import sys
from pathlib import Path
from edge_core.clock import SystemClock
from edge_core.journal import Journal
from tests.integration.journal.conftest import make_block
journal = Journal.open(Path(sys.argv[1]), clock=SystemClock())
n = 0
while True:
    journal.append(make_block("GP%d" % (n % 7), first=n // 7 * 4), durable="now").result()
    n += 1
    print(n, flush=True)
"""


def test_a_writer_that_is_killed_is_read_to_its_last_commit(several, tmp_path):
    path = tmp_path / "journal-dlms.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert child.stdout is not None
    for _ in range(30):
        promised = int(child.stdout.readline())
    several.look()
    during = {(m, t) for _, m, t in waiting(several)}
    child.send_signal(signal.SIGKILL)
    promised = max([promised, *(int(line) for line in child.stdout.read().split())])
    child.wait()
    child.stdout.close()
    after = {(m, t) for _, m, t in waiting(several)}
    assert during <= after
    assert promised <= len(after) <= promised + 1
    released = ids(several, "journal-dlms.db")
    several.release(segments=released)
    assert not ids(several, "journal-dlms.db")


# The ledger goes where the meters are polled ---------------------------------------------------------------------------


def directory(tmp_path):
    return DataDirectory(tmp_path).prepare()


def test_the_ledger_follows_its_meters_to_another_process_and_back(opened, tmp_path):
    meters = [f"GP{i}" for i in range(150)]
    one = opened("journal.db")
    put(one, *(make_block(meter, rows=4) for meter in meters))
    before = {m: one.ledger(m) for m in meters}
    dlms = opened("journal-dlms.db")
    assert split.take_ledgers(dlms, directory(tmp_path), meters) == len(meters)
    assert {m: dlms.ledger(m) for m in meters} == before
    assert dlms.append(make_block("GP3", rows=6), durable="now").result(10).new == 2
    assert split.take_ledgers(dlms, directory(tmp_path), meters) == 0  # nothing changed there
    one.close()
    dlms.close()
    one = opened("journal.db")
    assert split.take_ledgers(one, directory(tmp_path), meters) >= 1
    appended = one.append(make_block("GP3", rows=7), durable="now").result(10)
    assert (appended.new, appended.known) == (1, 6)
    assert one.watermark("GP3", "D1", "1.0.99.1.0.255") == before["GP3"][0].watermark + 3 * 900


def test_the_ledger_of_a_killed_writer_counts_its_last_segments(opened, tmp_path, monkeypatch):
    one = opened("journal.db")
    put(one, make_block("GP1", rows=4))
    put(one, make_block("GP1", first=4, rows=4))  # no snapshot was written: the segments tell
    dlms = opened("journal-dlms.db")
    split.take_ledgers(dlms, directory(tmp_path), ["GP1"])
    assert dlms.append(make_block("GP1", rows=8), durable="now").result(10).known == 8


def test_what_was_known_by_a_file_that_is_lost_is_read_again(opened, tmp_path):
    one = opened("journal.db")
    put(one, make_block("GP1", rows=4))
    config = Config(gateway=GatewayTable(id="dcu-1", data_dir=str(tmp_path), timezone="UTC"))
    place = directory(tmp_path)
    dlms = split.open_journal(config, place, ["dlms"], CLOCK)
    split.take_ledgers(dlms, place, ["GP1"])
    put(dlms, make_block("GP1", first=4, rows=2))  # these are ours
    dlms.flush().result(10)
    dlms.close()
    one.close()
    for path in tmp_path.glob("journal.db*"):
        if not path.name.endswith(".lock"):  # the last epoch is remembered there
            path.unlink()
    opened("journal.db").close()
    dlms = split.open_journal(config, place, ["dlms"], CLOCK)
    appended = dlms.append(make_block("GP1", rows=6), durable="now").result(10)
    assert (appended.new, appended.known) == (4, 2)
    dlms.close()


# Files without a process ----------------------------------------------------------------------------------------------


def test_a_file_without_a_process_is_freed_and_goes_when_its_time_is_over(
    opened, several, outbox, tmp_path
):
    place = directory(tmp_path)
    config = Config(gateway=GatewayTable(id="dcu-1", data_dir=str(tmp_path), timezone="UTC"))
    dlms = opened("journal-dlms.db")
    put(dlms, make_block("GP1"))
    several.look()
    told: list[str] = []
    tend(config, place, several.own.path, CLOCK, told.append)  # its process runs: left alone
    dlms.close()
    several.release(segments=ids(several, "journal-dlms.db"))
    outbox.sync().result(10)
    tend(config, place, several.own.path, CLOCK, told.append)
    with contextlib.closing(Elsewhere(tmp_path / "journal-dlms.db")) as file:
        assert file.mark(TAKEN)
        assert not file.segments(0)
    clock = ManualClock(CLOCK.now())
    clock.advance(400 * 86_400 + 60)
    tend(config, place, several.own.path, clock, told.append)
    eventually_sync(lambda: not (tmp_path / "journal-dlms.db").exists())
    assert told == []


def test_a_damaged_file_without_a_process_is_set_aside_and_told(several, tmp_path):
    place = directory(tmp_path)
    config = Config(gateway=GatewayTable(id="dcu-1", data_dir=str(tmp_path), timezone="UTC"))
    (tmp_path / "journal-dlms.db").write_bytes(os.urandom(4096))
    told: list[str] = []
    tend(config, place, several.own.path, CLOCK, told.append)
    assert len(told) == 1
    assert list((tmp_path / "damaged").glob("journal-dlms-*.db"))
