"""Faults of the way to the cloud, each on the whole installed gateway: slow, flapping and dead brokers, a cloud that misbehaves.

After each: everything that the simulated meters hold is in the cloud, bit for bit, once; no number named two contents, and
all that was acked has left the journal (docs/explanation/fault-matrix.md).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from edge_core.domain import alarm_id
from tests.conftest import Mosquitto, eventually_sync
from tests.system.conftest import Fleet, Installation

LONG = bool(os.environ.get("OPENDCU_LONG"))
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300 if LONG else 120)]


class SlowLink:
    """A port of 127.0.0.1 behind which another one is, `octets_per_s` away."""

    def __init__(self, port: int, octets_per_s: int) -> None:
        self.target, self.rate = port, octets_per_s
        self.carried = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = [self.listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while octets := a.recv(512):
                time.sleep(len(octets) / self.rate)  # what this link is
                self.carried += len(octets)
                b.sendall(octets)
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def slow_link(mosquitto: Mosquitto) -> Iterator[SlowLink]:
    link = SlowLink(mosquitto.port, 4_000)
    yield link
    link.close()


def gasp(gateway: Installation, fleet: Fleet, meter: int) -> str:
    """A meter of the fleet loses its power; the id that its alarm must have."""
    report = fleet.order("gasp", meter=meter, to=gateway.push_url, how="genuine")
    return alarm_id(report["meter"], "last-gasp", [], report["at"])


def known(gateway: Installation) -> bool:
    """Was every meter read once, so that its pushes are believed?"""
    return all(m["device"] for m in gateway.ask("meters") or [{"device": ""}])


def empty(gateway: Installation) -> bool:
    """Has all of the journal been acked?"""
    status = gateway.ask("overview")["journal"]
    return not (
        status["segments_waiting"]
        or status["alarms_waiting"]
        or status["notes_waiting"]
        or status["aside"]
    )


def test_a_slow_link(gateway, fleet, cloud, mosquitto, settled, slow_link):
    gateway.write(f"mqtt://127.0.0.1:{slow_link.port}")
    process = gateway.start()
    eventually_sync(lambda: known(gateway), 30)
    wanted = gasp(gateway, fleet, 1)  # behind a day of every meter
    settled(gateway, 45)
    eventually_sync(lambda: wanted in cloud.alarms, 20)
    assert slow_link.carried > 10_000
    assert process.poll() is None
    assert gateway.terminate() == 0


@pytest.mark.parametrize("times", [6, pytest.param(60, marks=pytest.mark.skipif(not LONG, reason="OPENDCU_LONG"))])  # fmt: skip
def test_a_flapping_broker(gateway, fleet, cloud, mosquitto, settled, times):
    rng = random.Random(times)
    process = gateway.start()
    wanted = []
    for turn in range(times):
        mosquitto.kill()
        time.sleep(rng.uniform(0.05, 0.5))  # what flapping is
        mosquitto.start()
        if turn % 2 and known(gateway):
            wanted.append(gasp(gateway, fleet, turn % 4))
        time.sleep(rng.uniform(0.05, 1.0))
    settled(gateway, 45)
    eventually_sync(lambda: set(wanted) <= cloud.alarms.keys(), 20)
    if LONG:  # what the broker confirmed and lost in its death is sent again a minute later at most
        eventually_sync(lambda: empty(gateway), 100)
    assert process.poll() is None
    assert gateway.terminate() == 0


@pytest.mark.parametrize("kills", [0, pytest.param(12, marks=pytest.mark.skipif(not LONG, reason="OPENDCU_LONG"))])  # fmt: skip
def test_acks_lost_doubled_late_reordered_rejecting_and_of_other_epochs(
    gateway, fleet, cloud, settled, kills
):
    cloud.misbehave = {
        "lost": 0.2, "doubled": 0.2, "late": 0.4, "foreign": 0.3, "reject": 0.2, "forget": 0.2,
    }  # fmt: skip
    gateway.start()
    for turn in range(kills):
        before = len(cloud.arrived)
        eventually_sync(lambda n=before: len(cloud.arrived) > n, 30)
        if turn == kills // 2:
            cloud.redrive()
        gateway.kill()
        gateway.start()
    seen = len(cloud.arrived)
    eventually_sync(
        lambda: gateway.ask("sweep", timeout_s=5) and len(cloud.arrived) >= seen + 8, 40
    )
    cloud.misbehave = {}
    cloud.flush()
    cloud.redrive()
    settled(gateway, 45)
    eventually_sync(lambda: cloud.redrive() or empty(gateway), 30)
    assert gateway.terminate() == 0
    assert len({epoch for topic, epoch, _ in cloud.arrived if topic != "health"}) == 1


def test_acks_that_claim_too_much_free_nothing_of_this_epoch(gateway, fleet, cloud, settled):
    """Every message is forgotten the first time, while acks of the epochs around claim all numbers there are."""
    cloud.misbehave = {"forget": 1.0}
    gateway.start()
    eventually_sync(lambda: len(cloud.held) >= 2, 20)
    (epoch,) = {epoch for epoch, _ in cloud.held}
    for other in (epoch - 1, epoch + 1, 1):
        cloud.send_ack(other, acked=[[0, 1 << 40]], high=1 << 40)
    gateway.ask("sweep", timeout_s=5)
    gateway.kill()
    gateway.start()
    cloud.misbehave = {}
    settled(gateway, 45)
    eventually_sync(lambda: empty(gateway), 30)
    assert gateway.terminate() == 0
