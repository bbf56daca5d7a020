"""What a trace says of Modbus frames."""

from __future__ import annotations

import pytest

from edge_core.protocols.modbus.remarks import remark
from edge_core.protocols.modbus.rtu import frame


@pytest.mark.parametrize(
    ("framing", "direction", "octets", "words"),
    [
        ("modbus-tcp", "plan", b"2 requests", "2 requests"),
        ("modbus-rtu", "send", frame(1, b"\x04\x00\x48\x00\x08"), "unit 1: read 8 input registers from 72"),
        ("modbus-rtu", "receive", frame(1, b"\x03\x04\x00\x01\x00\x02"), "unit 1: 2 holding registers"),
        ("modbus-rtu", "receive", frame(9, b"\x83\x0b"), "unit 9: exception 11, gateway: the target did not respond"),
        ("modbus-rtu", "receive", b"\xff\x00\x01", "3 octets that are no single frame"),
        (
            "modbus-tcp", "receive", b"\x00\x07\x00\x00\x00\x03\x01\x84\x02",
            "transaction 7, unit 1: exception 2, illegal data address",
        ),
        (
            "modbus-rtu", "send", frame(1, bytes.fromhex("10 87 04 00 03 06 19 0c 01 00 00 00")),
            "unit 1: ask the history: 190c 0100 0000 to 3 registers from 34564",
        ),
        (
            "modbus-rtu", "receive", frame(1, bytes.fromhex("10 87 04 00 03")),
            "unit 1: 3 registers from 34564 written",
        ),
        ("modbus-tcp", "receive", b"\x00\x07", "2 octets, no whole header"),
    ],
)  # fmt: skip
def test_remarks(framing, direction, octets, words):
    assert remark(framing, direction, octets) == words
