"""Every decoder, guided by coverage (atheris, in a process of its own): a short run always, a long one with OPENDCU_LONG=1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="wheels for Linux on x86_64 alone: pip install atheris")

ROOT = Path(__file__).parents[2]
LONG = os.environ.get("OPENDCU_LONG") == "1"
RUNS = 1_000
LONG_S = 900


def run(tmp_path: Path, *arguments: str, within_s: float) -> str:
    """The program's output; it ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.atheris_dlms", *arguments],
        cwd=tmp_path,  # where a crash would leave its input
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    left = [path.read_bytes().hex() for path in tmp_path.glob("*-*") if path.is_file()]
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}\ninput: {left}"
    return done.stderr


def test_all_decoders(tmp_path: Path) -> None:
    said = run(tmp_path, "all", f"-runs={RUNS}", within_s=28)
    assert re.search(rf"Done {RUNS} runs", said), said[-500:]


@pytest.mark.skipif(not LONG, reason="takes a quarter of an hour: OPENDCU_LONG=1")
@pytest.mark.timeout(LONG_S + 120)
def test_all_decoders_for_long(tmp_path: Path) -> None:
    said = run(tmp_path, "all", f"-max_total_time={LONG_S}", within_s=LONG_S + 100)
    assert re.search(r"Done \d+ runs", said), said[-500:]
