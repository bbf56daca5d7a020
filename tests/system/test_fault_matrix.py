"""Faults of the box, its disk, its clock and its broker, each on the whole installed gateway (docs/explanation/fault-matrix.md).

After each: everything that the simulated meters hold is in the cloud, bit for bit, and no message number named two
contents (`Cloud` compares), no reading has two values, and no meter saw an invocation counter twice.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.domain import alarm_id
from edge_core.journal import store
from edge_core.journal.counters import JUMP
from tests.conftest import Mosquitto, eventually_sync
from tests.integration.uplink.conftest import Cloud
from tests.system.conftest import FLEET, SPEED, Fleet, Installation
from tests.system.journal_child import NEXT_SCHEMA
from tests.system.power_cuts import File, records
from tests.system.test_journal_power_cuts import shim

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]
LONG = pytest.mark.skipif(not os.environ.get("OPENDCU_LONG"), reason="OPENDCU_LONG is not set")
__all__ = ["shim"]


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: Path, civil: dict[str, str]) -> Iterator[Fleet]:
    """As everywhere, or of the specification that the test names."""
    fleet = Fleet(tmp_path, getattr(request, "param", FLEET), civil)
    yield fleet
    fleet.close()


def root_only(*command: object) -> None:
    """Run what only root may, or skip."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} is for root only here: {done.stderr.strip()}")


def at_rest(gateway: Installation, cloud: Cloud) -> None:
    """Run until messages of reads have arrived that were not there before, and end in good order."""
    gateway.start()
    before = cloud.topics["reads/interval"]
    eventually_sync(
        lambda: gateway.ask("sweep", timeout_s=5) and cloud.topics["reads/interval"] > before, 30
    )
    assert gateway.terminate() == 0


def counters(data: Path) -> list[int]:
    """Where each of our invocation counters will go on."""
    with sqlite3.connect(data / "counters.db") as db:
        return [
            end
            for (body,) in db.execute("SELECT body FROM own ORDER BY chunk")
            for end in struct.unpack(f"<{len(body) // 8}Q", body)
            if end
        ]


def epochs(cloud: Cloud) -> list[int]:
    """Those that the cloud has heard of, in the order of their first message."""
    return list(dict.fromkeys(epoch for topic, epoch, _ in cloud.arrived if topic != "health"))


def told(cloud: Cloud, code: str = "journal-damaged") -> list[dict[str, Any]]:
    """Details of the alarms of a kind that arrived."""
    with cloud.lock:
        documents = list(cloud.documents)
    return [
        a.get("detail", {}) for _, d in documents for a in d.get("alarms", []) if a["code"] == code
    ]


def by_archive(source: Path, target: Path) -> None:
    """As a backup does it: owner, modes and times are kept, inode numbers are not."""
    archive = target.with_suffix(".tar")
    subprocess.run(["tar", "-C", source, "-cpf", archive, "."], check=True)
    target.mkdir(mode=0o700)
    subprocess.run(["tar", "-C", target, "-xpf", archive], check=True)


def by_cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


@pytest.mark.parametrize("copying", [by_cp, pytest.param(by_archive, marks=LONG)])
def test_a_data_directory_restored_from_an_old_copy(gateway, cloud, settled, tmp_path, copying):
    data, copy = tmp_path / "data", tmp_path / "copy"
    at_rest(gateway, cloud)
    copying(data, copy)
    at_rest(gateway, cloud)  # both lives go on from the same numbers
    before = counters(data)
    shutil.rmtree(data)
    copy.rename(data)
    gateway.start()
    settled(gateway)
    eventually_sync(lambda: told(cloud), 10)
    assert gateway.terminate() == 0
    old, new = epochs(cloud)
    assert new > old
    assert all(a - b > JUMP // 2 for a, b in zip(counters(data), before, strict=True))


def test_files_put_back_in_place_from_an_old_copy(gateway, cloud, settled, tmp_path):
    """As an image of a disk does it: nothing in the files tells, and no number may be used twice all the same."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    at_rest(gateway, cloud)
    shutil.copytree(data, copy, symlinks=True)
    at_rest(gateway, cloud)
    for file in copy.rglob("*"):
        if file.is_file():
            (data / file.relative_to(copy)).write_bytes(file.read_bytes())
    gateway.start()
    settled(gateway)
    assert gateway.terminate() == 0


@pytest.mark.parametrize("in_place", [True, pytest.param(False, marks=LONG)])
def test_uplink_db_alone_restored_beside_a_newer_journal(
    gateway, cloud, settled, tmp_path, in_place
):
    """The copy knows fewer numbers than were used: none may name two messages, nothing may count as sent that was not."""
    data, copy = tmp_path / "data", tmp_path / "uplink.db"
    at_rest(gateway, cloud)
    shutil.copy(data / "uplink.db", copy)
    used = max(n for _, _, n in cloud.arrived)
    cloud.silent = True  # sent, not acked: the newer records know it, the copy does not
    at_rest(gateway, cloud)
    assert max(n for _, _, n in cloud.arrived) > used
    cloud.silent = False
    if in_place:
        (data / "uplink.db").write_bytes(copy.read_bytes())
    else:
        (data / "uplink.db").unlink()
        copy.rename(data / "uplink.db")
    gateway.start()
    settled(gateway)
    assert gateway.terminate() == 0


def test_a_data_directory_cloned_to_a_second_box(gateway, cloud, settled, tmp_path):
    data, first = tmp_path / "data", tmp_path / "first"
    at_rest(gateway, cloud)
    data.rename(first)
    shutil.copytree(first, data, symlinks=True)
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    if not Path("/etc/machine-id").exists():
        pytest.skip("this box has no /etc/machine-id to stand in for")
    script = f'mount --bind {machine} /etc/machine-id && exec "$@"'
    within = ("unshare", "--mount", "sh", "-c", script, "sh")
    root_only(*within, "true")
    gateway.within = within
    at_rest(gateway, cloud)
    assert gateway.says("comes from another machine")
    assert len(epochs(cloud)) == 2
    shutil.rmtree(data)
    first.rename(data)
    gateway.within = ()
    gateway.start()  # the first box goes on with its own numbers
    settled(gateway)
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 2


def test_a_read_only_data_directory_is_refused_and_works_when_it_is_writable(
    small_disk, gateway, cloud, settled
):
    at_rest(gateway, cloud)
    root_only("mount", "-o", "remount,ro", small_disk)
    process = gateway.start(wait=False)
    assert process.wait(15) != 0
    last = gateway.log.read_text()[-1500:]
    assert "data" in last
    assert "read-only" in last.lower()
    assert "Traceback" not in last
    root_only("mount", "-o", "remount,rw", small_disk)
    assert not list((small_disk / "damaged").iterdir())
    gateway.start()
    settled(gateway)
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 1


@pytest.fixture
def aborting_disk(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """The data directory on an ext4 of its own, and how it meets an error: it turns read-only under whoever writes."""
    folder, image = tmp_path / "data", tmp_path / "disk.img"
    folder.mkdir(mode=0o700)
    with image.open("wb") as file:
        file.truncate(24 << 20)
    root_only("mkfs.ext4", "-q", image)
    root_only("mount", "-o", "loop,errors=remount-ro", image, folder)
    folder.chmod(0o700)

    def device() -> str:
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        return Path(next(d for d, where, *_ in lines if where == str(folder))).name

    def abort() -> None:
        Path(f"/sys/fs/ext4/{device()}/trigger_fs_error").write_text("a test")

    abort.again = lambda: (  # type: ignore[attr-defined]
        subprocess.run(["umount", folder], check=True),
        subprocess.run(["e2fsck", "-p", image], check=False, capture_output=True),
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, folder], check=True),
    )
    if not Path(f"/sys/fs/ext4/{device()}/trigger_fs_error").exists():
        pytest.skip("this kernel has no trigger_fs_error")
    yield abort
    subprocess.run(["umount", "-l", folder], check=True)


def test_the_file_system_turns_read_only_under_a_running_gateway(
    aborting_disk, gateway, fleet, cloud, settled
):
    """As ext4 does it when a block cannot be read. The gateway lives on, tells of it, and works on after a repair."""
    process = gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters") or [{"device": ""}]), 20)
    aborting_disk()
    report = fleet.order("gasp", meter=1, to=gateway.push_url, how="genuine")
    wanted = alarm_id(report["meter"], "last-gasp", [], report["at"])
    eventually_sync(lambda: wanted in cloud.alarms, 20)  # told though it cannot be kept
    gateway.ask("sweep", timeout_s=3)
    eventually_sync(lambda: gateway.ask("overview")["polling"].get("refused-by-journal", 0), 40)
    assert process.poll() is None
    assert gateway.says("journal refused rows", "Read-only file system")
    gateway.kill()
    aborting_disk.again()
    gateway.start()
    settled(gateway, 30)
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 1
    assert not told(cloud)


def test_an_update_and_a_rollback_with_a_backlog(
    gateway, fleet, cloud, mosquitto, settled, tmp_path
):
    """The next release was here: it added tables, columns and an index to every file, and left a backlog."""
    mosquitto.kill()
    gateway.start()
    eventually_sync(lambda: gateway.ask("sweep", timeout_s=10)["read"] == 6, 30)
    assert gateway.terminate() == 0
    assert not cloud.cells
    for name, table in (("journal.db", "note"), ("uplink.db", "sends"), ("counters.db", "own")):
        with sqlite3.connect(tmp_path / "data" / name) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            store.migrate(db, [""] * version + [NEXT_SCHEMA.replace("note", table)])
            assert db.execute("PRAGMA user_version").fetchone() == (version + 1,)
        db.close()
    mosquitto.start()
    eventually_sync(lambda: cloud.client.is_connected(), 10)
    gateway.start()
    settled(gateway, 30)
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 1
    assert not told(cloud)
    assert not list((tmp_path / "data" / "damaged").iterdir())


def no_database(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def rotten_pages(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 1024, 2):
            file.seek(page * 1024)
            file.write(rng.randbytes(1024))


def cut_short(path: Path, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2048 * 1024)


@pytest.mark.parametrize("harm", [no_database, rotten_pages, cut_short])
@pytest.mark.parametrize("name", ["journal.db", "uplink.db", "counters.db"])
def test_a_damaged_file(gateway, cloud, settled, tmp_path, name, harm):
    data = tmp_path / "data"
    at_rest(gateway, cloud)
    before = counters(data)
    harm(data / name, random.Random(f"{name} {harm.__name__}"))
    gateway.start()
    settled(gateway)
    eventually_sync(lambda: told(cloud), 10)
    assert gateway.terminate() == 0
    assert any(name.removesuffix(".db") in f.name for f in (data / "damaged").iterdir())
    first, *more = epochs(cloud)
    assert all(e > first for e in more)
    assert len(more) == (name != "counters.db")
    # whatever was used is passed by far
    assert min(counters(data)) - max(before) > JUMP // 2


def clock(civil: dict[str, str], days: float) -> dict[str, str]:
    real, simulated, speed = civil["OPENDCU_CLOCK"].split(":")
    return civil | {"OPENDCU_CLOCK": f"{real}:{float(simulated) + days * 86400:.3f}:{speed}"}


@pytest.mark.parametrize("days", [30, -30, 0.2, -0.2, -3000])
def test_our_clock_jumps_between_two_starts_and_back(gateway, fleet, cloud, civil, settled, days):
    at_rest(gateway, cloud)
    gateway.env = clock(civil, days)
    gateway.start()
    eventually_sync(lambda: gateway.ask("sweep", timeout_s=3), 20)
    assert gateway.terminate() == 0
    gateway.env = civil
    gateway.start()
    settled(gateway, 30)
    assert gateway.terminate() == 0


def test_a_frozen_broker_thaws(gateway, fleet, cloud, mosquitto, settled):
    process = gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
    mosquitto.signal(signal.SIGSTOP)
    end = time.monotonic() + 20
    report = fleet.order("gasp", meter=1, to=gateway.push_url, how="genuine")
    while time.monotonic() < end:
        assert gateway.ask("ping")
        gateway.ask("sweep", timeout_s=2)  # reading goes on
    mosquitto.signal(signal.SIGCONT)
    settled(gateway)
    wanted = alarm_id(report["meter"], "last-gasp", [], report["at"])
    eventually_sync(lambda: wanted in cloud.alarms, 10)
    assert process.poll() is None
    assert gateway.terminate() == 0


def test_a_broker_that_refuses_one_topic_until_its_rules_are_mended(gateway, fleet, tmp_path):
    folder = tmp_path / "strict"
    folder.mkdir()
    rules = folder / "acl"
    rules.write_text("topic deny dcu/dcu-0001/reads/midnight\ntopic readwrite dcu/#\n")
    rules.chmod(0o600)
    broker = Mosquitto(folder, f"user root\nacl_file {rules}\n")
    cloud = Cloud(broker.port)
    try:
        gateway.write(broker.url)
        gateway.start()
        fleet.order("freeze")
        truth = fleet.truth()
        free = {k for k in truth if k[0][2] == "1.0.99.1.0.255"}
        assert free
        eventually_sync(
            lambda: gateway.ask("sweep", timeout_s=3) and free <= cloud.cells.keys(), 30
        )
        assert not cloud.topics["reads/midnight"]
        eventually_sync(lambda: gateway.says("reads/midnight", "the broker refused"), 10)
        assert gateway.terminate() == 0
        rules.write_text("topic readwrite dcu/#\n")
        broker.signal(signal.SIGHUP)
        gateway.start()
        eventually_sync(lambda: truth.keys() <= cloud.cells.keys(), 30)
        assert {k: cloud.cells[k] for k in truth} == truth
        assert cloud.invalid == []
        assert cloud.conflicts == []
    finally:
        cloud.close()
        broker.kill()


def test_no_ack_comes_for_an_hour_of_the_meters_and_a_kill_falls_into_it(gateway, cloud, settled):
    cloud.silent = True
    gateway.start()
    eventually_sync(lambda: cloud.topics["reads/interval"] >= 2, 20)
    gateway.kill()
    gateway.start()
    began, silent = time.monotonic(), 3600 / SPEED
    eventually_sync(
        lambda: time.monotonic() - began > silent and cloud.topics["reads/interval"] >= 4, 30
    )
    assert not cloud.acked
    cloud.silent = False
    settled(gateway, 45)
    waiting: Callable[[], Any] = lambda: gateway.ask("overview")["journal"]  # noqa: E731
    assert waiting()
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 1


@pytest.mark.parametrize("fleet", [FLEET.replace('"1d"', '"2d"')], indirect=True)
def test_a_backlog_of_two_days_drains(gateway, fleet, cloud, mosquitto, settled, record_property):
    mosquitto.kill()
    gateway.start()
    fleet.order("freeze")
    truth = fleet.truth()
    eventually_sync(lambda: gateway.ask("sweep", timeout_s=10)["read"] == 6, 30)
    assert not cloud.cells
    mosquitto.start()
    eventually_sync(lambda: cloud.client.is_connected(), 10)
    began, held = time.monotonic(), len(cloud.cells)
    eventually_sync(lambda: truth.keys() <= cloud.cells.keys(), 20)
    took = time.monotonic() - began
    settled(gateway)
    times = [captured for (_, _, _, captured, _, _), _ in truth]
    span = max(times) - min(times)
    assert span > 2 * 86400 - 3600
    record_property("readings", len(truth))
    record_property("filled at, readings/s", round(len(truth) / span, 3))
    record_property("drained at, readings/s", round((len(truth) - held) / took))
    assert gateway.terminate() == 0


def power_cut(data: Path, log: Path, before: dict[str, bytes], rng: random.Random) -> None:
    """What was synced stays; of the rest the disk keeps what it likes. In place, for the disk is the same."""
    files: dict[str, File] = {}
    for op, path, offset, octets in records(log):
        if op == b"U":
            files.pop(path, None)
            continue
        file = files.get(path)
        if file is None:
            file = files[path] = File()
            file.safe = bytearray(before.get(path, b""))
        if op == b"W":
            file.pending.append((offset, octets))
        elif op == b"T":
            file.pending.append((offset, None))
        else:
            file.sync()
    share = rng.choice((0.0, 0.5, 1.0))
    for path, file in files.items():
        if path.endswith("-shm"):
            Path(path).unlink(missing_ok=True)
        elif Path(path).is_file():
            Path(path).write_bytes(file.after_cut(rng, share))
    for shared in data.glob("*-shm"):
        shared.unlink()


def test_the_power_is_cut_below_sqlite(shim, gateway, fleet, cloud, settled, tmp_path):
    data, rng = tmp_path / "data", random.Random(5)
    plain = gateway.env
    for round_ in range(5):
        log = tmp_path / f"log-{round_}"
        before = {str(f): f.read_bytes() for f in data.rglob("*") if f.is_file()}
        gateway.env = plain | {"LD_PRELOAD": str(shim), "JD_DIR": str(data), "JD_LOG": str(log)}
        arrived = len(cloud.arrived)
        gateway.start()
        eventually_sync(lambda n=arrived: len(cloud.arrived) > n + rng.randrange(4), 20)
        gateway.kill()
        power_cut(data, log, before, rng)
    gateway.env = plain
    gateway.start()
    settled(gateway)
    assert gateway.terminate() == 0
    assert len(epochs(cloud)) == 1
    assert not told(cloud)
