"""Rows of one meter: captured on its own clock, consistent with its registers, told again as truth."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.dlms.device import Device
from simulators.dlms.layouts import IDIS, IS15959, LAYOUTS, Layout, Profile

NOW = 1_764_000_000
DAY = 86_400


def device(layout: Layout = IS15959, days: float = 2, zone: str = "") -> Device:
    made = Device(layout, 70_000_001, 4, 1, int(NOW - days * DAY), zone)
    made.capture(NOW)
    return made


def column(truth: dict[str, list], obis: str, attribute: int = 2) -> list[int]:
    place = next(i for i, c in enumerate(truth["cols"]) if (c[0], c[3]) == (obis, attribute))
    return truth["values"][place]


def test_block_load_and_midnights_tell_the_same_story() -> None:
    d = device(days=4)
    blocks, days = d.truth("interval"), d.truth("midnight")
    assert len(blocks["t"]) == 4 * 96
    assert [t % 900 for t in blocks["t"]] == [0] * len(blocks["t"])
    assert [(t + 330 * 60) % DAY for t in days["t"]] == [0] * 4
    for block, total in (("1.0.1.29.0.255", "1.0.1.8.0.255"), ("1.0.2.29.0.255", "1.0.2.8.0.255")):
        energy = dict(zip(blocks["t"], column(blocks, block), strict=True))
        registers = column(days, total)
        for k in range(1, 4):
            day = [energy[t] for t in range(days["t"][k - 1] + 900, days["t"][k] + 1, 900)]
            assert sum(day) == registers[k] - registers[k - 1]


def test_idis_rows_are_registers() -> None:
    d = device(IDIS)
    truth = d.truth("interval")
    rows = np.array(column(truth, "1.0.1.8.0.255"))
    assert (np.diff(rows) >= 0).all()
    assert rows[-1] == int(d.registers(truth["t"][-1])["import"][0])
    days = d.truth("midnight")
    total, t1, t2 = (column(days, f"1.0.1.8.{k}.255") for k in (0, 1, 2))
    assert [a + b for a, b in zip(t1, t2, strict=True)] == total


@pytest.mark.parametrize(
    ("model", "kind"), [("is15959-3ph", "interval"), ("idis", "interval"), ("idis", "midnight")]
)
def test_null_data_says_the_same(model: str, kind: str) -> None:
    d = device(LAYOUTS[model])
    rows = np.arange(len(d.rows[kind].times))
    plain, nulls = d.encode(kind, rows, None), d.encode(kind, rows, None, nulls=True)
    assert sum(map(len, nulls)) < sum(map(len, plain))
    profile = d.rows[kind].profile
    widths = [14, *({1: 2, 2: 3, 4: 5, 12: 14}[c.width] for c in profile.columns)]
    previous: list[bytes] = []
    for whole, short in zip(plain, nulls, strict=True):
        cells, at = [], 2
        for k, width in enumerate(widths):
            if short[at] == 0:
                cells.append(None if k == 0 else previous[k])
                at += 1
            else:
                cells.append(short[at : at + width])
                at += width
        assert at == len(short)
        clock = whole[2:16]
        cells[0] = clock if cells[0] is None else cells[0]
        assert b"".join(c for c in cells if c) == whole[2:]
        previous = [c or b"" for c in cells]


def test_a_clock_set_back_repeats_times_and_loses_no_energy() -> None:
    d = device()
    before = len(d.rows["interval"].times)
    d.set_clock(NOW, NOW - 1_800)
    d.capture(NOW + 3_600)
    truth = d.truth("interval")
    assert truth["occ"] == [[before - 1, 0]][:0] + [[before, 1], [before + 1, 1]]
    assert truth["t"][before:] == [NOW - 900, NOW, NOW + 900, NOW + 1_800]
    energy = column(truth, "1.0.1.29.0.255")[before:]
    assert sum(energy) == d.load.energy_wh(NOW, NOW + 3_600)
    assert d.rows["events-3"].codes.tolist() == [151]


def test_a_clock_set_ahead_jumps_over_boundaries() -> None:
    d = device()
    before = len(d.rows["interval"].times)
    d.set_clock(NOW + 100, NOW + 100 + 2_000)
    d.capture(NOW + 1_800)
    truth = d.truth("interval")
    assert truth["t"][before:] == [NOW + 2_700, NOW + 3_600]
    assert truth["occ"] == []
    assert column(truth, "1.0.1.29.0.255")[before] == d.load.energy_wh(
        NOW, NOW + 700
    )  # its end on the true clock
    d.set_clock(NOW + 1_800, NOW + 1_800 + d.offset)  # to what it is already: nothing happens
    assert d.rows["interval"].status == {before: 0x20}


def test_no_power_no_rows_no_energy() -> None:
    d = device(IDIS)
    before = len(d.rows["interval"].times)
    registers = d.registers(NOW)["import"][0]
    d.power_off(NOW)
    d.capture(NOW + 3_000)
    assert d.registers(NOW + 3_000)["import"][0] == registers
    d.power_on(NOW + 3_000)
    d.power_on(NOW + 3_100)  # is on already
    d.capture(NOW + 5_400)
    truth = d.truth("interval")
    assert truth["t"][before:] == [NOW + 3_600, NOW + 4_500, NOW + 5_400]
    flags = {first: bits for first, _, bits in truth["flags"]}
    assert flags == {before: 1}  # power-down
    assert column(truth, "1.0.1.8.0.255")[-1] == registers + d.load.energy_wh(
        NOW + 3_000, NOW + 5_400
    )


def test_missing_rows_stay_missing() -> None:
    d = device()
    before = len(d.rows["interval"].times)
    d.capture(NOW + 2_700, missing=True)
    d.capture(NOW + 3_600)
    truth = d.truth("interval")
    assert truth["t"][before:] == [NOW + 3_600]
    assert column(truth, "1.0.1.29.0.255")[-1] == d.load.energy_wh(NOW + 2_700, NOW + 3_600)


def test_summer_time_ends_and_the_hour_comes_twice_on_the_wall() -> None:
    change = 1_761_440_400  # 2025-10-26 01:00 UTC
    d = Device(IDIS, 1, 1, 1, change - DAY, "")
    d.capture(change + DAY)
    truth = d.truth("interval")
    assert len(truth["t"]) == 2 * 96
    assert truth["occ"] == []
    summer = {truth["t"][first] for first, _, bits in truth["flags"] if bits & 4}
    assert summer == {t for t in truth["t"] if t < change}
    assert [
        t - s for s, t in zip(d.truth("midnight")["t"], d.truth("midnight")["t"][1:], strict=False)
    ] == [25 * 3600]


def test_memory_is_bounded_and_the_truth_remembers() -> None:
    small = Profile(
        "1.0.99.1.0.255", "interval", 900, IS15959.profiles[0].columns, 10, "1.0.94.91.4.255"
    )
    d = device()
    d.rows["interval"].profile = small
    assert d.rows["interval"].oldest == 192 - 10
    assert d.truth("interval")["held_from"] == 182
    assert len(d.truth("interval")["t"]) == 192


def test_billing_months() -> None:
    d = device(days=70)
    truth = d.truth("billing")
    assert len(truth["t"]) == 2
    peak, when = column(truth, "1.0.1.6.0.255"), column(truth, "1.0.1.6.0.255", 5)
    begin, end = truth["t"]
    quarters = [d.load.energy_wh(t - 900, t) * 4 for t in range(begin + 900, end + 1, 900)]
    assert peak[1] == max(quarters)
    assert d.load.energy_wh(when[1] - 900, when[1]) * 4 == peak[1]
    assert column(truth, "0.0.0.1.2.255") == truth["t"]


def test_empty_profiles() -> None:
    d = device(days=0)
    assert d.encode("midnight", [], None) == []
    assert d.truth("midnight")["values"] == [[], [], [], []]


@pytest.mark.parametrize("layout", [IS15959, IDIS])
def test_every_register_can_be_read_now(layout: Layout) -> None:
    d = device(layout)
    for c in [
        *layout.instantaneous,
        *(c for p in layout.profiles if p.log is None for c in p.columns),
    ]:
        value = d.now_value(c, NOW + 0.5)
        assert 0 <= value < 1 << 32, c
        if c.unit == "V":
            assert 220 < value * 10**c.scaler < 255
        if c.unit == "A":
            assert value * 10.0**c.scaler < 60
