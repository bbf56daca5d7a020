"""The Modbus driver over real sockets and pseudo-terminals: what it reads, samples, refuses and remembers."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.drivers.modbus import pool
from edge_core.clock import ManualClock
from edge_core.config.models import load_model
from edge_core.domain import Column, Flag
from edge_core.errors import LineSilent, MeterRefused, WrongMeter
from edge_core.journal.datadir import DataDirectory, Memories

pytestmark = pytest.mark.integration


def values(readings):
    return {r.name: (r.value, r.scaler, r.unit) for r in readings}


async def test_instantaneous_values_are_integers_with_scalers(bench, truth):
    driver = bench.driver()
    device = await driver.identify()
    assert device.serial == "20260001"
    assert values(await driver.read_registers("instantaneous")) == truth


async def test_nameplate_codes_and_names(bench):
    driver = bench.driver()
    (serial,) = await driver.read_registers("nameplate")
    assert (serial.name, serial.value, serial.obis) == (
        "meter_serial_number",
        20_260_001,
        "0.0.96.1.0.255",
    )
    (energy,) = await driver.read_registers("1.0.1.8.0.255")
    assert (energy.value, energy.scaler) == (4_000_000, 1)
    assert await driver.read_registers("1.0.1.8.0.255:2") == [energy]
    (power,) = await driver.read_registers("active_power")
    assert power.value == -1180


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("1.0.99.99.0.255", "no such point"),
        ("1.0.1.8.0.255:3", "attribute 2"),
        ("clock", "no clock"),
        ("frequenzy", "no such point"),
    ],
)
async def test_what_the_model_does_not_have_is_refused_by_name(tcp_bench, what, words):
    with pytest.raises(MeterRefused, match=words) as refused:
        await tcp_bench.driver().read_registers(what)
    assert refused.value.meter == "M1"
    assert what in refused.value.during
    assert not tcp_bench.slave.asked  # nobody was asked for what cannot be


async def test_an_interval_is_the_sample_of_now_under_its_nominal_boundary(bench):
    clock = ManualClock(civil=1_764_000_000 + 7 * 900 + 41.25)
    (block,) = await bench.driver(clock=clock).read_profile(ProfileRequest("interval"))
    assert (block.meter, block.device, block.kind) == ("M1", "20260001", "interval")
    assert (block.layout.profile, block.layout.period) == ("1.0.99.1.0.255", 900)
    assert block.layout.cols == (Column("1.0.1.8.0.255", "Wh", 1), Column("1.0.2.8.0.255", "Wh", 1))
    assert [list(c) for c in block.columns] == [[4_000_000], [77]]
    assert list(block.times) == [1_764_000_000 + 7 * 900]
    assert block.flags == ((0, 1, int(Flag.SAMPLED)),)
    at = 1000 * (1_764_000_000 + 7 * 900) + 41_250
    assert block.q == {"at": at, "bound": [at - 1000, at]}


async def test_a_sample_just_before_the_boundary_belongs_to_it(tcp_bench):
    clock = ManualClock(civil=1_764_000_900 - 3)
    (block,) = await tcp_bench.driver(clock=clock).read_profile(ProfileRequest("interval"))
    assert list(block.times) == [1_764_000_900]
    (block,) = await tcp_bench.driver(clock=clock).read_profile(
        ProfileRequest("interval", until=1_764_000_899)
    )
    assert list(block.times) == [1_764_000_000]  # the caller may name the boundary


@pytest.mark.parametrize(
    "request_",
    [
        ProfileRequest("interval", until=1_764_000_000 - 1),
        ProfileRequest("interval", since=1_764_000_001),
        ProfileRequest("midnight", until=1_763_800_000),
    ],
)
async def test_what_is_past_cannot_be_sampled(tcp_bench, request_):
    """A sample of now must never be stamped with another day: the meter remembers nothing."""
    clock = ManualClock(civil=1_764_000_030)
    assert await tcp_bench.driver(clock=clock).read_profile(request_) == []


async def test_a_midnight_is_stamped_with_the_civil_midnight(tcp_bench):
    clock = ManualClock(civil=1_764_009_000 + 20)  # 2025-11-25 00:00:20 in Kolkata
    driver = tcp_bench.driver(clock=clock, zone="Asia/Kolkata")
    (block,) = await driver.read_profile(ProfileRequest("midnight"))
    assert list(block.times) == [1_764_009_000]
    assert (block.tz, block.layout.profile, block.layout.period) == (330, "1.0.99.2.0.255", 86_400)


async def test_a_boundary_sweep_asks_for_the_counters_alone(tcp_bench):
    driver = tcp_bench.driver()
    await driver.identify()
    tcp_bench.slave.asked.clear()
    await driver.read_profile(ProfileRequest("interval"))
    assert [(a.address, a.count) for a in tcp_bench.slave.asked] == [(100, 4)]


async def test_a_counter_that_falls_begins_a_new_series(tcp_bench):
    driver = tcp_bench.driver()
    (first,) = await driver.read_profile(ProfileRequest("interval"))
    tcp_bench.slave.hold(1, tcp_bench.model, {"active_energy_import": 12})
    (second,) = await driver.read_profile(ProfileRequest("interval"))
    assert (first.device, second.device) == ("20260001", "20260001/1")
    await driver.close()
    (third,) = await tcp_bench.driver().read_profile(ProfileRequest("interval"))
    assert third.device == "20260001/1"  # also in the next session
    assert (await tcp_bench.driver().identify()).serial == "20260001"


async def test_a_fall_that_a_second_reading_does_not_confirm_is_none(tcp_bench):
    driver = tcp_bench.driver()
    await driver.read_profile(ProfileRequest("interval"))

    async def glitch(slave, asked, send):
        send(slave.frame(asked, bytes([4, 8]) + bytes(8)))

    tcp_bench.slave.faults = [glitch]
    (block,) = await driver.read_profile(ProfileRequest("interval"))
    assert block.device == "20260001"
    assert [list(c) for c in block.columns] == [[4_000_000], [77]]


async def test_a_roll_over_is_noted_and_the_series_goes_on(tcp_bench):
    driver = tcp_bench.driver()
    tcp_bench.slave.hold(1, tcp_bench.model, {"active_energy_import": 2**32 - 9})
    await driver.read_profile(ProfileRequest("interval"))
    tcp_bench.slave.hold(1, tcp_bench.model, {"active_energy_import": 5})
    (block,) = await driver.read_profile(ProfileRequest("interval"))
    assert block.device == "20260001"
    assert block.q["rolled"] == ["active_energy_import"]


async def test_another_serial_than_configured_is_the_wrong_meter(tcp_bench):
    with pytest.raises(WrongMeter, match=r"20260001.*expected 'X1'"):
        await tcp_bench.driver(serial="X1").read_registers("instantaneous")
    assert len(tcp_bench.slave.asked) == 1  # the serial; nothing else was read


async def test_without_a_serial_number_the_unit_is_the_device(tcp_bench):
    tcp_bench.slave.hold(1, tcp_bench.model, {"meter_serial_number": 0})
    assert (await tcp_bench.driver(memory=type(tcp_bench.memory)()).identify()).serial == "unit-1"
    configured = tcp_bench.driver(memory=type(tcp_bench.memory)(), serial="S-9")
    assert (await configured.identify()).serial == "S-9"


async def test_not_available_is_null_and_never_a_number(bench, truth):
    bench.slave.hold(
        1, bench.model, {"voltage_l1": float("nan"), "active_energy_export": 2**32 - 1}
    )
    found = values(await bench.driver().read_registers("instantaneous"))
    assert found == {
        **truth,
        "voltage_l1": (None, -1, "V"),
        "active_energy_export": (None, 1, "Wh"),
    }


# --- the proof of the model


async def test_swapped_words_are_named(bench):
    image = bench.slave.registers[1]
    image[8], image[9] = image[9], image[8]
    with pytest.raises(
        WrongMeter,
        match="frequency at 8 is impossible as modelled, and right with the words swapped",
    ):
        await bench.driver().read_registers("instantaneous")


@pytest.mark.parametrize("shift", [-1, 1])
async def test_a_base_that_is_off_by_one_is_named(tcp_bench, shift):
    image = tcp_bench.slave.registers[1]
    voltage, frequency = image[0], (image[8], image[9])
    image.update(dict.fromkeys(range(12), 0x1234))
    image.update({0: voltage, 8 + shift: frequency[0], 9 + shift: frequency[1]})
    with pytest.raises(WrongMeter, match=rf"impossible as modelled, and right .*at {8 + shift}"):
        await tcp_bench.driver().read_registers("instantaneous")


async def test_nonsense_is_named_with_its_registers(tcp_bench):
    for at in range(7, 12):
        tcp_bench.slave.registers[1][at] = 0x1234
    with pytest.raises(WrongMeter, match="1234 1234, which is no Hz"):
        await tcp_bench.driver().read_registers("instantaneous")


async def test_a_meter_without_voltage_is_believed(tcp_bench):
    tcp_bench.slave.hold(1, tcp_bench.model, {"frequency": 0.0, "voltage_l1": 0.0})
    found = values(await tcp_bench.driver().read_registers("instantaneous"))
    assert found["voltage_l1"] == (0, -1, "V")


async def test_the_proof_is_made_daily_not_at_each_visit(tcp_bench):
    clock = ManualClock()
    for _ in range(2):
        driver = tcp_bench.driver(clock=clock)
        await driver.identify()
        await driver.close()
    assert [a.address for a in tcp_bench.slave.asked] == [200, 0, 8, 200]
    clock.advance(90_000)
    tcp_bench.slave.asked.clear()
    await tcp_bench.driver(clock=clock).identify()
    assert [a.address for a in tcp_bench.slave.asked] == [200, 0, 8]


async def test_a_selectable_word_order_is_found_and_kept(tcp_bench, tmp_path: Path):
    text = (
        Path(__file__).with_name("conftest.py").read_text().split('MODEL = """')[1].split('"""')[0]
    )
    file = tmp_path / "selectable.toml"
    file.write_text(
        textwrap.dedent(text).replace(
            "link.hole_policy", "link.word_order_selectable = true\nlink.hole_policy"
        )
    )
    model = load_model(str(file))
    image = tcp_bench.slave.registers[1]
    for at in (0, 2, 4, 8, 100, 102, 120, 200):
        image[at], image[at + 1] = image[at + 1], image[at]
    driver = tcp_bench.driver(model=model)
    found = values(await driver.read_registers("instantaneous"))
    assert found["active_energy_import"] == (4_000_000, 1, "Wh")
    assert tcp_bench.memory["modbus"]["order"] == "little"


# --- what the answers teach


async def test_refused_registers_are_isolated_and_remembered(bench, truth):
    bench.slave.refused = {102, 103}
    driver = bench.driver()
    found = values(await driver.read_registers("instantaneous"))
    assert found == {**truth, "active_energy_export": (None, 1, "Wh")}
    await driver.close()
    bench.slave.asked.clear()
    assert values(await bench.driver().read_registers("instantaneous")) == found
    touched = {at for a in bench.slave.asked for at in range(a.address, a.address + a.count)}
    assert not touched & bench.slave.refused


async def test_what_was_learned_is_kept_by_serial_number_over_restarts(tcp_bench, tmp_path):
    """On disk, as a gateway keeps it; another device at the same place begins anew."""
    slave = tcp_bench.slave
    slave.refused = {102, 103}

    async def visit():
        """A process that begins, reads and ends; which registers it touched."""
        slave.asked.clear()
        memories = Memories(DataDirectory(tmp_path).prepare(), now=0.0)
        driver = tcp_bench.driver(memory=memories.of("M1"))
        await driver.read_registers("instantaneous")
        await driver.close()
        memories.close()
        return {at for a in slave.asked for at in range(a.address, a.address + a.count)}

    assert await visit() & slave.refused
    assert not await visit() & slave.refused
    slave.hold(1, tcp_bench.model, {"meter_serial_number": 77})
    assert await visit() & slave.refused  # another meter may have them
    assert not await visit() & slave.refused


async def test_a_smaller_size_limit_is_found_and_remembered(bench, truth):
    bench.slave.limit = 3
    driver = bench.driver()
    assert values(await driver.read_registers("instantaneous")) == truth
    await driver.close()
    bench.slave.asked.clear()
    await bench.driver().read_registers("instantaneous")
    assert max(a.count for a in bench.slave.asked) <= 3


async def test_a_table_that_does_not_exist_ends_soon(bench):
    bench.slave.refused = set(range(300))
    with pytest.raises(MeterRefused, match="illegal data address") as refused:
        await bench.driver().read_registers("instantaneous")
    assert refused.value.code == 2
    assert len(bench.slave.asked) < 12


async def test_holes_are_never_crossed_unless_the_model_says_so(bench):
    await bench.driver().read_registers("instantaneous")
    defined = set(bench.slave.registers[1])
    touched = {at for a in bench.slave.asked for at in range(a.address, a.address + a.count)}
    assert touched <= defined


# --- lines


async def test_units_share_one_connection(bench, truth):
    first, second = bench.driver(1), bench.driver(2, memory=type(bench.memory)())
    one, two = await asyncio.gather(
        first.read_registers("instantaneous"), second.read_registers("instantaneous")
    )
    assert values(one) == truth
    assert values(two)["voltage_l1"] == (1110, -1, "V")
    assert bench.slave.most_open <= 1


async def test_a_line_that_nobody_leases_is_closed(tcp_bench, monkeypatch):
    monkeypatch.setattr(pool, "LINGER_S", 0.05)
    driver = tcp_bench.driver()
    await driver.identify()
    assert tcp_bench.slave.open == 1
    await driver.close()
    async with asyncio.timeout(5):
        while tcp_bench.slave.open:
            await asyncio.sleep(0.01)


async def test_nobody_listens(tcp_bench):
    tcp_bench.place = "127.0.0.1:9/{}"
    with pytest.raises(LineSilent, match=r"M1 \(line, modbus-tcp 127.0.0.1:9/1\).*no connection"):
        await tcp_bench.driver().identify()


async def test_a_port_that_is_not_there(rtu_bench):
    if rtu_bench.line.transport != "serial":
        return
    line = type(rtu_bench.line)(
        id="gone", transport="serial", framing="modbus-rtu", device="/dev/serial/by-path/none"
    )
    rtu_bench.line = line
    with pytest.raises(LineSilent, match="cannot be opened: No such file"):
        await rtu_bench.driver().identify()


async def test_the_trace_shows_plan_and_frames(bench):
    await bench.driver().read_registers("active_power")
    kinds = [kind for kind, _ in bench.frames]
    assert set(kinds) == {"plan", "send", "receive"}
    plans = [octets.decode() for kind, octets in bench.frames if kind == "plan"]
    assert any("input 4..5 (1 values)" in text for text in plans)
    sent = [octets for kind, octets in bench.frames if kind == "send"]
    assert sent == [a.raw for a in bench.slave.asked]


# --- midnights that the meter keeps itself


def keep_midnights(bench, clock_digits: str):
    model = load_model("lt-er300p")
    bench.slave.hold(
        1,
        model,
        {
            "frequency": 50,
            "voltage_l1": 230,
            "meter_clock": int(clock_digits),
            "midnight_active_energy_import_today": 900,
            "midnight_active_energy_import_yesterday": 800,
            "midnight_active_energy_export_today": 9,
            "midnight_active_energy_export_yesterday": 8,
        },
    )
    return model


async def test_kept_midnights_are_rows_of_the_meters_own_days(tcp_bench):
    """2025-11-24 18:50 in Kolkata: hours after midnight, and still the exact values of two midnights."""
    model = keep_midnights(tcp_bench, "2511002418500000")
    clock = ManualClock(civil=1_763_990_400)  # 2025-11-24 18:50 +05:30
    driver = tcp_bench.driver(model=model, clock=clock, zone="Asia/Kolkata")
    (block,) = await driver.read_profile(ProfileRequest("midnight"))
    today = 1_763_922_600  # 2025-11-24 00:00 +05:30
    assert list(block.times) == [today - 86_400, today]
    assert [list(c) for c in block.columns] == [[800, 900], [8, 9]]
    assert [c.obis for c in block.layout.cols] == ["1.0.1.8.0.255", "1.0.2.8.0.255"]
    assert (block.flags, block.tz, block.device) == ((), 330, "unit-1")
    assert block.q == {"clock_offset_s": 0}
    (block,) = await driver.read_profile(ProfileRequest("midnight", since=today))
    assert [list(c) for c in block.columns] == [[900], [9]]
    assert await driver.read_profile(ProfileRequest("midnight", since=today + 1)) == []
    assert await driver.clock_offset() == 0
    (shown,) = await driver.read_registers("clock")
    assert shown.value == "2025-11-24T18:50:00"


async def test_midnights_of_a_wrong_clock_are_flagged(tcp_bench):
    model = keep_midnights(tcp_bench, "2511002418500000")
    clock = ManualClock(civil=1_763_990_400 + 3600)
    driver = tcp_bench.driver(model=model, clock=clock, zone="Asia/Kolkata")
    (block,) = await driver.read_profile(ProfileRequest("midnight"))
    assert block.flags == ((0, 2, int(Flag.CLOCK_INVALID)),)


async def test_midnights_without_a_date_are_refused(tcp_bench):
    model = keep_midnights(tcp_bench, "0")
    with pytest.raises(MeterRefused, match="clock holds no time"):
        await tcp_bench.driver(model=model).read_profile(ProfileRequest("midnight"))


def test_lines_work_on_the_gateways_loop(under_uvloop, truth):
    async def reads(bench):
        driver = bench.driver()
        assert values(await driver.read_registers("instantaneous")) == truth
        (block,) = await driver.read_profile(ProfileRequest("interval"))
        assert [list(c) for c in block.columns] == [[4_000_000], [77]]

        async def silent(slave, asked, send):
            pass

        bench.slave.faults = [silent]
        (reading,) = await driver.read_registers("active_energy_export")
        assert reading.value == 77
        if bench.line.transport == "tcp":
            bench.slave.drop()
            assert values(await driver.read_registers("instantaneous")) == truth

    under_uvloop(reads)
