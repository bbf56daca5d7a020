"""Completeness figures: every period is captured, missing with a cause, or excused, on days of any length."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.acquisition.completeness import (
    Account,
    Figures,
    day_bounds,
    due_stages,
    figures,
    owed,
)
from edge_core.domain import Obis
from edge_core.journal.records import Hole, LedgerEntry, Run

KOLKATA = ZoneInfo("Asia/Kolkata")
LOAD, DAILY = Obis("1.0.99.1.0.255"), Obis("1.0.99.2.0.255")
DAY = dt.date(2025, 11, 20)
BEGIN, END = day_bounds(DAY, KOLKATA)
LONG_AGO, LATER = BEGIN - 10 * 86_400, END + 10 * 86_400


def entry(
    *runs: tuple[int, int],
    holes: tuple[Hole, ...] = (),
    profile: Obis = LOAD,
    period: int = 900,
    device: str = "1",
) -> LedgerEntry:
    return LedgerEntry(
        meter="M", device=device, profile=profile, kind="interval", period=period,
        runs=tuple(Run(a, b, period) for a, b in runs), repeats=0, holes=holes, watermark=None,
        captured=0, due=0, conflicts=0,
    )  # fmt: skip


def count(
    *entries: LedgerEntry, zone: ZoneInfo = KOLKATA, day: dt.date = DAY, now: float = LATER, **more
):
    profiles = more.pop("profiles", [(LOAD, 900)])
    account = Account(
        entries=entries, profiles=profiles, known_since=more.pop("known_since", LONG_AGO), **more
    )
    return figures(account, day, zone, now)


def reconciles(found: Figures) -> bool:
    return found.due == found.captured + found.missing.total() + found.excused


def test_a_whole_day_is_ninety_six_quarter_hours_and_one_daily_row():
    found = count(
        entry((BEGIN - 900, END + 900)),
        entry((END, END), profile=DAILY, period=86_400),
        profiles=[(LOAD, 900), (DAILY, 86_400)],
    )
    assert (found[LOAD].due, found[LOAD].captured) == (96, 96)
    assert (found[DAILY].due, found[DAILY].captured) == (1, 1)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", dt.date(2025, 3, 30), 23),
        ("Europe/Berlin", dt.date(2025, 10, 26), 25),
        ("America/New_York", dt.date(2025, 3, 9), 23),
        ("America/New_York", dt.date(2025, 11, 2), 25),
        ("Australia/Lord_Howe", dt.date(2025, 4, 6), 24.5),
        ("Australia/Lord_Howe", dt.date(2025, 10, 5), 23.5),
        ("Asia/Kolkata", dt.date(2025, 12, 31), 24),
        ("Asia/Kolkata", dt.date(2024, 2, 29), 24),
    ],
)
def test_days_have_as_many_periods_as_they_have(zone: str, day: dt.date, hours: float):
    place = ZoneInfo(zone)
    begin, end = day_bounds(day, place)
    daily = entry((end, end), profile=DAILY, period=86_400)
    found = count(
        entry((begin + 900, end)), daily, zone=place, day=day, now=end + 1,
        known_since=begin - 86_400, profiles=[(LOAD, 900), (DAILY, 86_400)],
    )  # fmt: skip
    assert (found[LOAD].due, found[LOAD].captured) == (hours * 4, hours * 4)
    assert (found[DAILY].due, found[DAILY].captured) == (1, 1)


def test_what_is_missing_has_the_cause_that_was_noted():
    found = count(
        entry(
            (BEGIN + 900, BEGIN + 9000),
            (BEGIN + 18_000, END),
            holes=(Hole(BEGIN + 9900, BEGIN + 17_100, 9, "no-such-row"),),
        )
    )[LOAD]
    assert found.missing == {"no-such-row": 9}
    assert found.captured == 87
    assert reconciles(found)


def test_what_a_failing_meter_owes_is_missing_for_the_cause_of_its_failure():
    found = count(entry((BEGIN + 900, BEGIN + 9000)), failing="key-rejected")[LOAD]
    assert found.missing == {"key-rejected": 86}
    never = count(failing="line-silent")[LOAD]
    assert (never.due, never.missing) == (96, {"line-silent": 96})


def test_after_a_good_read_what_is_not_there_was_never_there():
    found = count(entry((BEGIN + 900, BEGIN + 9000)), last_read=LATER)[LOAD]
    assert found.missing == {"no-such-row": 86}
    unasked = count(entry((BEGIN + 900, BEGIN + 9000)))[LOAD]
    assert unasked.missing == {"gateway-off": 86}


def test_parked_meters_are_excused_but_what_was_captured_counts():
    found = count(
        entry((BEGIN + 900, BEGIN + 9000)), parkings=[(BEGIN, BEGIN + 43_200, "works")], failing="line-silent"
    )[LOAD]  # fmt: skip
    assert (found.captured, found.excused) == (10, 38)
    assert found.missing == {"line-silent": 48}
    assert reconciles(found)


def test_due_begins_when_the_meter_came_onto_the_list_or_with_its_oldest_row():
    assert count(known_since=BEGIN + 43_200, failing="line-silent")[LOAD].due == 48
    older = count(entry((BEGIN + 900, END)), known_since=BEGIN + 43_200)[LOAD]
    assert (older.due, older.captured) == (96, 96)


def test_a_running_day_is_due_up_to_now():
    found = count(entry((BEGIN + 900, BEGIN + 3600)), now=BEGIN + 7200)[LOAD]
    assert (found.due, found.captured) == (8, 4)


def test_a_swapped_meter_is_counted_once():
    half = BEGIN + 43_200
    found = count(entry((BEGIN + 900, half)), entry((half - 900, END), device="2"))[LOAD]
    assert (found.due, found.captured) == (96, 96)


@given(
    st.lists(st.tuples(st.integers(-20, 110), st.integers(0, 40)), max_size=6),
    st.sampled_from(["", "line-silent"]),
    st.integers(0, 120),
    st.integers(-50, 120),
)
def test_figures_always_reconcile(runs, failing, now, since):
    entries = [entry((BEGIN + a * 900, BEGIN + (a + n) * 900)) for a, n in runs]
    found = count(
        *entries, failing=failing, now=BEGIN + now * 900, known_since=BEGIN + since * 900
    )[LOAD]
    assert reconciles(found)
    assert found.due <= 96
    document = found.document(LOAD)
    assert (
        document["due"]
        == document["captured"] + sum(document["missing"].values()) + document["excused"]
    )


def test_what_is_owed_starts_after_what_is_known_and_named():
    known = entry((BEGIN, BEGIN + 900), holes=(Hole(BEGIN + 1800, BEGIN + 2700, 2, "no-such-row"),))
    assert owed(known, "line-silent", BEGIN + 5000) == [
        Hole(BEGIN + 3600, BEGIN + 4500, 2, "line-silent")
    ]
    assert owed(known, "", BEGIN + 5000) == []
    assert owed(known, "line-silent", BEGIN + 2800) == []


def test_a_day_is_published_at_five_and_after_one_and_three_days():
    def due(at: str, published: dict[str, str] | None = None) -> list[tuple[str, str]]:
        now = dt.datetime.fromisoformat(at).replace(tzinfo=KOLKATA).timestamp()
        stages = due_stages(now, KOLKATA, published or {}, BEGIN)
        return [(day.isoformat(), stage) for day, stage in stages]

    assert due("2025-11-21T04:59") == []
    assert due("2025-11-21T05:00") == [("2025-11-20", "05:00")]
    before = {"05:00": "2025-11-20"}
    assert due("2025-11-21T23:59", before) == []
    assert due("2025-11-22T00:00", before) == [("2025-11-20", "24h")]
    assert ("2025-11-20", "72h") in due("2025-11-24T00:00", before)


def test_what_was_missed_while_the_box_was_off_is_caught_up_for_a_week():
    now = END + 30 * 86_400
    stages = list(due_stages(now, KOLKATA, {}, BEGIN))
    days = {day for day, _ in stages}
    assert len(days) <= 12
    assert min(days) >= DAY + dt.timedelta(days=19)
