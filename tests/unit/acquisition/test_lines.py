"""Lanes: priorities, suspects beside the others, lingering visits, serial lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_core.acquisition.lines import PATIENCE_FACTOR, SHARE, STALL_FACTOR, Lane, Turn
from edge_core.schedule.agenda import Priority


def started(lane: Lane[str], now: float = 0.0) -> list[Turn[str]]:
    out = []
    while (turn := lane.take(now)) is not None:
        out.append(turn)
    return out


def test_priorities_go_first_and_equals_in_order_of_arrival():
    lane: Lane[str] = Lane(1)
    for priority, meter in (
        (Priority.INTERVAL, "A"),
        (Priority.HOUSEKEEPING, "B"),
        (Priority.INTERVAL, "C"),
        (Priority.ON_DEMAND, "D"),
        (Priority.MIDNIGHT, "E"),
        (Priority.BACKFILL, "F"),
    ):
        lane.put(priority, meter, "", suspect=False)
    order = []
    while (turn := lane.take(0)) is not None:
        order.append(turn.meter)
        assert lane.take(0) is None  # one slot
        lane.end(turn, 0, good=True)
    assert order == ["D", "E", "A", "C", "F", "B"]


def test_suspects_have_a_quarter_beside_the_slots_of_the_others():
    lane: Lane[str] = Lane(8)
    for n in range(20):
        lane.put(3, f"dead {n}", "", suspect=True)
    for n in range(20):
        lane.put(3, f"well {n}", "", suspect=False)
    turns = started(lane)
    assert sum(t.suspect for t in turns) == 1  # while others wait
    assert sum(not t.suspect for t in turns) == 8
    while any(not t.suspect for t in turns):
        turn = next(t for t in turns if not t.suspect)
        turns.remove(turn)
        lane.end(turn, 1, good=True)
        turns += started(lane, 1)
    suspects = sum(t.suspect for t in turns)
    assert suspects == 2  # a quarter when nobody else waits
    assert lane.used == 0


def test_on_a_serial_line_suspects_wait_for_silence_and_else_have_their_share():
    lane: Lane[str] = Lane(1)
    lane.put(3, "dead", "", suspect=True)
    now, spent, others = 0.0, 0.0, 0
    lane.end(lane.take(0), 10, good=False)  # nobody else: it may
    now = 10.0
    while now < 4000:
        lane.put(3, "dead", "", suspect=True)
        lane.put(3, "well", "", suspect=False)
        while (turn := lane.take(now)) is not None:
            took = 10.0 if turn.suspect else 1.0
            spent += took if turn.suspect else 0
            others += not turn.suspect
            now += took
            lane.end(turn, now, good=not turn.suspect)
            if not turn.suspect:
                break
    assert 0 < spent / now <= SHARE * 1.2
    assert others > 3800


def full(slots: int, waiting: int) -> tuple[Lane[str], list[Turn[str]]]:
    """A lane that knows how fast its meters answer, its slots taken at 0 by meters that do not."""
    lane: Lane[str] = Lane(slots)
    for _ in range(300):
        lane.put(3, "M", "", suspect=False)
        turn = lane.take(-10.0)
        assert turn is not None
        lane.answered(turn, -9.9)
        lane.end(turn, -9.8, good=True)
    for n in range(slots + waiting):
        lane.put(3, f"M{n}", "", suspect=False)
    return lane, started(lane, 0.0)


def test_a_line_full_of_silent_meters_is_free_again_when_nothing_stirs():
    lane, dead = full(8, 8)
    assert len(dead) == 8
    wait_s = lane.look_in(0.0)
    assert wait_s is not None
    assert wait_s <= STALL_FACTOR * 0.1 + 1e-6
    assert lane.relieve(wait_s - 0.01) == []
    assert lane.used == 8
    assert lane.relieve(wait_s) == []
    assert (lane.used, lane.lingering) == (0, 8)
    assert [t.meter for t in started(lane, wait_s)] == [f"M{n}" for n in range(8, 16)]
    assert lane.look_in(wait_s) is None  # nobody waits


def test_a_few_silent_meters_hand_their_slots_on_while_others_answer():
    lane, turns = full(8, 40)
    dead, well = turns[:2], turns[2:]
    now = 0.0
    while not all(turn.lingering for turn in dead):
        now += 0.1
        for turn in well:
            lane.answered(turn, now)
            lane.end(turn, now, good=True)
        well = started(lane, now)
        lane.relieve(now)
        assert now < 1
    assert now <= PATIENCE_FACTOR * 0.1 + 0.11
    well += started(lane, now)
    assert sum(not turn.lingering for turn in well) == 8


def test_who_answers_after_all_has_its_slot_back_and_is_not_put_off():
    lane, slow = full(4, 4)
    lane.relieve(1.0)
    others = started(lane, 1.0)
    assert len(others) == 4
    lane.answered(slow[0], 1.1)
    assert (lane.used, lane.lingering) == (5, 3)
    lane.put(3, "next", "", suspect=False)
    assert lane.take(1.1) is None  # not before two have ended
    lane.end(slow[0], 1.2, good=True)
    assert lane.take(1.2) is None
    lane.end(others[0], 1.2, good=True)
    assert lane.take(1.2) is not None


def test_beyond_as_many_as_slots_the_longest_is_put_off():
    lane, first = full(4, 8)
    assert lane.relieve(1.0) == []
    second = started(lane, 1.0)
    assert len(second) == 4
    off = lane.relieve(2.0)
    assert off == first  # they have lingered for long
    assert all(turn.put_off for turn in off)
    for turn in off:
        lane.end(turn, 2.0, good=False)
        lane.put(3, turn.meter, "", suspect=True)
    assert len(started(lane, 2.0)) >= 4
    assert lane.lingering == 4


def test_nobody_is_put_off_who_has_not_had_its_time():
    lane, _ = full(4, 8)
    lane.relieve(0.25)
    started(lane, 0.25)
    assert lane.relieve(0.5) == []
    assert lane.lingering == 4
    assert lane.used == 4


def test_on_a_narrow_line_nothing_lingers():
    lane: Lane[str] = Lane(1)
    lane.put(3, "M", "", suspect=False)
    turn = lane.take(0)
    lane.put(3, "N", "", suspect=False)
    assert turn is not None
    assert lane.look_in(100) is None
    assert lane.relieve(100) == []
    assert lane.used == 1
    lane.answered(turn, 101)
    lane.end(turn, 102, good=True)
    assert lane.used == 0


def test_patience_follows_what_calls_usually_take():
    lane: Lane[str] = Lane(10)
    for n in range(200):
        lane.put(3, "M", "", suspect=False)
        turn = lane.take(n)
        assert turn is not None
        lane.answered(turn, n + 4.0)
        lane.end(turn, n + 5.0, good=True)
    for n in range(20):
        lane.put(3, f"M{n}", "", suspect=False)
    started(lane, 300.0)
    wait_s = lane.look_in(300.0)
    assert wait_s is not None
    assert 4 < wait_s <= PATIENCE_FACTOR * 4 + 1e-6


def test_who_is_urgent_is_told_only_when_no_slot_is_free():
    lane: Lane[str] = Lane(1)
    lane.put(Priority.BACKFILL, "long", "", suspect=False)
    turn = lane.take(0)
    assert not lane.urgent(turn.priority)
    lane.put(Priority.HOUSEKEEPING, "later", "", suspect=False)
    assert not lane.urgent(turn.priority)
    lane.put(Priority.ON_DEMAND, "now", "", suspect=False)
    assert lane.urgent(turn.priority)
    lane.end(turn, 1, good=True)
    assert not lane.urgent(turn.priority)


@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(
            st.sampled_from(["put", "suspect", "take", "end", "bad", "answer", "relieve"]),
            st.integers(0, 5),
        ),
        max_size=120,
    ),
)
def test_slots_are_never_lost_nor_overdrawn(slots: int, steps: list[tuple[str, int]]):
    lane: Lane[int] = Lane(slots)
    live: list[Turn[int]] = []
    now, waiting = 0.0, 0
    for what, number in steps:
        now += number
        if what in ("put", "suspect"):
            lane.put(number, "M", number, suspect=what == "suspect")
            waiting += 1
        elif what == "take":
            turn = lane.take(now)
            if turn is not None:
                live.append(turn)
                waiting -= 1
        elif what == "relieve":
            wait_s = lane.look_in(now)
            off = lane.relieve(now)
            assert not off or wait_s is not None
            for turn in off:
                live.remove(turn)
                lane.end(turn, now, good=False)
                lane.put(turn.priority, "M", turn.work, suspect=True)
                waiting += 1
        elif live:
            turn = live[number % len(live)]
            if what == "answer":
                lane.answered(turn, now)
            else:
                live.remove(turn)
                lane.end(turn, now, good=what == "end")
        # who answers while it lingers has its slot back: as many as slots beyond the slots
        assert 0 <= lane.used <= 2 * slots
        assert lane.lingering <= slots
        assert lane.suspects_at_once <= max(1, slots // 4)
        assert lane.waiting() == waiting
    for turn in live:
        lane.end(turn, now, good=True)
    assert (lane.used, lane.lingering, lane.suspects_at_once) == (0, 0, 0)
    while waiting:  # everybody gets a turn in the end
        now += 1e6
        turn = lane.take(now)
        assert turn is not None
        lane.end(turn, now, good=True)
        waiting -= 1
