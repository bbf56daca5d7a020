"""How well is a 9,600 baud HDLC line used?

One RS-485 bus on a pseudo-terminal whose octets take their time (8E1, 11 bits an octet), with simulated IS 15959 meters
(HLS 5, ciphered), which answer at once. Each visit is whole: SNRM, AARQ, passes 3 and 4, clock, 96 rows of block load,
DISC; the first contact with each meter, which learns layouts and counters, is not timed. Occupancy is the wire time of
every octet in both directions, divided by the time that the round took: what remains is what our side wastes.

usage: serial_line.py [--quick]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save  # noqa: E402

from edge_core.acquisition.drivers import ProfileRequest, Site, open_driver  # noqa: E402
from edge_core.clock import SystemClock  # noqa: E402
from edge_core.config.keys import MeterKeys  # noqa: E402
from edge_core.config.models import load_model  # noqa: E402
from edge_core.config.schema import Line  # noqa: E402
from edge_core.config.schema import Meter as MeterConfig  # noqa: E402
from edge_core.domain import Secret  # noqa: E402
from edge_core.journal import CounterStore  # noqa: E402
from simulators.dlms.bus import SerialBus  # noqa: E402
from simulators.fleet import Fleet  # noqa: E402
from simulators.spec import DlmsGroup, FleetSpec  # noqa: E402

BAUD, BITS = 9600, 11
MODEL = "is15959-3ph"


class Memory(dict[str, Any]):
    put = dict.__setitem__


async def bench(meters: int, rows: int) -> dict[str, Any]:
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(
            FleetSpec(dlms=(DlmsGroup(model=MODEL, count=meters, framing="hdlc"),)),
            Path(folder),
            clock,
        )
        for number, meter in enumerate(fleet.dlms):
            meter.hdlc = (1, 17 + number)
            meter.freeze()
        counters = CounterStore.open(Path(folder) / "counters.db", clock=clock)
        memories = {meter.id: Memory() for meter in fleet.dlms}
        model = load_model(MODEL)
        since = int(clock.now()) - rows * 900

        async def visit(meter: Any, device: str) -> int:
            driver = open_driver(
                MeterConfig(id=meter.id, line="bus", model=MODEL, address=f"1.{meter.hdlc[1]}"),
                Line(id="bus", transport="serial", framing="hdlc", device=device, baudrate=BAUD),
                model,
                MeterKeys(guek=Secret(meter.keys.guek), gak=Secret(meter.keys.gak)),
                counters,
                memories[meter.id],
                clock,
                site=Site(b"ODCbench", "Asia/Kolkata"),
            )
            try:
                await driver.clock_offset()
                blocks = await driver.read_profile(ProfileRequest("interval", since=since))
            finally:
                await driver.close()
            return sum(block.rows for block in blocks)

        fast = SerialBus(fleet.dlms)
        device = await fast.open()
        for meter in fleet.dlms:
            await visit(meter, device)
        await fast.close()
        bus = SerialBus(fleet.dlms, baud=BAUD, bits=BITS)
        device = await bus.open()
        began = time.perf_counter()
        read = [await visit(meter, device) for meter in fleet.dlms]
        took = time.perf_counter() - began
        await bus.close()
        counters.close()
        await fleet.close()
    wire = bus.octets * BITS / BAUD
    assert bus.collisions == 0
    return {
        "meters": meters,
        "rows": sum(read),
        "octets": bus.octets,
        "seconds": round(took, 3),
        "wire_s": round(wire, 3),
        "occupancy": round(wire / took, 4),
    }


def main() -> None:
    found = asyncio.run(bench(2 if "--quick" in sys.argv else 6, 96))
    print(found)
    print(save("serial_line", {"baud": BAUD, "bits": BITS, "target": 0.95} | found, "pyserial"))


if __name__ == "__main__":
    main()
