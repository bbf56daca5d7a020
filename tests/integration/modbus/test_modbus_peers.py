"""Held against others: a libmodbus slave, mbpoll as a second master, the pymodbus server, each a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.drivers.modbus import Driver, pool
from edge_core.acquisition.drivers.modbus.line import Ask
from edge_core.acquisition.drivers.modbus.rtu import RtuLine, Timing
from edge_core.acquisition.drivers.modbus.tcp import TcpLine
from edge_core.clock import SystemClock
from edge_core.config.models import load_model
from edge_core.config.schema import Line, Meter
from edge_core.errors import LocalProtocolError
from edge_core.protocols.modbus import codec
from edge_core.transports.serial import SerialStream
from tests.conftest import eventually, eventually_sync, program

pytestmark = [pytest.mark.integration, pytest.mark.peer]

BAUD = 19_200
VALUES = {
    "eastron-sdm630": {
        "voltage_l1": 229.5,
        "current_l1": 12.25,
        "active_power": -1480.4,
        "frequency": 49.98,
        "active_energy_import": 12345.678,
        "active_energy_export": 0.125,
        "reactive_energy_import": 99.5,
        "reactive_energy_export": 0.0,
    },
    "schneider-iem3155": {
        "voltage_l1": 231.25,
        "frequency": 50.01,
        "active_power": 3.456,
        "power_factor": 1.25,  # leading 0.75
        "active_energy_import": 2**40 + 7,
        "active_energy_export": 4,
        "meter_serial_number": 98_765_432,
    },
    "carlo-gavazzi-em340": {
        "voltage_l1": 2305,
        "frequency": 500,
        "active_energy_import": 123_456_789,
        "active_power": -20_001,
    },
}
DUE = {
    "eastron-sdm630": {
        "voltage_l1": (2295, -1, "V"),
        "current_l1": (1225, -2, "A"),
        "active_power": (-1480, 0, "W"),
        "frequency": (4998, -2, "Hz"),
        "active_energy_import": (12_345_678, 0, "Wh"),
        "active_energy_export": (125, 0, "Wh"),
    },
    "schneider-iem3155": {
        "voltage_l1": (2312, -1, "V"),  # 2312.5: half to even
        "active_power": (3456, 0, "W"),
        "power_factor": (750, -3, ""),
        "active_energy_import": (2**40 + 7, 0, "Wh"),
    },
    "carlo-gavazzi-em340": {
        "voltage_l1": (2305, -1, "V"),
        "frequency": (500, -1, "Hz"),
        "active_energy_import": (123_456_789, 2, "Wh"),
        "active_power": (-20_001, -1, "W"),
    },
}


class Memory(dict[str, Any]):
    def put(self, key: str, value: Any) -> None:
        self[key] = value


def registers(name: str) -> dict[tuple[str, int], int]:
    """What the meter's registers hold, by table and address."""
    found: dict[tuple[str, int], int] = {}
    for point in load_model(name).points:
        if point.name in VALUES[name]:
            words = codec.encode(
                point.type, VALUES[name][point.name], point.word_order, point.length
            )
            found |= {(point.table, point.address + i): word for i, word in enumerate(words)}
    return found


@pytest.fixture(scope="session")
def slave_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = program("gcc", "gcc libmodbus-dev")
    flags = subprocess.run(
        [program("pkg-config", "pkg-config"), "--cflags", "--libs", "libmodbus"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    built = tmp_path_factory.mktemp("libmodbus") / "slave"
    source = Path(__file__).with_name("libmodbus_slave.c")
    subprocess.run([compiler, "-Wall", "-Werror", "-o", built, source, *flags], check=True)
    return built


@contextlib.contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def libmodbus_tcp(slave_program: Path, folder: Path, name: str) -> Iterator[int]:
    with running(slave_program, "tcp", listed(folder, name)) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def libmodbus_rtu(slave_program: Path, folder: Path, name: str) -> Iterator[Path]:
    """The slave at one end of a pair of pseudo-terminals; the path of the other."""
    ours, theirs = folder / "ours", folder / "theirs"
    ends = [f"pty,rawer,link={end}" for end in (ours, theirs)]
    with running(program("socat", "socat"), *ends):
        eventually_sync(lambda: ours.exists() and theirs.exists())
        with running(slave_program, "rtu", listed(folder, name), theirs, 7, BAUD) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield ours


def listed(folder: Path, name: str) -> Path:
    file = folder / "registers.txt"
    file.write_text(
        "".join(f"{table} {at} {word}\n" for (table, at), word in registers(name).items())
    )
    return file


def driver(name: str, line: Line, address: str) -> Driver:
    meter = Meter(id="M1", line=line.id, model=name, address=address)
    return Driver(meter, line, load_model(name), None, None, Memory(), SystemClock())


def values(readings: Any) -> dict[str, Any]:
    return {r.name: (r.value, r.scaler, r.unit) for r in readings}


def mbpoll(name: str, point_name: str, unit: int, *where: object) -> tuple[int, ...]:
    """The raw registers of a point as mbpoll reads them."""
    point = next(p for p in load_model(name).points if p.name == point_name)
    count = codec.words_of(point.type, point.length)
    command = [
        program("mbpoll", "mbpoll"), "-0", "-1", "-q", "-a", unit, "-t", 3 if point.table == "input" else 4,
        "-r", point.address, "-c", count, "-o", 2, *where,
    ]  # fmt: skip
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=20, check=True
    )
    found = re.findall(r"^\[\d+\]:\s+(\d+)", done.stdout, re.MULTILINE)
    assert len(found) == count, done.stdout
    return tuple(map(int, found))


@pytest.mark.parametrize("name", sorted(VALUES))
async def test_a_libmodbus_slave_on_tcp(slave_program, tmp_path, name):
    with libmodbus_tcp(slave_program, tmp_path, name) as port:
        line = Line(id="l", transport="tcp", framing="modbus-tcp")
        ours = driver(name, line, f"127.0.0.1:{port}/1")
        found = values(await ours.read_registers("instantaneous"))
        assert found.items() >= DUE[name].items()
        (block,) = await ours.read_profile(ProfileRequest("interval"))
        energies = dict(zip([c.obis for c in block.layout.cols], block.columns, strict=True))
        assert list(energies["1.0.1.8.0.255"]) == [DUE[name]["active_energy_import"][0]]
        await ours.close()


@pytest.mark.parametrize("name", sorted(VALUES))
async def test_a_libmodbus_slave_on_a_serial_line_and_mbpoll_beside_us(
    slave_program, tmp_path, name, monkeypatch
):
    monkeypatch.setattr(pool, "LINGER_S", 0.01)
    with libmodbus_rtu(slave_program, tmp_path, name) as device:
        line = Line(
            id="l",
            transport="serial",
            framing="modbus-rtu",
            device=str(device),
            baudrate=BAUD,
            parity="N",
        )
        ours = driver(name, line, "7")
        found = values(await ours.read_registers("instantaneous"))
        assert found.items() >= DUE[name].items()
        await ours.close()
        await eventually(
            lambda: not any(pool._lines.values())
        )  # the port is free for another master
        held = registers(name)
        for point in load_model(name).points:
            if point.name in ("voltage_l1", "active_energy_import"):
                theirs = mbpoll(name, point.name, 7, "-m", "rtu", "-b", BAUD, "-P", "none", device)
                assert theirs == tuple(
                    held[point.table, point.address + i] for i in range(len(theirs))
                )
                exact = codec.exact(point.type, theirs, point.word_order, point.scale)
                assert codec.publish(exact, found[point.name][1]) == found[point.name][0]


async def test_a_libmodbus_slave_takes_our_writes_and_mbpoll_sees_them(
    slave_program, tmp_path, monkeypatch
):
    """The only write that there is, judged by an implementation that is not ours."""
    monkeypatch.setattr(pool, "LINGER_S", 0.01)
    name = "carlo-gavazzi-em340"
    declared = ((0, 2),)
    with libmodbus_tcp(slave_program, tmp_path, name) as port:
        line = TcpLine("127.0.0.1", port, SystemClock())
        ask = Ask(1, 16, 0, 2, words=(0x1234, 0xABCD), declared=declared)
        assert (await line.read(ask)).registers == ()
        assert (await line.read(Ask(1, 3, 0, 2))).registers == (0x1234, 0xABCD)
        with pytest.raises(LocalProtocolError):
            await line.read(dataclasses.replace(ask, address=2))
        await line.close()
    with libmodbus_rtu(slave_program, tmp_path, name) as device:

        async def opener() -> Any:
            return SerialStream(str(device), baudrate=BAUD, parity="N")

        rtu_line = RtuLine(opener, "device", Timing.of(BAUD, "N", 1), SystemClock())
        assert (await rtu_line.read(dataclasses.replace(ask, unit=7))).registers == ()
        assert (await rtu_line.read(Ask(7, 3, 0, 2))).registers == (0x1234, 0xABCD)
        await rtu_line.close()
        command = [
            program("mbpoll", "mbpoll"), "-0", "-1", "-q", "-a", 7, "-t", "4:hex", "-r", 0, "-c", 2, "-m", "rtu",
            "-b", BAUD, "-P", "none", device,
        ]  # fmt: skip
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, timeout=20, check=True
        )
        assert re.findall(r"0x([0-9A-F]{4})", done.stdout) == ["1234", "ABCD"]


PYMODBUS_SERVER = """
    import asyncio, sys
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    async def main():
        data = [SimData(0, values=230.5, datatype=DataType.FLOAT32), SimData(70, values=50.0, datatype=DataType.FLOAT32),
                SimData(72, values=[1.5, 2.5, 3.5, 4.5], datatype=DataType.FLOAT32)]
        devices = [SimDevice(id=unit, simdata=data) for unit in (1, 2)]
        server = ModbusTcpServer(devices, address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        print(server.transport.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_the_pymodbus_server_in_another_process(tmp_path):
    file = tmp_path / "server.py"
    file.write_text(textwrap.dedent(PYMODBUS_SERVER))
    with running(sys.executable, file) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        line = Line(id="l", transport="tcp", framing="modbus-tcp")
        first, second = (driver("eastron-sdm630", line, f"127.0.0.1:{port}/{n}") for n in (1, 2))
        for ours in (first, second):
            (block,) = await ours.read_profile(ProfileRequest("interval"))
            assert [list(c) for c in block.columns] == [[1500], [2500], [3500], [4500]]
            (voltage,) = await ours.read_registers("voltage_l1")
            assert voltage.value == 2305
            # registers that this server does not have: refused, not invented
            (power,) = await ours.read_registers("active_power")
            assert power.value is None
        for ours in (first, second):
            await ours.close()
        raw = mbpoll("eastron-sdm630", "voltage_l1", 1, "-p", port, "127.0.0.1")
        assert struct.unpack(">f", struct.pack(">2H", *raw)) == (230.5,)
