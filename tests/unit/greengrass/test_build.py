"""The builder: what goes into an archive, from where, and what it says when something is missing."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edge_core.cli.component import component
from edge_core.greengrass import build as build_module
from edge_core.greengrass.build import (
    ANOMALY_MODEL,
    DESK_ONLY,
    EXTRAS,
    LEFT_OUT,
    Builder,
    BuildError,
    checkout,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(ROOT, tmp_path / "out", architectures=["amd64"], pythons=["3.11"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout whose files a test may change, and whose wheels are made here."""
    root = tmp_path / "checkout"
    for name in ("recipes", "components", "requirements"):
        shutil.copytree(ROOT / name, root / name, symlinks=True)
    (root / "edge_core" / "greengrass").mkdir(parents=True)
    (root / "edge_core" / "__init__.py").write_text("")
    shutil.copy(ROOT / "edge_core/greengrass/launch.py", root / "edge_core/greengrass")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, root)
    return root


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, octets in files.items():
            archive.writestr(file, octets)
    return folder / name


def test_the_lock_file_is_read_whole() -> None:
    text = (ROOT / "requirements/run.txt").read_text()
    lines = list(build_module._locked(text))
    assert len(lines) == sum(
        1 for line in text.splitlines() if "==" in line and not line.startswith(" ")
    )
    assert all(len(line.hashes) >= 1 for line in lines)
    numpy = [line for line in lines if line.name == "numpy"]
    assert {line.marker for line in numpy} == {
        "python_full_version < '3.12'",
        "python_full_version >= '3.12'",
    }


@pytest.mark.parametrize("architecture", ["amd64", "aarch64"])
def test_each_component_gets_what_its_roles_need_and_no_more(
    builder: Builder, architecture: str
) -> None:
    names = {
        name: {lock.name for lock in builder._closure(architecture, "3.11", extras)}
        for name, extras in EXTRAS.items()
    }
    core = {"numpy", "pymodbus", "cryptography", "cffi", "msgspec", "click", "fastcrc", "pyserial", "uvloop", "paho-mqtt", "awsiotsdk", "awscrt"}  # fmt: skip
    for needed in names.values():
        assert core <= needed
        assert not needed & {
            "boto3",
            "ministack",
            "duckdb",
            "pytest",
            "dlms-cosem",
            "iotcore",
            "pip",
            "packaging",
        } - {"packaging"}
    assert "onnxruntime" in names["io.opendcu.Gateway"] & names["io.opendcu.Detector"]
    assert "onnxruntime" not in names["io.opendcu.Uplink"] | names["io.opendcu.DlmsReader"]
    assert "uvicorn" in names["io.opendcu.Uplink"]
    assert "uvicorn" not in names["io.opendcu.DlmsReader"]


def test_another_python_gets_its_own_versions(builder: Builder) -> None:
    for python in ("3.11", "3.13"):
        (numpy,) = [
            lock for lock in builder._closure("amd64", python, ("aws",)) if lock.name == "numpy"
        ]
        assert ("<" in numpy.marker) == (python == "3.11")


def test_files_of_one_python_and_of_all_lie_apart(tmp_path: Path) -> None:
    own = wheel(
        tmp_path,
        "a-1.0-cp311-cp311-manylinux2014_x86_64.whl",
        {"a/x.so": b"1", "a/tests/t.py": b"", "a.libs/l.so": b"2"},
    )
    assert dict(build_module._unpacked(own)) == {
        "site-3.11/a/x.so": b"1",
        "site-3.11/a.libs/l.so": b"2",
    }
    every = wheel(tmp_path, "b-1.0-cp39-abi3-manylinux2014_x86_64.whl", {
        "b/y.so": b"1", "b/y.pyi": b"", "b-1.0.data/purelib/b/z.py": b"3", "b-1.0.data/scripts/b": b"",
        "b-1.0.dist-info/METADATA": b"m", "b-1.0.dist-info/RECORD": b"r", "../evil.py": b"",
    })  # fmt: skip
    assert dict(build_module._unpacked(every)) == {
        "site/b/y.so": b"1",
        "site/b/z.py": b"3",
        "site/b-1.0.dist-info/METADATA": b"m",
    }
    pure = wheel(tmp_path, "c-1.0-py3-none-any.whl", {"c.py": b""})
    assert list(dict(build_module._unpacked(pure))) == ["site/c.py"]


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("numpy/testing/__init__.py", False),
        ("numpy/_core/tests/test_x.py", True),
        ("numpy/_core/include/numpy/x.h", True),
        ("pymodbus/constants.py", False),
        ("onnxruntime/capi/x.so", False),
        ("onnxruntime/transformers/x.py", True),
        ("x-1.dist-info/licenses/LICENSE", False),
    ],
)
def test_what_a_box_never_reads_is_left_out(name: str, out: bool) -> None:
    assert bool(LEFT_OUT.search(name)) is out


def test_the_same_files_make_the_same_octets() -> None:
    one = build_module._tar({"site/a.py": b"1", "LICENSE": b"2"}, 6)
    assert one == build_module._tar({"LICENSE": b"2", "site/a.py": b"1"}, 6)
    with tarfile.open(fileobj=io.BytesIO(one)) as tar:
        members = {m.name: (m.mode, m.mtime, m.uid) for m in tar.getmembers()}
    assert members == {"LICENSE": (0o644, 0, 0), "site/a.py": (0o644, 0, 0)}


def test_the_program_is_ours_without_the_desk(builder: Builder) -> None:
    names = [name for name, _ in builder._program()]
    assert "site/edge_core/greengrass/launch.py" in names
    assert "site/edge_core/acquisition/meters/is15959-3ph.toml" in names
    assert not [
        name
        for name in names
        if name.removeprefix("site/edge_core/") in DESK_ONLY or "__pycache__" in name
    ]
    assert all((ROOT / "edge_core" / name).exists() for name in DESK_ONLY)


def test_a_wheel_whose_hash_is_not_the_locks_is_not_taken(copy: Path, tmp_path: Path) -> None:
    good = b"good"
    (copy / "requirements/run.txt").write_text(
        f"click==8.5.1 --hash=sha256:{hashlib.sha256(good).hexdigest()}\n"
    )
    builder = Builder(copy, tmp_path / "out", architectures=["amd64"], pythons=["3.11"])
    (lock,) = builder.lock
    fits = build_module._tags("amd64", "3.11")
    cache = copy / "build/wheels"
    cache.mkdir(parents=True)
    (cache / "click-8.5.1-py3-none-any.whl").write_bytes(b"other")
    assert builder._cached(lock, fits, cache) is None
    (cache / "click-8.5.1-py3-none-any.whl").write_bytes(good)
    assert builder._cached(lock, fits, cache) == cache / "click-8.5.1-py3-none-any.whl"
    own = wheel(tmp_path / "own", "click-8.5.1-py3-none-any.whl", {})
    builder.wheels = tmp_path / "own"
    assert builder._cached(lock, fits, cache) == own


def test_the_best_wheel_that_a_box_takes_is_chosen(copy: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    for tag in (
        "py3-none-any",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-cp311-manylinux_2_39_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
    ):
        wheel(own, f"click-8.5.1-{tag}.whl", {})
    builder = Builder(copy, tmp_path / "out", architectures=["amd64"], pythons=["3.11"], wheels=own)
    lock = next(line for line in builder.lock if line.name == "click")
    for python, name in (
        ("3.11", "cp311-cp311-manylinux_2_17"),
        ("3.12", "cp312-cp312-manylinux_2_17"),
        ("3.13", "py3-none-any"),
    ):
        found = builder._cached(lock, build_module._tags("amd64", python), tmp_path)
        assert found is not None
        assert name in found.name


def test_what_cannot_be_built_is_named(builder: Builder, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no component Concentrator; known: io\.opendcu\.Gateway"):
        builder.build(["Concentrator"])
    with pytest.raises(BuildError, match=r"--python 311: expected as in 3\.11"):
        Builder(ROOT, tmp_path, pythons=["311"])
    with pytest.raises(BuildError, match="no wheels are known for arm"):
        Builder(ROOT, tmp_path, architectures=["arm"])
    with pytest.raises(BuildError, match="needs a model"):
        Builder(copy, tmp_path / "o", architectures=["amd64"]).build([ANOMALY_MODEL])
    recipe = copy / "recipes/io.opendcu.Gateway.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace('runtime: "*"', "runtime: aws_nucleus_lite"))
    with pytest.raises(
        BuildError, match=r"io\.opendcu\.Gateway\.yaml: Manifests\[0\]\.Platform: runtime"
    ):
        Builder(copy, tmp_path / "o", architectures=["amd64"]).build(["Uplink"])
    recipe.write_text(text.replace('"0.1.0"', '"0.1.9"'))
    with pytest.raises(BuildError, match=r"has version 0\.1\.9, the package"):
        Builder(copy, tmp_path / "o", architectures=["amd64"]).build(["Gateway"])
    recipe.write_text(text)
    (copy / "requirements/run.txt").write_text("")
    unlocked = Builder(copy, tmp_path / "o", architectures=["amd64"])
    with pytest.raises(BuildError, match=r"is not in requirements/run\.txt: run make lock"):
        unlocked.build(["Gateway"])


def test_a_checkout_is_found_from_a_folder_of_a_component() -> None:
    assert checkout(ROOT / "components" / "Gateway") == ROOT
    assert checkout(Path("/")) == ROOT  # an editable installation knows its own


# The model as a component of its own


def model_artifacts(copy: Path, tmp_path: Path, version: str) -> tuple[Path, str]:
    """The artifacts of a model component and its install script's command."""
    model = tmp_path / f"model-{version}"
    model.mkdir()
    for file in ("model.onnx", "model.json", "model.sig"):
        (model / file).write_text(f"{file} {version}")
    for path in (copy / "recipes").glob("*.yaml"):
        path.write_text(path.read_text().replace("0.1.0", version))
    project = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(
        project.replace('version = "0.1.0"', f'version = "{version}"')
    )
    out = tmp_path / f"out-{version}"
    (built,) = Builder(copy, out, architectures=["amd64"], model=model).build(["AnomalyModel"])
    assert sorted(p.name for p in built.artifacts.iterdir()) == [
        "install.sh",
        "model.json",
        "model.onnx",
        "model.sig",
    ]
    recipe = yaml.safe_load((out / "local/recipes" / f"{ANOMALY_MODEL}-{version}.yaml").read_text())
    return built.artifacts, recipe["Manifests"][0]["Lifecycle"]["install"]["Script"]


def test_a_model_is_installed_updated_and_found_in_one_place(copy: Path, tmp_path: Path) -> None:
    work = tmp_path / "work of it"
    work.mkdir()
    original = {
        p: p.read_text() for p in [*(copy / "recipes").glob("*.yaml"), copy / "pyproject.toml"]
    }
    for version in ("0.1.0", "0.2.0"):
        for path, text in original.items():
            path.write_text(text)
        artifacts, script = model_artifacts(copy, tmp_path, version)
        command = script.replace("{artifacts:path}", str(artifacts)).replace(
            "{work:path}", f"{work}/"
        )
        for _ in range(2):  # classic installs again at every start
            done = subprocess.run(
                ["/bin/sh", "-c", command], env={}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        assert (work / "model/model.json").read_text() == f"model.json {version}"
    assert sorted(p.name for p in work.iterdir()) == ["model", "model-0.2.0"]


# The command


def test_the_command_lints(tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(component, ["lint", "--json"], standalone_mode=False)
    assert json.loads(done.output) == {"findings": []}
    broken = tmp_path / "broken.yaml"
    broken.write_text("Manifests: []\n")
    done = run.invoke(component, ["lint", str(broken), "--json"], standalone_mode=False)
    assert done.return_value == 1
    assert {f["rule"] for f in json.loads(done.output)["findings"]} >= {
        "spelling",
        "format",
        "platform",
    }
