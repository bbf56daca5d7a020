"""A hostile Modbus slave on real sockets and pseudo-terminals, and drivers that read it."""

from __future__ import annotations

import asyncio
import os
import struct
import textwrap
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from edge_core.acquisition.drivers import Site
from edge_core.acquisition.drivers.modbus import Driver
from edge_core.clock import ManualClock, SystemClock
from edge_core.config.models import load_model
from edge_core.config.schema import Line, Meter
from edge_core.protocols.modbus import codec
from edge_core.protocols.modbus.rtu import crc

MODEL = """
    schema = "opendcu.model/1"
    model.maker = "Test"
    model.families = ["Probe"]
    model.protocol = "modbus"
    model.source = ["this test"]
    link.transports = ["rtu", "tcp"]
    link.read_function_codes = [3, 4]
    link.max_registers_per_read = 40
    link.hole_policy = "unknown"
    interval.points = ["active_energy_import", "active_energy_export"]
    midnight.points = ["active_energy_import"]
    points = [
      { name = "voltage_l1", obis = "1.0.32.7.0.255", address = 0, table = "input", type = "float32", unit = "V" },
      { name = "current_l1", obis = "1.0.31.7.0.255", address = 2, table = "input", type = "float32", unit = "A" },
      { name = "active_power", obis = "1.0.16.7.0.255", address = 4, table = "input", type = "int32", unit = "W" },
      { name = "frequency", obis = "1.0.14.7.0.255", address = 8, table = "input", type = "float32", unit = "Hz" },
      { name = "active_energy_import", obis = "1.0.1.8.0.255", address = 100, table = "input", type = "uint32", scale = 1, unit = "Wh", kind = "cumulative" },
      { name = "active_energy_export", obis = "1.0.2.8.0.255", address = 102, table = "input", type = "uint32", scale = 1, unit = "Wh", kind = "cumulative" },
      { name = "reactive_energy_import", obis = "1.0.3.8.0.255", address = 120, table = "input", type = "float32", scale = 3, unit = "varh", kind = "cumulative" },
      { name = "meter_serial_number", obis = "0.0.96.1.0.255", address = 200, table = "input", type = "uint32", kind = "nameplate" },
    ]
"""

TRUTH: dict[str, Any] = {
    "voltage_l1": 230.44,
    "current_l1": 5.125,
    "active_power": -1180,
    "frequency": 50.02,
    "active_energy_import": 4_000_000,
    "active_energy_export": 77,
    "reactive_energy_import": 12.5,
    "meter_serial_number": 20_260_001,
}
PUBLISHED = {
    "voltage_l1": (2304, -1, "V"),
    "current_l1": (512, -2, "A"),  # 512.5: half to even
    "active_power": (-1180, 0, "W"),
    "frequency": (5002, -2, "Hz"),
    "active_energy_import": (4_000_000, 1, "Wh"),
    "active_energy_export": (77, 1, "Wh"),
    "reactive_energy_import": (12_500, 0, "varh"),
}


@dataclass(frozen=True)
class Asked:
    """A request as the slave saw it."""

    transaction: int
    unit: int
    function: int
    address: int
    count: int
    raw: bytes


Fault = Callable[["Slave", Asked, Callable[[bytes], None]], Awaitable[None]]


@dataclass
class Slave:
    """Units that answer as told. `faults` are used up one a request of `target`; None = an honest answer."""

    rtu: bool
    registers: dict[int, dict[int, int]] = field(default_factory=dict)
    faults: list[Fault | None] = field(default_factory=list)
    target: int = 1
    asked: list[Asked] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    refused: set[int] = field(default_factory=set)
    limit: int = 125
    tolerant: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _fds: tuple[int, int] | None = None

    def hold(self, unit: int, model: Any, values: dict[str, Any]) -> None:
        """Put values into the registers of a unit, raw as the meter holds them."""
        image = self.registers.setdefault(unit, {})
        for point in model.points:
            if point.name in values:
                words = codec.encode(point.type, values[point.name], point.word_order, point.length)
                image.update(
                    zip(range(point.address, point.address + len(words)), words, strict=True)
                )

    # --- answers

    def pdu(self, asked: Asked) -> bytes:
        """The honest answer."""
        image = self.registers[asked.unit]
        wanted = range(asked.address, asked.address + asked.count)
        if asked.count > self.limit:
            return bytes([asked.function | 0x80, 3])
        if self.refused & set(wanted) or (not self.tolerant and not set(wanted) <= image.keys()):
            return bytes([asked.function | 0x80, 2])
        words = [image.get(at, 0) for at in wanted]
        return bytes([asked.function, 2 * len(words)]) + struct.pack(f">{len(words)}H", *words)

    def frame(self, asked: Asked, pdu: bytes | None = None, **other: int) -> bytes:
        """The answer as it goes on the line; `unit` and `transaction` can be another's."""
        pdu = self.pdu(asked) if pdu is None else pdu
        unit = other.get("unit", asked.unit)
        if self.rtu:
            body = bytes([unit]) + pdu
            return body + crc(body)
        return (
            struct.pack(
                ">HHHB",
                other.get("transaction", asked.transaction),
                other.get("protocol", 0),
                len(pdu) + 1,
                unit,
            )
            + pdu
        )

    async def _react(self, asked: Asked, send: Callable[[bytes], None]) -> None:
        self.asked.append(asked)
        if asked.unit not in self.registers:
            return
        fault = self.faults.pop(0) if self.faults and asked.unit == self.target else None
        if fault is None:
            send(self.frame(asked))
        else:
            await fault(self, asked, send)

    # --- transports

    def _cut(self, buffer: bytearray) -> Asked | None:
        size = 8 if self.rtu else 12
        if len(buffer) < size:
            return None
        raw = bytes(buffer[:size])
        del buffer[:size]
        if self.rtu:
            assert crc(raw[:-2]) == raw[-2:], f"a request with a wrong CRC: {raw.hex()}"
            unit, function, address, count = struct.unpack(">BBHH", raw[:6])
            return Asked(0, unit, function, address, count, raw)
        transaction, protocol, length, unit, function, address, count = struct.unpack(
            ">HHHBBHH", raw
        )
        assert (protocol, length) == (0, 6)
        return Asked(transaction, unit, function, address, count, raw)

    async def serve(self) -> int:
        """Listen on 127.0.0.1; the port."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self._writers.add(writer)
        buffer = bytearray()
        try:
            while data := await reader.read(512):
                buffer += data
                while asked := self._cut(buffer):
                    # a serial server sends late octets to whoever is connected now
                    self._spawn(self._react(asked, self._send_latest if self.rtu else writer.write))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    def _send_latest(self, octets: bytes) -> None:
        for writer in list(self._writers)[-1:]:
            writer.write(octets)

    def drop(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def terminal(self) -> str:
        """Serve on a pseudo-terminal; its path."""
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._fds = (master, slave)
        buffer = bytearray()

        def readable() -> None:
            buffer.extend(os.read(master, 512))
            while asked := self._cut(buffer):
                self._spawn(self._react(asked, lambda octets: (os.write(master, octets), None)[1]))

        asyncio.get_running_loop().add_reader(master, readable)
        return os.ttyname(slave)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server:
            self.drop()
            self._server.close()
            await self._server.wait_closed()
        if self._fds:
            asyncio.get_running_loop().remove_reader(self._fds[0])
            for fd in self._fds:
                os.close(fd)


class Memory(dict[str, Any]):
    """What a driver remembers, in a test."""

    def put(self, key: str, value: Any) -> None:
        self[key] = value


@dataclass
class Bench:
    """A slave, and drivers made for it."""

    slave: Slave
    line: Line
    model: Any
    place: str
    memory: Memory = field(default_factory=Memory)
    drivers: list[Driver] = field(default_factory=list)
    frames: list[tuple[str, bytes]] = field(default_factory=list)

    def driver(
        self,
        unit: int = 1,
        *,
        memory: Memory | None = None,
        clock: SystemClock | ManualClock | None = None,
        serial: str = "",
        model: Any = None,
        zone: str = "UTC",
    ) -> Driver:
        """A driver for one session with a unit."""
        meter = Meter(
            id=f"M{unit}",
            line=self.line.id,
            model="probe",
            address=self.place.format(unit),
            serial=serial,
        )
        made = Driver(
            meter,
            self.line,
            model or self.model,
            None,
            None,
            self.memory if memory is None else memory,
            clock or SystemClock(),
            lambda kind, octets: self.frames.append((kind, octets)),
            site=Site(timezone=zone),
        )
        self.drivers.append(made)
        return made


@pytest.fixture(scope="session")
def probe_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file: Path = tmp_path_factory.mktemp("models") / "probe.toml"
    file.write_text(textwrap.dedent(MODEL))
    return load_model(str(file))


async def _bench(transport: str, model: Any) -> Bench:
    slave = Slave(rtu=transport != "tcp")
    slave.hold(1, model, TRUTH)
    slave.hold(
        2,
        model,
        {**TRUTH, "meter_serial_number": 2, "voltage_l1": 111.0, "active_energy_import": 5},
    )
    if transport == "pty":
        line = Line(
            id="line",
            transport="serial",
            framing="modbus-rtu",
            device=slave.terminal(),
            baudrate=19200,
        )
        place = "{}"
    else:
        framing = "modbus-tcp" if transport == "tcp" else "modbus-rtu"
        line = Line(id="line", transport="tcp", framing=framing, baudrate=19200, timeout_s=0.0)
        place = f"127.0.0.1:{await slave.serve()}/{{}}"
    return Bench(slave, line, model, place)


async def _end(made: Bench) -> None:
    for driver in made.drivers:
        await driver.close()
    await made.slave.stop()


@pytest.fixture(params=["tcp", "rtu-tcp", "pty"])
async def bench(request: pytest.FixtureRequest, probe_model: Any) -> AsyncIterator[Bench]:
    made = await _bench(request.param, probe_model)
    yield made
    await _end(made)


@pytest.fixture(params=["rtu-tcp", "pty"])
async def rtu_bench(request: pytest.FixtureRequest, probe_model: Any) -> AsyncIterator[Bench]:
    made = await _bench(request.param, probe_model)
    yield made
    await _end(made)


@pytest.fixture
async def tcp_bench(probe_model: Any) -> AsyncIterator[Bench]:
    made = await _bench("tcp", probe_model)
    yield made
    await _end(made)


@pytest.fixture
def truth() -> dict[str, tuple[int, int, str]]:
    return dict(PUBLISHED)


@pytest.fixture(params=["tcp", "rtu-tcp", "pty"])
def under_uvloop(request: pytest.FixtureRequest, probe_model: Any) -> Callable[..., None]:
    """Runs a test of a bench on the loop that `opendcu run` uses."""

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def whole() -> None:
            made = await _bench(request.param, probe_model)
            try:
                await test(made)
            finally:
                await _end(made)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(whole())

    return run
