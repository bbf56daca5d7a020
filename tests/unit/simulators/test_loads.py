"""Load curves: exact, rising, pure, and those of the households they come from."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulators.loads
from simulators.loads import CHANNELS, CYCLE_DAYS, ORIGIN, Load, curves, mix

DAY, QUARTER = 86_400, 900
FROM = 1_763_922_600  # an Indian midnight
INSTANTS = st.integers(ORIGIN, ORIGIN + 3 * CYCLE_DAYS * DAY)  # longer ones cost seconds each


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 5_000), cuts=st.lists(INSTANTS, min_size=3, max_size=6, unique=True))
def test_intervals_telescope_and_registers_never_fall(index: int, cuts: list[int]) -> None:
    load, cuts = Load(index, 7), sorted(cuts)
    assert sum(load.energy_wh(a, b) for a, b in pairwise(cuts)) == load.energy_wh(cuts[0], cuts[-1])
    assert (np.diff(load.cumulative(cuts), axis=0) >= 0).all()


def test_registers_rise_across_the_end_of_the_cycle() -> None:
    load = Load(4, 1)
    cycle = CYCLE_DAYS * DAY
    edge = (FROM + load.tz_s - 4 * DAY) // cycle * cycle + 4 * DAY - load.tz_s + cycle
    around = load.cumulative(np.arange(edge - DAY, edge + DAY, 450))
    assert (np.diff(around, axis=0) >= 0).all()
    one, two = (load.cumulative([t, t + cycle]) for t in (edge, edge + 12_345))
    assert (one[1] - one[0] == two[1] - two[0]).all()  # every cycle is like the last


def test_a_curve_is_a_pure_function() -> None:
    at = np.arange(FROM, FROM + DAY, 333)
    first = Load(130, 3).cumulative(at)
    again = Load(130, 3)
    assert (np.concatenate([again.cumulative(t) for t in at]) == first).all()
    assert (Load(130, 4).cumulative(at) != first).any()


def test_half_hours_are_the_households_own() -> None:
    packed = Path(simulators.loads.__file__).parent / "sgsc_households_30min.csv.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("2013-03-04T00:30"))
    load = Load(0, 1)  # household D001, not scaled, not shifted
    cycle = CYCLE_DAYS * DAY
    begin = (FROM + load.tz_s - 4 * DAY) // cycle * cycle + 4 * DAY - load.tz_s
    checked = 0
    for k in range(48 * 28):
        cell = lines[start + k].split(",")[1]
        if cell:
            assert load.energy_wh(begin + k * 1800, begin + (k + 1) * 1800) == int(cell)
            checked += 1
    assert checked > 1_000


def test_copies_are_shifted_by_whole_weeks_and_scaled() -> None:
    original, copy = Load(5, 9), Load(5 + 62, 9)
    week = 7 * DAY
    theirs = np.diff(original.cumulative(np.arange(FROM + week, FROM + week + DAY, 1800))[:, 0])
    ours = np.diff(copy.cumulative(np.arange(FROM, FROM + DAY, 1800))[:, 0])
    ratio = ours.sum() / theirs.sum()
    assert 0.69 < ratio < 1.31
    assert np.abs(ours - theirs * ratio).max() < 5


def test_apparent_energy_and_splits() -> None:
    load = Load(2, 1)
    energies = np.diff(load.cumulative(np.arange(FROM, FROM + 14 * DAY + 1, QUARTER)), axis=0)
    wh, q1, q4, vah = (energies[:, CHANNELS.index(c)] for c in ("import", "q1", "q4", "vah"))
    assert (vah >= wh).all()
    assert (np.abs(vah - np.sqrt(wh**2 + (q1 + q4) ** 2)) <= 1).all()
    assert (q1 * q4 == 0).all()
    assert q4.sum() > 0
    pairs = wh[0::2] + wh[1::2]
    share = wh[0::2] / np.maximum(pairs, 1)
    assert 0.45 < share[pairs > 50].mean() < 0.55  # a ~ Beta(8, 8)
    night = energies[: 6 * 4, CHANNELS.index("t1")]
    assert not night.any()


def test_only_every_fifth_meter_feeds_in_and_only_by_day() -> None:
    at = np.arange(FROM, FROM + DAY + 1, QUARTER)
    assert not np.diff(Load(0, 1).cumulative(at)[:, 1]).any()
    sun = np.diff(Load(4, 1).cumulative(at)[:, 1])
    assert not sun[: 6 * 4].any()
    assert not sun[18 * 4 :].any()
    assert sun[12 * 4] > 100


def test_voltage_and_power_are_believable() -> None:
    load = Load(11, 1)
    volts = load.voltage(np.arange(FROM, FROM + 60 * DAY, QUARTER))
    assert volts.shape[1] == 3
    assert volts.min() > 2_200
    assert volts.max() < 2_530
    power = load.power(FROM + 20 * 3600 + 1)
    quarter = load.energy_wh(FROM + 20 * 3600, FROM + 20 * 3600 + QUARTER)
    assert 0.94 * quarter * 4_000 <= power["import"] <= 1.06 * quarter * 4_000
    assert sum(Load.current(9_000_000, 2_300, p) for p in range(3)) == pytest.approx(
        39_130, abs=3
    )  # 9 kVA at 230 V, in mA


def test_blanks_are_filled_and_homes_differ() -> None:
    prefix = curves().prefix
    assert prefix.shape == (62, CYCLE_DAYS * 48 + 1)
    assert (np.diff(prefix, axis=1) >= 0).all()
    assert len(set(prefix[:, -1].tolist())) == 62
    assert len(np.unique(mix(np.arange(1000, dtype=np.uint64)))) == 1000
