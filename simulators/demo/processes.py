"""The demo's children: the fleet and the gateway, as the installed command runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

OPENDCU = (sys.executable, "-c", "from edge_core.cli.main import main; main()")
ANSWER_S = 60.0
MAX_LINE = 64 << 20


class FleetProcess:
    """`opendcu simulate` as a child that obeys JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self._process, self.ready = process, ready
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, spec: Path, out: Path, env: dict[str, str]) -> FleetProcess:
        """Start and wait until every meter listens."""
        log = (out.parent / "fleet.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *OPENDCU, "simulate", "-c", str(spec), "--out", str(out),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            env=env, limit=MAX_LINE, start_new_session=True,
        )  # fmt: skip
        log.close()
        assert process.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulated fleet did not start: see {out.parent}/fleet.log")
        return cls(process, json.loads(line))

    async def order(self, do: str, **what: Any) -> dict[str, Any]:
        """One order, its answer.

        Raises:
            RuntimeError: the fleet ended, or the order made no sense.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn, asyncio.timeout(ANSWER_S):
            self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the simulated fleet ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"order {do}: {answer['error']}")
        return answer

    async def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()


class GatewayProcess:
    """`opendcu run` as a child that is killed, started again and measured.

    Attributes:
        restarts: how often it was started after the first time.
        cpu_s: processor seconds of all its lives.
        peak_mb: largest resident memory of any of them.
    """

    def __init__(self, config: Path, env: dict[str, str]) -> None:
        self._config, self._env = config, env
        self._process: asyncio.subprocess.Process | None = None
        self._past_cpu_s = 0.0
        self.restarts = -1
        self.peak_mb = 0.0
        self.cpu_s = 0.0
        self.wanted = False

    async def start(self) -> None:
        """Start it."""
        with (self._config.parent / "gateway.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *OPENDCU, "run", "-c", str(self._config),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._env, start_new_session=True,
            )  # fmt: skip
        self.restarts += 1
        self.wanted = True

    @property
    def running(self) -> bool:
        """Is it alive?"""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of the present life; None when it is not alive."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def exit_code(self) -> int | None:
        """Of the last life; None while it runs."""
        return None if self._process is None else self._process.returncode

    def measure(self) -> None:
        """Look at memory and processor time; once a second."""
        if not self.running:
            return
        assert self._process is not None
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = f"/proc/{self._process.pid}/stat"
            with open(stat) as file:  # noqa: PTH123 /proc
                fields = file.read().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            self.cpu_s = self._past_cpu_s + ticks / os.sysconf("SC_CLK_TCK")
            rss = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            self.peak_mb = max(self.peak_mb, rss)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.wanted = False
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM and its exit code; SIGKILL when it does not end within 15 s."""
        self.wanted = False
        self.measure()
        await self._end(signal.SIGTERM)
        code = self.exit_code
        return -1 if code is None else code

    async def _end(self, number: int) -> None:
        self.measure()
        self._past_cpu_s = self.cpu_s
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
