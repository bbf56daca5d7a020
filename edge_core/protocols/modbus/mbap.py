"""Modbus TCP frames: a strict look at what came, before any library believes it.

`judge` says of the octets received since the request was sent: more to come, an older answer first, the answer, or
rubbish. Whatever is rubbish ends the connection, since there is no way to find the next frame's beginning in a stream.
Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

HEADER = 7
MAX_LENGTH = 254


class Verdict(enum.Enum):
    """What a receive buffer holds."""

    INCOMPLETE = "incomplete"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict; `stale` octets of older answers stand before the frame, which begins there; `why` names rubbish."""

    verdict: Verdict
    stale: int = 0
    why: str = ""


def judge(octets: bytes, transaction: int, unit: int, function: int) -> Judged:
    """What the receive buffer holds, for the outstanding request.

    Answers with another transaction id are stale and passed over, whatever is in them.
    """
    at = 0
    while True:
        rest = octets[at:]
        if len(rest) < 6:
            return Judged(Verdict.INCOMPLETE, at)
        tid = int.from_bytes(rest[0:2], "big")
        protocol = int.from_bytes(rest[2:4], "big")
        length = int.from_bytes(rest[4:6], "big")
        if protocol != 0:
            return Judged(
                Verdict.INCOMPLETE, at, f"protocol id {protocol} in the header instead of 0"
            )
        if not 3 <= length <= MAX_LENGTH:
            return Judged(Verdict.INCOMPLETE, at, f"length {length} in the header")
        if len(rest) < 6 + length:
            return Judged(Verdict.INCOMPLETE, at)
        if tid == transaction:
            break
        at += 6 + length
    if rest[6] != unit:
        return Judged(Verdict.INCOMPLETE, at, f"unit {rest[6]} answered instead of unit {unit}")
    if rest[7] not in (function, function | 0x80):
        return Judged(Verdict.INCOMPLETE, at, f"function {rest[7]} answered instead of {function}")
    return Judged(Verdict.ANSWER, at)
