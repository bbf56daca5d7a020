"""What SNRM and UA negotiate: information lengths and windows.

Each side speaks from its own view: `max_information_send` in a UA is what the meter sends. Values come in one or two
octets (lengths) and four (windows); a UA without parameters means the defaults, 128 octets and window 1.
Source: DLMS UA Green Book ed. 9, clause 8.4.5.3.2.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edge_core.errors import MalformedFrame
from edge_core.protocols.hdlc.frame import MAX_INFORMATION

DEFAULT_INFORMATION: Final = 128
MAX_WINDOW: Final = 7
_HEAD: Final = b"\x81\x80"
_NAMES: Final = {
    5: "max_information_send",
    6: "max_information_receive",
    7: "window_send",
    8: "window_receive",
}


class Parameters(msgspec.Struct, frozen=True):
    """Lengths of the information field in octets, windows in frames, from the view of whoever sends them."""

    max_information_send: int = DEFAULT_INFORMATION
    max_information_receive: int = DEFAULT_INFORMATION
    window_send: int = 1
    window_receive: int = 1

    def to_bytes(self) -> bytes:
        """The information field of SNRM or UA."""
        body = b"".join(
            bytes((5 + i, 2)) + size.to_bytes(2, "big") if size > 0xFF else bytes((5 + i, 1, size))
            for i, size in enumerate((self.max_information_send, self.max_information_receive))
        ) + b"".join(
            bytes((7 + i, 4)) + window.to_bytes(4, "big")
            for i, window in enumerate((self.window_send, self.window_receive))
        )
        return _HEAD + bytes((len(body),)) + body

    def agreed(self, answer: Parameters) -> Parameters:
        """What holds for us after the meter's answer."""
        return Parameters(
            min(self.max_information_send, answer.max_information_receive),
            min(self.max_information_receive, answer.max_information_send),
            min(self.window_send, answer.window_receive),
            min(self.window_receive, answer.window_send),
        )


def parse_parameters(information: bytes) -> Parameters:
    """Parameters of an SNRM or UA; the defaults for what is absent.

    Raises:
        MalformedFrame: not format 81, group 80, or a value that cannot be.
    """
    if not information:
        return Parameters()
    if information[:2] != _HEAD or len(information) < 3:
        raise MalformedFrame("HDLC parameters begin with 81 80", 0)
    if information[2] != len(information) - 3:
        raise MalformedFrame(
            f"HDLC parameters of {information[2]} octets, {len(information) - 3} came", 2
        )
    found: dict[str, int] = {}
    at = 3
    while at < len(information):
        head = information[at : at + 2]
        value = information[at + 2 : at + 2 + head[-1]]
        if len(head) < 2 or not 1 <= head[1] <= 4 or len(value) != head[1]:
            raise MalformedFrame("an HDLC parameter is cut", at)
        name = _NAMES.get(head[0])
        if name is not None:
            number = int.from_bytes(value, "big")
            if number < 1:
                raise MalformedFrame(f"HDLC parameter {head[0]:02X} is 0", at)
            found[name] = min(number, MAX_INFORMATION if head[0] < 7 else MAX_WINDOW)
        at += 2 + head[1]
    return Parameters(**found)
