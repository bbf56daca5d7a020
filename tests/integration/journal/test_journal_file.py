import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import msgspec
import pytest

from edge_core.clock import ManualClock, SystemClock
from edge_core.domain import Flag
from edge_core.errors import DataDirectoryBusy, JournalError
from edge_core.journal import Appended, Hole, Journal
from tests.integration.journal.conftest import (
    DAILY,
    INTERVAL,
    PERIOD,
    T0,
    make_alarm,
    make_block,
    rows_in,
)

pytestmark = pytest.mark.integration
PROFILE = INTERVAL.profile


def put(journal, *blocks, **options):
    futures = [journal.append(b, **options) for b in blocks]
    journal.flush().result()
    return [f.result() for f in futures]


# ---- appending ---------------------------------------------------------------------------------


def test_what_is_answered_is_read_back(opening):
    journal = opening()
    b = make_block(q={"offset": 2}, flags=((1, 2, 4),), multiplier=40)
    assert put(journal, b) == [Appended(4, 0, 0)]
    (segment,) = journal.segments(0)
    assert (segment.id, segment.lane, segment.kind) == (1, "live", "interval")
    assert (segment.blocks, segment.readings) == (1, 16)
    assert journal.blocks(1) == [b]
    assert journal.head() == 1
    assert journal.watermark("GP1", "D1", PROFILE) == T0 + 3 * PERIOD


def test_only_new_rows_are_kept_whatever_the_order(opening):
    journal = opening()
    assert put(journal, make_block(first=4)) == [Appended(4, 0, 0)]
    assert put(journal, make_block(first=2)) == [Appended(2, 2, 0)]
    assert put(journal, make_block(first=0, rows=9)) == [Appended(3, 6, 0)]
    assert put(journal, make_block(first=0, rows=9)) == [Appended(0, 9, 0)]
    _, count = rows_in(journal)
    assert count == 9
    assert journal.head() == 3


def test_the_same_block_twice_in_one_commit_is_kept_once(opening):
    journal = opening()
    assert put(journal, make_block(), make_block()) == [Appended(4, 0, 0), Appended(0, 4, 0)]


def test_other_values_are_published_and_counted(opening):
    journal = opening()
    put(journal, make_block())
    other = make_block(salt=5, read_at=T0 + 900)
    assert put(journal, other) == [Appended(0, 0, 4)]
    rows, count = rows_in(journal)
    assert count == 8
    assert rows["GP1", "D1", T0, 0] == tuple(c[0] for c in other.columns)
    assert journal.status().conflicts == 4


def test_another_device_begins_a_ledger_of_its_own(opening):
    journal = opening()
    put(journal, make_block())
    assert journal.watermark("GP1", "D2", PROFILE) is None
    assert put(journal, make_block(device="D2")) == [Appended(4, 0, 0)]
    assert [e.device for e in journal.ledger("GP1")] == ["D1", "D2"]
    assert journal.ledger("nobody") == []


def test_kinds_and_lanes_are_segments_of_their_own(opening):
    journal = opening()
    put(journal, make_block("A"), make_block("B"), make_block("A", kind="midnight", rows=2))
    put(journal, make_block("C"), lane="backlog")
    kinds = [(s.kind, s.lane, s.blocks) for s in journal.segments(0)]
    assert kinds == [("interval", "live", 2), ("midnight", "live", 1), ("interval", "backlog", 1)]
    assert [s.id for s in journal.segments(0, lane="backlog")] == [3]
    assert [s.id for s in journal.segments(1, lane="live")] == [2]
    assert [s.id for s in journal.segments(0, limit=2)] == [1, 2]


def test_a_large_group_becomes_several_segments(opening):
    journal = opening()
    put(journal, *(make_block(f"GP{i}", rows=96) for i in range(30)))
    sizes = [s.readings for s in journal.segments(0)]
    assert sum(sizes) == 30 * 96 * 4
    assert max(sizes) <= 4000


def test_a_watermark_may_be_told(opening):
    journal = opening()
    put(journal, make_block(), watermark=T0)
    assert journal.watermark("GP1", "D1", PROFILE) == T0
    empty = make_block(rows=0)
    assert put(journal, empty, watermark=T0 + 9000) == [Appended(0, 0, 0)]
    assert journal.watermark("GP1", "D1", PROFILE) == T0 + 9000
    assert journal.segments(1) == []


def test_a_block_that_contradicts_itself_is_refused_at_the_door(opening):
    journal = opening()
    with pytest.raises(ValueError, match="columns"):
        journal.append(msgspec.structs.replace(make_block(), columns=([1] * 4,)))
    with pytest.raises(TypeError):
        journal.append(msgspec.structs.replace(make_block(), columns=([1.5] * 4,) * 4))


def test_lazy_rows_wait_for_weight_or_time(opening):
    clock = ManualClock()
    journal = opening(clock=clock)
    few = [journal.append(make_block(f"A{i}")) for i in range(10)]
    journal.append(make_block("B"), durable="now").result(5)
    assert not any(f.done() for f in few)  # they do not join a small commit
    clock.advance(61)
    assert [f.result(5).new for f in few] == [4] * 10
    many = [journal.append(make_block(f"C{i}")) for i in range(63)]
    assert [f.result(5).new for f in many] == [4] * 63  # 1,008 readings


def test_soon_is_within_200_ms(opening):
    clock = ManualClock()
    journal = opening(clock=clock)
    future = journal.append(make_block(), durable="soon")
    note = journal.note("replies", "x", {})
    clock.advance(0.05)
    assert not future.done()
    clock.advance(0.06)  # and the rest of the 200 ms is for the commit itself
    assert future.result(5).new == 4
    assert note.result(5) == 1


async def test_futures_serve_asyncio(opening):
    journal = opening()
    futures = [
        asyncio.wrap_future(journal.append(make_block(f"M{i}"), durable="soon")) for i in range(9)
    ]
    futures[0].cancel()
    await asyncio.sleep(0)
    assert [a.new for a in await asyncio.gather(*futures[1:])] == [4] * 8
    assert rows_in(journal)[1] == 36  # what was handed over is kept, whoever waits


def test_closing_commits_what_is_queued_and_then_refuses(opening):
    journal = opening()
    future = journal.append(make_block())
    journal.close()
    assert future.result(0).new == 4
    with pytest.raises(JournalError, match="closed"):
        journal.append(make_block())
    again = opening()
    assert rows_in(again)[1] == 4


def test_many_threads_at_once(opening):
    journal = opening()
    errors = []

    def work(n):
        try:
            for i in range(20):
                appended = journal.append(make_block(f"T{n}", first=2 * i), durable="now").result(
                    10
                )
                assert appended == Appended(4 if i == 0 else 2, 0 if i == 0 else 2, 0)
                journal.watermark(f"T{n}", "D1", PROFILE)
                journal.ledger(f"T{n}")
                journal.segments(0, limit=5)
                journal.status()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert rows_in(journal)[1] == 6 * 42
    assert journal.status().commits <= 6 * 20 + 5


def test_subscribers_hear_of_commits(opening):
    journal = opening()
    heard = threading.Event()
    journal.on_commit(lambda: 1 / 0)  # one that fails harms nobody
    journal.on_commit(heard.set)
    journal.append(make_block(), durable="now").result(5)
    assert heard.wait(5)


# ---- a kill ------------------------------------------------------------------------------------


def test_the_ledger_is_there_after_a_kill(opening, killed):
    journal = opening()
    for i in range(5):
        put(journal, *(make_block(f"GP{m}", first=4 * i) for m in range(20)))
    put(journal, make_block("GP3", rows=0), watermark=T0 + 10**6)
    journal.note_gap("GP4", "D1", PROFILE, T0 + 20 * PERIOD, T0 + 22 * PERIOD, "line-silent")
    journal.flush().result()
    before = [journal.ledger(f"GP{m}") for m in range(20)]
    again = opening(killed(journal, "b"))
    assert [again.ledger(f"GP{m}") for m in range(20)] == before
    assert again.ledger("GP4")[0].holes == (
        Hole(T0 + 20 * PERIOD, T0 + 22 * PERIOD, 3, "line-silent"),
    )
    assert put(again, make_block("GP7", first=18, rows=4)) == [Appended(2, 2, 0)]


def test_a_ledger_that_was_never_saved_is_made_again(opening, killed):
    journal = opening()
    put(journal, make_block("GP1"), watermark=T0 + PERIOD)
    again = opening(killed(journal, "b"))
    assert again.watermark("GP1", "D1", PROFILE) == T0 + PERIOD
    assert again.ledger("GP1") == journal.ledger("GP1")


def test_a_step_back_survives_a_kill(opening, killed):
    """The step itself, the rows of the second pass, and where the buffer ended."""
    journal = opening()
    values = {(i, 0): 100 + i for i in range(10)} | {(i, 1): 500 + i for i in range(5, 12)}

    def piece(*rows):
        stamps = [T0 + i * PERIOD for i, _ in rows]
        return make_block(times=stamps, columns=tuple([values[r] for r in rows] for _ in range(4)))

    first = [(i, 0) for i in range(10)]
    second = [(i, 1) for i in range(5, 12)]
    assert put(journal, piece(*first)) == [Appended(10, 0, 0)]
    assert put(journal, piece((9, 0), *second[:2])) == [Appended(2, 1, 0)]
    journal = opening(killed(journal, "b"))
    assert put(journal, piece(*second[1:3])) == [Appended(1, 1, 0)]
    journal = opening(killed(journal, "c"))
    values |= {(10, 0): 510, (11, 0): 511}
    assert put(journal, piece(*second[2:5], (10, 0))) == [Appended(3, 1, 0)]
    journal = opening(killed(journal, "d"))
    everything = piece((9, 0), *second[:5], (10, 0), (11, 0))
    everything = msgspec.structs.replace(everything, occ=((5, 1),))
    assert put(journal, everything) == [Appended(1, 7, 0)]
    rows, count = rows_in(journal)
    assert count == 17
    assert {(int((k[2] - T0) / PERIOD), k[3]): v[0] for k, v in rows.items()} == {
        k: v for k, v in values.items() if k not in {(10, 1), (11, 1)}
    }


def test_segment_and_note_ids_are_never_used_twice(opening, killed):
    clock = ManualClock()
    journal = opening(clock=clock, keep_acked_s=80)
    put(journal, make_block())
    number = journal.note("replies", "a", {"x": 1})
    journal.flush().result()
    journal.release(segments=[1], notes=[number.result()])
    for i in range(1, 4):
        clock.advance(7200)
        put(journal, make_block(first=4 * i))
        journal.release(segments=[i + 1])
        journal.flush().result()
    again = opening(killed(journal, "b"), clock=clock)
    assert again.blocks(1) == []  # freed
    assert again.head() == 4
    put(again, make_block(first=100))
    assert again.segments(0)[0].id == 5
    again_number = again.note("replies", "b", {})
    again.flush().result()
    assert again_number.result() == number.result() + 1


# ---- alarms and notes --------------------------------------------------------------------------


def test_an_alarm_is_told_at_once_and_durable_beside(opening, killed):
    journal = opening()
    told = []
    journal.on_alarm(lambda _: 1 / 0)
    journal.on_alarm(told.append)
    alarm = make_alarm()
    first = journal.alarm(alarm)
    assert told == [alarm]
    second = journal.alarm(alarm)
    assert (first.result(5), second.result(5)) == (True, False)
    assert told == [alarm]
    assert journal.alarms_waiting() == [alarm]
    again = opening(killed(journal, "b"))
    again.on_alarm(told.append)
    assert again.alarm(alarm).result(5) is False
    assert told == [alarm]
    assert again.alarms_waiting() == [alarm]


def test_a_released_alarm_is_still_known(opening):
    journal = opening()
    alarms = [make_alarm(at=T0 + i) for i in range(5)]
    for alarm in alarms:
        journal.alarm(alarm)
    journal.flush().result()
    released = journal.release(alarms=[alarms[0].id, alarms[3].id, "unknown"])
    assert journal.alarms_waiting() == [alarms[1], alarms[2], alarms[4]]  # before it is durable
    journal.flush().result()
    assert released.result(5) is None
    assert journal.alarms_waiting(2) == [alarms[1], alarms[2]]
    journal.close()
    journal = opening()
    assert journal.alarm(alarms[0]).result(5) is False
    assert journal.alarms_waiting() == [alarms[1], alarms[2], alarms[4]]
    assert journal.status().alarms_waiting == 3


def test_an_id_that_is_no_hash_serves_too(opening):
    journal = opening()
    alarm = msgspec.structs.replace(make_alarm(), id="inferred|feeder-12|29400000")
    assert journal.alarm(alarm).result(5) is True
    journal.release(alarms=[alarm.id])
    journal.flush().result()
    assert journal.alarms_waiting() == []
    assert journal.alarm(alarm).result(5) is False


def test_notes_wait_in_order(opening):
    journal = opening()
    ids = [journal.note("replies", f"c{i}", {"state": "done", "n": i}) for i in range(4)]
    journal.flush().result()
    ids = [f.result() for f in ids]
    assert [n.sub for n in journal.notes_waiting()] == ["c0", "c1", "c2", "c3"]
    assert journal.notes_waiting(ids[1], 1)[0].body == {"state": "done", "n": 2}
    journal.release(notes=ids[:3])
    assert [n.id for n in journal.notes_waiting()] == ids[3:]
    journal.flush().result()
    assert [n.id for n in journal.notes_waiting()] == ids[3:]


# ---- releasing ---------------------------------------------------------------------------------


def test_a_release_holds_from_now_on_and_for_good(opening, killed):
    journal = opening()
    for i in range(6):
        put(journal, make_block(f"GP{i}"))
    journal.release(segments=[2, 3, 99, 2])
    assert [s.id for s in journal.segments(0)] == [1, 4, 5, 6]
    assert [s.id for s in journal.segments(0, everything=True)] == [1, 2, 3, 4, 5, 6]
    assert journal.blocks(2) == [make_block("GP1")]
    early = killed(journal, "early")
    journal.flush().result()
    late = killed(journal, "late")
    assert [s.id for s in opening(early).segments(0)] == [1, 2, 3, 4, 5, 6]  # a resend
    again = opening(late)
    assert [s.id for s in again.segments(0)] == [1, 4, 5, 6]
    assert again.status().segments_waiting == 4
    assert put(again, make_block("GP1")) == [Appended(0, 4, 0)]  # still known


def test_what_is_set_aside_waits_for_a_late_ack(opening, killed):
    journal = opening()
    alarm = make_alarm()
    for i in range(3):
        put(journal, make_block(f"GP{i}"))
    journal.alarm(alarm)
    note = journal.note("completeness", "", {"due": 4})
    journal.flush().result()
    journal.set_aside(
        "cloud-refused",
        "schema-invalid",
        segments=[2, 77],
        alarms=[alarm.id],
        notes=[note.result()],
    )
    assert [s.id for s in journal.segments(0)] == [1, 3]
    journal.flush().result()
    journal = opening(killed(journal, "b"))
    assert [s.id for s in journal.segments(0)] == [1, 3]
    assert (journal.alarms_waiting(), journal.notes_waiting()) == ([], [])
    assert [(a.what, a.cause, a.why) for a in journal.aside()] == [
        ("segment", "cloud-refused", "schema-invalid"),
        ("alarm", "cloud-refused", "schema-invalid"),
        ("note", "cloud-refused", "schema-invalid"),
    ]
    assert journal.blocks(2) == [make_block("GP1")]
    assert journal.status().aside == 3
    assert journal.status().segments_waiting == 2
    journal.release(segments=[2], alarms=[alarm.id])
    journal.flush().result()
    assert [a.what for a in journal.aside()] == ["note"]
    assert journal.alarm(alarm).result(5) is False


def test_rows_are_found_again_for_a_re_request(opening):
    journal = opening()
    for i in range(4):
        put(journal, make_block("GP1", first=4 * i), make_block("GP2", first=4 * i))
    put(journal, make_block("GP1", kind="midnight", rows=2))
    journal.release(segments=[1, 2])
    since, until = T0 + 3 * PERIOD, T0 + 9 * PERIOD
    found = list(journal.find("GP1", kind="interval", since=since, until=until))
    times = [t for b in found for t in b.times]
    assert times == list(range(since, until + 1, PERIOD))
    assert {b.meter for b in found} == {"GP1"}
    assert [b.kind for b in journal.find("GP1", kind="midnight")] == ["midnight"]


# ---- retention ---------------------------------------------------------------------------------


def test_acked_rows_stay_for_a_while_and_midnights_longer(opening):
    clock = ManualClock()
    day = 86_400
    journal = opening(clock=clock, keep_acked_s=8 * day, keep_long_s=40 * day)
    for i in range(30):
        put(journal, make_block(first=96 * i, rows=4), make_block(kind="midnight", first=i, rows=1))
        if i != 2:
            journal.release(segments=[2 * i + 1, 2 * i + 2])
        clock.advance(day)
    put(journal, make_block(first=96 * 30))
    kept = [s.id for s in journal.segments(0, everything=True) if s.kind == "interval"]
    assert 5 in kept  # not acked, copied over
    assert kept[1] > 2 * 15
    assert kept[-10:] == sorted(kept[-10:])
    assert [s.id for s in journal.segments(0, lane="live")] == [5, 6, 61]
    assert len([s for s in journal.segments(0, everything=True) if s.kind == "midnight"]) == 30
    assert journal.verify().problems == ()


# ---- epochs, locks, schemas --------------------------------------------------------------------


def test_an_epoch_rises_with_the_machine_and_on_demand(opening, tmp_path):
    clock = ManualClock()
    (tmp_path / "machine-id").write_text("aaaa\n")
    journal = opening(clock=clock)
    first = journal.epoch
    assert first == int(clock.now())
    journal.close()
    clock.advance(100)
    journal = opening(clock=clock)
    assert journal.epoch == first
    renewed = journal.renew_epoch()
    assert renewed == first + 100
    assert journal.renew_epoch() == renewed + 1
    journal.close()
    (tmp_path / "machine-id").write_text("bbbb\n")
    clock.civil -= 10**9  # a clock without battery
    journal = opening(clock=clock)
    assert journal.epoch == renewed + 2
    journal.close()
    for file in tmp_path.glob("a/journal.db"):
        file.unlink()
    assert opening(clock=clock).epoch == renewed + 3  # the lock file remembers


def test_a_copy_begins_a_new_epoch_and_the_original_does_not(opening, tmp_path):
    clock = ManualClock()
    journal = opening(clock=clock)
    first = journal.epoch
    assert journal.was_copied is None
    journal.close()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    journal = opening(clock=clock)
    assert (journal.epoch, journal.was_copied) == (first, None)
    journal.close()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "copy").rename(tmp_path / "a")
    journal = opening(clock=clock)
    assert journal.epoch == first + 1
    assert "copy" in journal.was_copied
    journal.close()
    journal = opening(clock=clock)
    assert (journal.epoch, journal.was_copied) == (first + 1, None)


def test_two_processes_on_one_file(opening, tmp_path):
    journal = opening()
    with pytest.raises(DataDirectoryBusy, match="in use by another process"):
        Journal.open(journal.path, clock=SystemClock())
    code = (
        "import sys, pathlib; from edge_core.journal import Journal; from edge_core.clock import SystemClock\n"
        "from edge_core.errors import DataDirectoryBusy\n"
        "try: Journal.open(pathlib.Path(sys.argv[1]), clock=SystemClock())\n"
        "except DataDirectoryBusy as e: print('busy:', e)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(journal.path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("busy:")
    journal.close()
    opening()


def test_a_journal_of_a_newer_release_is_used_as_it_is(opening):
    journal = opening()
    put(journal, make_block())
    path = journal.path
    journal.close()
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE note ADD COLUMN later TEXT")
    db.execute("CREATE TABLE news(x)")
    db.execute("PRAGMA user_version = 7")
    db.close()
    journal = opening()
    assert journal.was_damaged is None
    assert put(journal, make_block(first=2)) == [Appended(2, 2, 0)]
    assert journal.note("replies", "a", {}).result(5) == 1
    journal.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (7,)
    db.close()


def test_a_segment_of_a_newer_codec_is_left_pending_and_counted(opening):
    journal = opening()
    put(journal, make_block())
    put(journal, make_block(first=4))
    path = journal.path
    journal.close()
    db = sqlite3.connect(path)
    (body,) = db.execute("SELECT body FROM seg0 WHERE id = 1").fetchone()
    db.execute("UPDATE seg0 SET codec = 99, body = ? WHERE id = 1", (b"\x63" + body[1:],))
    db.commit()
    db.close()
    journal = opening()
    with pytest.raises(JournalError, match="newer"):
        journal.blocks(1)
    assert [s.id for s in journal.segments(0)] == [2]
    assert journal.status().unreadable == 1
    assert journal.status().segments_waiting == 2


def test_files_are_for_their_owner_only(opening):
    journal = opening()
    put(journal, make_block())
    for file in journal.path.parent.iterdir():
        assert os.stat(file).st_mode & 0o077 == 0, file


def test_samples_and_profile_rows_are_kept_apart(opening):
    journal = opening()
    put(journal, make_block(), make_block("MB1", flags=((0, 4, int(Flag.SAMPLED)),)))
    assert [s.blocks for s in journal.segments(0)] == [1, 1]
    assert put(journal, make_block("MB1", salt=9, flags=((0, 4, int(Flag.SAMPLED)),))) == [
        Appended(0, 4, 0)
    ]


def test_verify_counts_everything(opening):
    journal = opening()
    put(journal, make_block(), make_block(kind="midnight", layout=DAILY))
    journal.alarm(make_alarm()).result(5)
    found = journal.verify()
    assert (found.segments, found.readings, found.alarms, found.notes) == (2, 20, 1, 0)
    assert found.problems == ()
