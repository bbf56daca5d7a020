"""GET, SET and ACTION: octets of others, and there and back."""

from __future__ import annotations

import pytest

from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.dlms import apdu, axdr, services
from edge_core.protocols.dlms.codes import ActionResult, DataAccessResult, words
from edge_core.protocols.dlms.cosem import (
    Attribute,
    CaptureObject,
    EntrySelector,
    Method,
    OtherSelector,
    RangeSelector,
)
from edge_core.protocols.dlms.services import Block, GetResult

CLOCK = CaptureObject(8, "0.0.1.0.0.255", 2)
PROFILE = Attribute(7, "1.0.99.1.0.255", 2)
REGISTER = Attribute(3, "1.0.1.8.0.255", 2)
HLS = Method(15, "0.0.40.0.0.255", 1)
BLOCK = Block(False, 7, b"\x01\x82\x05")
RANGE = RangeSelector(
    CLOCK,
    axdr.octet_string(bytes.fromhex("07e90601ff00000000feb600")),
    axdr.octet_string(bytes.fromhex("07e90601ff01000000feb600")),
)
FIVE = axdr.encode(axdr.unsigned(5))

OCTETS = [
    (
        "c001c100070100630100ff0201010204020412000809060000010000ff0f02120000090c07e90601ff00000000"
        "feb600090c07e90601ff01000000feb6000100",
        services.GetRequest(PROFILE, RANGE),
    ),
    (
        "c001c100070100630100ff020102020406000000010600000004120001120000",
        services.GetRequest(PROFILE, EntrySelector(1, 4)),
    ),
    ("c001c1000100002b0103ff0200", services.GetRequest(Attribute(1, "0.0.43.1.3.255", 2))),
    ("c002c100000003", services.GetRequestNext(3)),
    (
        "c003c102000100002b0103ff020000080000010000ff0200",
        services.GetRequestList(
            (
                (Attribute(1, "0.0.43.1.3.255", 2), None),
                (Attribute(8, "0.0.1.0.0.255", 2), None),
            )
        ),
    ),
    ("c401c1000600001391", services.GetResponse(0, bytes.fromhex("0600001391"))),
    ("c401c10101", services.GetResponse(1)),
    ("c402c1000000000700 03018205", services.GetResponseBlock(BLOCK)),
    ("c402c1010000000101 01", services.GetResponseBlock(Block(True, 1, b""), 1)),
    (
        "c403c102 00 1105 01 04",
        services.GetResponseList((GetResult(0, FIVE), GetResult(4))),
    ),
    (
        "c101c100080000010000ff0200090c07e50118ff0e303950ffc400",
        services.SetRequest(
            Attribute(8, "0.0.1.0.0.255", 2), bytes.fromhex("090c07e50118ff0e303950ffc400")
        ),
    ),
    (
        "c102c100070100630100ff0200 00 00000007 03018205",
        services.SetRequestFirstBlock(PROFILE, BLOCK),
    ),
    ("c103c1 00 00000007 03018205", services.SetRequestBlock(BLOCK)),
    (
        "c104c1 01 00030100010800ff0200 01 1105",
        services.SetRequestList(((REGISTER, None),), (FIVE,)),
    ),
    (
        "c105c1 01 00030100010800ff0200 00 00000007 03018205",
        services.SetRequestListFirstBlock(((REGISTER, None),), BLOCK),
    ),
    ("c501c103", services.SetResponse(3)),
    ("c502c100000007", services.SetResponseBlock(7)),
    ("c503c10300000007", services.SetResponseLastBlock((3,), 7)),
    ("c504c102000300000007", services.SetResponseLastBlock((0, 3), 7, with_list=True)),
    ("c505c1020003", services.SetResponseList((0, 3))),
    (
        "c301c0000f0000280000ff010109111000001a90e6d2221fa2fd85eed61acc22",
        services.ActionRequest(HLS, bytes.fromhex("09111000001a90e6d2221fa2fd85eed61acc22"), 0xC0),
    ),
    ("c301c1000f0000280000ff0100", services.ActionRequest(HLS)),
    ("c302c100000007", services.ActionRequestNextBlock(7)),
    (
        "c303c1 01 000f0000280000ff01 01 1105",
        services.ActionRequestList((HLS,), (FIVE,)),
    ),
    (
        "c304c1 000f0000280000ff01 00 00000007 03018205",
        services.ActionRequestFirstBlock(HLS, BLOCK),
    ),
    (
        "c305c1 01 000f0000280000ff01 00 00000007 03018205",
        services.ActionRequestListFirstBlock((HLS,), BLOCK),
    ),
    ("c306c1 00 00000007 03018205", services.ActionRequestBlock(BLOCK)),
    (
        "c701c000010009111000001afde8857b728a3499106aa665d1",
        services.ActionResponse(
            0, GetResult(0, bytes.fromhex("09111000001afde8857b728a3499106aa665d1")), 0xC0
        ),
    ),
    ("c701c0000101fa", services.ActionResponse(0, GetResult(250), 0xC0)),
    ("c701c10c00", services.ActionResponse(12)),
    ("c702c1 00 00000007 03018205", services.ActionResponseBlock(BLOCK)),
    (
        "c703c102 0000 00 01 00 1105",
        services.ActionResponseList(((0, None), (0, GetResult(0, FIVE)))),
    ),
    ("c704c100000007", services.ActionResponseNextBlock(7)),
]


@pytest.mark.parametrize(("octets", "message"), OCTETS, ids=lambda v: getattr(v, "NAME", ""))
def test_there_and_back(octets: str, message: apdu.Apdu) -> None:
    raw = bytes.fromhex(octets)
    assert apdu.decode(raw) == message
    assert message.to_bytes() == raw


@pytest.mark.parametrize(("octets", "message"), OCTETS, ids=lambda v: getattr(v, "NAME", ""))
def test_cuts_are_refused_or_read_as_less(octets: str, message: apdu.Apdu) -> None:
    raw = bytes.fromhex(octets)
    for end in range(len(raw)):
        try:
            shorter = apdu.decode(raw[:end])
        except MalformedApdu:
            continue
        else:  # values at the end are octets: whoever decodes them sees the cut
            assert shorter != message or octets == "c701c10c00"  # whose last octet is optional


def test_trailing_octets_are_refused() -> None:
    for octets in ("c501c103", "c002c100000003", "c401c10101", "c701c10c00", "c505c1020003"):
        with pytest.raises(MalformedApdu, match="follow"):
            apdu.decode(bytes.fromhex(octets) + b"\0")


@pytest.mark.parametrize(
    "octets",
    [
        "c007c1",
        "c407c100",
        "c107c1",
        "c507c1",
        "c307c1",
        "c707c1",
        "c401c102",  # neither data nor a result
        "c402c1000000000702",
        "c403c10102",
        "c703c101000102",
        "c003c184ffffffff",  # counts of attackers
        "c403c184ffffffff00",
        "c104c184ffffffff",
        "c303c184ffffffff",
        "c703c184ffffffff00",
        "c001c100070100630100ff0202",  # neither absent nor present
        "c301c1000f0000280000ff0102",
        "c701c10002",
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        apdu.decode(bytes.fromhex(octets))


def test_an_action_response_may_leave_its_optional_part_out() -> None:
    assert apdu.decode(bytes.fromhex("c701c100")) == services.ActionResponse(0)


def test_results_in_words() -> None:
    assert services.GetResponse(4).words == "object-undefined"
    assert services.ActionResponse(0, GetResult(250)).words == "success"
    assert GetResult(250).words == "other-reason"
    assert words(DataAccessResult, 77) == "unknown (77)"
    assert words(ActionResult, 15) == "long-action-aborted"


def test_selectors_of_other_classes_stay() -> None:
    raw = bytes.fromhex("c001c100070100630100ff020103 0201 1105")
    message = apdu.decode(raw)
    assert isinstance(message, services.GetRequest)
    assert message.selector == OtherSelector(3, axdr.structure(axdr.unsigned(5)))
    assert message.to_bytes() == raw


def test_a_range_over_something_that_is_no_capture_object_stays() -> None:
    parameters = axdr.structure(axdr.NULL, axdr.NULL, axdr.NULL, axdr.array([]))
    raw = services.GetRequest(PROFILE, OtherSelector(1, parameters)).to_bytes()
    message = apdu.decode(raw)
    assert isinstance(message, services.GetRequest)
    assert message.selector == OtherSelector(1, parameters)


def test_columns_of_a_range() -> None:
    column = CaptureObject(3, "1.0.1.29.0.255", 2)
    selector = RangeSelector(CLOCK, axdr.NULL, axdr.NULL, (CLOCK, column))
    message = apdu.decode(services.GetRequest(PROFILE, selector).to_bytes())
    assert isinstance(message, services.GetRequest)
    assert message.selector == selector


def test_wrong_use() -> None:
    with pytest.raises(LocalProtocolError):
        services.GetRequest(Attribute(3, "1.0.1.8.0", 2)).to_bytes()
    with pytest.raises(LocalProtocolError):
        services.GetRequest(Attribute(70000, "1.0.1.8.0.255", 2)).to_bytes()
    with pytest.raises(MalformedApdu):
        CaptureObject.from_data(axdr.structure(axdr.unsigned(1)))
    with pytest.raises(MalformedApdu):
        CaptureObject.from_data(axdr.unsigned(1))


def test_names_in_words() -> None:
    assert str(REGISTER) == "1.0.1.8.0.255:2"
    assert str(HLS) == "0.0.40.0.0.255:1"
