"""M-Bus long frames: header checks, checksums, segments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedFrame
from edge_core.protocols.dlms.mbus import MbusAssembler, MbusFrame, MbusReader

FRAMES = Path(__file__).parents[3] / "data" / "frames"


def drain(reader: MbusReader) -> tuple[list[MbusFrame], list[str]]:
    out, errors = [], []
    while True:
        try:
            frame = reader.next()
        except MalformedFrame as error:
            errors.append(str(error))
            continue
        if frame is None:
            return out, errors
        out.append(frame)


def test_an_apdu_cut_over_two_frames() -> None:
    case = json.loads((FRAMES / "dlmsparser_mbus_netz_noe_p1.json").read_text())
    octets = bytes.fromhex(case["frames"][0])
    reader = MbusReader()
    reader.feed(octets)
    frames, errors = drain(reader)
    assert [(f.control, f.address, f.ci) for f in frames] == [
        (0x53, 0xFF, 0x00),
        (0x53, 0xFF, 0x11),
    ]
    assert not errors
    assert b"".join(f.to_bytes() for f in frames) == octets
    assembler = MbusAssembler()
    assert assembler.take(frames[0]) is None
    assert assembler.incomplete()
    apdu = assembler.take(frames[1])
    assert apdu is not None
    assert apdu[:10] == b"\xdb\x08KFMg" + bytes.fromhex("50000009")
    assert len(apdu) == sum(len(f.data) - 2 for f in frames)
    assert not assembler.incomplete()


def test_segments_out_of_order() -> None:
    first = MbusFrame(0x53, 0xFF, 0x00, b"\1\2abc")
    second = MbusFrame(0x53, 0xFF, 0x01, b"\1\2def")
    last = MbusFrame(0x53, 0xFF, 0x12, b"\1\2ghi")
    assembler = MbusAssembler()
    assert [assembler.take(f) for f in (first, second, last)] == [None, None, b"abcdefghi"]
    assembler.take(first)
    with pytest.raises(MalformedFrame, match="segment 2 came, 1 is due"):
        assembler.take(last)
    assert [assembler.take(f) for f in (first, second, last)][-1] == b"abcdefghi"
    assembler.take(first)
    assert assembler.take(first) is None  # begins anew
    assert assembler.take(MbusFrame(0x53, 0xFF, 0x11, b"\1\2x")) == b"abcx"


def test_other_telegrams_are_no_segments() -> None:
    for frame in (MbusFrame(8, 1, 0x72, b"\1\2\3"), MbusFrame(8, 1, 0x10, b"\1")):
        with pytest.raises(MalformedFrame):
            MbusAssembler().take(frame)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(-1, "does not end with 16"), (-2, "checksum"), (6, "checksum")],
)
def test_damaged_frames_are_passed_over(damage: int, message: str) -> None:
    good = MbusFrame(0x53, 0xFF, 0x10, b"\1\2abc")
    octets = bytearray(good.to_bytes())
    octets[damage] ^= 0x55
    reader = MbusReader()
    reader.feed(bytes(octets) + good.to_bytes())
    frames, errors = drain(reader)
    assert frames == [good]
    assert message in errors[0]


def test_headers_that_are_none_are_noise() -> None:
    good = MbusFrame(0x53, 0xFF, 0x10, b"\1\2abc")
    reader = MbusReader()
    reader.feed(bytes.fromhex("00 68 05 06 68 68 02 02 68 e5 10 7b fb 78 16") + good.to_bytes())
    assert drain(reader) == ([good], [])
    assert reader.pending() == 0


@given(st.lists(st.binary(min_size=2, max_size=252), min_size=1, max_size=3), st.data())
def test_cut_anywhere(pieces: list[bytes], data: st.DataObject) -> None:
    frames = [MbusFrame(0x53, 0xFF, i, piece) for i, piece in enumerate(pieces)]
    octets = b"".join(f.to_bytes() for f in frames)
    reader = MbusReader()
    out: list[MbusFrame] = []
    at = 0
    while at < len(octets):
        step = data.draw(st.integers(1, len(octets) - at))
        reader.feed(octets[at : at + step])
        out += drain(reader)[0]
        at += step
    assert out == frames


def test_wrong_use() -> None:
    with pytest.raises(LocalProtocolError):
        MbusFrame(0x53, 0xFF, 0, bytes(253)).to_bytes()
