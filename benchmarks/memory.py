"""What memory does one gateway process take for N meters, with which roles?

Simulated DLMS meters (HLS 5, TCP) with a day of history, the default schedule of profiles. PSS of the gateway after the
start, at its peak while everything is read for the first time, and after two more rounds.

usage: memory.py [--meters 500,5000] [--roles dlms,modbus,push,uplink]
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
from installation import Peak, Running, Simulated, pss_mb  # noqa: E402

SCHEDULE = 'interval_reads = "every 1h"\nmidnight_reads = "00:05"\nevents = "off"\nbilling = "off"'


def measure(folder: Path, meters: int, roles: str) -> dict[str, Any]:
    fleet = Simulated(folder / "fleet", meters, history="1d")
    gateway = Running(folder / "gateway", fleet.folder, roles=roles, schedule=SCHEDULE,
                      more='[push]\nlisten = ["udp://127.0.0.1:0"]\n')  # fmt: skip
    gateway.ask("ping")
    begin = pss_mb(gateway.pid)
    with Peak(gateway.pid) as first:
        read = gateway.sweep(timeout_s=600)["read"]
    with Peak(gateway.pid) as again:
        gateway.sweep(timeout_s=600)
        gateway.sweep(timeout_s=600)
    rest = pss_mb(gateway.pid)
    gateway.end()
    fleet.end()
    return {
        "meters": meters, "read": read, "start_mb": round(begin, 1), "first_round_peak_mb": round(first.mb, 1),
        "later_peak_mb": round(again.mb, 1), "rest_mb": round(rest, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meters", default="500,5000")
    parser.add_argument("--roles", default="dlms,modbus,push,uplink")
    options = parser.parse_args()
    found = []
    for meters in [int(text) for text in options.meters.split(",")]:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            found.append(measure(Path(folder), meters, options.roles))
    rows = [["meters", "start MB", "first round, peak MB", "later rounds, peak MB", "at rest MB"]]
    rows += [
        [str(f["meters"])] + [f"{f[k]:.0f}" for k in ("start_mb", "first_round_peak_mb", "later_peak_mb", "rest_mb")]
        for f in found
    ]  # fmt: skip
    print(table(rows))
    print(
        save("memory", {"roles": options.roles, "fleets": found}, "uvloop", "numpy", "cryptography")
    )


if __name__ == "__main__":
    main()
