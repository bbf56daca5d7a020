"""A loop that stands still is told and ended; the service manager hears of us."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_core.clock import ManualClock
from edge_core.health.watchdog import Watchdog, notify, watchdog_period_s
from tests.conftest import eventually


def test_a_stall_is_told_once_and_then_fatal(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    ended: list[bool] = []
    watchdog = Watchdog(clock, warn_s=5, fatal_s=60, end=lambda: ended.append(True))
    watchdog.look()
    clock.advance(6)
    watchdog.look()
    clock.advance(6)
    watchdog.look()
    assert [r.message for r in caplog.records] == [
        "the main loop stands still for 6.0 s at an unknown place"
    ]
    assert not ended
    clock.advance(60)
    watchdog.look()
    assert ended == [True]


async def test_a_running_loop_beats(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    watchdog = Watchdog(clock, warn_s=0.05, fatal_s=0)
    task = asyncio.create_task(watchdog.run())
    await asyncio.sleep(0)
    clock.advance(
        10
    )  # the loop does not beat again for a second of real time: a stall of 10 s, as far as it can see
    await eventually(lambda: caplog.records)
    assert "stands still for 10.0 s at" in caplog.text
    assert "unknown place" not in caplog.text, "it names the line of the loop's thread"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.records[0].levelno == logging.ERROR


async def test_systemd_hears_of_every_beat_if_it_wants_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        task = asyncio.create_task(Watchdog(ManualClock()).run())
        for _ in range(3):
            assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


BLOCKED = """
import asyncio, threading
from edge_core.clock import SystemClock
from edge_core.health.watchdog import Watchdog

async def main():
    asyncio.create_task(Watchdog(SystemClock(), warn_s=0.1, fatal_s=0.3).run())
    await asyncio.sleep(0)
    threading.Event().wait()  # blocks the loop for ever

asyncio.run(main())
"""


def test_a_blocked_process_ends_with_exit_code_1_and_shows_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "threading.Event().wait()" in done.stderr or "in wait" in done.stderr


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@opendcu-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        assert notify("READY=1", "STATUS=polling", environment={"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1\nSTATUS=polling"


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:
    assert not notify("READY=1", environment={})
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": "relative"})


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "x"}, 0.0),
        ({}, 0.0),
    ],
)
def test_how_often_systemd_wants_to_hear(environment: dict[str, str], seconds: float) -> None:
    assert watchdog_period_s(environment, pid=7) == seconds
