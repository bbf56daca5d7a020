"""The built component as a nucleus runs it: the recipe's own scripts, an empty environment, a bare python3."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_core.config.keys import parse_file
from edge_core.config.sealing import seal
from edge_core.greengrass.build import Builder
from tests.conftest import Mosquitto, eventually_sync
from tests.integration.greengrass.conftest import Nucleus
from tests.integration.uplink.conftest import Cloud
from tests.system.conftest import Fleet, Installation

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
GATEWAY = "io.opendcu.Gateway"
SET = {"health.every": "1s", "push.listen": "udp://127.0.0.1:0"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local-deployment tree of the gateway component."""
    out = tmp_path_factory.mktemp("greengrass-build")
    Builder(ROOT, out, level=1).build(["Gateway"])
    return out / "local"


class Box(Installation):
    """A box under a nucleus: deploys as it does, starts and stops as it does."""

    def __init__(self, folder: Path, nucleus: Nucleus, built: Path, env: dict[str, str]) -> None:
        self.nucleus, self.built = nucleus, built
        self.root = folder / "greengrass" / "v2"
        self.work = self.root / "work" / GATEWAY
        self.work.mkdir(parents=True)
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify_path = str(Path(nucleus.socket).with_name("notify.sock"))
        self.notified.bind(self.notify_path)
        self.notified.setblocking(False)
        self.version = ""
        self.folder_of_keys = folder / "fleet"
        (folder / "fleet").mkdir(exist_ok=True)
        if not (folder / "fleet/lines.toml").exists():
            (folder / "fleet/lines.toml").write_text("")
            (folder / "fleet/meters.csv").write_text("id,line,model,address\n")
            (folder / "fleet/keys.toml").touch(0o600)
        self._seal()
        super().__init__(folder, "", {k: v for k, v in env.items() if k == "OPENDCU_CLOCK"})
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
        return self.root / "packages" / "artifacts" / GATEWAY / self.version

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
        (recipe,) = (self.built / "recipes").glob(f"{GATEWAY}-*.yaml")
        self.lifecycle = yaml.safe_load(recipe.read_text())["Manifests"][0]["Lifecycle"]
        self.version = version
        shutil.copytree(self.built / "artifacts" / GATEWAY / "0.1.0", self.artifacts)
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


@pytest.fixture
def box(tmp_path: Path, built: Path) -> Iterator[Callable[..., Box]]:
    """Makes boxes; the path of a nucleus' socket is short, wherever pytest works."""
    made: list[Box] = []
    with tempfile.TemporaryDirectory(prefix="gg") as folder:

        def make(kind: str = "lite", broker: int = 0, env: dict[str, str] | None = None) -> Box:
            made.append(Box(tmp_path, Nucleus(Path(folder), kind, broker), built, env or {}))
            return made[-1]

        yield make
        for one in made:
            one.close()
            one.nucleus.kill()


@pytest.mark.parametrize("kind", ["lite", "classic"])
def test_the_first_deployment_of_an_unconfigured_box(box: Callable[..., Box], kind: str) -> None:
    box = box(kind)
    box.nucleus.order("configure", value={"Set": SET})
    box.deploy()
    box.start()
    health = box.health(lambda h: "publish" in h["greengrass"]["capabilities"])
    assert health["dcu"] == "dcu-0001"
    assert health["nucleus"] == f"{kind} {'2.6.0' if kind == 'lite' else '2.17.0'}"
    assert health["greengrass"]["component"] == GATEWAY
    assert health["greengrass"]["release"].startswith("0.1.0-")
    assert health["greengrass"]["fallback"] == ""
    assert health["greengrass"]["components"] == {GATEWAY: health["greengrass"]["release"]}
    assert 0 <= health["sent"] - health["greengrass"]["deployment"]["at"] < 600
    expected = {"configuration", "configuration-updates", "publish", "subscribe"}
    if kind == "classic":
        expected |= {"component-updates", "state"}
    assert set(health["greengrass"]["capabilities"]) == expected
    assert (box.root / "work" / "io.opendcu.data" / "journal.db").exists()
    assert not list(box.artifacts.rglob("*.pyc"))  # artifacts are read-only on a box
    assert box.terminate() == 0


@pytest.mark.parametrize("kind", ["lite", "classic"])
def test_the_main_job_through_update_rollback_kill_and_a_dropped_connection(
    box: Callable[..., Box], kind: str, fleet: Fleet, mosquitto: Mosquitto, cloud: Cloud, civil: dict[str, str],
    settled: Callable[..., Any],
) -> None:  # fmt: skip
    box = box(kind, mosquitto.port, civil)
    cloud.max_bytes = 4_800
    box.deploy()
    box.start()
    box.deploy("0.1.1")
    assert box.terminate() == 0  # in the middle of the first reads
    box.start()
    eventually_sync(lambda: len(cloud.arrived) > 2, 20)
    box.nucleus.order("drop")
    box.kill()
    box.version = "0.1.0"  # the nucleus goes back
    box.start()
    truth = settled(box, 60.0)
    assert len(truth) > 4_000
    assert len({epoch for _, epoch, _ in cloud.arrived}) == 1
    assert box.terminate() == 0


def broken(archive: Path) -> None:
    """A release that ends before it is ready."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name in (
            "site/edge_core/__init__.py",
            "site/edge_core/cli/__init__.py",
            "site/edge_core/cli/main.py",
        ):
            info = tarfile.TarInfo(name)
            text = b"raise SystemExit(3)\n" if name.endswith("main.py") else b""
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    archive.write_bytes(raw.getvalue())


def test_a_broken_release_is_followed_by_the_one_before_and_told(box: Callable[..., Box]) -> None:
    box = box("lite")
    box.deploy()
    box.start()
    assert box.terminate() == 0
    box.deploy("0.2.0", broken)
    for _ in range(2):  # the third start within an hour is the last that a nucleus gives
        assert box.start(wait=False).wait(20) == 3
    box.start()
    health = box.health(lambda h: h["greengrass"]["fallback"])
    assert health["greengrass"]["fallback"].startswith("0.2.0-")
    assert health["greengrass"]["release"].startswith("0.1.0-")
    eventually_sync(lambda: box.published("alarms/gateway"), 10)
    (alarm,) = box.published("alarms/gateway")[0]["alarms"]
    assert alarm["code"] == "release-fallback"
    assert alarm["detail"]["failed"].startswith("0.2.0-")
    assert box.terminate() == 0


def test_settings_change_while_it_runs_and_wrong_ones_change_nothing(
    box: Callable[..., Box],
) -> None:
    box = box("classic")
    box.deploy()
    process = box.start()
    box.health(lambda h: True)
    change = {"Set": {"uplink.max_in_flight": 2.0}}
    box.nucleus.order("configure", value=box.settings(**change, GatewayId="no such id!"))
    eventually_sync(lambda: box.says("reload", "no such id!"), 10)
    box.nucleus.order("configure", value=box.settings(**change, GatewayId="dcu-0002"))
    eventually_sync(lambda: any(h["dcu"] == "dcu-0002" for h in box.published("health")), 15)
    assert process.poll() is None
    assert box.terminate() == 0
    assert box.nucleus.order("status")["states"] == ["RUNNING"]


def test_every_update_notice_is_answered_and_put_off_while_a_midnight_run_is_open(
    box: Callable[..., Box], fleet: Fleet, civil: dict[str, str]
) -> None:
    box = box("classic", env=civil)
    for meter in range(6):
        fleet.order("fault", meter=meter, what="slow", **{"for": 60.0})
    box.deploy()
    box.start()
    box.nucleus.order("notice", deployment="d1")
    box.nucleus.until(lambda s: len(s["deferrals"]) == 1)
    (answer,) = box.nucleus.order("status")["deferrals"]
    assert answer["deploymentId"] == "d1"
    assert 0 < answer["recheckAfterMs"] <= 60_000
    assert "midnight" in answer["message"]
    process = box.processes[-1]
    process.send_signal(signal.SIGSTOP)  # nothing can answer now, and nothing is lost by it
    box.nucleus.order("notice", deployment="d2")
    process.send_signal(signal.SIGCONT)
    box.nucleus.until(lambda s: len(s["deferrals"]) == 2)
    box.nucleus.order("updated", deployment="d1")
    box.health(lambda h: h["greengrass"]["deployment"]["id"] == "d1")
    assert box.terminate() == 0


def test_an_idle_box_lets_an_update_go_at_once(box: Callable[..., Box]) -> None:
    box = box("classic")
    box.deploy()
    box.start()
    began = time.monotonic()
    box.nucleus.order("notice", deployment="d1")
    box.nucleus.until(lambda s: s["deferrals"])
    assert time.monotonic() - began < 3
    assert box.nucleus.order("status")["deferrals"][0].get("recheckAfterMs", 0) == 0
    assert box.terminate() == 0


def test_a_nucleus_that_refuses_us_ends_the_process_once_and_acquisition_goes_on(
    box: Callable[..., Box],
) -> None:
    box = box("lite")
    box.deploy()
    process = box.start()
    box.health(lambda h: True)
    box.nucleus.order("accept", token=False, name=False)
    box.nucleus.order("drop")
    assert process.wait(20) == 1
    again = (
        box.start()
    )  # still refused: a new start did not help, so it stays, with the settings of before
    assert box.ask("ping") == {"gateway": "dcu-0001", "version": "0.1.0"}
    eventually_sync(lambda: box.nucleus.count("refused") >= 6, 15)
    assert again.poll() is None
    box.nucleus.order("accept", token=True, name=True)
    before = len(box.published("health"))
    eventually_sync(lambda: len(box.published("health")) > before, 60)
    assert box.terminate() == 0


def test_lite_forgets_our_token_and_we_come_back_by_name(box: Callable[..., Box]) -> None:
    box = box("lite")
    box.deploy()
    process = box.start()
    box.health(lambda h: True)
    box.nucleus.order("accept", token=False, name=True)
    box.nucleus.order("drop")
    box.health(lambda h: h["greengrass"]["connects"] >= 2)
    assert process.poll() is None
    assert box.nucleus.order("status")["connections"] == ["name"]
    assert box.terminate() == 0


def test_the_nucleus_is_away_at_the_start(box: Callable[..., Box]) -> None:
    box = box("lite")
    box.deploy()
    box.start()
    assert box.terminate() == 0
    box.nucleus.kill()
    box.start(wait=False)
    eventually_sync(lambda: "READY=1" in box.heard(), 20)
    assert box.ask("ping")["gateway"] == "dcu-0001"
    box.nucleus.start()
    box.health(lambda h: True)
    assert box.terminate() == 0
