"""How many Modbus requests a second, and what does one cost the client's CPU?

Each client reads 60 holding registers of one unit again and again over TCP from the same slave, which is libmodbus in
a process of its own: ours (Modbus TCP, which is pymodbus behind our guards, and RTU in TCP with our own transport),
pymodbus alone, and libmodbus in C. The decode row is ours alone: 46 floats of an SDM630 to integers with scalers.
Needs gcc and libmodbus-dev.

usage: modbus_requests.py [--quick]
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import measure, save, spread, table  # noqa: E402
from modbus_slave import PacedSlave  # noqa: E402
from pymodbus import FramerType  # noqa: E402
from pymodbus.client import AsyncModbusTcpClient  # noqa: E402

from edge_core.acquisition.drivers.modbus.line import Ask  # noqa: E402
from edge_core.acquisition.drivers.modbus.points import Points  # noqa: E402
from edge_core.acquisition.drivers.modbus.rtu import RtuLine, Timing  # noqa: E402
from edge_core.acquisition.drivers.modbus.tcp import TcpLine  # noqa: E402
from edge_core.clock import SystemClock  # noqa: E402
from edge_core.config.models import load_model  # noqa: E402
from edge_core.protocols.modbus import codec  # noqa: E402
from edge_core.transports.tcp import connect  # noqa: E402

COUNT = 60
SLAVE = HERE.parent / "tests" / "integration" / "modbus" / "libmodbus_slave.c"


def compiled(source: Path, folder: Path) -> Path:
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libmodbus"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    program = folder / source.stem
    subprocess.run(["gcc", "-O2", source, "-o", program, *flags], check=True)
    return program


async def timed(one: Callable[[], Awaitable[Any]], seconds: float) -> dict[str, float]:
    for _ in range(20):
        await one()
    requests, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        await one()
        requests += 1
    return row(requests, time.perf_counter() - wall, time.process_time() - cpu)


def row(requests: int, wall: float, cpu: float) -> dict[str, float]:
    return {"requests_per_s": round(requests / wall), "cpu_us": round(1e6 * cpu / requests, 1)}


async def python_clients(port: int, rtu_port: int, seconds: float) -> dict[str, Any]:
    clock, found = SystemClock(), {}
    ask = Ask(1, 3, 0, COUNT)

    async def checked(line: Any) -> None:
        assert (await line.read(ask)).registers[-1] == COUNT - 1

    ours = TcpLine("127.0.0.1", port, clock)
    found["ours, Modbus TCP (over pymodbus)"] = await timed(lambda: checked(ours), seconds)
    await ours.close()
    await asyncio.sleep(0.1)
    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await client.connect()
    found["pymodbus alone, Modbus TCP"] = await timed(
        lambda: client.read_holding_registers(0, count=COUNT, device_id=1), seconds
    )
    client.close()
    # no silent interval to wait for: a stream has no line speed; only the work is measured
    timing = Timing(character_s=0.0, silence_s=0.0, timeout_s=2.0)
    rtu = RtuLine(lambda: connect("127.0.0.1", rtu_port), "rtu", timing, clock)
    found["ours, RTU in TCP (own transport)"] = await timed(lambda: checked(rtu), seconds)
    await rtu.close()
    client = AsyncModbusTcpClient("127.0.0.1", port=rtu_port, framer=FramerType.RTU)
    await client.connect()
    found["pymodbus alone, RTU in TCP"] = await timed(
        lambda: client.read_holding_registers(0, count=COUNT, device_id=1), seconds
    )
    client.close()
    return found


def decode_us() -> dict[str, float]:
    points = Points(load_model("eastron-sdm630"))
    words = {points.span(p): codec.encode("float32", 230.1234, "big") for p in points.all}
    return spread(measure(lambda: [points.reading(p, words) for p in points.all], number=50))


def main() -> None:
    seconds = 0.5 if "--quick" in sys.argv else 4.0
    with tempfile.TemporaryDirectory() as folder:
        slave = compiled(SLAVE, Path(folder))
        client = compiled(HERE / "modbus_client.c", Path(folder))
        listed = Path(folder) / "registers.txt"
        listed.write_text("".join(f"holding {at} {at}\n" for at in range(COUNT)))
        with (
            subprocess.Popen([slave, "tcp", listed], stdout=subprocess.PIPE, text=True) as server,
            PacedSlave.process("rtu-tcp") as rtu_port,
        ):
            assert server.stdout is not None
            port = int(server.stdout.readline())
            found = asyncio.run(python_clients(port, int(rtu_port), seconds))
            time.sleep(0.1)
            printed = subprocess.run(
                [client, str(port), str(seconds)], capture_output=True, text=True, check=True
            )
            requests, wall, cpu = map(float, printed.stdout.split())
            found["libmodbus in C, Modbus TCP"] = row(int(requests), wall, cpu)
            server.kill()
    decode = decode_us()
    print(table([["client", "requests/s", "CPU us"]] + [
        [name, str(r["requests_per_s"]), str(r["cpu_us"])] for name, r in found.items()
    ]))  # fmt: skip
    print(f"decode 46 floats of an SDM630 to readings: {decode['median_us']:.0f} us")
    print(save("modbus_requests", {"clients": found, "decode_46_points": decode}, "pymodbus"))


if __name__ == "__main__":
    main()
