"""The sender through a fake lite nucleus to a real broker and a cloud that acks: nothing is lost, whatever lite loses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_core.domain import make_alarm
from edge_core.greengrass import ipc
from tests.conftest import Mosquitto, eventually
from tests.integration.greengrass.conftest import Nucleus
from tests.integration.uplink.conftest import T0, Cloud, Uplinked, block, cells

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]


class CompactCloud(Cloud):
    """A cloud that reads the columns of a storm."""

    def _store(self, key: tuple[int, int], kind: str, document: dict[str, Any]) -> None:
        if kind == "alarms" and isinstance(document["alarms"], dict):
            document = document | {"alarms": [{"id": i} for i in document["alarms"]["ids"]]}
        super()._store(key, kind, document)


@pytest.fixture
def cloud(mosquitto: Mosquitto) -> Any:
    cloud = CompactCloud(mosquitto.port)
    cloud.max_bytes = 4_800
    yield cloud
    cloud.close()
    assert cloud.invalid == []
    assert cloud.conflicts == []


@pytest.fixture
def lite(nuclei: Callable[..., Nucleus], mosquitto: Mosquitto) -> Nucleus:
    return nuclei("lite", mosquitto.port)


@pytest.fixture
async def uplink(
    tmp_path: Path, lite: Nucleus, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Uplinked]]:
    made: list[Uplinked] = []
    for name, value in lite.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def make(**options: Any) -> Uplinked:
        made.append(Uplinked(tmp_path / "gateway", "", kind="greengrass", **options).start())
        return made[-1]

    yield make
    for one in made:
        await one.stop()
    ipc.forget()


def alarms(count: int) -> list[Any]:
    return [
        make_alarm(f"GP{i:07}", "last-gasp", at=T0 + i % 50, heard=T0 + 50, authenticated=True)
        for i in range(count)
    ]


async def test_everything_arrives_in_messages_that_lite_takes(uplink, lite, cloud):
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    blocks = [block(i, rows=48) for i in range(20)]
    await asyncio.to_thread(gateway.append, *blocks)
    for alarm in alarms(5):
        gateway.journal.alarm(alarm)
    gateway.journal.note("replies", "c-1", {"state": "done"})
    await eventually(lambda: gateway.drained, 40)
    with cloud.lock:
        assert cloud.cells == cells(*blocks)
        assert len(cloud.alarms) == 5
    assert lite.count("too large") == 0
    assert lite.count("connects") == 1
    assert gateway.aside == []


async def test_what_a_frozen_broker_swallowed_is_sent_again(uplink, lite, cloud):
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    lite.order("broker", answers=False)  # publishes succeed, and nothing leaves
    for alarm in alarms(3):
        gateway.journal.alarm(alarm)
    blocks = [block(i) for i in range(3)]
    await asyncio.to_thread(gateway.append, *blocks)
    await eventually(lambda: gateway.sender.counts.published >= 2)
    with cloud.lock:
        assert cloud.cells == {}
        assert not cloud.alarms
    lite.order("broker", answers=True)  # a clean session: what was in flight is gone
    await eventually(lambda: gateway.drained, 30)
    with cloud.lock:
        assert cloud.cells == cells(*blocks)
        assert len(cloud.alarms) == 3


async def test_what_classic_spooled_and_dropped_is_sent_again(
    uplink, nuclei, cloud, mosquitto, monkeypatch
):
    classic = nuclei("classic", mosquitto.port)
    for name, value in classic.environment.items():
        monkeypatch.setenv(name, value)
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    classic.order("broker", answers=False)
    blocks = [block(i) for i in range(3)]
    await asyncio.to_thread(gateway.append, *blocks)
    for alarm in alarms(3):
        gateway.journal.alarm(alarm)
    await eventually(lambda: gateway.sender.counts.published >= 2)
    classic.order("broker", answers=True, drop=True)
    assert classic.count("dropped") >= 2
    await eventually(lambda: gateway.drained, 30)
    with cloud.lock:
        assert cloud.cells == cells(*blocks)
        assert len(cloud.alarms) == 3


async def test_subscriptions_lost_in_silence_are_noticed_by_the_missing_acks(uplink, lite, cloud):
    gateway = uplink(no_acks_s=1.0)
    await eventually(lambda: gateway.connected)
    lite.order("lose-subscriptions")
    blocks = [block(i) for i in range(2)]
    await asyncio.to_thread(gateway.append, *blocks)
    await eventually(lambda: gateway.drained, 30)
    assert gateway.no_acks
    assert lite.count("connects") >= 2
    with cloud.lock:
        assert cloud.cells == cells(*blocks)


async def test_a_nucleus_that_is_offline_for_a_while_gets_it_later(uplink, lite, cloud):
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    lite.fail("PublishToIoTCore", "ServiceError", times=25)
    blocks = [block(i) for i in range(3)]
    await asyncio.to_thread(gateway.append, *blocks)
    for alarm in alarms(2):
        gateway.journal.alarm(alarm)
    await eventually(lambda: gateway.drained, 60)
    with cloud.lock:
        assert cloud.cells == cells(*blocks)
        assert len(cloud.alarms) == 2
    assert gateway.aside == []  # back-pressure is no refusal


async def test_the_nucleus_is_killed_in_the_middle(uplink, lite, cloud):
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    blocks = [block(i, rows=96) for i in range(12)]
    await asyncio.to_thread(gateway.append, *blocks)
    await eventually(lambda: gateway.sender.counts.published >= 1)
    lite.kill()
    await eventually(lambda: not gateway.connected)
    lite.start()
    await eventually(lambda: gateway.drained, 60)
    with cloud.lock:
        assert cloud.cells == cells(*blocks)


async def test_a_storm_of_last_gasps_leaves_in_seconds(uplink, lite, cloud):
    gateway = uplink()
    await eventually(lambda: gateway.connected)
    began = time.monotonic()
    storm = alarms(5_000)
    for alarm in storm:
        gateway.journal.alarm(alarm)

    def arrived() -> int:
        with cloud.lock:
            return len(cloud.alarms)

    await eventually(lambda: arrived() == len(storm), 30)
    took_s = time.monotonic() - began
    assert took_s < 15, f"{took_s:.1f} s"
    await eventually(lambda: gateway.drained, 30)
    assert gateway.aside == []
