"""Pushes in a stream of unknown framing: HDLC UI frames, M-Bus long frames, or the wrapper; told by the first octet.

Customer interfaces (HAN ports, optical and wired M-Bus) send without being asked. HDLC segments are put together by
the S bit (Iskraemeco), M-Bus segments by their numbers, general block transfers (Landis+Gyr sends them in UI frames
without the S bit) by block number.

Invariants: damaged frames are counted and passed over; a lost piece loses its notification, never mixes two.
Limits: an APDU has MAX_APDU octets. Source: captures in tests/data/frames (amshan_*, dlmsparser_*).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_core.errors import MalformedApdu, MalformedFrame
from edge_core.protocols.dlms import apdu, push
from edge_core.protocols.dlms.blocks import BlockAssembler
from edge_core.protocols.dlms.mbus import START, MbusAssembler, MbusReader
from edge_core.protocols.dlms.wrapper import Wpdu, WrapperReader
from edge_core.protocols.hdlc.frame import FLAG, Frame, FrameReader, Kind
from edge_core.protocols.hdlc.link import strip_llc

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_APDU: Final = 16_384
_GBT: Final = b"\xe0"


class PushFrames:
    """Envelopes of one sender's stream.

    Args:
        framing: hdlc, mbus or wrapper; "" = by the first octet that comes; serial = hdlc or mbus, by what makes the
            first whole frame, for a port may be opened in the middle of one.

    Attributes:
        damaged: frames and pieces that could not be used.
    """

    def __init__(self, framing: str = "") -> None:
        self.damaged = 0
        self._framing = framing
        self._hdlc = FrameReader()
        self._segments = bytearray()
        self._mbus, self._mbus_parts = MbusReader(), MbusAssembler()
        self._wrapper = WrapperReader(MAX_APDU)
        self._blocks: BlockAssembler | None = None

    def feed(self, octets: bytes) -> list[push.Envelope]:
        """What these octets complete.

        Raises:
            MalformedFrame: a wrapper stream is broken: close it.
        """
        if not self._framing and octets:
            self._framing = {FLAG: "hdlc", START: "mbus"}.get(octets[0], "wrapper")
        if self._framing == "serial":
            wpdus = self._of_either(octets)
        else:
            apdus = {"hdlc": self._of_hdlc, "mbus": self._of_mbus}
            wpdus = list(apdus.get(self._framing, self._of_wrapper)(octets))
        out = []
        for wpdu in wpdus:
            try:
                whole = self._whole(wpdu.apdu)
                if whole:
                    out.append(push.envelope(wpdu._replace(apdu=whole)))
            except MalformedApdu:
                self.damaged += 1
                self._blocks = None
        return out

    def silent(self) -> None:
        """The line fell silent: half a frame will not be completed."""
        self._hdlc.reset()
        self._mbus, self._mbus_parts = MbusReader(), MbusAssembler()
        self._segments.clear()
        self._blocks = None

    def _whole(self, octets: bytes) -> bytes | None:
        """The APDU, put together where it comes in blocks; None while blocks are missing."""
        if octets[:1] != _GBT:
            self._blocks = None
            return octets
        block = apdu.decode(octets)
        assert isinstance(block, apdu.GeneralBlockTransfer)
        if self._blocks is None or block.number == 1:
            self._blocks = BlockAssembler(MAX_APDU)
        whole = self._blocks.take(block)
        if block.last:
            self._blocks = None
        return whole

    def _of_either(self, octets: bytes) -> list[Wpdu]:
        """Both readers pass over what is not theirs; the first frame that is whole decides."""
        damaged = self.damaged
        for framing, read in (("hdlc", self._of_hdlc), ("mbus", self._of_mbus)):
            if found := list(read(octets)):
                self._framing = framing
                break
        self.damaged = damaged
        return found

    def _of_wrapper(self, octets: bytes) -> Iterator[Wpdu]:
        self._wrapper.feed(octets)
        while (wpdu := self._wrapper.next()) is not None:
            yield wpdu

    def _of_hdlc(self, octets: bytes) -> Iterator[Wpdu]:
        self._hdlc.feed(octets)
        while True:
            try:
                frame = self._hdlc.next()
                if frame is None:
                    return
                if frame.kind is not Kind.UI:
                    continue
            except MalformedFrame:
                self.damaged += 1
                self._segments.clear()
                continue
            if (whole := self._segment(frame)) is not None:
                yield Wpdu(0, 0, whole)

    def _segment(self, frame: Frame) -> bytes | None:
        information = frame.information
        if not self._segments:
            information = strip_llc(information)
        if len(self._segments) + len(information) > MAX_APDU:
            self.damaged += 1
            self._segments.clear()
            return None
        self._segments += information
        if frame.segmented:
            return None
        whole = bytes(self._segments)
        self._segments.clear()
        return whole

    def _of_mbus(self, octets: bytes) -> Iterator[Wpdu]:
        self._mbus.feed(octets)
        while True:
            try:
                frame = self._mbus.next()
                if frame is None:
                    return
                whole = self._mbus_parts.take(frame)
            except MalformedFrame:
                self.damaged += 1
                continue
            if whole:
                yield Wpdu(0, 0, whole)
