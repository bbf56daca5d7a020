"""One suite for the SDK's own client and for ours, against the fake nucleus: the fake is held to a second opinion.

The SDK's client is used as AWS documents it (`GreengrassCoreIPCClientV2()`, token from the environment); ours makes the
connection itself and adds limits, back-pressure and the reconnect (docs/decisions/005).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from awscrt import exceptions
from awsiot.greengrasscoreipc import model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

from edge_core import errors
from edge_core.greengrass.component import Component
from edge_core.greengrass.ipc import Ipc
from edge_core.greengrass.restarts import Never
from edge_core.uplink.clients.greengrass import GreengrassClient
from tests.conftest import eventually
from tests.integration.greengrass.conftest import Nucleus

UP, ALARM, DOWN = "dcu/dcu-0001/reads/interval", "dcu/dcu-0001/alarms/outage", "dcu/dcu-0001/down/#"
LIMIT_S = 10.0
pytestmark = [pytest.mark.integration]
ENDS = (errors.UplinkError, RuntimeError, exceptions.AwsCrtError)


class Sdk:
    """The real client of awsiotsdk, alone."""

    def __init__(self, nucleus: Nucleus) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.notices: list[str] = []

    async def connect(self) -> None:
        self.client = await asyncio.to_thread(GreengrassCoreIPCClientV2)
        await self._do(
            self.client.subscribe_to_iot_core_async(
                topic_name=DOWN, qos=model.QOS.AT_LEAST_ONCE, on_stream_event=self._heard,
                on_stream_error=lambda _: True, on_stream_closed=lambda: None,
            )[0]
        )  # fmt: skip

    def _heard(self, event: Any) -> None:
        self.heard.append((event.message.topic_name, bytes(event.message.payload)))

    async def _do(self, future: Any) -> Any:
        return await asyncio.wait_for(asyncio.wrap_future(future), LIMIT_S)

    async def publish(self, topic: str, payload: bytes) -> None:
        await self._do(
            self.client.publish_to_iot_core_async(
                topic_name=topic, qos=model.QOS.AT_LEAST_ONCE, payload=payload
            )
        )

    async def configuration(self) -> Any:
        return (await self._do(self.client.get_configuration_async())).value

    async def running(self) -> None:
        await self._do(self.client.update_state_async(state=model.ReportedLifecycleState.RUNNING))

    async def follow_updates(self) -> bool:
        def noticed(event: Any) -> None:
            if event.pre_update_event:
                self.client.defer_component_update_async(
                    deployment_id=event.pre_update_event.deployment_id, recheck_after_ms=0
                )

        try:
            await self._do(
                self.client.subscribe_to_component_updates_async(
                    on_stream_event=noticed, on_stream_error=lambda _: True, on_stream_closed=lambda: None
                )[0]
            )  # fmt: skip
        except model.ServiceError:
            return False
        return True

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)


class Ours:
    """Ours."""

    def __init__(self, nucleus: Nucleus) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.ipc = Ipc(nucleus.socket, "the-token", "io.opendcu.Gateway", restarts=Never())
        self.client = GreengrassClient(DOWN, self.ipc)
        self.component = Component(
            self.ipc, "io.opendcu.Gateway", changed=lambda: None, busy=str, environment={}
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        await self.client.connect()

        async def hear() -> None:
            async for message in self.client.messages():
                self.heard.append((message.topic, message.payload))

        self.tasks.append(asyncio.create_task(hear()))

    async def publish(self, topic: str, payload: bytes) -> None:
        await self.client.publish(topic, payload)

    async def configuration(self) -> Any:
        return await self.component.settings()

    async def running(self) -> None:
        await self.follow_updates()
        self.component.ready()
        await eventually(lambda: self.ipc.capabilities.get("state"))

    async def follow_updates(self) -> bool:
        self.tasks.append(asyncio.create_task(self.component.run()))
        await eventually(lambda: "component-updates" in self.ipc.capabilities)
        return self.ipc.capabilities["component-updates"]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.client.close()
        await self.ipc.drop()


@pytest.fixture(params=[Sdk, Ours])
async def client(
    request: pytest.FixtureRequest,
    nucleus: Nucleus,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Any]:
    for name, value in nucleus.environment.items():
        monkeypatch.setenv(name, value)
    client = request.param(nucleus)
    await client.connect()
    yield client
    await client.close()


async def test_what_is_published_arrives_octet_by_octet(nucleus, client):
    sent = [(UP, b"x" * 4_800), (ALARM, b"\x00\xff{}"), ("$aws/rules/opendcu_reads/" + UP, b"1")]
    for topic, payload in sent:
        await client.publish(topic, payload)
    assert nucleus.published() == sent


async def test_what_comes_down_is_heard(nucleus, client):
    nucleus.deliver("dcu/dcu-0002/down/acks", b"of another")
    nucleus.deliver("dcu/dcu-0001/down/acks", b"\x00\xff" * 2_400)
    await eventually(lambda: client.heard)
    assert client.heard == [("dcu/dcu-0001/down/acks", b"\x00\xff" * 2_400)]


async def test_the_configuration_is_read(nucleus, client):
    value = {"GatewayId": "dcu-7", "Set": {"alarms.batch_ms": 15.0}}
    nucleus.order("configure", value=value)
    assert await client.configuration() == value


async def test_the_state_is_told(nucleus, client):
    await client.running()
    assert nucleus.order("status")["states"] == ["RUNNING"]


async def test_update_notices_are_of_classic_alone_and_are_answered(nucleus, client):
    assert await client.follow_updates() is (nucleus.kind == "classic")
    nucleus.order("notice", deployment="d1")
    if nucleus.kind == "classic":
        await eventually(lambda: nucleus.order("status")["deferrals"])
        (answer,) = nucleus.order("status")["deferrals"]
        assert answer["deploymentId"] == "d1"


async def test_a_frame_that_is_too_long_ends_lites_connection(nucleus, client):
    if isinstance(client, Ours):
        client.client.max_payload = 100_000  # without our guard
    if nucleus.kind == "classic":
        await client.publish(ALARM, b"x" * 7_500)
        assert nucleus.count("too large") == 0
        return
    with pytest.raises(ENDS):
        await client.publish(ALARM, b"x" * 7_500)
    assert nucleus.count("too large") == 1


async def test_a_refused_token_connects_nobody(
    nucleus: Nucleus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in nucleus.environment.items():
        monkeypatch.setenv(name, value)
    nucleus.order("accept", token=False, name=False)
    for kind in (Sdk, Ours):
        with pytest.raises(ENDS):
            await kind(nucleus).connect()
    assert nucleus.count("connects") == 0
    assert nucleus.count("refused") >= 2
