"""A box under a nucleus: the built component, deployed by the recipe's own scripts with an empty environment."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_core.config.keys import parse_file
from edge_core.config.sealing import seal
from edge_core.greengrass.build import Builder
from tests.conftest import eventually_sync
from tests.integration.greengrass.conftest import Nucleus
from tests.system.conftest import Installation

ROOT = Path(__file__).parents[2]
GATEWAY = "io.opendcu.Gateway"
FOUR = (
    "io.opendcu.DlmsReader",
    "io.opendcu.ModbusReader",
    "io.opendcu.Detector",
    "io.opendcu.Uplink",
)
SET = {
    "health.every": "1s",
    "push.listen": "udp://127.0.0.1:0",
    "console.listen": "127.0.0.1:0",
}


def build(tmp: pytest.TempPathFactory, *names: str) -> Path:
    """The local-deployment tree with these components, built once for all workers of a run."""
    base = tmp.getbasetemp()
    out = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "greengrass-build"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in names if not (out / name).exists()]
        if missing:
            Builder(ROOT, out, level=0).build(missing)
        for name in missing:
            (out / name).touch()
    return out / "local"


class Box(Installation):
    """A box under a nucleus: deploys as it does, starts and stops as it does."""

    def __init__(
        self,
        folder: Path,
        nucleus: Nucleus,
        built: Path,
        env: dict[str, str],
        component: str = GATEWAY,
    ) -> None:
        self.nucleus, self.built, self.component = nucleus, built, component
        self.root = folder / "greengrass" / "v2"
        self.work = self.root / "work" / component
        self.work.mkdir(parents=True)
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify_path = str(Path(nucleus.socket).with_name(f"{component[11:]}.notify"))
        self.notified.bind(self.notify_path)
        self.notified.setblocking(False)
        self.version = ""
        self.folder_of_keys = folder / "fleet"
        (folder / "fleet").mkdir(exist_ok=True)
        if not (folder / "fleet/lines.toml").exists():
            (folder / "fleet/lines.toml").write_text("")
            (folder / "fleet/meters.csv").write_text("id,line,model,address\n")
            (folder / "fleet/keys.toml").touch(0o600)
        if not (folder / "fleet/keys.sealed").exists():
            self._seal()
        super().__init__(folder, "", {k: v for k, v in env.items() if k == "OPENDCU_CLOCK"})
        self.log = folder / f"{component}.log"
        nucleus.order("configure", value=self.settings())

    def _seal(self) -> None:
        """Keys are sealed, as components expect them; no key is left in the clear."""
        fleet = self.folder_of_keys
        kek = os.urandom(32)
        credential = fleet / "opendcu-kek"
        for file, octets in (
            (fleet / "keys.sealed", seal(parse_file(fleet / "keys.toml"), kek)),
            (credential, kek),
        ):
            file.touch(0o600)
            file.write_bytes(octets)
        if self.nucleus.kind == "classic":  # its Secret Manager keeps it; on lite systemd does
            self.nucleus.order("secret", id="kek", value={"secretString": kek.hex()})
            credential.unlink()
        (fleet / "keys.toml").unlink()

    def settings(self, **more: Any) -> dict[str, Any]:
        """A component configuration with what this box has, and more."""
        mine: dict[str, Any] = {"ConfigFile": str(self.config), "Set": dict(SET)}
        mine["KeysFile"] = str(self.folder_of_keys / "keys.sealed")
        if self.nucleus.kind == "classic":
            mine["KeysKek"] = "secret:kek"
        mine["Set"] |= more.pop("Set", {})
        return mine | more

    @property
    def artifacts(self) -> Path:
        return self.root / "packages" / "artifacts" / self.component / self.version

    def variables(self, script: str) -> str:
        slash = "/" if self.nucleus.kind == "lite" else ""
        out = script.replace("{artifacts:path}", f"{self.artifacts}{slash}").replace(
            "{work:path}", f"{self.work}{slash}"
        )
        assert "{" not in out
        return out

    def environment(self) -> dict[str, str]:
        base = {"OPENDCU_PYTHON": os.path.realpath(sys.executable)}  # the python3 of no venv
        if self.nucleus.kind == "lite":
            base["NOTIFY_SOCKET"] = self.notify_path
            base["CREDENTIALS_DIRECTORY"] = str(self.folder_of_keys)
        return base | self.nucleus.environment | self.env

    def deploy(self, version: str = "0.1.0", change: Callable[[Path], None] | None = None) -> None:
        """Download, install, remember the scripts; a version of our own is the built one with a change."""
        (recipe,) = (self.built / "recipes").glob(f"{self.component}-*.yaml")
        self.lifecycle = yaml.safe_load(recipe.read_text())["Manifests"][0]["Lifecycle"]
        self.version = version
        shutil.copytree(self.built / "artifacts" / self.component / "0.1.0", self.artifacts)
        (file,) = self.artifacts.glob("release-*.json")
        release = json.loads(file.read_text())
        if change is not None:
            change(self.artifacts / release["archive"])
        digest = sha256((self.artifacts / release["archive"]).read_bytes()).hexdigest()
        release |= {"name": f"{version}-{digest[:8]}", "version": version, "sha256": digest}
        file.write_text(json.dumps(release))
        done = subprocess.run(
            ["/bin/sh", "-c", self.variables(self.lifecycle["install"]["Script"])],
            env=self.environment(), cwd=self.work, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        self.heard()
        states = len(self.nucleus.order("status")["states"]) if wait else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", self.variables(self.lifecycle["startup"]["Script"])],
                env=self.environment(), cwd=self.work, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        if wait:
            if self.nucleus.kind == "lite":
                eventually_sync(lambda: "READY=1" in self.heard() or process.poll() is not None, 20)
            else:
                eventually_sync(
                    lambda: (
                        len(self.nucleus.order("status")["states"]) > states
                        or process.poll() is not None
                    ),
                    20,
                )
            assert process.poll() is None, self.log.read_text()[-3000:]
            assert (
                self.nucleus.kind == "lite"
                or self.nucleus.order("status")["states"][-1] == "RUNNING"
            )
        return process

    def heard(self) -> str:
        """What the process told the service manager since it was asked last."""
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(self.notified.recv(1_000).decode())
        return "\n".join(told)

    def published(self, kind: str) -> list[dict[str, Any]]:
        messages = self.nucleus.order("status")["published"]
        return [json.loads(base64.b64decode(p)) for topic, p in messages if f"/{kind}" in topic]

    def health(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [h for h in self.published("health")[-3:] if condition(h)]
            return bool(found)

        eventually_sync(look, 20)
        return found[-1]

    def close(self) -> None:
        super().close()
        self.notified.close()
        Path(self.notify_path).unlink()
