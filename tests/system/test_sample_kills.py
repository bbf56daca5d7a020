"""What no meter remembers is on disk 200 ms after the meter said it: the gateway is killed then, and the sample is there.

On a busy machine everything takes longer: what a row of ours needs to the disk there is measured just before, and the
kill waits ten times that longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.config.models import load_model
from edge_core.domain import Flag, as_list
from edge_core.journal import Journal
from edge_core.journal.datadir import DataDirectory
from tests.integration.modbus.conftest import Asked, Slave
from tests.system.conftest import OPENDCU

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MODEL = load_model("eastron-sdm630")
BOUNDARY = 1_763_942_400  # 05:30 in Kolkata: no midnight is near
KILL_AFTER_S = 0.2
ROUNDS = 5


async def row_s(folder: Path) -> float:
    """Seconds beyond its due time that a row takes to the disk at present: the slowest of a few."""
    slowest, loop = 0.0, asyncio.get_running_loop()
    with contextlib.closing(sqlite3.connect(folder / "beside.db")) as database:
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE IF NOT EXISTS rows (at REAL)")
        for _ in range(5):
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            with database:
                database.execute("INSERT INTO rows VALUES (?)", (due,))
            slowest = max(slowest, loop.time() - due)
    return slowest


class Watched(Slave):
    """Tells when it has answered with its counter."""

    on_counter: Callable[[], object] | None = None

    async def _react(self, asked: Asked, send: Callable[[bytes], None]) -> None:
        await super()._react(asked, send)
        (counter,) = (p for p in MODEL.points if p.name == "active_energy_import")
        if asked.address <= counter.address < asked.address + asked.count and self.on_counter:
            told, self.on_counter = self.on_counter, None
            told()


def configure(folder: Path, port: int) -> Path:
    file = folder / "gateway.toml"
    file.write_text(f"""\
[gateway]
id = "dcu-1"
data_dir = "data"
timezone = "Asia/Kolkata"
roles = ["modbus"]
[uplink]
kind = "file"
url = "sent"
[schedule]
instantaneous = "off"
[[lines]]
id = "panel"
transport = "tcp"
framing = "modbus-tcp"
[[meters]]
id = "SM1"
line = "panel"
model = "eastron-sdm630"
address = "127.0.0.1:{port}/1"
""")
    return file


def samples(data: Path) -> dict[int, tuple[int, int]]:
    """Boundary -> counter and its scaler, of everything in the journal."""
    journal = Journal.open(DataDirectory(data).journal("modbus"), clock=SystemClock())
    try:
        assert not journal.was_damaged
        found = {}
        for segment in journal.segments(0, lane=None, limit=100):
            for block in journal.blocks(segment.id):
                assert all(bits & Flag.SAMPLED for _, _, bits in block.flags)
                at = [column.obis for column in block.layout.cols].index("1.0.1.8.0.255")
                (value,) = as_list(block.columns[at])
                found[int(block.times[0])] = (value, block.layout.cols[at].scaler)
        return found
    finally:
        journal.close()


async def test_a_kill_200_ms_after_a_sample_does_not_lose_it(tmp_path):
    slave = Watched(rtu=False)
    slave.hold(1, MODEL, {p.name: 0.0 for p in MODEL.points})
    slave.hold(1, MODEL, {"voltage_l1": 230.0, "frequency": 50.0})
    config = configure(tmp_path, await slave.serve())
    (tmp_path / "keys.toml").touch(0o600)
    loop = asyncio.get_running_loop()
    try:
        for turn in range(ROUNDS):
            slave.hold(1, MODEL, {"active_energy_import": 1000.0 + turn})
            now = time.time()  # noqa: TID251 the anchor of the gateway's clock
            env = os.environ | {"OPENDCU_CLOCK": f"{now:.3f}:{BOUNDARY + 900 * turn + 1}:1"}
            with (tmp_path / "log").open("ab") as log:
                gateway = await asyncio.create_subprocess_exec(
                    OPENDCU, "run", "-c", config, env=env, stdout=log, stderr=log
                )
            wait_s = KILL_AFTER_S + 10 * await row_s(tmp_path)
            slave.on_counter = functools.partial(
                loop.call_later, wait_s, gateway.send_signal, signal.SIGKILL
            )
            try:
                async with asyncio.timeout(20):
                    assert await gateway.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
            finally:
                if gateway.returncode is None:
                    gateway.kill()
                    await gateway.wait()
            assert slave.on_counter is None
            found = samples(tmp_path / "data")
            assert sorted(found) == [BOUNDARY + 900 * t for t in range(turn + 1)]
            value, scaler = found[BOUNDARY + 900 * turn]
            assert value * 10**scaler == 1_000_000 + 1000 * turn  # Wh
    finally:
        await slave.stop()
