import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.schedule import calendar as c

KOLKATA, BERLIN, BEIRUT = (
    ZoneInfo("Asia/Kolkata"),
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("Asia/Beirut"),
)
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
ZONES = [KOLKATA, BERLIN, BEIRUT, LORD_HOWE, ZoneInfo("America/Santiago")]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("off", None),
        ("every 1h", c.Every(3600)),
        ("every 15min", c.Every(900)),
        ("every 30s", c.Every(30)),
        ("every 2d", c.Every(172_800)),
        ("00:05", c.Daily(5)),
        ("23:59", c.Daily(1439)),
    ],
)
def test_rules_are_read(text, rule):
    assert c.parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "every", "every h", "every 0h", "every -1h", "24:00", "1:60", "hourly", "every 1.5h"],
)
def test_other_rules_are_refused_with_the_grammar(text):
    with pytest.raises(ValueError, match="HH:MM"):
        c.parse_rule(text)


def utc(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).timestamp())


def test_every_is_aligned_and_shifted_by_the_phase():
    rule = c.Every(3600)
    assert c.next_due(rule, utc("2026-06-18T10:00:00+00:00"), KOLKATA) == utc(
        "2026-06-18T11:00:00+00:00"
    )
    assert c.next_due(rule, utc("2026-06-18T10:00:00+00:00"), KOLKATA, 600) == utc(
        "2026-06-18T10:10:00+00:00"
    )


def test_daily_is_civil():
    assert c.next_due(c.Daily(5), utc("2026-06-18T10:00:00+00:00"), KOLKATA) == utc(
        "2026-06-19T00:05:00+05:30"
    )


def test_spring_gap_is_due_at_its_end():
    # Berlin, 2026-03-29: 02:00 becomes 03:00.
    due = c.next_due(c.Daily(150), utc("2026-03-28T12:00:00+01:00"), BERLIN)
    assert due == utc("2026-03-29T03:00:00+02:00")


def test_autumn_hour_is_due_once_at_its_first_occurrence():
    first = c.next_due(c.Daily(150), utc("2026-10-24T12:00:00+02:00"), BERLIN)
    assert first == utc("2026-10-25T02:30:00+02:00")
    assert c.next_due(c.Daily(150), first, BERLIN) == utc("2026-10-26T02:30:00+01:00")


def test_midnight_that_does_not_exist():
    # Beirut, 2026-03-29: 00:00 becomes 01:00.
    assert c.midnight_at_or_before(utc("2026-03-29T12:00:00+03:00"), BEIRUT) == utc(
        "2026-03-29T01:00:00+03:00"
    )


def test_a_daily_row_belongs_to_the_day_that_ended():
    assert c.day_of_daily_row(utc("2026-06-19T00:00:00+05:30"), KOLKATA) == dt.date(2026, 6, 18)


def test_minutes_east():
    assert c.minutes_east(utc("2026-06-19T00:00:00+05:30"), KOLKATA) == 330
    assert c.minutes_east(utc("2026-01-01T00:00:00+00:00"), BERLIN) == 60


@given(
    after=st.integers(1_700_000_000, 1_900_000_000),
    minute=st.integers(0, 1439),
    zone=st.sampled_from(ZONES),
    phase=st.floats(0, 3600),
)
def test_daily_comes_once_each_civil_day(after, minute, zone, phase):
    rule = c.Daily(minute)
    first = c.next_due(rule, after, zone, phase)
    second = c.next_due(rule, first, zone, phase)
    assert first > after
    assert 20 * 3600 < second - first < 28 * 3600
    days = [dt.datetime.fromtimestamp(t - phase, zone).date() for t in (first, second)]
    assert days[1] - days[0] == dt.timedelta(days=1)


@given(identity=st.text(), spread=st.floats(1, 1e5))
def test_a_phase_is_constant_and_inside_the_spread(identity, spread):
    assert 0 <= c.phase_of(identity, spread) < spread
    assert c.phase_of(identity, spread) == c.phase_of(identity, spread)


def test_phases_spread_evenly():
    phases = sorted(c.phase_of(f"GP{n}", 1000.0) for n in range(2000))
    assert max(abs(p - i / 2) for i, p in enumerate(phases)) < 40
