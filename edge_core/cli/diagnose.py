"""`opendcu diagnose`: one bundle for support: what runs, how it is configured, how it fares; and no secret.

Everything in it is text, redacted as logs are; before it is written it is searched for every key of the configuration
in every usual spelling, and refused if one is found. What cannot be had is named in `missing.txt`, never a reason to
fail: a bundle is made when something is broken.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import config_option, json_option
from edge_core.errors import GatewayAbsent, OpenDCUError
from edge_core.health import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_core.config.schema import Config
    from edge_core.domain import Secret

LOG_TAIL = 1 << 20
FILE_LIMIT = 8 << 20
ASKED = ("overview", "meters", "alarms", "journal-status", "metrics", "gaps")
SECRET_LINE = re.compile(
    r"^(\s*(?:password|token|username)\s*=\s*)(?!\"(?:file|env):|\"\")(.*)$", re.MULTILINE
)
PACKAGES = (
    "opendcu", "numpy", "pymodbus", "cryptography", "msgspec", "click", "fastcrc", "pyserial", "uvloop", "paho-mqtt",
    "paho-mqtt", "awsiotsdk", "awscrt", "onnxruntime", "starlette", "uvicorn",
)  # fmt: skip


@click.command()
@config_option
@click.option(
    "--log",
    "log_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The end of this log file too.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The bundle. [default: by gateway and time]",
)
@json_option
def diagnose(
    *, config_file: str, log_files: tuple[Path, ...], out: Path | None, as_json: bool
) -> int:
    """Write one bundle (tar.gz) for a bug report: versions, configuration, meters, gaps, alarms, journal, disk.

    It names meters and addresses, and holds no key, password or reading. Works with and without a running gateway,
    and with a configuration that has mistakes. Read it before you send it: it is all text.
    """
    from edge_core.clock import SystemClock

    bundle = Bundle()
    bundle.add("about.json", about)
    config = _configuration(bundle, config_file)
    if config is not None:
        _gateway(bundle, config)
        bundle.add("data-directory.txt", listing, config.data_dir)
    for path in log_files:
        bundle.add(f"logs/{path.name}", tail, path)
    if leaked := bundle.leaked(_secrets(config)):
        raise OpenDCUError(
            f"the bundle is not written: {', '.join(leaked)} would hold a key; please report this"
        )
    name = config.gateway.id if config is not None else "gateway"
    target = out or Path(f"opendcu-diagnose-{name}-{int(SystemClock().now())}.tar.gz")
    bundle.write(target)
    if as_json:
        click.echo(
            json.dumps(
                {"bundle": str(target), "files": sorted(bundle.files), "missing": bundle.missing}
            )
        )
    else:
        click.echo(
            f"{target}: {len(bundle.files)} files"
            + (f", {len(bundle.missing)} could not be had" if bundle.missing else "")
        )
    return 0


class Bundle:
    """Files by name, redacted; what could not be had, and why."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, make: Callable[..., object], *args: Any) -> None:
        """Add what `make(*args)` gives: text, or something that is written as JSON."""
        try:
            made = make(*args)
        except (OSError, OpenDCUError, ValueError) as error:
            self.missing[name] = logs.redact(f"{type(error).__name__}: {error}")
            return
        text = (
            made
            if isinstance(made, str)
            else json.dumps(made, ensure_ascii=False, indent=1, default=str)
        )
        self.files[name] = "\n".join(map(logs.redact, text[-FILE_LIMIT:].split("\n")))

    def leaked(self, secrets: Iterable[Secret]) -> list[str]:
        """Names of files that hold one of the secrets in a usual spelling."""
        spelled: set[str] = set()
        for secret in secrets:
            octets = secret.reveal()
            if len(octets) >= 6:  # shorter passwords are found in any text
                spelled |= {
                    octets.hex(),
                    base64.b64encode(octets).decode().rstrip("="),
                    repr(octets)[2:-1],
                }
        if not spelled:
            return []
        pattern = re.compile("|".join(map(re.escape, sorted(spelled))), re.IGNORECASE)
        return [name for name, text in self.files.items() if pattern.search(text)]

    def write(self, target: Path) -> None:
        """The files as tar.gz of mode 0600."""
        if self.missing:
            self.files["missing.txt"] = "".join(
                f"{name}: {why}\n" for name, why in self.missing.items()
            )
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        folder = target.name.removesuffix(".tar.gz")
        with (
            os.fdopen(descriptor, "wb") as stream,
            tarfile.open(fileobj=stream, mode="w:gz") as tar,
        ):
            for name, text in sorted(self.files.items()):
                octets = text.encode(errors="replace")
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mode = len(octets), 0o600
                tar.addfile(entry, io.BytesIO(octets))


def about() -> dict[str, Any]:
    """Versions and machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "absent"
    memory = (
        Path("/proc/meminfo").read_text().splitlines()[:3] if Path("/proc/meminfo").exists() else []
    )
    return {
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "memory": memory,
        "environment": sorted(
            name
            for name in os.environ
            if name.startswith(("OPENDCU_", "AWS_GG_", "NOTIFY_", "WATCHDOG_"))
        ),
    }


def listing(folder: Path) -> str:
    """Names, modes and sizes in the data directory, and the room on its disk."""
    lines = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        lines.append(
            f"{status.st_mode:06o} {status.st_size:12} {int(status.st_mtime)} {path.relative_to(folder)}"
        )
    usage = shutil.disk_usage(folder)
    return "\n".join([f"disk: {usage.total} octets, {usage.free} free", *lines]) + "\n"


def tail(path: Path) -> str:
    """The end of a log file."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_TAIL))
        return stream.read().decode(errors="replace")


def _configuration(bundle: Bundle, config_file: str) -> Config | None:
    """Add the configuration's files and what `check` says; None if it cannot be loaded."""
    from edge_core.config.keys import check_keys
    from edge_core.config.load import ConfigErrors, load

    path = Path(config_file)
    bundle.add("config/gateway.toml", masked, path)
    try:
        config = load(path, strict=False)
    except ConfigErrors as refusal:
        bundle.add("check.txt", str, refusal)
        return None
    if config.fleet.file:
        bundle.add("config/meters.csv", tail, Path(config.fleet.file))
    for name in config.models:
        if "/" in name or name.endswith(".toml"):
            bundle.add(f"config/models/{Path(name).name}", tail, path.parent / name)
    mistakes = [*config.warnings, *map(str, check_keys(config))]
    bundle.add("check.txt", "\n".join, mistakes or ["no mistakes"])
    return config


def masked(path: Path) -> str:
    """gateway.toml; passwords and tokens that are values, which they must not be, are masked."""
    return SECRET_LINE.sub(r'\1"***"', path.read_text(errors="replace"))


def _gateway(bundle: Bundle, config: Config) -> None:
    """Add what the running gateway says; without one, what its files say."""
    from edge_core.cli.gaps import ledger_of
    from edge_core.cli.journal import statuses
    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.control import ask

    heard = 0
    for control in DataDirectory(config.data_dir).controls():
        folder = control.stem.replace("control", "gateway")
        try:
            ask(control, {"do": "ping"})
        except GatewayAbsent:
            continue
        except OpenDCUError as error:
            bundle.missing[f"{folder}/"] = str(error)
        else:
            for what in ASKED:
                bundle.add(f"{folder}/{what}.json", ask, control, {"do": what}, 30.0)
        heard += 1
    if not heard:
        bundle.missing["gateway/"] = "no gateway runs on this data directory"
        bundle.add("journal-status.json", statuses, config)
        bundle.add("gaps.json", ledger_of, config, ())


def _secrets(config: Config | None) -> list[Secret]:
    """Every secret that the configuration refers to and that can be had here."""
    from edge_core.config.keys import KeyRing, read_reference

    if config is None:
        return []
    found: list[Secret] = []
    for reference in (config.uplink.password, config.console.token):
        try:
            if (secret := read_reference(reference)) is not None:
                found.append(secret)
        except OpenDCUError:
            continue
    if config.keys.provider in ("file", "sealed", "env"):
        try:
            ring = KeyRing.open(config.keys)
        except OpenDCUError:
            return found
        for meter in config.meters:
            try:
                found += ring.get(meter).secrets()
            except OpenDCUError:
                continue
    return found
