"""What does it cost to make readings durable, and how soon is the journal ready after a kill?

Hourly blocks of 5,000 meters (4 rows of 4 cumulative registers) go into the journal in groups of 85, with the ledger, and each
group's segment is released ten groups later. Beside it stands what the same readings cost as a row per reading in SQLite
(WAL, FULL, a commit per meter read, rows marked and deleted when acked). As root on Linux both run on an ext4 of their own in a
loop device, whose counters say exactly what flash would be sent (journal of the file system included, the flash controller's
own amplification not); elsewhere octets written come from /proc/self/io and syncs are not counted.

usage: journal_commit.py [--quick]
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import save, table

from edge_core.clock import SystemClock
from edge_core.domain import Alarm, Block, Column, Layout, alarm_id
from edge_core.journal import Journal

METERS, ROWS, GROUP = 5_000, 4, 85
T0 = 1_764_000_000
LAYOUT = Layout(
    "1.0.99.1.0.255",
    900,
    tuple(
        Column(f"1.0.{c}.8.0.255", unit, 0)
        for c, unit in ((1, "Wh"), (2, "Wh"), (5, "varh"), (8, "varh"))
    ),
)


class Fleet:
    """Cumulative registers with household-like increments, the same for everyone who asks with the same seed."""

    def __init__(self, meters: int, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.values = [
            [self.rng.randrange(100_000, 60_000_000) for _ in range(4)] for _ in range(meters)
        ]
        self.hour = 0

    def cycle(self, order: list[int]) -> list[Block]:
        g, out = self.rng.random, []
        for m in order:
            v = self.values[m]
            columns: list[list[int]] = [[], [], [], []]
            for _ in range(ROWS):
                a = int(40 + 260 * g() * g() + (1200 * g() if g() < 0.08 else 0))
                steps = (
                    a,
                    0 if m % 10 else int(a * g()),
                    int(a * 0.25 * g()),
                    0 if g() < 0.7 else int(9 * g()),
                )
                for c, step in enumerate(steps):
                    v[c] += step
                    columns[c].append(v[c])
            t0 = T0 + self.hour * 3600
            out.append(
                Block(
                    meter=f"GP{m:07d}",
                    device=f"{m * 7919 % 10**8:08d}",
                    kind="interval",
                    layout=LAYOUT,
                    times=list(range(t0, t0 + 3600, 900)),
                    columns=tuple(columns),
                    tz=330,
                    read_at=t0 + 3700 + m // 17,
                    proven_at=T0,
                )
            )
        self.hour += 1
        return out


class Disk:
    """Where it is written, and what that costs."""

    def __init__(self, folder: Path, loop: str | None) -> None:
        self.folder, self.loop = folder, loop

    def counters(self) -> tuple[int, int]:
        """(octets written, flushes)."""
        if self.loop:
            subprocess.run(["sync", "-f", str(self.folder)], check=True)
            f = [int(x) for x in Path(f"/sys/block/{self.loop}/stat").read_text().split()]
            return f[6] * 512, f[15]
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["write_bytes"]), 0


@contextmanager
def disk():
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        shm = Path("/dev/shm")
        image = (shm if shm.is_dir() else base) / f"journal-{os.getpid()}.img"
        mount = base / "mount"
        mount.mkdir()
        made = False
        if os.geteuid() == 0:
            with image.open("wb") as file:
                file.truncate(900 << 20)
            options = ["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
            made = all(
                subprocess.run(command, capture_output=True, check=False).returncode == 0
                for command in (
                    ["mkfs.ext4", *options, str(image)],
                    ["mount", "-o", "loop,noatime", str(image), str(mount)],
                )
            )
        try:
            loop = None
            if made:
                device = next(
                    line.split()[0]
                    for line in Path("/proc/mounts").read_text().splitlines()
                    if line.split()[1] == str(mount)
                )
                loop = Path(device).name
            yield Disk(mount if made else base, loop)
        finally:
            if made:
                subprocess.run(["umount", str(mount)], check=False)
            image.unlink(missing_ok=True)


def ours(where: Disk, cycles: int, *, shuffled: bool) -> dict[str, float]:
    fleet, folder = Fleet(METERS), where.folder / "ours"
    journal = Journal.open(folder / "journal.db", clock=SystemClock())
    order = list(range(METERS))
    taken: dict[str, float] = {}
    for cycle in range(cycles + 1):
        if shuffled:
            random.Random(cycle).shuffle(order)
        blocks = fleet.cycle(order)
        if cycle == 1:  # the first one makes names and grows the WAL
            written, flushes = where.counters()
            cpu, wall = time.process_time(), time.perf_counter()
            commits = journal.status().commits
        for first in range(0, METERS, GROUP):
            group = blocks[first : first + GROUP]
            futures = [journal.append(b, durable="soon") for b in group]
            journal.release(segments=range(journal.head() - 20, journal.head() - 9))
            journal.flush().result()
            assert sum(f.result().new for f in futures) == ROWS * len(group)
    readings = cycles * METERS * ROWS * 4
    taken["readings/s"] = readings / (time.perf_counter() - wall)
    taken["CPU us/reading"] = (time.process_time() - cpu) / readings * 1e6
    taken["commits/1,000"] = (journal.status().commits - commits) / readings * 1000
    after, flushes_after = where.counters()
    taken["syncs/1,000"] = (flushes_after - flushes) / readings * 1000 if where.loop else 0
    taken["written B/reading"] = (after - written) / readings
    taken["size B/reading"] = sum(
        s.bytes for s in journal.segments(0, limit=10**6, everything=True)
    ) / ((cycles + 1) * METERS * ROWS * 4)
    journal.close()
    shutil.rmtree(folder)
    return taken


def theirs(where: Disk, cycles: int, per_commit: int) -> dict[str, float]:
    """A row per reading, the way it is usually done."""
    fleet, folder = Fleet(METERS), where.folder / "theirs"
    folder.mkdir()
    db = sqlite3.connect(folder / "rows.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        "CREATE TABLE reading(id INTEGER PRIMARY KEY, meter TEXT, obis TEXT, at INTEGER, value INTEGER, acked INTEGER)"
    )
    order = list(range(METERS))
    sized = 0.0
    for cycle in range(cycles + 1):
        blocks = fleet.cycle(order)
        if cycle == 1:
            size = (folder / "rows.db").stat().st_size
            sized = size / (METERS * ROWS * 4)
            written, flushes = where.counters()
            cpu, wall, commits = time.process_time(), time.perf_counter(), 0
        for first in range(0, METERS, per_commit):
            rows = [
                (b.meter, column.obis, at, value)
                for b in blocks[first : first + per_commit]
                for c, column in enumerate(LAYOUT.cols)
                for at, value in zip(b.times, b.columns[c], strict=True)
            ]
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO reading(meter, obis, at, value, acked) VALUES (?, ?, ?, ?, 0)", rows
            )
            db.execute("COMMIT")
            if cycle:
                commits += 1
        db.execute("DELETE FROM reading WHERE id <= ?", ((cycle - 1) * METERS * ROWS * 4,))
    readings = cycles * METERS * ROWS * 4
    out = {
        "readings/s": readings / (time.perf_counter() - wall),
        "CPU us/reading": (time.process_time() - cpu) / readings * 1e6,
        "commits/1,000": commits / readings * 1000,
    }
    after, flushes_after = where.counters()
    out["syncs/1,000"] = (flushes_after - flushes) / readings * 1000 if where.loop else 0
    out["written B/reading"] = (after - written) / readings
    out["size B/reading"] = sized
    db.close()
    shutil.rmtree(folder)
    return out


READY = """
import pathlib, sys, time
start = time.perf_counter()
from edge_core.clock import SystemClock
from edge_core.journal import Journal
imported = time.perf_counter()
journal = Journal.open(pathlib.Path(sys.argv[1]), clock=SystemClock())
opened = time.perf_counter()
first = journal.segments(0, limit=20)
marks = journal.ledger("GP0000007")
asked = time.perf_counter()
journal.note("replies", "x", {}); journal.flush().result()
durable = time.perf_counter()
assert len(first) == 20 and marks[0].captured, (first, marks)
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]
print(imported - start, opened - imported, asked - opened, durable - asked, int(peak) / 1024, journal.head())
import os; os.kill(os.getpid(), 9)
"""
FILL = """
import pathlib, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from journal_commit import Fleet, METERS
from edge_core.clock import SystemClock
from edge_core.journal import Journal
fleet, order = Fleet(METERS), list(range(METERS))
journal = Journal.open(pathlib.Path(sys.argv[1]), clock=SystemClock())
for cycle in range(int(sys.argv[4])):
    for b in fleet.cycle(order):
        journal.append(b)
    journal.flush().result()
    print(cycle, flush=True)
for b in fleet.cycle(order):
    journal.append(b, durable="soon")
    import time; time.sleep(0.001)
"""


def ready(where: Disk, cycles: int, kills: int) -> dict[str, float]:
    """Seconds from opening to usable after SIGKILL, with everything queued and nothing acked."""
    folder = where.folder / "ready"
    path = folder / "journal.db"
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", FILL, str(path), str(here), str(here.parent), str(cycles)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:  # type: ignore[union-attr]
        if int(line) == cycles - 1:
            break
    time.sleep(2)  # commits of a second fill
    child.kill()
    child.wait()
    child.stdout.close()  # type: ignore[union-attr]
    figures = []
    for _ in range(kills):
        os.sync()
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        done = subprocess.run(
            [sys.executable, "-c", READY, str(path)],
            capture_output=True,
            text=True,
            cwd=here.parent,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        figures.append([float(x) for x in done.stdout.split()])
    median = [statistics.median(column) for column in zip(*figures, strict=True)]
    worst = [max(column) for column in zip(*figures, strict=True)]
    size = sum(f.stat().st_size for f in folder.iterdir())
    shutil.rmtree(folder)
    return {
        "readings": cycles * METERS * ROWS * 4,
        "file MB": size / 1e6,
        "open ms": median[1] * 1e3,
        "open ms worst": worst[1] * 1e3,
        "ledger and segments ms": median[2] * 1e3,
        "first commit ms": median[3] * 1e3,
        "peak MB": median[4],
        "segments": median[5],
    }


def alarms(where: Disk, seconds: float) -> dict[str, float]:
    """Alarm to durable while blocks are committed as fast as they come."""
    fleet, folder = Fleet(METERS), where.folder / "alarms"
    journal = Journal.open(folder / "journal.db", clock=SystemClock())
    blocks = iter(fleet.cycle(list(range(METERS))))
    took, told, number = [], [], 0
    heard: list[float] = []
    journal.on_alarm(lambda _: heard.append(time.perf_counter()))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(17):
            b = next(blocks, None)
            if b is None:
                blocks = iter(fleet.cycle(list(range(METERS))))
                break
            journal.append(b, durable="soon")
        number += 1
        alarm = Alarm(
            id=alarm_id("GP1", "last-gasp", (), number), meter="GP1", class_="outage", code="last-gasp",
            at=number, heard=number, authenticated=True,
        )  # fmt: skip
        start = time.perf_counter()
        journal.alarm(alarm).result()
        took.append(time.perf_counter() - start)
        told.append(heard[-1] - start)
        time.sleep(0.01)
    journal.close()
    shutil.rmtree(folder)
    took.sort()
    return {
        "alarms": len(took),
        "told us p50": statistics.median(told) * 1e6,
        "durable ms p50": statistics.median(took) * 1e3,
        "durable ms p99": took[int(len(took) * 0.99)] * 1e3,
        "durable ms max": took[-1] * 1e3,
    }


def main() -> None:
    quick = "--quick" in sys.argv
    cycles = 2 if quick else 6
    with disk() as where:
        print(f"on {where.loop or 'the temporary folder'}")
        commits = {
            "journal, meters in order": ours(where, cycles, shuffled=False),
            "journal, meters shuffled": ours(where, cycles, shuffled=True),
            "row per reading, commit per meter read": theirs(where, 1 if quick else 2, 1),
            f"row per reading, commit per {GROUP} reads": theirs(where, cycles, GROUP),
        }
        heads = list(next(iter(commits.values())))
        rows = [["", *heads]]
        rows += [[name, *(f"{v[h]:,.2f}" for h in heads)] for name, v in commits.items()]
        print(table(rows))
        after_kill = ready(where, 12 if quick else 125, 3 if quick else 7)
        print("ready after SIGKILL:", json.dumps({k: round(v, 2) for k, v in after_kill.items()}))
        gasps = alarms(where, 3 if quick else 15)
        print("alarms:", json.dumps({k: round(v, 2) for k, v in gasps.items()}))
    if not quick:
        where_to = save(
            "journal_commit",
            {
                "disk": "ext4 on a loop device" if where.loop else "file",
                "commits": commits,
                "ready": after_kill,
                "alarms": gasps,
            },
            "numpy",
        )
        print(where_to)


if __name__ == "__main__":
    main()
