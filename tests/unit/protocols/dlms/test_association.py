"""The client association against a simulated meter in memory, and against whoever stands between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.clock import SystemClock
from edge_core.domain import Secret
from edge_core.errors import (
    Downgraded,
    LocalProtocolError,
    MalformedApdu,
    ProtocolError,
    Replayed,
    TagInvalid,
)
from edge_core.protocols.dlms import axdr, ciphering
from edge_core.protocols.dlms import blocks as blocks_module
from edge_core.protocols.dlms.association import Association
from edge_core.protocols.dlms.codes import Conformance, Mechanism
from edge_core.protocols.dlms.cosem import Attribute, EntrySelector, Method
from edge_core.protocols.dlms.refusals import (
    AccessRefused,
    AssociationRefused,
    ExceptionAnswered,
    NotNegotiated,
    ProofInvalid,
    ProofRefused,
    is_counter_error,
)
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    AUTHENTICATED_ENCRYPTED,
    SecurityContext,
)
from edge_core.protocols.dlms.states import TRANSITIONS, Event, State
from edge_core.protocols.dlms.terms import Terms
from simulators.dlms.meter import Meter
from simulators.dlms.session import Refused, Session
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec

TITLE = b"ODCtest1"
CHALLENGE = bytes(range(16))
CLOCK = Attribute(8, "0.0.1.0.0.255", 2)
SERIAL = Attribute(1, "0.0.96.1.0.255", 2)
INTERVAL = Attribute(7, "1.0.99.1.0.255", 2)
MECHANISMS = {"none": 0, "lls": 1, "hls2": 2, "hls5": 5}


class Wire:
    """A meter in memory, an association, and what passed between them; `tamper` may change each answer."""

    def __init__(self, meter: Meter, **terms: Any) -> None:
        self.meter = meter
        self.session = Session(meter, terms.pop("client", meter.client))
        self.counters = itertools.count(100_000)
        self.accepted: list[tuple[bytes, int]] = []
        mechanism = Mechanism(MECHANISMS[terms.pop("security", meter.security)])
        level = terms.pop("level", AUTHENTICATED_ENCRYPTED if mechanism == 5 else 0)
        guek, gak = Secret(meter.keys.guek), Secret(meter.keys.gak)
        secret = {1: Secret(meter.keys.password.encode()), 2: Secret(meter.keys.hls)}.get(mechanism)
        more = {key: terms.pop(key) for key in ("dedicated", "dedicated_key") if key in terms}
        self.association = Association(
            Terms(
                title=TITLE,
                mechanism=mechanism,
                level=level,
                ciphering=terms.pop("ciphering", "glo" if level else "none"),
                **terms,
            ),
            next_counter=lambda: next(self.counters),
            context=terms.pop("context", SecurityContext(0, guek, gak)),
            secret=secret,
            accept=self.accept,
            **more,
        )
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.tamper: Callable[[bytes], bytes] = lambda answer: answer

    def accept(self, title: bytes, counter: int) -> bool:
        fresh = not self.accepted or counter > self.accepted[-1][1]
        self.accepted.append((title, counter))
        return fresh

    def run(self, exchange: Any) -> Any:
        request = next(exchange)
        while True:
            self.sent.append(request)
            answer = self.tamper(self.session.handle(request))
            self.received.append(answer)
            try:
                request = exchange.send(answer)
            except StopIteration as done:
                return done.value

    def open(self) -> Wire:
        self.run(self.association.open(CHALLENGE))
        return self


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Wire]]:
    fleets = []

    def wire(group: dict[str, Any] | None = None, **terms: Any) -> Wire:
        fleet = Fleet(
            FleetSpec(dlms=(DlmsGroup(**(group or {})),)),
            tmp_path / str(len(fleets)),
            SystemClock(),
        )
        fleets.append(fleet)
        return Wire(fleet.dlms[0], **terms)

    yield wire
    for fleet in fleets:
        fleet.record.close()


def octets(data: bytes) -> bytes:
    value = axdr.decode_whole(data).value
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("security", ["none", "lls", "hls2", "hls5"])
@pytest.mark.parametrize("model", ["is15959-3ph", "idis"])
def test_associates_and_reads(make: Callable[..., Wire], security: str, model: str) -> None:
    wire = make({"security": security, "model": model})
    wire.open()
    assert wire.association.state is State.READY
    assert octets(wire.run(wire.association.get(SERIAL))).decode() == wire.meter.device.serial
    assert len(octets(wire.run(wire.association.get(CLOCK)))) == 12
    wire.run(wire.association.release())
    assert wire.association.state is State.CLOSED
    if security == "hls5":
        counters = [counter for _, counter in wire.accepted]
        assert counters == sorted(set(counters))
        assert wire.accepted[0][0] == wire.meter.device.title


@pytest.mark.parametrize("quirks", [(), ("service-glo-only",)])
def test_general_ciphering_only_where_it_was_negotiated(
    make: Callable[..., Wire], quirks: tuple[str, ...]
) -> None:
    wire = make({"quirks": quirks}, ciphering="general-glo").open()
    wire.run(wire.association.get(SERIAL))
    assert wire.sent[-1][0] == (0xC8 if quirks else 0xDB)


@pytest.mark.parametrize("ciphering_", ["ded", "general-ded"])
def test_a_dedicated_key_begins_its_own_counters(
    make: Callable[..., Wire], ciphering_: str
) -> None:
    key = Secret(bytes(range(16)))
    probe = make()
    wire = make(
        ciphering=ciphering_,
        dedicated_key=key,
        dedicated=SecurityContext(0, key, Secret(probe.meter.keys.gak)),
    ).open()
    assert octets(wire.run(wire.association.get(SERIAL))).decode() == wire.meter.device.serial
    wire.run(wire.association.get(CLOCK))
    sealed = [ciphering.peek(apdu) for apdu in wire.sent if ciphering.is_ciphered(apdu)]
    assert [s.counter for s in sealed if s.dedicated] == [1, 2]


def test_no_counter_is_used_twice_and_gmac_takes_one_of_its_own(make: Callable[..., Wire]) -> None:
    wire = make().open()
    wire.run(wire.association.get(SERIAL))
    wire.run(wire.association.release())
    drawn = next(wire.counters) - 100_000
    sealed = [ciphering.peek(apdu).counter for apdu in wire.sent if ciphering.is_ciphered(apdu)]
    assert sealed == [100_002, 100_003]  # the ACTION of pass 3, the GET
    assert drawn == 4  # with the InitiateRequest (100,000) and the GMAC (100,001)
    assert wire.meter.record.violations == 0


def test_blocks(make: Callable[..., Wire]) -> None:
    wire = make({"pdu": 200}).open()
    data = wire.run(wire.association.get(INTERVAL))
    assert data[0] == 1
    assert axdr.skip(data) == len(data)
    assert len(wire.sent) > 20


def test_several_attributes_at_once(make: Callable[..., Wire]) -> None:
    for group in ({}, {"pdu": 120}):
        wire = make(group).open()
        wanted = [
            (SERIAL, None),
            (Attribute(3, "1.0.99.99.99.255", 2), None),
            (CLOCK, None),
            (INTERVAL, EntrySelector(1, 2)),
        ]
        results = wire.run(wire.association.get_list(wanted))
        assert [r.result for r in results] == [0, 4, 0, 0]
        assert octets(results[0].data).decode() == wire.meter.device.serial


def test_set_and_action(make: Callable[..., Wire]) -> None:
    wire = make().open()
    stamp = octets(wire.run(wire.association.get(CLOCK)))
    wire.run(wire.association.set(CLOCK, axdr.encode(axdr.octet_string(stamp))))
    relay = Attribute(70, "0.0.96.3.10.255", 2)
    before = axdr.decode_whole(wire.run(wire.association.get(relay))).value
    assert before is True
    wire.run(wire.association.act(Method(70, "0.0.96.3.10.255", 1), axdr.encode(axdr.integer(0))))
    assert axdr.decode_whole(wire.run(wire.association.get(relay))).value is False


def test_a_no_leaves_the_association_alive(make: Callable[..., Wire]) -> None:
    wire = make().open()
    with pytest.raises(AccessRefused, match="object-undefined") as refused:
        wire.run(wire.association.get(Attribute(3, "1.0.99.99.99.255", 2)))
    assert refused.value.code == 4
    assert refused.value.authenticated
    assert wire.run(wire.association.get(SERIAL))


def test_what_was_not_negotiated_is_not_asked(make: Callable[..., Wire]) -> None:
    wire = make(client=16, security="none").open()
    sent = len(wire.sent)
    for exchange in (
        wire.association.get(INTERVAL, EntrySelector(1)),
        wire.association.get_list([(SERIAL, None)]),
        wire.association.set(CLOCK, b"\x00"),
        wire.association.act(Method(70, "0.0.96.3.10.255", 1)),
    ):
        with pytest.raises(NotNegotiated):
            wire.run(exchange)
    assert len(wire.sent) == sent
    assert wire.association.state is State.READY


def test_the_wrong_password_is_named(make: Callable[..., Wire]) -> None:
    wire = make({"security": "lls"})
    wire.association._handshake._secret = Secret(b"wrong")
    with pytest.raises(AssociationRefused, match="authentication-failure") as refused:
        wire.open()
    assert refused.value.code == 13
    assert wire.association.state is State.BROKEN


def test_the_wrong_secret_of_hls2(make: Callable[..., Wire]) -> None:
    wire = make({"security": "hls2"})
    wire.association._handshake._secret = Secret(bytes(16))
    with pytest.raises(ProofRefused):
        wire.open()


def test_a_meter_that_does_not_know_the_key_of_hls2(make: Callable[..., Wire]) -> None:
    wire = make({"security": "hls2"})
    wire.tamper = lambda answer: (
        answer[:-1] + bytes([answer[-1] ^ 1]) if answer[0] == 0xC7 else answer
    )
    with pytest.raises(ProofInvalid):
        wire.open()


@pytest.mark.parametrize("size", [0, 7, 65])
def test_challenges_have_8_to_64_octets(make: Callable[..., Wire], size: int) -> None:
    wire = make()
    with pytest.raises(LocalProtocolError):
        wire.run(wire.association.open(bytes(size)))
    assert wire.sent == []


# --- whoever stands between


def mirror(wire: Wire) -> Callable[[bytes], bytes]:
    """Puts our challenge where the meter's stands."""

    def tamper(answer: bytes) -> bytes:
        at = answer.index(b"\xaa\x12\x80\x10")
        return answer[: at + 4] + CHALLENGE + answer[at + 20 :]

    return lambda answer: tamper(answer) if answer[0] == 0x61 else answer


def test_a_mirrored_challenge_is_refused_before_anything_is_proven(
    make: Callable[..., Wire],
) -> None:
    wire = make()
    wire.tamper = mirror(wire)
    with pytest.raises(ProofInvalid, match="mirrors"):
        wire.open()
    assert len(wire.sent) == 1
    assert wire.association.state is State.BROKEN


def test_one_flipped_bit_of_the_answer(make: Callable[..., Wire]) -> None:
    wire = make().open()
    wire.tamper = lambda answer: answer[:-14] + bytes([answer[-14] ^ 1]) + answer[-13:]
    before = list(wire.accepted)
    with pytest.raises(TagInvalid):
        wire.run(wire.association.get(SERIAL))
    assert wire.accepted == before  # the counter of what did not verify is not taken over
    assert wire.association.state is State.BROKEN


def test_a_forged_counter_is_not_believed(make: Callable[..., Wire]) -> None:
    wire = make().open()
    peer_counter = wire.association.peer_counter
    wire.tamper = lambda answer: answer[:3] + b"\xff\xff\xff\xff" + answer[7:]
    with pytest.raises(TagInvalid):
        wire.run(wire.association.get(SERIAL))
    assert wire.association.peer_counter == peer_counter


def test_an_old_answer_sent_again(make: Callable[..., Wire]) -> None:
    wire = make().open()
    wire.run(wire.association.get(SERIAL))
    old = wire.received[-1]
    wire.tamper = lambda answer: old
    with pytest.raises(Replayed):
        wire.run(wire.association.get(SERIAL))
    assert wire.association.state is State.BROKEN
    with pytest.raises(LocalProtocolError):
        next(wire.association.get(SERIAL))


def test_an_answer_of_an_earlier_session(make: Callable[..., Wire]) -> None:
    wire = make().open()
    aare = wire.received[0]
    again = Wire(wire.meter)
    again.counters = itertools.count(200_000)
    again.accepted = wire.accepted
    again.tamper = lambda answer: aare if answer[0] == 0x61 else answer
    with pytest.raises(Replayed, match="accepted before"):
        again.open()


@pytest.mark.parametrize(
    "plain",
    [b"\xc4\x01\xc2\x00\x06\x00\x00\x00\x01", b"\x61\x05\xa1\x03\x02\x01\x00", b"", b"\x00"],
)
def test_a_plain_answer_in_a_ciphered_association(make: Callable[..., Wire], plain: bytes) -> None:
    wire = make().open()
    wire.tamper = lambda answer: plain
    with pytest.raises(Downgraded):
        wire.run(wire.association.get(SERIAL))


def test_less_protection_than_asked(make: Callable[..., Wire]) -> None:
    wire = make().open()
    meter = wire.meter
    context = SecurityContext(0, Secret(meter.keys.guek), Secret(meter.keys.gak))
    counters = itertools.count(wire.association.peer_counter + 1)

    def weaker(level: int) -> Callable[[bytes], bytes]:
        plain = b"\xc4\x01\xc2\x00\x06\x00\x00\x00\x01"
        return lambda _: ciphering.seal(
            context, meter.device.title, next(counters), plain, level=level
        )

    for level in (AUTHENTICATED, 0x20):
        one = Wire(meter)
        one.counters = wire.counters
        one.accepted = wire.accepted
        one.open()
        counters = itertools.count(one.association.peer_counter + 1)
        one.tamper = weaker(level)
        with pytest.raises(Downgraded):
            one.run(one.association.get(SERIAL))


def test_a_ciphered_answer_in_a_plain_association(make: Callable[..., Wire]) -> None:
    wire = make({"security": "lls"}).open()
    wire.tamper = lambda answer: b"\xcc\x05\x00\x00\x00\x00\x01"
    with pytest.raises(MalformedApdu):
        wire.run(wire.association.get(SERIAL))


def test_another_invoke_id(make: Callable[..., Wire]) -> None:
    wire = make({"security": "lls"}).open()
    wire.tamper = lambda answer: answer[:2] + bytes([answer[2] ^ 3]) + answer[3:]
    with pytest.raises(MalformedApdu, match="invoke-id"):
        wire.run(wire.association.get(SERIAL))


@pytest.mark.parametrize(
    "hint", [b"\xd8\x01\x02", b"\x0e\x05\x05\x01", b"\xd8\x01\x06\x00\x00\x10\x00"]
)
def test_exceptions_in_the_clear_are_hints(make: Callable[..., Wire], hint: bytes) -> None:
    wire = make().open()
    wire.tamper = lambda answer: hint
    with pytest.raises(ExceptionAnswered) as answered:
        wire.run(wire.association.get(SERIAL))
    assert not answered.value.authenticated
    assert is_counter_error(answered.value) == (hint[2] == 6)
    wire.tamper = lambda answer: answer
    assert wire.run(wire.association.get(SERIAL))


def blocks(*parts: bytes) -> Iterator[bytes]:
    return iter(parts)


def datablock(number: int, last: bool, data: bytes, invoke: int = 0xC1) -> bytes:
    return (
        bytes((0xC4, 2, invoke, last))
        + number.to_bytes(4, "big")
        + b"\x00"
        + axdr.encode_octets(data)
    )


@pytest.mark.parametrize(
    "answers",
    [
        (datablock(2, False, b"\x01"),),
        (datablock(1, False, b"\x01"), datablock(1, False, b"\x01")),
        (datablock(1, False, b"\x01"), datablock(3, True, b"\x01")),
        (datablock(1, False, b""),),
        (datablock(1, False, b"\x01"), b"\xc4\x01\xc1\x00\x00"),
        (datablock(1, False, b"\x01"), datablock(2, True, b"\x01", 0xC3)),
        (b"\xc4\x02\xc1\x00\x00\x00\x00\x01\x00\x84\xff\xff\xff\xff\x00",),
        (b"\xc4\x02",),
        (b"\xc7\x01\xc1\x00\x00",),
    ],
)
def test_blocks_that_cannot_be(make: Callable[..., Wire], answers: tuple[bytes, ...]) -> None:
    wire = make({"security": "lls"}).open()
    script = blocks(*answers)
    wire.tamper = lambda answer: next(script)
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    wire.association._invoke = 0
    with pytest.raises(MalformedApdu):
        wire.run(wire.association.get(SERIAL))
    assert wire.association.state is State.BROKEN


def test_a_block_transfer_that_ends_with_a_no(make: Callable[..., Wire]) -> None:
    wire = make({"security": "lls"}).open()
    script = blocks(datablock(1, False, b"\x01"), b"\xc4\x02\xc1\x01\x00\x00\x00\x02\x01\x0f")
    wire.tamper = lambda answer: next(script)
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    wire.association._invoke = 0
    with pytest.raises(AccessRefused, match="long-get-aborted"):
        wire.run(wire.association.get(SERIAL))


def test_an_endless_block_transfer_ends(
    make: Callable[..., Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_OCTETS", 10_000)
    wire = make({"security": "lls"}).open()
    numbers = itertools.count(1)
    wire.tamper = lambda answer: datablock(next(numbers), False, bytes(1000))
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    wire.association._invoke = 0
    with pytest.raises(MalformedApdu, match="more than"):
        wire.run(wire.association.get(SERIAL))
    assert next(numbers) <= 13


def gbt(number: int, last: bool, data: bytes, *, streaming: bool = False) -> bytes:
    control = (0x80 if last else 0) | (0x40 if streaming else 0) | 1
    return (
        b"\xe0"
        + bytes((control,))
        + number.to_bytes(2, "big")
        + b"\x00\x00"
        + axdr.encode_octets(data)
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_general_block_transfer(make: Callable[..., Wire], streaming: bool) -> None:
    wire = make({"security": "lls"}).open()
    plain = b"\xc4\x01\xc1\x00\x09\x04abcd"
    script = blocks(gbt(1, False, plain[:5], streaming=streaming), gbt(2, True, plain[5:]))
    wire.tamper = lambda answer: next(script)
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    wire.association._invoke = 0
    assert wire.run(wire.association.get(SERIAL)) == b"\x09\x04abcd"
    assert wire.sent[-1] == (b"" if streaming else bytes.fromhex("e0810001000100"))


def test_blocks_after_a_gap_are_asked_for_again(make: Callable[..., Wire]) -> None:
    wire = make({"security": "lls"}).open()
    plain = b"\xc4\x01\xc1\x00\x09\x04abcd"
    script = blocks(
        gbt(1, False, plain[:3], streaming=True),
        gbt(3, False, b"lost between", streaming=True),
        gbt(4, False, b"the end of the window"),
        gbt(2, False, plain[3:5]),  # from the gap on
        gbt(2, False, plain[3:5]),  # twice
        gbt(3, True, plain[5:]),
    )
    wire.tamper = lambda answer: next(script)
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    wire.association._invoke = 0
    assert wire.run(wire.association.get(SERIAL)) == b"\x09\x04abcd"
    asked = [sent.hex() for sent in wire.sent[-5:]]
    assert asked == ["", "", "e0810001000100", "e0810002000200", "e0810002000200"]


@pytest.mark.parametrize(
    "endless",
    [lambda n: gbt(5, False, b"a"), lambda n: gbt(1, False, b"a"), lambda n: gbt(0, False, b"a")],
    ids=["gap", "repeat", "zero"],
)
def test_blocks_that_never_come_end_the_transfer(
    make: Callable[..., Wire], endless: Callable[[int], bytes]
) -> None:
    wire = make({"security": "lls"}).open()
    numbers = itertools.count(1)
    wire.tamper = lambda answer: endless(next(numbers))
    wire.session.handle = lambda apdu: b""  # type: ignore[method-assign]
    with pytest.raises(MalformedApdu, match="again, expected"):
        wire.run(wire.association.get(SERIAL))
    assert next(numbers) < 8


def test_an_abandoned_exchange_breaks_the_association(make: Callable[..., Wire]) -> None:
    wire = make().open()
    exchange = wire.association.get(SERIAL)
    next(exchange)
    exchange.close()
    assert wire.association.state is State.BROKEN
    wire.run_release = list(wire.association.release())  # type: ignore[attr-defined]
    assert wire.run_release == []  # type: ignore[attr-defined]


def test_terms_that_cannot_be() -> None:
    context = SecurityContext(0, Secret(bytes(16)), Secret(bytes(16)))
    for terms, more in (
        (Terms(mechanism=Mechanism.HLS5_GMAC), {}),
        (Terms(level=0x30, ciphering="glo"), {"context": context}),
        (Terms(level=0x30), {"context": context, "next_counter": lambda: 1}),
        (Terms(ciphering="glo"), {}),
        (Terms(mechanism=Mechanism.LLS), {}),
        (Terms(level=0x30, ciphering="ded"), {"context": context, "next_counter": lambda: 1}),
    ):
        with pytest.raises(LocalProtocolError):
            Association(terms, **more)


def test_the_table_has_a_way_out_of_every_state() -> None:
    for state in State:
        assert TRANSITIONS[state, Event.FAILED] is State.BROKEN
    reachable, front = {State.IDLE}, [State.IDLE]
    while front:
        state = front.pop()
        for (origin, _), target in TRANSITIONS.items():
            if origin is state and target not in reachable:
                reachable.add(target)
                front.append(target)
    assert reachable == set(State)


def test_the_bare_conformance_tag(make: Callable[..., Wire]) -> None:
    wire = make(client=16, security="none", bare_conformance=True)
    request = next(wire.association.open())
    assert b"\x5f\x04\x00" in request
    assert b"\x5f\x1f" not in request


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_octets_in_place_of_any_answer(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    security = data.draw(st.sampled_from(["none", "lls", "hls2", "hls5"]))
    folder = tmp_path_factory.mktemp("meter")
    fleet = Fleet(FleetSpec(dlms=(DlmsGroup(security=security, pdu=200),)), folder, SystemClock())
    try:
        wire = Wire(fleet.dlms[0])
        wrong_at = data.draw(st.integers(0, 6))
        count = itertools.count()

        def tamper(answer: bytes) -> bytes:
            if next(count) != wrong_at:
                return answer
            if data.draw(st.booleans()):
                return data.draw(st.binary(max_size=60))
            at = data.draw(st.integers(0, len(answer) - 1))
            return (
                answer[:at]
                + bytes([answer[at] ^ data.draw(st.integers(1, 255))])
                + answer[at + 1 :]
            )

        wire.tamper = tamper
        try:
            wire.open()
            serial = octets(wire.run(wire.association.get(SERIAL)))
            if security == "hls5":
                assert serial.decode() == wire.meter.device.serial
            wire.run(wire.association.get(INTERVAL))
        except (ProtocolError, Refused):
            pass
        assert wire.meter.record.violations == 0
    finally:
        fleet.record.close()


def test_conformance_is_taken_from_what_was_verified(make: Callable[..., Wire]) -> None:
    wire = make().open()
    assert Conformance.GET in wire.association.negotiated
    assert wire.association.server_max_pdu == wire.meter.max_pdu
