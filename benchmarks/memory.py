"""What memory does one gateway process take for N meters, with which roles?

Simulated DLMS meters (HLS 5, TCP) with a day of history, the default schedule of profiles. PSS of the gateway after the
start, at its peak while everything is read for the first time, and after two more rounds. With --split the roles are
played by several processes, and the figures are their sums.

usage: memory.py [--meters 500,5000] [--roles dlms,modbus,push,uplink] [--split dlms,push/modbus/detector/uplink]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import save, table  # noqa: E402
from installation import Peaks, Running, Simulated, pss_mb  # noqa: E402

SCHEDULE = 'interval_reads = "every 1h"\nmidnight_reads = "00:05"\nevents = "off"\nbilling = "off"'


def measure(folder: Path, meters: int, split: list[str]) -> dict[str, Any]:
    fleet = Simulated(folder / "fleet", meters, history="1d")
    processes = []
    for roles in split:  # each has read its configuration before the next is written
        processes.append(
            Running(folder / "gateway", fleet.folder, roles=roles, schedule=SCHEDULE,
                    more='[push]\nlisten = ["udp://127.0.0.1:0"]\n')
        )  # fmt: skip
        processes[-1].ask_of(roles, "ping")
    reader = next(roles for roles in split if "dlms" in roles.split(","))

    def sweep() -> int:
        return int(processes[0].ask_of(reader, "sweep", 600.0, timeout_s=600)["read"])

    def all_pss() -> float:
        return sum(pss_mb(process.pid) for process in processes)

    begin = all_pss()
    with Peaks(all_pss) as first:
        read = sweep()
    with Peaks(all_pss) as again:
        sweep()
        sweep()
    each = [round(pss_mb(process.pid), 1) for process in processes]
    for process in processes:
        process.end()
    fleet.end()
    return {
        "meters": meters, "read": read, "start_mb": round(begin, 1), "first_round_peak_mb": round(first.mb, 1),
        "later_peak_mb": round(again.mb, 1), "rest_mb": round(sum(each), 1),
        "processes": dict(zip(split, each, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meters", default="500,5000")
    parser.add_argument("--roles", default="dlms,modbus,push,uplink")
    parser.add_argument("--split", default="", help="roles of each process, with / between them")
    options = parser.parse_args()
    found = []
    for meters in [int(text) for text in options.meters.split(",")]:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            found.append(measure(Path(folder), meters, (options.split or options.roles).split("/")))
    rows = [["meters", "start MB", "first round, peak MB", "later rounds, peak MB", "at rest MB"]]
    rows += [
        [str(f["meters"])] + [f"{f[k]:.0f}" for k in ("start_mb", "first_round_peak_mb", "later_peak_mb", "rest_mb")]
        for f in found
    ]  # fmt: skip
    print(table(rows))
    print(
        save(
            "memory_split" if options.split else "memory",
            {"roles": options.split or options.roles, "fleets": found},
            "uvloop",
            "numpy",
            "cryptography",
        )
    )


if __name__ == "__main__":
    main()
