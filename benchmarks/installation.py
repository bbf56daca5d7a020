"""What the fleet benchmarks share: `opendcu simulate` and `opendcu run` as processes of their own, and their cost.

The simulated meters stand in a process of their own with an address of 127.0.0.0/8 each; the gateway is the installed
command. Figures come from /proc: CPU of the process, PSS sampled while it works.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from edge_core.gateway.split import name_of  # noqa: E402
from edge_core.journal.datadir import DataDirectory  # noqa: E402
from edge_core.transports.control import ask  # noqa: E402

OPENDCU = Path(sys.executable).with_name("opendcu")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def pss_mb(pid: int) -> float:
    """Proportional set size in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Child:
    """A process with one of our commands."""

    def __init__(self, *command: object, env: dict[str, str] | None = None, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in (OPENDCU, *command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode


class Simulated(Child):
    """A fleet of DLMS meters."""

    def __init__(
        self, folder: Path, meters: int, *, history: str = "2h", port: int = 0, extra: str = "",
        env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        fleet = folder / "fleet.toml"
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        groups = extra or f"[[dlms]]\ncount = {meters}\n"
        fleet.write_text(
            f'[fleet]\nhistory = "{history}"\nby_address = true\nport = {port}\n\n{groups}'
        )
        super().__init__("simulate", "-c", fleet, "--out", folder, log=folder / "log", env=env)
        self.folder = folder
        assert self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def order(self, do: str, **what: Any) -> dict[str, Any]:
        """An order of simulators.fleet, and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        assert "error" not in answer, answer
        return answer

    def meters(self) -> list[str]:
        """Ids of the meters."""
        return [line.split(",")[0] for line in (self.folder / "meters.csv").read_text().split()[1:]]


class Running(Child):
    """A gateway that reads such a fleet; the schedule leaves it alone, `sweep` asks for a round."""

    def __init__(
        self, folder: Path, fleet: Path, *, roles: str = "dlms", concurrency: int = 200, timeout_s: float = 5.0,
        schedule: str = 'interval_reads = "every 1d"\nmidnight_reads = "off"\nevents = "off"\nbilling = "off"\nclock_check = "off"',
        more: str = "", env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        lines = (
            (fleet / "lines.toml")
            .read_text()
            .replace(
                'transport = "tcp"',
                f'transport = "tcp"\nconcurrency = {concurrency}\ntimeout_s = {timeout_s}',
            )
        )
        config = folder / "gateway.toml"
        config.write_text(
            f'[gateway]\nid = "dcu-0001"\ndata_dir = "{folder / "data"}"\ntimezone = "Asia/Kolkata"\n'
            f'roles = {json.dumps(roles.split(","))}\n\n[uplink]\nkind = "file"\nurl = "{folder / "sent"}"\n\n'
            f'[schedule]\n{schedule}\n\n[fleet]\nfile = "{fleet / "meters.csv"}"\n\n'
            f'[keys]\nfile = "{fleet / "keys.toml"}"\n\n{more}\n{lines}'
        )
        self.directory = DataDirectory(folder / "data")
        self.log = folder / "log"
        self.began = time.monotonic()
        super().__init__("run", "-c", config, log=self.log, env=env)

    def ask(self, do: str, wait_s: float = 300.0, **what: Any) -> Any:
        """A request to the control socket; the socket is waited for."""
        while True:
            try:
                return ask(self._socket(), {"do": do, **what}, wait_s)
            except Exception:
                if self.process.poll() is not None or time.monotonic() > self.began + 60:
                    raise
                time.sleep(0.02)

    def ask_of(self, roles: str, do: str, wait_s: float = 300.0, **what: Any) -> Any:
        """The same to the process with these roles."""
        path = self.directory.control_of(name_of(roles.split(",")))
        while not path.exists() and time.monotonic() < self.began + 60:
            time.sleep(0.02)
        return ask(path, {"do": do, **what}, wait_s)

    def _socket(self) -> Path:
        """Where it answers: that depends on its roles."""
        there = [path for path in self.directory.controls() if path.exists()]
        return (there or [self.directory.control])[0]

    def sweep(self, meters: list[str] | None = None, timeout_s: float = 300.0) -> dict[str, float]:
        """One round over the meters: how many were read, wall seconds, CPU seconds of the gateway."""
        cpu, began = cpu_s(self.pid), time.perf_counter()
        read = self.ask("sweep", timeout_s, meters=meters, timeout_s=timeout_s)["read"]
        took, used = time.perf_counter() - began, cpu_s(self.pid) - cpu
        return {"read": read, "wall_s": round(took, 3), "cpu_s": round(used, 3)}


class Peaks:
    """The largest value of a measure while the block runs, sampled four times a second."""

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure, self.mb = measure, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._end.wait(0.25):
            try:
                self.mb = max(self.mb, self._measure())
            except (OSError, ValueError):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()


class Peak(Peaks):
    """The largest PSS of a process while the block runs."""

    def __init__(self, pid: int) -> None:
        super().__init__(lambda: pss_mb(pid))
