"""By how much do dead meters lengthen the round of the others?

N simulated DLMS meters (HLS 5, TCP) on one line. Timed is the round over the living 90 %: while all are well; right when
10 % fall silent, which nobody knows yet; and, alternately, with the dead meters parked (not asked at all) and with them due
together with the others. A silent meter takes the connection and never answers, which costs whoever waits for it a whole
time-out. They fall silent `--rounds` times; in between they are well again.

Two fleets. *Near*: meters answer at once, a round is as long as our processor (and the simulator's) needs for it.
*Far*: every answer takes --answer milliseconds, as over a radio, and a round is as long as the line's slots make it; what
a dead meter keeps of a slot shows there, whatever else the machine does.

usage: dead_meters.py [--meters 1000] [--rounds 3] [--concurrency 100] [--timeout 5] [--answer 200] [--far 300]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save, table  # noqa: E402
from installation import Running, Simulated  # noqa: E402


def measure(
    folder: Path, meters: int, rounds: int, concurrency: int, timeout_s: float, answer_ms: int
) -> dict[str, Any]:
    groups = f"[[dlms]]\ncount = {meters}\nanswer_ms = {answer_ms}\n"
    fleet = Simulated(folder / "fleet", meters, extra=groups)
    gateway = Running(
        folder / "gateway", fleet.folder, concurrency=concurrency, timeout_s=timeout_s
    )
    names = fleet.meters()
    dead = names[::10]
    living = [name for name in names if name not in set(dead)]
    gateway.sweep()
    well, finding, alone, known = [], [], [], []
    for _ in range(rounds):
        well.append(gateway.sweep(living)["wall_s"])
        for name in dead:
            fleet.order("fault", meter=name, what="silent", **{"for": 36_000})
        # all are asked at once, before the others: the round that finds them dead
        gateway.ask("sweep", meters=dead, timeout_s=0)
        finding.append(gateway.sweep(living)["wall_s"])
        while gateway.ask("overview")["meters"]["silent"] < len(dead):
            time.sleep(0.1)
        for name in dead:
            gateway.ask("park", meter=name)
        alone.append(gateway.sweep(living)["wall_s"])
        for name in dead:
            gateway.ask("unpark", meter=name)  # and due with the others
        known.append(gateway.sweep(living)["wall_s"])
        for name in dead:
            fleet.order("fault", meter=name, what="silent", **{"for": 0.001})
        gateway.sweep(dead)
        gateway.sweep(dead)
    gateway.end()
    fleet.end()

    def longer(than: list[float], by: list[float]) -> float:
        return round(100 * (statistics.median(by) / statistics.median(than) - 1), 1)

    return {
        "meters": meters,
        "dead": len(dead),
        "concurrency": concurrency,
        "answer_ms": answer_ms,
        "well_s": well,
        "finding_them_dead_s": finding,
        "dead_parked_s": alone,
        "known_dead_s": known,
        "longer_when_found_percent": longer(well, finding),
        "longer_when_known_percent": longer(alone, known),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--answer", type=int, default=200)
    parser.add_argument("--far", type=int, default=300)
    o = parser.parse_args()
    found = {}
    for name, meters, slots, answer_ms in (
        ("near", o.meters, o.concurrency, 0),
        ("far", o.far, max(4, o.far // 10), o.answer),
    ):
        if meters:
            with tempfile.TemporaryDirectory(prefix="dead-") as folder:
                found[name] = measure(Path(folder), meters, o.rounds, slots, o.timeout, answer_ms)
    rows = [["round of the living", "min s", "median s", "max s", "longer"]]
    for name, result in found.items():
        for what, key, change in (
            ("all well", "well_s", ""),
            ("10 % silent, being found", "finding_them_dead_s", "longer_when_found_percent"),
            ("10 % silent, parked", "dead_parked_s", ""),
            ("10 % silent, known", "known_dead_s", "longer_when_known_percent"),
        ):
            times = [f"{f(result[key]):.2f}" for f in (min, statistics.median, max)]
            rows.append([f"{name}: {what}", *times, f"{result[change]} %" if change else ""])
    print(table(rows))
    print(save("dead_meters", {"timeout_s": o.timeout, "found": found}, "uvloop"))


if __name__ == "__main__":
    main()
