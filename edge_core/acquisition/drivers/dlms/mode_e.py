"""IEC 62056-21 mode E: from the sign-on of an optical head at 300 baud to HDLC at the speed that the meter offers.

`/?!` at 7E1, the meter names itself and a speed, `ACK 2 Z 2` chooses HDLC (protocol 2, mode 2) at that speed, and the
line goes on as 8N1. Limits: an identification has at most MAX_IDENTIFICATION octets and comes within IDENTIFY_S.
Source: IEC 62056-21 annex B; DLMS UA Green Book ed. 9, clause 8.3 (direct local connection).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from edge_core.errors import MalformedFrame
from edge_core.transports.serial import SerialStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.config.schema import Line

SIGN_ON_BAUD: Final = 300
IDENTIFY_S: Final = 3.0
SWITCH_S: Final = 0.3
"""Pause between our choice and the new speed: 200 ms are the standard's shortest reaction time."""
MAX_IDENTIFICATION: Final = 64
SPEEDS: Final = {"0": 300, "1": 600, "2": 1200, "3": 2400, "4": 4800, "5": 9600, "6": 19200}


async def sign_on(line: Line, tracer: Callable[[str, bytes], None] | None) -> SerialStream:
    """A serial stream on which the meter speaks HDLC.

    Raises:
        TimeoutError: no identification in time.
        OSError: the port cannot be used.
        MalformedFrame: what came is no identification, or its speed is unknown.
    """
    first = SerialStream(
        line.device, baudrate=SIGN_ON_BAUD, parity="E", stopbits=1, bytesize=7, tracer=tracer
    )
    try:
        first.write(b"/?!\r\n")
        speed = speed_of(await _identification(first))
        first.write(b"\x062" + speed.encode() + b"2\r\n")
        await asyncio.sleep(SWITCH_S)
    finally:
        await first.close()
    return SerialStream(
        line.device, baudrate=SPEEDS[speed], parity="N", stopbits=line.stopbits, tracer=tracer
    )


async def _identification(stream: SerialStream) -> bytes:
    """The line that the meter names itself in; an echo of ours before it is dropped."""
    came = b""
    end = asyncio.get_running_loop().time() + IDENTIFY_S
    while b"\n" not in (line := came.removeprefix(b"/?!\r\n")):
        if len(came) > MAX_IDENTIFICATION:
            raise MalformedFrame(f"an identification of more than {MAX_IDENTIFICATION} octets")
        try:
            came += await stream.read(end - asyncio.get_running_loop().time())
        except TimeoutError:
            raise TimeoutError("no whole identification to the sign-on at 300 baud") from None
    return line


def speed_of(identification: bytes) -> str:
    """The speed character of `/XXXZ...`.

    Raises:
        MalformedFrame: no identification, or a speed that is none.
    """
    text = bytes(octet & 0x7F for octet in identification).decode("ascii")
    at = text.find("/")
    speed = text[at + 4 : at + 5]
    if at < 0 or speed not in SPEEDS:
        raise MalformedFrame(f"{text[:20]!r} is no identification with a speed")
    return speed
