"""The installed gateway against a simulated fleet and a cloud that acks: what arrives, what is told, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess

import pytest

from edge_core.domain import alarm_id
from tests.conftest import eventually_sync
from tests.system.conftest import OPENDCU, Fleet, Installation

LONG = bool(os.environ.get("OPENDCU_LONG"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(900 if LONG else 90)]


def test_every_reading_arrives_once_and_is_the_meters(gateway, settled):
    gateway.start()
    truth = settled(gateway)
    assert len(truth) > 4_000
    assert gateway.terminate() == 0


def test_killed_again_and_again_nothing_is_lost_and_no_counter_repeats(
    gateway, fleet, cloud, settled
):
    for round_ in range(100 if LONG else 6):
        gateway.start()
        before = len(cloud.arrived)
        if round_ % 2:
            eventually_sync(lambda n=before: len(cloud.arrived) > n or gateway.ask("ping"), 10)
        gateway.kill()
    gateway.start()
    settled(gateway)
    assert {epoch for _, epoch, _ in cloud.arrived} == {
        cloud.arrived[0][1]
    }  # a kill is no new epoch
    assert gateway.terminate() == 0


def test_sigterm_in_the_middle_of_a_read_is_safe_within_four_seconds(gateway, fleet, settled):
    for meter in range(4):
        fleet.order("fault", meter=meter, what="slow", **{"for": 6.0})
    gateway.start()
    assert gateway.terminate() == 0
    gateway.start()
    settled(gateway)


def test_the_broker_is_away_at_the_start(gateway, mosquitto, cloud, settled):
    mosquitto.kill()
    process = gateway.start()
    eventually_sync(lambda: gateway.says("not connected", "127.0.0.1"), 10)
    assert process.poll() is None
    mosquitto.start()
    settled(gateway)


def test_a_second_gateway_on_the_data_directory_is_refused_and_the_first_goes_on(gateway):
    first = gateway.start()
    second = subprocess.run(
        [OPENDCU, "run", "-c", gateway.config],
        env=gateway.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert str(first.pid) in second.stderr
    assert "data" in second.stderr
    assert "Traceback" not in second.stderr
    assert gateway.ask("ping")


def test_a_key_file_that_others_may_read_is_refused(gateway, tmp_path):
    (tmp_path / "fleet/keys.toml").chmod(0o644)
    done = subprocess.run(
        [OPENDCU, "run", "-c", gateway.config],
        env=gateway.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert "keys.toml" in done.stderr
    assert "chmod 600" in done.stderr


def test_a_fleet_of_modbus_meters_needs_no_key_file(tmp_path, mosquitto, cloud, civil):
    spec = '[fleet]\nseed = 3\n\n[[modbus]]\ncount = 2\nmodel = "eastron-sdm630"\nline = "bus-1"\nid = "MB1"\n'
    fleet = Fleet(tmp_path, spec, civil)
    gateway = Installation(tmp_path, mosquitto.url, civil)
    try:
        (tmp_path / "fleet/keys.toml").unlink()
        gateway.start()
        samples = eventually_sync(lambda: len(cloud.cells) >= 4 and dict(cloud.cells), 30)
        assert {identity[0] for identity, _ in samples} == {"MB1", "MB2"}
        assert gateway.terminate() == 0
    finally:
        gateway.close()
        fleet.close()


def test_a_configuration_with_mistakes_does_not_start_and_names_them_all(gateway):
    text = gateway.config.read_text()
    gateway.config.write_text(
        text.replace('"every 1h"', '"hourly"').replace(
            'timezone = "Asia/Kolkata"', 'timezone = "Asia/Kolkatta"'
        )
        + '\n[[meters]]\nid = "X1"\nline = "feeder-9"\nmodel = "is15959-3ph"\naddress = "127.0.0.1:1"\n'
    )
    done = subprocess.run(
        [OPENDCU, "run", "-c", gateway.config],
        env=gateway.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert "Kolkatta" in done.stderr
    assert "feeder-9" in done.stderr


def test_an_unknown_key_does_not_stop_the_start_but_is_told(gateway, cloud):
    gateway.config.write_text(
        gateway.config.read_text().replace("[push]", "[journal]\nnext_release = 1\n\n[push]")
    )
    gateway.start()
    told = eventually_sync(
        lambda: [
            a
            for _, d in list(cloud.documents)
            for a in d.get("alarms", [])
            if a["code"] == "config-unknown-key"
        ],
        15,
    )
    assert "next_release" in json.dumps(told)


def test_a_wrong_key_is_named_once_and_harms_nobody_else(gateway, fleet, cloud, tmp_path):
    keys = tmp_path / "fleet/keys.toml"
    text = keys.read_text()
    head, tail = text.split("[GP1000002]")
    before, _, rest = tail.partition('guek = "')
    keys.write_text(f'{head}[GP1000002]{before}guek = "{"0" * 32}{rest[32:]}')
    gateway.start()
    eventually_sync(lambda: gateway.says("GP1000002", "feeder-1", "AARQ"), 20)
    fleet.order("freeze")
    others = {k: v for k, v in fleet.truth().items() if k[0][0] != "GP1000002"}
    eventually_sync(
        lambda: gateway.ask("sweep", timeout_s=3) and others.keys() <= cloud.cells.keys(), 40
    )
    assert not any(k[0][0] == "GP1000002" for k in cloud.cells)
    row = gateway.ask("meter", meter="GP1000002")
    assert row["failures"] >= 1
    assert "GP1000002" in row["error"]
    assert (
        sum(
            "GP1000002" in line and "meter-lost" in line
            for line in gateway.log.read_text().splitlines()
        )
        == 1
    )


@pytest.mark.parametrize("what", ["garbage", "cut", "silent", "wrong-tag"])
def test_a_meter_that_misbehaves_is_read_when_it_is_well_again(gateway, fleet, settled, what):
    lasts = 12.0 if what == "silent" else 4.0  # longer than a visit waits for its answers
    for meter in (0, 1):
        fleet.order("fault", meter=meter, what=what, **{"for": lasts})
    gateway.start()
    eventually_sync(lambda: any(m["failures"] for m in gateway.ask("meters") or []), 20)
    settled(gateway, 40)


def test_a_full_disk_loses_nothing(small_disk, fleet, gateway, cloud, settled):
    for meter in range(6):  # nothing is read before the disk is full
        fleet.order("fault", meter=meter, what="refuse", **{"for": 4.0})
    process = gateway.start()
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    eventually_sync(lambda: gateway.ask("overview")["polling"].get("refused-by-journal", 0), 40)
    assert process.poll() is None
    assert gateway.says("journal refused")
    filler.unlink()
    settled(gateway, 45)
    assert process.poll() is None


def test_last_gasps_reach_the_broker_and_forgeries_do_not(gateway, fleet, cloud):
    gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
    genuine = {}
    for meter in range(4):
        for how in ("genuine", "duplicate", "retry", "replay", "forged-tag", "forged-key", "plain"):
            report = fleet.order("gasp", meter=meter, to=gateway.push_url, how=how)
            if report["genuine"]:
                genuine[alarm_id(report["meter"], "last-gasp", [], report["at"])] = report
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for octets in (
            b"",
            b"\0",
            b"\0\1" * 40,
            os.urandom(1400),
            b"\x00\x01\x00\x01\x00\x40\xff\xff" + b"\xdb" * 100,
        ):
            s.sendto(octets, ("127.0.0.1", gateway.push_port))
    eventually_sync(lambda: genuine.keys() <= cloud.alarms.keys(), 10)
    pushes = eventually_sync(
        lambda: (p := gateway.ask("overview")["pushes"]).get("malformed", 0) >= 4 and p, 10
    )
    assert pushes["tag-invalid"] >= 8
    assert pushes["replayed"] >= 4
    assert pushes["downgraded"] >= 4
    heard = [a for _, d in cloud.documents for a in d.get("alarms", []) if a["code"] == "last-gasp"]
    assert {a["id"] for a in heard} == set(genuine)
    assert all(a["authenticated"] for a in heard)


def test_a_gasp_by_tcp_and_garbage_on_the_stream(gateway, fleet, cloud):
    gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
    with socket.create_connection(("127.0.0.1", gateway.push_port)) as s:
        s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert s.recv(10) == b""  # hung up, not answered
    report = fleet.order("gasp", meter=1, to=gateway.push_url.replace("udp", "tcp"), how="genuine")
    wanted = alarm_id(report["meter"], "last-gasp", [], report["at"])
    eventually_sync(lambda: wanted in cloud.alarms, 10)


def test_a_push_port_that_another_program_holds_is_asked_for_until_it_is_free(
    gateway, fleet, cloud
):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", gateway.push_port))
        process = gateway.start()
        eventually_sync(
            lambda: gateway.says("pushes are not heard", str(gateway.push_port), "in use"), 10
        )
        eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
        assert process.poll() is None
    eventually_sync(lambda: gateway.says("heard", "now"), 10)
    report = fleet.order("gasp", meter=1, to=gateway.push_url, how="genuine")
    wanted = alarm_id(report["meter"], "last-gasp", [], report["at"])
    eventually_sync(lambda: wanted in cloud.alarms, 10)


def test_reads_from_the_shell_and_from_the_cloud_share_line_and_counters(
    gateway, fleet, cloud, settled
):
    gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
    for what in ("nameplate", "clock", "1.0.1.8.0.255"):
        done = subprocess.run(
            [OPENDCU, "read", "GP1000001", "-c", gateway.config, "--what", what, "--json"],
            env=gateway.env, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["registers"]
    cloud.send(
        "down/commands/c-1",
        {"schema": "opendcu.command/1", "id": "c-1", "do": "read", "meter": "GP1000002",
         "args": {"what": "clock"}, "expires": 4_000_000_000},
    )  # fmt: skip

    def replies(state):
        return [d for t, d in list(cloud.documents) if t == "replies/c-1" and d["state"] == state]

    assert eventually_sync(lambda: replies("done"), 15)[0]["registers"]
    assert len(replies("accepted")) == 1
    cloud.send(
        "down/commands/c-2",
        {"schema": "opendcu.command/1", "id": "c-2", "do": "relay", "meter": "GP1000002"},
    )
    refused = eventually_sync(
        lambda: [d for t, d in list(cloud.documents) if t == "replies/c-2"], 15
    )
    assert refused[0]["state"] == "failed"
    assert refused[0]["error"]["class"] == "NotAllowed"
    settled(gateway)


def test_sighup_reads_the_configuration_again_and_refuses_one_with_mistakes(
    gateway, fleet, settled
):
    process = gateway.start()
    eventually_sync(lambda: all(m["device"] for m in gateway.ask("meters")), 20)
    good = gateway.config.read_text()
    gateway.config.write_text(good.replace("Asia/Kolkata", "Asia/Nowhere"))
    process.send_signal(signal.SIGHUP)
    eventually_sync(lambda: gateway.says("not reloaded") and gateway.says("Asia/Nowhere"), 10)
    assert gateway.ask("ping")["gateway"] == "dcu-0001"
    meters = (gateway.folder / "fleet/meters.csv").read_text().splitlines()
    (gateway.folder / "fleet/meters.csv").write_text(
        "\n".join(m for m in meters if "GP1000004" not in m) + "\n"
    )
    gateway.config.write_text(good)
    process.send_signal(signal.SIGHUP)
    eventually_sync(lambda: len(gateway.ask("meters") or []) == 5, 10)
    (gateway.folder / "fleet/meters.csv").write_text("\n".join(meters) + "\n")
    process.send_signal(signal.SIGHUP)
    eventually_sync(lambda: len(gateway.ask("meters") or []) == 6, 10)
    settled(gateway)
    assert process.poll() is None
