"""Sealed keys files: what is sealed is read again on this box alone, wherever its key-encrypting key is."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from edge_core.config.keys import KeyRing, check_keys
from edge_core.config.load import ConfigErrors, load
from edge_core.config.schema import Keys
from edge_core.config.sealing import CREDENTIAL, kek_of, make_kek, seal, source_of
from edge_core.domain import Secret

GUEK = "000102030405060708090a0b0c0d0e0f"
KEK = b"k" * 32
needs_systemd_creds = pytest.mark.skipif(
    shutil.which("systemd-creds") is None or os.geteuid() != 0,
    reason="systemd-creds with the host's key: apt install systemd, as root",
)


def private(path: Path, octets: bytes) -> Path:
    path.write_bytes(octets)
    path.chmod(0o600)
    return path


def sealed(folder: Path, tables: dict[str, dict[str, str]], kek: bytes = KEK) -> Keys:
    path = private(folder / "keys.sealed", seal(tables, kek))
    return Keys(provider="sealed", file=str(path))


@pytest.fixture
def service(tmp_path: Path) -> dict[str, str]:
    """What systemd gives a service that has LoadCredentialEncrypted=."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    private(folder / CREDENTIAL, KEK)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_what_is_sealed_is_read_by_the_service(tmp_path: Path, service: dict[str, str]) -> None:
    keys = sealed(tmp_path, {"GP1": {"guek": GUEK, "password": "secretword"}, "GP2": {"gak": GUEK}})
    text = Path(keys.file).read_text()
    assert GUEK not in text
    assert "secretword" not in text
    ring = KeyRing.open(keys, service)
    assert ring.get("GP1").guek == Secret(bytes.fromhex(GUEK))
    assert ring.get("GP1").password == Secret(b"secretword")


def test_another_key_or_none_opens_nothing(tmp_path: Path, service: dict[str, str]) -> None:
    keys = sealed(tmp_path, {"GP1": {"guek": GUEK}})
    with pytest.raises(ConfigErrors, match=r"no key-encrypting key.*opendcu keys seal"):
        KeyRing.open(keys, {})
    credential = Path(service["CREDENTIALS_DIRECTORY"]) / CREDENTIAL
    credential.write_bytes(b"x" * 32)
    with pytest.raises(ConfigErrors, match="another key, or damaged"):
        KeyRing.open(keys, service)
    credential.write_bytes(b"x" * 7)
    with pytest.raises(ConfigErrors, match="7 octets"):
        KeyRing.open(keys, service)


def test_an_entry_cannot_be_moved_to_another_meter(tmp_path: Path, service: dict[str, str]) -> None:
    keys = sealed(tmp_path, {"GP1": {"guek": GUEK}})
    path = Path(keys.file)
    path.write_text(path.read_text().replace('"GP1"', '"GP2"'))
    with pytest.raises(ConfigErrors, match="GP2: guek: was sealed for another meter"):
        KeyRing.open(keys, service)


def test_a_plain_file_is_no_sealed_one_and_the_error_says_how_to_seal_it(
    tmp_path: Path, service: dict[str, str]
) -> None:
    plain = private(tmp_path / "keys.toml", f'[GP1]\nguek = "{GUEK}"\n'.encode())
    with pytest.raises(ConfigErrors) as caught:
        KeyRing.open(Keys(provider="sealed", file=str(plain)), service)
    assert "is no sealed keys file" in str(caught.value)
    assert "opendcu keys seal" in str(caught.value)
    assert GUEK not in str(caught.value)


def test_a_file_beside_it_is_taken_and_called_insecure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = sealed(tmp_path, {"GP1": {"guek": GUEK}})
    private(tmp_path / CREDENTIAL, KEK)
    with caplog.at_level(logging.WARNING):
        assert KeyRing.open(keys, {}).get("GP1").guek is not None
    assert "INSECURE" in caplog.text
    (tmp_path / CREDENTIAL).chmod(0o644)
    with pytest.raises(ConfigErrors, match="chmod 600"):
        KeyRing.open(keys, {})


def test_the_first_source_that_is_there_is_taken(tmp_path: Path, service: dict[str, str]) -> None:
    file = tmp_path / "keys.sealed"
    private(tmp_path / CREDENTIAL, KEK)
    assert source_of("", file, {}) == f"file:{tmp_path / CREDENTIAL}"
    private(tmp_path / f"{CREDENTIAL}.cred", b"")
    assert source_of("", file, {}) == f"creds:{tmp_path / CREDENTIAL}.cred"
    assert source_of("", file, service) == "credential"
    assert source_of("secret:kek", file, service) == "secret:kek"


@needs_systemd_creds
def test_systemd_creds_keeps_the_key_and_only_this_host_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "host.secret"))
    place = tmp_path / f"{CREDENTIAL}.cred"
    kek = make_kek(f"creds:{place}", "host")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert kek not in place.read_bytes()
    keys = sealed(tmp_path, {"GP1": {"guek": GUEK}}, kek)
    assert KeyRing.open(keys, {}).get("GP1").guek == Secret(bytes.fromhex(GUEK))
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "another-host.secret"))
    with pytest.raises(ConfigErrors, match=r"systemd-creds: .*another box"):
        KeyRing.open(keys, {})


def test_a_box_without_systemd_creds_is_told_the_insecure_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigErrors, match=r"systemd-creds is not on this box.*INSECURE"):
        kek_of(f"creds:{tmp_path}/x.cred", {})
    with pytest.raises(ConfigErrors, match="systemd-creds is not on this box"):
        make_kek(f"creds:{tmp_path}/x.cred")
    assert not list(tmp_path.iterdir())


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "systemd-creds"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_refusal_of_systemd_creds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import sys; sys.stderr.write('Failed to decrypt: no TPM\\n'); sys.exit(1)"
    program(tmp_path, text, monkeypatch)
    with pytest.raises(ConfigErrors, match="no TPM"):
        kek_of("creds:/x.cred", {})


def test_a_source_that_is_none_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[gateway]\nid = "d"\n[keys]\nprovider = "sealed"\nkek = "tpm"\n')
    with pytest.raises(ConfigErrors, match="creds:<path>, secret:<id> or file:<path>"):
        load(file)
    file.write_text('[gateway]\nid = "d"\n[keys]\nprovider = "secret"\n')
    with pytest.raises(ConfigErrors, match="keys: secret: is missing"):
        load(file)
    file.write_text('[gateway]\nid = "d"\n[keys]\nprovider = "sealed"\nkek = "file:k"\n')
    assert load(file).keys.kek == f"file:{tmp_path}/k"
    assert check_keys(load(file)) == []  # no meter needs any
