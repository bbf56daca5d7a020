"""A whole installation for system tests: simulated fleet, broker, a cloud that acks, and the installed command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_core.transports.control import ask
from tests.conftest import Mosquitto, eventually_sync, free_port
from tests.integration.uplink.conftest import Cloud

OPENDCU = Path(sys.executable).with_name("opendcu")
SPEED = 240.0


class Fleet:
    """`opendcu simulate` as a child."""

    def __init__(self, folder: Path, spec: str, env: dict[str, str]) -> None:
        self.folder = folder
        (folder / "fleet.toml").write_text(spec)
        self.process = subprocess.Popen(
            [OPENDCU, "simulate", "-c", folder / "fleet.toml", "--out", folder / "fleet"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip
        assert self.answer()["ready"]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def order(self, do: str, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        assert "error" not in answer, answer
        return answer

    def truth(self, *, held: bool = True) -> dict[Any, Any]:
        """What the meters hold, in the shape of Cloud.cells."""
        path = self.folder / "truth.jsonl"
        self.order("truth", file=str(path))
        out = {}
        for line in path.read_bytes().splitlines():
            entry = msgspec.json.decode(line)
            if entry["kind"] not in ("interval", "midnight") or (held and not entry["held"]):
                continue
            occurrence = dict(map(tuple, entry["occ"]))
            for (obis, _, _, attribute), cells in zip(entry["cols"], entry["values"], strict=True):
                for row, (at, cell) in enumerate(zip(entry["t"], cells, strict=True)):
                    identity = (
                        entry["meter"], entry["device"], entry["profile"], at, occurrence.get(row, 0), obis,
                    )  # fmt: skip
                    out[identity, attribute] = cell
        return out

    def violations(self) -> int:
        return self.order("status")["violations"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Installation:
    """One gateway on one folder, started and killed at will."""

    def __init__(self, folder: Path, url: str, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self.push_port = free_port(socket.SOCK_DGRAM)
        self.config = folder / "gateway.toml"
        self.log = folder / "gateway.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.within: tuple[str, ...] = ()  # a program that runs ours
        self.write(url)

    def write(
        self, url: str, extra: str = "", keys: str = "fleet/keys.toml", more: str = ""
    ) -> None:
        lines = (self.folder / "fleet/lines.toml").read_text()
        lines = lines.replace(
            'transport = "tcp"', 'transport = "tcp"\nconcurrency = 20\ntimeout_s = 2'
        )
        self.config.write_text(f"""\
[gateway]
id = "dcu-0001"
data_dir = "data"
timezone = "Asia/Kolkata"
roles = ["dlms", "modbus", "push", "uplink"]
{more}
[uplink]
url = "{url}"

[schedule]
events = "off"

[fleet]
file = "fleet/meters.csv"

[keys]
file = "{keys}"

[push]
listen = ["udp://127.0.0.1:{self.push_port}", "tcp://127.0.0.1:{self.push_port}"]
{extra}
{lines}""")

    @property
    def push_url(self) -> str:
        return f"udp://127.0.0.1:{self.push_port}"

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.within, OPENDCU, "run", "-c", self.config],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        if wait:
            eventually_sync(lambda: self.ask("ping") or process.poll() is not None, 15)
            assert process.poll() is None, self.log.read_text()[-2000:]
        return process

    def ask(self, do: str, wait_s: float = 20.0, **what: Any) -> Any:
        try:
            return ask(self.folder / "data/control.sock", {"do": do, **what}, wait_s)
        except Exception:
            return None

    def kill(self) -> None:
        os.killpg(self.processes[-1].pid, signal.SIGKILL)
        self.processes[-1].wait()

    def terminate(self, within_s: float = 4.0) -> int:
        began = time.monotonic()
        self.processes[-1].terminate()
        code = self.processes[-1].wait(15)
        assert time.monotonic() - began < within_s
        return code

    def says(self, *words: str) -> bool:
        """Does one line of the log hold all these words?"""
        return any(all(w in line for w in words) for line in self.log.read_text().splitlines())

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


FLEET = """
[fleet]
seed = 3
history = "1d"
by_address = true

[[dlms]]
count = 4
model = "is15959-3ph"
line = "feeder-1"

[[dlms]]
count = 2
model = "idis"
line = "feeder-2"
framing = "hdlc"
id = "ID1"
"""

MIXED_FLEET = """
[fleet]
seed = 3
history = "1d"
by_address = true

[[dlms]]
count = 4
model = "is15959-3ph"
line = "feeder-1"

[[modbus]]
count = 2
model = "eastron-sdm630"
line = "bus-1"
id = "MB1"
"""


@pytest.fixture
def civil() -> dict[str, str]:
    """Environment with civil time at SPEED, two days ago at the start."""
    now = time.time()  # noqa: TID251 the anchor of everybody else's clock
    return os.environ | {"OPENDCU_CLOCK": f"{now:.3f}:{now - 2 * 86400:.3f}:{SPEED}"}


@pytest.fixture
def fleet(tmp_path: Path, civil: dict[str, str]) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, FLEET, civil)
    yield fleet
    fleet.close()


@pytest.fixture
def cloud(mosquitto: Mosquitto) -> Iterator[Cloud]:
    cloud = Cloud(mosquitto.port)
    yield cloud
    cloud.close()
    assert cloud.invalid == []
    assert cloud.conflicts == []


@pytest.fixture
def gateway(
    tmp_path: Path, fleet: Fleet, mosquitto: Mosquitto, civil: dict[str, str]
) -> Iterator[Installation]:
    made = Installation(tmp_path, mosquitto.url, civil)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The data directory on a disk of 3 MB of its own."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def settled(fleet: Fleet, cloud: Cloud) -> Callable[[Installation], dict[Any, Any]]:
    """Freeze the meters, read the rest, and wait until the cloud holds exactly what they hold."""

    def settle(gateway: Installation, within_s: float = 20.0) -> dict[Any, Any]:
        fleet.order("freeze")
        truth = fleet.truth()
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            gateway.ask("sweep", timeout_s=5)
            with cloud.lock:
                if truth.keys() <= cloud.cells.keys():
                    break
        with cloud.lock:
            cells = dict(cloud.cells)
        assert len(truth.keys() - cells.keys()) == 0, sorted(truth.keys() - cells.keys())[:3]
        assert {k: cells[k] for k in truth} == truth
        assert fleet.violations() == 0
        return truth

    return settle
