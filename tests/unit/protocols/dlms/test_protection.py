"""What is believed of an answer: every way of less protection, of the past, of somebody else. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from edge_core.domain import Secret
from edge_core.errors import (
    Compressed,
    Downgraded,
    LocalProtocolError,
    MalformedApdu,
    Replayed,
    TagInvalid,
)
from edge_core.protocols.dlms import axdr, ciphering, curves, general
from edge_core.protocols.dlms.general import KeyInfo, KeyPairs
from edge_core.protocols.dlms.protection import Protection
from edge_core.protocols.dlms.refusals import NotNegotiated
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    AUTHENTICATED_ENCRYPTED,
    BROADCAST,
    COMPRESSED,
    ENCRYPTED,
    SecurityContext,
)

OURS, METER, STRANGER = b"ODCtest1", b"MTR00001", b"MTR00002"
GUEK, GAK, DEDICATED = (Secret(bytes([n]) * 16) for n in (1, 2, 3))
GET = bytes.fromhex("c001c10003 0100010800ff 0200".replace(" ", ""))
ANSWER = b"\xc4\x01\xc1\x00\x06\x00\x00\x00\x07"
CONTEXT = SecurityContext(1, GUEK, GAK)


def pairs_of(suite: int = 1) -> tuple[KeyPairs, KeyPairs]:
    """Ours, and the meter's."""
    count = itertools.count(1)

    def random(octets: int) -> bytes:
        return next(count).to_bytes(octets, "big")

    keys = [
        curves.ephemeral_key(suite, bytes([n]) * curves.random_octets(suite)) for n in range(1, 5)
    ]
    master = Secret(bytes(range(16)))
    first = KeyPairs(
        suite,
        random,
        master=master,
        sign=keys[0],
        agree=keys[1],
        peer_sign=keys[2].public_key(),
        peer_agree=keys[3].public_key(),
    )
    second = KeyPairs(
        suite,
        random,
        master=master,
        sign=keys[2],
        agree=keys[3],
        peer_sign=keys[0].public_key(),
        peer_agree=keys[1].public_key(),
    )
    return first, second


def protection(style: Any = "glo", level: int = AUTHENTICATED_ENCRYPTED, **more: Any) -> Protection:
    counters = itertools.count(100)
    accepted = more.pop("accepted", [])

    def accept(title: bytes, counter: int) -> bool:
        accepted.append((title, counter))
        return True

    made = Protection(
        OURS,
        level,
        style,
        context=CONTEXT,
        next_counter=lambda: next(counters),
        accept=accept,
        dedicated=SecurityContext(1, DEDICATED, GAK),
        pairs=more.pop("pairs", None),
        key_info=more.pop("key_info", "identified"),
        signed=more.pop("signed", False),
    )
    made.meter_title = METER
    made.negotiated(general_protection=more.pop("general", True))
    assert not more
    return made


def sealed(counter: int, plain: bytes = ANSWER, **more: Any) -> bytes:
    return ciphering.seal(more.pop("context", CONTEXT), METER, counter, plain, **more)


# --- what we send


@pytest.mark.parametrize(
    ("style", "general_protection", "tag"),
    [
        ("glo", True, 0xC8),
        ("ded", True, 0xD0),
        ("general-glo", True, 0xDB),
        ("general-glo", False, 0xC8),
        ("general-ded", True, 0xDC),
        ("general-ded", False, 0xD0),
    ],
)
def test_wrappers(style: str, general_protection: bool, tag: int) -> None:
    p = protection(style, general=general_protection)
    request = p.seal(GET)
    assert request[0] == tag
    context = SecurityContext(1, DEDICATED, GAK) if "ded" in style else CONTEXT
    opened = ciphering.peek(request).open(context, OURS)
    assert (opened.plain, opened.counter) == (GET, 1 if "ded" in style else 100)
    proof = p.seal_proof(b"\xc3\x01\xc1" + bytes(10))
    assert proof[0] == (0xDB if tag in (0xDB, 0xDC) else 0xCB), "never under the dedicated key"
    assert p.seal_global(b"\x01\x00")[0] == 0x21


def test_long_requests_have_long_lengths() -> None:
    p = protection()
    long = b"\xc1\x01" + bytes(3000)
    request = p.seal(long)
    assert request[:4] == b"\xc9\x82" + (len(long) + 17).to_bytes(2, "big")
    assert ciphering.peek(request).open(CONTEXT, OURS).plain == long


def test_a_service_without_a_wrapper_of_its_own() -> None:
    access = b"\xd9" + bytes(20)
    assert protection("glo").seal(access)[0] == 0xDB
    assert protection("ded").seal(access)[0] == 0xDC
    with pytest.raises(NotNegotiated):
        protection("glo", general=False).seal(access)
    assert protection("none", 0).seal(access) == access


@pytest.mark.parametrize("more", [{"style": "general-ciphering"}, {"signed": True}])
def test_what_needs_general_protection(more: dict[str, Any]) -> None:
    with pytest.raises(NotNegotiated, match="general-protection"):
        protection(**more, pairs=pairs_of()[0], general=False)


def test_a_signing_key_that_is_missing_is_named() -> None:
    bare = KeyPairs(1, bytes)
    with pytest.raises(LocalProtocolError, match="the key sign is missing"):
        protection(signed=True, pairs=bare).seal(GET)


# --- what comes


@pytest.mark.parametrize("octets", [1, 100, 120, 250, 2100, 70_000])
def test_answers_of_any_length(octets: int) -> None:
    accepted: list[tuple[bytes, int]] = []
    p = protection(accepted=accepted)
    plain = b"\xc4\x01\xc1\x00" + bytes(octets)
    for counter, general_form in ((7, False), (8, True)):
        assert p.open(sealed(counter, plain, general=general_form)) == plain
        assert p.peer_counter == counter
    assert accepted == [(METER, 7), (METER, 8)]


@pytest.mark.parametrize("general_form", [False, True])
@pytest.mark.parametrize("size", [4, 3000])
def test_old_counters(general_form: bool, size: int) -> None:
    p = protection()
    plain = ANSWER + bytes(size)
    p.open(sealed(7, plain))
    for counter in (7, 6, 0):
        with pytest.raises(Replayed):
            p.open(sealed(counter, plain, general=general_form))
    assert p.peer_counter == 7
    assert p.open(sealed(8, plain)) == plain


def test_old_counters_under_the_dedicated_key() -> None:
    p = protection("ded")
    dedicated = SecurityContext(1, DEDICATED, GAK)

    def answer(counter: int) -> bytes:
        return sealed(counter, context=dedicated, dedicated=True)

    assert p.open(answer(1)) == ANSWER
    with pytest.raises(Replayed, match="dedicated"):
        p.open(answer(1))
    assert p.peer_counter == -1, "the global counter is another one"
    assert p.open(sealed(1)) == ANSWER


def altered(change: Callable[[bytearray], None]) -> bytes:
    octets = bytearray(sealed(9))
    change(octets)
    return bytes(octets)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", Downgraded),
        (ANSWER, Downgraded),
        (b"\x61\x05\xa1\x03\x02\x01\x00", Downgraded),
        (sealed(9, level=AUTHENTICATED), Downgraded),
        (sealed(9, level=ENCRYPTED), Downgraded),
        (ciphering.seal(SecurityContext(0, GUEK, GAK), METER, 9, ANSWER), Downgraded),
        (altered(lambda o: o.__setitem__(2, o[2] | BROADCAST)), Downgraded),
        (altered(lambda o: o.__setitem__(2, o[2] | COMPRESSED)), Compressed),
        (altered(lambda o: o.__setitem__(2, 0x33)), Downgraded),
        (altered(lambda o: o.__setitem__(6, 0xFF)), TagInvalid),
        (altered(lambda o: o.__setitem__(-1, o[-1] ^ 1)), TagInvalid),
        (altered(lambda o: o.__setitem__(9, o[9] ^ 1)), TagInvalid),
        (altered(lambda o: o.__setitem__(1, o[1] + 1)), MalformedApdu),
        (sealed(9, context=SecurityContext(1, GAK, GAK)), TagInvalid),
        (sealed(9, context=SecurityContext(1, GUEK, GUEK)), TagInvalid),
        (ciphering.seal(CONTEXT, STRANGER, 9, ANSWER), TagInvalid),
        (ciphering.seal(CONTEXT, STRANGER, 9, ANSWER, general=True), MalformedApdu),
        (b"\xcf" + sealed(9)[1:], MalformedApdu),
        (b"\xdf" + sealed(9)[1:], MalformedApdu),
    ],
)
def test_what_is_refused(reply: bytes, error: type[Exception]) -> None:
    accepted: list[tuple[bytes, int]] = []
    p = protection(accepted=accepted)
    with pytest.raises(error):
        p.open(reply)
    assert accepted == []
    assert p.peer_counter == -1


def test_a_counter_that_was_accepted_before_this_association() -> None:
    p = Protection(
        OURS,
        AUTHENTICATED_ENCRYPTED,
        "glo",
        context=CONTEXT,
        next_counter=lambda: 1,
        accept=lambda title, counter: False,
        dedicated=None,
        pairs=None,
        key_info="identified",
        signed=False,
    )
    p.meter_title = METER
    with pytest.raises(Replayed, match="accepted before"):
        p.open(sealed(9))
    with pytest.raises(MalformedApdu, match="without a dedicated key"):
        p.open(sealed(9, dedicated=True))


def test_plain_associations_take_plain_answers_alone() -> None:
    p = protection("none", 0)
    assert p.open(ANSWER) == ANSWER
    with pytest.raises(MalformedApdu, match="ciphered answer"):
        p.open(sealed(9))


# --- general-ciphering and signatures


def addressed(
    meter: KeyPairs,
    transaction: bytes,
    counter: int,
    info: KeyInfo | None = None,
    **more: Any,
) -> bytes:
    """An answer by general-ciphering; `info` None = as the meter makes one of the kind asked for."""
    head = general.header(transaction, more.pop("originator", METER), more.pop("recipient", OURS))
    key = more.pop("key", None)
    if info is None:
        info, key = meter.offer(more.pop("kind", "one-pass"), head)
    context = CONTEXT.under(key) if key is not None else CONTEXT
    body = context.seal(METER, counter, ANSWER, more.pop("level", 0x30), head.octets)
    return b"\xdd" + head.octets + general.write_key_info(info) + axdr.encode_octets(body)


def transaction_of(request: bytes) -> bytes:
    return general.read_header(request)[0].transaction


@pytest.mark.parametrize("kind", ["none", "identified", "wrapped", "one-pass", "static"])
def test_answers_by_general_ciphering(kind: Any) -> None:
    ours, meter = pairs_of()
    p = protection("general-ciphering", pairs=ours, key_info=kind)
    for counter in (5, 6):
        request = p.seal(GET)
        head = ciphering.peek(request).header
        assert head is not None
        assert (head.originator, head.recipient) == (OURS, METER)
        info = ciphering.peek(request).key_info
        key = meter.key_of(info, head)
        context = CONTEXT if key is None else CONTEXT.under(key)
        assert ciphering.peek(request).open(context).plain == GET
        assert p.open(addressed(meter, head.transaction, counter, kind=kind)) == ANSWER


def test_other_transactions_parties_and_keys() -> None:
    ours, meter = pairs_of()
    p = protection("general-ciphering", pairs=ours, key_info="one-pass")
    first = transaction_of(p.seal(GET))
    old = addressed(meter, first, 5)
    assert p.open(old) == ANSWER
    now = transaction_of(p.seal(GET))
    assert now != first
    for reply, error in (
        (old, Replayed),
        (addressed(meter, first, 6), Replayed),
        (addressed(meter, b"", 6), Replayed),
        (addressed(meter, now, 6, originator=STRANGER), MalformedApdu),
        (addressed(meter, now, 6, recipient=STRANGER), MalformedApdu),
        (addressed(meter, now, 6, level=AUTHENTICATED), Downgraded),
        (addressed(ours, now, 6), TagInvalid),  # signed by another key than the meter's
        (addressed(meter, now, 6, info=KeyInfo("wrapped", bytes(24))), TagInvalid),
        (addressed(meter, now, 6, info=KeyInfo("static")), TagInvalid),
    ):
        with pytest.raises(error):
            p.open(reply)
    assert p.open(addressed(meter, now, 6, recipient=b"")) == ANSWER


def test_a_key_that_was_named_once_holds_on_with_counters_that_rise() -> None:
    ours, meter = pairs_of()
    p = protection("general-ciphering", pairs=ours, key_info="wrapped")
    key = Secret(bytes(range(50, 66)))
    wrapped = KeyInfo("wrapped", curves.wrap(Secret(bytes(range(16))), key))
    now = transaction_of(p.seal(GET))
    assert p.open(addressed(meter, now, 1, info=wrapped, key=key)) == ANSWER
    now = transaction_of(p.seal(GET))
    with pytest.raises(Replayed, match="under a key of the message"):
        p.open(addressed(meter, now, 1, info=KeyInfo(), key=key))
    assert p.open(addressed(meter, now, 2, info=KeyInfo(), key=key)) == ANSWER
    assert p.peer_counter == -1


def test_a_message_key_without_key_pairs() -> None:
    _, meter = pairs_of()
    with pytest.raises(MalformedApdu, match="no key pairs"):
        protection().open(addressed(meter, b"", 5))
    assert protection().open(addressed(meter, b"", 5, info=KeyInfo("identified"))) == ANSWER


@pytest.mark.parametrize(("style", "level"), [("none", 0), ("glo", 0x30)])
def test_signed_answers(style: str, level: int) -> None:
    ours, meter = pairs_of()
    p = protection(style, level, pairs=ours, signed=True)
    assert meter.sign is not None
    assert meter.peer_sign is not None
    counters = itertools.count(5)

    def answer(transaction: bytes, originator: bytes = METER, by: Any = meter.sign) -> bytes:
        content = sealed(next(counters)) if level else ANSWER
        return general.sign(general.header(transaction, originator, OURS), content, by)

    request = p.seal(GET)
    signed = general.peek_signed(request)
    signed.verify(meter.peer_sign)
    assert signed.content[0] == (0xC8 if level else 0xC0)
    first = answer(signed.header.transaction)
    assert p.open(first) == ANSWER
    now = transaction_of(p.seal(GET))
    for reply, error in (
        (first, Replayed),
        (answer(now, STRANGER), MalformedApdu),
        (answer(now, by=ours.sign), TagInvalid),
        (sealed(next(counters)) if level else ANSWER, Downgraded),
        (general.sign(general.header(now, METER, OURS), b"", meter.sign), Downgraded)
        if level
        else (b"", Downgraded),
    ):
        with pytest.raises(error):
            p.open(reply)
    assert p.open(answer(now)) == ANSWER


def test_a_signature_that_nobody_asked_for_is_checked_too() -> None:
    ours, meter = pairs_of()
    assert meter.sign is not None
    signed = general.sign(general.header(b"", METER, OURS), sealed(5), meter.sign)
    with pytest.raises(TagInvalid, match="public key is not known"):
        protection().open(signed)
    assert protection(pairs=ours).open(signed) == ANSWER
