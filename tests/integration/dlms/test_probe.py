"""`opendcu probe` against simulated fleets of each kind: nothing is known but the address."""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge_core.acquisition.fitting import dlms_fits, told_apart
from edge_core.acquisition.probing import Found, Target, probe, read_clock
from edge_core.cli.probe import probe as command
from edge_core.cli.probe import proposal
from edge_core.clock import SystemClock
from edge_core.config.models import load_model
from edge_core.journal.datadir import DataDirectory
from simulators.dlms.bus import SerialBus
from simulators.fleet import Fleet
from simulators.spec import FleetSpec, ModbusGroup
from tests.integration.dlms.conftest import Bench

Make = Callable[..., Awaitable[Bench]]


async def probed(target: Target, **more: Any) -> list[Found]:
    return await probe(target, SystemClock(), wait_s=0.3, budget_s=20, **more)


@pytest.mark.parametrize(
    ("model", "sign"), [("is15959-3ph", "utc-to-local"), ("idis", "local-to-utc")]
)
@pytest.mark.parametrize("framing", ["wrapper", "hdlc"])
async def test_a_dlms_meter_by_tcp(bench: Make, model: str, sign: str, framing: str) -> None:
    b = await bench(model=model, framing=framing)
    meter = b.meter
    (found,) = await probed(Target(meter.host, meter.port))
    assert (found.protocol, found.framing, found.client) == ("dlms", framing, 16)
    assert found.serial == meter.device.serial
    assert found.counters[meter.layout.counters[meter.client]] == meter.counters().accepted(
        reading=False
    )
    assert found.clock["sign"] == sign
    assert abs(found.clock["off_s"]) < 5
    assert model in found.best()
    assert meter.contacts == 0, "no key and no password was tried"
    assert meter.record.violations == 0


@pytest.mark.parametrize("told", [True, False], ids=["--udp", "where TCP is refused"])
async def test_a_dlms_meter_by_datagrams(bench: Make, told: bool) -> None:
    # held, and takes no connection: a TCP port that another test may hold cannot be chosen afterwards
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        b = await bench(transport="udp", port=nobody.getsockname()[1])
        meter = b.meter
        target = Target(meter.host, meter.port, datagrams=told)
        (found,) = await probed(target)
    assert (found.framing, found.line) == ("wrapper", {"transport": "udp"})
    assert found.serial == meter.device.serial
    assert "is15959-3ph" in found.best()
    (line,) = tomllib.loads(proposal(target, [found]))["lines"]
    assert (line["transport"], line["framing"]) == ("udp", "wrapper")
    assert meter.contacts == 0
    assert meter.record.violations == 0


async def test_models_that_fit_alike_are_all_named_with_what_tells_them_apart(bench: Make) -> None:
    b = await bench(model="smr5")
    (found,) = await probed(Target(b.meter.host, b.meter.port))
    assert set(found.best()) == {"dsmr4", "idis", "smr5"}
    note = next(n for n in found.notes if "fit alike" in n)
    assert "only smr5 has 0.0.96.10.4.255" in note
    assert "only idis has 0.0.96.10.1.255" in note
    text = proposal(Target(b.meter.host, b.meter.port), [found])
    assert "# fit alike: dsmr4, idis, smr5" in text


def test_a_name_or_an_object_tells_models_apart() -> None:
    models = [load_model(name) for name in ("idis", "smr5", "dsmr4", "is15959-3ph")]

    def best(**more: Any) -> list[str]:
        found = Found(
            protocol="dlms",
            framing="wrapper",
            address="",
            counters={"0.0.43.1.0.255": 7},
            clock={"sign": "local-to-utc"},
            **more,
        )
        found.fits = dlms_fits(found, models)
        return found.best()

    assert best() == ["dsmr4", "idis", "smr5"]
    assert best(equipment="E0051004012345624") == ["dsmr4", "smr5"]
    assert best(objects=["1.0.98.1.0.255", "0.0.96.10.6.255"]) == ["smr5"]
    assert best(objects=["0.4.25.9.0.255", "0.0.96.10.1.255"]) == ["idis"]
    assert told_apart(["idis"], models) == []


@pytest.mark.parametrize(
    ("offset", "sign"), [(0, "utc-to-local"), (3 * 3600, "")], ids=["near", "hours off"]
)
async def test_the_sign_of_the_deviation_needs_a_clock_near_to_ours(
    bench: Make, offset: int, sign: str
) -> None:
    b = await bench()
    b.meter.device.set_clock(b.clock.now(), int(b.clock.now()) + offset)
    (found,) = await probed(Target(b.meter.host, b.meter.port))
    assert found.clock["sign"] == sign
    assert found.clock["deviation_min"] == 330
    assert any("too far from ours" in text for text in found.notes) == (not sign)
    assert "is15959-3ph" in found.best(), "its counters tell"


def clock_of(octets: str) -> Found:
    found = Found(protocol="dlms", framing="wrapper", address="")
    read_clock(bytes.fromhex("090c" + octets), found, 1_764_000_000.0)  # 2025-11-24 16:00 UTC
    return found


def test_clocks_that_tell_no_sign() -> None:
    unspecified = clock_of("07e90b18011000000080" + "0000")
    assert unspecified.clock == {
        "local": 1_764_000_000,
        "deviation_min": None,
        "sign": "",
    }
    assert "unspecified" in unspecified.notes[0]
    utc = clock_of("07e90b18011000000000" + "0000")
    assert (utc.clock["sign"], utc.clock["off_s"]) == ("", 0.0)
    cet = clock_of("07e90b180111000000ff" + "c400")  # 17:00, -60
    assert (cet.clock["sign"], cet.clock["off_s"]) == ("local-to-utc", 0.0)
    none = clock_of("ffffffffffffffffff80" + "00ff")
    assert none.clock == {}
    assert none.notes == ["the clock holds no time"]


async def test_meters_of_a_serial_bus(bench: Make) -> None:
    b = await bench(framing="hdlc", count=3)
    for number, meter in enumerate(b.fleet.dlms):
        meter.hdlc = (1, 20 + number)
    bus = SerialBus(b.fleet.dlms)
    device = await bus.open()
    try:
        target = Target(device=device, addresses=[(1, 19), (1, 20), (1, 21), (1, 22), (1, 23)])
        found = await probed(target)
    finally:
        await bus.close()
    assert [f.address for f in found] == ["1.20", "1.21", "1.22"]
    assert [f.serial for f in found] == [m.device.serial for m in b.fleet.dlms]
    document = tomllib.loads(proposal(target, found))
    assert document["lines"] == [
        {
            "id": "line-1",
            "transport": "serial",
            "framing": "hdlc",
            "device": device,
            "baudrate": 9600,
            "parity": "N",
        }
    ]
    assert [m["address"] for m in document["meters"]] == ["1.20", "1.21", "1.22"]


async def test_an_optical_head(bench: Make) -> None:
    b = await bench(framing="hdlc", model="idis")
    bus = SerialBus([b.meter], mode_e="5", echo=True)
    device = await bus.open()
    try:
        (found,) = await probed(Target(device=device, mode_e=True, addresses=[(1, 17)]))
    finally:
        await bus.close()
    assert found.line == {"device": device, "mode_e": True}
    assert "idis" in found.best()


@pytest.mark.parametrize("framing", ["modbus-tcp", "modbus-rtu"])
@pytest.mark.parametrize(
    "model", ["eastron-sdm630", "siemens-pac3200", "sunspec-201-204", "carlo-gavazzi-em24-din"]
)
async def test_modbus_units(tmp_path: Path, model: str, framing: str) -> None:
    spec = FleetSpec(modbus=(ModbusGroup(model=model, framing=framing, count=2, unit=3),))
    fleet = Fleet(spec, tmp_path, SystemClock())
    await fleet.open()
    try:
        host, port = fleet.modbus[0].address.split("/")[0].split(":")
        found = await probed(Target(host, int(port), units=(1, 3, 4)))
    finally:
        await fleet.close()
    assert [f.address for f in found] == [f"{host}:{port}/3", f"{host}:{port}/4"]
    for one in found:
        assert (one.protocol, one.framing) == ("modbus", framing)
        assert model in one.best(), [(f.model, f.score) for f in one.fits[:6]]


async def test_nobody_is_there_and_somebody_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        loop_before = SystemClock().monotonic()
        assert await probe(Target("127.0.0.1", port), SystemClock(), wait_s=0.2, budget_s=2) == []
        assert SystemClock().monotonic() - loop_before < 4, "the budget bounds it"
    with pytest.raises(OSError, match=r"refused|Connect"):
        await probed(Target("127.0.0.1", port))


def test_a_line_that_a_running_gateway_holds_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
        config = tmp_path / "gateway.toml"
        config.write_text(
            f"""
[gateway]
id = "dcu-1"
data_dir = "{tmp_path}/data"
[keys]
provider = "env"
[[lines]]
id = "feeder-1"
transport = "tcp"
framing = "wrapper"
[[meters]]
id = "M1"
line = "feeder-1"
model = "idis"
address = "127.0.0.1:{port}"
"""
        )
        arguments = [
            f"127.0.0.1:{port}",
            "-c",
            str(config),
            "--wait",
            "0.1",
            "--for",
            "0.5",
            "--json",
        ]
        free = CliRunner().invoke(command, arguments, standalone_mode=False)
        assert json.loads(free.stdout)["found"] == []
        with DataDirectory(tmp_path / "data").prepare().lock(["dlms"]):
            held = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert "is line feeder-1 of the gateway" in str(held.exception)


@pytest.mark.parametrize(
    "arguments",
    [["meter.example"], ["127.0.0.1:0"], ["127.0.0.1:80", "--units", "300"], ["127.0.0.1:80", "--mode-e"], ["/dev/ttyS0", "--udp"],
     ["/dev/ttyS0", "--address", "x"]],
)  # fmt: skip
def test_wrong_use(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, [*arguments, "-c", "/nonexistent"])
    assert result.exit_code == 2
