"""The wrapper: whole = octet by octet = with what follows; broken streams stay broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedFrame
from edge_core.protocols.dlms.wrapper import Wpdu, WrapperReader, parse_datagram, wrap

WPDU = Wpdu(48, 1, b"\xc0\x01\xc1")
OCTETS = bytes.fromhex("0001003000010003c001c1")


def drain(reader: WrapperReader) -> list[Wpdu]:
    out = []
    while (wpdu := reader.next()) is not None:
        out.append(wpdu)
    return out


def test_there_and_back() -> None:
    assert wrap(*WPDU) == OCTETS
    assert parse_datagram(OCTETS) == WPDU
    assert parse_datagram(wrap(1, 64, b"")) == Wpdu(1, 64, b"")


@given(
    st.lists(
        st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=300)), max_size=5
    ),
    st.data(),
)
def test_cut_anywhere(parts: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    wpdus = [Wpdu(*part) for part in parts]
    octets = b"".join(wrap(*wpdu) for wpdu in wpdus)
    reader = WrapperReader()
    out: list[Wpdu] = []
    at = 0
    while at < len(octets):
        step = data.draw(st.integers(1, len(octets) - at))
        reader.feed(octets[at : at + step])
        out += drain(reader)
        at += step
    assert out == wpdus
    assert reader.pending() == 0


@given(st.binary(max_size=64))
def test_whole_is_octet_by_octet(octets: bytes) -> None:
    def run(chunks: list[bytes]) -> tuple[list[Wpdu], str]:
        reader = WrapperReader(max_apdu=64)
        out: list[Wpdu] = []
        for chunk in chunks:
            reader.feed(chunk)
            try:
                out += drain(reader)
            except MalformedFrame as error:
                return out, str(error)
        return out, ""

    whole = run([octets])
    single = run([octets[i : i + 1] for i in range(len(octets))])
    assert single[1] == whole[1]
    assert single[0][: len(whole[0])] == whole[0]


def test_what_follows_waits() -> None:
    reader = WrapperReader()
    reader.feed(OCTETS + OCTETS[:5])
    assert drain(reader) == [WPDU]
    assert reader.pending() == 5


@pytest.mark.parametrize(
    ("octets", "offset"),
    [("7ea0070321930f01", 0), ("0002003000010003", 0), ("0001003000011001", 6)],
)
def test_a_broken_stream_stays_broken(octets: str, offset: int) -> None:
    reader = WrapperReader(max_apdu=4096)
    reader.feed(bytes.fromhex(octets))
    with pytest.raises(MalformedFrame) as caught:
        reader.next()
    assert caught.value.offset == offset
    reader.feed(OCTETS)
    with pytest.raises(MalformedFrame):
        reader.next()


@pytest.mark.parametrize("octets", ["", "00010030", "0002003000010003c001c1"])
def test_datagrams_that_are_none(octets: str) -> None:
    with pytest.raises(MalformedFrame):
        parse_datagram(bytes.fromhex(octets))


def test_a_datagram_is_one_wpdu_and_nothing_else() -> None:
    with pytest.raises(MalformedFrame, match="length 3, 4 octets"):
        parse_datagram(OCTETS + b"\0")
    with pytest.raises(MalformedFrame, match="length 3, 2 octets"):
        parse_datagram(OCTETS[:-1])


def test_wrong_use() -> None:
    with pytest.raises(LocalProtocolError):
        wrap(1, 1, bytes(65536))
    with pytest.raises(LocalProtocolError):
        wrap(70000, 1, b"")
