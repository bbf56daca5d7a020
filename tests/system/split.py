"""One gateway in several processes, each with its roles, its log and its control socket."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from edge_core.gateway.split import name_of
from edge_core.journal.datadir import DataDirectory
from edge_core.transports.control import ask
from tests.conftest import eventually_sync
from tests.system.conftest import OPENDCU, Installation

FOUR = ("dlms,push", "modbus", "detector", "uplink")
ONE = "dlms,modbus,push,detector,uplink"


class Split(Installation):
    """Processes by their roles, as `--roles` has them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.directory = DataDirectory(self.folder / "data")

    def run(self, *processes: str, wait: bool = True) -> None:
        """Start processes, all at once."""
        for roles in processes:
            with self.log_of(roles).open("ab") as log:
                self.running[roles] = subprocess.Popen(
                    [OPENDCU, "run", "-c", self.config, "--roles", roles],
                    env=self.env, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.processes.append(self.running[roles])
        for roles in processes if wait else ():
            process = self.running[roles]
            eventually_sync(
                lambda r=roles, p=process: self.ask_of(r, "ping") or p.poll() is not None, 20
            )
            assert process.poll() is None, self.log_of(roles).read_text()[-3000:]

    def log_of(self, roles: str) -> Any:
        return self.folder / f"{roles.replace(',', '-')}.log"

    def ask_of(self, roles: str, do: str, **what: Any) -> Any:
        """Ask one process; None when it does not answer."""
        path = self.directory.control_of(name_of(roles.split(",")))
        try:
            return ask(path, {"do": do, **what}, 20.0)
        except Exception:
            return None

    def ask(self, do: str, wait_s: float = 20.0, **what: Any) -> Any:
        """As of one process: the meters of all, a sweep of all."""
        answers = [self.ask_of(roles, do, **what) for roles in self.running]
        if do == "meters":
            return [row for answer in answers for row in answer or []]
        return next((answer for answer in answers if answer), None)

    def kill_of(self, roles: str) -> None:
        process = self.running.pop(roles)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> list[int]:
        """SIGTERM to all, and their exit codes."""
        for process in self.running.values():
            process.terminate()
        codes = [process.wait(20) for process in self.running.values()]
        self.running.clear()
        return codes
