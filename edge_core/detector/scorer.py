"""Scoring, in a child process that lives for a second a day: onnxruntime (37 MB) and the windows go with it.

`python -m edge_core.detector.scorer` reads one JSON request from standard input and writes one JSON answer to standard
output. It opens detector.db read-only and imports nothing of the gateway. The request names days and groups of meters;
groups are taken one after the other, so memory does not grow with the fleet.

    request  {"file", "days": [[day, [part, ...]], ...], "model": directory or "", "keys": [hex, ...]}
    answer   {"fired": [[day, meter number, kind, {...}], ...], "scores": [[day, part, [thousandths, ...]], ...],
              "model": {"version", "error"}, "rules": version, "memory_mb", "seconds"}

Bounds: MEMORY_BYTES of address space, CPU_S of processor time, TIMEOUT_S of wall time set by the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 300.0
MEMORY_BYTES = 1 << 30
CPU_S = 240
MAX_ANSWER = 32 << 20


async def in_child(request: dict[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Have a child answer a request.

    Raises:
        ChildFailed: it ended with an error, said nonsense, or took too long; holds the end of its standard error.
    """
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    # one thread: its own pool would cost memory, and the gateway's other work comes first
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_core.detector.scorer",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(json.dumps(request).encode())
    except TimeoutError:
        raise ChildFailed(f"it did not answer within {timeout_s:g} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or [""]
        raise ChildFailed(f"exit {child.returncode}: {last[0][:300]}")
    try:
        answer = json.loads(out)
    except ValueError:
        raise ChildFailed("its answer is no JSON") from None
    if not isinstance(answer, dict):
        raise ChildFailed("its answer is no object")
    return answer


class ChildFailed(Exception):
    """The scoring child gave no answer."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks for, in this process."""
    import numpy as np

    from edge_core.detector import rules
    from edge_core.detector.history import GROUP, Store, decode

    store = Store(Path(request["file"]), reader=True)
    try:
        fired: list[Any] = []
        scores: list[Any] = []
        by_part: dict[int, list[int]] = {}
        for day, parts in request["days"]:
            for part in parts:
                by_part.setdefault(part, []).append(day)
        for part, days in sorted(by_part.items()):
            first, last = min(days), max(days)
            wh = decode(store.window(part, first - rules.NEEDED_DAYS + 1, last))
            for day in days:
                at = day - first
                for kind, (mask, seen, expected) in rules.judge(
                    wh[:, at : at + rules.NEEDED_DAYS]
                ).items():
                    for row in np.flatnonzero(mask):
                        number = part * GROUP + int(row)
                        body = {
                            "seen_wh": round(float(seen[row])),
                            "expected_wh": round(float(expected[row])),
                        }
                        fired.append([day, number, kind, body])
    finally:
        store.close()
    return {
        "fired": fired,
        "scores": scores,
        "model": {"version": "", "error": ""},
        "rules": rules.VERSION,
    }


def main() -> None:
    """The child: one request, one answer."""
    import resource
    import time

    began = time.monotonic()
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    result = answer(json.loads(sys.stdin.buffer.read()))
    result |= {"memory_mb": memory_mb(), "seconds": round(time.monotonic() - began, 3)}
    sys.stdout.write(json.dumps(result))


def memory_mb() -> float:
    """Proportional set size of this process, MB; 0.0 where the kernel does not tell."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    return 0.0


if __name__ == "__main__":
    main()
