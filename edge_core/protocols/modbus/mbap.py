"""Modbus TCP frames: a strict look at what came, before any library believes it.

`judge` says of the octets received since the request was sent: more to come, older answers first, the answer, or
rubbish. Rubbish ends the connection, since there is no way to find the beginning of the next frame in a stream.
Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edge_core.protocols.modbus.pdu import WRITE

MAX_LENGTH = 254


@dataclass(frozen=True, slots=True)
class Asked:
    """What the outstanding request asked for; `address` counts for function 16, whose answer repeats it."""

    transaction: int
    unit: int
    function: int
    count: int
    address: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """What a receive buffer holds.

    Attributes:
        complete: the answer, or an exception, is there whole.
        stale: octets of answers to older requests in front of it.
        why: what makes it rubbish, or "".
    """

    complete: bool = False
    stale: int = 0
    why: str = ""


def judge(octets: bytes, asked: Asked) -> Judged:
    """What the receive buffer holds, for the outstanding request.

    Answers with another transaction id are stale and passed over, whatever is in them.
    """
    at = 0
    while True:
        rest = octets[at:]
        if len(rest) < 6:
            return Judged(stale=at)
        protocol = int.from_bytes(rest[2:4], "big")
        length = int.from_bytes(rest[4:6], "big")
        if protocol != 0:
            return Judged(stale=at, why=f"protocol id {protocol} in the header instead of 0")
        if not 3 <= length <= MAX_LENGTH:
            return Judged(stale=at, why=f"length {length} in the header")
        if len(rest) < 6 + length:
            return Judged(stale=at)
        if int.from_bytes(rest[0:2], "big") == asked.transaction:
            return Judged(True, at, _flaw(rest[6 : 6 + length], asked))
        at += 6 + length


def _flaw(frame: bytes, asked: Asked) -> str:
    """What is wrong with unit and PDU of our transaction, or ""."""
    unit, function = frame[0], frame[1]
    if unit != asked.unit:
        return f"unit {unit} answered instead of unit {asked.unit}"
    if function == asked.function | 0x80:
        return "" if len(frame) == 3 else f"an exception of {len(frame) - 1} octets"
    if function != asked.function:
        return f"function {function} answered instead of {asked.function}"
    if function == WRITE:
        told = struct.pack(">HH", asked.address, asked.count)
        return "" if frame[2:] == told else f"{frame[2:].hex()} confirms another write"
    if len(frame) != 3 + frame[2]:
        return f"an octet count of {frame[2]} in an answer of {len(frame) - 3}"
    if frame[2] != 2 * asked.count:
        return f"{frame[2] // 2} registers answered instead of {asked.count}"
    return ""
