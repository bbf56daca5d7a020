"""The built component as a nucleus runs it: the recipe's own scripts, an empty environment, a bare python3."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mosquitto, eventually_sync
from tests.integration.greengrass.conftest import Nucleus
from tests.integration.uplink.conftest import Cloud
from tests.system.boxes import GATEWAY, SET, Box, build
from tests.system.conftest import Fleet

NOTHING: dict[str, Any] = {"polling": {}}
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local-deployment tree of the gateway component."""
    return build(tmp_path_factory, GATEWAY)


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


def test_sigterm_at_any_point_of_a_run_is_safe_within_four_seconds(
    box: Callable[..., Box], fleet: Fleet, mosquitto: Mosquitto, cloud: Cloud, civil: dict[str, str],
    settled: Callable[..., Any],
) -> None:  # fmt: skip
    box = box("lite", mosquitto.port, civil)
    box.deploy()
    # a session is open most of the time; each start ends after so many visits of its run
    fleet.order("fault", meter=0, what="slow", **{"for": 600.0})
    for visits in range(6) if os.environ.get("OPENDCU_LONG") else (0, 2):
        box.start()
        eventually_sync(
            lambda v=visits: (box.ask("overview") or NOTHING)["polling"].get("visits", 0) >= v, 20
        )
        assert box.terminate() == 0  # which is bounded
    fleet.order("fault", meter=0, what="slow", **{"for": 0.0})
    box.start()
    truth = settled(box, 60.0)
    assert len(truth) > 4_000
    assert box.terminate() == 0


def test_an_alarm_that_is_not_out_puts_an_update_off(
    box: Callable[..., Box], fleet: Fleet, civil: dict[str, str]
) -> None:
    box = box("classic", env=civil)
    listen = {"push.listen": f"udp://127.0.0.1:{box.push_port}"}
    box.nucleus.order("configure", value=box.settings(Set=listen))
    box.deploy()
    box.start()
    fleet.order("freeze")
    box.nucleus.fail("PublishToIoTCore", "ServiceError", times=1_000_000)
    fleet.order("gasp", meter=0, to=f"udp://127.0.0.1:{box.push_port}", how="genuine")
    eventually_sync(lambda: box.ask("journal-status")["alarms_waiting"] > 0, 20)
    asked = 0

    def why() -> str:
        """What a notice is answered with, when every meter that is due was read."""
        nonlocal asked
        box.ask("sweep", timeout_s=20)  # until no midnight run is open any more
        asked += 1
        box.nucleus.order("notice", deployment=f"d{asked}")
        box.nucleus.until(lambda s: len(s["deferrals"]) == asked, 20)
        answer = box.nucleus.order("status")["deferrals"][-1]
        return answer["message"] if 0 < answer["recheckAfterMs"] <= 60_000 else ""

    eventually_sync(lambda: "an alarm is not out" in why(), 60)
    assert box.terminate() == 0


def test_keys_that_the_cloud_has_come_when_it_answers(
    box: Callable[..., Box], fleet: Fleet, mosquitto: Mosquitto, cloud: Cloud, civil: dict[str, str],
) -> None:  # fmt: skip
    box = box("classic", mosquitto.port, civil)
    box.deploy()
    box.nucleus.order("hang", operations=["GetSecretValue"])
    process = box.start()  # ready, and it waits for nobody
    eventually_sync(lambda: box.says("no ciphered meter is read now", "secret kek"), 20)
    box.nucleus.order("hang", operations=[])
    eventually_sync(lambda: any(t == "reads/interval" for t, _ in list(cloud.documents)), 40)
    assert process.poll() is None
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
    assert box.ask("ping")["gateway"] == "dcu-0001"
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
