"""The commands that look at a running gateway, through its control socket: the gateway is the installed program."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually_sync, free_port

pytestmark = pytest.mark.integration
PROGRAM = Path(sys.executable).with_name("opendcu")
CONFIG = """
[gateway]
id = "dcu-live"
data_dir = "data"
roles = ["dlms", "push", "uplink", "console"]
[uplink]
kind = "file"
url = "out"
[push]
listen = ["udp://127.0.0.1:0"]
[console]
listen = "127.0.0.1:{console}"
[keys]
provider = "env"
[[lines]]
id = "l1"
transport = "tcp"
framing = "wrapper"
[[meters]]
id = "GP1"
line = "l1"
model = "is15959-3ph"
address = "127.0.0.1:{dead}"
security = "none"
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a gateway that runs, with one meter that is not there."""
    folder = tmp_path_factory.mktemp("live")
    config = folder / "gateway.toml"
    with (
        socket.socket() as dead,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        (folder / "log").open("wb") as log,
    ):
        dead.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        config.write_text(CONFIG.format(dead=dead.getsockname()[1], console=free_port()))
        manager.bind(str(folder / "notify"))
        manager.settimeout(20)
        process = subprocess.Popen(
            [PROGRAM, "run", "-c", config],
            stdout=log,
            stderr=log,
            env=os.environ | {"NOTIFY_SOCKET": str(folder / "notify")},
        )
        try:
            assert manager.recv(100) == b"READY=1", (folder / "log").read_text()
            assert (folder / "data" / "control.sock").exists()
            yield config
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(10)
        assert code == 0, (folder / "log").read_text()
        assert manager.recv(100) == b"STOPPING=1"
    assert not (folder / "data" / "control.sock").exists()
    codes = [json.loads(line).get("code") for line in (folder / "log").read_text().splitlines()]
    assert [c for c in codes if c in ("journal-opened", "started", "stopping")] == [
        "journal-opened",
        "started",
        "stopping",
    ]
    assert "meter-lost" in codes


def opendcu(*args: str | Path, code: int = 0) -> str:
    done = subprocess.run([PROGRAM, *args], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_top_shows_the_silent_meter_and_why(gateway: Path) -> None:
    def silent() -> bool:
        frame = json.loads(opendcu("top", "-c", gateway, "--once", "--json"))
        return [(m["meter"], m["state"]) for m in frame["meters"]] == [("GP1", "silent")]

    eventually_sync(silent)
    text = opendcu("top", "-c", gateway, "--once")
    assert "dcu-live" in text
    assert "Connection refused" in text


def test_top_fills_a_terminal_and_gives_it_back(gateway: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "top", "-c", gateway, "--every", "0.2"],
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(slave)
    seen = b""
    while seen.count(b"dcu-live") < 2:
        seen += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            seen += os.read(master, 65536)
        except OSError:  # the terminal is closed
            break
    os.close(master)
    assert process.wait(10) == 0
    assert seen.startswith(b"\x1b[?1049h")
    assert seen.rstrip().endswith(b"\x1b[?1049l\x1b[?25h")


def test_gaps_and_status_come_from_the_gateway(gateway: Path) -> None:
    assert json.loads(opendcu("gaps", "-c", gateway, "--json")) == {"meters": {"GP1": []}}
    status = json.loads(opendcu("journal", "status", "-c", gateway, "--json"))
    assert status["path"].endswith("data/journal.db")
    verified = json.loads(opendcu("journal", "verify", "-c", gateway, "--json"))
    assert verified["ok"]
    assert [f["file"].rpartition("/")[2] for f in verified["others"]] == [
        "uplink.db",
        "counters.db",
    ]
    assert json.loads(opendcu("journal", "list", "-c", gateway, "--json")) == {"segments": []}
    assert opendcu("journal", "export", "-c", gateway) == ""


def test_a_second_gateway_is_refused(gateway: Path) -> None:
    assert "plays the role" in opendcu("run", "-c", gateway, code=1)


def test_the_console_of_a_real_gateway(gateway: Path) -> None:
    import http.client

    port = int(
        next(
            line
            for line in gateway.read_text().splitlines()
            if "127.0.0.1" in line and 'listen = "' in line
        )
        .rpartition(":")[2]
        .rstrip('"')
    )

    def get(path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, body
        return body

    assert json.loads(get("/api/overview"))["gateway"] == "dcu-live"
    eventually_sync(lambda: json.loads(get("/api/meters"))["rows"][0]["state"] == "silent")
    meter = json.loads(get("/api/meters/GP1"))
    assert "GP1" in meter["why"]["answer"]
    assert "Connection refused" in meter["why"]["error"]
    assert b"opendcu_acquisition_lost_meters_total" in get("/metrics")


def test_tap_ends_with_its_reader(gateway: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, "tap", "-c", gateway], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    files = Path(f"/proc/{process.pid}/fd")

    def connected() -> bool:
        with contextlib.suppress(FileNotFoundError):  # a descriptor closed meanwhile
            return any(os.readlink(f).startswith("socket:") for f in files.iterdir())
        return False

    eventually_sync(connected)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 1
