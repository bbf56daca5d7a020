"""What the Greengrass components take on a box: archive, disk, memory, for one process and for four.

    nice python benchmarks/component_footprint.py [--json FILE]

The components are built as a release is (full compression), installed by their own install.sh under `env -i`, and run
under the fake lite nucleus on one data directory with a simulated fleet of 50 DLMS and 10 Modbus meters. Memory is read
when every meter was read once: RSS, and PSS, which shares out what processes have in common; a machine that runs other
Pythons makes PSS smaller, so RSS stands beside it. The detector's scoring child is not among them: it lives for seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from edge_core.greengrass.build import Builder  # noqa: E402
from tests.integration.greengrass.conftest import Nucleus  # noqa: E402
from tests.system.boxes import FOUR, GATEWAY, ROOT, Box  # noqa: E402
from tests.system.conftest import Fleet  # noqa: E402

FLEET = """
[fleet]
history = "6h"
[[dlms]]
count = 50
model = "is15959-3ph"
line = "feeder-1"
[[modbus]]
count = 10
model = "eastron-sdm630"
line = "bus-1"
id = "MB1"
"""


def disk_mb(*folders: Path) -> float:
    """Of folders together, files that are the same file once."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values()) / 1e6


def memory_mb(pid: int) -> dict[str, float]:
    """RSS and PSS of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    figures = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return {"rss_mb": figures["Rss"] / 1024, "pss_mb": figures["Pss"] / 1024}


def measure(
    folder: Path, built: Path, components: tuple[str, ...], env: dict[str, str], fleet: Fleet
) -> dict[str, dict[str, float]]:
    """Install and run these components together, and measure each."""
    with tempfile.TemporaryDirectory(prefix="gg") as short:
        nucleus = Nucleus(Path(short), "lite")
        boxes = [Box(folder, nucleus, built, env, name) for name in components]
        try:
            before = 0.0
            figures: dict[str, dict[str, float]] = {}
            for box in boxes:
                roles = '["dlms", "modbus", "push", "detector", "uplink", "console"]'
                text = box.config.read_text().splitlines()
                box.config.write_text(
                    "\n".join(
                        f"roles = {roles}" if line.startswith("roles") else line for line in text
                    )
                )
                box.deploy()
                installed = disk_mb(*(b.work for b in boxes))
                figures[box.component] = {"installed_mb": installed - before}
                before = installed
            for box in boxes:
                box.start()
            asked = [box for box in boxes if box.component in (GATEWAY, FOUR[0], FOUR[1])]
            end = time.monotonic() + 60
            for box in asked:
                name = {GATEWAY: "", FOUR[0]: "dlms", FOUR[1]: "modbus"}[box.component]
                sock = folder / "data" / (f"control-{name}.sock" if name else "control.sock")
                from edge_core.transports.control import ask

                while time.monotonic() < end:
                    ask(sock, {"do": "sweep", "timeout_s": 20}, 60.0)
                    rows = ask(sock, {"do": "meters"}, 20.0)
                    if rows and all(row["last_read"] for row in rows):
                        break
            time.sleep(5)
            for box in boxes:
                figures[box.component] |= memory_mb(box.processes[-1].pid)
            return figures
        finally:
            for box in boxes:
                box.close()
            nucleus.kill()


def main() -> None:
    """Build, install, run, tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        built = Builder(ROOT, root / "build").build([GATEWAY, *FOUR])
        archives = {b.name: b.size / 1e6 for b in built}
        now = time.time()
        env = os.environ | {"OPENDCU_CLOCK": f"{now:.3f}:{now:.3f}:1"}
        out: dict[str, dict[str, float]] = {}
        for number, components in enumerate(((GATEWAY,), FOUR)):
            folder = root / str(number)
            folder.mkdir()
            fleet = Fleet(folder, FLEET, env)
            try:
                out |= measure(folder, root / "build" / "local", components, env, fleet)
            finally:
                fleet.close()
    for name, figures in out.items():
        figures["archive_mb"] = archives[name]
    four = {key: sum(out[name][key] for name in FOUR) for key in out[GATEWAY]}
    columns = ("archive_mb", "installed_mb", "rss_mb", "pss_mb")
    print(f"{'':26}" + "".join(f"{c:>14}" for c in columns))
    for name, figures in [*out.items(), ("four together", four)]:
        print(f"{name:26}" + "".join(f"{figures[c]:14.1f}" for c in columns))
    if arguments.json:
        document = {
            "command": "benchmarks/component_footprint.py", "python": platform.python_version(),
            "machine": platform.machine(), "components": out, "four": four,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
