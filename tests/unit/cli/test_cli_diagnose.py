"""`opendcu diagnose`: a bundle is made whatever is broken, and holds no secret."""

from __future__ import annotations

import base64
import json
import stat
import tarfile
from pathlib import Path

import pytest

from edge_core.cli.diagnose import Bundle
from edge_core.cli.main import run
from edge_core.clock import ManualClock
from edge_core.domain import Secret
from edge_core.journal import Journal

GUEK = "5ec7e70102030405060708090a0b0c0d"
CONFIG = """
[gateway]
id = "dcu-9"
data_dir = "data"
[uplink]
kind = "file"
url = "out"
password = "file:pw"
[fleet]
file = "meters.csv"
[[lines]]
id = "l"
transport = "tcp"
framing = "wrapper"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.toml").write_text(CONFIG)
    (tmp_path / "meters.csv").write_text(
        "id,line,model,address\nGP1,l,is15959-3ph,127.0.0.1:4059\n"
    )
    (tmp_path / "keys.toml").write_text(f'[GP1]\nguek = "{GUEK}"\ngak = "{GUEK[::-1]}"\n')
    (tmp_path / "pw").write_text("hunter2-hunter2\n")
    for name in ("keys.toml", "pw"):
        (tmp_path / name).chmod(0o600)
    return tmp_path


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar.getmembers():
            stream = tar.extractfile(member)
            assert stream
            found[member.name.partition("/")[2]] = stream.read().decode()
    return found


def test_a_bundle_without_a_gateway(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Journal.open(folder / "data" / "journal.db", clock=ManualClock()).close()
    (folder / "box.log").write_text(
        f"key {GUEK}\npassword b'hunter'\nuseful line\n" + "x" * 3_000_000 + "\nlast line\n"
    )
    assert run(["diagnose", "--log", "box.log", "-o", "bundle.tar.gz", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert stat.S_IMODE(Path("bundle.tar.gz").stat().st_mode) == 0o600
    files = unpacked(Path("bundle.tar.gz"))
    assert set(told["files"]) <= set(files)
    assert set(files) == {
        "about.json",
        "check.txt",
        "config/gateway.toml",
        "config/meters.csv",
        "data-directory.txt",
        "gaps.json",
        "journal-status.json",
        "logs/box.log",
        "missing.txt",
    }
    assert json.loads(files["about.json"])["packages"]["msgspec"] != "absent"
    assert files["check.txt"] == "no mistakes"
    assert "journal.db" in files["data-directory.txt"]
    assert json.loads(files["journal-status.json"])[0]["head"] == 0
    assert "no gateway runs" in files["missing.txt"]
    assert files["logs/box.log"].endswith("last line\n")
    text = "".join(files.values())
    for secret in (GUEK, GUEK[::-1], "hunter2-hunter2"):
        assert secret not in text


def test_a_bundle_of_something_broken(folder: Path) -> None:
    (folder / "gateway.toml").write_text(
        CONFIG.replace('"file:pw"', '"hunter3-hunter3"').replace('kind = "file"', 'kind = "fil"')
    )
    assert run(["diagnose", "-o", "bundle.tar.gz"]) == 0
    files = unpacked(Path("bundle.tar.gz"))
    assert "is none of" in files["check.txt"]
    assert "hunter3" not in "".join(files.values())
    assert '"***"' in files["config/gateway.toml"]
    assert run(["diagnose", "-c", "none.toml", "-o", "bundle.tar.gz"]) == 0
    assert "no such file" in unpacked(Path("bundle.tar.gz"))["check.txt"]
    (folder / "gateway.toml").write_text(CONFIG)
    (folder / "data").mkdir()
    (folder / "data" / "journal.db").write_text("no database")
    assert run(["diagnose", "-o", "bundle.tar.gz"]) == 0


def test_a_bundle_that_would_hold_a_key_is_not_written(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = GUEK[:16] + " | " + GUEK[16:]
    Path("split.log").write_text(half)  # not the key: nothing to find
    assert run(["diagnose", "--log", "split.log", "-o", "bundle.tar.gz"]) == 0
    Path("bundle.tar.gz").unlink()
    Path("open.log").write_text("the broker said hunter2-hunter2 is wrong\n")
    assert run(["diagnose", "--log", "open.log", "-o", "bundle.tar.gz"]) == 1
    assert "logs/open.log would hold a key" in capfd.readouterr().err
    assert not Path("bundle.tar.gz").exists()


def test_every_usual_spelling_is_found() -> None:
    octets = bytes.fromhex(GUEK)
    for spelling in (GUEK, GUEK.upper(), base64.b64encode(octets).decode(), repr(octets)[2:-1]):
        bundle = Bundle()
        bundle.files["x"] = f"a {spelling} b"
        assert bundle.leaked([Secret(octets)]) == ["x"]
    clean = Bundle()
    clean.files["x"] = "nothing"
    assert clean.leaked([Secret(octets), Secret(b"pw")]) == []
