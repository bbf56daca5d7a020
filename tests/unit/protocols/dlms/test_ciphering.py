"""Wrapped APDUs: every tag, titles, counters, and services that are not what their wrapper says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, TagInvalid
from edge_core.protocols.dlms import acse, axdr, ciphering, wrapper
from edge_core.protocols.dlms.security import ENCRYPTED, SecurityContext

FRAMES = Path(__file__).parents[3] / "data" / "frames"
GUEK = Secret(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))
GAK = Secret(bytes.fromhex("d0d1d2d3d4d5d6d7d8d9dadbdcdddedf"))
TITLE = b"MTR00001"
GET = bytes.fromhex("c001c100080000010000ff0200")


@pytest.fixture
def context() -> SecurityContext:
    return SecurityContext(0, GUEK, GAK)


@pytest.mark.parametrize("dedicated", [False, True])
@pytest.mark.parametrize("service", sorted(ciphering.GLO))
def test_every_service(context: SecurityContext, service: int, dedicated: bool) -> None:
    plain = bytes((service,)) + b"\1\xc1\0"
    sealed = ciphering.seal(context, TITLE, 9, plain, dedicated=dedicated)
    assert sealed[0] == (ciphering.DED if dedicated else ciphering.GLO)[service]
    found = ciphering.peek(sealed)
    assert (found.title, found.counter, found.dedicated) == (b"", 9, dedicated)
    assert found.name.startswith("ded-" if dedicated else "glo-")
    assert found.open(context, TITLE).plain == plain
    with pytest.raises(MalformedApdu, match="title"):
        found.open(context)  # the wrapper names no sender


@pytest.mark.parametrize("dedicated", [False, True])
def test_general_wrappers_name_their_sender(context: SecurityContext, dedicated: bool) -> None:
    sealed = ciphering.seal(context, TITLE, 9, b"\x0f\0", general=True, dedicated=dedicated)
    found = ciphering.peek(sealed)
    assert found.tag == (0xDC if dedicated else 0xDB)
    assert found.title == TITLE
    assert found.open(context, b"OTHER001").plain == b"\x0f\0"  # the wrapper's own title holds


def test_an_empty_title_is_that_of_the_association(context: SecurityContext) -> None:
    """One vendor leaves it empty."""
    body = context.seal(TITLE, 9, b"\x0f\0")
    found = ciphering.peek(b"\xdb\x00" + axdr.encode_octets(body))
    assert found.title == b""
    assert found.open(context, TITLE).plain == b"\x0f\0"


def test_the_service_inside_must_be_the_one_outside(context: SecurityContext) -> None:
    """A meter cannot be made to answer a GET with an ACTION response."""
    body = context.seal(TITLE, 9, b"\xc7\1\xc1\0\0")
    found = ciphering.peek(b"\xcc" + axdr.encode_octets(body))
    with pytest.raises(MalformedApdu, match="glo-get-response does not hold a get-response"):
        found.open(context, TITLE)


def test_an_independent_clients_session(context: SecurityContext) -> None:
    case = json.loads((FRAMES / "gurux_client_requests_glo.json").read_text())
    title = bytes.fromhex(case["keys"]["client_system_title"])
    frames = {k: wrapper.parse_datagram(bytes.fromhex(v[0])) for k, v in case["frames"].items()}
    aarq = acse.decode(frames["aarq_hls5"].apdu)
    assert isinstance(aarq, acse.Aarq)
    initiate = ciphering.peek(aarq.user_information)
    assert initiate.name == "glo-initiate-request"
    assert acse.decode_initiate(initiate.open(context, aarq.title).plain).NAME == "initiate-request"
    action = ciphering.peek(frames["action_reply_to_hls"].apdu).open(context, title)
    assert action.plain[:12] == bytes.fromhex("c301c1000f0000280000ff01")
    challenge = bytes.fromhex(case["keys"]["StoC"])
    counter = context.verify_gmac(title, action.plain[-17:], challenge)
    assert counter != action.counter  # GMAC and the ACTION around it never share a nonce
    get = ciphering.peek(frames["get_clock_glo"].apdu).open(context, title)
    assert get.plain[3:12] == bytes.fromhex("00080000010000ff02")
    assert get.counter == action.counter + 1


def test_thirteen_pushes_of_one_meter() -> None:
    case = json.loads((FRAMES / "wrapper_udp_push_general_glo.json").read_text())
    key = Secret(bytes.fromhex(case["keys"]["encryption"]))
    context = SecurityContext(0, key, Secret(bytes.fromhex(case["keys"]["authentication"])))
    counters = []
    for octets, plain in zip(case["frames"], case["plain_apdu"], strict=True):
        found = ciphering.peek(wrapper.parse_datagram(bytes.fromhex(octets)).apdu)
        opened = found.open(context)
        assert opened.plain.hex() == plain
        assert opened.authenticated
        counters.append(opened.counter)
    assert counters == case["checks"]["invocation_counters"]


def general_ciphering(context: SecurityContext, key_info: bytes) -> bytes:
    header = b"".join(map(axdr.encode_octets, (bytes(8), TITLE, b"CLI00001", b"", b"other")))
    body = context.seal(TITLE, 9, GET, more=header)
    return b"\xdd" + header + key_info + axdr.encode_octets(body)


@pytest.mark.parametrize("key_info", [b"\0", b"\1\0\0"])
def test_general_ciphering_under_keys_of_both(context: SecurityContext, key_info: bytes) -> None:
    apdu = general_ciphering(context, key_info)
    found = ciphering.peek(apdu)
    assert (found.name, found.title) == ("general-ciphering", TITLE)
    assert found.open(context).plain == GET
    at = apdu.index(b"other")
    forged = apdu[:at] + b"Other" + apdu[at + 5 :]
    with pytest.raises(TagInvalid):
        ciphering.peek(forged).open(context)


def test_lengths_must_end_with_the_apdu(context: SecurityContext) -> None:
    for sealed in (
        ciphering.seal(context, TITLE, 9, GET),
        ciphering.seal(context, TITLE, 9, GET, general=True),
        general_ciphering(context, b"\0"),
    ):
        for end in range(len(sealed)):
            with pytest.raises(MalformedApdu):
                ciphering.peek(sealed[:end])
        with pytest.raises(MalformedApdu):
            ciphering.peek(sealed + b"\0")


@pytest.mark.parametrize("octets", ["", "c001", "db03414243", "cc0430000000", "cc80", "dd"])
def test_malformed(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        ciphering.peek(bytes.fromhex(octets))


def test_wrong_use(context: SecurityContext) -> None:
    with pytest.raises(LocalProtocolError, match="no service-specific"):
        ciphering.seal(context, TITLE, 9, b"\x0f\0")
    assert ciphering.seal(context, TITLE, 9, GET, level=ENCRYPTED)[2] == 0x20


def test_names() -> None:
    assert ciphering.wrapper_name(0xCC) == "glo-get-response"
    assert ciphering.wrapper_name(0xD7) == "ded-action-response"
    assert ciphering.wrapper_name(0xDF) == "general-signing"
    assert ciphering.wrapper_name(0x99) == "apdu-99"
    assert not ciphering.is_ciphered(b"")
    assert not ciphering.is_ciphered(GET)
