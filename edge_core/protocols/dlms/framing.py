"""Frames of any kind to APDUs, without being told which kind: for `opendcu decode`.

Recognised: HDLC (with or without the outer flags of a log line), the TCP/UDP wrapper, M-Bus long frames, a bare LLC
header, a bare APDU. HDLC segments and M-Bus segments are put together by direction; GET, ACTION and general block
transfers are the business of `decode`.

Invariants: octets that make no frame are reported, never dropped silently; if nothing at all can be used, the first
damage is raised.
Limits: MAX_OCTETS of input, MAX_WARNINGS of each kind.
Source: DLMS UA Green Book ed. 9, clauses 7 and 8; captures in tests/data/frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from edge_core.errors import MalformedApdu, MalformedFrame
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.mbus import MbusAssembler, MbusReader
from edge_core.protocols.dlms.wrapper import HEADER, WrapperReader
from edge_core.protocols.hdlc.frame import FLAG, Frame, FrameReader, Kind
from edge_core.protocols.hdlc.link import LLC_COMMAND, LLC_RESPONSE, strip_llc

if TYPE_CHECKING:
    from collections.abc import Sequence

Direction = tuple[bytes, bytes]
"""Source and destination address, as octets."""
_ANY: Final[Direction] = (b"", b"")
MAX_OCTETS: Final = 16 << 20
MAX_WARNINGS: Final = 20


class Piece(msgspec.Struct, frozen=True):
    """One APDU, or one link frame without any.

    Attributes:
        direction: who sent it to whom.
        apdu: the APDU, b"" for a link frame.
        link: the HDLC frame where it carries no APDU: SNRM, UA, DISC, DM, RR.
    """

    direction: Direction
    apdu: bytes
    link: Frame | None = None


class Unframed(msgspec.Struct, frozen=True):
    """What a capture holds.

    Attributes:
        framing: hdlc, wrapper, mbus, llc or none.
        pieces: in the order in which they were complete.
        warnings: what was passed over.
    """

    framing: str
    pieces: tuple[Piece, ...]
    warnings: tuple[str, ...] = ()


def unframe(frames: Sequence[bytes]) -> Unframed:
    """The APDUs of a capture: one frame an element, or many frames in one element.

    Raises:
        MalformedFrame: nothing in it can be used; `offset` counts over all elements.
    """
    frames = [frame for frame in frames if frame]
    whole = b"".join(frames)
    if not whole:
        raise MalformedFrame("there is nothing to decode", 0)
    if len(whole) > MAX_OCTETS:
        raise MalformedFrame(f"more than {MAX_OCTETS} octets", MAX_OCTETS)
    first = frames[0]
    if first[0] == FLAG:
        return _hdlc(whole)
    if _is_hdlc_without_flags(first):
        return _hdlc(b"".join(b"\x7e" + frame + b"\x7e" for frame in frames))
    if len(first) >= 4 and first[0] == first[3] == 0x68 and first[1] == first[2]:
        return _mbus(whole)
    if first[:2] == b"\x00\x01" and not _is_get_data_result(whole):
        return _wrapper(whole)
    if first.startswith((LLC_COMMAND, LLC_RESPONSE)):
        return Unframed("llc", tuple(Piece(_llc(frame), strip_llc(frame)) for frame in frames))
    return Unframed("none", tuple(Piece(_ANY, frame) for frame in frames))


def _warn(warnings: list[str], text: str) -> None:
    """A line of noise makes no million warnings."""
    if len(warnings) < MAX_WARNINGS:
        warnings.append(text)
    elif len(warnings) == MAX_WARNINGS:
        warnings.append("more damage of this kind")


def _is_get_data_result(octets: bytes) -> bool:
    """00 and an array: the answer to a GET without its head, which begins like a wrapper."""
    try:
        return axdr.skip(octets, 1) == len(octets)
    except MalformedApdu:
        return False


def _llc(frame: bytes) -> Direction:
    return (frame[:3], b"")


def _is_hdlc_without_flags(frame: bytes) -> bool:
    """Some logs leave the flags out: the length must fit, and the checksums decide."""
    if len(frame) < 7 or frame[0] >> 4 != 0xA:
        return False
    size = (frame[0] & 7) << 8 | frame[1]
    if size != len(frame):
        return False
    reader = FrameReader()
    reader.feed(b"\x7e" + frame + b"\x7e")
    try:
        return reader.next() is not None
    except MalformedFrame:
        return False


def _hdlc(octets: bytes) -> Unframed:
    reader = FrameReader()
    reader.feed(octets)
    pieces: list[Piece] = []
    warnings: list[str] = []
    open_: dict[Direction, bytearray] = {}
    damage: MalformedFrame | None = None
    while True:
        try:
            frame = reader.next()
            if frame is None:
                break
            kind = frame.kind
        except MalformedFrame as error:
            damage = damage or error
            _warn(warnings, f"{error} at octet {error.offset}")
            continue
        direction = (frame.source, frame.destination)
        if kind not in (Kind.I, Kind.UI) or not frame.information:
            pieces.append(Piece(direction, b"", frame))
            continue
        parts = open_.pop(direction, None)
        if parts is None:
            parts = bytearray(strip_llc(frame.information))
        else:
            parts += frame.information
        if frame.segmented:
            open_[direction] = parts
        elif parts:
            pieces.append(Piece(direction, bytes(parts)))
    if reader.pending():
        missing = MalformedFrame("the last HDLC frame is not complete", len(octets))
        damage = damage or missing
        warnings.append(str(missing))
    for parts in open_.values():
        missing = MalformedFrame("the last HDLC segment is missing", len(octets))
        damage = damage or missing
        warnings.append(f"{missing}: {len(parts)} octets left out")
    if not pieces:
        raise damage or MalformedFrame("no HDLC frame", 0)
    return Unframed("hdlc", tuple(pieces), tuple(warnings))


def _wrapper(octets: bytes) -> Unframed:
    reader = WrapperReader()
    reader.feed(octets)
    pieces: list[Piece] = []
    warnings: list[str] = []
    used = 0
    damage: MalformedFrame | None = None
    try:
        while (wpdu := reader.next()) is not None:
            used += HEADER.size + len(wpdu.apdu)
            direction = (wpdu.source.to_bytes(2, "big"), wpdu.destination.to_bytes(2, "big"))
            pieces.append(Piece(direction, _without_gateway(wpdu.apdu)))
    except MalformedFrame as error:
        damage = MalformedFrame(str(error), used + (error.offset or 0))
    if damage is None and reader.pending():
        _, _, _, size = HEADER.unpack_from(octets[used:].ljust(HEADER.size, b"\0"))
        have = max(0, len(octets) - used - HEADER.size)
        damage = MalformedFrame(f"wrapper length {size}, {have} octets came", used + 6)
    if damage is not None:
        if not pieces:
            raise damage
        warnings.append(f"{damage} at octet {damage.offset}")
    return Unframed("wrapper", tuple(pieces), tuple(warnings))


def _without_gateway(apdu: bytes) -> bytes:
    """Some concentrators prepend E6 or E7, a network id and the physical address of the meter behind them."""
    if apdu[:1] in (b"\xe6", b"\xe7") and len(apdu) > 3 and len(apdu) > 3 + apdu[2]:
        return apdu[3 + apdu[2] :]
    return apdu


def _mbus(octets: bytes) -> Unframed:
    reader = MbusReader()
    reader.feed(octets)
    assembler = MbusAssembler()
    pieces: list[Piece] = []
    warnings: list[str] = []
    damage: MalformedFrame | None = None
    while True:
        try:
            frame = reader.next()
            if frame is None:
                break
            apdu = assembler.take(frame)
        except MalformedFrame as error:
            damage = damage or error
            _warn(warnings, str(error))
            continue
        if apdu:
            pieces.append(Piece(_ANY, apdu))
    if reader.pending() or assembler.incomplete():
        missing = MalformedFrame("the last M-Bus frame is missing or cut", len(octets))
        damage = damage or missing
        warnings.append(str(missing))
    if not pieces:
        raise damage or MalformedFrame("no M-Bus frame", 0)
    return Unframed("mbus", tuple(pieces), tuple(warnings))
