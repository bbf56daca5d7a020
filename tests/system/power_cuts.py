"""Power cuts as a disk sees them: a log of what it was told, and the files as it could leave them at any point of the log.

Every write before the last sync of its file is there; later ones are there, missing, or torn at a 512-octet sector, by chance.
(No root, no loop device; the file system is taken to keep names in order.)
"""

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.system.journal_kills import Tally, check

SECTOR = 512


class File:
    """What of a file is safe, and what is on its way."""

    def __init__(self):
        self.safe = bytearray()
        self.pending = []  # (offset, data) or (length, None)

    def sync(self):
        for change in self.pending:
            apply(self.safe, *change)
        self.pending = []

    def after_cut(self, rng, share):
        out = bytearray(self.safe)
        for offset, data in self.pending:
            if data is None:
                if rng.random() < share:
                    apply(out, offset, None)
                continue
            fate = rng.random()
            if fate < share * 0.8:
                apply(out, offset, data)
            elif fate < share:  # torn: some of its sectors
                for at in range(0, len(data), SECTOR):
                    if rng.random() < 0.5:
                        apply(out, offset + at, data[at : at + SECTOR])
        return bytes(out)


def apply(content, offset, data):
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def records(log):
    data, at = log.read_bytes(), 0
    while at + 15 <= len(data):
        op, length, offset, size = struct.unpack_from("<cHQI", data, at)
        at += 15
        path = data[at : at + length].decode()
        at += length
        yield op, path, offset, data[at : at + size]
        at += size


def build_shim(compiler, folder):
    """The library that writes the log, for LD_PRELOAD."""
    library = folder / "journal_disk.so"
    source = Path(__file__).with_name("journal_disk.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lpthread"],
        check=True,
    )
    return library


def power_cuts(shim, folder, seed, *, turns=300, cuts=60, clock="-"):
    """Let a process journal for some turns, and cut its power at `cuts` of the changes that it told the disk."""
    work, log = folder / "work", folder / "log"
    work.mkdir(parents=True)
    code = (
        "from tests.system.journal_child import child; "
        f"child({str(work)!r}, {seed}, 'go', turns={turns}, clock={clock!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(shim), "JD_DIR": str(work), "JD_LOG": str(log)},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=120,
    )
    changes = [c for c in records(log) if c[1] != str(work)]  # syncs of the folder itself aside
    assert sum(op == b"S" for op, *_ in changes) > turns // 2
    # a cut just before each of many changes; the last one may be the worst moment of a checkpoint
    rng = random.Random(seed)
    at = set(rng.sample(range(len(changes)), min(cuts, len(changes))))
    files, tally = {}, Tally()
    for number, (op, path, offset, data) in enumerate(changes):
        if number in at:
            tally += cut(files, work, folder / "cut", rng, clock)
            tally.kills += 1
        if op == b"U":
            files.pop(path, None)
            continue
        file = files.setdefault(path, File())
        if op == b"W":
            file.pending.append((offset, data))
        elif op == b"T":
            file.pending.append((offset, None))
        else:
            file.sync()
    return tally


def cut(files, work, folder, rng, clock="-"):
    """Leave the files as a power cut might, and hold them against what was acknowledged."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "acks").touch()
    share = rng.choice((0.0, 0.3, 0.7, 1.0))
    for path, file in files.items():
        name = Path(path).relative_to(work)
        if name.name.endswith("-shm"):
            continue
        if name.name == "acks":  # what others were told cannot be taken back
            content = bytearray()
            for _, data in file.pending:
                content += data
            (folder / name).write_bytes(content)
        else:
            (folder / name).write_bytes(file.after_cut(rng, share))
    return check(folder, clock)
