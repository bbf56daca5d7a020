"""The uplink over the IPC of a nucleus: what passes, what is back-pressure, what ends the connection or the process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge_core import errors
from edge_core.greengrass import ipc as ipc_module
from edge_core.greengrass.ipc import Ipc
from edge_core.greengrass.restarts import Restarts
from edge_core.uplink.clients import NotConnected
from edge_core.uplink.clients import greengrass as greengrass_module
from edge_core.uplink.clients.greengrass import GreengrassClient
from tests.conftest import eventually
from tests.integration.greengrass.conftest import Nucleus

pytestmark = [pytest.mark.integration]
DOWN = "dcu/dcu-0001/down/#"
UP = "dcu/dcu-0001/reads/interval"
ALARM = "dcu/dcu-0001/alarms/outage"


class Ends:
    """How often the process would have ended, and why."""

    def __init__(self, folder: Path) -> None:
        self.why: list[str] = []
        self.file = folder / "restarts.json"

    def restarts(self) -> Restarts:
        return Restarts(self.file, end=self.why.append)


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


def ipc_of(nucleus: Nucleus, ends: Ends, name: str = "io.opendcu.Gateway") -> Ipc:
    return Ipc(nucleus.socket, "the-token", name, restarts=ends.restarts())


@pytest.fixture
async def client(nucleus: Nucleus, ends: Ends) -> AsyncIterator[GreengrassClient]:
    client = GreengrassClient(DOWN, ipc_of(nucleus, ends))
    await client.connect()
    yield client
    await client.close()


@pytest.fixture
async def on_lite(lite: Nucleus, ends: Ends) -> AsyncIterator[GreengrassClient]:
    client = GreengrassClient(DOWN, ipc_of(lite, ends))
    await client.connect()
    yield client
    await client.close()


async def test_what_is_published_leaves_byte_by_byte(nucleus, client):
    sent = [(UP, b"x" * 4_800), (ALARM, b"\x00\xff{}"), ("$aws/rules/opendcu_reads/" + UP, b"1")]
    for topic, payload in sent:
        await client.publish(topic, payload)
    assert nucleus.published() == sent


async def test_one_wildcard_subscription_brings_acks_and_commands(nucleus, client):
    assert nucleus.order("status")["subscriptions"] == [["SubscribeToIoTCore", DOWN]]
    messages = client.messages()
    for topic, payload in (("acks", b'{"acked":[]}'), ("commands/x", b"\xff" * 4_800)):
        nucleus.deliver(f"dcu/dcu-0001/down/{topic}", payload)
        assert await asyncio.wait_for(anext(messages), 5) == (f"dcu/dcu-0001/down/{topic}", payload)
    nucleus.deliver("dcu/dcu-0002/down/acks", b"{}")
    nucleus.deliver("dcu/dcu-0001/down/acks", b"last")
    assert (await asyncio.wait_for(anext(messages), 5)).payload == b"last"


async def test_what_is_too_long_downwards_is_dropped_and_the_next_arrives(nuclei, ends):
    nucleus = nuclei("classic")  # lite drops it itself
    client = GreengrassClient(DOWN, ipc_of(nucleus, ends))
    await client.connect()
    nucleus.deliver("dcu/dcu-0001/down/acks", b"x" * 4_901)
    nucleus.deliver("dcu/dcu-0001/down/acks", b"x" * 4_900)
    message = await asyncio.wait_for(anext(client.messages()), 5)
    assert len(message.payload) == 4_900
    await client.close()


async def test_a_message_that_would_close_lites_connection_is_never_sent(lite, on_lite):
    with pytest.raises(errors.PublishRefused) as caught:
        await on_lite.publish(UP, b"x" * 7_001)
    assert caught.value.code == 0x95
    await on_lite.publish("dcu/dcu-0001/" + "t" * 200, b"x" * 7_000)
    assert lite.count("too large") == 0
    assert lite.count("sockets") == 1


async def test_the_fake_closes_the_connection_as_lite_does(lite, on_lite):
    on_lite.max_payload = 100_000  # without our guard
    with pytest.raises(errors.BrokerUnreachable):
        await on_lite.publish(UP, b"x" * 7_500)
    assert lite.count("too large") == 1
    with pytest.raises(errors.BrokerUnreachable, match=r"hung up|broke"):
        await asyncio.wait_for(anext(on_lite.messages()), 5)


@pytest.mark.parametrize("error", ["ServiceError", "UnauthorizedError"])
async def test_a_nucleus_that_takes_nothing_for_a_while_is_waited_for(nucleus, client, error):
    nucleus.fail("PublishToIoTCore", error, times=3)
    await client.publish(ALARM, b"1")
    assert nucleus.published() == [(ALARM, b"1")]
    assert nucleus.count("PublishToIoTCore") == 4
    assert client._ipc.pressed is None


async def test_a_nucleus_that_takes_nothing_for_long_is_like_no_connection(
    lite, on_lite, monkeypatch
):
    monkeypatch.setattr(greengrass_module, "PRESSURE_S", 0.5)
    lite.fail("PublishToIoTCore", "ServiceError", times=1_000)
    with pytest.raises(NotConnected, match="takes no messages"):
        await on_lite.publish(UP, b"1")
    assert on_lite._ipc.pressed is not None
    assert lite.count("sockets") == 1  # the connection and its subscription stay
    lite.fail("PublishToIoTCore", "ServiceError", times=0)
    await on_lite.publish(UP, b"2")
    assert lite.published() == [(UP, b"2")]


async def test_a_topic_that_is_never_allowed_is_refused_and_hurts_no_other(
    lite, on_lite, monkeypatch
):
    monkeypatch.setattr(greengrass_module, "NOT_ALLOWED_S", 0.3)
    lite.fail("PublishToIoTCore", "UnauthorizedError", times=1_000, topic="/events")
    with pytest.raises(errors.PublishRefused, match="accessControl") as caught:
        await on_lite.publish("dcu/dcu-0001/events", b"1")
    assert caught.value.code == 0x87
    await on_lite.publish(UP, b"2")
    assert lite.published() == [(UP, b"2")]


async def test_another_error_is_a_refusal_of_this_message(nucleus, client):
    nucleus.fail("PublishToIoTCore", "InvalidArgumentsError", times=1)
    with pytest.raises(errors.PublishRefused, match="InvalidArguments"):
        await client.publish(UP, b"1")
    await client.publish(UP, b"2")


async def test_a_burst_into_a_frozen_broker_fills_ten_packets_and_then_waits(
    lite, on_lite, monkeypatch
):
    monkeypatch.setattr(greengrass_module, "PRESSURE_S", 0.5)
    lite.order("broker", answers=False)
    results = await asyncio.gather(
        *(on_lite.publish(ALARM, b"x" * 100) for _ in range(14)), return_exceptions=True
    )
    assert [r for r in results if r is None] == [None] * 10
    assert sum(isinstance(r, NotConnected) for r in results) == 4


async def test_classic_spools_while_the_link_is_away_and_may_drop_it_without_a_word(nuclei, ends):
    classic = nuclei("classic")
    client = GreengrassClient(DOWN, ipc_of(classic, ends))
    await client.connect()
    classic.order("broker", answers=False)
    for i in range(30):  # all succeed: a success is no delivery
        await client.publish(ALARM, b"%d" % i)
    assert classic.published() == []
    classic.order("broker", answers=True)
    assert [payload for _, payload in classic.published()] == [b"%d" % i for i in range(30)]
    classic.order("broker", answers=False)
    await client.publish(ALARM, b"lost")
    classic.order("broker", answers=True, drop=True)
    assert classic.count("dropped") == 1
    assert len(classic.published()) == 30
    await client.close()


async def test_a_full_spool_of_classic_is_back_pressure(nuclei, ends, monkeypatch):
    monkeypatch.setattr(greengrass_module, "PRESSURE_S", 0.3)
    classic = nuclei("classic")
    client = GreengrassClient(DOWN, ipc_of(classic, ends))
    await client.connect()
    client.max_payload = 100_000  # what classic itself takes
    classic.order("broker", answers=False)
    for _ in range(26):
        await client.publish(ALARM, b"x" * 100_000)
    with pytest.raises(NotConnected, match="takes no messages"):
        await client.publish(ALARM, b"x" * 100_000)
    assert classic.count("spool full") >= 1
    classic.order("broker", answers=True)
    await client.publish(ALARM, b"1")
    await client.close()


async def test_what_comes_down_while_the_link_is_away_waits_on_classic_and_is_lost_on_lite(
    nucleus, client
):
    nucleus.order("broker", answers=False)
    nucleus.deliver("dcu/dcu-0001/down/acks", b"meanwhile")
    nucleus.order("broker", answers=True)
    nucleus.deliver("dcu/dcu-0001/down/acks", b"later")
    first = await asyncio.wait_for(anext(client.messages()), 5)
    assert first.payload == (b"meanwhile" if nucleus.kind == "classic" else b"later")


async def test_bulk_leaves_at_two_a_second_on_lite_and_alarms_are_not_held(lite, on_lite):
    began = time.monotonic()
    await asyncio.gather(*(on_lite.publish(UP, b"%d" % i) for i in range(4)))
    assert 0.95 < time.monotonic() - began < 3
    assert [payload for _, payload in lite.published()] == [b"0", b"1", b"2", b"3"]
    began = time.monotonic()
    await asyncio.gather(*(on_lite.publish(ALARM, b"%d" % i) for i in range(20)))
    assert time.monotonic() - began < 0.9


async def test_a_hung_nucleus_is_a_bounded_wait(lite, on_lite, monkeypatch):
    monkeypatch.setattr(ipc_module, "CALL_S", 0.3)
    monkeypatch.setattr(ipc_module.Link.call, "__defaults__", (0.3,))
    lite.order("hang", operations=["PublishToIoTCore"])
    began = time.monotonic()
    with pytest.raises(errors.BrokerUnreachable, match="does not answer"):
        await on_lite.publish(UP, b"1")
    assert time.monotonic() - began < 2
    with pytest.raises(errors.BrokerUnreachable, match="does not answer"):
        await asyncio.wait_for(anext(on_lite.messages()), 5)
    lite.order("hang", operations=[])
    await on_lite.connect()
    await on_lite.publish(UP, b"2")


async def test_a_frozen_nucleus_is_a_bounded_wait_for_the_handshake(lite, ends, monkeypatch):
    monkeypatch.setattr(ipc_module, "CONNECT_S", 0.5)
    lite.order("freeze")
    client = GreengrassClient(DOWN, ipc_of(lite, ends))
    with pytest.raises(errors.BrokerUnreachable, match="does not answer"):
        await client.connect()
    lite.order("thaw")
    await client.connect()
    await client.publish(UP, b"1")
    await client.close()
    assert ends.why == []


async def test_a_dropped_connection_is_made_anew_with_its_subscription(nucleus, client):
    nucleus.order("drop")
    with pytest.raises(errors.BrokerUnreachable, match=r"hung up|broke|ended"):
        await asyncio.wait_for(anext(client.messages()), 5)
    with pytest.raises(NotConnected):
        await client.publish(UP, b"1")
    await client.connect()
    nucleus.deliver("dcu/dcu-0001/down/acks", b"1")
    assert (await asyncio.wait_for(anext(client.messages()), 5)).payload == b"1"
    assert nucleus.order("status")["subscriptions"] == [["SubscribeToIoTCore", DOWN]]


async def test_subscriptions_lost_in_silence_come_back_when_the_sender_closes_us(lite, on_lite):
    lite.order("lose-subscriptions")
    await on_lite.publish(UP, b"1")  # it works as if nothing were

    async def listen() -> int:
        return len([message async for message in on_lite.messages()])

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await on_lite.close()
    assert await asyncio.wait_for(listening, 5) == 0
    await on_lite.connect()
    lite.deliver("dcu/dcu-0001/down/acks", b"1")
    assert (await asyncio.wait_for(anext(on_lite.messages()), 5)).payload == b"1"


async def test_lite_forgets_the_token_and_takes_the_name(lite, on_lite, ends):
    lite.order("accept", token=False, name=True)
    lite.order("drop")
    with pytest.raises(errors.BrokerUnreachable):
        await asyncio.wait_for(anext(on_lite.messages()), 5)
    await on_lite.connect()
    await on_lite.publish(UP, b"1")
    assert lite.order("status")["connections"] == ["name"]
    assert ends.why == []


async def test_refused_altogether_the_process_ends_once_a_cause_and_twice_an_hour(nucleus, ends):
    def again() -> GreengrassClient:
        return GreengrassClient(DOWN, ipc_of(nucleus, ends))  # as after a restart: the file stays

    nucleus.order("accept", token=False, name=False)
    client = again()
    for _ in range(3):
        with pytest.raises(errors.BrokerUnreachable, match="does not accept"):
            await client.connect()
    assert len(ends.why) == 1
    client = again()
    with pytest.raises(errors.BrokerUnreachable):
        await client.connect()
    assert len(ends.why) == 1  # a new process did not help
    nucleus.order("accept", token=True, name=True)
    await client.connect()
    await client.close()
    nucleus.order("accept", token=False, name=False)
    for _ in range(2):
        with pytest.raises(errors.BrokerUnreachable):
            await client.connect()
    assert len(ends.why) == 2  # it worked in between
    nucleus.order("accept", token=True, name=True)
    await client.connect()
    await client.close()
    nucleus.order("accept", token=False, name=False)
    with pytest.raises(errors.BrokerUnreachable):
        await client.connect()
    assert len(ends.why) == 2  # but not a third time within the hour
    assert len(json.loads(ends.file.read_text())["ends"]) == 2


async def test_a_nucleus_that_is_away_is_waited_for(lite, ends, monkeypatch):
    client = GreengrassClient(DOWN, ipc_of(lite, ends))
    await client.connect()
    lite.kill()
    with pytest.raises(errors.BrokerUnreachable):
        await asyncio.wait_for(anext(client.messages()), 5)
    for _ in range(2):
        with pytest.raises(errors.BrokerUnreachable, match="no nucleus"):
            await client.connect()
    assert ends.why == []
    monkeypatch.setattr(ipc_module, "UNREACHABLE_S", 0.0)
    for _ in range(3):
        with pytest.raises(errors.BrokerUnreachable):
            await client.connect()
    assert len(ends.why) == 1
    lite.start()
    await client.connect()
    await client.publish(UP, b"1")
    await client.close()


async def test_many_reconnects_leak_no_thread_and_no_descriptor(nucleus, ends):
    client = GreengrassClient(DOWN, ipc_of(nucleus, ends))

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(
            list(Path("/proc/self/task").iterdir())
        )

    for _ in range(5):
        await client.connect()
    before = held()
    for _ in range(40):
        await client.connect()
    await client.close()
    await eventually(lambda: held()[0] <= before[0] and held()[1] <= before[1])
    assert nucleus.order("status")["subscriptions"] == []


async def test_nothing_leaves_without_a_connection(
    lite: Nucleus, ends: Ends, nuclei: Callable[..., Nucleus]
) -> None:
    client = GreengrassClient(DOWN, ipc_of(lite, ends))
    with pytest.raises(NotConnected):
        await client.publish(UP, b"1")
    with pytest.raises(NotConnected):
        await anext(client.messages())
    await client.close()


async def test_a_subscription_that_is_not_allowed_is_named(nucleus, ends):
    nucleus.fail("SubscribeToIoTCore", "UnauthorizedError", times=1)
    client = GreengrassClient(DOWN, ipc_of(nucleus, ends))
    with pytest.raises(errors.BrokerUnreachable, match=r"does not subscribe to dcu/dcu-0001/down"):
        await client.connect()
    await client.connect()  # on the same connection: the nucleus leaks what is opened and closed
    assert nucleus.count("connects") == 1
    await client.close()


def test_without_a_nucleus_the_kind_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="works only under a nucleus"):
        ipc_module.shared({})
