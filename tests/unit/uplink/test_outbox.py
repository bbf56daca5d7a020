"""uplink.db: numbers are never used twice, records and what was acked in part survive, damage and a full disk are borne."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.clock import SystemClock
from edge_core.uplink import outbox as module
from edge_core.uplink.outbox import AsideRow, Outbox, Ref, add_range, pack, unpack
from tests.conftest import eventually_sync

REF = Ref("s", 7, 0, 40, 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "uplink.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    box = Outbox.open(path, clock=SystemClock())
    box.begin(1764000000)
    yield box
    box.close()


def reopen(path: Path, epoch: int = 1764000000) -> Outbox:
    box = Outbox.open(path, clock=SystemClock())
    box.begin(epoch)
    return box


def test_first_number_is_one_and_the_range_is_on_disk_before_it_is_used(
    outbox: Outbox, path: Path
) -> None:
    on_disk = (
        sqlite3.connect(path).execute("SELECT value FROM meta WHERE key = 'reserved'").fetchone()
    )
    assert on_disk == (module.RANGE,)
    assert outbox.take() == 1
    assert outbox.reserved == module.RANGE


def test_a_restart_burns_the_range(outbox: Outbox, path: Path) -> None:
    used = [outbox.take() for _ in range(3)]
    outbox.close()
    later = reopen(path)
    assert module.RANGE < (later.take() or 0) <= module.RANGE + module.SKIP
    assert used == [1, 2, 3]
    later.close()


def test_two_lives_of_a_restored_file_name_no_number_twice(outbox: Outbox, path: Path) -> None:
    outbox.close()
    copy = path.read_bytes()
    lives = []
    for _ in range(2):
        path.write_bytes(copy)
        later = reopen(path)
        lives.append({later.take() for _ in range(5)})
        later.close()
    assert not lives[0] & lives[1]  # by chance: five in a million runs


def test_numbers_go_on_rising_over_many_ranges(outbox: Outbox) -> None:
    taken: list[int] = []
    while len(taken) < 3 * module.RANGE:
        n = outbox.take()
        if n is None:
            outbox.sync().result(5)
        else:
            taken.append(n)
    assert taken == list(range(1, len(taken) + 1))
    assert outbox.reserved >= taken[-1]


def test_another_epoch_begins_at_one_and_forgets(outbox: Outbox, path: Path) -> None:
    outbox.record(5, (REF,), b"x" * 32)
    outbox.keep_partial(("s", 7), 100, [(0, 40)])
    outbox.set_aside(6, AsideRow((REF,), "cloud-refused", "why", 1))
    outbox.close()
    later = reopen(path, 1764000001)
    assert (later.take(), later.earlier, later.acked, later.aside) == (1, {}, {}, {})
    later.close()
    last = reopen(path, 1764000001)
    assert (last.earlier, last.acked, last.aside) == ({}, {}, {})
    assert (last.take() or 0) > module.RANGE
    last.close()


def test_records_partials_and_asides_survive(outbox: Outbox, path: Path) -> None:
    outbox.record(5, (REF, Ref("a", "0123456789abcdef", 0, 1, 1)), b"x" * 32)
    outbox.keep_partial(("s", 7), 100, [(0, 40), (60, 61)])
    outbox.set_aside(6, AsideRow((REF,), "cloud-refused", "why", 1))
    outbox.close()
    later = reopen(path)
    assert later.earlier == {5: (REF, Ref("a", "0123456789abcdef", 0, 1, 1))}
    assert later.acked == {("s", 7): (100, [(0, 40), (60, 61)])}
    assert later.aside == {6: AsideRow((REF,), "cloud-refused", "why", 1)}
    later.forget(5)
    later.forget(6)
    later.drop_partial(("s", 7))
    later.close()
    last = reopen(path)
    assert (last.earlier, last.acked, last.aside) == ({}, {}, {})
    last.close()


def test_what_is_acked_before_the_next_group_is_never_written(outbox: Outbox, path: Path) -> None:
    outbox.record(1, (REF,), b"x" * 32)
    outbox.forget(1)
    outbox.record(2, (REF,), b"x" * 32)
    outbox.sync().result(5)
    rows = sqlite3.connect(path).execute("SELECT n FROM sends").fetchall()
    assert rows == [(2,)]
    outbox.forget(2)
    outbox.sync().result(5)
    assert sqlite3.connect(path).execute("SELECT n FROM sends").fetchall() == []


def test_records_of_a_newer_release_are_left_alone(outbox: Outbox, path: Path) -> None:
    outbox.record(1, (REF,), b"x" * 32)
    outbox.sync().result(5)
    outbox.close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO sends VALUES (9, x'93ff01c0', x'00')")
    db.commit()
    db.close()
    later = reopen(path)
    assert set(later.earlier) == {1}
    later.close()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM sends").fetchone() == (2,)


def test_octets_of_a_day(outbox: Outbox, path: Path) -> None:
    outbox.spend(20_000, 100)
    outbox.spend(20_000, 11)
    assert outbox.spent(20_000) == 111
    assert outbox.spent(20_001) == 0
    outbox.close()
    later = reopen(path)
    assert later.spent(20_000) == 111
    later.close()


@pytest.mark.parametrize("harm", ["garbage", "short", "middle"])
def test_a_damaged_file_is_set_aside(path: Path, harm: str) -> None:
    first = reopen(path)
    for n in range(1, 400):
        first.record(n, (REF,) * 20, os.urandom(32))
    first.close()
    octets = bytearray(path.read_bytes())
    if harm == "garbage":
        octets[:100] = os.urandom(100)
    elif harm == "short":
        del octets[len(octets) // 2 :]
    else:
        octets[4096:20480] = os.urandom(16384)
    path.write_bytes(octets)
    box = reopen(path)
    assert box.was_damaged
    assert box.was_created
    assert box.take() == 1
    assert [p.name.split("-", 1)[1] for p in (path.parent / "damaged").iterdir()] == ["uplink.db"]
    box.close()


def test_a_full_disk_stops_nothing_while_numbers_last(
    outbox: Outbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    for n in range(1, 500):
        outbox.record(n, (REF,) * 20, os.urandom(32))
    waiting = outbox.sync()
    eventually_sync(lambda: outbox.failed)
    assert "full" in outbox.failed
    assert outbox.take() == 1
    assert not waiting.done()
    outbox._db.execute("PRAGMA max_page_count = 100000")
    waiting.result(10)
    assert outbox.failed == ""
    assert sqlite3.connect(path).execute("SELECT count(*) FROM sends").fetchone() == (499,)
    assert sum("cannot write" in r.message for r in caplog.records) == 1


KILLED = """
import sys, pathlib
from edge_core.clock import SystemClock
from edge_core.uplink.outbox import Outbox
box = Outbox.open(pathlib.Path(sys.argv[1]), clock=SystemClock())
box.begin(1764000000)
while True:
    n = box.take()
    if n is not None:
        print(n, flush=n % 97 == 0)
"""


def test_no_number_twice_over_sigkills(path: Path) -> None:
    seen: set[int] = set()
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        numbers = [int(process.stdout.readline()) for _ in range(20_000)]
        process.send_signal(signal.SIGKILL)
        numbers += [int(line) for line in process.stdout.read().splitlines()[:-1]]
        process.wait()
        process.stdout.close()
        assert not seen & set(numbers)
        assert numbers == sorted(set(numbers))
        seen |= set(numbers)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12))))
def test_ranges_are_the_set_of_their_members(pieces: list[tuple[int, int]]) -> None:
    ranges: list[tuple[int, int]] = []
    members: set[int] = set()
    for first, count in pieces:
        ranges = add_range(ranges, first, first + count)
        members |= set(range(first, first + count))
    assert {i for a, b in ranges for i in range(a, b)} == members
    assert all(a < b for a, b in ranges)
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(ranges))


@given(st.binary(max_size=60))
def test_any_octets_are_references_or_none(octets: bytes) -> None:
    refs = unpack(octets)
    assert refs is None or unpack(pack(refs)) == refs


def test_references_round_trip() -> None:
    refs = (REF, Ref("n", 3, 0, 1, 2), Ref("a", "ab" * 8, 0, 1, 1))
    assert unpack(pack(refs)) == refs
    assert json.loads(json.dumps([REF.item])) == [["s", 7]]
