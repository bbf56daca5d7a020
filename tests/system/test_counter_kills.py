"""SIGKILL before every step of a ciphered read: no counter is ever sent twice to a meter that remembers each of them.

The meter refuses and records every repeat, whatever became of the answer. Its own figure, which is asked for first, might hide
a reservation that came too late: that of the store alone, without any meter's help, is proven by `journal_kills.py`, whose
victims tell of each counter before they use it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mosquitto
from tests.system.conftest import Fleet, Installation

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]
EVERY = 1 if os.environ.get("OPENDCU_LONG") else 11
FLEET = """
[fleet]
seed = 3
history = "2h"
by_address = true

[[dlms]]
count = 1
model = "is15959-3ph"
line = "feeder-1"
"""


class Server:
    """The fork server of counter_child.py."""

    def __init__(self, env: dict[str, str], *arguments: object) -> None:
        self.arguments = " ".join(map(str, arguments))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.counter_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def run(self, last: int) -> tuple[int, int]:
        """Wait status of a read that ends before a step (0 = never), and its steps."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{last} {self.arguments}\n")
        self.process.stdin.flush()
        _, status, steps = self.process.stdout.readline().split()
        return int(status), int(steps)


@pytest.fixture
def server(tmp_path: Path, mosquitto: Mosquitto, civil: dict[str, str]) -> Iterator[Server]:
    fleet = Fleet(tmp_path, FLEET, civil)
    gateway = Installation(tmp_path, mosquitto.url, civil)
    server = Server(civil, "read", "GP1000001", "-c", gateway.config, "--what", "clock", "--json")
    server.fleet = fleet  # type: ignore[attr-defined]
    yield server
    server.process.kill()
    server.process.communicate()
    gateway.close()
    fleet.close()


def test_no_counter_is_sent_twice_whatever_step_the_kill_comes_before(server, tmp_path):
    assert server.run(0)[0] == 0  # the first read also learns the meter
    status, steps = server.run(0)
    assert status == 0
    assert steps > 30
    killed = 0
    for last in range(1, steps, EVERY):
        status, _ = server.run(last)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert server.fleet.violations() == 0
    assert killed > steps // EVERY // 2  # a read after a kill may need fewer steps
    assert server.run(0)[0] == 0
    assert server.fleet.violations() == 0
