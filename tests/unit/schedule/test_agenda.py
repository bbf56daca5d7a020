from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from edge_core.schedule.agenda import Agenda, Job, Priority
from edge_core.schedule.calendar import Daily, Every, phase_of

KOLKATA = ZoneInfo("Asia/Kolkata")
T0 = 1_764_000_000.0


def agenda(*meters: str, first: float = T0, period: int = 3600) -> Agenda:
    a = Agenda(KOLKATA)
    for meter in meters:
        a.add(
            meter,
            {
                Job.INTERVAL: (Every(period), phase_of(meter, period)),
                Job.MIDNIGHT: (Daily(5), phase_of(meter, 600)),
            },
            first=first,
        )
    return a


def test_everything_is_due_at_the_start_midnight_first():
    a = agenda("A", "B")
    assert a.take_due(T0 - 1) == []
    assert sorted(a.take_due(T0)) == [
        ("A", [Job.MIDNIGHT, Job.INTERVAL]),
        ("B", [Job.MIDNIGHT, Job.INTERVAL]),
    ]
    assert a.take_due(T0 + 10_000) == []  # under way


def test_a_meter_comes_back_by_its_rule_and_keeps_its_phase():
    a = agenda("A")
    a.take_due(T0)
    a.done("A", [Job.MIDNIGHT, Job.INTERVAL], T0)
    first = a.due_times("A")[Job.INTERVAL]
    a.take_due(first)
    a.done("A", [Job.INTERVAL], first + 700)  # a slow visit does not shift the next one
    assert a.due_times("A")[Job.INTERVAL] == first + 3600


def test_what_failed_comes_again_when_told():
    a = agenda("A")
    a.take_due(T0)
    a.again("A", [Job.INTERVAL], T0 + 30)
    a.done("A", [Job.MIDNIGHT], T0)
    assert a.next_time() == T0 + 30
    assert a.take_due(T0 + 30) == [("A", [Job.INTERVAL])]


def test_bringing_forward_does_not_visit_twice_at_once():
    a = agenda("A")
    a.take_due(T0)
    a.now_due("A", None, T0 + 1)
    assert a.take_due(T0 + 2) == []
    a.done("A", [Job.INTERVAL], T0 + 3)  # it may have read before it was asked again: once more
    assert a.take_due(T0 + 3) == [("A", [Job.MIDNIGHT, Job.INTERVAL])]
    a.done("A", [Job.MIDNIGHT, Job.INTERVAL], T0 + 4)
    assert a.take_due(T0 + 5) == []


def test_parked_and_removed_meters_are_left_alone():
    a = agenda("A", "B")
    a.pause("A")
    a.remove("B")
    assert a.next_time() is None
    assert a.take_due(T0 + 1e6) == []
    a.again("A", [Job.INTERVAL], T0 + 5)
    assert a.next_time() == T0  # the midnight read still waits
    assert a.due_times("B") == {}


def test_priorities_follow_the_design():
    assert Job.MIDNIGHT.priority < Job.INTERVAL.priority < Priority.BACKFILL < Job.EVENTS.priority


@given(steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5000)), max_size=60))
def test_no_meter_is_ever_lost_or_taken_twice(steps):
    """Whatever is done to the agenda: each meter is under way, or listed no later than its earliest due time."""
    meters = [f"M{n}" for n in range(5)]
    a, now, busy = agenda(*meters), T0, set()
    for which, delta in steps:
        now += delta
        for meter, jobs in a.take_due(now):
            assert meter not in busy
            assert jobs
            busy.add(meter)
        meter = meters[which]
        if meter in busy:
            busy.remove(meter)
            if delta % 2:
                a.done(meter, [j for j, due in a.due_times(meter).items() if due <= now], now)
            else:
                a.again(meter, list(a.due_times(meter)), now + delta)
        else:
            a.now_due(meter, [Job.INTERVAL], now)
    free = [m for m in meters if m not in busy]
    expected = min((min(a.due_times(m).values()) for m in free), default=None)
    assert a.next_time() == expected


def test_after_our_clock_was_set_back_everything_is_planned_again():
    a = agenda("A", period=900)
    a.take_due(T0 + 10_000)
    a.done("A", [Job.MIDNIGHT, Job.INTERVAL], T0 + 10_000)
    assert a.take_due(T0 + 1000) == []
    a.replan(T0)
    assert a.due_times("A")[Job.INTERVAL] <= T0 + 900
    assert a.due_times("A")[Job.MIDNIGHT] <= T0 + 86_400 + 600
    assert [job for _, jobs in a.take_due(T0 + 900) for job in jobs] == [Job.INTERVAL]
