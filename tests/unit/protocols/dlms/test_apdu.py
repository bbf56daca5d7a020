"""Notifications, errors and block transfers."""

from __future__ import annotations

import pytest

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import apdu
from edge_core.protocols.dlms.blocks import BlockAssembler
from edge_core.protocols.dlms.cosem import Attribute
from edge_core.protocols.dlms.services import Block

TIME = bytes.fromhex("07e3020401173416ff800000")
ALARM = Attribute(1, "0.0.97.98.20.255", 2)

OCTETS = [
    ("0fc0000001 00 1105", apdu.DataNotification(0xC0000001, b"", b"\x11\x05")),
    ("0f40000000 0c" + TIME.hex() + "1105", apdu.DataNotification(0x40000000, TIME, b"\x11\x05")),
    ("1040000001 00", apdu.DataNotificationConfirm(0x40000001)),
    ("c200 000100006162 14ff02 1105", apdu.EventNotification(b"", ALARM, b"\x11\x05")),
    (
        "c2010c" + TIME.hex() + "00010000616214ff02 1105",
        apdu.EventNotification(TIME, ALARM, b"\x11\x05"),
    ),
    ("d80101", apdu.ExceptionResponse(1, 1)),
    ("d80206000006b4", apdu.ExceptionResponse(2, 6, 1716)),
    ("0e010601", apdu.ConfirmedServiceError(1, 6, 1)),
    (
        "e0400001000003010203",
        apdu.GeneralBlockTransfer(False, True, 0, 1, 0, b"\1\2\3"),
    ),
    ("e0c100030002 00", apdu.GeneralBlockTransfer(True, True, 1, 3, 2)),
]


@pytest.mark.parametrize(("octets", "message"), OCTETS)
def test_there_and_back(octets: str, message: apdu.Apdu) -> None:
    raw = bytes.fromhex(octets)
    assert apdu.decode(raw) == message
    assert message.to_bytes() == raw


def test_the_time_of_a_notification_with_the_tag_of_an_octet_string() -> None:
    """Kaifa writes 09 0C where the standard has 0C."""
    raw = bytes.fromhex("0f40000000090c" + TIME.hex() + "1105")
    assert apdu.decode(raw) == apdu.DataNotification(0x40000000, TIME, b"\x11\x05")


def test_the_time_of_an_event_without_its_presence_octet() -> None:
    raw = bytes.fromhex("c20c" + TIME.hex() + "00010000616214ff021105")
    assert apdu.decode(raw) == apdu.EventNotification(TIME, ALARM, b"\x11\x05")


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "99",
        "0f400000",
        "0f400000000c07e3",
        "0f4000000005ffffffffff",
        "c203",
        "c20105ffffffffff00010000616214ff021105",
        "c200000100",
        "d801",
        "d80101ff",
        "d8010600000",
        "0e0106",
        "0e01060100",
        "e040000100000301",
        "e04000010000030102030405",
        "104000000100ff",
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        apdu.decode(bytes.fromhex(octets + "0" * (len(octets) % 2)))


def test_errors_in_words() -> None:
    assert apdu.ExceptionResponse(1, 1).words == "service-not-allowed: operation-not-possible"
    assert apdu.ExceptionResponse(2, 6, 9).words == "service-unknown: invocation-counter-error 9"
    assert apdu.ExceptionResponse(9, 9).words == "unknown (9): unknown (9)"
    assert apdu.ConfirmedServiceError(1, 6, 1).words == "initiate: initiate: dlms-version-too-low"
    assert apdu.ConfirmedServiceError(77, 8, 9).words == "unknown (77): unknown (8): unknown (9)"
    assert apdu.ConfirmedServiceError(5, 5, 99).words == "read: access: unknown (99)"


def test_blocks_are_joined_in_order() -> None:
    blocks = BlockAssembler()
    assert blocks.take(Block(False, 1, b"ab")) is None
    assert blocks.take(Block(False, 1, b"ab")) is None  # its acknowledgement was lost
    assert blocks.number == 1
    assert blocks.take(Block(True, 2, b"c")) == b"abc"
    assert blocks.take(Block(True, 2, b"c")) == b"abc"


def test_a_missing_block_is_refused() -> None:
    blocks = BlockAssembler()
    blocks.take(Block(False, 1, b"ab"))
    with pytest.raises(MalformedApdu, match="block 3 came, 2 is due"):
        blocks.take(Block(False, 3, b"ef"))
    with pytest.raises(MalformedApdu, match="block 1 came"):
        blocks.take(Block(False, 1, b"other"))  # not a repeat: other octets


def test_a_transfer_is_bounded() -> None:
    blocks = BlockAssembler(max_octets=3)
    blocks.take(Block(False, 1, b"ab"))
    with pytest.raises(MalformedApdu, match="or 3 octets"):
        blocks.take(Block(False, 2, b"cd"))
