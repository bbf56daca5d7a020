"""Simulated Modbus meters: every model of the product is served, foreign masters read the true registers."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
from pymodbus import FramerType, ModbusException
from pymodbus.client import AsyncModbusTcpClient

from edge_core.clock import ManualClock
from simulators.fleet import Fleet
from simulators.modbus.points import Map, Point, load_map
from simulators.modbus.units import Unit
from simulators.spec import FleetSpec, ModbusGroup
from tests.conftest import program

pytestmark = pytest.mark.integration
NOW = 1_764_000_000
MODELS = Path(__file__).parents[2] / "edge_core/acquisition/meters"
MODBUS = sorted(p.stem for p in MODELS.glob("*.toml") if 'protocol = "modbus"' in p.read_text())
IMPORT, VOLTAGE, POWER = "1.0.1.8.0.255", "1.0.32.7.0.255", "1.0.16.7.0.255"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(float(NOW))


class Bus:
    """A fleet of one line and a master on it."""

    def __init__(self, fleet: Fleet, rtu: bool) -> None:
        self.fleet, self.units = fleet, fleet.modbus
        self.master = AsyncModbusTcpClient(
            "127.0.0.1",
            port=self.units[0].port,
            framer=FramerType.RTU if rtu else FramerType.SOCKET,
            timeout=0.3,
            retries=0,
        )

    async def words(self, unit: Unit, point: Point) -> list[int]:
        return await self.read(unit, point.table, point.address, point.size)

    async def read(self, unit: Unit, table: str, address: int, count: int) -> Any:
        ask = (
            self.master.read_holding_registers
            if table == "holding"
            else self.master.read_input_registers
        )
        answer = await ask(address, count=count, device_id=unit.unit)
        return answer.exception_code if answer.isError() else answer.registers


@pytest.fixture
async def bus_of(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Any]:
    opened: list[Bus] = []

    async def make(model: str, count: int = 2, framing: str = "modbus-tcp") -> Bus:
        spec = FleetSpec(modbus=(ModbusGroup(model=model, count=count, framing=framing),))
        fleet = Fleet(spec, tmp_path / f"state{len(opened)}", clock)
        await fleet.open()
        opened.append(Bus(fleet, framing == "modbus-rtu"))
        assert await opened[-1].master.connect()
        return opened[-1]

    yield make
    for bus in opened:
        bus.master.close()
        await bus.fleet.close()


def decoded(point: Point, words: list[int]) -> Decimal:
    """A number as the map's README says, written apart from the simulator's encoder."""
    ordered = words if point.word_order == "big" else words[::-1]
    octets = b"".join(w.to_bytes(2, "big") for w in ordered)
    form = {"float32": ">f", "float64": ">d"}.get(point.type)
    raw = (
        Decimal(struct.unpack(form, octets)[0])
        if form
        else Decimal(int.from_bytes(octets, "big", signed=point.type.startswith("int")))
    )
    return raw.scaleb(point.scale)


@pytest.mark.parametrize("model", MODBUS)
async def test_every_model_is_served(model: str, bus_of: Any) -> None:
    bus = await bus_of(model)
    unit = bus.units[1]
    for point in unit.map.points:
        words = await bus.words(unit, point)
        assert words == unit.words(point, NOW), point.name
        if (
            point.kind in ("cumulative", "instantaneous")
            and not point.scale_point
            and point.type not in ("acc32", "bcd", "mod10k")
            and point.unit != "%"
        ):
            assert decoded(point, words) == unit.truth(point.name, NOW), point.name
            if re.fullmatch(r"voltage_l\d", point.name):
                assert 220 < decoded(point, words) < 255
            if point.name == "frequency":
                assert 49 < decoded(point, words) < 51
    if unit.map.identify:
        table, address, words = unit.map.identify
        assert await bus.read(unit, table, address, len(words)) == list(words)


@pytest.mark.parametrize("model", ["eastron-sdm630", "schneider-iem3155", "abb-b23-b24"])
@pytest.mark.parametrize("framing", ["modbus-tcp", "modbus-rtu"])
async def test_counters_rise_with_the_load(
    model: str, framing: str, bus_of: Any, clock: ManualClock
) -> None:
    bus = await bus_of(model, framing=framing)
    unit = bus.units[0]
    (point,) = unit.map.find(IMPORT)
    seen = []
    for _ in range(5):
        number = decoded(point, await bus.words(unit, point))
        true = unit.quantities.load.cumulative(int(clock.now()))[0, 0]
        assert abs(number - int(true)) <= max(Decimal(5), Decimal(10) ** point.scale) / 2
        seen.append(number)
        clock.advance(3_600)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


async def test_phases_and_powers_agree(bus_of: Any) -> None:
    unit = (await bus_of("abb-b23-b24")).units[0]
    truth = lambda name: unit.truth(name, NOW)  # noqa: E731
    assert abs(sum(truth(f"active_power_l{k}") for k in (1, 2, 3)) - truth("active_power")) < 1
    assert (
        abs(
            sum(truth(f"active_energy_import_l{k}") for k in (1, 2, 3))
            - truth("active_energy_import")
        )
        <= 30
    )
    for k in (1, 2, 3):
        apparent = truth(f"voltage_l{k}") * truth(f"current_l{k}")
        assert abs(apparent - truth(f"apparent_power_l{k}")) < 5
    assert truth("nonsense") is None


async def test_holes_limits_writes_and_other_units(bus_of: Any) -> None:
    bus = await bus_of("abb-b23-b24")
    unit = bus.units[0]
    assert await bus.read(unit, "holding", 20_500, 4) == 2  # a hole
    pair = [unit.map.find(obis)[0] for obis in (IMPORT, "1.0.2.8.0.255")]
    assert await bus.read(unit, "holding", 20_480, 8) == [
        w for p in pair for w in unit.words(p, NOW)
    ]
    assert await bus.read(unit, "input", 20_480, 4) == 2  # function 4 reads nothing of this meter
    written = await bus.master.write_register(20_480, 1, device_id=unit.unit)
    assert written.exception_code == 1
    with pytest.raises(ModbusException):
        await bus.master.read_holding_registers(20_480, count=4, device_id=99)  # nobody: silence
    sdm = await bus_of("eastron-sdm630")
    assert len(await sdm.read(sdm.units[0], "input", 0, 50)) == 50
    assert await sdm.read(sdm.units[0], "input", 0, 51) == 3  # beyond the limit of the model
    pac = await bus_of("siemens-pac3200")
    first = pac.units[0].map.points[0]
    assert await pac.read(pac.units[0], first.table, first.address + 1, 1) == 2  # half of a value


async def test_faults(bus_of: Any) -> None:
    for framing in ("modbus-tcp", "modbus-rtu"):
        bus = await bus_of("eastron-sdm630", framing=framing)
        unit, other = bus.units
        for what in ("silent", "refuse", "cut", "garbage", "slow"):
            await bus.fleet.obey({"do": "fault", "meter": unit.id, "what": what, "for": 60})
            with pytest.raises(ModbusException):
                await bus.read(unit, "input", 0, 2)
            unit.faults.end(what)
            bus.master.close()
            assert await bus.master.connect()
            assert await bus.read(other, "input", 0, 2) == other.words(other.map.points[0], NOW)
        await bus.fleet.obey({"do": "fault", "meter": unit.id, "what": "busy", "for": 60})
        assert await bus.read(unit, "input", 0, 2) == 6
        unit.faults.end("busy")
        assert await bus.read(unit, "input", 0, 2) == unit.words(unit.map.points[0], NOW)


async def test_a_reset_begins_at_nothing(bus_of: Any, clock: ManualClock) -> None:
    bus = await bus_of("schneider-iem3155")
    unit = bus.units[0]
    await bus.fleet.obey({"do": "swap", "meter": unit.id})
    assert unit.truth(IMPORT, NOW) == 0
    clock.advance(86_400)
    assert unit.truth(IMPORT, int(clock.now())) == unit.quantities.load.energy_wh(NOW, NOW + 86_400)


async def test_samples_are_judged(bus_of: Any, tmp_path: Path, clock: ManualClock) -> None:
    bus = await bus_of("eastron-sdm630")
    unit = bus.units[0]
    good = []
    for obis, scaler in ((IMPORT, 0), (VOLTAGE, -1), (POWER, 0)):
        for at in (NOW, NOW + 7):
            true = unit.truth(obis, at)
            value = int(true.quantize(Decimal(1).scaleb(scaler), ROUND_HALF_EVEN).scaleb(-scaler))
            good.append(
                {
                    "meter": unit.id,
                    "obis": obis,
                    "value": value,
                    "scaler": scaler,
                    "from": at - 2,
                    "to": at + 2,
                }
            )
    hours = unit.truth(IMPORT, NOW)
    late = int(unit.truth(IMPORT, NOW + 4_000))
    wide = {
        "meter": unit.id,
        "obis": IMPORT,
        "value": late,
        "scaler": 0,
        "from": NOW,
        "to": NOW + 7_200,
    }
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, [*good, wide])))
    assert await bus.fleet.obey({"do": "verify", "file": str(file)}) == {
        "do": "verify", "ok": True, "checked": 7, "wrong_count": 0, "wrong": [],
    }  # fmt: skip
    bad = [
        good[0] | {"value": good[0]["value"] + 3},
        good[0] | {"scaler": 1},
        good[2] | {"from": NOW + 900 * 30, "to": NOW + 900 * 30 + 1},
        good[0] | {"obis": "1.0.99.99.0.255"},
        wide | {"value": int(hours) - 5},
    ]
    file.write_text("\n".join(map(json.dumps, [*good, *bad])))
    answer = await bus.fleet.obey({"do": "verify", "file": str(file)})
    assert (answer["checked"], answer["wrong_count"]) == (11, 5)
    assert [w["value"] for w in answer["wrong"]] == [b["value"] for b in bad]
    asked = await bus.fleet.obey(
        {"do": "modbus", "meter": unit.id, "points": [IMPORT, "voltage_l1"], "at": NOW}
    )
    assert Decimal(asked["values"][IMPORT]) == unit.truth(IMPORT, NOW)
    file.write_text("{}")
    assert "error" in await bus.fleet.obey({"do": "verify", "file": str(file)})


async def test_sums_of_tariffs(bus_of: Any) -> None:
    unit = (await bus_of("siemens-pac3200")).units[0]
    parts = [unit.truth(f"active_energy_import_t{k}", NOW) for k in (1, 2)]
    assert unit.truth("active_energy_import", NOW) == sum(parts)
    assert unit.truth(IMPORT, NOW) == sum(parts)
    total = unit.quantities.value("active_energy_import", NOW)
    assert abs(sum(parts) - total) <= 2


async def test_sunspec_chain(bus_of: Any) -> None:
    bus = await bus_of("sunspec-201-204")
    unit = bus.units[0]
    assert await bus.read(unit, "holding", 40_000, 4) == [0x5375, 0x6E53, 1, 66]
    model, length = await bus.read(unit, "holding", 40_070, 2)
    assert model == 203
    assert await bus.read(unit, "holding", 40_072 + length, 2) == [0xFFFF, 0]


async def test_a_foreign_master_reads_the_load_profile_by_the_manual(bus_of: Any) -> None:
    """Write channel, start and direction, read the block, ask for the next one, until all bits are one."""
    bus = await bus_of("abb-a43-a44")
    unit = bus.units[0]
    stored = unit.window.stored(15, NOW)[-20:]

    async def write(address: int, *words: int) -> int:
        answer = await bus.master.write_registers(address, list(words), device_id=unit.unit)
        return answer.exception_code if answer.isError() else 0

    start = unit.window.civil(stored[0])
    assert await write(0x8703, 1) == 0
    assert await write(
        0x8704, (start.year - 2000) << 8 | start.month, start.day << 8 | start.hour, start.minute << 8 | start.second
    ) == 0  # fmt: skip
    assert await write(0x8707, 1) == 0
    assert await bus.read(unit, "holding", 0x8710, 7) == [0x0100, 0x0108, 0x00FF, 1, 0, 15, 21]
    entries: list[list[int]] = []
    for _ in range(3):
        block = await bus.read(unit, "holding", 0x8720, 120)
        entries += [block[i : i + 8] for i in range(0, 120, 8)]
        assert await write(0x8700, 1) == 0
    entries = [entry for entry in entries if entry != [0xFFFF] * 8]
    assert [entry[3] for entry in entries] == [1] * 20
    values = [int.from_bytes(struct.pack(">4H", *entry[4:]), "big") for entry in entries]
    assert values == [unit.kept(IMPORT, at) for at in stored]
    for address, words in ((0x8C21, (1, 2, 3)), (20480, (0,) * 4), (0x8704, (1,))):
        assert await write(address, *words) != 0


@pytest.mark.peer
@pytest.mark.parametrize("model", ["eastron-sdm630", "schneider-iem3155", "abb-b23-b24"])
async def test_mbpoll_reads_the_truth(model: str, bus_of: Any) -> None:
    mbpoll = program("mbpoll", "mbpoll")
    bus = await bus_of(model)
    unit = bus.units[1]
    for name in ("active_energy_import", "voltage_l1"):
        (point,) = unit.map.find(name)
        table = "4" if point.table == "holding" else "3"
        peer = await asyncio.create_subprocess_exec(
            mbpoll, "-m", "tcp", "-p", str(unit.port), "-a", str(unit.unit), "-0", "-1", "-q", "-t", f"{table}:hex",
            "-r", str(point.address), "-c", str(point.size), "127.0.0.1",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(peer.communicate(), 10)
        words = [int(word, 16) for word in re.findall(r"\]:\s+0x([0-9A-F]{4})", out.decode())]
        assert words == unit.words(point, NOW)
        assert decoded(point, words) == unit.truth(name, NOW)


def test_a_model_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text((MODELS / "orno-we514-we515.toml").read_text())
    found: Map = load_map(str(file))
    assert found.name == "mine"
    assert found.points == load_map("orno-we514-we515").points
