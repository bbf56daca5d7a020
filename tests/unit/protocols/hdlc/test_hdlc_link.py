"""The client link against a small meter: windows, segments, lost frames in both directions, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedFrame
from edge_core.protocols.hdlc.frame import (
    Frame,
    FrameReader,
    Kind,
    client_address,
    information_control,
    server_address,
    unnumbered_control,
)
from edge_core.protocols.hdlc.link import (
    Closed,
    Connected,
    Event,
    Link,
    Received,
    State,
    Unsolicited,
    Waiting,
    strip_llc,
)
from edge_core.protocols.hdlc.parameters import Parameters, parse_parameters

CLIENT = client_address(16)
SERVER = server_address(1, 17)


class Meter:
    """A meter in normal response mode that answers each APDU with `answer(apdu)`; it counts what it ran."""

    def __init__(self, parameters: Parameters, answer: Callable[[bytes], bytes]) -> None:
        self.parameters = parameters
        self.answer = answer
        self.ran: list[bytes] = []
        self.connected = False
        self.reader = FrameReader()
        self.busy = 0

    def feed(self, octets: bytes) -> list[bytes]:
        """Frames that the meter answers with."""
        self.reader.feed(octets)
        out: list[bytes] = []
        while (frame := self.reader.next()) is not None:
            out += self.handle(frame)
        return out

    def handle(self, frame: Frame) -> list[bytes]:
        kind = frame.kind
        if kind is Kind.SNRM:
            self.connected = True
            asked = parse_parameters(frame.information)
            self.limits = self.parameters.agreed(asked)
            self.next_send = self.next_receive = 0
            self.incoming = bytearray()
            self.queue: list[tuple[int, bytes, bool]] = []  # not acknowledged by the client
            return [self.unnumbered(Kind.UA, self.parameters.to_bytes())]
        if not self.connected:
            return [self.unnumbered(Kind.DM)]
        if kind is Kind.DISC:
            self.connected = False
            return [self.unnumbered(Kind.UA)]
        if self.queue:
            del self.queue[: (frame.receive_number - self.queue[0][0]) & 7]
        if kind is Kind.I and frame.send_number == self.next_receive:
            self.next_receive = (self.next_receive + 1) & 7
            self.incoming += frame.information
            if not frame.segmented:
                self.run()
        if not frame.final:
            return []
        if self.busy:
            self.busy -= 1
            return [Frame(CLIENT, SERVER, self.next_receive << 5 | 0x15).to_bytes()]
        return self.send()

    def run(self) -> None:
        apdu = bytes(self.incoming)
        self.incoming.clear()
        assert apdu.startswith(b"\xe6\xe6\x00")
        self.ran.append(apdu[3:])
        reply = b"\xe6\xe7\x00" + self.answer(apdu[3:])
        size = self.limits.max_information_send
        pieces = [reply[i : i + size] for i in range(0, len(reply), size)]
        for i, piece in enumerate(pieces):
            self.queue.append((self.next_send, piece, i + 1 < len(pieces)))
            self.next_send = (self.next_send + 1) & 7

    def send(self) -> list[bytes]:
        window = self.queue[: self.limits.window_send]
        if not window:
            return [Frame(CLIENT, SERVER, self.next_receive << 5 | 0x11).to_bytes()]
        return [
            Frame(
                CLIENT,
                SERVER,
                information_control(number, self.next_receive, poll=i + 1 == len(window)),
                piece,
                more,
            ).to_bytes()
            for i, (number, piece, more) in enumerate(window)
        ]

    def unnumbered(self, kind: Kind, information: bytes = b"") -> bytes:
        return Frame(CLIENT, SERVER, unnumbered_control(kind), information).to_bytes()


def run(link: Link, meter: Meter, lose: Callable[[], bool] = lambda: False) -> list[Event]:
    """Carry frames both ways until an event that ends the exchange; what is lost is asked for again."""
    events: list[Event] = []
    for _ in range(400):
        octets = link.outgoing()
        if not octets:
            link.repeat()
            continue
        answers = [] if lose() else meter.feed(octets)
        for answer in answers:
            if not lose():
                events += link.feed(answer)
        if any(isinstance(e, Received | Connected | Closed) for e in events):
            return events
    raise AssertionError("no end")


def connected(meter: Meter, propose: Parameters | None = None, **kwargs: int) -> Link:
    link = Link(CLIENT, SERVER, propose, **kwargs)
    link.connect()
    events = run(link, meter)
    assert isinstance(events[-1], Connected)
    return link


def test_connect_exchange_disconnect() -> None:
    meter = Meter(Parameters(), lambda apdu: apdu[::-1])
    link = connected(meter)
    assert link.state is State.CONNECTED
    for n in range(20):  # more than eight: numbers wrap
        link.send(b"apdu %d" % n)
        assert run(link, meter) == [Received((b"apdu %d" % n)[::-1])]
    link.disconnect()
    assert run(link, meter) == [Closed("UA")]
    assert link.state is State.DISCONNECTED
    assert len(meter.ran) == 20


def test_negotiation() -> None:
    meter = Meter(Parameters(1024, 200, 3, 2), lambda apdu: apdu)
    link = connected(meter, Parameters(512, 2030, 7, 7))
    assert link.parameters == Parameters(200, 1024, 2, 3)


def test_without_parameters_the_defaults_hold() -> None:
    link = Link(CLIENT, SERVER)
    link.connect()
    assert link.outgoing() == Frame(SERVER, CLIENT, 0x93).to_bytes()
    events = link.feed(Frame(CLIENT, SERVER, 0x73).to_bytes())
    assert events == [Connected(Parameters(128, 128, 1, 1))]


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 124, 125, 126, 1000, 4000])
def test_segments_in_both_directions(window: int, size: int) -> None:
    proposed = Parameters(128, 128, window, window)
    meter = Meter(proposed, lambda apdu: apdu * 2)
    link = connected(meter, proposed)
    apdu = bytes(i & 0xFF for i in range(size))
    link.send(apdu)
    assert run(link, meter)[-1] == Received(apdu * 2)
    assert meter.ran == [apdu]


@given(
    st.integers(1, 7),
    st.lists(st.integers(1, 700), min_size=1, max_size=3),
    st.lists(st.booleans(), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_lost_frames_cost_time_and_nothing_else(
    window: int, sizes: list[int], losses: list[bool]
) -> None:
    """Any frame of either direction may be lost: each APDU is run once and answered once."""
    proposed = Parameters(128, 128, window, window)
    meter = Meter(proposed, lambda apdu: b"<" + apdu + b">")
    link = connected(meter, proposed, retries=len(losses))
    pending = iter(losses)
    for n, size in enumerate(sizes):
        apdu = bytes((n,)) * size
        link.send(apdu)
        answers = [
            e for e in run(link, meter, lambda: next(pending, False)) if isinstance(e, Received)
        ]
        assert answers == [Received(b"<" + apdu + b">")]
    assert len(meter.ran) == len(sizes)


def test_the_first_frame_of_a_window_lost_again_and_again() -> None:
    """Found by the test above: one exchange without progress counts once, however many frames it brings."""
    proposed = Parameters(128, 128, 3, 3)
    meter = Meter(proposed, lambda apdu: apdu)
    link = connected(meter, proposed)
    link.send(bytes(300))
    for _ in range(5):
        _, *rest = meter.feed(link.outgoing())
        for frame in rest:
            assert link.feed(frame) == []
    (event,) = [e for frame in meter.feed(link.outgoing()) for e in link.feed(frame)]
    assert event == Received(bytes(300))
    assert len(meter.ran) == 1


def test_a_lost_answer_is_asked_for_with_rr_and_never_by_the_request_again() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    link = connected(meter)
    link.send(b"ACTION")
    meter.feed(link.outgoing())  # the answer is lost
    link.repeat()
    again = link.outgoing()
    frame = Frame(SERVER, CLIENT, 0x11)
    assert again == frame.to_bytes()  # RR of the old N(R)
    (answer,) = meter.feed(again)
    assert link.feed(answer) == [Received(b"done")]
    assert meter.ran == [b"ACTION"]


def test_a_lost_request_is_sent_again_under_its_number() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    link = connected(meter)
    link.send(b"ACTION")
    lost = link.outgoing()
    link.repeat()
    (ready,) = meter.feed(link.outgoing())
    assert link.feed(ready) == []
    assert link.outgoing() == lost


def test_a_meter_that_takes_no_frame_is_given_up() -> None:
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"GET")
    events: list[Event] = []
    for _ in range(20):
        events = link.feed(Frame(CLIENT, SERVER, 0x11).to_bytes())  # RR, N(R) = 0: for ever
        link.outgoing()
        if events:
            break
    assert events == [Closed("the meter does not take frame 0")]


def test_a_meter_that_sends_wrong_numbers_is_given_up() -> None:
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"GET")
    wrong = Frame(CLIENT, SERVER, information_control(5, 1), b"\xe6\xe7\x00x").to_bytes()
    events: list[Event] = []
    for _ in range(20):
        link.outgoing()
        events = link.feed(wrong)
        if events:
            break
    assert events == [Closed("the meter does not send frame 0")]


def test_a_meter_that_is_not_ready() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    meter.busy = 2
    link = connected(meter)
    link.send(b"GET")
    events = run(link, meter)
    assert events == [Waiting(), Waiting(), Received(b"done")]
    assert len(meter.ran) == 1


def test_an_answer_that_takes_its_time() -> None:
    """RR that acknowledges the request and brings nothing: ask again after a pause."""
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"GET")
    link.outgoing()
    assert link.feed(Frame(CLIENT, SERVER, 0x31).to_bytes()) == [Waiting()]
    link.repeat()
    assert link.outgoing() == Frame(SERVER, CLIENT, 0x11).to_bytes()
    answer = Frame(CLIENT, SERVER, information_control(0, 1), b"\xe6\xe7\x00late")
    assert link.feed(answer.to_bytes()) == [Received(b"late")]


def test_repeated_llc_octets() -> None:
    """One Indian meter writes them twice in its AARE."""
    assert strip_llc(bytes.fromhex("e6e700e6e70061")) == b"\x61"
    assert strip_llc(bytes.fromhex("e6e60060")) == b"\x60"
    assert strip_llc(b"\x60") == b"\x60"
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"AARQ")
    link.outgoing()
    answer = Frame(CLIENT, SERVER, information_control(0, 1), bytes.fromhex("e6e700e6e7006100"))
    assert link.feed(answer.to_bytes()) == [Received(b"\x61\x00")]


def test_echoes_and_other_stations_are_passed_over() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    link = connected(meter)
    link.send(b"GET")
    echo = link.outgoing()
    other = Frame(CLIENT, server_address(1, 18), information_control(0, 1), b"\xe6\xe7\x00no")
    for_other = Frame(client_address(1), SERVER, information_control(0, 1), b"\xe6\xe7\x00no")
    assert link.feed(echo + other.to_bytes() + for_other.to_bytes()) == []
    assert link.foreign == 3
    (answer,) = meter.feed(echo)
    assert link.feed(answer) == [Received(b"done")]


def test_an_echo_where_both_addresses_are_alike() -> None:
    """Client 1 and server 1: only the octets tell our own frame from the meter's."""
    link = Link(client_address(1), server_address(1))
    link.connect()
    echo = link.outgoing()
    assert link.feed(echo) == []
    ua = Frame(client_address(1), server_address(1), 0x73).to_bytes()
    assert isinstance(link.feed(ua)[0], Connected)
    link.send(b"GET")
    assert link.feed(link.outgoing()) == []


def test_an_answer_with_another_form_of_the_address() -> None:
    link = Link(CLIENT, server_address(1))
    link.connect()
    assert isinstance(link.feed(Frame(CLIENT, SERVER, 0x73).to_bytes())[0], Connected)


def test_damaged_frames_are_counted_and_asked_for_again() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    link = connected(meter)
    link.send(b"GET")
    (answer,) = meter.feed(link.outgoing())
    damaged = bytearray(answer)
    damaged[-3] ^= 1
    assert link.feed(bytes(damaged)) == []
    assert link.damaged == 1
    assert run(link, meter) == [Received(b"done")]
    assert len(meter.ran) == 1


def test_acknowledging_what_was_never_sent_is_damage() -> None:
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"GET")
    assert link.feed(Frame(CLIENT, SERVER, 0xB1).to_bytes()) == []
    assert link.damaged == 1
    answer = Frame(CLIENT, SERVER, information_control(0, 5), b"\xe6\xe7\x00x")
    assert link.feed(answer.to_bytes()) == []
    assert link.damaged == 2


def test_the_meter_lost_the_link() -> None:
    meter = Meter(Parameters(), lambda apdu: b"done")
    link = connected(meter)
    meter.connected = False  # inactivity time-out
    link.send(b"GET")
    assert run(link, meter) == [Closed("DM")]
    link.connect()
    assert isinstance(run(link, meter)[-1], Connected)


def test_frame_reject_ends_the_link() -> None:
    link = connected(Meter(Parameters(), lambda apdu: b""))
    link.send(b"GET")
    assert link.feed(Frame(CLIENT, SERVER, 0x97).to_bytes()) == [Closed("FRMR")]
    assert link.feed(Frame(CLIENT, SERVER, 0x1F).to_bytes()) == []  # known already


def test_answers_to_an_older_session_do_not_confuse() -> None:
    link = Link(CLIENT, SERVER)
    link.connect()
    stale = Frame(CLIENT, SERVER, 0x97).to_bytes()
    late = Frame(CLIENT, SERVER, information_control(3, 4), b"\xe6\xe7\x00old").to_bytes()
    assert link.feed(stale + late) == []
    assert isinstance(link.feed(Frame(CLIENT, SERVER, 0x73).to_bytes())[0], Connected)
    assert link.feed(Frame(CLIENT, SERVER, 0x73).to_bytes()) == []  # a second UA
    assert link.state is State.CONNECTED


def test_pushes_between() -> None:
    link = connected(Meter(Parameters(), lambda apdu: b""))
    push = Frame(CLIENT, SERVER, 0x13, b"\xe6\xe7\x00\x0f", segmented=True)
    assert link.feed(push.to_bytes()) == [Unsolicited(b"\x0f", True)]


def test_an_apdu_is_bounded() -> None:
    meter = Meter(Parameters(), lambda apdu: bytes(1000))
    link = connected(meter, max_apdu=500)
    link.send(b"GET")
    with pytest.raises(MalformedFrame, match="above 500 octets"):
        run(link, meter)


def test_repeats_of_connecting_and_disconnecting() -> None:
    link = Link(CLIENT, SERVER, Parameters(512, 512))
    link.connect()
    first = link.outgoing()
    link.repeat()
    assert link.outgoing() == first
    link.feed(Frame(CLIENT, SERVER, 0x73).to_bytes())
    link.disconnect()
    first = link.outgoing()
    link.repeat()
    assert link.outgoing() == first
    assert link.feed(Frame(CLIENT, SERVER, 0x1F).to_bytes()) == [Closed("DM")]


def test_wrong_use() -> None:
    link = Link(CLIENT, SERVER)
    with pytest.raises(LocalProtocolError, match="disconnected, not connected"):
        link.send(b"GET")
    with pytest.raises(LocalProtocolError, match="nothing is due"):
        link.repeat()
    link = connected(Meter(Parameters(), lambda apdu: b""))
    with pytest.raises(LocalProtocolError):
        link.connect()
    link.send(b"GET")
    with pytest.raises(LocalProtocolError, match="still due"):
        link.send(b"GET")
