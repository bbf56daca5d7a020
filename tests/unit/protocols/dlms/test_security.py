"""AES-GCM with 12-octet tags: the standard's vectors, and nothing before the tag verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_core.domain import Secret
from edge_core.errors import (
    Compressed,
    CounterExhausted,
    LocalProtocolError,
    MalformedApdu,
    TagInvalid,
)
from edge_core.protocols.dlms import security
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    AUTHENTICATED_ENCRYPTED,
    ENCRYPTED,
    SecurityContext,
)

FRAMES = Path(__file__).parents[3] / "data" / "frames"
GUEK = Secret(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))
GAK = Secret(bytes.fromhex("d0d1d2d3d4d5d6d7d8d9dadbdcdddedf"))
TITLE = bytes.fromhex("4d4d4d0000bc614e")
APDU = bytes.fromhex("c0010000080000010000ff0200")


@pytest.fixture
def context() -> SecurityContext:
    return SecurityContext(0, GUEK, GAK)


def test_green_book_authenticated_encryption(context: SecurityContext) -> None:
    case = json.loads((FRAMES / "greenbook_gcm_authenticated_encryption.json").read_text())
    vector = case["vector"]
    sealed = context.seal(TITLE, int(vector["invocation_counter"], 16), APDU)
    assert sealed.hex() == (
        vector["security_control"] + vector["invocation_counter"] + vector["ciphertext_and_tag"]
    )
    opened = context.open(TITLE, sealed)
    assert opened.plain.hex() == vector["plaintext"]
    assert (opened.counter, opened.authenticated, opened.encrypted) == (0x01234567, True, True)


def test_green_book_gmac(context: SecurityContext) -> None:
    case = json.loads((FRAMES / "greenbook_gmac_hls5_client.json").read_text())
    title, vector = bytes.fromhex(case["keys"]["system_title"]), case["vector"]
    challenge = bytes.fromhex(vector["challenge_StoC"])
    proof = context.gmac(title, 1, challenge)
    assert proof.hex() == "1000000001" + vector["gmac"]
    assert context.verify_gmac(title, proof, challenge) == 1
    for wrong in (challenge + b"\0", b"", challenge[::-1]):
        with pytest.raises(TagInvalid):
            context.verify_gmac(title, proof, wrong)
    with pytest.raises(TagInvalid):
        context.verify_gmac(TITLE, proof, challenge)
    for malformed in (proof[:-1], b"", b"\x30" + proof[1:]):
        with pytest.raises(MalformedApdu):
            context.verify_gmac(title, malformed, challenge)


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("level", [AUTHENTICATED, ENCRYPTED, AUTHENTICATED_ENCRYPTED])
def test_there_and_back(suite: int, level: int) -> None:
    size = 32 if suite == 2 else 16
    context = SecurityContext(suite, Secret(bytes(size)), Secret(bytes(range(size))))
    sealed = context.seal(TITLE, 7, APDU, level)
    assert sealed[0] == level | suite
    assert len(sealed) == 5 + len(APDU) + (12 if level & AUTHENTICATED else 0)
    assert (APDU in sealed) == (not level & ENCRYPTED)
    opened = context.open(TITLE, sealed)
    assert (opened.plain, opened.counter) == (APDU, 7)
    assert opened.authenticated == bool(level & AUTHENTICATED)
    assert opened.encrypted == bool(level & ENCRYPTED)


@pytest.mark.parametrize("level", [AUTHENTICATED, AUTHENTICATED_ENCRYPTED])
def test_one_flipped_bit_anywhere_is_refused(context: SecurityContext, level: int) -> None:
    """gurux-dlms 1.0.203 returned a wrong register value here."""
    sealed = context.seal(TITLE, 7, APDU, level)
    for position in range(len(sealed)):
        for bit in (0x01, 0x80):
            forged = bytearray(sealed)
            forged[position] ^= bit
            if position == 0 and not forged[0] & AUTHENTICATED:
                continue  # a header that claims less is refused by protection, see the caller
            with pytest.raises((TagInvalid, MalformedApdu, Compressed)):
                context.open(TITLE, bytes(forged))


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("octets", [1, 13, 700, 2036, 2037, 5000])
def test_the_short_way_opens_what_the_long_one_does(suite: int, octets: int) -> None:
    """Sealing twice, against the library's own decryptor."""
    size = 32 if suite == 2 else 16
    context = SecurityContext(suite, Secret(bytes(size)), Secret(bytes(range(size))))
    plain = bytes(i & 0xFF for i in range(octets))
    sealed = context.seal(TITLE, 7, plain)
    nonce, body = TITLE + sealed[1:5], sealed[5:]
    assert context.open_usual(nonce, body) == (plain if octets + 12 <= 2048 else None)
    assert context.open(TITLE, sealed).plain == plain
    if octets + 12 <= 2048:
        for at in (0, len(body) // 2, len(body) - 1):
            forged = body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :]
            with pytest.raises(TagInvalid):
                context.open_usual(nonce, forged)
        with pytest.raises(TagInvalid):
            context.open_usual(TITLE + bytes(4), body)


def test_the_short_way_leaves_what_is_not_usual(context: SecurityContext) -> None:
    sealed = context.seal(TITLE, 7, APDU)
    assert context.open_usual(b"short" + sealed[1:5], sealed[5:]) is None
    assert context.open_usual(TITLE + sealed[1:5], sealed[5:16]) is None
    assert SecurityContext(0, GUEK).open_usual(TITLE + sealed[1:5], sealed[5:]) is None


def test_less_protection_is_visible(context: SecurityContext) -> None:
    sealed = context.seal(TITLE, 7, APDU, AUTHENTICATED)
    downgraded = bytes((0,)) + sealed[1:]
    opened = context.open(TITLE, downgraded)
    assert not opened.authenticated
    assert not opened.encrypted


def test_every_cut_is_refused(context: SecurityContext) -> None:
    sealed = context.seal(TITLE, 7, APDU)
    for end in range(len(sealed)):
        with pytest.raises((TagInvalid, MalformedApdu)):
            context.open(TITLE, sealed[:end])


def test_only_encrypted_has_no_tag_and_says_so(context: SecurityContext) -> None:
    """Counter mode of GCM: the same octets as with another implementation, 32-bit counter 2 on."""
    sealed = context.seal(TITLE, 7, APDU, ENCRYPTED)
    other = AESGCM(GUEK.reveal()).encrypt(TITLE + bytes((0, 0, 0, 7)), APDU, None)
    assert sealed == b"\x20\0\0\0\7" + other[: len(APDU)]
    opened = SecurityContext(0, GUEK).open(TITLE, sealed)  # no authentication key needed
    assert opened.plain == APDU
    assert not opened.authenticated


def test_further_authenticated_octets(context: SecurityContext) -> None:
    sealed = context.seal(TITLE, 7, APDU, more=b"header")
    assert context.open(TITLE, sealed, b"header").plain == APDU
    with pytest.raises(TagInvalid):
        context.open(TITLE, sealed)


def test_another_key_title_or_authentication_key_is_refused(context: SecurityContext) -> None:
    sealed = context.seal(TITLE, 7, APDU)
    with pytest.raises(TagInvalid):
        context.open(TITLE[::-1], sealed)
    with pytest.raises(TagInvalid):
        SecurityContext(0, GAK, GAK).open(TITLE, sealed)
    with pytest.raises(TagInvalid):
        SecurityContext(0, GUEK, GUEK).open(TITLE, sealed)
    with pytest.raises(TagInvalid, match="no authentication key"):
        SecurityContext(0, GUEK).open(TITLE, sealed)


def test_the_broadcast_key_is_another_key(context: SecurityContext) -> None:
    broadcast = Secret(bytes(range(100, 116)))
    control = AUTHENTICATED_ENCRYPTED | security.BROADCAST
    tag = AESGCM(broadcast.reveal()).encrypt(
        TITLE + bytes((0, 0, 0, 7)), APDU, bytes((control,)) + GAK.reveal()
    )
    sealed = bytes((control, 0, 0, 0, 7)) + tag[:-4]
    assert SecurityContext(0, GUEK, GAK, broadcast).open(TITLE, sealed).plain == APDU
    with pytest.raises(TagInvalid, match="broadcast"):
        context.open(TITLE, sealed)


def test_compression_and_unknown_suites_are_refused(context: SecurityContext) -> None:
    for control, error in ((0xB0, Compressed), (0x33, MalformedApdu), (0x3F, MalformedApdu)):
        with pytest.raises(error):
            context.open(TITLE, bytes((control, 0, 0, 0, 1)) + bytes(20))
    with pytest.raises(MalformedApdu, match="title"):
        context.open(b"", context.seal(TITLE, 7, APDU))


def test_counters_and_titles_are_checked_before_use(context: SecurityContext) -> None:
    assert context.seal(TITLE, 2**32 - 1, APDU)[1:5] == b"\xff\xff\xff\xff"
    for counter in (-1, 2**32):
        with pytest.raises(CounterExhausted):
            context.seal(TITLE, counter, APDU)
    with pytest.raises(LocalProtocolError, match="title"):
        context.seal(b"short", 1, APDU)
    with pytest.raises(LocalProtocolError, match="protects nothing"):
        context.seal(TITLE, 1, APDU, 0)


def test_keys_must_fit_the_suite() -> None:
    with pytest.raises(LocalProtocolError, match="suite 3"):
        SecurityContext(3, GUEK)
    with pytest.raises(LocalProtocolError, match="32"):
        SecurityContext(2, GUEK)
    with pytest.raises(LocalProtocolError, match="authentication key has 8"):
        SecurityContext(0, GUEK, Secret(bytes(8)))


def test_keys_are_in_no_message_and_no_repr(context: SecurityContext) -> None:
    seen = [repr(context), str(context)]
    for call in (
        lambda: context.open(TITLE, b"\x30\0\0\0\1" + bytes(20)),
        lambda: SecurityContext(2, GUEK),
    ):
        with pytest.raises((TagInvalid, LocalProtocolError)) as caught:
            call()
        seen.append(repr(caught.value) + str(caught.value.__dict__))
    for text in seen:
        assert GUEK.reveal().hex() not in text
