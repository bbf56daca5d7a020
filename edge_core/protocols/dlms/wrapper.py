"""The wrapper of TCP and UDP port 4059: version, source wPort, destination wPort, length, APDU.

Invariants: a stream that once broke the header is never scanned for the next one: the reader stays broken and the
connection must be closed. One datagram holds one WPDU and nothing else. Bytes may come cut anywhere.
Limits: the buffer never holds more than a header and `max_apdu` octets plus what one `feed` brought.
Source: DLMS UA Green Book ed. 9, clause 7.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from edge_core.errors import LocalProtocolError, MalformedFrame

HEADER: Final = struct.Struct(">HHHH")
VERSION: Final = 1
MAX_APDU: Final = 0xFFFF


class Wpdu(NamedTuple):
    """One wrapped APDU.

    Attributes:
        source: wPort of the sender: client SAP or server SAP.
        destination: wPort of the receiver.
        apdu: the APDU.
    """

    source: int
    destination: int
    apdu: bytes


def wrap(source: int, destination: int, apdu: bytes) -> bytes:
    """A WPDU as octets.

    Raises:
        LocalProtocolError: an APDU above 65,535 octets, or a wPort above 16 bits.
    """
    try:
        return HEADER.pack(VERSION, source, destination, len(apdu)) + apdu
    except struct.error as cause:
        raise LocalProtocolError(f"no WPDU: {cause}") from None


def parse_datagram(octets: bytes) -> Wpdu:
    """The WPDU that one datagram is.

    Raises:
        MalformedFrame: another version, or a length that is not that of the datagram.
    """
    if len(octets) < HEADER.size:
        raise MalformedFrame(f"a wrapper header has 8 octets, {len(octets)} came", len(octets))
    version, source, destination, size = HEADER.unpack_from(octets)
    if version != VERSION:
        raise MalformedFrame(f"wrapper version {version:04X}, not 0001", 0)
    if size != len(octets) - HEADER.size:
        raise MalformedFrame(f"wrapper length {size}, {len(octets) - HEADER.size} octets came", 6)
    return Wpdu(source, destination, octets[HEADER.size :])


class WrapperReader:
    """Cuts a TCP stream into WPDUs.

    Args:
        max_apdu: longest APDU that is accepted, from the negotiated PDU size; 65,535 at most.
    """

    __slots__ = ("_broken", "_buffer", "_header", "max_apdu")

    def __init__(self, max_apdu: int = MAX_APDU) -> None:
        self.max_apdu = max_apdu
        self._buffer = bytearray()
        self._header: tuple[int, int, int, int] | None = None
        self._broken: MalformedFrame | None = None

    def feed(self, octets: bytes) -> None:
        """Take what came from the line."""
        self._buffer += octets

    def next(self) -> Wpdu | None:
        """The next WPDU, or None while it is not complete.

        Raises:
            MalformedFrame: the stream is no wrapper stream, or an APDU is longer than allowed; from then on always.
        """
        if self._broken is not None:
            raise self._broken
        buffer = self._buffer
        if self._header is None:
            if len(buffer) < HEADER.size:
                return None
            self._header = HEADER.unpack_from(buffer)
            version, _, _, size = self._header
            if version != VERSION:
                self._fail(f"wrapper version {version:04X}, not 0001", 0)
            if size > self.max_apdu:
                self._fail(f"an APDU of {size} octets, {self.max_apdu} are allowed", 6)
        _, source, destination, size = self._header
        end = HEADER.size + size
        if len(buffer) < end:
            return None
        apdu = bytes(buffer[HEADER.size : end])
        del buffer[:end]
        self._header = None
        return Wpdu(source, destination, apdu)

    def pending(self) -> int:
        """Octets that wait for the rest of their WPDU."""
        return len(self._buffer)

    def _fail(self, message: str, offset: int) -> None:
        self._broken = MalformedFrame(message, offset)
        self._buffer.clear()
        raise self._broken
