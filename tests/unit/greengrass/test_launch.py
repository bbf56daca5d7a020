"""Releases side by side: installed offline and at once, switched atomically, left again when they never get ready."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edge_core.greengrass import launch
from edge_core.greengrass.launch import Unfit, became_ready, choose, install, stopped_in_time

ROOT = Path(__file__).parents[3]
PYTHON = "{}.{}".format(*sys.version_info[:2])
PROGRAM = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "env": {k: v for k, v in os.environ.items() if k[:8] == "OPENDCU_"},
    "path": sys.path, "which": %r}))
"""


def artifacts(folder: Path, version: str, **changes: object) -> Path:
    """A folder as the nucleus lays it: a release whose program prints how it was started."""
    folder.mkdir(parents=True)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, text in (
            ("site/edge_core/__init__.py", ""),
            ("site/edge_core/cli/__init__.py", ""),
            ("site/edge_core/cli/main.py", PROGRAM % version),
            (f"site-{PYTHON}/own.py", ""),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    (folder / "a.tar.gz").write_bytes(raw.getvalue())
    release = {
        "name": f"{version}-x", "version": version, "architecture": "amd64", "pythons": [PYTHON],
        "archive": "a.tar.gz", "sha256": hashlib.sha256(raw.getvalue()).hexdigest(),
    }  # fmt: skip
    (folder / "release-amd64.json").write_text(json.dumps(release | changes))
    mine = launch.ARCHITECTURES[os.uname().machine]
    if mine != "amd64":
        (folder / f"release-{mine}.json").write_text(json.dumps(release | {"architecture": mine}))
    for file in ("components/install.sh", "components/run.sh", "edge_core/greengrass/launch.py"):
        (folder / Path(file).name).write_bytes((ROOT / file).read_bytes())
    return folder


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def environment_of(work: Path, release: str) -> dict[str, str]:
    return {launch.RELEASES: str(work / "releases"), launch.RELEASE: release}


def start(work: Path, folder: Path, boot: str = "boot-1") -> tuple[str, str]:
    target, instead_of = choose(work, folder, boot)
    return target.name, instead_of


def test_a_release_is_unpacked_once(work: Path, tmp_path: Path) -> None:
    one = artifacts(tmp_path / "1", "1.0.0")
    target = install(work, one)
    assert target == work / "releases" / "1.0.0-x"
    assert (target / "site/edge_core/cli/main.py").exists()
    (one / "a.tar.gz").unlink()  # not looked at again
    assert install(work, one) == target


def test_an_installation_that_was_cut_off_is_done_again(work: Path, tmp_path: Path) -> None:
    one = artifacts(tmp_path / "1", "1.0.0")
    releases = work / "releases"
    (releases / ".part77" / "site").mkdir(parents=True)
    (releases / "1.0.0-x").mkdir()  # without its stamp: not ours, or from a cut
    target = install(work, one)
    assert (target / "site").exists()
    assert sorted(p.name for p in releases.iterdir()) == ["1.0.0-x"]


def test_the_same_version_built_anew_is_another_release(work: Path, tmp_path: Path) -> None:
    install(work, artifacts(tmp_path / "1", "1.0.0"))
    other = install(work, artifacts(tmp_path / "2", "1.0.0", name="1.0.0-y"))
    assert other.name == "1.0.0-y"
    assert (work / "releases" / "1.0.0-x").exists()


def test_components_of_one_box_have_their_libraries_once(tmp_path: Path) -> None:
    def with_library(folder: Path, octets: bytes) -> Path:
        """A release whose library has these octets."""
        made = artifacts(folder, "1.0.0")
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name, data in (("site/big.so", octets), ("site/small.py", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        (made / "a.tar.gz").write_bytes(raw.getvalue())
        file = made / "release-amd64.json"
        release = json.loads(file.read_text())
        file.write_text(
            json.dumps(release | {"sha256": hashlib.sha256(raw.getvalue()).hexdigest()})
        )
        return made

    library = bytes(launch.SHARED_FROM)
    inode = {}
    for name, octets in (("A", library), ("B", library), ("C", library[:-1] + b"x")):
        work = tmp_path / "work" / f"io.opendcu.{name}"
        work.mkdir(parents=True)
        target = install(work, with_library(tmp_path / name, octets))
        assert (target / "site/big.so").read_bytes() == octets
        inode[name] = (
            (target / "site/big.so").stat().st_ino,
            (target / "site/small.py").stat().st_ino,
        )
    assert inode["A"][0] == inode["B"][0] != inode["C"][0]
    assert inode["A"][1] != inode["B"][1]  # what is small is not worth it
    shutil.rmtree(tmp_path / "work" / "io.opendcu.A")
    left = tmp_path / "work" / "io.opendcu.B" / "releases" / "1.0.0-x" / "site/big.so"
    assert left.read_bytes() == library


def test_what_does_not_fit_is_told_at_the_deployment(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = artifacts(tmp_path / "1", "1.0.0")
    (damaged / "a.tar.gz").write_bytes(b"other octets")
    with pytest.raises(Unfit, match="damaged"):
        install(work, damaged)
    with pytest.raises(Unfit, match=r"built for Python 3\.99, this box has"):
        install(work, artifacts(tmp_path / "2", "1.0.0", pythons=["3.99"]))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(Unfit, match="nothing here for riscv64; built for: amd64"):
        install(work, artifacts(tmp_path / "3", "1.0.0"))
    assert not list(work.glob("releases/*-x"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE])
def test_an_archive_writes_files_and_folders_below_itself_only(
    work: Path, tmp_path: Path, kind: bytes
) -> None:
    one = artifacts(tmp_path / "1", "1.0.0")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        info = tarfile.TarInfo("site/link")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    (one / "a.tar.gz").write_bytes(raw.getvalue())
    release = json.loads((one / "release-amd64.json").read_text())
    release["sha256"] = hashlib.sha256(raw.getvalue()).hexdigest()
    (one / "release-amd64.json").write_text(json.dumps(release))
    with pytest.raises((Unfit, tarfile.FilterError)):
        install(work, one)


def test_a_new_release_that_never_gets_ready_twice_is_followed_by_the_last_good_one(
    work: Path, tmp_path: Path
) -> None:
    one, two = artifacts(tmp_path / "1", "1.0.0"), artifacts(tmp_path / "2", "2.0.0")
    assert start(work, one) == ("1.0.0-x", "")
    became_ready(environment_of(work, "1.0.0-x"))
    install(work, two)
    assert start(work, two) == ("2.0.0-x", "")
    assert start(work, two) == ("2.0.0-x", "")
    assert start(work, two) == ("1.0.0-x", "2.0.0-x")
    became_ready(environment_of(work, "1.0.0-x"))
    assert start(work, two) == (
        "1.0.0-x",
        "2.0.0-x",
    )  # until the box boots, or another release comes
    assert start(work, two, "boot-2") == ("2.0.0-x", "")
    three = artifacts(tmp_path / "3", "3.0.0")
    assert start(work, three, "boot-2") == ("3.0.0-x", "")


def test_a_release_that_got_ready_stays_and_the_one_before_it_too(
    work: Path, tmp_path: Path
) -> None:
    for n in (1, 2, 3):
        folder = artifacts(tmp_path / str(n), f"{n}.0.0")
        assert start(work, folder) == (f"{n}.0.0-x", "")
        became_ready(environment_of(work, f"{n}.0.0-x"))
    assert sorted(p.name for p in (work / "releases").glob("*-x")) == ["2.0.0-x", "3.0.0-x"]
    for _ in range(5):  # later failures of a good release are no reason to go back
        assert start(work, folder) == ("3.0.0-x", "")


def test_a_first_release_has_nothing_to_go_back_to(work: Path, tmp_path: Path) -> None:
    one = artifacts(tmp_path / "1", "1.0.0")
    for _ in range(4):
        assert start(work, one) == ("1.0.0-x", "")


def test_a_start_that_was_asked_to_end_does_not_count(work: Path, tmp_path: Path) -> None:
    one, two = artifacts(tmp_path / "1", "1.0.0"), artifacts(tmp_path / "2", "2.0.0")
    start(work, one)
    became_ready(environment_of(work, "1.0.0-x"))
    for _ in range(4):
        assert start(work, two) == ("2.0.0-x", "")
        stopped_in_time(environment_of(work, "2.0.0-x"))


def test_a_nucleus_that_goes_back_starts_the_old_release(work: Path, tmp_path: Path) -> None:
    one, two = artifacts(tmp_path / "1", "1.0.0"), artifacts(tmp_path / "2", "2.0.0")
    for folder, name in ((one, "1.0.0-x"), (two, "2.0.0-x"), (one, "1.0.0-x")):
        assert start(work, folder) == (name, "")
        became_ready(environment_of(work, name))


def test_a_state_that_cannot_be_read_is_begun_anew(work: Path, tmp_path: Path) -> None:
    one = artifacts(tmp_path / "1", "1.0.0")
    install(work, one)
    for broken in ("{", "[]", '{"tries": null}'):
        (work / "releases" / "state.json").write_text(broken)
        assert start(work, one) == ("1.0.0-x", "")


def test_outside_a_component_nothing_is_written_nor_told() -> None:
    became_ready({})
    stopped_in_time({})
    assert launch.installed_at({}) == 0
    assert launch.components({}) == {}


def test_the_releases_of_a_box_are_told(tmp_path: Path) -> None:
    for name in ("Gateway", "Uplink"):
        work = tmp_path / f"io.opendcu.{name}"
        work.mkdir()
        target = install(work, artifacts(tmp_path / name, "1.0.0"))
        became_ready(environment_of(work, target.name))
    model = tmp_path / "io.opendcu.AnomalyModel"
    model.mkdir()
    (model / "model").symlink_to("model-0.3.0")
    (tmp_path / "io.opendcu.data").mkdir()
    mine = environment_of(tmp_path / "io.opendcu.Gateway", "1.0.0-x")
    assert launch.components(mine) == {
        "io.opendcu.AnomalyModel": "0.3.0",
        "io.opendcu.Gateway": "1.0.0-x",
        "io.opendcu.Uplink": "1.0.0-x",
    }
    assert launch.installed_at(mine) > 1_700_000_000


def test_the_scripts_start_it_without_any_environment(work: Path, tmp_path: Path) -> None:
    one = artifacts(tmp_path / "with space" / "1", "1.0.0")
    for command in (["install.sh", f"{work}/"], ["run.sh", f"{work}/", "io.opendcu.Gateway"]):
        done = subprocess.run(
            ["/bin/sh", str(one / command[0]), *command[1:]],
            env={"OPENDCU_PYTHON": sys.executable, "OPENDCU_FALLBACK": "stale"},
            capture_output=True, text=True, cwd=work,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["argv"] == ["component", "run", "--work", str(work)]
    assert told["env"]["OPENDCU_COMPONENT"] == "io.opendcu.Gateway"
    assert told["env"]["OPENDCU_RELEASE"] == "1.0.0-x"
    assert "OPENDCU_FALLBACK" not in told["env"]
    release = work / "releases" / "1.0.0-x"
    assert told["path"][:2] == [str(release / f"site-{PYTHON}"), str(release / "site")]


def test_wrong_use_and_a_full_disk_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["fly"]) == 1
    assert "usage" in capsys.readouterr().err
    assert (
        launch.main(["install", str(tmp_path / "nowhere")]) == 1
    )  # no release beside launch.py in the checkout
    assert "nothing here for x86_64" in capsys.readouterr().err
