"""HDLC frames: captured ones, addresses, flags inside, noise; whole = octet by octet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedFrame
from edge_core.protocols.hdlc.frame import (
    Frame,
    FrameReader,
    Kind,
    client_address,
    information_control,
    ready_control,
    server_address,
    split_address,
    unnumbered_control,
)

FRAMES = Path(__file__).parents[3] / "data" / "frames"
HDLC = sorted(
    path.stem for path in FRAMES.glob("*.json") if json.loads(path.read_text())["framing"] == "hdlc"
)


def read(octets: bytes, *, single: bool = False) -> tuple[list[Frame], list[MalformedFrame]]:
    reader = FrameReader()
    frames: list[Frame] = []
    errors: list[MalformedFrame] = []
    for chunk in [octets[i : i + 1] for i in range(len(octets))] if single else [octets]:
        reader.feed(chunk)
        while True:
            try:
                frame = reader.next()
            except MalformedFrame as error:
                errors.append(error)
                continue
            if frame is None:
                break
            frames.append(frame)
    return frames, errors


@pytest.mark.parametrize("name", HDLC)
def test_captures(name: str) -> None:
    octets = bytes.fromhex("".join(json.loads((FRAMES / f"{name}.json").read_text())["frames"]))
    frames, errors = read(octets)
    assert frames
    assert not errors
    assert b"".join(frame.to_bytes() for frame in frames) == octets
    assert read(octets, single=True) == (frames, [])
    assert read(octets + octets[:9]) == (frames, [])


def test_green_book_fcs() -> None:
    """03 3F gives 5B EC, low octet first."""
    from fastcrc.crc16 import ibm_sdlc

    assert ibm_sdlc(bytes.fromhex("033f")).to_bytes(2, "little").hex() == "5bec"
    assert ibm_sdlc(b"123456789") == 0x906E


def test_flags_and_escapes_stand_inside() -> None:
    frame = Frame(b"\x21", b"\x03", 0x13, b"\x7e\x7d\x7e\x7e\xa0\x7e", segmented=True)
    assert read(frame.to_bytes() * 2) == ([frame, frame], [])


def test_an_fcs_that_holds_a_flag() -> None:
    """A reader that splits on 7E loses such frames."""
    found = 0
    for n in range(3000):
        frame = Frame(
            b"\x03", server_address(1, 3875), 0x52, b"\xe6\xe7\x00" + n.to_bytes(2, "big")
        )
        octets = frame.to_bytes()
        if 0x7E in octets[-3:-1]:
            found += 1
            assert read(octets, single=True) == ([frame], [])
    assert found > 5


def test_two_frames_share_a_flag() -> None:
    one = Frame(b"\x21", b"\x03", 0x93).to_bytes()
    assert read(one[:-1] + one)[0] == read(one + one)[0]
    assert len(read(one[:-1] + one)[0]) == 2
    assert len(read(b"\x7e\x7e" + one + b"\x7e\x7e\x7e" + one)[0]) == 2


@pytest.mark.parametrize(
    ("octets", "parts"),
    [
        ("21", (16, None)),
        ("0223", (1, 17)),
        ("00023c47", (1, 3875)),
        ("0001", (0, 0)),
        ("feff", (127, 127)),
        ("fefefeff", (16383, 16383)),
    ],
)
def test_addresses(octets: str, parts: tuple[int, int | None]) -> None:
    raw = bytes.fromhex(octets)
    assert split_address(raw) == parts
    assert server_address(*parts, octets=len(raw)) == raw
    frame = Frame(raw, b"\x21", 0x13, b"abc")
    assert read(frame.to_bytes())[0] == [frame]


def test_addresses_are_as_short_as_they_can_be() -> None:
    assert server_address(1) == b"\x03"
    assert server_address(1, 17) == b"\x02\x23"
    assert server_address(1, 3875) == bytes.fromhex("00023c47")
    assert client_address(16) == b"\x21"
    for call in (
        lambda: client_address(128),
        lambda: server_address(200),
        lambda: server_address(1, 16384),
        lambda: server_address(1, 17, octets=1),
        lambda: server_address(1, 200, octets=2),
        lambda: server_address(1, 17, octets=3),
    ):
        with pytest.raises(LocalProtocolError):
            call()


def test_a_source_whose_first_octet_is_zero() -> None:
    """Kaifa: destination 01, source 00 01. An address that is written anew loses the zero, and the HCS with it."""
    frame = Frame(b"\x01", b"\x00\x01", 0x10, b"\xe6\xe7\x00\x0f")
    assert read(frame.to_bytes())[0] == [frame]


def test_control_fields() -> None:
    def kind(control: int) -> Kind:
        return Frame(b"\x21", b"\x03", control).kind

    for control, expected in (
        (0x93, Kind.SNRM),
        (0x83, Kind.SNRM),
        (0x53, Kind.DISC),
        (0x73, Kind.UA),
        (0x1F, Kind.DM),
        (0x97, Kind.FRMR),
        (0x13, Kind.UI),
        (0x03, Kind.UI),
        (0x31, Kind.RR),
        (0x15, Kind.RNR),
        (0x10, Kind.I),
    ):
        assert kind(control) is expected
    with pytest.raises(MalformedFrame, match="control field 7F"):
        kind(0x7F)
    control = information_control(5, 3, poll=False)
    frame = Frame(b"\x21", b"\x03", control)
    assert (frame.send_number, frame.receive_number, frame.final) == (5, 3, False)
    assert Frame(b"\x21", b"\x03", information_control(5, 3)).final
    assert Frame(b"\x21", b"\x03", ready_control(6)).receive_number == 6
    assert unnumbered_control(Kind.SNRM) == 0x93
    assert unnumbered_control(Kind.UI, poll=False) == 0x03
    with pytest.raises(LocalProtocolError):
        unnumbered_control(Kind.RR)


GOOD = Frame(b"\x21", b"\x02\x23", 0x30, b"\xe6\xe7\x00\xc4\x01\xc1\x00\x11\x05")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: 0xA8}, "HCS"),
        ({2: 0x05}, "octets"),
        ({3: 0x23}, "HCS"),
        ({7: 0x00}, "HCS"),
        ({12: 0xFF}, "FCS"),
        ({-2: 0xFF}, "FCS"),
        ({-1: 0x7F}, "closing flag"),
        ({2: 0x09}, "no room for its checksums"),
        ({2: 0x07}, "no room for its addresses"),
    ],
)
def test_damage_costs_one_frame(change: dict[int, int], message: str) -> None:
    octets = bytearray(GOOD.to_bytes())
    for position, value in change.items():
        octets[position] = value
    stream = bytes(octets) + GOOD.to_bytes()
    frames, errors = read(stream)
    assert frames == [GOOD]
    assert message in str(errors[0])
    assert read(stream, single=True)[0] == [GOOD]


def test_addresses_that_do_not_end() -> None:
    frames, errors = read(bytes.fromhex("7ea010 0202020202 0000000000000000 7e"))
    assert not frames
    assert "does not end" in str(errors[0])
    frames, errors = read(bytes.fromhex("7ea010 020203 0300000000000000000000 7e"))
    assert "3 octets" in str(errors[0])


def test_a_wrong_length_is_not_waited_for() -> None:
    """The header checksum decides as soon as it is there, not after 2,047 octets of silence."""
    octets = bytearray(GOOD.to_bytes())
    octets[1] = 0xA7
    octets[2] = 0xFF
    frames, errors = read(bytes(octets))
    assert not frames
    assert "HCS" in str(errors[0])
    assert errors[0].offset == 7


def test_offsets_count_from_the_first_octet_of_the_line() -> None:
    damaged = bytearray(GOOD.to_bytes())
    damaged[-2] ^= 1
    _, errors = read(GOOD.to_bytes() + bytes(damaged))
    assert errors[0].offset == 2 * len(GOOD.to_bytes()) - 3


def test_a_half_frame_is_forgotten() -> None:
    reader = FrameReader()
    reader.feed(GOOD.to_bytes()[:10])
    assert reader.next() is None
    assert reader.pending() == 10
    reader.reset()
    reader.feed(GOOD.to_bytes())
    assert reader.next() == GOOD
    assert reader.pending() == 0  # a closing flag is nothing to wait for


def test_a_frame_that_is_too_long() -> None:
    with pytest.raises(LocalProtocolError, match="2047"):
        Frame(b"\x21", b"\x03", 0x10, bytes(2040)).to_bytes()
    longest = Frame(b"\x21", b"\x03", 0x10, bytes(2038)).to_bytes()
    assert len(longest) == 2047 + 2
    assert len(read(longest)[0]) == 1


@given(st.binary(max_size=200))
def test_noise_before_a_frame(noise: bytes) -> None:
    frames, _ = read(noise.replace(b"\x7e", b"") + GOOD.to_bytes())
    assert frames == [GOOD]


@given(st.lists(st.binary(max_size=60), max_size=4), st.data())
def test_cut_anywhere(parts: list[bytes], data: st.DataObject) -> None:
    frames = [Frame(b"\x21", b"\x02\x23", 0x13, part) for part in parts]
    octets = b"".join(f.to_bytes() for f in frames)
    reader = FrameReader()
    out = []
    at = 0
    while at < len(octets):
        step = data.draw(st.integers(1, len(octets) - at))
        reader.feed(octets[at : at + step])
        while (frame := reader.next()) is not None:
            out.append(frame)
        at += step
    assert out == frames


@given(
    st.lists(st.sampled_from([0x7E, 0xA0, 0x07, 0x08, 0x03, 0x21, 0x93, 0x13, 0x00]), max_size=40)
)
def test_whole_is_octet_by_octet_also_for_garbage(octets: list[int]) -> None:
    raw = bytes(octets)
    whole, single = read(raw), read(raw, single=True)
    assert whole[0] == single[0]
    assert [(str(e), e.offset) for e in whole[1]] == [(str(e), e.offset) for e in single[1]]
