"""The meter's side of HDLC: frames in, frames out, one client.

A frame is cut by its length field alone, for there is no octet stuffing; broken frames are dropped, as a meter drops
them. SNRM is answered by UA with 128-octet information fields unless the client asks for other sizes; I frames are
segmented to what the client can receive, and sent in windows of what it takes (at most 7; one frame unless it asks for
more). A repeated I frame gets the last answer again and is not run twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastcrc.crc16 import ibm_sdlc

if TYPE_CHECKING:
    from collections.abc import Callable

FLAG = 0x7E
MAX_FRAME = 2_047
MAX_INFORMATION = 2_030
MAX_REQUEST = 65_536
MAX_WINDOW = 7
_LLC_REQUEST, _LLC_ANSWER = b"\xe6\xe6\x00", b"\xe6\xe7\x00"


def frame(
    target: bytes, source: bytes, control: int, information: bytes = b"", *, segmented: bool = False
) -> bytes:
    """One frame with its flags and checksums."""
    size = 2 + len(target) + len(source) + 1 + 2 + (len(information) + 2 if information else 0)
    head = (0xA000 | segmented << 11 | size).to_bytes(2, "big") + target + source + bytes([control])
    body = head + ibm_sdlc(head).to_bytes(2, "little")
    if information:
        body += information
        body += ibm_sdlc(body).to_bytes(2, "little")
    return bytes([FLAG]) + body + bytes([FLAG])


def address(octets: bytes, at: int) -> tuple[bytes, int]:
    """An address of 1, 2 or 4 octets, as it stands; the lowest bit of its last octet is set."""
    for count in (1, 2, 4):
        if len(octets) >= at + count and octets[at + count - 1] & 1:
            return octets[at : at + count], at + count
    raise ValueError("no end of the address")


def server_address(octets: bytes) -> tuple[int, int]:
    """Logical and physical address; 0 = no physical one was given."""
    parts = [octet >> 1 for octet in octets]
    if len(parts) == 4:
        return parts[0] << 7 | parts[1], parts[2] << 7 | parts[3]
    return parts[0], parts[1] if len(parts) == 2 else 0


@dataclass
class Station:
    """A secondary station.

    Attributes:
        mine: logical and physical address that are answered.
        handle: (client, APDU) -> APDU; may raise what the caller understands.
        reset: called at SNRM and DISC.
    """

    mine: tuple[int, int]
    handle: Callable[[int, bytes], bytes]
    reset: Callable[[], None]
    _buffer: bytearray = field(default_factory=bytearray)
    _connected: bool = False
    _send_no: int = 0
    _receive_no: int = 0
    _information: int = 128
    _pending: list[bytes] = field(default_factory=list)
    _request: bytearray = field(default_factory=bytearray)
    _last: bytes = b""
    _window: int = 1
    _sent: list[tuple[int, bytes]] = field(default_factory=list)

    def receive(self, octets: bytes) -> list[bytes]:
        """Frames to send for what has come."""
        self._buffer += octets
        answers = []
        while (found := self._next()) is not None:
            if answer := self._frame(found):
                answers.append(answer)
        return answers

    def _next(self) -> bytes | None:
        buffer = self._buffer
        while buffer:
            if buffer[0] != FLAG:
                del buffer[0]
                continue
            if len(buffer) < 3:
                return None
            if buffer[1] == FLAG:
                del buffer[0]
                continue
            size = (buffer[1] & 7) << 8 | buffer[2]
            if buffer[1] >> 4 != 0xA or size < 7:
                del buffer[0]
                continue
            if len(buffer) < size + 2:
                return None
            found = bytes(buffer[1 : size + 1])
            if buffer[size + 1] != FLAG:
                del buffer[0]
                continue
            del buffer[: size + 1]  # the closing flag may open the next frame
            return found
        return None

    def _frame(self, octets: bytes) -> bytes:
        """The answer to one frame, or nothing."""
        if ibm_sdlc(octets[:-2]) != int.from_bytes(octets[-2:], "little"):
            return b""
        try:
            target, at = address(octets, 2)
            source, at = address(octets, at)
        except ValueError:
            return b""
        logical, physical = server_address(target)
        if logical != self.mine[0] or physical not in (0, self.mine[1]):
            return b""
        control, information = octets[at], octets[at + 3 : -2]
        kind = control & 0xEF
        if kind == 0x83:  # SNRM
            self.reset()
            self._connected, self._send_no, self._receive_no = True, 0, 0
            self._pending, self._last, self._sent = [], b"", []
            self._request.clear()
            return frame(source, target, 0x73, self._negotiate(information))
        if kind == 0x43:  # DISC
            was, self._connected = self._connected, False
            self.reset()
            return frame(source, target, 0x73 if was else 0x1F)
        if not self._connected:
            return frame(source, target, 0x1F)  # DM
        if control & 1 == 0:
            return self._numbered(
                source, target, control, information, segmented=bool(octets[0] & 8)
            )
        if control & 0x0F == 1:  # RR
            if control >> 5 != self._send_no:
                return self._from(control >> 5)
            if self._pending:
                return self._part(source, target)
            return frame(source, target, 0x11 | self._receive_no << 5)
        return b""

    def _negotiate(self, information: bytes) -> bytes:
        self._information, self._window = 128, 1
        asked = 128
        if information[:2] == b"\x81\x80":
            at = 3
            while at + 2 <= len(information):
                name, count = information[at], information[at + 1]
                value = int.from_bytes(information[at + 2 : at + 2 + count], "big")
                if name == 5:
                    asked = max(32, min(value, MAX_INFORMATION))
                elif name == 6:
                    self._information = max(32, min(value, MAX_INFORMATION))
                elif name == 8:
                    self._window = max(1, min(value, MAX_WINDOW))
                at += 2 + count
        sizes = (
            b"\x05\x02"
            + self._information.to_bytes(2, "big")
            + b"\x06\x02"
            + asked.to_bytes(2, "big")
        )
        sizes += b"\x07\x04" + self._window.to_bytes(4, "big") + b"\x08\x04\x00\x00\x00\x01"
        return b"\x81\x80" + bytes([len(sizes)]) + sizes

    def _numbered(
        self, source: bytes, target: bytes, control: int, information: bytes, *, segmented: bool
    ) -> bytes:
        if control >> 1 & 7 != self._receive_no:
            return self._last  # repeated: the answer was lost
        self._receive_no = (self._receive_no + 1) % 8
        self._request += information
        if len(self._request) > MAX_REQUEST:
            self._request.clear()
            return frame(source, target, 0x97)  # FRMR
        if segmented:
            self._last = frame(source, target, 0x11 | self._receive_no << 5)
            return self._last
        request = bytes(self._request)
        self._request.clear()
        if request[:3] != _LLC_REQUEST:
            return frame(source, target, 0x97)
        answer = _LLC_ANSWER + self.handle(source[0] >> 1, request[3:])
        size = self._information
        self._pending = [answer[i : i + size] for i in range(0, len(answer), size)]
        return self._part(source, target)

    def _part(self, source: bytes, target: bytes) -> bytes:
        """The next window of the answer; the last frame of it asks for an acknowledgement."""
        parts, self._pending = self._pending[: self._window], self._pending[self._window :]
        self._sent = []
        for number, part in enumerate(parts, 1):
            final = 0x10 if number == len(parts) else 0
            control = final | self._receive_no << 5 | self._send_no << 1
            more = bool(self._pending) or not final
            self._sent.append((self._send_no, frame(source, target, control, part, segmented=more)))
            self._send_no = (self._send_no + 1) % 8
        self._last = b"".join(octets for _, octets in self._sent)
        return self._last

    def _from(self, number: int) -> bytes:
        """What of the last window was not received: the frames from this number on."""
        numbers = [sent for sent, _ in self._sent]
        if number not in numbers:
            return self._last
        return b"".join(octets for _, octets in self._sent[numbers.index(number) :])
