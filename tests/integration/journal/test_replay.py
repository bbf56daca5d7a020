"""After a kill each meter's ledger is whole at the first question, however far the others have come."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_core.journal import store
from edge_core.journal.book import Book, Names
from edge_core.journal.replay import Replay
from edge_core.journal.retention import LONG, PROFILE, SAMPLES, Generations
from tests.integration.journal.conftest import INTERVAL, PERIOD, T0, make_block

METERS = 30


class Halfway:
    """The journal of a killed process, opened as the gateway does, but replayed by hand."""

    def __init__(self, path):
        self.db = store.connect(path, reader=True)
        names = Names()
        names.load(self.db)
        self.book = Book(names)
        generations = Generations(dict.fromkeys((PROFILE, LONG, SAMPLES), 1e9), 1 << 30)
        head = generations.load(self.db)
        meta = dict(self.db.execute("SELECT key, value FROM meta"))
        self.replay = Replay(self.db, names, self.book, generations, pytest.fail)
        self.replay.begin(int(meta.get("upto", 0)), head)

    def of(self, meter):
        return self.replay.entries(self.db, meter)


def fill(journal, seed):
    """Overlapping reads of many meters, two profiles, steps back, told watermarks, a snapshot somewhere between."""
    rng = random.Random(seed)
    at = dict.fromkeys(range(METERS), 0)
    for turn in range(8):
        for m in rng.sample(range(METERS), METERS // 3):
            first, rows = max(0, at[m] - rng.randint(0, 2)), rng.randint(1, 5)
            at[m] = first + rows
            journal.append(make_block(f"GP{m}", first, rows), watermark=T0 + 10 * at[m])
            if rng.random() < 0.2:
                journal.append(make_block(f"GP{m}", turn, 1, kind="midnight"))
            if rng.random() < 0.1:
                back = [T0 + PERIOD * (first + 1), T0 + PERIOD * first]
                journal.append(make_block(f"GP{m}", times=back, columns=([1, 2],) * 4, salt=turn))
        journal.flush().result(10)
        if turn == 3:
            journal._submit("snapshot").result(10)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_before_during_and_after_the_replay_is_the_same(opening, killed, seed):
    journal = opening()
    fill(journal, seed)
    path = journal.path.parent.parent / killed(journal, "b") / "journal.db"
    wanted = [journal.ledger(f"GP{m}") for m in range(METERS)]
    halfway, rng = Halfway(path), random.Random(seed)

    def views():
        return [
            [e.view(f"GP{m}", "D1", profile) for _, profile, e in halfway.of(f"GP{m}")]
            for m in range(METERS)
        ]

    assert not halfway.book.complete
    assert views() == wanted
    while halfway.replay.step():
        m = rng.randrange(METERS)
        assert [e.view(f"GP{m}", "D1", p) for _, p, e in halfway.of(f"GP{m}")] == wanted[m]
    assert halfway.book.complete
    assert halfway.replay.done.is_set()
    assert views() == wanted
    halfway.db.close()


def test_the_watermark_of_one_profile_and_of_meters_that_nobody_knows(opening, killed):
    journal = opening()
    fill(journal, 1)
    path = journal.path.parent.parent / killed(journal, "b") / "journal.db"
    halfway = Halfway(path)
    for m in range(METERS):
        key = (journal._names.known(f"GP{m}", "D1"), INTERVAL.profile)
        entry = halfway.replay.entry(halfway.db, f"GP{m}", key)
        assert entry.watermark == journal.watermark(f"GP{m}", "D1", INTERVAL.profile)
        assert halfway.replay.entry(halfway.db, f"GP{m}", (key[0], "1.0.99.9.0.255")) is None
    assert halfway.of("GP999") == []
    halfway.db.close()


def test_a_segment_that_rotted_costs_its_rows_only(opening, killed):
    journal = opening()
    fill(journal, 2)
    path = journal.path.parent.parent / killed(journal, "b") / "journal.db"
    sound = journal.head() - 6
    db = store.connect(path)
    for generation in journal._generations.committed():
        db.execute(f"UPDATE seg{generation.slot} SET body = x'0102' WHERE id > ?", (sound,))
    db.close()
    halfway = Halfway(path)
    before = [halfway.of(f"GP{m}") for m in range(METERS)]
    halfway.replay.finish()
    views = [[e.view("", "", p) for _, p, e in found] for found in before]
    after = [[e.view("", "", p) for _, p, e in halfway.of(f"GP{m}")] for m in range(METERS)]
    assert views == after
    captured = sum(entry.captured for found in before for *_, entry in found)
    wanted = sum(e.captured for m in range(METERS) for e in journal.ledger(f"GP{m}"))
    assert 0 < captured < wanted
    halfway.db.close()


@pytest.mark.parametrize("seed", range(4))
def test_many_ask_while_the_writer_replays(opening, killed, seed):
    journal = opening()
    fill(journal, seed)
    path = journal.path.parent.parent / killed(journal, "b") / "journal.db"
    wanted = [[e.captured for e in journal.ledger(f"GP{m}")] for m in range(METERS)]
    halfway = Halfway(path)
    start = threading.Barrier(4)

    def ask(turn):
        db = store.connect(path, reader=True)
        start.wait(10)
        order = random.Random(turn).sample(range(METERS), METERS)
        found = {m: [e.captured for *_, e in halfway.replay.entries(db, f"GP{m}")] for m in order}
        db.close()
        return [found[m] for m in range(METERS)]

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, turn) for turn in range(3)]
        start.wait(10)
        halfway.replay.finish()
        assert [future.result(20) for future in asked] == [wanted] * 3
    halfway.db.close()
