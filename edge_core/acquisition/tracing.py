"""What `opendcu read --trace` shows: each frame with a remark, secrets masked.

Of protected APDUs the wrapper, security control, counter and length are shown, never the protected octets nor what
they decrypt to; of an AARQ and AARE neither password nor challenge; of HLS passes nothing but that they came. What is
in the clear is shown as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import acse, apdu, ciphering, general
from edge_core.protocols.dlms.services import ActionRequest, ActionResponse, GetRequest
from edge_core.protocols.dlms.wrapper import WrapperReader
from edge_core.protocols.hdlc.frame import FrameReader, Kind
from edge_core.protocols.hdlc.link import strip_llc
from edge_core.protocols.modbus.remarks import remark

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN_OCTETS: Final = 64
_ARROW: Final = {"send": "->", "receive": "<-"}


class Trace:
    """A tracer that cuts the stream into frames and remarks on each.

    Args:
        framing: of the line.
        tell: gets each line as it is known.
    """

    def __init__(self, framing: str, tell: Callable[[str], Any]) -> None:
        self._framing, self._tell = framing, tell
        self._readers: dict[str, Any] = {}
        self._in_hls = False

    def __call__(self, direction: str, octets: bytes) -> None:
        arrow = _ARROW.get(direction, direction)
        if self._framing.startswith("modbus"):
            words = remark(self._framing, direction, octets)
            self._tell(f"{arrow} {words}" + ("" if direction == "plan" else f"  {_shown(octets)}"))
            return
        if self._framing not in ("wrapper", "hdlc"):
            self._tell(f"{arrow} {len(octets)} octets  {_shown(octets)}")
            return
        make = WrapperReader if self._framing == "wrapper" else FrameReader
        reader = self._readers.setdefault(direction, make())
        try:
            reader.feed(octets)
            while (frame := reader.next()) is not None:
                if self._framing == "wrapper":
                    place = f"{frame.source} to {frame.destination}"
                    self._tell(f"{arrow} {place}: {self._remark(frame.apdu)}")
                else:
                    self._tell(f"{arrow} {self._hdlc(frame)}")
        except ProtocolError as error:
            self._readers.pop(direction, None)
            self._tell(f"{arrow} {len(octets)} octets that are no frame: {error}")

    def _hdlc(self, frame: Any) -> str:
        kind = frame.kind
        name = (
            kind.name if kind is not Kind.I else f"I S{frame.send_number} R{frame.receive_number}"
        )
        if kind not in (Kind.I, Kind.UI) or not frame.information:
            return name
        information = strip_llc(frame.information)
        if frame.segmented or information == frame.information:
            return f"{name}: {len(information)} octets, part of an APDU"
        return f"{name}: {self._remark(information)}"

    def _remark(self, octets: bytes) -> str:
        """What an APDU is, without its secrets."""
        try:
            if octets[:1] in (b"\x60", b"\x61", b"\x62", b"\x63"):
                return self._acse(octets)
            if ciphering.is_ciphered(octets):
                sealed = ciphering.peek(octets)
                key = sealed.key_info.kind
                return (
                    f"{sealed.name}, {f'{key} key, ' if key != 'none' else ''}security control {sealed.control:02X}, counter {sealed.counter}, "
                    f"{len(sealed.body)} octets masked"
                )
            if octets[:1] == _SIGNED:
                content = general.peek_signed(octets).content
                inner = "signed again" if content[:1] == _SIGNED else self._remark(content)
                return f"general-signing of {inner}"
            message = apdu.decode(octets)
        except ProtocolError as error:
            return f"{len(octets)} octets that are no APDU: {error}"
        if isinstance(message, (ActionRequest, ActionResponse)) and self._in_hls:
            self._in_hls = isinstance(message, ActionRequest)
            return f"{message.NAME}: {'pass 3' if self._in_hls else 'pass 4'} of HLS, masked"
        words = getattr(message, "words", "")
        about = str(message.attribute) if isinstance(message, GetRequest) else words
        return f"{message.NAME} {about}".strip() + f"  {_shown(octets)}"

    def _acse(self, octets: bytes) -> str:
        message = acse.decode(octets)
        if isinstance(message, acse.Aarq):
            self._in_hls = (message.mechanism or 0) > 1
            secret = len(message.authentication_value)
            return (
                f"AARQ {acse.mechanism_words(message.mechanism)}, title {message.title.hex() or 'none'}"
                + (f", authentication value of {secret} octets masked" if secret else "")
            )
        if isinstance(message, acse.Aare):
            return f"AARE {message.words}, title {message.title.hex() or 'none'}"
        return message.NAME.upper()


_SIGNED = bytes((general.GENERAL_SIGNING,))


def _shown(octets: bytes) -> str:
    more = f" ... {len(octets) - SHOWN_OCTETS} more" if len(octets) > SHOWN_OCTETS else ""
    return octets[:SHOWN_OCTETS].hex(" ") + more
