"""How long does a last gasp take from datagram to alert, and what do the frame readers carry?

A ciphered IS 15959 push (tag verified) through wrapper, deciphering, body and alert; HDLC and wrapper streams cut into
frames. No sockets, one process. The targets speak of 5,000 gasps within a second: 200 us each for everything.

usage: decode_push.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import measure, save, spread, table

from edge_core.config.models import load_model
from edge_core.domain import Secret
from edge_core.protocols.dlms import apdu, axdr, ciphering, push
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.dlms.wrapper import WrapperReader, wrap
from edge_core.protocols.hdlc.frame import Frame, FrameReader

TITLE = b"MTR00001"
CONTEXT = SecurityContext(0, Secret(bytes(range(16))), Secret(bytes(range(0xD0, 0xE0))))
SCHEMAS = push.schemas_of(load_model("is15959-3ph").push)
GASPS = 5000


def gasp(counter: int) -> bytes:
    body = axdr.structure(
        axdr.octet_string(b"DEV000000001"),
        axdr.octet_string(bytes.fromhex("0004190900ff")),
        axdr.octet_string(bytes.fromhex("07e90601ff000f00ff014a00")),
        axdr.bits("0" * push.LAST_GASP_BIT + "1" + "0" * (127 - push.LAST_GASP_BIT)),
    )
    plain = apdu.DataNotification(counter, b"", axdr.encode(body)).to_bytes()
    return wrap(1, 64, ciphering.seal(CONTEXT, TITLE, counter, plain, general=True))


def main() -> None:
    datagrams = [gasp(counter) for counter in range(1, GASPS + 1)]

    def storm() -> None:
        for datagram in datagrams:
            plain = push.open_datagram(datagram).open(CONTEXT).plain
            (alert,) = push.alerts(push.read(plain, SCHEMAS), SCHEMAS)
            assert alert.code == "last-gasp"

    frames = b"".join(
        Frame(b"\x21", b"\x02\x23", 0x13, bytes(n & 0xFF for n in range(size))).to_bytes()
        for size in (20, 128, 128, 128)
        for _ in range(250)
    )
    stream = b"".join(datagrams[:1000])

    def hdlc() -> None:
        reader = FrameReader()
        reader.feed(frames)
        assert sum(1 for _ in iter(reader.next, None)) == 1000

    def wpdus() -> None:
        reader = WrapperReader()
        reader.feed(stream)
        assert sum(1 for _ in iter(reader.next, None)) == 1000

    results = [
        {"what": f"{name}, each", **spread([s / count for s in measure(run, repeat=5)])}
        for name, run, count in (
            ("last gasp, datagram to alert", storm, GASPS),
            ("HDLC frame of 20 or 128 octets", hdlc, 1000),
            ("WPDU of a stream", wpdus, 1000),
        )
    ]
    rows = [["what", "min us", "median us", "max us"]]
    print(table(rows + [[str(cell) for cell in result.values()] for result in results]))
    save("decode_push", {"results": results}, "cryptography", "msgspec", "fastcrc")


if __name__ == "__main__":
    main()
