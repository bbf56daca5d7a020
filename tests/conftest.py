"""What many tests need: wait for a condition, a free port, a real broker, foreign programs that must be there in CI."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# no example is late: on two cores beside three others any of them may wait; every test has 90 s
settings.register_profile("opendcu", deadline=None)
settings.load_profile("opendcu")

# whoever runs the tests behind a shell's `&` hands SIGINT down ignored, and with it to each program under test
signal.signal(signal.SIGINT, signal.default_int_handler)


async def eventually(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until the condition holds; fail with its last value when it does not in time."""
    end = time.monotonic() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        if time.monotonic() > end:
            pytest.fail(f"not within {within_s} s: last {value!r}")
        await asyncio.sleep(0.01)


def eventually_sync(condition: Callable[[], object], within_s: float = 10.0) -> object:
    """The same for tests without a loop."""
    end = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {within_s} s: last {value!r}")
        time.sleep(0.01)
    return value


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody holds now."""
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def program(name: str, debian: str) -> str:
    """Path of a foreign program; missing ones fail in CI and skip at the desk, with the package to install."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path:
        return path
    message = f"the program {name} is missing: apt-get install {debian}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Mosquitto:
    """A mosquitto of its own on 127.0.0.1, without persistence: a kill loses what it had confirmed."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.port = free_port()
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            f"max_queued_messages 100000\nmax_inflight_messages 100\n{extra}"
        )
        self.log = folder / "mosquitto.log"
        self.start()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program("mosquitto", "mosquitto"), "-c", str(self.config)], stdout=log, stderr=log
            )
        eventually_sync(self.answers)

    def answers(self) -> bool:
        with socket.socket() as s:
            s.settimeout(1)
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    yield broker
    broker.kill()
