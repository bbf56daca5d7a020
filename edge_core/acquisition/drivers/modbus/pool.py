"""One line for each host:port and each serial device, shared by all drivers that need it.

Meters with one or two sockets lock out whoever opens another, and RS-485 has one master: so drivers lease a line and
give it back. A line that nobody leases is closed after LINGER_S: units behind one gateway are visited one after the
other over one connection, and between two rounds the meter's socket is free for others. Lines belong to the event
loop that made them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edge_core.acquisition.drivers.modbus.rtu import RtuLine, Timing
from edge_core.acquisition.drivers.modbus.tcp import TcpLine
from edge_core.transports.serial import SerialStream
from edge_core.transports.tcp import connect

if TYPE_CHECKING:
    from edge_core.acquisition.drivers.modbus.line import ModbusLine
    from edge_core.clock import Clock
    from edge_core.config.schema import Line
    from edge_core.config.values import Address
    from edge_core.transports.stream import Stream

LINGER_S = 5.0

Endpoint = tuple[str, ...]


@dataclass(slots=True)
class _Shared:
    line: ModbusLine
    leases: int = 0
    lingering: asyncio.Task[None] | None = None


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Endpoint, _Shared]] = WeakKeyDictionary()


class Lease:
    """A line while it is needed."""

    def __init__(self, line: Line, address: Address, clock: Clock) -> None:
        self._lines = _lines.setdefault(asyncio.get_running_loop(), {})
        self._endpoint = _endpoint(line, address)
        shared = self._lines.get(self._endpoint)
        if shared is None:
            shared = self._lines[self._endpoint] = _Shared(_open(line, address, clock))
        if shared.lingering is not None:
            shared.lingering.cancel()
            shared.lingering = None
        shared.leases += 1
        self._shared: _Shared | None = shared

    @property
    def line(self) -> ModbusLine:
        """The line."""
        assert self._shared is not None, "the lease has ended"
        return self._shared.line

    def release(self) -> None:
        """Give it back; twice is once."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        shared.leases -= 1
        if not shared.leases:
            # A task, not a timer: the end of the loop cancels it, and the connection is closed then too.
            shared.lingering = asyncio.get_running_loop().create_task(
                _linger(self._lines, self._endpoint, shared), name=f"modbus line {self._endpoint}"
            )


async def _linger(lines: dict[Endpoint, _Shared], endpoint: Endpoint, shared: _Shared) -> None:
    try:
        await asyncio.sleep(LINGER_S)
    finally:
        if not shared.leases:
            if lines.get(endpoint) is shared:
                del lines[endpoint]
            await shared.line.close()


def _endpoint(line: Line, address: Address) -> Endpoint:
    if line.transport == "serial":
        return ("serial", line.device)
    return (line.framing, address.host, str(address.port))


def _open(line: Line, address: Address, clock: Clock) -> ModbusLine:
    if line.framing == "modbus-tcp":
        return TcpLine(address.host, address.port, clock, line.timeout_s)
    timing = Timing.of(line.baudrate, line.parity, line.stopbits, line.timeout_s)
    if line.transport == "serial":
        return RtuLine(lambda: _port(line), line.device, timing, clock, echo=line.echo)
    name = f"{address.host}:{address.port}"
    return RtuLine(lambda: connect(address.host, address.port), name, timing, clock, echo=line.echo)


async def _port(line: Line) -> Stream:
    return SerialStream(
        line.device, baudrate=line.baudrate, parity=line.parity, stopbits=line.stopbits
    )
