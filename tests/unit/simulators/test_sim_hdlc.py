"""The meter's side of HDLC: cut by length, segmented both ways, repeated frames answered again and not run twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.dlms.hdlc import Station, address, frame, server_address

SERVER, CLIENT = b"\x02\x23", b"\x61"  # logical 1, physical 17; client 48
SNRM, DISC, UA, DM, FRMR = 0x93, 0x53, 0x73, 0x1F, 0x97


class Peer:
    """What the station was asked, and a way to ask it."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda apdu: b"\xc4" + apdu) -> None:
        self.asked: list[bytes] = []
        self.resets = 0
        self.answer = answer
        self.station = Station((1, 17), self.handle, self.reset)

    def handle(self, client: int, apdu: bytes) -> bytes:
        assert client == 48
        self.asked.append(apdu)
        return self.answer(apdu)

    def reset(self) -> None:
        self.resets += 1

    def send(self, control: int, information: bytes = b"", **more: bool) -> list[bytes]:
        return self.station.receive(frame(SERVER, CLIENT, control, information, **more))


def parts(octets: bytes) -> tuple[int, bytes, bool]:
    """Control, information and segmentation bit of an answer, which comes from the server."""
    assert octets[0] == octets[-1] == 0x7E
    assert (octets[1] & 7) << 8 | octets[2] == len(octets) - 2
    assert octets[3:6] == CLIENT + SERVER
    return octets[6], octets[9:-3], bool(octets[1] & 8)


def test_connect_ask_disconnect() -> None:
    peer = Peer()
    assert parts(peer.send(DISC)[0])[0] == DM
    control, parameters, _ = parts(peer.send(SNRM)[0])
    assert control == UA
    assert parameters[:3] == b"\x81\x80\x14"
    control, information, more = parts(peer.send(0x10, b"\xe6\xe6\x00hello")[0])
    assert (control, information, more) == (0x30, b"\xe6\xe7\x00\xc4hello", False)
    assert parts(peer.send(DISC)[0])[0] == UA
    assert peer.asked == [b"hello"]
    assert parts(peer.send(0x10, b"\xe6\xe6\x00late")[0])[0] == DM


def test_a_repeated_frame_gets_the_last_answer_and_is_not_run_twice() -> None:
    peer = Peer()
    peer.send(SNRM)
    first = peer.send(0x10, b"\xe6\xe6\x00act")
    assert peer.send(0x10, b"\xe6\xe6\x00act") == first
    assert peer.asked == [b"act"]
    assert peer.send(0x11) == first  # RR with the old number asks for it again
    assert parts(peer.send(0x31)[0])[0] == 0x31  # RR with the new one: nothing more to send


def test_segments_in_both_directions() -> None:
    peer = Peer(lambda apdu: bytes(range(200)) + apdu)
    assert (
        parts(peer.send(SNRM, bytes.fromhex("81800605014006 0140".replace(" ", "")))[0])[0] == UA
    )  # 64 octets
    assert parts(peer.send(0x10, b"\xe6\xe6\x00abc", segmented=True)[0])[0] == 0x31
    answers = [peer.send(0x12, b"def")[0]]
    number = 1
    while parts(answers[-1])[2]:
        answers.append(peer.send(0x11 | number << 5)[0])
        number = (number + 1) % 8
    assert peer.asked == [b"abcdef"]
    assert all(len(parts(a)[1]) <= 64 for a in answers)
    assert b"".join(parts(a)[1] for a in answers) == b"\xe6\xe7\x00" + bytes(range(200)) + b"abcdef"


@settings(deadline=None)
@given(st.data())
def test_frames_may_come_in_any_pieces_and_share_a_flag(data: st.DataObject) -> None:
    peer = Peer()
    stream = frame(SERVER, CLIENT, SNRM)[:-1] + frame(SERVER, CLIENT, 0x10, b"\xe6\xe6\x00~~}~")
    answers: list[bytes] = []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        answers += peer.station.receive(stream[:count])
        stream = stream[count:]
    assert [parts(a)[0] for a in answers] == [UA, 0x30]
    assert peer.asked == [b"~~}~"]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_dropped(noise: bytes) -> None:
    peer = Peer()
    peer.station.receive(noise)
    assert peer.asked == []
    good = peer.station.receive(bytes([0x7E]) * 3000 + frame(SERVER, CLIENT, SNRM))
    assert parts(good[-1])[0] == UA


def test_frames_for_others_and_broken_ones_are_not_answered() -> None:
    peer = Peer()
    assert peer.station.receive(frame(b"\x02\x25", CLIENT, SNRM)) == []
    assert peer.station.receive(frame(b"\x04\x23", CLIENT, SNRM)) == []
    assert (
        len(peer.station.receive(frame(b"\x00\x02\x00\x23", CLIENT, SNRM))) == 1
    )  # four octets, the same address
    assert len(peer.station.receive(frame(b"\x03", CLIENT, SNRM))) == 1  # logical alone
    bad = bytearray(frame(SERVER, CLIENT, SNRM))
    bad[-2] ^= 1
    assert peer.station.receive(bytes(bad)) == []
    assert peer.station.receive(frame(b"\x02\x22\x22\x22", CLIENT, SNRM)) == []
    assert server_address(b"\x02\x23") == (1, 17)
    with pytest.raises(ValueError, match="no end"):
        address(b"\x02\x22", 0)


def test_requests_that_make_no_sense_are_rejected() -> None:
    peer = Peer()
    peer.send(SNRM)
    assert parts(peer.send(0x10, b"no LLC")[0])[0] == FRMR
    assert peer.send(0x03, b"UI") == []
    peer = Peer()
    peer.send(SNRM)
    number = 0
    for _ in range(40):
        answer = peer.send(0x10 | number << 1, bytes(1_900), segmented=True)
        number = (number + 1) % 8
        if parts(answer[0])[0] == FRMR:
            break
    else:
        pytest.fail("a request without an end was swallowed")
