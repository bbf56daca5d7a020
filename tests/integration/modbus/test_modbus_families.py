"""Shipped models against a slave that holds their registers: SunSpec chains, identification codes, sums, clocks."""

from __future__ import annotations

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.config.models import load_model
from edge_core.errors import MeterRefused, WrongMeter
from edge_core.protocols.modbus import codec

pytestmark = pytest.mark.integration


def values(readings):
    return {r.name: (r.value, r.scaler, r.unit) for r in readings}


# --- SunSpec


SUNSPEC = {
    "scale_a_sf": -2, "scale_v_sf": -1, "scale_hz_sf": -2, "scale_w_sf": 1, "scale_pf_sf": -1, "scale_va_sf": 0,
    "scale_var_sf": 0, "scale_totwh_sf": 1, "scale_totvah_sf": -32768, "scale_totvarh_sf": 0,
    "voltage_l1": 2301, "frequency": 5001, "active_power": -120, "power_factor": 985, "current_l3": -32768,
    "active_energy_import": 4_294_967_290, "active_energy_export": 0, "apparent_energy_import": 55,
    "apparent_energy_export": 5, "reactive_energy_q1": 7, "reactive_energy_q2": 0, "reactive_energy_q3": 0,
    "reactive_energy_q4": 0, "active_energy_import_l1": 0,
}  # fmt: skip


def sunspec(bench, base: int = 40_070, model_id: int = 203, **other):
    """A chain: marker, common model, a model that is none of ours, the meter, the end."""
    model = load_model("sunspec-201-204")
    image = bench.slave.registers[1] = {}

    def put(at, words):
        image.update(zip(range(at, at + len(words)), words, strict=True))

    put(40_000, (0x5375, 0x6E53, 1, 66))
    put(40_004, codec.encode("string", "Fronius", "big", 16))
    put(40_020, codec.encode("string", "Smart Meter 63A", "big", 16))
    put(40_036, (0,) * 8 + codec.encode("string", "1.2", "big", 8))
    put(40_052, codec.encode("string", "SN-4711", "big", 16))
    put(40_068, (1, 0x8000))
    if base > 40_070:
        put(40_070, (103, base - 40_072, *[0] * (base - 40_072)))
    size = max(p.address + codec.words_of(p.type, p.length) for p in model.points)
    put(base, [0] * size)
    for point in model.points:
        if point.name in (held := SUNSPEC | other):
            put(base + point.address, codec.encode(point.type, held[point.name], "big"))
    put(base, (model_id, size - 2))
    put(base + size, (0xFFFF, 0))
    return model


@pytest.mark.parametrize("base", [40_070, 40_122])
async def test_a_sunspec_meter_is_found_by_walking(bench, base):
    driver = bench.driver(model=sunspec(bench, base))
    assert (await driver.identify()).serial == "SN-4711"
    found = values(await driver.read_registers("instantaneous"))
    assert found["voltage_l1"] == (2301, -1, "V")
    assert found["active_power"] == (-120, 1, "W")
    assert found["power_factor"] == (985, -1, "%")
    assert found["current_l3"][0] is None  # 0x8000
    assert found["active_energy_import"] == (4_294_967_290, 1, "Wh")
    assert found["active_energy_export"] == (0, 1, "Wh")  # mandatory: 0 is a number
    assert found["active_energy_import_l1"][0] is None  # optional: 0 is not accumulated
    assert found["apparent_energy_import"][0] is None  # its scale register is not available
    plate = values(await driver.read_registers("nameplate"))
    assert (plate["vendor_name"][0], plate["active_firmware"][0]) == ("Fronius", "1.2")


async def test_the_place_is_remembered_and_found_again_when_it_moved(tcp_bench):
    model = sunspec(tcp_bench)
    driver = tcp_bench.driver(model=model)
    await driver.identify()
    await driver.close()
    tcp_bench.slave.asked.clear()
    await tcp_bench.driver(model=model).identify()
    assert [(a.address, a.count) for a in tcp_bench.slave.asked] == [(40_070, 2)]
    sunspec(tcp_bench, 40_122)
    moved = tcp_bench.driver(model=model)
    assert values(await moved.read_registers("instantaneous"))["voltage_l1"] == (2301, -1, "V")


async def test_no_meter_in_the_chain(tcp_bench):
    model = sunspec(tcp_bench, model_id=1003)
    with pytest.raises(WrongMeter, match=r"no marker SunS.*or no meter model"):
        await tcp_bench.driver(model=model).identify()


async def test_a_scale_register_decides_whether_counters_are_fine_enough(tcp_bench):
    model = sunspec(tcp_bench, scale_totvah_sf=0)
    (block,) = await tcp_bench.driver(model=model).read_profile(ProfileRequest("interval"))
    energy = {
        c.obis: (v[0], c.scaler) for c, v in zip(block.layout.cols, block.columns, strict=True)
    }
    assert energy["1.0.1.8.0.255"] == (4_294_967_290, 1)
    model = sunspec(tcp_bench, scale_totvah_sf=0, scale_totwh_sf=3)
    with pytest.raises(MeterRefused, match=r"active_energy_import.*too coarse"):
        await tcp_bench.driver(model=model).read_profile(ProfileRequest("interval"))


async def test_acc32_rolls_over(tcp_bench):
    model = sunspec(tcp_bench, scale_totvah_sf=0)
    driver = tcp_bench.driver(model=model)
    await driver.read_profile(ProfileRequest("interval"))
    sunspec(tcp_bench, scale_totvah_sf=0, active_energy_import=3)
    (block,) = await driver.read_profile(ProfileRequest("interval"))
    assert (block.device, block.q["rolled"]) == ("SN-4711", ["active_energy_import"])


# --- others


def abb(bench, code: int):
    model = load_model("abb-b23-b24")
    bench.slave.registers[1] = dict.fromkeys(
        (
            a
            for p in model.points
            for a in range(p.address, p.address + codec.words_of(p.type, p.length))
        ),
        0,
    )
    bench.slave.hold(
        1,
        model,
        {
            "frequency": 5001,
            "voltage_l1": 2299,
            "meter_serial_number": 77,
            "active_energy_import": 12,
        },
    )
    bench.slave.registers[1] |= {35_168: code >> 16, 35_169: code & 0xFFFF}
    return model


async def test_an_identification_code_proves_the_model(tcp_bench):
    model = abb(tcp_bench, 1_110_586_144)
    device = await tcp_bench.driver(model=model).identify()
    assert (device.serial, device.nameplate["model"]) == ("77", "B23")


async def test_an_unknown_code_is_another_model(tcp_bench):
    with pytest.raises(WrongMeter, match="the code there is 4711"):
        await tcp_bench.driver(model=abb(tcp_bench, 4711)).read_registers("instantaneous")


async def test_a_total_is_the_exact_sum_of_its_tariffs(tcp_bench):
    """Two halves of a watt-hour are one: rounded after the sum, not before."""
    model = load_model("siemens-pac3200")
    names = [p.name for p in model.points if p.kind == "cumulative"]
    tcp_bench.slave.registers[1] = dict.fromkeys(range(900), 0)
    tcp_bench.slave.hold(
        1, model, dict.fromkeys(names, 1.5) | {"frequency": 50.0, "voltage_l1": 230.0}
    )
    driver = tcp_bench.driver(model=model)
    (block,) = await driver.read_profile(ProfileRequest("interval"))
    assert [list(c) for c in block.columns] == [[3], [3], [3], [3]]
    assert [c.obis for c in block.layout.cols] == [
        "1.0.1.8.0.255",
        "1.0.2.8.0.255",
        "1.0.3.8.0.255",
        "1.0.4.8.0.255",
    ]
    (total,) = await driver.read_registers("1.0.1.8.0.255")
    assert (total.name, total.value) == ("active_energy_import", 3)
    tcp_bench.slave.hold(1, model, {"active_energy_import_t2": float("nan")})
    (total,) = await driver.read_registers("1.0.1.8.0.255")
    assert total.value is None  # a total without one of its parts would be a wrong one


async def test_reads_of_a_meter_that_refuses_parts_of_values_begin_and_end_with_values(tcp_bench):
    model = load_model("siemens-pac3200")
    spans = {p.address: p.address + codec.words_of(p.type, p.length) for p in model.points}
    tcp_bench.slave.registers[1] = {a: 0 for s, e in spans.items() for a in range(s, e)}
    await tcp_bench.driver(model=model).read_registers("instantaneous")
    assert all(a.address in spans for a in tcp_bench.slave.asked)
    assert all(a.address + a.count in spans.values() for a in tcp_bench.slave.asked)


async def test_whole_kilowatt_hours_are_refused_for_intervals_and_taken_for_midnights(tcp_bench):
    model = load_model("hager-ecr380d")
    tcp_bench.slave.tolerant = True
    tcp_bench.slave.registers[1] = {}
    tcp_bench.slave.hold(
        1, model, {"active_energy_import": 1234, "frequency": 5000, "meter_serial_number": "H1"}
    )
    driver = tcp_bench.driver(model=model)
    with pytest.raises(MeterRefused, match="whole kWh"):
        await driver.read_profile(ProfileRequest("interval"))
    (block,) = await driver.read_profile(ProfileRequest("midnight"))
    assert (block.device, list(block.columns[0]), block.layout.cols[0].scaler) == ("H1", [1234], 3)


async def test_schneiders_clock(tcp_bench):
    model = load_model("schneider-iem3155")
    tcp_bench.slave.registers[1] = {
        a: 0
        for p in model.points
        for a in range(p.address, p.address + codec.words_of(p.type, p.length))
    }
    # 2025-11-24 18:50:07.250: year / month, weekday and day / hour, minute / milliseconds
    words = (25, 11 << 8 | 1 << 5 | 24, 18 << 8 | 50, 7250)
    tcp_bench.slave.registers[1] |= dict(zip(range(1844, 1848), words, strict=True))
    (clock,) = await tcp_bench.driver(model=model).read_registers("clock")
    assert clock.value == "2025-11-24T18:50:07"
