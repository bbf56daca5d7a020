"""No room: by the configured limit, and by a disk that takes no more."""

import resource
import signal
import subprocess
import sys

import pytest

from edge_core.clock import ManualClock
from edge_core.domain import Flag
from edge_core.errors import DiskFull
from edge_core.journal import Appended
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
KIB = 1 << 10


def wild(meter, first, rows=96, **fields):
    """Rows that do not compress."""
    import random

    rng = random.Random(f"{meter}{first}")
    columns = tuple([rng.randrange(1 << 60) for _ in range(rows)] for _ in range(4))
    return make_block(meter, first, rows, columns=columns, **fields)


def fill(journal, first=0, **fields):
    """Append until it is refused; the blocks that were taken."""
    taken = []
    for i in range(first, first + 2000):
        b = wild("GP1", 96 * i, **fields)
        future = journal.append(b, durable="now")
        if future.exception(10):
            assert isinstance(future.exception(), DiskFull)
            return taken, b
        taken.append(b)
    pytest.fail("it is never full")


def test_profile_rows_stop_at_the_limit_and_nothing_is_lost(opening, killed):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    taken, refused = fill(journal)
    status = journal.status()
    assert status.full
    assert status.refused == 1
    assert 384 * KIB < status.used_bytes <= 448 * KIB
    assert journal.watermark("GP1", "D1", PROFILE) == taken[-1].times[-1]
    assert rows_in(journal)[1] == 96 * len(taken)
    # the reserve is for alarms, midnights and replies
    assert journal.alarm(make_alarm()).result(5) is True
    assert journal.append(make_block(kind="midnight"), durable="now").result(5).new == 4
    assert journal.note("replies", "a", {}).result(5) == 1
    again = opening(killed(journal, "b"), max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    assert rows_in(again)[1] == 96 * len(taken) + 4
    with pytest.raises(DiskFull, match="not acked"):
        again.append(refused, durable="now").result(5)
    assert again.alarms_waiting() == [make_alarm()]


def test_it_works_again_when_something_is_acked(opening):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    taken, refused = fill(journal)
    half = [s.id for s in journal.segments(0, limit=1000)][: len(taken) // 2]
    journal.release(segments=half)
    assert journal.append(refused, durable="now").result(5) == Appended(96, 0, 0)
    assert not journal.status().full
    more, _ = fill(journal, first=len(taken) + 1)
    assert len(more) > len(taken) // 4
    kept, count = rows_in(journal)
    assert count == 96 * (len(taken) - len(half) + 1 + len(more))
    assert len(kept) == count
    assert journal.verify().problems == ()


def test_a_refused_block_in_a_group_does_not_harm_the_others(opening):
    clock = ManualClock()
    journal = opening(clock=clock, max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    _, refused = fill(journal)
    futures = [
        journal.append(refused, durable="soon"),
        journal.append(make_block("GP9", kind="midnight"), durable="soon"),
        journal.note("replies", "x", {}),
    ]
    clock.advance(1)
    assert isinstance(futures[0].exception(5), DiskFull)
    assert futures[1].result(5).new == 4
    assert futures[2].result(5) == 1
    assert journal.watermark("GP9", "D1", "1.0.98.2.0.255") is not None


def refused_alarm(journal, told):
    """Alarms of meters that were never heard before, until the reserve takes no more; the first that was refused."""
    for i in range(10_000):
        alarm = make_alarm(f"GP{i}", T0 + i)
        if journal.alarm(alarm).exception(10):
            return alarm
        told.append(alarm)
    pytest.fail("the reserve has no end")


def test_the_reserve_ends_too_and_says_so(opening):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    fill(journal)
    told, kept = [], []
    journal.on_alarm(told.append)
    first_refused = refused_alarm(journal, kept)
    assert told[-1] == first_refused  # told all the same
    with pytest.raises(DiskFull):
        journal.alarm(first_refused).result(5)
    assert told[-2:] == [first_refused] * 2  # it is not taken for known
    assert journal.status().full
    assert journal.status().refused >= 3
    assert journal.alarms_waiting(10_000) == kept
    journal.release(segments=[s.id for s in journal.segments(0, limit=100)])
    assert journal.alarm(first_refused).result(5) is True


def test_in_a_full_reserve_the_newest_alarm_of_an_event_stands_for_the_others(opening, killed):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    fill(journal)
    kept = []
    refused_alarm(journal, kept)
    # a restore and a repeat of what waits take the place of what they follow on
    back = make_alarm("GP7", T0 + 5_000, "restore")
    again = make_alarm("GP7", T0 + 6_000)
    other = make_alarm("GP9", T0 + 5_500, "restore")
    for alarm in (back, other, again):
        assert journal.alarm(alarm).result(5) is True
    assert journal.alarm(again).result(5) is False
    assert journal.alarm(kept[7]).result(5) is False  # merged is known all the same
    assert journal.alarm(make_alarm("GP9999", T0)).exception(5)
    for box in (journal, opening(killed(journal, "b"), max_bytes=512 * KIB)):
        waiting = {a.meter: a for a in box.alarms_waiting(10_000)}
        assert len(waiting) == len(box.alarms_waiting(10_000)) == len(kept)
        assert (waiting["GP7"].id, waiting["GP9"].id) == (again.id, other.id)
        assert waiting["GP7"].detail["merged"] == {
            "alarms": 2,
            "since": T0 + 7,
            "codes": {"last-gasp": 1, "restore": 1},
        }
        assert waiting["GP9"].detail["merged"]["codes"] == {"last-gasp": 1}
        assert waiting["GP8"] == kept[8]
    assert journal.status().merged == 3
    assert journal.verify().problems == ()


def test_repeats_that_waited_before_are_merged_when_the_reserve_is_full(opening):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    fill(journal)
    for i in range(10_000):  # three meters that flicker
        code = "restore" if i % 2 else "last-gasp"
        journal.alarm(make_alarm(f"GP{i % 3}", T0 + i, code)).result(10)
        if journal.status().merged:
            break
    status = journal.status()
    assert status.full
    assert status.merged == i - 2  # all but the newest of each
    waiting = journal.alarms_waiting(10_000)
    assert sorted(a.meter for a in waiting) == ["GP0", "GP1", "GP2"]
    assert sum(1 + a.detail["merged"]["alarms"] for a in waiting) == i + 1
    before = len(journal.alarms_waiting(10_000))
    kept = []
    refused_alarm(journal, kept)  # there is room for many others now
    assert len(kept) > 100
    assert len(journal.alarms_waiting(10_000)) == before + len(kept) - 3  # GP0 to GP2 once more


def test_samples_give_way_to_profile_rows_and_are_named_as_missing(opening):
    journal = opening(max_bytes=512 * KIB, alarm_reserve_bytes=64 * KIB)
    taken, _ = fill(journal, flags=((0, 96, int(Flag.SAMPLED)),))
    oldest = taken[0]
    assert journal.ledger("GP1")[0].captured == 96 * len(taken)
    assert journal.append(wild("GP2", 0), durable="now").result(5).new == 96
    entry = journal.ledger("GP1")[0]
    assert entry.captured < 96 * len(taken)
    assert entry.holes[0].cause == "journal-full"
    assert entry.holes[0].first == oldest.times[0]
    lost = 96 * len(taken) - entry.captured
    assert sum(h.rows for h in entry.holes) == lost
    assert rows_in(journal)[1] == 96 * len(taken) - lost + 96
    assert journal.verify().problems == ()


def test_hours_left_follow_the_rate(opening):
    clock = ManualClock()
    journal = opening(clock=clock, max_bytes=4 << 20, alarm_reserve_bytes=64 * KIB)
    assert journal.status().hours_left is None
    for i in range(20):
        clock.advance(3600)
        journal.append(wild("GP1", 96 * i), durable="now").result(5)
    status = journal.status()
    per_hour = status.bytes_waiting / 20
    expected = (status.max_bytes - status.reserve_bytes - status.used_bytes) / per_hour
    assert status.hours_left == pytest.approx(expected, rel=0.2)


CHILD = """
import pathlib, resource, signal, sys
from edge_core.clock import SystemClock
from edge_core.errors import DiskFull
from edge_core.journal import Journal, CounterStore
from tests.integration.journal.conftest import make_alarm, make_block, rows_in
from tests.integration.journal.test_journal_room import wild
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1])
journal = Journal.open(folder / "journal.db", clock=SystemClock())
counters = CounterStore.open(folder / "counters.db", clock=SystemClock())
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
taken = 0
while True:
    future = journal.append(wild("GP1", 96 * taken), durable="now")
    if future.exception(10):
        break
    taken += 1
assert isinstance(future.exception(), DiskFull), future.exception()
for i in range(5000):
    future = counters.prepare(b"ODC", f"{i:016x}")
    if future.exception(10):
        assert isinstance(future.exception(), DiskFull), future.exception()
        break
assert len(rows_in(journal)[0]) == 96 * taken
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.append(wild("GP1", 96 * taken), durable="now").result(10).new == 96
counters.prepare(b"ODC", "ab").result(10)
print("taken", taken + 1)
journal.close(); counters.close()
"""


def test_a_disk_that_takes_no_more_loses_nothing_and_works_again(opening, tmp_path):
    """The file size limit of the process stands in for the disk: SQLite's writes fail in the same places."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert signal.SIGXFSZ
    folder = tmp_path / "a"
    folder.mkdir()
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, timeout=25
    )
    assert out.returncode == 0, out.stderr[-3000:]
    taken = int(out.stdout.split()[1])
    journal = opening()
    rows, count = rows_in(journal)
    assert count == len(rows) == 96 * taken
    assert (("GP1", "D1", T0 + 95 * PERIOD, 0)) in rows
    assert journal.verify().problems == ()
