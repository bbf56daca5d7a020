"""Every reader of a stream says the same whether it gets its octets whole, cut anywhere, or one by one.

A reader is a class of `edge_core.protocols` with a method `feed`; one that is not in READERS fails the first test.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_core.protocols
from edge_core.errors import ProtocolError
from edge_core.protocols.dlms.mbus import MbusReader
from edge_core.protocols.dlms.push import PushStream
from edge_core.protocols.dlms.push_frames import PushFrames
from edge_core.protocols.dlms.wrapper import WrapperReader, wrap
from edge_core.protocols.hdlc.frame import Frame, FrameReader, client_address, server_address
from edge_core.protocols.hdlc.link import Link

FRAMES = Path(__file__).parents[1] / "data" / "frames"
CLIENT, SERVER = client_address(16), server_address(1)
UA = Frame(CLIENT, SERVER, 0x73, b"").to_bytes()
ANSWER = [
    Frame(CLIENT, SERVER, 0x30, b"\xe6\xe7\x00" + b"a" * 40, True).to_bytes(),
    Frame(CLIENT, SERVER, 0x32, b"b" * 60, True).to_bytes(),
    Frame(CLIENT, SERVER, 0x34, b"c" * 9).to_bytes(),
]


def captured(*names: str) -> bytes:
    out = b""
    for name in names:
        out += b"".join(
            map(bytes.fromhex, json.loads((FRAMES / f"{name}.json").read_text())["frames"])
        )
    return out


class Asked:
    """A link that has sent a request; each answer of the meter is fed as it is cut."""

    def __init__(self) -> None:
        self.link = Link(CLIENT, SERVER)
        self.link.connect()
        self.link.outgoing()
        assert self.link.feed(UA)
        self.link.send(b"GET")
        self.link.outgoing()

    def feed(self, octets: bytes) -> list[Any]:
        found: list[Any] = self.link.feed(octets)
        return [*found, self.link.outgoing()] if found else found

    @property
    def sent(self) -> bytes:
        return self.link.outgoing()


class Pulled:
    """A reader with `feed` and `next`."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def feed(self, octets: bytes) -> list[Any]:
        self.reader.feed(octets)
        found: list[Any] = []
        while True:
            try:
                if (one := self.reader.next()) is None:
                    return found
                found.append(one)
            except ProtocolError as error:
                found.append(str(error))


NOISE = b"\x00\xff\x7e\xa0\x03\x7e"
READERS: dict[type, tuple[Callable[[], Any], bytes]] = {
    FrameReader: (
        lambda: Pulled(FrameReader()),
        NOISE + captured("hdlc_i_frame_aare", "amshan_kaifa_no_list_3", "amshan_hdlc_frame_with_flag_sequence_character_in_info"),
    ),
    WrapperReader: (
        lambda: Pulled(WrapperReader()),
        wrap(1, 16, b"") + wrap(1, 16, bytes(300)) + wrap(2, 32, b"\x00\x01\x00\x01"),
    ),
    MbusReader: (
        lambda: Pulled(MbusReader()),
        b"\x68\x01\x02" + captured("dlmsparser_mbus_netz_noe_p1") * 2,
    ),
    PushStream: (
        PushStream,
        captured("wrapper_udp_push_general_glo", "wrapper_udp_push_general_glo"),
    ),
    PushFrames: (
        lambda: PushFrames("serial"),
        captured("dlmsparser_hdlc_landis_gyr_e450", "dlmsparser_hdlc_iskra550"),
    ),
    Link: (Asked, b"".join(ANSWER)),
}  # fmt: skip


def test_every_reader_is_here() -> None:
    found = set()
    for module in pkgutil.walk_packages(edge_core.protocols.__path__, "edge_core.protocols."):
        for _, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if one.__module__ == module.name and callable(getattr(one, "feed", None)):
                found.add(one)
    assert found == set(READERS)


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__name__)
def test_whole_cut_anywhere_and_octet_by_octet(reader: type) -> None:
    make, octets = READERS[reader]
    whole = make().feed(octets)
    assert len(whole) >= 1
    one_by_one = make()
    assert [e for octet in octets for e in one_by_one.feed(bytes((octet,)))] == whole
    rng = random.Random(7)
    for _ in range(40):
        cuts = sorted(rng.sample(range(len(octets) + 1), 5))
        parts = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
        cut = make()
        assert [e for part in parts for e in cut.feed(part)] == whole
