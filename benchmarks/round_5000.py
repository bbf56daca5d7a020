"""What does a round over N meters cost: DLMS, HLS 5 over TCP, an association and one block each?

The meters are simulated in a process of their own, the gateway is `opendcu run` on uvloop with the role dlms. The
first round learns everything (counter, nameplate, capture objects, scalers, two hours of history); the rounds after it
are the hourly poll: connect, AARQ, pass 3, GET clock, GET profile, RLRQ. CPU is that of the gateway process, so
meters/s on one core is 1 / CPU; the wall clock also holds the simulator, which needs about as much as the gateway.
The peer is gurux-dlms, which does the same over a few of the same meters, one after another, in the same run.

usage: round_5000.py [--meters 50,500,5000] [--rounds 3] [--peer 20] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
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
from installation import Peak, Running, Simulated, cpu_s  # noqa: E402


def rounds(folder: Path, meters: int, count: int, peer: int) -> dict[str, Any]:
    """First round, `count` hourly rounds, and the peer's, over a fleet of so many meters."""
    fleet = Simulated(folder / "fleet", meters)
    gateway = Running(folder / "gateway", fleet.folder)
    gateway.ask("ping")
    with Peak(gateway.pid) as peak:
        first = gateway.sweep()
        simulator = cpu_s(fleet.pid)
        again = [gateway.sweep() for _ in range(count)]
        simulator = (cpu_s(fleet.pid) - simulator) / count
    gateway.end()
    theirs = {}
    if peer:
        done = subprocess.run(
            [sys.executable, HERE / "gurux_round.py", fleet.folder, str(peer)],
            capture_output=True,
            text=True,
            check=True,
        )
        theirs = json.loads(done.stdout)
    fleet.end()
    cpu_ms = statistics.median(r["cpu_s"] / r["read"] * 1e3 for r in again)
    return {
        "meters": meters,
        "first_round": first,
        "rounds": again,
        "cpu_ms_per_meter": round(cpu_ms, 3),
        "meters_per_s_on_one_core": round(1e3 / cpu_ms),
        "meters_per_s_wall": round(max(r["read"] / r["wall_s"] for r in again)),
        "simulator_cpu_ms_per_meter": round(simulator / meters * 1e3, 3),
        "pss_peak_mb": round(peak.mb, 1),
        "gurux": theirs | {"cpu_ms_per_meter": round(theirs["cpu_s"] / theirs["read"] * 1e3, 2)} if theirs else None,
    }  # fmt: skip


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """CPU per meter over the number of meters, as SVG."""
    import math

    width, height, left, bottom = 480, 240, 60, 40
    top = max(f["cpu_ms_per_meter"] for f in found) * 1.25
    spots = []
    low, high = (math.log10(f(x["meters"] for x in found)) for f in (min, max))
    for f in found:
        x = left + (width - left - 30) * (math.log10(f["meters"]) - low) / max(1e-9, high - low)
        y = height - bottom - (height - bottom - 20) * f["cpu_ms_per_meter"] / top
        spots.append((x, y, f))
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="#06c"/>'
        f'<text x="{x:.0f}" y="{y - 9:.0f}" text-anchor="middle">{f["cpu_ms_per_meter"]:.2f} ms</text>'
        f'<text x="{x:.0f}" y="{height - bottom + 18}" text-anchor="middle">{f["meters"]}</text>'
        for x, y, f in spots
    )
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y, _ in spots)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><title>CPU per meter of an hourly round</title><rect width="100%" height="100%" fill="#fff"/>'
        f'<path d="M{left} 20V{height - bottom}H{width - 20}" stroke="#555" fill="none"/>'
        f'<polyline points="{line}" stroke="#06c" fill="none"/>{marks}'
        f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">meters in a round (log)</text>'
        f'<text x="8" y="14">CPU of the gateway per meter</text></svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meters", default="50,500,5000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=int, default=20)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found = []
    for meters in [int(text) for text in options.meters.split(",")]:
        with tempfile.TemporaryDirectory(prefix="round-") as folder:
            found.append(rounds(Path(folder), meters, options.rounds, min(meters, options.peer)))
            time.sleep(0.5)
    head = [
        [
            "meters",
            "first round s",
            "round s",
            "CPU ms a meter",
            "meters/s a core",
            "PSS peak MB",
            "gurux ms",
        ]
    ]
    rows = [
        [
            str(f["meters"]), f"{f['first_round']['wall_s']:.1f}", f"{min(r['wall_s'] for r in f['rounds']):.2f}",
            f"{f['cpu_ms_per_meter']:.2f}", str(f["meters_per_s_on_one_core"]), f"{f['pss_peak_mb']:.0f}",
            f"{f['gurux']['cpu_ms_per_meter']:.1f}" if f["gurux"] else "-",
        ]
        for f in found
    ]  # fmt: skip
    print(table(head + rows))
    if options.plot:
        plot(found, options.plot)
    print(save("round_5000", {"fleets": found}, "gurux-dlms", "uvloop", "cryptography", "numpy"))


if __name__ == "__main__":
    main()
