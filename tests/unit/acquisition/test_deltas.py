"""Rows of the load profile against registers, from midnight to midnight."""

from __future__ import annotations

import pytest

from edge_core.acquisition.deltas import Day, Deltas
from edge_core.domain import Block, Column, Layout, Obis

T0 = 1_763_942_400 - 330 * 60  # a midnight in Kolkata
DAY_S = 86_400
BLOCK, REGISTER = "1.0.1.29.0.255", "1.0.1.8.0.255"


def block(
    kind: str,
    times: list[int],
    values: list[int | None],
    *,
    obis: str = BLOCK,
    scaler: int = 0,
    device: str = "1",
    occ: tuple[tuple[int, int], ...] = (),
) -> Block:
    period = 900 if kind == "interval" else DAY_S
    return Block(
        meter="M1",
        device=device,
        kind=kind,
        layout=Layout(Obis("1.0.99.1.0.255"), period, (Column(Obis(obis), "Wh", scaler),)),
        times=times,
        columns=(values,),
        occ=occ,
        tz=330,
    )


def rows(days: int, wh: int = 10, *, first: int = 1, **more: object) -> Block:
    times = [T0 + 900 * n for n in range(first, 96 * days + 1)]
    return block("interval", times, [wh] * len(times), **more)  # type: ignore[arg-type]


def daily(*values: int, scaler: int = 0, first: int = 0, **more: object) -> Block:
    times = [T0 + DAY_S * (first + n) for n in range(len(values))]
    return block("midnight", times, list(values), obis=REGISTER, scaler=scaler, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, -1], ids=["rows first", "registers first"])
def test_a_day_that_agrees_and_one_that_does_not(order: int) -> None:
    known = Deltas()
    days = []
    for part in [rows(3), daily(0, 960, 1920, 9999)][::order]:
        days += known.take(part)
    assert [(d.first, d.last, d.agrees) for d in days] == [
        (T0 + 2 * DAY_S, T0 + 3 * DAY_S, False),
    ]
    assert (days[0].rows, days[0].register, days[0].channel) == (960_000, 8_079_000, "1.0.1")


def test_every_day_is_judged_as_it_comes() -> None:
    known = Deltas()
    found = [[d.agrees for d in known.take(daily(0))]]
    for day in range(5):
        known.take(rows(day + 1, first=96 * day + 1))
        found.append([d.agrees for d in known.take(daily(960 * (day + 1), first=day + 1))])
    assert found == [[], [], [True], [True], [True], [True]]


@pytest.mark.parametrize("value", [1 << 63, -(1 << 70), None])
def test_numbers_that_no_meter_has_begin_anew(value: int | None) -> None:
    known = Deltas()
    known.take(rows(1))
    known.take(block("interval", [T0 + 900 * 97], [value]))
    known.take(rows(3, first=98))
    assert [d.agrees for d in known.take(daily(0, 960, 1920, 2880))] == [True]
    assert known.take(block("midnight", [T0 + 9 * DAY_S], [value], obis=REGISTER)) == []


def test_what_meters_cut_off_is_allowed() -> None:
    known = Deltas()
    known.take(rows(2, wh=99))  # each row may have lost 1 Wh
    (day,) = known.take(daily(0, 960, 1920, scaler=1))
    assert day.agrees
    assert day == Day("1.0.1", T0 + DAY_S, T0 + 2 * DAY_S, 9_504_000, 9_600_000, 116_000)


def test_registers_in_the_load_profile_are_compared_as_they_stand() -> None:
    known = Deltas()
    times = [T0 + 900 * n for n in range(1, 193)]
    known.take(block("interval", times, list(range(192)), obis=REGISTER))
    (day,) = known.take(daily(0, 95, 191))
    assert (day.rows, day.register, day.agrees) == (96_000, 96_000, True)


def test_rows_that_come_again_count_once_and_gaps_begin_anew() -> None:
    known = Deltas()
    known.take(rows(1))
    known.take(rows(2))
    assert [d.agrees for d in known.take(daily(0, 960, 1920))] == [True]
    known = Deltas()
    whole = rows(2)
    known.take(whole.take([n for n in range(192) if n != 120]))
    assert known.take(daily(0, 960, 1920)) == [], "a row is missing: the day is not judged"
    known.take(rows(4, first=193))
    assert [d.agrees for d in known.take(daily(1920, 2880, 3840, first=2))] == [True]


def test_another_device_a_step_of_the_clock_and_no_value_begin_anew() -> None:
    for spoiled in (
        rows(2, first=97, device="2"),
        rows(2, first=97, occ=((0, 1),)),
        block("interval", [T0 + 900 * n for n in range(97, 193)], [*[10] * 95, None]),
    ):
        known = Deltas()
        known.take(rows(1))
        known.take(spoiled)
        assert known.take(daily(0, 960, 99_999)) == []


def test_other_columns_kinds_and_registers_that_fall_are_left_alone() -> None:
    known = Deltas()
    known.take(rows(2))
    assert known.take(daily(5000, 4000, 10)) == []
    tariff = block("midnight", [T0], [1], obis="1.0.1.8.1.255")
    assert known.take(tariff) == []
    assert known.take(block("billing", [T0], [1], obis=REGISTER)) == []
