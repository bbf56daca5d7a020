import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.journal import opening, store
from edge_core.journal.retention import (
    CHUNK,
    LONG,
    PROFILE,
    Generations,
    Released,
    pack_ids,
    unpack_ids,
)

DAY = 86_400


@pytest.fixture
def db(tmp_path):
    connection = store.connect(tmp_path / "x.db")
    store.migrate(connection, opening.schemas())
    yield connection
    connection.close()


def reloaded(db):
    out = Released()
    low = db.execute("SELECT value FROM meta WHERE key = 'low'").fetchone()
    out.load(db, low[0] if low else 0)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * CHUNK), st.integers(1, 2 * CHUNK), st.booleans()), max_size=8
    )
)
def test_released_ids_are_a_set_that_survives(spans):
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statement in (
        "meta(key TEXT PRIMARY KEY, value)",
        "released(chunk INTEGER PRIMARY KEY, bits BLOB)",
    ):
        db.execute(f"CREATE TABLE {statement}")
    head = 4 * CHUNK
    released, model = Released(), {0}
    released.load(db, 0)
    for first, count, saved in spans:
        ids = [i for i in range(first, first + count) if 0 < i <= head]
        fresh = released.add(ids, head)
        assert set(fresh) == set(ids) - model
        model |= set(ids)
        released.save(db)
        if saved:
            released.saved(0)
            assert released.fresh() == []
        else:
            released.unsaved()
    assert released.count() == len(model)
    for first in (1, CHUNK - 3, CHUNK, 2 * CHUNK + 7):
        expected = next((i for i in range(first, head + 1) if i not in model), None)
        assert released.next_waiting(first, head) == expected
    released.save(db)
    released.saved(0)
    again = reloaded(db)
    assert again.count() == len(model)
    assert all((i in again) == (i in model) for i in range(0, head, 97))
    db.close()


def test_ids_may_ride_along_with_a_segment():
    released = Released()
    released.add([5, 6, 7, 2], 10)
    riding = released.fresh()
    assert unpack_ids(pack_ids(riding)) == [2, 5, 6, 7]
    released.add([9], 10)  # while it is committed
    released.saved(len(riding))
    assert released.fresh() == [9]
    released.discard([9])
    assert released.fresh() == []
    assert 9 not in released
    assert unpack_ids(None) == unpack_ids(b"\xc1") == []


def test_marks_above_the_head_are_ignored(db):
    released = Released()
    released.load(db, 0)
    assert released.add([0, -3, 11, 10], 10) == [10]
    released.discard([10])
    assert 10 not in released
    assert released.count() == 1


def fill(db, generations, class_, segment, now, size=100):
    slot = generations.slot_for(db, class_, segment, now)
    db.execute(
        f"INSERT INTO seg{slot} VALUES (?, 0, 'interval', 1, 1, ?, 1, NULL, x'00')", (segment, now)
    )
    generations.filled(slot, segment, size)
    generations.commit()
    return slot


def test_a_generation_ends_by_age_and_by_size(db):
    generations = Generations({PROFILE: 80 * DAY, LONG: 400 * DAY}, 1 << 20)
    slots = [fill(db, generations, PROFILE, i, i * DAY) for i in range(1, 25)]
    assert slots == [0] * 10 + [1] * 10 + [2] * 4
    slots = [fill(db, generations, LONG, 100 + i, 0, size=20_000) for i in range(6)]
    assert slots == [10, 10, 10, 10, 11, 11]


def test_without_a_free_table_the_last_one_goes_on_filling(db):
    generations = Generations({PROFILE: 8 * DAY, LONG: DAY}, 1 << 20)
    slots = [fill(db, generations, PROFILE, i, i * DAY) for i in range(1, 30)]
    assert sorted(set(slots)) == list(range(10))
    assert slots[-1] == 9


def test_expiry_and_emptying(db):
    generations = Generations({PROFILE: 8 * DAY, LONG: 400 * DAY}, 1 << 20)
    released = Released()
    released.load(db, 0)
    for i in range(1, 7):
        fill(db, generations, PROFILE, i, i * DAY)
    assert [g.first for g in generations.expired(12 * DAY)] == [1, 2]
    assert generations.releasable(released) == []
    released.add([1, 2, 4], 6)
    assert [g.first for g in generations.releasable(released)] == [1, 2, 4]
    generations.empty(db, generations.releasable(released)[0])
    generations.rollback()
    assert [g.first for g in generations] == [1, 2, 3, 4, 5, 6]
    generations.empty(db, next(iter(generations)))
    generations.commit()
    assert [g.first for g in generations] == [2, 3, 4, 5, 6]
    again = Generations({PROFILE: 8 * DAY, LONG: 400 * DAY}, 1 << 20)
    assert again.load(db) == 6
    assert [g.first for g in again] == [2, 3, 4, 5, 6]


def test_leftovers_are_copied_over(db):
    generations = Generations({PROFILE: 8 * DAY, LONG: 400 * DAY}, 1 << 20)
    for i in range(1, 4):
        fill(db, generations, PROFILE, i, i * DAY)
    old = next(iter(generations))
    slot = generations.slot_for(db, PROFILE, 4, 3 * DAY + 1)
    generations.rescue(db, old, [1], slot)
    generations.empty(db, old)
    generations.commit()
    again = Generations({PROFILE: 8 * DAY, LONG: 400 * DAY}, 1 << 20)
    assert again.load(db) == 3
    holder = next(g for g in again if g.slot == slot)
    assert (holder.first, holder.last) == (1, 3)
    assert db.execute(f"SELECT id FROM seg{slot} ORDER BY id").fetchall() == [(1,), (3,)]
