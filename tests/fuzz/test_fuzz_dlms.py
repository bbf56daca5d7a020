"""Any octets: they decode or raise ProtocolError, in bounded time and memory. Seeds are the captured frames."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import axdr, push
from tests.fuzz.decoders import DECODERS, SEEDS


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


FOUND = {
    "a gateway header that is cut": "000101c101010001e7",
    "a compact-array of nothing": (
        "01040204090c07e30c241f0217000000ff0001041301003201400200100001000100010000041000020404020410"
        "1301000100010000041000020404020410130100320140010032014002"
    ),
}


@pytest.mark.parametrize("what", FOUND)
@pytest.mark.parametrize("name", DECODERS)
def test_what_atheris_found(name: str, what: str) -> None:
    with contextlib.suppress(ProtocolError):
        DECODERS[name](bytes.fromhex(FOUND[what]))


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
