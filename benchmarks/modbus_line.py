"""How well is a 9,600 baud line used, and what do dead units cost it?

One RS-485 line on a pseudo-terminal whose slave takes the time that octets take (8E1, 20 ms turnaround), in a process
of its own. 32 units with the energy registers of an SDM630 are read in turn (2 requests each), by our RTU line and by
pymodbus' serial client with its defaults; then the same with three dead units among 30 (10 %). Occupancy is the
calculated wire time of the requests, divided by the time the round took.

usage: modbus_line.py [--quick]
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save, table  # noqa: E402
from modbus_slave import DEAD_FROM, TURNAROUND_S, PacedSlave  # noqa: E402
from pymodbus.client import AsyncModbusSerialClient  # noqa: E402
from pymodbus.exceptions import ModbusException as PymodbusError  # noqa: E402

from edge_core.acquisition.drivers.modbus.line import Silent  # noqa: E402
from edge_core.acquisition.drivers.modbus.reader import Learned, Reader, Unanswered  # noqa: E402
from edge_core.acquisition.drivers.modbus.rtu import RtuLine, Timing  # noqa: E402
from edge_core.clock import SystemClock  # noqa: E402
from edge_core.config.models import load_model  # noqa: E402
from edge_core.protocols.modbus.plan import Limits, Request, Span, plan, rtu_cost  # noqa: E402
from edge_core.transports.serial import SerialStream  # noqa: E402

BAUD = 9600
TIMING = Timing.of(BAUD, "E", 1)
MODEL = load_model("eastron-sdm630")
DEFINED = tuple(Span(p.table, p.address, p.address + 2) for p in MODEL.points)
WANTED = {Span(p.table, p.address, p.address + 2) for p in MODEL.points if p.kind == "cumulative"}
LIMITS = Limits(MODEL.link.max_registers_per_read, MODEL.link.hole_policy, DEFINED)


def requests() -> list[Request]:
    return plan(WANTED, LIMITS, rtu_cost(TIMING.character_s, TIMING.silence_s, TURNAROUND_S))


def wire_s(living: int) -> float:
    """Calculated time of a round over living units: request, silence, turnaround, answer, silence."""
    characters = sum(8 + 5 + 2 * r.span.count for r in requests())
    each = characters * TIMING.character_s + len(requests()) * (2 * TIMING.silence_s + TURNAROUND_S)
    return living * each


async def ours(device: str, units: list[int]) -> tuple[float, int]:
    async def opener() -> Any:
        return SerialStream(device, baudrate=BAUD, parity="E", stopbits=1)

    line = RtuLine(opener, device, TIMING, SystemClock())
    read, began = 0, time.perf_counter()
    for unit in units:
        reader = Reader(
            line,
            unit,
            largest=LIMITS.largest,
            holes=LIMITS.holes,
            defined=DEFINED,
            learned=Learned(),
        )
        try:
            bulk = await reader.read(WANTED)
        except (Unanswered, Silent):
            continue
        read += all(words == (span.start, span.start + 1) for span, words in bulk.words.items())
    took = time.perf_counter() - began
    await line.close()
    return took, read


async def pymodbus(device: str, units: list[int]) -> tuple[float, int]:
    client = AsyncModbusSerialClient(
        device, baudrate=BAUD, parity="N"
    )  # a pseudo-terminal has no parity
    await client.connect()
    read, began = 0, time.perf_counter()
    for unit in units:
        try:
            for request in requests():
                answer = await client.read_input_registers(
                    request.span.start, count=request.span.count, device_id=unit
                )
                assert answer.registers[0] == request.span.start
        except PymodbusError:
            continue
        read += 1
    took = time.perf_counter() - began
    client.close()
    return took, read


def main() -> None:
    quick = "--quick" in sys.argv
    living = list(range(1, 9 if quick else 33))
    mixed = list(range(1, 28)) + [DEAD_FROM + i for i in range(3)]
    rows, found = [["round", "client", "read", "seconds", "wire time / round"]], []
    with PacedSlave.process("pty", BAUD) as device:
        for name, units in ((f"{len(living)} units", living), ("27 units and 3 dead ones", mixed)):
            for client in (ours, pymodbus):
                took, read = asyncio.run(client(device, units))
                share = wire_s(read) / took
                rows.append(
                    [name, client.__name__, str(read), f"{took:.2f}", f"{100 * share:.1f} %"]
                )
                found.append({"round": name, "client": client.__name__, "read": read, "seconds": round(took, 3),
                              "wire_s": round(wire_s(read), 3), "occupancy": round(share, 4)})  # fmt: skip
    print(table(rows))
    print(save("modbus_line", {"baud": BAUD, "rounds": found}, "pymodbus", "pyserial"))


if __name__ == "__main__":
    main()
