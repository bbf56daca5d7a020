"""How many octets does the flash see for a reading, ledger and acknowledgement included?

Hourly blocks of 5,000 meters go through four buffers in one run, each read, acknowledged and removed: our journal (meters in
order, and shuffled), a row per reading in SQLite (WAL, FULL; a commit per meter read, and per 85 reads), and persist-queue
(its SQLite queue with acknowledgements, and its file queue; an item per reading, and per meter read). What reaches the flash
is counted at the block layer, by the counters of a loop device with ext4 on it (root, Linux; the file system's own journal
included, the flash controller's amplification not); elsewhere by the write calls of /proc/self/io.

usage: journal_wear.py [--quick]
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import persistqueue
from common import save, table
from journal_commit import LAYOUT, METERS, ROWS, Disk, Fleet, disk, ours, theirs

WAY = {
    "sqlite": lambda folder: persistqueue.SQLiteAckQueue(
        str(folder), auto_commit=True, multithreading=False
    ),
    "file": lambda folder: persistqueue.Queue(str(folder), autosave=True),
}


def peer(where: Disk, way: str, meters: int, *, per_reading: bool) -> dict[str, float]:
    """persist-queue: put everything of some meters, get it, acknowledge it."""
    folder = where.folder / "peer"
    queue = WAY[way](folder)
    blocks = Fleet(meters).cycle(list(range(meters)))
    items = [
        [
            (b.meter, column.obis, at, value)
            for c, column in enumerate(LAYOUT.cols)
            for at, value in zip(b.times, b.columns[c], strict=True)
        ]
        for b in blocks
    ]
    if per_reading:
        items = [[row] for rows in items for row in rows]
    written, flushes = where.counters()
    cpu, wall = time.process_time(), time.perf_counter()
    for item in items:
        queue.put(item)
    for _ in items:
        item = queue.get()
        if way == "sqlite":
            queue.ack(item)
        else:
            queue.task_done()
    if way == "sqlite":
        queue.clear_acked_data(keep_latest=0)
    after, flushes_after = where.counters()
    readings = meters * ROWS * 4
    out = {
        "readings/s": readings / (time.perf_counter() - wall),
        "CPU us/reading": (time.process_time() - cpu) / readings * 1e6,
        "syncs/1,000": (flushes_after - flushes) / readings * 1000 if where.loop else 0,
        "written B/reading": (after - written) / readings,
    }
    del queue
    shutil.rmtree(folder)
    return out


def main() -> None:
    quick = "--quick" in sys.argv
    cycles, few, more = (1, 40, 400) if quick else (4, 250, 2_500)
    with disk() as where:
        print(f"on {where.loop or 'the temporary folder'}")
        taken = {
            "our journal, meters in order": ours(where, cycles, shuffled=False),
            "our journal, meters shuffled": ours(where, cycles, shuffled=True),
            "SQLite, row per reading, commit per read": theirs(where, 1, 1),
            "SQLite, row per reading, commit per 85 reads": theirs(where, cycles, 85),
            "persist-queue SQLite, item per reading": peer(where, "sqlite", few, per_reading=True),
            "persist-queue SQLite, item per read": peer(where, "sqlite", more, per_reading=False),
            "persist-queue files, item per reading": peer(where, "file", few, per_reading=True),
            "persist-queue files, item per read": peer(where, "file", more, per_reading=False),
        }
        heads = ["written B/reading", "syncs/1,000", "CPU us/reading", "readings/s"]
        rows = [[f"{METERS} meters, {ROWS} rows of 4", *heads]]
        rows += [[name, *(f"{v[h]:,.2f}" for h in heads)] for name, v in taken.items()]
        print(table(rows))
    if not quick:
        kind = "ext4 on a loop device" if where.loop else "file"
        print(save("journal_wear", {"disk": kind, "wear": taken}, "numpy", "persist-queue"))


if __name__ == "__main__":
    main()
