"""RTU frames: built, and found again in whatever a line brings.

A master knows what it waits for: unit, function and size. So an answer is hunted for at every octet, and taken only
where unit, function, octet count and CRC all fit: noise, an echo of the request, another unit's answer and the rest
of an older one are passed over. Frames are never cut by gaps in time, which a general-purpose kernel cannot see.
Limits: MAX_BUFFER octets are looked at. Source: Modbus over serial line V1.02, section 2.5.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import fastcrc

from edge_core.protocols.modbus.pdu import WRITE

MAX_FRAME = 256
MAX_BUFFER = 4 * MAX_FRAME


def crc(octets: bytes) -> bytes:
    """The two octets of the CRC, low octet first."""
    return int(fastcrc.crc16.modbus(octets)).to_bytes(2, "little")


def frame(unit: int, pdu: bytes) -> bytes:
    """Address, PDU, CRC."""
    body = bytes([unit]) + pdu
    return body + crc(body)


@dataclass(frozen=True, slots=True)
class Hunt:
    """What we wait for.

    Attributes:
        unit: who is to answer.
        function: of the request.
        count: registers that were asked for, or written.
        address: function 16 only: where they were written; its answer repeats both.
    """

    unit: int
    function: int
    count: int
    address: int = 0

    @property
    def size(self) -> int:
        """Octets of the answer."""
        return 8 if self.function == WRITE else 5 + 2 * self.count

    @property
    def head(self) -> bytes:
        """The octets that the answer begins with."""
        if self.function == WRITE:
            return struct.pack(">BBHH", self.unit, WRITE, self.address, self.count)
        return bytes([self.unit, self.function, 2 * self.count])

    def find(self, octets: bytes) -> bytes | None:
        """The PDU of the answer or of an exception, if its frame is complete in the octets."""
        found = self._find(octets, 0)
        return found[0] if found else None

    def twice(self, octets: bytes) -> bool:
        """Are there two such frames in the octets?"""
        found = self._find(octets, 0)
        return found is not None and self._find(octets, found[1]) is not None

    def _find(self, octets: bytes, start: int) -> tuple[bytes, int] | None:
        """The first PDU at or behind `start`, and where its frame ends."""
        head, refusal = self.head, bytes([self.unit, self.function | 0x80])
        for at in range(start, len(octets) - 4):
            if octets.startswith(head, at):
                size = self.size
            elif octets.startswith(refusal, at):
                size = 5
            else:
                continue
            candidate = octets[at : at + size]
            if len(candidate) == size and crc(candidate[:-2]) == candidate[-2:]:
                return candidate[1:-2], at + size
        return None

    def describe(self, octets: bytes) -> str:
        """Why these octets hold no answer, for people."""
        if not octets:
            return "no answer"
        for at in range(len(octets) - 4):
            unit, function, third = octets[at], octets[at + 1], octets[at + 2]
            size = 5 if function & 0x80 else 8 if function == WRITE else 5 + third
            candidate = octets[at : at + size]
            if len(candidate) < size or crc(candidate[:-2]) != candidate[-2:]:
                continue
            if unit != self.unit:
                return f"unit {unit} answered instead of unit {self.unit}"
            if function & 0x7F != self.function:
                return f"function {function} answered instead of {self.function}"
            if function == WRITE:
                return "another write was confirmed"
            return f"{third // 2} registers answered instead of {self.count}"
        if octets[:1] == bytes([self.unit]) and len(octets) < self.size:
            return f"only {len(octets)} of {self.size} octets came"
        return f"{len(octets)} octets came, no frame with a right CRC among them"


def character_s(baudrate: int, parity: str, stopbits: int) -> float:
    """Seconds of one character: start bit, 8 data bits, parity, stop bits."""
    return (9 + (parity != "N") + stopbits) / baudrate


def silence_s(baudrate: int, character: float) -> float:
    """The silent interval between frames: 3.5 characters, 1.75 ms above 19,200 bits/s."""
    return 3.5 * character if baudrate <= 19_200 else 0.00175
