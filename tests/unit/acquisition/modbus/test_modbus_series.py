"""Counters from sample to sample: roll-over told from reset, and never a negative interval."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.acquisition.drivers.modbus.series import Counter, Series


def counter(value: int, modulus: int = 0, scaler: int = 0) -> Counter:
    return Counter("active_energy_import", value, scaler, modulus)


def after(first: Counter, second: Counter) -> tuple[Series, object]:
    series = Series("123")
    series.take([first], series.compare([first]))
    verdict = series.compare([second])
    series.take([second], verdict)
    return series, verdict


def test_what_rises_goes_on():
    series, verdict = after(counter(100), counter(100))
    assert (series.device, verdict.fallen, verdict.rolled) == ("123", (), ())


def test_a_fall_begins_a_new_series():
    series, verdict = after(counter(1000, 2**32), counter(999, 2**32))
    assert verdict.fallen == ("active_energy_import",)
    assert series.device == "123/1"


def test_from_the_top_to_the_bottom_of_the_range_is_a_roll_over():
    series, verdict = after(counter(2**32 - 5, 2**32), counter(7, 2**32))
    assert verdict.rolled == ("active_energy_import",)
    assert series.device == "123"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (2**32 - 5, 2**31),  # not to the bottom
        (2**31, 7),  # not from the top
    ],
)
def test_other_falls_are_no_roll_over(before, now):
    _, verdict = after(counter(before, 2**32), counter(now, 2**32))
    assert verdict.fallen
    assert not verdict.rolled


def test_without_a_known_range_nothing_rolls_over():
    _, verdict = after(counter(999_999), counter(1))
    assert verdict.fallen


def test_a_finer_scale_register_is_no_fall():
    """SunSpec: the scale register may change; 1,234 kWh becomes 1,234,567 Wh."""
    _, verdict = after(counter(1234, scaler=3), counter(1_234_567, scaler=0))
    assert not verdict.fallen
    _, verdict = after(counter(1_234_567, scaler=0), counter(1234, scaler=3))
    assert not verdict.fallen


def test_series_are_remembered_with_their_device():
    series, _ = after(counter(1000), counter(10))
    assert Series.load(series.save(), "123") == series
    assert Series.load(series.save(), "456") == Series("456")
    assert Series.load(None, "123") == Series("123")


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=20))
def test_within_a_device_name_and_without_roll_over_counters_never_fall(values):
    series, seen = Series("1"), {}
    for value in values:
        verdict = series.compare([counter(value, 2**32)])
        series.take([counter(value, 2**32)], verdict)
        last = seen.get(series.device)
        assert last is None or value >= last or verdict.rolled
        seen[series.device] = value
