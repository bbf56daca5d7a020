"""The lines of the simulated Modbus meters: one pymodbus server per line, its units as SimDevices.

Registers are computed when they are read (`SimDevice.action`). Faults: `silent`, `refuse` (both: no answer), `garbage`,
`cut` at the packet, `slow` and `busy` at the request. Writes are refused with exception 1, but to the request registers
of a history.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from simulators.modbus.units import Unit

SLOW_S = 1.2


class ModbusLine:
    """One TCP server with the units behind it."""

    def __init__(self, units: list[Unit], seed: int) -> None:
        self.units = {unit.unit: unit for unit in units}
        self._rtu = units[0].framing == "modbus-rtu"
        self._rng = random.Random(seed)
        self._server: ModbusTcpServer | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen; the port is then in every unit."""
        self._server = ModbusTcpServer(
            [device(unit) for unit in self.units.values()],
            framer=FramerType.RTU if self._rtu else FramerType.SOCKET,
            address=(host, port),
            trace_packet=self._packet,
        )
        await self._server.serve_forever(background=True)
        listening: Any = self._server.transport
        bound = listening.sockets[0].getsockname()[1]
        for unit in self.units.values():
            unit.host, unit.port = host, bound

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]

    def _packet(self, sending: bool, packet: bytes) -> bytes:
        if not sending:
            return packet
        place = 0 if self._rtu else 6
        unit = self.units.get(packet[place]) if len(packet) > place else None
        if unit is None:
            return b""  # nobody: a real line is silent there
        if unit.has("silent") or unit.has("refuse"):
            return b""
        if unit.has("garbage"):
            return self._rng.randbytes(len(packet))
        if unit.has("cut"):
            return packet[: len(packet) // 2]
        return packet


def device(unit: Unit) -> SimDevice:
    """The SimDevice of a unit; undefined registers give exception 2, or zeros where the map tolerates holes."""
    blocks = []
    for function in (3, 4):
        tables = _tables(unit, function)
        addresses = sorted({address for table, address in unit.defined if table in tables})
        blocks.append(_runs(addresses, tolerant=unit.map.tolerant))
    bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
    return SimDevice(id=unit.unit, simdata=(bits, bits, blocks[0], blocks[1]), action=_action(unit))


def _write(unit: Unit, function: int, address: int, values: Any) -> ExcCodes | None:
    """Only the request registers of a history can be written."""
    if unit.window is None or function != 16:
        return ExcCodes.ILLEGAL_FUNCTION
    if unit.has("busy"):
        return ExcCodes.DEVICE_BUSY
    code = unit.window.write(address, [int(v) for v in values], int(unit.clock.now()))
    return ExcCodes(code) if code else None


def _tables(unit: Unit, function: int) -> tuple[str, ...]:
    """The tables that a function code reads; meters that know both codes serve everything under both."""
    if len(unit.map.functions) > 1:
        return ("input", "holding")
    return ("holding",) if function == 3 else ("input",)


def _runs(addresses: list[int], *, tolerant: bool) -> list[SimData]:
    if not addresses:
        return [SimData(65_535, count=1, datatype=DataType.INVALID)]
    runs: list[list[int]] = []
    for address in addresses:
        if runs and address - runs[-1][1] <= (64 if tolerant else 0):
            runs[-1][1] = address + 1
        else:
            runs.append([address, address + 1])
    return [
        SimData(first, values=[0] * (end - first), datatype=DataType.REGISTERS)
        for first, end in runs
    ]


def _action(unit: Unit) -> Callable[..., Coroutine[None, None, ExcCodes | None]]:
    starts = {p.address for p in unit.map.points}
    ends = {p.end for p in unit.map.points}
    identity = unit.map.identify

    async def action(
        function: int,
        first: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        if values is not None:
            return _write(unit, function, address, values)
        if function not in unit.map.functions:
            return ExcCodes.ILLEGAL_FUNCTION
        if unit.has("slow"):
            await asyncio.sleep(SLOW_S)
        if unit.has("busy"):
            return ExcCodes.DEVICE_BUSY
        if count > unit.map.limit:
            return ExcCodes.ILLEGAL_VALUE
        tables = _tables(unit, function)
        if unit.map.aligned and not (address in starts and address + count in ends):
            return ExcCodes.ILLEGAL_ADDRESS
        unit.requests += 1
        at = int(unit.clock.now())
        for point in unit.map.points:
            if point.table in tables and point.address < address + count and point.end > address:
                registers[point.address - first : point.end - first] = unit.words(point, at)
        if unit.window is not None and "holding" in tables:
            asked = range(address, address + count)
            if any(at in unit.window.registers for at in asked):
                registers[address - first : address - first + count] = unit.window.read(asked, at)
        for (where, place), word in unit.fixed.items():
            if where in tables and address <= place < address + count:
                registers[place - first] = word
        if (
            identity
            and identity[0] in tables
            and (address, count) == (identity[1], len(identity[2]))
        ):
            registers[address - first : address - first + count] = identity[
                2
            ]  # asked alone: it may share its address
        return None

    return action
