"""HDLC frames of format type 3, as DLMS uses them on serial lines, optical heads and inside TCP.

7E, format (A + S bit + 11 bits of length, counted without the flags), destination, source, control, HCS (only with an
information field), information, FCS, 7E. There is no octet stuffing: 7E and 7D stand inside, the length alone ends a
frame, and two frames may share one flag.

Invariants: addresses are kept as the octets that came, never written anew, so that checksums are taken over what was
sent (a Kaifa meter has a source of `00 01`). What came makes the same frames whether it came whole or octet by octet.
After a damaged frame the reader looks for the next flag, inside the damaged one too: noise costs one frame.
Limits: 2,047 octets a frame; the buffer holds at most one frame beside what one `feed` brought.
Source: DLMS UA Green Book ed. 9, clause 8.4; ISO/IEC 13239. FCS: CRC-16/X-25, low octet first.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec
from fastcrc.crc16 import ibm_sdlc

from edge_core.errors import LocalProtocolError, MalformedFrame

FLAG: Final = 0x7E
MAX_FRAME: Final = 0x7FF
MAX_INFORMATION: Final = 2030
_SEGMENTED: Final = 0x0800
_TYPE_3: Final = 0xA
_CHECK_OCTETS: Final = 2
_POLL: Final = 0x10


class Kind(Enum):
    """What the control field says; values of unnumbered frames are their control octets without the P/F bit."""

    I = "I"  # noqa: E741 the standard's name  # numbered information
    RR = "RR"  # receive ready
    RNR = "RNR"  # receive not ready
    SNRM = 0x83  # set normal response mode
    DISC = 0x43
    UA = 0x63  # unnumbered acknowledge
    DM = 0x0F  # disconnected mode
    FRMR = 0x87  # frame reject
    UI = 0x03  # unnumbered information


_UNNUMBERED: Final = {kind.value: kind for kind in Kind if isinstance(kind.value, int)}


class Frame(msgspec.Struct, frozen=True):
    """One frame.

    Attributes:
        destination: address octets as sent: 1, 2 or 4.
        source: likewise.
        control: control octet.
        information: b"" without.
        segmented: the S bit: more frames of this APDU follow.
    """

    destination: bytes
    source: bytes
    control: int
    information: bytes = b""
    segmented: bool = False

    @property
    def kind(self) -> Kind:
        """What the control field says.

        Raises:
            MalformedFrame: a control field that DLMS does not use.
        """
        control = self.control
        if not control & 1:
            return Kind.I
        if control & 0x0F == 0x01:
            return Kind.RR
        if control & 0x0F == 0x05:
            return Kind.RNR
        kind = _UNNUMBERED.get(control & ~_POLL)
        if kind is None:
            raise MalformedFrame(f"control field {control:02X} is unknown")
        return kind

    @property
    def final(self) -> bool:
        """The P/F bit: the right to send passes to the other side."""
        return bool(self.control & _POLL)

    @property
    def send_number(self) -> int:
        """N(S) of an I frame."""
        return self.control >> 1 & 7

    @property
    def receive_number(self) -> int:
        """N(R) of I, RR and RNR frames: the frame that the sender expects next."""
        return self.control >> 5

    def to_bytes(self) -> bytes:
        """The frame with its flags.

        Raises:
            LocalProtocolError: it would be longer than 2,047 octets.
        """
        head = self.destination + self.source + bytes((self.control,))
        size = 2 + len(head) + _CHECK_OCTETS
        if self.information:
            size += len(self.information) + _CHECK_OCTETS
        if size > MAX_FRAME:
            raise LocalProtocolError(f"a frame of {size} octets, {MAX_FRAME} are possible")
        form = _TYPE_3 << 12 | (_SEGMENTED if self.segmented else 0) | size
        body = form.to_bytes(2, "big") + head
        if self.information:
            body += ibm_sdlc(body).to_bytes(2, "little") + self.information
        return b"\x7e" + body + ibm_sdlc(body).to_bytes(2, "little") + b"\x7e"


def information_control(send: int, receive: int, *, poll: bool = True) -> int:
    """Control octet of an I frame."""
    return receive << 5 | (_POLL if poll else 0) | send << 1


def ready_control(receive: int) -> int:
    """Control octet of RR with the P/F bit."""
    return receive << 5 | _POLL | 0x01


def unnumbered_control(kind: Kind, *, poll: bool = True) -> int:
    """Control octet of an unnumbered frame."""
    if not isinstance(kind.value, int):
        raise LocalProtocolError(f"{kind.name} is numbered")
    return kind.value | (_POLL if poll else 0)


def client_address(sap: int) -> bytes:
    """One octet.

    Raises:
        LocalProtocolError: not 0 to 127.
    """
    if not 0 <= sap <= 0x7F:
        raise LocalProtocolError(f"client address {sap} is not 0 to 127")
    return bytes((sap << 1 | 1,))


def server_address(logical: int, physical: int | None = None, octets: int = 0) -> bytes:
    """Logical (upper) and physical (lower) HDLC address of a meter.

    Args:
        logical: 1 = management logical device.
        physical: None = the address has no lower part.
        octets: 1, 2 or 4; 0 = as few as both parts fit in.

    Raises:
        LocalProtocolError: a part does not fit.
    """
    parts = (logical,) if physical is None else (logical, physical)
    if octets == 0:
        octets = len(parts) if max(parts) <= 0x7F else 4
    if physical is None and octets == 1 and 0 <= logical <= 0x7F:
        return bytes((logical << 1 | 1,))
    if physical is not None and octets == 2 and all(0 <= p <= 0x7F for p in parts):
        return bytes((logical << 1, physical << 1 | 1))
    if physical is not None and octets == 4 and all(0 <= p <= 0x3FFF for p in parts):
        return bytes(
            (
                logical >> 6 & 0xFE,
                logical << 1 & 0xFE,
                physical >> 6 & 0xFE,
                physical << 1 & 0xFE | 1,
            )
        )
    raise LocalProtocolError(f"HDLC address {logical}.{physical} does not fit {octets} octets")


def split_address(octets: bytes) -> tuple[int, int | None]:
    """Upper and lower part of an address; lower is None in an address of one octet."""
    if len(octets) == 1:
        return octets[0] >> 1, None
    if len(octets) == 2:
        return octets[0] >> 1, octets[1] >> 1
    return octets[0] >> 1 << 7 | octets[1] >> 1, octets[2] >> 1 << 7 | octets[3] >> 1


class FrameReader:
    """Cuts what comes from a line into frames."""

    __slots__ = ("_buffer", "_offset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0

    def feed(self, octets: bytes) -> None:
        """Take what came from the line."""
        self._buffer += octets

    def next(self) -> Frame | None:
        """The next frame, or None while none is complete.

        Raises:
            MalformedFrame: a damaged frame was passed over; call again for what follows it. `offset` counts from the
                first octet that was ever fed.
        """
        buffer = self._buffer
        while True:
            flag = buffer.find(FLAG)
            if flag < 0:
                self._drop(len(buffer))
                return None
            start = flag
            while start + 1 < len(buffer) and buffer[start + 1] == FLAG:
                start += 1
            if start:
                self._drop(start)
            if len(buffer) < 3:
                return None
            form = buffer[1] << 8 | buffer[2]
            if form >> 12 == _TYPE_3:
                break
            self._drop(1)  # a closing flag, or a flag inside a damaged frame
        try:
            frame, size = _parse(buffer, form)
        except MalformedFrame as damage:
            at = self._offset + (damage.offset or 0)
            self._drop(1)
            raise MalformedFrame(str(damage), at) from None
        if frame is not None:
            self._drop(size + 1)  # the closing flag stays: it may open the next frame
        return frame

    def pending(self) -> int:
        """Octets that wait for the rest of their frame; a lone closing flag is none."""
        return len(self._buffer) if len(self._buffer) > 1 else 0

    def reset(self) -> None:
        """Forget a half frame: the line fell silent in the middle of it."""
        self._drop(len(self._buffer))

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._offset += count


def _parse(buffer: bytearray, form: int) -> tuple[Frame | None, int]:
    """The frame whose opening flag stands first, and its octets; None while it is not complete.

    The HCS is checked as soon as it is there: a wrong length is not waited for.
    """
    size = form & MAX_FRAME
    if size < 7:
        raise MalformedFrame(f"a frame of {size} octets", 1)
    at = 3
    addresses = []
    for name in ("destination", "source"):
        start = at
        while True:
            if at >= len(buffer):
                return None, size
            last = buffer[at] & 1
            at += 1
            if last:
                break
            if at - start == 4:
                raise MalformedFrame(f"the {name} address does not end", start)
        if at - start == 3:
            raise MalformedFrame(f"a {name} address of 3 octets", start)
        addresses.append(bytes(buffer[start:at]))
    control_at = at
    head_end = at + 1  # behind the control field
    end = 1 + size  # of the FCS; the closing flag stands there
    if head_end + _CHECK_OCTETS > end:
        raise MalformedFrame(f"a frame of {size} octets has no room for its addresses", 1)
    has_information = head_end + _CHECK_OCTETS != end
    information_at = head_end
    if has_information:
        information_at = head_end + _CHECK_OCTETS
        if information_at + _CHECK_OCTETS > end:
            raise MalformedFrame(f"a frame of {size} octets has no room for its checksums", 1)
        if len(buffer) < information_at:
            return None, size
        if _check(buffer, 1, head_end) != buffer[head_end:information_at]:
            raise MalformedFrame("wrong header checksum (HCS)", head_end)
    if len(buffer) <= end:
        return None, size
    if buffer[end] != FLAG:
        raise MalformedFrame("the closing flag is not where the length says", end)
    if _check(buffer, 1, end - _CHECK_OCTETS) != buffer[end - _CHECK_OCTETS : end]:
        raise MalformedFrame("wrong frame checksum (FCS)", end - _CHECK_OCTETS)
    return Frame(
        addresses[0],
        addresses[1],
        buffer[control_at],
        bytes(buffer[information_at : end - _CHECK_OCTETS]) if has_information else b"",
        bool(form & _SEGMENTED),
    ), size


def _check(buffer: bytearray, start: int, end: int) -> bytes:
    return int(ibm_sdlc(bytes(buffer[start:end]))).to_bytes(2, "little")
