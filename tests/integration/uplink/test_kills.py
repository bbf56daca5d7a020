"""SIGKILL of the process that journals and sends, again and again, broker included: what was durable arrives, once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_core.domain import alarm_id
from tests.conftest import Mosquitto, eventually_sync
from tests.integration.uplink.conftest import Cloud, block, cells

pytestmark = [pytest.mark.integration, pytest.mark.peer, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def victim(folder: Path, url: str, run: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.integration.uplink.victim",
            str(folder),
            url,
            str(run),
            *more,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_and_drain(
    folder: Path, cloud: Cloud, mosquitto: Mosquitto, rng: random.Random, kills: int = 5
) -> tuple[int, int]:
    """Kill so many lives of one folder, and the broker once among them, then let it drain; (blocks, alarms) held to be there."""
    cloud.misbehave = {
        "lost": 0.2, "forget": 0.2, "foreign": 0.2, "reject": 0.1, "doubled": 0.2, "late": 0.2,
    }  # fmt: skip
    durable: set[tuple[int, int]] = set()
    alarms: set[str] = set()
    for run in range(1, kills + 1):
        process = victim(folder, mosquitto.url, run)
        assert process.stdout
        assert process.stdout.readline(), process.communicate()[1]
        if run == (kills + 1) // 2:
            mosquitto.kill()
            mosquitto.start()
        time.sleep(rng.uniform(0.2, 1.2))  # the moment of the kill is what the test is about
        process.kill()
        out, err = process.communicate()
        assert "Traceback" not in err, err
        for line in out.splitlines():
            what, name, at = line.split()
            if what == "B":
                durable.add((int(name), int(at)))
            else:
                alarms.add(alarm_id(name, "last-gasp", (), int(at)))
    cloud.misbehave = {}
    cloud.flush()
    process = victim(folder, mosquitto.url, kills + 4, "drain")

    def ended() -> bool:
        cloud.redrive()
        return process.poll() is not None

    try:
        eventually_sync(ended, 40)
    finally:
        process.kill()
        out, err = process.communicate()
    assert "drained" in out, err
    expected = cells(*(block(meter, t0) for meter, t0 in durable))
    missing = {key for key, value in expected.items() if cloud.cells.get(key) != value}
    assert not missing
    assert alarms <= set(cloud.alarms)
    assert len({epoch for _, epoch, _ in cloud.arrived}) == 1
    return len(durable), len(alarms)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_durable_is_lost_over_kills(
    tmp_path: Path, cloud: Cloud, mosquitto: Mosquitto, seed: int
) -> None:
    blocks, alarms = kill_and_drain(tmp_path, cloud, mosquitto, random.Random(seed))
    assert blocks > 300
    assert alarms > 20
