"""`opendcu keys seal`: what is sealed is read again, and nothing else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from edge_core.cli.main import run
from edge_core.config.keys import KeyRing
from edge_core.config.schema import Keys
from edge_core.config.sealing import CREDENTIAL
from edge_core.domain import Secret
from tests.unit.config.test_sealing import needs_systemd_creds

GUEK = "000102030405060708090a0b0c0d0e0f"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.toml").write_text(f'[GP1]\nguek = "{GUEK}"\npassword = "pw"\n')
    (tmp_path / "keys.toml").chmod(0o600)
    return tmp_path


@needs_systemd_creds
def test_one_command_seals_and_the_key_never_lies_in_the_clear(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(folder / "host.secret"))
    seal = ["keys", "seal", "keys.toml", "-o", "keys.sealed", "--with-key", "host", "--json"]
    assert run(seal) == 0
    assert json.loads(capfd.readouterr().out) == {
        "sealed": "keys.sealed", "meters": 1, "kek": f"creds:{CREDENTIAL}.cred", "made": True, "insecure": False,
    }  # fmt: skip
    sealed = folder / "keys.sealed"
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert GUEK not in sealed.read_text()
    ring = KeyRing.open(Keys(provider="sealed", file=str(sealed)), {})
    assert ring.get("GP1").guek == Secret(bytes.fromhex(GUEK))
    assert ring.get("GP1").password == Secret(b"pw")
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    assert run(seal) == 0  # more keys, later, under the same key
    assert json.loads(capfd.readouterr().out)["made"] is False


def test_a_key_in_a_file_is_made_and_called_insecure(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["keys", "seal", "keys.toml", "-o", "keys.sealed", "--kek", f"file:{CREDENTIAL}"]) == 0
    )
    assert "INSECURE" in capfd.readouterr().err
    assert stat.S_IMODE((folder / CREDENTIAL).stat().st_mode) == 0o600
    keys = Keys(provider="sealed", file=str(folder / "keys.sealed"))
    assert KeyRing.open(keys, {}).get("GP1").password == Secret(b"pw")


def test_what_cannot_be_sealed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "short").write_bytes(b"x" * 5)
    (folder / "short").chmod(0o600)
    assert run(["keys", "seal", "keys.toml", "--kek", "file:short", "-o", "out"]) == 2
    assert "5 octets" in capfd.readouterr().err
    assert run(["keys", "seal", "keys.toml", "--kek", "short", "-o", "out"]) == 2
    assert "write creds:PATH" in capfd.readouterr().err
    (folder / "good").write_bytes(os.urandom(32))
    (folder / "good").chmod(0o600)
    (folder / "keys.toml").write_text(f'[GP1]\nguek = "{GUEK}ff"\n')
    assert run(["keys", "seal", "keys.toml", "--kek", "file:good", "-o", "out"]) == 2
    err = capfd.readouterr().err
    assert "34 hex digits" in err
    assert GUEK not in err
    (folder / "keys.toml").chmod(0o644)
    assert run(["keys", "seal", "keys.toml", "--kek", "file:good", "-o", "out"]) == 2
    assert "chmod 600" in capfd.readouterr().err
    assert not (folder / "out").exists()
