"""Blocks into half hours, half hours on disk, episodes out of days."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.detector.channels import channels_of
from edge_core.detector.collect import MAX_OPEN, Collector
from edge_core.detector.days import Calendar
from edge_core.detector.history import GROUP, KEEP_DAYS, MISSING, Store, decode, encode
from edge_core.detector.watch import QUIET_DAYS, Watch, finding_id
from edge_core.domain import Block, Column, Flag, Layout

INDIA = Calendar(ZoneInfo("Asia/Kolkata"))
DAY = INDIA.day_of(1_764_000_000)
ENERGY = Column("1.0.1.29.0.255", "Wh", 0)
REGISTER = Column("1.0.1.8.0.255", "Wh", 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "detector.db")


def block(
    columns: list[tuple[Column, list]],
    *,
    day: int = DAY,
    first: int = 0,
    period: int = 900,
    **more: object,
) -> Block:
    rows = len(columns[0][1])
    begin = INDIA.begin(day)
    plain = {
        "meter": "M1",
        "device": "d",
        "kind": "interval",
        "layout": Layout("1.0.99.1.0.255", period, tuple(c for c, _ in columns)),
        "times": [begin + period * (first + k + 1) for k in range(rows)],
        "columns": tuple(values for _, values in columns),
        "tz": 330,
    }
    return Block(**(plain | more))  # type: ignore[arg-type]


def half_hours(store: Store, collector: Collector, day: int = DAY) -> np.ndarray:
    """What history has of M1 after the day is closed."""
    store.begin()
    collector.close(day, 0)
    collector.save()
    store.commit()
    collector.closed(day, 0)
    collector.saved()
    return decode(store.window(0, day, day))[store.meters["M1"], 0]


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=50))
def test_codes_keep_energies_within_a_permille(values: list[float]) -> None:
    wh = np.array([*values, np.nan, -1.0])
    codes = encode(wh)
    assert (codes[-2:] == MISSING).all()
    np.testing.assert_allclose(decode(codes)[:-2], wh[:-2], rtol=6e-4, atol=6e-4)
    assert (decode(encode(np.zeros(3))) == 0).all()


def test_the_energy_of_india_and_of_registers(store: Store) -> None:
    assert channels_of(block([(ENERGY, [1])]).layout).energy.cumulative is False  # type: ignore[union-attr]
    both = channels_of(block([(REGISTER, [1]), (ENERGY, [1])]).layout)
    assert both.energy is not None
    assert both.energy.column == 1
    tariffs = channels_of(block([(Column("1.0.1.8.1.255", "Wh", 0), [1])]).layout)
    assert tariffs.energy is None
    kilo = channels_of(block([(Column("1.0.1.8.0.255", "Wh", 3), [1])]).layout)
    assert kilo.coarse


def test_hourly_polls_of_a_register_join_without_a_seam(store: Store) -> None:
    collector = Collector(store, INDIA)
    register = np.arange(1, 97) * 50 + 1000
    for hour in range(24):
        part = register[4 * hour : 4 * hour + 4].tolist()
        collector.take(block([(REGISTER, part)], first=4 * hour), oldest=0)
    wh = half_hours(store, collector)
    assert np.isnan(wh[0])
    np.testing.assert_allclose(wh[1:], 100, rtol=1e-3)


def test_another_device_makes_no_difference_across_the_exchange(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(REGISTER, [100_000, 100_100])]), oldest=0)
    collector.take(block([(REGISTER, [5, 105, 205])], first=2, device="other"), oldest=0)
    wh = half_hours(store, collector)
    assert np.isnan(wh[:2]).all()
    assert not collector.open


def test_a_register_that_falls_is_evidence_and_one_that_rolls_over_is_not(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(REGISTER, [9_999_700, 9_999_900, 100, 300])]), oldest=0)
    assert collector.evidence(DAY, 0) == {}
    collector.take(block([(REGISTER, [200, 400])], first=4), oldest=0)
    assert list(collector.evidence(DAY, 0)) == ["register-fell"]
    wh = half_hours(store, collector)
    np.testing.assert_allclose(wh[1], 400, rtol=1e-3)
    assert np.isnan(wh[2])


def test_rows_of_bad_quality_are_missing(store: Store) -> None:
    collector = Collector(store, INDIA)
    values: list = [100] * 96
    values[10] = None
    collector.take(
        block([(ENERGY, values)], flags=((20, 2, int(Flag.POWER_DOWN)), (30, 2, int(Flag.DST)))),
        oldest=0,
    )
    wh = half_hours(store, collector)
    assert np.flatnonzero(np.isnan(wh)).tolist() == [5, 10]


def test_a_row_that_is_there_twice_is_missing_never_doubled(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(ENERGY, [100] * 96)]), oldest=0)
    collector.take(block([(ENERGY, [900])], first=7), oldest=0)
    wh = half_hours(store, collector)
    assert np.isnan(wh[3])
    np.testing.assert_allclose(np.delete(wh, 3), 200, rtol=1e-3)


def test_repeated_times_after_a_clock_was_set_back_are_left_out(store: Store) -> None:
    collector = Collector(store, INDIA)
    begin = INDIA.begin(DAY)
    times = [begin + 900, begin + 1800, begin + 900, begin + 2700]
    collector.take(block([(ENERGY, [10, 10, 99, 10])], times=times, occ=((2, 1),)), oldest=0)
    np.testing.assert_allclose(half_hours(store, collector)[0], 20, rtol=1e-3)


@pytest.mark.parametrize(("period", "slots"), [(300, 8), (1800, 48), (3600, 48)])
def test_other_periods(store: Store, period: int, slots: int) -> None:
    collector = Collector(store, INDIA)
    rows = slots * 1800 // period
    collector.take(block([(ENERGY, [period // 10] * rows)], period=period), oldest=0)
    wh = half_hours(store, collector)
    np.testing.assert_allclose(wh[:slots], 180, rtol=1e-3)
    assert np.isnan(wh[slots:]).all()


def test_text_and_foreign_profiles_do_no_harm(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(Column("1.0.1.29.0.255", "Wh", 0), ["aa", "bb"])]), oldest=0)
    collector.take(block([(Column("0.0.96.11.0.255", "", 0), [7])]), oldest=0)
    collector.take(block([(ENERGY, [7])], kind="billing"), oldest=0)
    collector.take(block([(ENERGY, [])]), oldest=0)
    collector.take(block([(ENERGY, [7] * 96)], day=DAY - 500), oldest=DAY - KEEP_DAYS)
    assert (DAY - 500, 0) not in collector.open


def test_what_is_open_outlives_a_restart_in_the_middle_of_a_half_hour(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(REGISTER, [100, 200, 300])]), oldest=0)
    store.begin()
    collector.save()
    store.commit()
    reopened = Store(store.path)
    again = Collector(reopened, INDIA)
    again.take(block([(REGISTER, [400, 500])], first=3), oldest=0)
    wh = half_hours(reopened, again)
    np.testing.assert_allclose(wh[1], 200, rtol=1e-3)


def test_another_journal_does_not_count_known_rows_again(store: Store) -> None:
    collector = Collector(store, INDIA)
    collector.take(block([(ENERGY, [100] * 50)]), oldest=0)
    collector.start_over()
    collector.take(block([(ENERGY, [100] * 96)]), oldest=0)
    np.testing.assert_allclose(half_hours(store, collector), 200, rtol=1e-3)


def test_open_days_are_bounded(store: Store) -> None:
    collector = Collector(store, INDIA)
    for day in range(MAX_OPEN + 30):
        collector.take(block([(ENERGY, [1, 1])], day=DAY - day), oldest=0)
    closing = list(collector.closing(0))
    assert closing == [(DAY - k, 0) for k in range(30)], "the longest untouched ones"


def test_five_thousand_meters_take_few_megabytes(store: Store) -> None:
    rng = np.random.default_rng(0)
    store.begin()
    for part in range(79):
        wh = rng.gamma(0.7, 300, (GROUP, 48))
        for day in range(4):
            store.put_history(DAY + day, part, encode(wh + day))
    store.commit()
    store.close()
    size = sum(f.stat().st_size for f in store.path.parent.iterdir())
    assert size / 4 / 5000 * KEEP_DAYS * 5000 < 40e6


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Europe/Zurich", "America/St_Johns"])
def test_every_row_has_one_day(zone: str) -> None:
    calendar = Calendar(ZoneInfo(zone))
    first = calendar.begin(calendar.day_of(1_774_600_000))  # around the change of March 2026
    times = [first + 900 * k for k in range(1, 96 * 5)]
    covered = []
    for day, begin, end in calendar.split(times):
        assert all(calendar.begin(day) < t <= calendar.begin(day + 1) for t in times[begin:end])
        covered += list(range(begin, end))
    assert covered == list(range(len(times)))


# --- episodes


def fire(watch: Watch, day: int, kind: str = "stopped") -> list[tuple[int, int]]:
    watch.fire(0, kind, day, version="v", explain={"why": "w"})
    watch.quiet(day)
    return [(m["rev"], m["to"]) for m in watch.take_messages()]


def test_an_episode_is_told_when_it_begins_weekly_and_when_it_ends(store: Store) -> None:
    store.number("M1")
    watch = Watch(store, INDIA)
    told = [fire(watch, DAY + k) for k in range(9)]
    assert [len(t) for t in told] == [1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert told[7] == [(1, INDIA.begin(DAY + 8))]
    watch.quiet(DAY + 8 + QUIET_DAYS)
    assert watch.take_messages() == []
    assert watch.goes_on(0, "stopped", DAY + 8 + QUIET_DAYS)
    assert not watch.goes_on(0, "stopped", DAY + 9 + QUIET_DAYS)
    watch.quiet(DAY + 9 + QUIET_DAYS)
    (last,) = watch.take_messages()
    assert (last["rev"], last["to"], last["explain"]) == (
        2,
        INDIA.begin(DAY + 9),
        {"why": "w", "ended": True},
    )
    assert last["id"] == finding_id("M1", "stopped", INDIA.begin(DAY), "v")
    assert not watch.goes_on(0, "stopped", DAY + 10)
    assert fire(watch, DAY + 20) == [(0, INDIA.begin(DAY + 21))], "a new one"


def test_episodes_outlive_a_restart(store: Store) -> None:
    store.number("M1")
    watch = Watch(store, INDIA)
    fire(watch, DAY)
    store.begin()
    store.save_meters()
    watch.save()
    store.commit()
    assert store.findings() == [], "the journal may not have it yet"
    watch.told()
    store.begin()
    watch.save()
    store.commit()
    again = Watch(Store(store.path), INDIA)
    assert fire(again, DAY + 2) == []
    assert fire(again, DAY + 1) == [], "late days change nothing"
    assert again.is_open(0, "stopped")
    assert fire(again, DAY + 3, "flat") == [(0, INDIA.begin(DAY + 4))]
