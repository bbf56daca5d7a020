"""What the benchmarks share: medians of repeated runs, the machine, results as files."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def measure(run: Callable[[], Any], *, repeat: int = 7, number: int = 1) -> list[float]:
    """Seconds of one call, `repeat` times; each is the mean of `number` calls, after one to warm up."""
    run()
    out = []
    for _ in range(repeat):
        gc.collect()
        start = time.perf_counter()
        for _ in range(number):
            run()
        out.append((time.perf_counter() - start) / number)
    return out


def spread(seconds: list[float]) -> dict[str, float]:
    """min, median and max in microseconds."""
    return {
        "min_us": round(min(seconds) * 1e6, 3),
        "median_us": round(statistics.median(seconds) * 1e6, 3),
        "max_us": round(max(seconds) * 1e6, 3),
    }


def machine() -> dict[str, Any]:
    """Where this runs."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def save(question: str, document: dict[str, Any], *packages: str) -> Path:
    """Write results/<question>-<date>.json with command, versions and machine; returns where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{question}-{time.strftime('%Y%m%d')}.json"
    head = {
        "question": question,
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(*packages),
    }
    path.write_text(json.dumps(head | document, indent=1) + "\n", encoding="utf-8")
    return path


def table(rows: list[list[str]]) -> str:
    """Right-aligned columns, the first one left-aligned."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
