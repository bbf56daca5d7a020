import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.clock import ManualClock, SystemClock
from edge_core.errors import CounterExhausted, DataDirectoryBusy, LocalProtocolError
from edge_core.journal import CounterStore
from edge_core.journal.counters import JUMP

KNOWN = Path(__file__).parents[2] / "data" / "journals"
OURS, KEY = b"ODC00001", "ab" * 8
METER = b"GRX12345"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "counters.db"


@pytest.fixture
def opened(path):
    stores = []

    def open_(clock=None):
        stores.append(CounterStore.open(path, clock=clock or SystemClock()))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def use_all(counters):
    used = []
    while True:
        try:
            used.append(counters.next(OURS, KEY))
        except LocalProtocolError:
            return used


def test_nothing_is_used_before_it_is_reserved(opened):
    counters = opened()
    assert counters.was_created
    with pytest.raises(LocalProtocolError, match="reserved"):
        counters.next(OURS, KEY)
    counters.prepare(OURS, KEY, count=3).result()
    assert [counters.next(OURS, KEY) for _ in range(3)] == [1, 2, 3]


def test_a_range_ends(opened):
    counters = opened()
    counters.prepare(OURS, KEY, count=1).result()
    used = use_all(counters)
    assert used == list(range(1, len(used) + 1))
    counters.prepare(OURS, KEY, count=1).result()
    assert counters.next(OURS, KEY) == used[-1] + 1


def test_after_a_restart_the_rest_of_a_range_is_burnt(opened):
    counters = opened()
    counters.prepare(OURS, KEY, count=100).result()
    last = [counters.next(OURS, KEY) for _ in range(5)][-1]
    counters.close()
    counters = opened()
    assert not counters.was_created
    with pytest.raises(LocalProtocolError):
        counters.next(OURS, KEY)
    counters.prepare(OURS, KEY).result()
    assert counters.next(OURS, KEY) > last + 50


def test_the_meters_counter_is_respected_and_nothing_goes_back(opened):
    counters = opened()
    counters.prepare(OURS, KEY, at_least=70_000).result()
    assert counters.next(OURS, KEY) == 70_000
    counters.prepare(OURS, KEY, at_least=5).result()
    assert counters.next(OURS, KEY) == 70_001
    counters.raise_to(OURS, KEY, 70_050).result()  # within the range
    assert counters.next(OURS, KEY) == 70_050
    counters.raise_to(OURS, KEY, 200_000).result()
    assert counters.current(OURS, KEY) == 200_000
    counters.close()
    counters = opened()
    assert counters.current(OURS, KEY) > 200_000
    assert counters.current(OURS, "other") is None


def test_keys_have_counters_of_their_own(opened):
    counters = opened()
    counters.prepare(OURS, KEY).result()
    counters.prepare(OURS, "cd" * 8, at_least=900).result()
    assert counters.next(OURS, KEY) == 1
    assert counters.next(OURS, "cd" * 8) == 900


def test_the_end_of_the_counters_is_refused_before_it_comes(opened):
    counters = opened()
    with pytest.raises(CounterExhausted, match="change the key"):
        counters.prepare(OURS, KEY, at_least=2**32 - 500).result()
    counters.prepare(OURS, KEY, at_least=2**32 - 1500, count=200).result()
    assert counters.next(OURS, KEY) == 2**32 - 1500
    assert use_all(counters)[-1] <= 0xFFFF_FFFF
    with pytest.raises(CounterExhausted):
        counters.prepare(OURS, KEY, count=800).result()


def test_thousands_of_ranges_share_few_commits(opened, path):
    counters = opened()
    commits = []
    original = counters._group._commit
    counters._group._commit = lambda batch: (commits.append(len(batch)), original(batch))
    futures = [counters.prepare(OURS, f"{i:016x}") for i in range(3000)]
    for future in futures:
        future.result()
    assert len(commits) < 300
    assert sum(commits) == 3000


def test_association_counters_only_rise(opened):
    counters = opened()
    assert counters.accept(METER, KEY, "association", 0)
    assert not counters.accept(METER, KEY, "association", 0)
    assert counters.accept(METER, KEY, "association", 9)
    assert not counters.accept(METER, KEY, "association", 8)
    assert counters.accept(METER, KEY, "push", 8)  # another channel
    assert counters.accept(METER, "other", "association", 8)
    assert not counters.accept(METER, KEY, "association", -1)
    assert not counters.accept(METER, KEY, "association", 2**32)


@settings(max_examples=40, deadline=None)
@given(numbers=st.lists(st.integers(0, 200), max_size=60), seed=st.integers(0, 9))
def test_pushes_have_a_window_of_64(tmp_path_factory, numbers, seed):
    counters = CounterStore.open(tmp_path_factory.mktemp("c") / "counters.db", clock=SystemClock())
    try:
        seen, highest = set(), -1
        rng = random.Random(seed)
        for number in numbers:
            number += rng.choice((0, 0, 1000))
            expected = number not in seen and number > highest - 64
            assert counters.accept(METER, KEY, "push", number) is expected
            if expected:
                seen.add(number)
                highest = max(highest, number)
    finally:
        counters.close()


def test_what_was_accepted_is_refused_after_a_restart(opened):
    counters = opened()
    assert counters.accept(METER, KEY, "push", 50)
    assert counters.accept(METER, KEY, "push", 48)
    assert counters.accept(METER, KEY, "association", 7)
    counters.close()
    counters = opened()
    assert not counters.accept(METER, KEY, "push", 50)
    assert not counters.accept(METER, KEY, "push", 48)
    assert counters.accept(METER, KEY, "push", 49)
    assert not counters.accept(METER, KEY, "association", 7)


def test_flush_makes_peers_durable_with_a_clock_that_stands(opened, path):
    counters = opened(ManualClock())
    counters.accept(METER, KEY, "push", 5)
    counters.flush().result(5)
    import sqlite3

    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM push").fetchone() == (1,)
    db.close()


def test_one_process_at_a_time(opened, path):
    opened()
    with pytest.raises(DataDirectoryBusy, match="in use"):
        CounterStore.open(path, clock=SystemClock())


@pytest.mark.parametrize("damage", ["garbage", "page", "blob"])
def test_a_damaged_file_is_set_aside_and_said_so(opened, path, damage):
    counters = opened()
    for i in range(300):
        counters.prepare(OURS, f"{i:016x}")
    counters.flush().result()
    counters.close()
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 100)
    elif damage == "page":
        with path.open("r+b") as file:
            file.seek(3 * 1024)
            file.write(os.urandom(1024 * 8))
    else:
        import sqlite3

        db = sqlite3.connect(path)
        db.execute("UPDATE own SET body = x'010203' WHERE chunk = 1")
        db.commit()
        db.close()
    counters = opened()
    assert counters.was_created
    assert "set aside" in counters.was_damaged
    assert counters.current(OURS, "0" * 16) is None
    assert len(list((path.parent / "damaged").iterdir())) >= 1
    counters.prepare(OURS, KEY, at_least=65_536).result()
    assert counters.next(OURS, KEY) == 65_536


def test_a_new_epoch_jumps_once_and_for_good(opened):
    counters = opened()
    counters.settle_epoch(1_764_000_000).result()
    counters.prepare(OURS, KEY, count=100).result()
    before = [counters.next(OURS, KEY) for _ in range(5)][-1]
    counters.settle_epoch(1_764_000_000).result()  # the same: nothing happens
    assert counters.next(OURS, KEY) == before + 1
    counters.settle_epoch(1_764_000_001).result()
    after = [counters.next(OURS, KEY) for _ in range(94)]  # what was reserved goes on, higher up
    assert after == list(range(before + 2 + JUMP, before + 96 + JUMP))
    counters.close()
    counters = opened()
    counters.settle_epoch(1_764_000_001).result()
    counters.prepare(OURS, KEY).result()
    assert after[-1] < counters.next(OURS, KEY) < after[-1] + JUMP


def test_a_jump_after_a_restart_passes_all_that_was_reserved(opened):
    counters = opened()
    counters.prepare(OURS, KEY, count=100).result()
    last = use_all(counters)[-1]
    counters.close()
    counters = opened()
    counters.settle_epoch(1_764_000_001).result()
    assert counters.current(OURS, KEY) == last + 1 + JUMP
    assert counters.current(METER, KEY) is None


def test_a_jump_beside_reservations_leaves_each_what_it_asked_for(opened):
    counters = opened()
    for epoch in range(1, 200):
        jump = counters.settle_epoch(epoch)
        done = counters.prepare(OURS, KEY, count=40)
        done.result()
        jump.result()
        assert len({counters.next(OURS, KEY) for _ in range(40)}) == 40


def test_no_jump_passes_the_end_of_a_key(opened):
    counters = opened()
    counters.prepare(OURS, KEY, at_least=2**32 - 50_000).result()
    counters.settle_epoch(1).result()
    counters.settle_epoch(2).result()
    with pytest.raises(CounterExhausted):
        counters.prepare(OURS, KEY).result()


@pytest.mark.parametrize("name", sorted(p.name for p in KNOWN.glob("counters-*.db")))
def test_every_schema_ever_released_opens_and_opens_again(opened, path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(KNOWN / name, path)
    least = 1_000
    for _ in range(2):
        store = opened()
        assert store.was_damaged is None
        assert not store.was_created
        store.prepare(b"ODCTITLE", "ab" * 8).result(5)
        value = store.next(b"ODCTITLE", "ab" * 8)
        assert value > least
        least = value
        assert not store.accept(b"GRXTITLE", "ab" * 8, "push", 77)
        assert not store.accept(b"GRXTITLE", "ab" * 8, "association", 55)
        store.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 150), max_size=40),
    st.lists(st.integers(0, 150), max_size=40),
)
def test_a_push_that_another_process_accepted_is_a_replay(tmp_path_factory, theirs, ours):
    folder = tmp_path_factory.mktemp("windows")
    other = CounterStore.open(folder / "counters.db", clock=SystemClock())
    accepted = [c for c in theirs if other.accept(METER, KEY, "push", c)]
    other.close()
    mine = CounterStore.open(folder / "counters-push.db", clock=SystemClock())
    accepted += [c for c in ours if mine.accept(METER, KEY, "push", c)]
    mine.take_windows(folder / "counters.db")
    highest = max(accepted, default=-1)
    for counter in accepted:
        assert not mine.accept(METER, KEY, "push", counter)
    for counter in range(max(0, highest - 63), highest):
        if counter not in accepted:  # late, and never heard by anybody: none of these is lost
            assert mine.accept(METER, KEY, "push", counter)
    mine.close()
