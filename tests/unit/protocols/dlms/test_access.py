"""The ACCESS service: octets there and back, bounds, and end to end with a simulated meter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedApdu, ProtocolError
from edge_core.protocols.dlms import access, apdu, axdr
from edge_core.protocols.dlms.access import Act, Get, Set
from edge_core.protocols.dlms.codes import Conformance
from edge_core.protocols.dlms.cosem import Attribute, EntrySelector, Method
from edge_core.protocols.dlms.refusals import NotNegotiated
from edge_core.protocols.dlms.states import State
from edge_core.protocols.dlms.terms import Terms
from tests.unit.protocols.dlms.test_association import CLOCK, INTERVAL, SERIAL, Wire, make, octets

__all__ = ["make"]

REGISTER = Attribute(3, "1.0.1.8.0.255", 2)
RELAY = Method(70, "0.0.96.3.10.255", 1)
REQUEST = access.AccessRequest(
    (
        Get(REGISTER),
        Set(CLOCK, b"\x09\x0c" + bytes(12)),
        Act(RELAY, b"\x0f\x00"),
        Get(INTERVAL, EntrySelector(1, 2)),
        Set(REGISTER, b"\x11\x07", EntrySelector(1)),
    )
)
ACCESS = Terms().conformance | Conformance.ACCESS


def test_a_request_in_octets() -> None:
    """The first as gurux-dlms 1.0.203 writes it (GXDLMSClient.accessRequest, a GET of this register)."""
    one = access.AccessRequest((Get(REGISTER),))
    assert one.to_bytes().hex() == "d9c000000100010100030100010800ff020100"
    for request in (one, REQUEST, access.AccessRequest((), 7, bytes(12))):
        assert apdu.decode(request.to_bytes()) == request


def test_a_response_in_octets() -> None:
    response = access.AccessResponse(
        (
            access.AccessResult(1, 0, b"\x06\x00\x00\x00\x07"),
            access.AccessResult(2, 3),
            access.AccessResult(3, 250),
        ),
        5,
    )
    written = response.to_bytes()
    assert (
        written.hex()
        == "da00000005"
        + "00"
        + "00"
        + "03"
        + "0600000007"
        + "0000"
        + "03010002030 3fa".replace(" ", "")
    )
    assert apdu.decode(written) == response
    repeated = written[:6] + b"\x01\x01\x01" + REGISTER.to_bytes() + written[7:]
    assert apdu.decode(repeated) == response  # a server may repeat the specifications
    assert [r.words for r in response.results] == ["success", "read-write-denied", "other-reason"]


@pytest.mark.parametrize(
    "octets_",
    [
        "d9",
        "d900000001",
        "d9000000010501020304050100",
        "d9000000010084ffffffff",
        "d90000000100820100" + "01" * 9,
        "d90000000100010600030100010800ff020100",
        "d90000000100010100030100010800ff0200",
        "d90000000100010100030100010800ff020200 00",
        "da00000001000201000103",
        "da0000000100000100020100 0100",
        "da00000001000001000109 00",
        "da000000010000010001010000",
    ],
)
def test_what_cannot_be(octets_: str) -> None:
    with pytest.raises(MalformedApdu):
        apdu.decode(bytes.fromhex(octets_))


@given(octets_=st.binary(max_size=80), tag=st.sampled_from([0xD9, 0xDA]))
def test_any_octets(octets_: bytes, tag: int) -> None:
    try:
        message = apdu.decode(bytes((tag,)) + octets_)
    except ProtocolError:
        return
    assert isinstance(message, access.AccessRequest | access.AccessResponse)
    assert len(message.to_bytes()) <= 2 * len(octets_) + 16


@pytest.mark.parametrize("ciphering", ["glo", "general-glo", "lls"])
def test_a_meter_does_them_in_their_order(make: Any, ciphering: str) -> None:
    wire: Wire = (
        make({"security": "lls"}, conformance=ACCESS)
        if ciphering == "lls"
        else make(ciphering=ciphering, conformance=ACCESS)
    ).open()
    stamp = octets(wire.run(wire.association.get(CLOCK)))
    results = wire.run(
        wire.association.access(
            (
                Get(SERIAL),
                Set(CLOCK, axdr.encode(axdr.octet_string(stamp))),
                Get(Attribute(3, "1.0.99.99.99.255", 2)),
                Act(RELAY, axdr.encode(axdr.integer(0))),
                Get(INTERVAL, EntrySelector(1, 2)),
            )
        )
    )
    assert [r.result for r in results] == [0, 0, 4, 0, 0]
    assert octets(results[0].data).decode() == wire.meter.device.serial
    assert axdr.decode_whole(results[4].data).tag == 1
    assert wire.meter.relay_closed is False
    assert wire.association.state is State.READY
    if ciphering != "lls":
        assert wire.sent[-1][0] == 0xDB, "ACCESS has no wrapper of its own service"


def test_it_is_asked_only_where_it_was_negotiated(make: Any) -> None:
    wire: Wire = make().open()
    with pytest.raises(NotNegotiated, match="ACCESS"):
        wire.run(wire.association.access((Get(SERIAL),)))
    wire = make({"quirks": ("service-glo-only",)}, conformance=ACCESS).open()
    with pytest.raises(NotNegotiated, match="general-protection"):
        wire.run(wire.association.access((Get(SERIAL),)))
    assert wire.association.state is State.READY
    for count in (0, 256):
        with pytest.raises(LocalProtocolError):
            wire.run(wire.association.access((Get(SERIAL),) * count))


def test_results_of_something_else_are_refused(make: Any) -> None:
    wire: Wire = make({"security": "lls"}, conformance=ACCESS).open()
    wire.tamper = lambda answer: access.AccessResponse(
        (access.AccessResult(2, 0),), int.from_bytes(answer[1:5], "big")
    ).to_bytes()
    with pytest.raises(MalformedApdu, match="not those of the specifications"):
        wire.run(wire.association.access((Get(SERIAL),)))
    assert wire.association.state is State.BROKEN
