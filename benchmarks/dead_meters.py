"""By how much do dead meters lengthen the round of the others?

N simulated DLMS meters (HLS 5, TCP) on one line. Timed is the round over the living 90 %: while all are well; right when
10 % fall silent, which nobody knows yet; and, alternately, with the dead meters parked (not asked at all) and with them due
together with the others. A silent meter takes the connection and never answers, which costs whoever waits for it a whole
time-out.

usage: dead_meters.py [--meters 1000] [--rounds 5] [--concurrency 100] [--timeout 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save, table  # noqa: E402
from installation import Running, Simulated  # noqa: E402


def measure(
    folder: Path, meters: int, rounds: int, concurrency: int, timeout_s: float
) -> dict[str, Any]:
    fleet = Simulated(folder / "fleet", meters)
    gateway = Running(
        folder / "gateway", fleet.folder, concurrency=concurrency, timeout_s=timeout_s
    )
    names = fleet.meters()
    dead = names[::10]
    living = [name for name in names if name not in set(dead)]
    gateway.sweep()
    well = [gateway.sweep(living)["wall_s"] for _ in range(rounds)]
    for name in dead:
        fleet.order("fault", meter=name, what="silent", **{"for": 36_000})
    gateway.ask(
        "sweep", meters=dead, timeout_s=0
    )  # all are asked at once: the round that finds them dead
    finding = gateway.sweep(living)["wall_s"]
    while gateway.ask("overview")["meters"]["silent"] < len(dead):
        pass
    alone, known = [], []
    for _ in range(rounds):
        for name in dead:
            gateway.ask("park", meter=name)
        alone.append(gateway.sweep(living)["wall_s"])
        for name in dead:
            gateway.ask("unpark", meter=name)  # and due with the others
        known.append(gateway.sweep(living)["wall_s"])
    gateway.end()
    fleet.end()
    base, base_alone = statistics.median(well), statistics.median(alone)
    return {
        "meters": meters,
        "dead": len(dead),
        "well_s": well,
        "finding_them_dead_s": finding,
        "dead_parked_s": alone,
        "known_dead_s": known,
        "longer_when_found_percent": round(100 * (finding / base - 1), 1),
        "longer_when_known_percent": round(100 * (statistics.median(known) / base_alone - 1), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=5.0)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dead-") as folder:
        found = measure(Path(folder), o.meters, o.rounds, o.concurrency, o.timeout)
    rows = [["round of the living", "min s", "median s", "max s", "longer"]]
    for name, key, change in (
        ("all well", "well_s", ""),
        ("10 % silent, parked", "dead_parked_s", ""),
        ("10 % silent, known", "known_dead_s", f"{found['longer_when_known_percent']} %"),
    ):
        times = found[key]
        rows.append([name, *(f"{f(times):.2f}" for f in (min, statistics.median, max)), change])
    seconds = f"{found['finding_them_dead_s']:.2f}"
    rows.append(
        [
            "10 % silent, being found",
            seconds,
            seconds,
            seconds,
            f"{found['longer_when_found_percent']} %",
        ]
    )
    print(table(rows))
    print(
        save(
            "dead_meters",
            {"concurrency": o.concurrency, "timeout_s": o.timeout, "found": found},
            "uvloop",
        )
    )


if __name__ == "__main__":
    main()
