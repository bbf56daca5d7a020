"""The services of the standard end to end: our association and driver against the independent simulated meter."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.clock import SystemClock
from edge_core.config.keys import MeterKeys
from edge_core.config.models import DlmsModel, Quirks, load_model
from edge_core.config.schema import Line
from edge_core.domain import Flag, Secret
from edge_core.errors import KeyRejected
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.association import Association
from edge_core.protocols.dlms.codes import Conformance, Mechanism
from edge_core.protocols.dlms.cosem import Attribute, Method
from edge_core.protocols.dlms.refusals import AccessRefused
from edge_core.protocols.dlms.security import AUTHENTICATED_ENCRYPTED, SecurityContext
from edge_core.protocols.dlms.terms import Terms
from simulators.dlms.meter import Meter
from simulators.dlms.session import Session
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]
CLOCK = Attribute(8, "0.0.1.0.0.255", 2)
RELAY = Method(70, "0.0.96.3.10.255", 1)


def changed(name: str, **more: Any) -> DlmsModel:
    """A model with other values in [association] and [quirks]."""
    model = load_model(name)
    assert isinstance(model, DlmsModel)
    quirks = {key: more.pop(key) for key in Quirks.__struct_fields__ if key in more}
    return msgspec.structs.replace(
        model,
        association=msgspec.structs.replace(model.association, **more),
        quirks=msgspec.structs.replace(model.quirks, **quirks),
    )


async def read_all(b: Bench, **changes: Any) -> None:
    """Read interval and midnight whole, and compare with what the meter holds."""
    b.meter.freeze()
    driver = b.driver(**changes)
    try:
        for kind in ("interval", "midnight"):
            blocks = list(await driver.read_profile(ProfileRequest(kind)))
            assert rows_of(blocks) == truth_of(b.meter, kind), kind
    finally:
        await driver.close()
    assert b.fleet.record.violations == 0


# --- authentication


@pytest.mark.parametrize("security", ["lls", "hls2", "hls3", "hls4", "hls5", "hls6"])
@pytest.mark.parametrize("framing", ["wrapper", "hdlc"])
async def test_every_mechanism(bench: Make, security: str, framing: str) -> None:
    b = await bench(security=security, framing=framing)
    await read_all(b)
    assert b.meter.contacts == 1


@pytest.mark.parametrize("security", ["lls", "hls2", "hls3", "hls4", "hls6"])
async def test_the_wrong_secret_is_named_and_tried_once(bench: Make, security: str) -> None:
    b = await bench(security=security)
    keys = MeterKeys(
        guek=None, gak=None, password=Secret(b"wrong-password"), hls=Secret(b"wrong secret !!!")
    )
    driver = b.driver(keys=keys)
    with pytest.raises(KeyRejected):
        await driver.identify()
    await driver.close()
    tried = "password-wrong" if security == "lls" else "hls-wrong"
    notes = [line for line in b.fleet.record.path.read_text().splitlines() if tried in line]
    assert len(notes) == 1, "a wrong key is tried once: meters lock out"
    assert b.meter.contacts == 0


# --- ciphering


@pytest.mark.parametrize("ciphering", ["glo", "ded", "general-glo", "general-ded"])
@pytest.mark.parametrize("framing", ["wrapper", "hdlc"])
async def test_every_way_of_ciphering(bench: Make, ciphering: str, framing: str) -> None:
    b = await bench(framing=framing)
    await read_all(b, model=changed("is15959-3ph", ciphering=ciphering))
    tags = {octets[8] for way, octets in b.frames if way == "send" and framing == "wrapper"}
    asked = {"glo": 0xC8, "ded": 0xD0, "general-glo": 0xDB, "general-ded": 0xDC}[ciphering]
    assert framing == "hdlc" or asked in tags


async def test_a_dedicated_key_is_another_one_each_time(bench: Make) -> None:
    b = await bench()
    model = changed("is15959-3ph", ciphering="ded")
    seen = []
    for _ in range(2):
        driver = b.driver(model=model)
        await driver.identify()
        association = driver.session.association  # type: ignore[attr-defined]
        seen.append(association._handshake._dedicated_key.reveal())
        await driver.close()
    assert len(set(seen)) == 2
    assert all(key not in octets for key in seen for _, octets in b.frames)


# --- blocks and encodings


@pytest.mark.parametrize("quirk", ["null-data", "delta", "compact-array"])
@pytest.mark.parametrize("model", ["is15959-3ph", "idis"])
@pytest.mark.parametrize("pdu", [200, 1024])
async def test_every_encoding_of_a_buffer(bench: Make, quirk: str, model: str, pdu: int) -> None:
    b = await bench(model=model, quirks=(quirk,), pdu=pdu)
    await read_all(b)


@pytest.mark.parametrize("pdu", [128, 1024])
@pytest.mark.parametrize("ciphering", ["glo", "general-glo"])
async def test_general_block_transfer(bench: Make, pdu: int, ciphering: str) -> None:
    b = await bench(quirks=("general-block-transfer",), pdu=pdu)
    model = changed("is15959-3ph", ciphering=ciphering, general_block_transfer=True)
    await read_all(b, model=model)
    sent = [octets[8] for way, octets in b.frames if way == "send"]
    assert sent.count(0xE0) > 5


async def test_lost_blocks_are_asked_for_again(bench: Make) -> None:
    """Datagrams are lost: the block is asked for again, the request, which is sealed, never."""
    b = await bench(quirks=("general-block-transfer", "block-loss"), pdu=512, transport="udp")
    model = changed("is15959-3ph", ciphering="general-glo", general_block_transfer=True)
    line = Line(id="l", transport="udp", framing="wrapper", timeout_s=1.0)
    await read_all(b, model=model, line=line)
    asked = [octets[8:] for way, octets in b.frames if way == "send" and octets[8] == 0xE0]
    assert len(asked) > len(set(asked)) > 5, "some were asked for twice"
    sealed = [octets for way, octets in b.frames if way == "send" and octets[8] != 0xE0]
    assert len(sealed) == len(set(sealed))


async def test_general_block_transfer_is_not_used_unless_it_was_offered(bench: Make) -> None:
    b = await bench(quirks=("general-block-transfer",), pdu=200)
    await read_all(b)
    assert all(octets[8] != 0xE0 for way, octets in b.frames if way == "send")


class Wire:
    """An association with a simulated meter, without sockets."""

    def __init__(self, meter: Meter, **terms: Any) -> None:
        self.meter, self.session = meter, Session(meter, meter.client)
        counters = itertools.count(100_000)
        self.association = Association(
            Terms(
                title=b"ODCtest1",
                mechanism=Mechanism.HLS5_GMAC,
                level=AUTHENTICATED_ENCRYPTED,
                ciphering="glo",
                **terms,
            ),
            next_counter=lambda: next(counters),
            context=SecurityContext(0, Secret(meter.keys.guek), Secret(meter.keys.gak)),
        )
        self.requests = 0
        self.run(self.association.open(bytes(range(16))))

    def run(self, exchange: Any) -> Any:
        request = next(exchange)
        while True:
            self.requests += 1
            try:
                request = exchange.send(self.session.handle(request))
            except StopIteration as done:
                return done.value


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Callable[..., Wire]]:
    fleets = []

    def make(pdu: int, **terms: Any) -> Wire:
        spec = FleetSpec(dlms=(DlmsGroup(pdu=pdu),))
        fleets.append(Fleet(spec, tmp_path / str(len(fleets)), SystemClock()))
        return Wire(fleets[-1].dlms[0], **terms)

    yield make
    for fleet in fleets:
        fleet.record.close()


def clock_of(w: Wire) -> bytes:
    value = axdr.decode_whole(w.run(w.association.get(CLOCK))).value
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize(("pdu", "blocks"), [(64, 2), (72, 2), (256, 1)])
def test_set_in_blocks(wire: Callable[..., Wire], pdu: int, blocks: int) -> None:
    w = wire(pdu)
    stamp = clock_of(w)
    set_to = bytes((stamp[0], stamp[1])) + stamp[2:5] + bytes((stamp[5] ^ 1,)) + stamp[6:]
    before = w.requests
    w.run(w.association.set(CLOCK, axdr.encode(axdr.octet_string(set_to))))
    assert w.requests - before == blocks
    assert clock_of(w)[5] == set_to[5]


def test_a_refused_set_in_blocks_leaves_the_association_alive(wire: Callable[..., Wire]) -> None:
    w = wire(64)
    with pytest.raises(AccessRefused):
        w.run(
            w.association.set(
                Attribute(1, "0.0.96.1.0.255", 2), axdr.encode(axdr.octet_string(bytes(50)))
            )
        )
    assert clock_of(w)


@pytest.mark.parametrize(("pdu", "octets", "blocks"), [(64, 40, 6), (80, 40, 3), (256, 40, 1)])
def test_action_in_blocks(wire: Callable[..., Wire], pdu: int, octets: int, blocks: int) -> None:
    w = wire(pdu)
    before = w.requests
    w.run(w.association.act(RELAY, axdr.encode(axdr.octet_string(bytes(octets)))))
    assert w.requests - before == blocks
    assert w.meter.relay_closed is False


def test_action_in_one_where_blocks_were_not_negotiated(wire: Callable[..., Wire]) -> None:
    w = wire(64, conformance=Conformance.GET | Conformance.ACTION | Conformance.BLOCK_TRANSFER_GET)
    before = w.requests
    w.run(w.association.act(RELAY, axdr.encode(axdr.octet_string(bytes(40)))))
    assert w.requests - before == 1
    assert w.meter.relay_closed is False


def test_a_refused_action_in_blocks(wire: Callable[..., Wire]) -> None:
    w = wire(64)
    with pytest.raises(AccessRefused):
        w.run(
            w.association.act(
                Method(70, "0.0.96.3.11.255", 1), axdr.encode(axdr.octet_string(bytes(40)))
            )
        )
    assert clock_of(w)


# --- flags


@pytest.mark.parametrize(("security", "proven"), [("hls6", False), ("hls5", True)])
async def test_rows_without_a_verified_tag_are_flagged(
    bench: Make, security: str, proven: bool
) -> None:
    b = await bench(security=security)
    driver = b.driver()
    (block, *_) = await driver.read_profile(ProfileRequest("interval"))
    await driver.close()
    assert any(bits & Flag.UNAUTHENTICATED for _, _, bits in block.flags) is not proven
