"""M-Bus long frames as customer interfaces push them: 68 L L 68, C, A, CI, data, checksum, 16.

CI 00 to 1F is the segmented transport of DLMS over M-Bus: bits 0 to 3 count the segments of one APDU from 0 on, bit 4
marks the last; STSAP and DTSAP follow, then a piece of the APDU.

Invariants: bytes may come cut anywhere; a damaged frame is passed over and the next start octet is looked for.
Limits: 255 octets a frame, MAX_SEGMENTS (16) segments an APDU.
Source: EN 13757-2, EN 13757-3; DLMS UA Green Book ed. 9, wired M-Bus profile; capture tests/data/frames/
dlmsparser_mbus_netz_noe_p1.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edge_core.errors import LocalProtocolError, MalformedFrame

START: Final = 0x68
STOP: Final = 0x16
MAX_SEGMENTS: Final = 16
_LAST: Final = 0x10
_TRANSPORT: Final = 0x1F
_OVERHEAD: Final = 6


class MbusFrame(msgspec.Struct, frozen=True):
    """One long frame.

    Attributes:
        control: C field, 53 = SND-UD.
        address: A field, FF = broadcast.
        ci: CI field.
        data: what follows it.
    """

    control: int
    address: int
    ci: int
    data: bytes

    def to_bytes(self) -> bytes:
        """The frame.

        Raises:
            LocalProtocolError: more than 252 octets of data.
        """
        body = bytes((self.control, self.address, self.ci)) + self.data
        if len(body) > 0xFF:
            raise LocalProtocolError(f"{len(self.data)} octets do not fit an M-Bus frame")
        head = bytes((START, len(body), len(body), START))
        return head + body + bytes((sum(body) & 0xFF, STOP))


class MbusReader:
    """Cuts what comes from a line into long frames."""

    __slots__ = ("_buffer", "_offset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0

    def feed(self, octets: bytes) -> None:
        """Take what came from the line."""
        self._buffer += octets

    def next(self) -> MbusFrame | None:
        """The next frame, or None while none is complete.

        Raises:
            MalformedFrame: a frame with a good header and a wrong end was passed over; call again.
        """
        buffer = self._buffer
        while True:
            start = buffer.find(START)
            if start:
                self._drop(len(buffer) if start < 0 else start)
            if len(buffer) < 4:
                return None
            size = buffer[1]
            if size == buffer[2] and buffer[3] == START and size >= 3:
                break
            self._drop(1)
        end = size + _OVERHEAD
        if len(buffer) < end:
            return None
        body = bytes(buffer[4 : 4 + size])
        at = self._offset + 4 + size
        if buffer[end - 1] != STOP:
            self._drop(1)
            raise MalformedFrame("an M-Bus frame does not end with 16", at + 1)
        if sum(body) & 0xFF != buffer[end - 2]:
            self._drop(1)
            raise MalformedFrame("wrong M-Bus checksum", at)
        self._drop(end)
        return MbusFrame(body[0], body[1], body[2], body[3:])

    def pending(self) -> int:
        """Octets that wait for the rest of their frame."""
        return len(self._buffer)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._offset += count


class MbusAssembler:
    """Puts the segments of one APDU together again."""

    __slots__ = ("_next", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._next = 0

    def take(self, frame: MbusFrame) -> bytes | None:
        """The APDU that this frame completes, or None while segments are missing.

        Raises:
            MalformedFrame: another CI field, or a segment is missing; what was collected is forgotten.
        """
        if frame.ci & ~_TRANSPORT or len(frame.data) < 2:
            self._forget()
            raise MalformedFrame(f"CI field {frame.ci:02X} carries no DLMS segment")
        number = frame.ci & (MAX_SEGMENTS - 1)
        if number == 0:
            self._forget()
        if number != self._next:
            due = self._next
            self._forget()
            raise MalformedFrame(f"M-Bus segment {number} came, {due} is due")
        self._pieces.append(frame.data[2:])
        self._next += 1
        if not frame.ci & _LAST:
            return None
        apdu = b"".join(self._pieces)
        self._forget()
        return apdu

    def incomplete(self) -> bool:
        """Segments are missing."""
        return bool(self._pieces)

    def _forget(self) -> None:
        self._pieces.clear()
        self._next = 0
