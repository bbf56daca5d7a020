"""Jobs, shadow, Device Defender and renewal of a running gateway: against the local cloud, and a broker with a peer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

pytest.importorskip("ministack")

from edge_core.clock import SystemClock
from edge_core.transports.control import ask
from edge_core.uplink.certificates import Certificates
from simulators.cloud import LocalCloud
from tests.conftest import Mosquitto, eventually_sync, free_port
from tests.unit.uplink.test_certificates import signed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
OPENDCU = Path(sys.executable).with_name("opendcu")
SCHEMA = "opendcu.configuration/1"
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with LocalCloud(folder, certificate_life_s=3 * DAY_S) as running:
        yield running


class Box:
    """`opendcu run` on one folder."""

    def __init__(self, folder: Path, name: str, uplink: str, more: str = "") -> None:
        self.folder, self.name = folder, name
        self.config, self.log = folder / "gateway.toml", folder / "log"
        self.push = free_port(socket.SOCK_DGRAM)
        self.config.write_text(
            f'[gateway]\nid = "{name}"\ndata_dir = "data"\nroles = ["push", "uplink"]\n'
            f'[push]\nlisten = ["udp://127.0.0.1:{self.push}"]\n[uplink]\n{uplink}\n{more}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [OPENDCU, "run", "-c", self.config], env=os.environ | env, stdout=log, stderr=log
            )
        eventually_sync(self.connected, 20)

    def ask(self, do: str, **what: Any) -> Any:
        try:
            return ask(self.folder / "data/control.sock", {"do": do, **what}, 20.0)
        except Exception:
            return None

    def connected(self) -> bool:
        overview = self.ask("overview")
        return bool(overview) and overview["uplink"]["state"] == "connected"

    def says(self, *words: str) -> bool:
        return any(all(w in line for w in words) for line in self.log.read_text().splitlines())

    def kept(self) -> Any:
        file = self.folder / "data/remote.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(10) == 0, self.log.read_text()[-2000:]
            self.process = None


@pytest.fixture
def boxes() -> Iterator[Callable[..., Box]]:
    made: list[Box] = []

    def make(*args: Any, **kwargs: Any) -> Box:
        made.append(Box(*args, **kwargs))
        return made[-1]

    yield make
    for box in made:
        if box.process is not None:
            box.process.kill()
            box.process.wait()


def in_cloud(cloud: LocalCloud, name: str, by: str) -> str:
    """`[uplink]` of a gateway with a certificate of its own."""
    return cloud.add_gateway(name).toml().removeprefix("[uplink]\n") + f'configured_by = "{by}"\n'


def job(cloud: LocalCloud, name: str, number: str, document: Any) -> Callable[[], dict[str, Any]]:
    iot = cloud.client("iot")
    arn = iot.describe_thing(thingName=name)["thingArn"]
    iot.create_job(jobId=number, targets=[arn], document=json.dumps(document))
    return lambda: iot.describe_job_execution(jobId=number, thingName=name)["execution"]


def test_a_job_configures_the_gateway_and_a_bad_one_is_rejected_with_its_reasons(
    cloud: LocalCloud, tmp_path: Path, boxes: Callable[..., Box]
) -> None:
    name = "dcu-job"
    box = boxes(tmp_path, name, in_cloud(cloud, name, "job"))
    first = job(cloud, name, "while-away", {"schema": SCHEMA, "set": {"alarms.batch_ms": 250}})
    box.start()
    eventually_sync(lambda: first()["status"] == "SUCCEEDED", 20)
    eventually_sync(lambda: box.says("configuration reloaded", "alarms"), 10)
    assert box.kept() == {"alarms.batch_ms": 250}
    eventually_sync(box.connected, 20)
    wanted = {"alarms.batch": 1, "uplink.url": "mqtt://elsewhere:1883", "commands.allow": "relay"}
    bad = job(cloud, name, "bad", {"schema": SCHEMA, "set": wanted})
    eventually_sync(lambda: bad()["status"] == "REJECTED", 20)
    reason = bad()["statusDetails"]["detailsMap"]["reason"]
    assert 'alarms.batch: unknown (did you mean "alarms.batch_ms"?)' in reason
    assert "uplink.url: may not be set from the cloud" in reason
    assert "commands.allow: may not be set from the cloud" in reason
    worse = job(cloud, name, "worse", {"schema": SCHEMA, "set": {"alarms.batch_ms": -1}})
    eventually_sync(lambda: worse()["status"] == "REJECTED", 20)
    assert box.kept() == {"alarms.batch_ms": 250}  # the old one stays
    box.stop()
    box.start()  # and holds at the next start
    last = job(cloud, name, "back", {"schema": SCHEMA, "set": {}})
    eventually_sync(lambda: last()["status"] == "SUCCEEDED", 20)
    assert box.kept() == {}
    eventually_sync(box.connected, 20)
    box.stop()


def test_a_shadow_configures_the_gateway_and_tells_what_is_in_use(
    cloud: LocalCloud, tmp_path: Path, boxes: Callable[..., Box]
) -> None:
    name = "dcu-shadow"
    box = boxes(tmp_path, name, in_cloud(cloud, name, "shadow"))
    data = cloud.client("iot-data")

    def desire(wanted: Any) -> None:
        state = {"state": {"desired": {"set": wanted}}}
        data.update_thing_shadow(thingName=name, shadowName="opendcu", payload=json.dumps(state))

    def reported() -> Any:
        try:
            payload = data.get_thing_shadow(thingName=name, shadowName="opendcu")["payload"].read()
        except data.exceptions.ResourceNotFoundException:
            return {}
        return json.loads(payload)["state"].get("reported", {})

    box.start()
    eventually_sync(lambda: "set" in reported() or reported() == {}, 10)
    desire({"logs.level": "debug", "health.every": "2min"})
    eventually_sync(
        lambda: reported().get("set") == {"logs.level": "debug", "health.every": "2min"}, 20
    )
    eventually_sync(lambda: box.says("configuration reloaded", "health"), 10)
    eventually_sync(box.connected, 20)
    desire({"logs.level": "loud", "health.every": None})
    eventually_sync(lambda: reported().get("refused"), 20)
    assert "level" in reported()["refused"]["reason"]
    assert reported()["set"] == {"logs.level": "debug", "health.every": "2min"}
    assert box.kept() == {"logs.level": "debug", "health.every": "2min"}
    desire({"logs.level": "info"})
    eventually_sync(lambda: reported().get("set") == {"logs.level": "info"}, 20)
    assert not reported().get("refused")
    eventually_sync(lambda: box.connected(), 20)
    box.stop()


class Aws:
    """Device Defender's side, on a plain broker."""

    def __init__(self, port: int, answer: str) -> None:
        self.reports: list[dict[str, Any]] = []
        self.answer = answer
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="aws")
        self.client.on_message = self._heard
        self.client.on_connect = lambda c, *_: c.subscribe("$aws/things/+/defender/metrics/json")
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _heard(self, _client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        report = json.loads(message.payload)
        self.reports.append(report)
        body = {"reportId": report["header"]["report_id"], "errorCode": "InvalidPayload"}
        self.client.publish(f"{message.topic}/{self.answer}", json.dumps(body))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_device_defender_gets_depth_failures_and_strangers(
    tmp_path: Path, boxes: Callable[..., Box], mosquitto: Mosquitto
) -> None:
    aws = Aws(mosquitto.port, "rejected")
    uplink = f'url = "{mosquitto.url}"\ndefender_every = "5min"'
    box = boxes(tmp_path, "dcu-0001", uplink)
    now = int(SystemClock().now())
    box.start(OPENDCU_CLOCK=f"{now}:{now}:240")  # five minutes of civil time pass in 1.25 s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for counter in range(3):  # general-glo-ciphering under a title that no meter of ours has
            apdu = b"\xdb\x08STRANGER" + bytes([30, 0x30, 0, 0, 0, counter]) + bytes(25)
            wrapper = b"\0\x01\0\x01\0\x01" + len(apdu).to_bytes(2, "big")
            stranger.sendto(wrapper + apdu, ("127.0.0.1", box.push))
    eventually_sync(lambda: box.ask("overview")["pushes"].get("unknown-sender", 0) >= 1, 10)
    strangers = box.ask("overview")["pushes"]["unknown-sender"]

    def counted(name: str) -> int:
        return sum(r["custom_metrics"][f"opendcu_{name}"][0]["number"] for r in list(aws.reports))

    eventually_sync(lambda: counted("unknown_senders") == strangers, 15)
    seen = len(aws.reports)
    eventually_sync(lambda: len(aws.reports) > seen, 15)
    assert counted("unknown_senders") == strangers  # each is told once
    assert aws.reports[-1]["header"]["version"] == "1.0"
    assert aws.reports[-1]["custom_metrics"]["opendcu_journal_depth"][0]["number"] >= 0
    numbers = [report["header"]["report_id"] for report in aws.reports]
    assert numbers == sorted(set(numbers))
    eventually_sync(lambda: box.says("device defender", "InvalidPayload"), 10)
    assert box.log.read_text().count("InvalidPayload") >= 1
    box.stop()
    aws.close()


def provisioned(cloud: LocalCloud, folder: Path, name: str, boxes: Callable[..., Box]) -> Box:
    claim = cloud.make_claim(f"claim-{name}")
    cloud.expect(name)
    uplink = (
        f'kind = "aws"\nurl = "{claim.url}"\nca_file = "{claim.ca_file}"\n'
        'cert_file = "pki/gateway.crt"\nkey_file = "pki/gateway.key"'
    )
    box = boxes(folder, name, uplink)
    done = subprocess.run(
        [
            OPENDCU, "provision", "-c", box.config, "--claim-cert", claim.cert_file, "--claim-key", claim.key_file,
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return box


def store(box: Box) -> Certificates:
    return Certificates(box.folder / "pki/gateway.crt", box.folder / "pki/gateway.key")


def test_a_running_gateway_renews_at_two_thirds_and_goes_on_with_the_new_certificate(
    cloud: LocalCloud, tmp_path: Path, boxes: Callable[..., Box]
) -> None:
    box = provisioned(cloud, tmp_path, "dcu-renews", boxes)
    certificates = store(box)
    first = certificates.life()
    assert first is not None
    box.start()
    assert certificates.life() == first  # its life has hardly begun
    box.stop()
    now = int(SystemClock().now())
    box.start(OPENDCU_CLOCK=f"{now}:{int(first.renew_at) + 60}:1")

    def renewed() -> bool:
        life = certificates.life()
        return life is not None and life.serial != first.serial and certificates.next is None

    eventually_sync(renewed, 20)
    eventually_sync(box.connected, 20)
    held = cloud.client("iot").list_thing_principals(thingName="dcu-renews")["principals"]
    assert len(held) == 2
    done = subprocess.run(
        [OPENDCU, "provision", "-c", box.config, "--renew", "--json"], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert "by the running gateway" in done.stdout, done.stderr
    box.stop()


def test_a_new_certificate_that_is_not_taken_never_cuts_the_way(
    cloud: LocalCloud, tmp_path: Path, boxes: Callable[..., Box]
) -> None:
    box = provisioned(cloud, tmp_path, "dcu-keeps", boxes)
    certificates = store(box)
    before = certificates.life()
    certificates.stage(signed(certificates.request("dcu-keeps")))  # of a CA that nobody knows
    box.start()
    assert certificates.life() == before
    assert certificates.next is not None
    box.stop()
