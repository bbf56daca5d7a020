"""`opendcu --help` and the small commands stay light: a subprocess proves what they did not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "numpy",
    "onnxruntime",
    "awscrt",
    "awsiot",
    "starlette",
    "uvicorn",
    "pymodbus",
    "cryptography",
    "paho",
    "paho",
    "msgspec",
    "asyncio",
    "sqlite3",
    "serial",
    "boto3",
    "duckdb",
)
SCRIPT = """
import json, sys
sys.argv = ["opendcu", *sys.argv[1:]]
from edge_core.cli.main import run
code = run(sys.argv[1:])
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def modules_of(*args: str, cwd: Path | None = None) -> tuple[int, set[str]]:
    """Exit code of the command line and the modules that it left loaded."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *args], capture_output=True, text=True, check=True, cwd=cwd
    )
    document = json.loads(done.stderr.splitlines()[-1])
    return document["code"], {name.partition(".")[0] for name in document["modules"]} | set(
        document["modules"]
    )


@pytest.mark.parametrize("args", [("--help",), ("--version",), ()])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    _, modules = modules_of(*args)
    assert "click" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_check_imports_no_rooms(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text('[gateway]\nid = "dcu-1"\n')
    code, modules = modules_of("check", "gateway.toml", cwd=tmp_path)
    assert code == 0
    needed = ("msgspec", "asyncio", "numpy")  # the nouns of the product hold arrays
    assert [name for name in HEAVY if name in modules and name not in needed] == []
    assert (
        not {"edge_core.acquisition", "edge_core.uplink", "edge_core.journal", "edge_core.gateway"}
        & modules
    )
