"""How long from the start of `opendcu run` to the first octet to a meter, and which imports it costs?

A gateway with the role dlms (and one with all acquisition roles and the uplink) is started against simulated meters, cold
and again; the first connection to a meter is seen by the meter's own record. Imports are listed by `-X importtime`.

usage: startup.py [--repeat 7] [--meters 100]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save, table  # noqa: E402
from installation import Running, Simulated, cpu_s  # noqa: E402

UNWANTED = (
    "pymodbus",
    "onnxruntime",
    "awscrt",
    "awsiot",
    "starlette",
    "uvicorn",
    "serial",
    "aiomqtt",
    "paho",
)
"""What a gateway with the role dlms alone must not import."""


def first_poll_s(folder: Path, fleet: Path, roles: str) -> tuple[float, float]:
    """Wall and CPU seconds from the start of the process to the first connection to a meter: a listener of ours is the meter."""
    with socket.create_server(("127.0.0.1", 0)) as meter:
        meter.settimeout(30)
        rows = (fleet / "meters.csv").read_text().splitlines()
        address = f"127.0.0.1:{meter.getsockname()[1]}"
        copy = folder / "fleet"
        copy.mkdir(parents=True)
        for name in ("keys.toml", "lines.toml"):
            (copy / name).write_bytes((fleet / name).read_bytes())
        os.chmod(copy / "keys.toml", 0o600)
        head, *meters = rows
        place = head.split(",").index("address")
        first, *others = meters  # meters are asked in the order of their ids at the start
        cells = first.split(",")
        cells[place] = address
        changed = [",".join(cells), *others]
        (copy / "meters.csv").write_text("\n".join([head, *changed]) + "\n")
        began = time.perf_counter()
        gateway = Running(folder / "gateway", copy, roles=roles)
        peer, _ = meter.accept()
        took, used = time.perf_counter() - began, cpu_s(gateway.pid)
        peer.close()
        gateway.end()
        return took, used


def imports() -> list[tuple[str, float]]:
    """The dearest packages of `opendcu run` with the role dlms: name, own milliseconds with all that they import."""
    code = (
        "import asyncio, sys; from pathlib import Path; from edge_core.config.load import load; "
        "from edge_core.gateway import Gateway; from edge_core.clock import SystemClock; "
        "from edge_core.acquisition.drivers import dlms; import uvloop; print(sorted(sys.modules), file=sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in re.findall(r"'([^']+)'", done.stdout)}
    bad = sorted(loaded.intersection(UNWANTED))
    assert not bad, f"imported for nothing: {bad}"
    found = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| ( *)([\w.]+)", done.stderr)
    top = [(name, int(total) / 1000) for total, indent, name in found if "." not in name]
    return sorted(dict(top).items(), key=lambda entry: -entry[1])[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--meters", type=int, default=100)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    rows = [["roles", "min s", "median s", "max s", "CPU s"]]
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        folder = Path(name)
        fleet = Simulated(folder / "fleet", options.meters)
        for number, roles in enumerate(("dlms", "dlms,modbus,push,uplink")):
            times = [
                first_poll_s(folder / f"gateway-{number}{'-' * k}", fleet.folder, roles)
                for k in range(options.repeat)
            ]
            walls, cpus = zip(*times, strict=True)
            found[roles] = {"wall_s": [round(t, 3) for t in walls], "cpu_s": list(cpus)}
            cells = [f"{f(walls):.2f}" for f in (min, statistics.median, max)]
            rows.append([roles, *cells, f"{statistics.median(cpus):.2f}"])
        fleet.end()
        dear = imports()
    print(table(rows))
    print("\n".join(f"{ms:8.1f} ms  {name}" for name, ms in dear))
    print(
        save(
            "startup",
            {"to_first_poll_s": found, "imports_ms": dear},
            "uvloop",
            "numpy",
            "cryptography",
        )
    )


if __name__ == "__main__":
    main()
