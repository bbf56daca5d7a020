"""`opendcu keys seal`: what is sealed is read again, and nothing else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from edge_core.cli.main import run
from edge_core.config.keys import CREDENTIAL, KeyRing
from edge_core.config.schema import Keys
from edge_core.domain import Secret

GUEK = "000102030405060708090a0b0c0d0e0f"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, octets in (
        ("keys.toml", f'[GP1]\nguek = "{GUEK}"\npassword = "pw"\n'.encode()),
        (CREDENTIAL, os.urandom(32)),
    ):
        (tmp_path / name).write_bytes(octets)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def test_sealed_keys_are_read_by_the_service(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["keys", "seal", "keys.toml", "--kek", CREDENTIAL, "-o", "keys.sealed", "--json"]) == 0
    )
    assert json.loads(capfd.readouterr().out) == {"sealed": "keys.sealed", "meters": 1}
    sealed = folder / "keys.sealed"
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert GUEK not in sealed.read_text()
    ring = KeyRing.open(
        Keys(provider="sealed", file=str(sealed)), {"CREDENTIALS_DIRECTORY": str(folder)}
    )
    assert ring.get("GP1").guek == Secret(bytes.fromhex(GUEK))
    assert ring.get("GP1").password == Secret(b"pw")
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_what_cannot_be_sealed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "short").write_bytes(b"x" * 5)
    (folder / "short").chmod(0o600)
    assert run(["keys", "seal", "keys.toml", "--kek", "short", "-o", "out"]) == 2
    assert "5 octets" in capfd.readouterr().err
    (folder / "keys.toml").write_text(f'[GP1]\nguek = "{GUEK}ff"\n')
    assert run(["keys", "seal", "keys.toml", "--kek", CREDENTIAL, "-o", "out"]) == 2
    err = capfd.readouterr().err
    assert "34 hex digits" in err
    assert GUEK not in err
    (folder / "keys.toml").chmod(0o644)
    assert run(["keys", "seal", "keys.toml", "--kek", CREDENTIAL, "-o", "out"]) == 2
    assert "chmod 600" in capfd.readouterr().err
    assert not (folder / "out").exists()
