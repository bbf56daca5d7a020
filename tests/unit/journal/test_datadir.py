"""The data directory: one process a role, and what drivers remember."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_core.errors import ConfigError, DataDirectoryBusy
from edge_core.journal.datadir import DataDirectory, Memories
from tests.conftest import eventually_sync

HOLD = """
import sys
from edge_core.journal.datadir import DataDirectory
locks = DataDirectory(sys.argv[1]).lock(sys.argv[2:])
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path, *roles: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *roles],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "a" / "data").prepare()


def test_it_is_private(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    directory = DataDirectory(path).prepare()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert directory.cache.is_dir()
    assert directory.damaged.is_dir()
    assert directory.journal() == path / "journal.db"
    assert directory.journal("dlms") == path / "journal-dlms.db"


def test_one_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data_dir: cannot be used"):
        DataDirectory(tmp_path / "file" / "data").prepare()


def test_two_gateways_on_one_directory(directory: DataDirectory) -> None:
    child = holder(directory.path, "dlms", "uplink")
    try:
        with pytest.raises(DataDirectoryBusy, match=f"process {child.pid} plays the role uplink"):
            directory.lock(["push", "uplink"])
        assert directory.holder("uplink") == child.pid
        assert directory.holder("push") is None, "all or none"
        with directory.lock(["push", "modbus"]):
            assert directory.holder("push") == os.getpid()
        assert directory.holder("push") is None
    finally:
        end(child)


def test_a_killed_gateway_leaves_no_lock(directory: DataDirectory) -> None:
    child = holder(directory.path, "dlms")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with directory.lock(["dlms"]):
        assert (directory.path / "lock.dlms").read_text() == f"{os.getpid()}\n"


def test_children_do_not_inherit_the_lock(directory: DataDirectory) -> None:
    locks = directory.lock(["dlms"])
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        close_fds=False,
    )
    try:
        locks.close()
        # the kernel lets the parent of a vfork go on just before exec closes descriptors in the child
        eventually_sync(lambda: directory.holder("dlms") is None)
    finally:
        child.kill()
        child.communicate()


# Memories -------------------------------------------------------------------------------------------------------------


def test_what_was_put_is_there_after_a_restart(directory: DataDirectory) -> None:
    memories = Memories(directory)
    memory = memories.of("m1")
    assert memory.get("layout") is None
    memory.put("layout", {"cols": [["1.0.1.8.0.255", "Wh", 0]], "n": 2**60})
    memory.put("serial", "12345678")
    memories.of("m2").put("serial", "87654321")
    memory.get("layout")["cols"].clear()
    assert memory.get("layout") == {"cols": [["1.0.1.8.0.255", "Wh", 0]], "n": 2**60}, (
        "a copy is given"
    )
    memories.close()

    again = Memories(directory)
    assert again.of("m1").get("layout") == {"cols": [["1.0.1.8.0.255", "Wh", 0]], "n": 2**60}
    again.of("m1").put("serial", None)
    again.forget("m2")
    again.of("m2").put("new", 1)
    again.close()

    last = Memories(directory)
    assert last.of("m1").get("serial") is None
    assert last.of("m2").get("serial") is None
    assert last.of("m2").get("new") == 1
    last.close()


def test_it_is_written_in_the_background(directory: DataDirectory) -> None:
    memories = Memories(directory, write_s=0.01)
    memories.of("m1").put("serial", "1")

    def stored() -> list[tuple[str, str, bytes]]:
        with sqlite3.connect(directory.cache / "memory.db") as connection:
            rows = connection.execute("SELECT * FROM memory").fetchall()
        connection.close()
        return rows

    assert eventually_sync(stored) == [("m1", "serial", b'"1"')]
    memories.close()


@pytest.mark.parametrize(
    "octets", [b"this is no database, " * 100, b"SQLite format 3\x00" + bytes(5000)]
)
def test_a_damaged_memory_is_set_aside(directory: DataDirectory, octets: bytes) -> None:
    file = directory.cache / "memory.db"
    file.write_bytes(octets)
    memories = Memories(directory, now=1764000000)
    memories.of("m1").put("serial", "1")
    memories.close()
    assert (directory.damaged / "memory-1764000000.db").read_bytes() == octets
    again = Memories(directory)
    assert again.of("m1").get("serial") == "1"
    again.close()


def test_a_value_that_is_no_json_is_damage(directory: DataDirectory) -> None:
    memories = Memories(directory)
    memories.of("m1").put("serial", "1")
    memories.close()
    with sqlite3.connect(directory.cache / "memory.db") as connection:
        connection.execute("UPDATE memory SET value = x'7b'")
    connection.close()
    again = Memories(directory, now=5)
    assert again.of("m1").get("serial") is None
    assert (directory.damaged / "memory-5.db").exists()
    again.close()


def test_a_value_too_large_is_held_and_not_written(directory: DataDirectory) -> None:
    memories = Memories(directory)
    memories.of("m1").put("frame", "x" * (Memories.MAX_VALUE_OCTETS + 1))
    assert len(memories.of("m1").get("frame")) > Memories.MAX_VALUE_OCTETS
    memories.close()
    again = Memories(directory)
    assert again.of("m1").get("frame") is None
    again.close()


def test_a_memory_that_cannot_be_written_is_tried_again(directory: DataDirectory) -> None:
    memories = Memories(directory)
    blocker = sqlite3.connect(directory.cache / "memory.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    memories.of("m1").put("serial", "1")
    memories.busy_s = 0.01
    memories.write()
    blocker.execute("ROLLBACK")
    blocker.close()
    memories.close()
    again = Memories(directory)
    assert again.of("m1").get("serial") == "1"
    again.close()
