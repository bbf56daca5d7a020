"""Releases side by side in a component's work directory; starts one, and goes back when a new one never gets ready.

Standard library only, Python 3.8 or newer: this file is also an artifact of its own beside the archive, and runs before
anything else of ours, also when the release that it starts is broken.

    releases/<version>-<build>/   one release, unpacked, complete when it has this name
    releases/state.json           which one was ready last, the one before it, and how often the newest failed

    launch.py install WORK                unpack the release of this folder into WORK/releases; nothing if it is there
    launch.py run WORK COMPONENT [...]    become `opendcu component run`

A release that did not get ready in TRIES starts since the box booted is not started again; the last good one is, with
OPENDCU_FALLBACK naming the other. A boot clears the count: a power cut is no fault of a release. Nothing here waits
for anything outside, so no fault of the outside makes it fail.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

TRIES = 2
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "aarch64", "armv7l": "arm", "armv6l": "arm"}
STAMP = ".complete"
SHARED_FROM = 64 << 10

RELEASE = "OPENDCU_RELEASE"
RELEASES = "OPENDCU_RELEASES"
FALLBACK = "OPENDCU_FALLBACK"


class Unfit(Exception):
    """This release cannot run on this box; the text says why."""


# What the started program uses ----------------------------------------------------------------------------------------


def became_ready(environment: Mapping[str, str] = os.environ) -> None:
    """The release works: it is the one to go back to, and releases that nobody needs are removed."""
    folder, name = environment.get(RELEASES), environment.get(RELEASE)
    if not folder or not name:
        return
    releases = Path(folder)
    state = _read_state(releases)
    if state.get("good") != name:
        state["before"], state["good"] = state.get("good"), name
    tries = state.get("tries") or {}
    if tries.get("release") == name:
        tries = {}
    state["tries"] = tries
    _write(releases / "state.json", state)
    keep = {state["good"], state.get("before"), tries.get("release")}
    for other in releases.iterdir():
        if other.is_dir() and other.name not in keep and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)


def stopped_in_time(environment: Mapping[str, str] = os.environ) -> None:
    """We were asked to end before we were ready: this start says nothing about the release."""
    folder, name = environment.get(RELEASES), environment.get(RELEASE)
    if not folder:
        return
    state = _read_state(Path(folder))
    tries = state.get("tries") or {}
    if tries.get("release") == name and tries.get("count", 0) > 0:
        tries["count"] -= 1
        _write(Path(folder) / "state.json", state)


def installed_at(environment: Mapping[str, str] = os.environ) -> int:
    """When the running release was unpacked, UTC s; 0 outside a component."""
    stamp = Path(environment.get(RELEASES, "")) / environment.get(RELEASE, "") / STAMP
    try:
        return int(stamp.stat().st_mtime)
    except OSError:
        return 0


def components(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Releases of ours that run or lie on this box, by component: from the work directories beside our own."""
    out: dict[str, str] = {}
    if not environment.get(RELEASES):
        return out
    for work in sorted(Path(environment[RELEASES]).parents[1].glob("io.opendcu.*")):
        good = _read_state(work / "releases").get("good")
        if good:
            out[work.name] = good
        elif (work / "model").is_symlink():
            out[work.name] = (work / "model").readlink().name[len("model-") :]
    return out


# Install --------------------------------------------------------------------------------------------------------------


def release_of(artifacts: Path) -> dict[str, Any]:
    """What lies in a folder of artifacts for this machine: name, version, archive, sha256, architecture, pythons."""
    machine = platform.machine()
    architecture = ARCHITECTURES.get(machine, machine)
    file = artifacts / f"release-{architecture}.json"
    try:
        release: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        have = ", ".join(sorted(p.name[8:-5] for p in artifacts.glob("release-*.json")))
        raise Unfit(f"nothing here for {machine}; built for: {have or 'nothing'}") from None
    if release["architecture"] != architecture:
        raise Unfit(f"{file} is for {release['architecture']}, this box is {machine}")
    return release


def install(work: Path, artifacts: Path) -> Path:
    """Unpack the release of `artifacts` into `work`, if it is not there; its folder."""
    release = release_of(artifacts)
    python_for(release)  # tells now, at the deployment, that no Python fits
    releases = work / "releases"
    target: Path = releases / release["name"]
    if _stamped(target, release):
        return target
    releases.mkdir(parents=True, exist_ok=True)
    for left in releases.glob(".part*"):  # of an installation that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    archive = artifacts / release["archive"]
    if _sha256(archive) != release["sha256"]:
        raise Unfit(f"{archive} is damaged: its SHA-256 is not the one of the build")
    part = releases / f".part{os.getpid()}"
    with tarfile.open(archive) as tar:
        if sys.version_info >= (3, 12):
            tar.extractall(part, filter="data")
        else:
            for member in tar.getmembers():
                if not (member.isfile() or member.isdir()) or ".." in Path(member.name).parts:
                    raise Unfit(f"{archive}: {member.name} is neither file nor folder in it")
            tar.extractall(part)  # noqa: S202 looked at above, and its hash is the one of our build
    _share(part, work)
    (part / STAMP).write_text(json.dumps(release), encoding="utf-8")
    os.sync()  # a power cut after the rename must not find empty files
    if target.exists():
        target.rename(releases / f".part{os.getpid()}-old")
    part.rename(target)
    shutil.rmtree(releases / f".part{os.getpid()}-old", ignore_errors=True)
    return target


def _share(part: Path, work: Path) -> None:
    """Let large files that other releases of ours have too, octet by octet, be the same file.

    Components on one box are the same program: so their libraries lie in memory and on the disk once. Nobody writes
    to a release, and a removed one takes only its own names away.
    """
    others = [p for p in work.parent.glob("io.opendcu.*/releases/*") if (p / STAMP).exists()]
    for file in part.rglob("*"):
        if file.is_symlink() or not file.is_file() or file.stat().st_size < SHARED_FROM:
            continue
        for other in others:
            twin = other / file.relative_to(part)
            try:
                if twin.is_file() and filecmp.cmp(str(twin), str(file), shallow=False):
                    linked = file.with_name(file.name + ".linked")
                    os.link(str(twin), str(linked))
                    linked.replace(file)
                    break
            except OSError:  # another file system, or one without links: a copy does as well
                continue


def _stamped(target: Path, release: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((target / STAMP).read_text(encoding="utf-8")) == release)
    except (OSError, ValueError):
        return False


# Run ------------------------------------------------------------------------------------------------------------------


def choose(work: Path, artifacts: Path, boot: str) -> tuple[Path, str]:
    """The release to start: (folder, what it stands in for or "").

    Args:
        boot: id of this boot; tries of another one do not count.
    """
    releases = work / "releases"
    state = _read_state(releases)
    name = release_of(artifacts)["name"]
    tries = state.get("tries") or {}
    good = state.get("good")
    if tries.get("release") != name or tries.get("boot") != boot:
        tries = {"release": name, "boot": boot, "count": 0}
    if good and good != name and tries["count"] >= TRIES and (releases / good / STAMP).exists():
        return releases / good, name
    target = install(work, artifacts)
    if good != name:
        tries["count"] += 1
        state["tries"] = tries
        _write(releases / "state.json", state)
    return target, ""


def python_for(release: dict[str, Any]) -> str:
    """A Python that the release was built for; ours if it is one."""
    mine = "{}.{}".format(*sys.version_info[:2])
    if mine in release["pythons"]:
        return sys.executable or os.path.realpath("/proc/self/exe")
    for version in release["pythons"]:
        found = shutil.which(f"python{version}")
        if found:
            return found
    built = ", ".join(release["pythons"])
    raise Unfit(
        f"built for Python {built}, this box has {mine}: build with `opendcu component build --python {mine}`"
    )


def run(work: Path, component: str, artifacts: Path, more: list[str]) -> NoReturn:
    """Become the gateway; returns only by raising."""
    target, instead_of = choose(work, artifacts, _boot_id())
    release = json.loads((target / STAMP).read_text(encoding="utf-8"))
    python = python_for(release)
    sites = [
        target / f"site-{version}" for version in release["pythons"] if python_is(python, version)
    ]
    environment = dict(os.environ)
    environment.update(
        {
            "PYTHONPATH": os.pathsep.join(str(site) for site in (*sites, target / "site")),
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
            RELEASE: target.name,
            RELEASES: str(target.parent),
            "OPENDCU_COMPONENT": component,
        }
    )
    environment.pop("PYTHONHOME", None)
    environment.pop(FALLBACK, None)
    if instead_of:
        environment[FALLBACK] = instead_of
        _say(f"{instead_of} never got ready; {target.name} runs instead")
    arguments = [
        python,
        "-P",
        "-m",
        "edge_core.cli.main",
        "component",
        "run",
        "--work",
        str(work),
        *more,
    ]
    os.execve(python, arguments, environment)  # noqa: S606


def python_is(python: str, version: str) -> bool:
    """Is what `python_for` found of that version?"""
    mine = "{}.{}".format(*sys.version_info[:2])
    return version == (mine if python == python_for({"pythons": [mine]}) else Path(python).name[6:])


# Small ----------------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    sys.stderr.write(f"opendcu: {text}\n")
    sys.stderr.flush()


def _read_state(releases: Path) -> dict[str, Any]:
    try:
        state = json.loads((releases / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write(file: Path, value: dict[str, Any]) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as f:
        json.dump(value, f)
        f.flush()
        os.fsync(f.fileno())
    fresh.replace(file)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """Entry point; an exit code when it did not become something else."""
    artifacts = Path(__file__).resolve().parent
    try:
        if len(arguments) == 2 and arguments[0] == "install":
            target = install(Path(arguments[1]).resolve(), artifacts)
            sys.stdout.write(
                f"opendcu: {target.name} is installed\n"
            )  # classic takes stderr for warnings
            return 0
        if len(arguments) >= 3 and arguments[0] == "run":
            run(Path(arguments[1]).resolve(), arguments[2], artifacts, arguments[3:])
        _say("usage: launch.py install WORK | run WORK COMPONENT [OPTION ...]")
    except Unfit as error:
        _say(str(error))
    except OSError as error:
        _say(f"{error.filename or ''}: {error.strerror}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
