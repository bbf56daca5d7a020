"""The lines that DLMS meters hang on: serial buses, optical heads, UDP, against simulated meters on real ttys."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.config.schema import Line
from edge_core.errors import LineSilent, MeterError
from edge_core.transports.serial import SerialStream
from simulators.dlms.bus import SerialBus
from simulators.dlms.meter import Meter
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]


@contextlib.asynccontextmanager
async def plugged(bus: SerialBus) -> AsyncIterator[str]:
    device = await bus.open()
    try:
        yield device
    finally:
        await bus.close()


def serial(device: str, **more: Any) -> Line:
    return Line(id="bus-1", transport="serial", framing="hdlc", device=device, **more)


async def last_rows(b: Bench, meter: Meter, line: Line, rows: int = 8) -> None:
    """Read the newest rows of a meter and compare them with what it holds."""
    since = truth_of(meter, "interval")[-rows][0]
    driver = b.driver(meter, line=line, address=f"{meter.hdlc[0]}.{meter.hdlc[1]}")
    try:
        blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
    finally:
        await driver.close()
    assert rows_of(blocks) == truth_of(meter, "interval", since)


async def bench_of(bench: Make, count: int) -> Bench:
    b = await bench(framing="hdlc", count=count)
    for number, meter in enumerate(b.fleet.dlms):
        meter.hdlc = (1, 17 + number)
        meter.freeze()
    return b


@pytest.mark.parametrize("echo", [False, True])
async def test_meters_of_a_bus_in_turn(bench: Make, echo: bool) -> None:
    b = await bench_of(bench, 4)
    bus = SerialBus(b.fleet.dlms, baud=115_200, echo=echo)
    async with plugged(bus) as device:
        for _ in range(2):
            for meter in b.fleet.dlms:
                await last_rows(b, meter, serial(device, baudrate=115_200, echo=echo))
    assert bus.collisions == 0


async def test_an_echo_of_a_client_with_the_address_of_the_meter(bench: Make) -> None:
    """IDIS: client 1 and logical device 1 have the same address octet, so the echo looks like an answer."""
    b = await bench(framing="hdlc", model="idis")
    b.meter.hdlc = (1, 0)
    b.meter.freeze()
    bus = SerialBus([b.meter], echo=True)
    async with plugged(bus) as device:
        since = truth_of(b.meter, "interval")[-8][0]
        driver = b.driver(line=serial(device), address="1")
        blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
        await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval", since)


async def test_the_line_is_quiet_before_we_speak(bench: Make) -> None:
    b = await bench_of(bench, 1)
    bus = SerialBus(b.fleet.dlms, baud=115_200)
    async with plugged(bus) as device:
        await last_rows(b, b.meter, serial(device, baudrate=115_200, turnaround_ms=15))
    assert 0.015 <= bus.quiet_s < 1.0
    assert bus.collisions == 0


async def test_a_silent_meter_of_a_bus_costs_a_bounded_time(bench: Make) -> None:
    b = await bench_of(bench, 2)
    dead, alive = b.fleet.dlms
    dead.faults.begin("silent", float("inf"))
    bus = SerialBus(b.fleet.dlms)
    loop = asyncio.get_running_loop()
    async with plugged(bus) as device:
        line = serial(device, timeout_s=0.2)
        began = loop.time()
        with pytest.raises(LineSilent) as silent:
            await last_rows(b, dead, line)
        assert loop.time() - began < 3.0
        assert silent.value.meter == dead.id
        await last_rows(b, alive, line)
    assert bus.collisions == 0


@pytest.mark.parametrize("speed", ["3", "5", "6"])
async def test_an_optical_head_signs_on_at_every_visit(bench: Make, speed: str) -> None:
    """300 baud 7E1, then the speed that the meter names; the head echoes; after DISC it starts anew."""
    b = await bench_of(bench, 1)
    bus = SerialBus(b.fleet.dlms, echo=True, mode_e=speed)
    async with plugged(bus) as device:
        for _ in range(2):
            await last_rows(b, b.meter, serial(device, mode_e=True, echo=True))


async def test_an_optical_head_without_a_meter(bench: Make) -> None:
    b = await bench_of(bench, 1)
    bus = SerialBus([])
    async with plugged(bus) as device:
        with pytest.raises(LineSilent, match="sign-on"):
            await last_rows(b, b.meter, serial(device, mode_e=True))


async def test_a_line_is_opened_again_by_its_stable_path(bench: Make, tmp_path: Path) -> None:
    """The adapter is pulled out in the middle and comes back under another tty."""
    b = await bench_of(bench, 1)
    stable = str(tmp_path / "by-path")
    line = serial(stable, baudrate=9600)
    bus = SerialBus(b.fleet.dlms, baud=9600, path=stable)
    device = await bus.open()
    assert device == stable
    first = Path(stable).readlink()
    driver = b.driver(line=line, address="1.17")
    reading = asyncio.create_task(driver.read_profile(ProfileRequest("interval")))
    async with asyncio.timeout(10):
        while bus.octets < 1500:
            await asyncio.sleep(0.01)
    again = SerialBus(b.fleet.dlms)
    second = await again.open()  # while the first is there, so that their numbers differ
    await bus.close()
    with pytest.raises(LineSilent) as gone:
        await reading
    assert "gone" in gone.value.cause
    await driver.close()
    with pytest.raises(LineSilent, match="cannot be opened"):
        await last_rows(b, b.meter, line)
    try:
        Path(stable).symlink_to(second)
        assert Path(stable).readlink() != first
        await last_rows(b, b.meter, line)
    finally:
        await again.close()


async def test_two_speakers_never_share_a_port(bench: Make) -> None:
    b = await bench_of(bench, 2)
    bus = SerialBus(b.fleet.dlms, baud=9600)
    async with plugged(bus) as device:
        first = b.driver(b.fleet.dlms[0], line=serial(device), address="1.17")
        await first.identify()
        with pytest.raises(LineSilent, match="in use by another program"):
            await last_rows(b, b.fleet.dlms[1], serial(device))
        await first.close()
        await last_rows(b, b.fleet.dlms[1], serial(device), 1)
    assert bus.collisions == 0


class SerialServer:
    """A converter: one TCP port in front of a bus; a connection waits until the one before is over.

    Attributes:
        overlaps: how often a client went on to send although another one had connected meanwhile.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.overlaps = self.served = 0
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting += 1
        async with self._turn:
            self._waiting -= 1
            self.served += 1
            port = SerialStream(self._device, baudrate=115_200)

            async def back() -> None:
                while True:
                    writer.write(await port.read(60))

            pump = asyncio.create_task(back())
            try:
                while octets := await reader.read(4096):
                    self.overlaps += self._waiting > 0
                    port.write(octets)
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
                await port.close()
                writer.close()


async def test_a_visit_cancelled_while_the_meter_speaks_hears_it_out(bench: Make) -> None:
    """Behind a serial server, too, no DISC is sent into an answer."""
    b = await bench_of(bench, 1)
    bus = SerialBus(b.fleet.dlms, baud=9600)
    async with plugged(bus) as device:
        converter = SerialServer(device)
        server = await asyncio.start_server(converter, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        line = Line(id="bus-1", transport="tcp", framing="hdlc", timeout_s=2.0)
        driver = b.driver(line=line, address=f"127.0.0.1:{port}/1.{b.meter.hdlc[1]}")
        reading = asyncio.create_task(driver.read_profile(ProfileRequest("interval")))
        async with asyncio.timeout(20):
            while bus.speaks_for_s() < 0.15:
                await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        before = bus.octets
        await driver.close()
        assert bus.octets > before
        server.close()
    assert bus.collisions == 0


async def test_meters_behind_a_serial_server_speak_one_at_a_time(bench: Make) -> None:
    """Visits that overlap wait for each other; a visit that is cancelled hands the bus on."""
    b = await bench_of(bench, 4)
    bus = SerialBus(b.fleet.dlms, baud=115_200)
    async with plugged(bus) as device:
        converter = SerialServer(device)
        server = await asyncio.start_server(converter, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        line = Line(id="bus-1", transport="tcp", framing="hdlc", timeout_s=2.0)

        async def visit(meter: Meter) -> None:
            since = truth_of(meter, "interval")[-4][0]
            driver = b.driver(meter, line=line, address=f"127.0.0.1:{port}/1.{meter.hdlc[1]}")
            try:
                blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
            finally:
                await driver.close()
            assert rows_of(blocks) == truth_of(meter, "interval", since)

        doomed = asyncio.create_task(visit(b.fleet.dlms[0]))
        async with asyncio.timeout(10):
            while bus.octets < 500:
                await asyncio.sleep(0.01)
        others = [asyncio.create_task(visit(meter)) for meter in b.fleet.dlms[1:]]
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        await asyncio.gather(*others)
        await visit(b.fleet.dlms[0])
        server.close()
    assert bus.collisions == 0
    assert converter.overlaps == 0
    assert converter.served >= 5


# --- UDP


def udp() -> Line:
    return Line(id="feeder-1", transport="udp", framing="wrapper", timeout_s=0.5)


@pytest.mark.parametrize("security", ["lls", "hls2", "hls5"])
async def test_the_wrapper_by_datagrams(bench: Make, security: str) -> None:
    b = await bench(transport="udp", security=security)
    b.meter.freeze()
    driver = b.driver(line=udp())
    blocks = list(await driver.read_profile(ProfileRequest("interval")))
    await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval")


async def test_a_meter_that_takes_datagrams_and_says_nothing(bench: Make) -> None:
    b = await bench(transport="udp")
    b.meter.faults.begin("silent", float("inf"))
    driver = b.driver(line=udp())
    with pytest.raises(LineSilent, match="no answer within"):
        await driver.identify()
    await driver.close()


async def test_nobody_listens_for_datagrams(bench: Make) -> None:
    b = await bench()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = b.driver(line=udp(), address=f"127.0.0.1:{port}")
    with pytest.raises(MeterError, match="refused"):
        await driver.identify()
    await driver.close()


def test_the_sample_of_the_driver_is_a_configuration(tmp_path: Path) -> None:
    from edge_core.acquisition.drivers.dlms import driver
    from edge_core.config.load import load

    sample = Path(driver.__file__).with_name("sample.toml").read_text()
    file = tmp_path / "gateway.toml"
    file.write_text(f'[gateway]\nid = "dcu-1"\ndata_dir = "{tmp_path}/data"\n\n{sample}')
    (tmp_path / "keys.toml").write_text("")
    (tmp_path / "keys.toml").chmod(0o600)
    config = load(file)
    assert {line.framing for line in config.lines.values()} == {"wrapper", "hdlc"}
    assert len(config.meters) == 5
    for line in config.lines.values():
        assert any(meter.line == line.id for meter in config.meters.values())
