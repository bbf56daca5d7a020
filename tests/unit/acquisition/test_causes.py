"""Names of gaps: from errors, and from what stands around rows that a meter does not hold."""

from __future__ import annotations

import pytest

from edge_core import errors
from edge_core.acquisition.causes import CAUSES, Absence, absences, cause_of
from edge_core.domain import Block, Column, Flag, Layout, Obis

LAYOUT = Layout(Obis("1.0.99.1.0.255"), 900, (Column(Obis("1.0.1.8.0.255"), "Wh", 0),))


def block(times: list[int], flags: tuple[tuple[int, int, int], ...] = ()) -> Block:
    return Block(
        meter="M", device="1", kind="interval", layout=LAYOUT, times=times,
        columns=([0] * len(times),), flags=flags,
    )  # fmt: skip


def meter_error(kind: type[errors.MeterError], cause: str = "no", behind: Exception | None = None):
    error = kind("M", "line", "AARQ", cause)
    error.__cause__ = behind
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (meter_error(errors.LineSilent), "line-silent"),
        (meter_error(errors.MalformedReply), "line-silent"),
        (meter_error(errors.MeterRefused), "association-refused"),
        (meter_error(errors.WrongMeter), "association-refused"),
        (meter_error(errors.KeyRejected), "key-rejected"),
        (meter_error(errors.KeyRejected, "invocation counter too low"), "counter-refused"),
        (
            meter_error(errors.KeyRejected, "no", errors.CounterExhausted("used up")),
            "counter-refused",
        ),
        (errors.DiskFull("no room"), "journal-full"),
    ],
)
def test_every_error_names_what_is_owed(error: Exception, cause: str):
    assert cause_of(error) == cause
    assert cause in CAUSES


def test_rows_between_two_rows_are_no_such_rows():
    got = absences([block([900, 1800, 4500, 5400])], known=1800, period=900)
    assert got == [Absence(1801, 4499, "no-such-row")]


def test_a_gap_between_what_was_known_and_the_first_row_counts_too():
    got = absences([block([1800, 4500])], known=2700, period=900)
    assert [g.cause for g in got] == ["no-such-row"]
    assert (got[0].first, got[0].last) == (2701, 4499)


def test_when_even_known_rows_are_gone_they_were_overwritten():
    got = absences([block([9000, 9900])], known=1800, period=900)
    assert got == [Absence(1801, 8999, "overwritten")]


@pytest.mark.parametrize(
    ("flag", "cause"),
    [
        (Flag.POWER_DOWN, "meter-power-off"),
        (Flag.CLOCK_ADJUSTED, "meter-clock"),
        (0, "no-such-row"),
    ],
)
def test_the_row_behind_tells_why(flag: int, cause: str):
    flags = ((1, 1, int(flag)),) if flag else ()
    got = absences([block([900, 4500, 5400], flags)], known=900, period=900)
    assert [g.cause for g in got] == [cause]


def test_a_clock_that_jumped_ahead_explains_rows_that_never_were():
    got = absences([block([900, 4500])], known=900, period=900, stepped_forward=True)
    assert [g.cause for g in got] == ["meter-clock"]


def test_nothing_is_missing_without_a_period_nor_at_the_end_nor_on_days_of_other_lengths():
    assert absences([block([900, 1800])], known=900, period=900) == []
    assert absences([], known=900, period=900) == []
    assert absences([block([900, 99_999])], known=900, period=0) == []
    day = 86_400
    times = [0, day, day + 23 * 3600, day + 23 * 3600 + 25 * 3600]
    assert absences([block(times)], known=0, period=day) == []


def test_rows_repeated_by_a_clock_set_back_are_no_gap():
    assert absences([block([900, 1800, 2700, 1800, 2700, 3600])], known=900, period=900) == []
