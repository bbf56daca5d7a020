"""Artifacts and recipes at the desk, without GDK and without anything to install on the box.

    <out>/artifacts/<name>/<version>/   install.sh run.sh launch.py release-<arch>.json opendcu-linux-<arch>.tar.gz
    <out>/recipes/<name>.yaml           what `gdk component publish` takes
    <out>/local/{recipes,artifacts}     the same for a deployment without the cloud: <name>-<version>.yaml

The archive holds our package and every wheel of the lock file, unpacked: `site/` what serves every Python,
`site-3.x/` what serves one. Wheels are downloaded with the hashes of requirements/run.txt into build/wheels of the
checkout and used again. The same inputs make the same octets. A built recipe keeps the manifests of the architectures
that were built: a manifest whose artifact is missing could not be published.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging import tags
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from edge_core.errors import OpenDCUError
from edge_core.greengrass.launch import ARCHITECTURES
from edge_core.greengrass.recipes import lint_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

EXTRAS: dict[str, tuple[str, ...]] = {
    "io.opendcu.Gateway": ("aws", "console", "detector"),
    "io.opendcu.DlmsReader": ("aws",),
    "io.opendcu.ModbusReader": ("aws",),
    "io.opendcu.Detector": ("aws", "detector"),
    "io.opendcu.Uplink": ("aws", "console"),
}
ANOMALY_MODEL = "io.opendcu.AnomalyModel"
MODEL_FILES = ("model.onnx", "model.json", "model.sig")
NAMES = (*EXTRAS, ANOMALY_MODEL)

MACHINES = {"amd64": "x86_64", "aarch64": "aarch64"}  # awscrt has wheels for these alone
GLIBC = range(28, 16, -1)  # boxes have glibc 2.28 or newer

DESK_ONLY = {  # modules that need the simulators or the desk's tools
    "cli/demo.py", "cli/simulate.py", "cli/cloud.py", "greengrass/build.py", "greengrass/recipes.py",
}  # fmt: skip
LEFT_OUT = re.compile(
    r"(^|/)(tests?|__pycache__|include|f2py|_pyinstaller)/|\.(pyi|pxd|pyx|a|h|hpp|c|cpp)$|^bin/"
    r"|^onnxruntime/(transformers|tools|quantization)/|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$"
)


class BuildError(OpenDCUError):
    """The components cannot be built; the text says what is missing."""


class Locked(NamedTuple):
    """One line of the lock file."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]


@dataclass(frozen=True)
class Built:
    """One component that was built."""

    name: str
    version: str
    architectures: tuple[str, ...]
    size: int
    artifacts: Path

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "architectures": list(self.architectures),
            "bytes": self.size,
            "artifacts": str(self.artifacts),
        }


def checkout(start: Path) -> Path:
    """The checkout that holds a folder: where recipes, components and the lock file lie.

    Raises:
        BuildError: there is none above `start`.
    """
    for folder in (start.resolve(), *start.resolve().parents, Path(__file__).resolve().parents[2]):
        if (folder / "recipes").is_dir() and (folder / "requirements" / "run.txt").is_file():
            return folder
    raise BuildError(
        f"{start} is in no checkout of OpenDCU: recipes/ and requirements/run.txt are needed"
    )


@dataclass
class Builder:
    """Builds components.

    Args:
        root: the checkout.
        out: where to; made if it is not there.
        architectures: as Greengrass names them; () = this machine's.
        pythons: as "3.11"; () = this one.
        wheels: a folder of own wheels, taken by name and version before those of the lock file's hashes.
        model: folder of the anomaly model.
        level: of gzip.
    """

    root: Path
    out: Path
    architectures: Sequence[str] = ()
    pythons: Sequence[str] = ()
    wheels: Path | None = None
    model: Path | None = None
    level: int = 6
    _archives: dict[tuple[str, tuple[str, ...]], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mine = ARCHITECTURES.get(platform.machine(), platform.machine())
        self.architectures = tuple(self.architectures) or (mine,)
        self.pythons = tuple(self.pythons) or ("{}.{}".format(*sys.version_info[:2]),)
        for version in self.pythons:
            if not re.fullmatch(r"3\.\d+", version):
                raise BuildError(f"--python {version}: expected as in 3.11")
        for architecture in self.architectures:
            if architecture not in MACHINES:
                raise BuildError(
                    f"no wheels are known for {architecture}; known: {', '.join(MACHINES)}"
                )
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        self.project: dict[str, Any] = project["project"]
        self.lock = list(
            _locked((self.root / "requirements" / "run.txt").read_text(encoding="utf-8"))
        )

    # --- what is built

    def build(self, names: Iterable[str] = ()) -> list[Built]:
        """Build these components, or all that can be.

        Raises:
            BuildError: an unknown name, a recipe with a finding, a wheel that cannot be had.
        """
        wanted = [self._full_name(name) for name in names]
        recipes = {name: self._recipe(name) for name in NAMES}
        findings = lint_all({f"recipes/{name}.yaml": text for name, text in recipes.items()})
        if findings:
            raise BuildError("\n".join(str(finding) for finding in findings))
        if not wanted:
            wanted = [name for name in NAMES if name != ANOMALY_MODEL or self._model_folder()]
        return [self._build(name, recipes[name]) for name in wanted]

    def _full_name(self, name: str) -> str:
        for full in NAMES:
            if name in (full, full.rpartition(".")[2]):
                return full
        raise BuildError(f"no component {name}; known: {', '.join(NAMES)}")

    def _recipe(self, name: str) -> str:
        return (self.root / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")

    def _build(self, name: str, text: str) -> Built:
        import yaml

        recipe = yaml.safe_load(text)
        version = recipe["ComponentVersion"]
        if version != self.project["version"]:
            raise BuildError(
                f"recipes/{name}.yaml has version {version}, the package {self.project['version']}"
            )
        if name != ANOMALY_MODEL:
            recipe["Manifests"] = [
                m
                for m in recipe["Manifests"]
                if m["Platform"]["architecture"] in self.architectures
            ]
            if len(recipe["Manifests"]) != len(self.architectures):
                raise BuildError(
                    f"recipes/{name}.yaml has no manifest for {', '.join(self.architectures)}"
                )
        folder = self.out / "artifacts" / name / version
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if name == ANOMALY_MODEL:
            self._fill_model(folder)
        else:
            self._fill_program(name, version, folder)
        self._check_artifacts(name, recipe, folder)
        self._write_recipe(name, version, recipe)
        self._write_local(name, version, folder)
        size = sum(f.stat().st_size for f in folder.iterdir())
        return Built(name, version, tuple(self.architectures), size, folder)

    def _fill_program(self, name: str, version: str, folder: Path) -> None:
        for script in ("install.sh", "run.sh"):
            shutil.copyfile(self.root / "components" / script, folder / script)
        shutil.copyfile(self.root / "edge_core" / "greengrass" / "launch.py", folder / "launch.py")
        for architecture in self.architectures:
            archive = self._archive(architecture, EXTRAS[name])
            digest = hashlib.sha256(archive).hexdigest()
            file = f"opendcu-linux-{architecture}.tar.gz"
            (folder / file).write_bytes(archive)
            release = {
                "name": f"{version}-{digest[:8]}",
                "version": version,
                "architecture": architecture,
                "pythons": list(self.pythons),
                "archive": file,
                "sha256": digest,
            }
            (folder / f"release-{architecture}.json").write_text(
                json.dumps(release, indent=1) + "\n", encoding="utf-8"
            )

    def _model_folder(self) -> Path | None:
        if self.model is not None:
            return self.model
        own = self.root / "edge_core" / "detector" / "builtin"
        return own if (own / "model.json").exists() else None

    def _fill_model(self, folder: Path) -> None:
        source = self._model_folder()
        if source is None:
            raise BuildError(
                f"{ANOMALY_MODEL} needs a model: --model FOLDER with {', '.join(MODEL_FILES)}"
            )
        for file in MODEL_FILES:
            if not (source / file).is_file():
                raise BuildError(f"{source}: {file} is missing")
            shutil.copyfile(source / file, folder / file)
        shutil.copyfile(
            self.root / "components" / "AnomalyModel" / "install.sh", folder / "install.sh"
        )

    def _check_artifacts(self, name: str, recipe: dict[str, Any], folder: Path) -> None:
        named = {a["Uri"].rpartition("/")[2] for m in recipe["Manifests"] for a in m["Artifacts"]}
        have = {file.name for file in folder.iterdir()}
        if named != have:
            raise BuildError(f"{name}: the recipe names {sorted(named)}, built were {sorted(have)}")

    def _write_recipe(self, name: str, version: str, recipe: dict[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(recipe, sort_keys=False, width=10_000, allow_unicode=True)
        findings = lint_all({f"{name}.yaml": text})
        if findings:
            raise BuildError("\n".join(str(finding) for finding in findings))
        for file in (
            self.out / "recipes" / f"{name}.yaml",
            self.out / "local" / "recipes" / f"{name}-{version}.yaml",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    def _write_local(self, name: str, version: str, folder: Path) -> None:
        local = self.out / "local" / "artifacts" / name / version
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        for file in folder.iterdir():
            try:
                os.link(file, local / file.name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, local / file.name)

    # --- archives

    def _archive(self, architecture: str, extras: tuple[str, ...]) -> bytes:
        key = architecture, extras
        if key not in self._archives:
            files = dict(self._program())
            for python in self.pythons:
                for wheel in self._wheels(architecture, python, extras):
                    files |= dict(_unpacked(wheel))
            self._archives[key] = _tar(files, self.level)
        return self._archives[key]

    def _program(self) -> Iterator[tuple[str, bytes]]:
        package = self.root / "edge_core"
        for path in sorted(package.rglob("*")):
            inside = path.relative_to(package).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and inside not in DESK_ONLY:
                yield f"site/edge_core/{inside}", path.read_bytes()
        name, version = self.project["name"], self.project["version"]
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        yield f"site/{name}-{version}.dist-info/METADATA", about.encode()
        yield "LICENSE", (self.root / "LICENSE").read_bytes()

    def _wheels(self, architecture: str, python: str, extras: tuple[str, ...]) -> list[Path]:
        """The wheels of everything that the program needs there, from the cache or downloaded with their hashes."""
        needed = self._closure(architecture, python, extras)
        cache = self.root / "build" / "wheels"
        cache.mkdir(parents=True, exist_ok=True)
        fits = _tags(architecture, python)
        found = {lock.name: self._cached(lock, fits, cache) for lock in needed}
        missing = [lock for lock in needed if found[lock.name] is None]
        if missing:
            _download(missing, architecture, python, cache)
            found |= {lock.name: self._cached(lock, fits, cache) for lock in missing}
        without = [f"{lock.name}=={lock.version}" for lock in missing if found[lock.name] is None]
        if without:
            raise BuildError(
                f"no wheel for {architecture}, Python {python}: {', '.join(without)}; put your own into --wheels"
            )
        return [path for path in found.values() if path is not None]

    def _cached(self, lock: Locked, fits: dict[tags.Tag, int], cache: Path) -> Path | None:
        best: tuple[int, Path] | None = None
        for folder in (self.wheels, cache):
            for path in sorted(folder.glob("*.whl")) if folder else ():
                name, version, _, wheel_tags = parse_wheel_filename(path.name)
                ranks = [fits[tag] for tag in wheel_tags if tag in fits]
                if name != lock.name or str(version) != lock.version or not ranks:
                    continue
                known = folder == self.wheels or _sha256(path) in lock.hashes
                if known and (best is None or min(ranks) < best[0]):
                    best = min(ranks), path
            if best is not None:
                return best[1]
        return None

    def _closure(self, architecture: str, python: str, extras: tuple[str, ...]) -> list[Locked]:
        """Every locked distribution that is needed there, by what the installed ones require."""
        environment: dict[str, Any] = {
            **default_environment(),
            "python_version": python,
            "python_full_version": f"{python}.0",
            "platform_machine": MACHINES[architecture],
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
        }
        locked: dict[str, Locked] = {}
        for line in self.lock:
            if not line.marker or Marker(line.marker).evaluate({**environment, "extra": ""}):
                locked[line.name] = line
        texts = [*self.project["dependencies"]]
        for extra in extras:
            texts += self.project["optional-dependencies"][extra]
        out: dict[str, Locked] = {}
        waiting = [(Requirement(text), "") for text in texts]
        while waiting:
            requirement, extra = waiting.pop()
            if requirement.marker and not requirement.marker.evaluate(
                {**environment, "extra": extra}
            ):
                continue
            name = canonicalize_name(requirement.name)
            if name not in locked:
                raise BuildError(f"{name} is not in requirements/run.txt: run make lock")
            wanted = ["", *requirement.extras]
            if name in out and wanted == [""]:
                continue
            out[name] = locked[name]
            try:
                requires = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                raise BuildError(
                    f"{name} is not installed here: pip install .[all] first"
                ) from None
            waiting += [(Requirement(text), e) for text in requires for e in wanted]
        return sorted(out.values())


# Small ----------------------------------------------------------------------------------------------------------------


def _locked(text: str) -> Iterator[Locked]:
    """The lines of a lock file."""
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(
            r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^ ;]+)\s*(?:;\s*(.*?))?\s*(--hash.*)$", line
        )
        if match:
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", match[4]))
            yield Locked(canonicalize_name(match[1]), match[2], (match[3] or "").strip(), hashes)


def _platforms(architecture: str) -> list[str]:
    machine = MACHINES[architecture]
    return [
        *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC),
        f"manylinux2014_{machine}",
        f"linux_{machine}",
    ]


def _tags(architecture: str, python: str) -> dict[tags.Tag, int]:
    """Tags that a box takes, the lower the better."""
    version = tuple(map(int, python.split(".")))
    platforms = _platforms(architecture)
    interpreter = f"cp{version[0]}{version[1]}"
    every = [
        *tags.cpython_tags(version, platforms=platforms),
        *tags.compatible_tags(version, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(every)))}


def _download(needed: list[Locked], architecture: str, python: str, cache: Path) -> None:
    """Through pip, which checks the hashes; one that has no wheel must not keep the others away."""
    for lock in needed:
        line = f"{lock.name}=={lock.version} " + " ".join(
            f"--hash=sha256:{h}" for h in sorted(lock.hashes)
        )
        asked = cache / ".asked.txt"
        asked.write_text(line + "\n", encoding="utf-8")
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--require-hashes", "--only-binary", ":all:", "--python-version", python, "--implementation", "cp",
            *(part for p in _platforms(architecture) for part in ("--platform", p)),
            "--dest", str(cache), "-r", str(asked),
        ]  # fmt: skip
        subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 what is missing is told later
        asked.unlink()


def _unpacked(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel as they lie in the archive."""
    _, _, _, wheel_tags = parse_wheel_filename(wheel.name)
    tag = next(iter(wheel_tags))
    own = tag.abi.startswith("cp")  # of one Python, neither abi3 nor none
    site = f"site-3.{tag.interpreter[3:]}" if own else "site"
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename
            data = re.match(r"[^/]+\.data/([^/]+)/(.*)", name)
            if data:
                if data[1] not in ("purelib", "platlib"):
                    continue
                name = data[2]
            if info.is_dir() or LEFT_OUT.search(name) or ".." in PurePosixPath(name).parts:
                continue
            yield f"{site}/{name}", archive.read(info)


def _tar(files: dict[str, bytes], level: int) -> bytes:
    """A tar.gz that depends on nothing but its files."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=level, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(files[name]))
    return raw.getvalue()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
