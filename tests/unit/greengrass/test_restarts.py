"""When a process may end for a fresh start: once a cause, twice an hour, on a record that outlives it."""

from __future__ import annotations

import subprocess
import sys

from edge_core.clock import ManualClock
from edge_core.greengrass.restarts import Restarts


def test_once_a_cause_and_twice_an_hour(tmp_path):
    clock, ended = ManualClock(), []

    def restarts() -> Restarts:
        return Restarts(tmp_path / "restarts.json", end=ended.append, clock=clock)

    assert restarts().ask("refused", "one")
    assert not restarts().ask("refused", "two")
    assert restarts().ask("unreachable", "three")
    restarts().healed()
    assert not restarts().ask("refused", "four")
    clock.advance(3_601)
    assert restarts().ask("refused", "five")
    assert ended == ["one", "three", "five"]


def test_a_clock_that_jumps_forgets_nothing_of_the_last_hour(tmp_path):
    clock, ended = ManualClock(), []
    restarts = Restarts(tmp_path / "restarts.json", end=ended.append, clock=clock)
    assert restarts.ask("a", "")
    assert restarts.ask("b", "")
    clock.civil -= 600
    assert not restarts.ask("c", "")


def test_without_a_record_there_is_no_end(tmp_path):
    ended: list[str] = []
    assert not Restarts(tmp_path / "missing" / "restarts.json", end=ended.append).ask("a", "")
    assert ended == []


def test_a_record_that_cannot_be_read_is_begun_anew(tmp_path):
    file = tmp_path / "restarts.json"
    for broken in (b"\xff", b"{", b"[]", b'{"ends": ["x"], "causes": []}'):
        file.write_bytes(broken)
        ended: list[str] = []
        assert Restarts(file, end=ended.append).ask("a", "why")
        assert ended == ["why"]


def test_the_default_ends_the_process_with_a_code_that_the_nucleus_sees(tmp_path):
    program = (
        "from pathlib import Path\nfrom edge_core.greengrass.restarts import Restarts\n"
        f"Restarts(Path({str(tmp_path / 'r.json')!r})).ask('refused', 'the token is old')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the token is old" in done.stderr
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert again.returncode == 0
