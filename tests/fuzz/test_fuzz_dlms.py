"""Any octets: they decode or raise ProtocolError, in bounded time and memory. Seeds are the captured frames."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_core.domain import Secret
from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import acse, apdu, axdr, bodies, ciphering, push
from edge_core.protocols.dlms.decode import Keys, decode
from edge_core.protocols.dlms.mbus import MbusReader
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.dlms.wrapper import WrapperReader
from edge_core.protocols.hdlc.frame import FrameReader, client_address, server_address
from edge_core.protocols.hdlc.link import Link, State
from edge_core.protocols.hdlc.parameters import parse_parameters

FRAMES = Path(__file__).parents[1] / "data" / "frames"
KEY = Secret(bytes(16))
CONTEXT = SecurityContext(0, KEY, KEY)


def _seeds() -> list[bytes]:
    out = []
    for path in sorted(FRAMES.glob("*.json")):
        case = json.loads(path.read_text())
        frames = case.get("frames") or []
        for value in frames.values() if isinstance(frames, dict) else [frames]:
            out += [bytes.fromhex(frame)[:2000] for frame in value]
        plain = case.get("plain_apdu")
        out += [bytes.fromhex(plain)] if isinstance(plain, str) else []
    return out


SEEDS = _seeds()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A captured frame with some octets changed, cut, repeated or put in."""
    octets = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        if not octets:
            break
        at = draw(st.integers(0, len(octets) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                octets[at] = draw(st.integers(0, 255))
            case 1:
                octets[at] = draw(st.sampled_from([0, 1, 2, 9, 0x13, 0x7E, 0x7F, 0x80, 0x84, 0xFF]))
            case 2:
                del octets[at:]
            case 3:
                octets[at:at] = draw(st.binary(max_size=6))
            case 4:
                del octets[at : at + draw(st.integers(1, 8))]
    return bytes(octets)


ANY = st.one_of(st.binary(max_size=300), mutated())


def frames_of(reader: FrameReader | WrapperReader | MbusReader, octets: bytes) -> None:
    reader.feed(octets)
    for _ in range(len(octets) + 2):
        try:
            if reader.next() is None:
                return
        except ProtocolError:
            if isinstance(reader, WrapperReader):
                return
    pytest.fail("a reader does not come to an end")


def link(octets: bytes) -> None:
    """A link that is connecting, and one that waits for an answer."""
    for state in (State.CONNECTING, State.CONNECTED):
        sides = Link(client_address(16), server_address(1))
        sides.connect()
        if state is State.CONNECTED:
            sides.feed(bytes.fromhex("7ea00a2103737a6b7e"))
            sides.feed(b"")
        if sides.state is State.CONNECTED:
            sides.send(b"GET")
        try:
            sides.feed(octets)
        finally:
            assert len(sides.outgoing()) <= 64 * (len(octets) + 8)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "axdr": axdr.decode_whole,
    "axdr-skip": axdr.skip,
    "apdu": apdu.decode,
    "acse": acse.decode,
    "initiate": acse.decode_initiate,
    "body": bodies.decode_body,
    "peek": lambda o: ciphering.peek(o).open(CONTEXT, bytes(8)),
    "peek-signed": ciphering.peek_signed,
    "open": lambda o: CONTEXT.open(bytes(8), o),
    "push": push.read,
    "datagram": push.open_datagram,
    "parameters": parse_parameters,
    "hdlc": lambda o: frames_of(FrameReader(), o),
    "wrapper": lambda o: frames_of(WrapperReader(), o),
    "mbus": lambda o: frames_of(MbusReader(), o),
    "link": link,
    "decode": lambda o: decode([o]),
    "decode-keys": lambda o: decode([o], [Keys(KEY, KEY), Keys(KEY)], [bytes(8)]),
    "decode-lines": lambda o: decode([o[: len(o) // 2], o[len(o) // 2 :]]),
}


@pytest.mark.parametrize("name", DECODERS)
def test_any_octets(name: str) -> None:
    decoder = DECODERS[name]

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ANY)
    def run(octets: bytes) -> None:
        raised: ProtocolError | None = None
        try:
            decoder(octets)
        except ProtocolError as error:
            raised = error
        assert raised is None or (str(raised) and (raised.offset is None or raised.offset >= 0))

    run()


def test_a_decoded_tree_is_written_as_it_was_read() -> None:
    @settings(max_examples=300, deadline=None)
    @given(ANY)
    def run(octets: bytes) -> None:
        try:
            value, end = axdr.decode(octets)
        except ProtocolError:
            return
        assert axdr.skip(octets) == end
        again = axdr.encode(value)
        assert axdr.decode_whole(again) == value or "nan" in repr(value)

    run()


BOMBS = {
    "array of four thousand million": "0184ffffffff" + "00" * 1000,
    "arrays of arrays": "0104" * 4000 + "00",
    "deep": "0201" * 30000 + "00",
    "wide and deep": "01ff" * 5000,
    "types": "13" + "02ff" * 5000,
    "packed nothing": "13" + "01ffff" * 12 + "00" + "01" + "00",
    "packed little": "13" + "02" + "40" + "00" * 63 + "11" + "82ffff" + "00" * 65535,
    "packed arrays": "13" + "01ffff01ffff11" + "820fff" + "00" * 4095,
    "many nulls": "0183040000" + "00" * (4 << 16),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(name: str) -> None:
    """Memory stays below a fixed bound whatever counts say; time below that of every test (30 s)."""
    octets = bytes.fromhex(BOMBS[name])
    tracemalloc.start()
    with contextlib.suppress(ProtocolError):
        axdr.decode_whole(octets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_datagram_of_any_size_costs_little() -> None:
    """The largest datagram that UDP brings, full of structures."""
    body = b"\x01\x82\xff\x00" + b"\x02\x00" * 0x7F00
    octets = bytes.fromhex("0001000100400000") + b"\x0f\0\0\0\1\0" + body
    octets = octets[:6] + (len(octets) - 8).to_bytes(2, "big") + octets[8:]
    tracemalloc.start()
    with contextlib.suppress(ProtocolError):
        push.read(push.open_datagram(octets).apdu)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
