"""Whatever comes on a HAN port: whole notifications or nothing, in bounded memory, and the next good one is heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import push
from edge_core.protocols.dlms.push_frames import MAX_APDU, PushFrames

FRAMES = Path(__file__).parents[1] / "data" / "frames"
NAMES = (
    "dlmsparser_hdlc_iskra550",
    "dlmsparser_hdlc_landis_gyr_e450",
    "dlmsparser_mbus_netz_noe_p1",
    "dlmsparser_hdlc_norway_han_1phase",
)


def capture(name: str) -> bytes:
    document = json.loads((FRAMES / f"{name}.json").read_text())
    return b"".join(bytes.fromhex(frame) for frame in document["frames"])


CAPTURES = {name: capture(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("framing", ["", "serial"])
def test_octet_by_octet(name: str, framing: str) -> None:
    whole = PushFrames(framing).feed(CAPTURES[name])
    reader = PushFrames(framing)
    found = [e for octet in CAPTURES[name] for e in reader.feed(bytes((octet,)))]
    assert found == whole
    assert len(found) == 1
    assert reader.damaged == 0


@given(octets=st.binary(max_size=600), framing=st.sampled_from(["", "serial", "hdlc", "mbus"]))
def test_any_octets(octets: bytes, framing: str) -> None:
    reader = PushFrames(framing)
    try:
        for envelope in reader.feed(octets):
            assert len(envelope.apdu) <= MAX_APDU
            push.read(envelope.apdu)
    except ProtocolError:
        pass


@given(
    name=st.sampled_from(NAMES),
    at=st.integers(0, 10_000),
    octet=st.integers(1, 255),
    cut=st.integers(0, 10_000),
)
@settings(max_examples=200)
def test_damage_loses_its_notification_and_no_other(
    name: str, at: int, octet: int, cut: int
) -> None:
    good = CAPTURES[name]
    bad = bytearray(good)
    bad[at % len(bad)] ^= octet
    del bad[cut % (len(bad) + 1) :]
    reader = PushFrames("hdlc" if "hdlc" in name else "mbus")
    (truth,) = PushFrames().feed(good)
    for envelope in reader.feed(bytes(bad)):
        assert envelope == truth, "checksums let nothing else pass"
    reader.silent()
    assert reader.feed(good) == [truth]


def test_memory_is_bounded() -> None:
    """Segments without an end: what is above the longest APDU is dropped."""
    from edge_core.protocols.hdlc.frame import Frame

    reader = PushFrames("hdlc")
    frame = Frame(b"\x41", b"\x08\x83", 0x13, bytes(2000), True).to_bytes()
    for _ in range(100):
        assert reader.feed(frame) == []
    assert reader.damaged >= 9
    assert len(reader._segments) <= MAX_APDU
