"""Lanes: priorities, suspects beside the others, lingering visits, serial lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_core.acquisition.lines import FEW_SLOTS, SHARE, Lane, Turn
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


def test_a_visit_that_lasts_hands_its_slot_on_where_lines_are_wide():
    lane: Lane[str] = Lane(FEW_SLOTS)
    for n in range(12):
        lane.put(3, f"M{n}", "", suspect=False)
    turns = started(lane)
    assert len(turns) == FEW_SLOTS
    assert all(lane.linger(turn) for turn in turns)
    assert not lane.linger(turns[0])  # once
    more = started(lane)
    assert len(more) == FEW_SLOTS
    assert not any(lane.linger(turn) for turn in more)  # as many as slots at most
    for turn in turns + more:
        lane.end(turn, 1, good=False)
    assert (lane.used, lane.lingering, lane.suspects_at_once) == (0, 0, 0)


def test_on_a_narrow_line_nothing_lingers():
    lane: Lane[str] = Lane(1)
    lane.put(3, "M", "", suspect=False)
    turn = lane.take(0)
    assert not lane.linger(turn)
    assert lane.used == 1


def test_patience_follows_what_visits_usually_take():
    lane: Lane[str] = Lane(10)
    quick = lane.patience_s()
    for n in range(200):
        lane.put(3, "M", "", suspect=False)
        lane.end(lane.take(n), n + 4.0, good=True)
    assert lane.patience_s() > 12 > quick


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
            st.sampled_from(["put", "suspect", "take", "end", "bad", "linger"]), st.integers(0, 5)
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
        elif live:
            turn = live[number % len(live)]
            if what == "linger":
                lane.linger(turn)
            else:
                live.remove(turn)
                lane.end(turn, now, good=what == "end")
        assert 0 <= lane.used <= slots
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
