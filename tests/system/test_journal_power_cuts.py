"""Power cuts at enumerated points: the disk keeps what was synced, and of the rest whatever it likes.

A child works under a shim that logs what it tells the disk. For each cut point the files are made as a disk could leave them:
every write before the last sync of its file is there; later ones are there, missing, or torn at a 512-octet sector, by chance.
Acknowledgements up to the cut must hold. (No root, no loop device; the file system is taken to keep names in order.)
"""

import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import program
from tests.system.test_journal_kills import check

pytestmark = [pytest.mark.system, pytest.mark.slow]
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


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "journal_disk.so"
    source = Path(__file__).with_name("journal_disk.c")
    compiler = program("cc", "gcc libc6-dev")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl", "-lpthread"],
        check=True,
    )
    return library


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
def test_power_cuts_lose_nothing_acknowledged(shim, tmp_path, seed):
    work, log = tmp_path / "work", tmp_path / "log"
    work.mkdir()
    code = f"from tests.system.journal_child import child; child({str(work)!r}, {seed}, 'go', turns=300)"
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(shim), "JD_DIR": str(work), "JD_LOG": str(log)},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=120,
    )
    changes = [c for c in records(log) if c[1] != str(work)]  # syncs of the folder itself aside
    syncs = sum(op == b"S" for op, *_ in changes)
    assert syncs > 200
    # a cut just before and just after each of many changes; the last one is the worst moment of a checkpoint, or not
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(changes)), 60))
    files: dict[str, File] = {}
    done, rows, alarms = 0, 0, 0
    for number, (op, path, offset, data) in enumerate(changes):
        if cuts and number == cuts[0]:
            cuts.pop(0)
            rows, alarms = cut(files, work, tmp_path / "cut", rng)
            done += 1
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
    assert done == 60
    assert rows > 100
    assert alarms > 5


def cut(files, work, folder, rng):
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
    return check(folder)
