"""general-ciphering and general-signing: headers, key-info, the keys they lead to, signatures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, ProtocolError, TagInvalid
from edge_core.protocols.dlms import ciphering, curves, general
from edge_core.protocols.dlms.general import KeyInfo, KeyInfoKind, KeyPairs
from edge_core.protocols.dlms.security import SecurityContext

CLIENT, METER = b"ODCtest1", b"MTR00001"
GET = bytes.fromhex("c001c1000801 0000010000ff 0200".replace(" ", ""))
MASTER = Secret(bytes(range(16)))
HEAD = general.header(b"\1\2\3\4\5\6\7\x08", CLIENT, METER)


def randoms() -> Any:
    count = itertools.count(1)
    return lambda octets: bytes([next(count)]) * octets


def both(suite: int) -> tuple[KeyPairs, KeyPairs]:
    """Key pairs of a client and its meter."""
    private = [
        curves.ephemeral_key(suite, bytes([n]) * curves.random_octets(suite))
        for n in (11, 12, 13, 14)
    ]
    public = [key.public_key() for key in private]
    size = 32 if suite == 2 else 16
    master = Secret(bytes(range(size)))
    client = KeyPairs(
        suite,
        randoms(),
        master=master,
        sign=private[0],
        agree=private[1],
        peer_sign=public[2],
        peer_agree=public[3],
    )
    meter = KeyPairs(
        suite,
        randoms(),
        master=master,
        sign=private[2],
        agree=private[3],
        peer_sign=public[0],
        peer_agree=public[1],
    )
    return client, meter


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("kind", ["wrapped", "one-pass", "static"])
def test_both_sides_come_to_one_key(suite: int, kind: KeyInfoKind) -> None:
    client, meter = both(suite)
    info, key = client.offer(kind, HEAD)
    assert key is not None
    assert len(key) == (32 if suite == 2 else 16)
    read, end = general.read_key_info(general.write_key_info(info), 0)
    assert (read, end) == (info, len(general.write_key_info(info)))
    assert meter.key_of(read, HEAD) == key
    later = general.header(b"other tx", CLIENT, METER)
    again = client.offer(kind, later)[1]
    assert again != key, "no two messages have one key"


@pytest.mark.parametrize("kind", ["none", "identified"])
def test_the_global_key(kind: KeyInfoKind) -> None:
    client, meter = both(1)
    info, key = client.offer(kind, HEAD)
    assert key is None
    assert general.read_key_info(general.write_key_info(info), 0)[0] == info
    assert meter.key_of(info, HEAD) is None


def test_an_ephemeral_key_must_bear_its_owner_s_signature() -> None:
    client, meter = both(1)
    info, key = client.offer("one-pass", HEAD)
    bare = info.data[:64]
    with_id = curves.sign(client.sign, b"\1" + bare)  # type: ignore[arg-type]
    assert meter.key_of(KeyInfo("one-pass", bare + with_id), HEAD) == key
    stranger = curves.ephemeral_key(1, bytes(40))
    for forged in (
        bare + curves.sign(stranger, bare),
        bare + bytes(64),
        bare,
        curves.point(stranger.public_key()) + info.data[64:],
    ):
        with pytest.raises(TagInvalid):
            meter.key_of(KeyInfo("one-pass", forged), HEAD)
    for wrong in (b"", bare[:-1], bytes(64) + info.data[64:]):
        with pytest.raises(MalformedApdu):
            meter.key_of(KeyInfo("one-pass", wrong), HEAD)


def test_a_wrapped_key_of_somebody_else() -> None:
    client, meter = both(1)
    info, _ = client.offer("wrapped", HEAD)
    forged = info.data[:-1] + bytes([info.data[-1] ^ 1])
    with pytest.raises(TagInvalid):
        meter.key_of(KeyInfo("wrapped", forged), HEAD)
    long = curves.wrap(MASTER, Secret(bytes(32)))
    with pytest.raises(MalformedApdu, match="32 octets in suite 1"):
        meter.key_of(KeyInfo("wrapped", long), HEAD)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("wrapped", "master"), ("one-pass", "sign"), ("static", "agree")],
)
def test_a_key_that_is_missing_is_named(kind: KeyInfoKind, name: str) -> None:
    bare = KeyPairs(1, randoms())
    with pytest.raises(LocalProtocolError, match=f"the key {name} is missing"):
        bare.offer(kind, HEAD)
    client, _ = both(1)
    info, _ = client.offer(kind, HEAD)
    with pytest.raises(LocalProtocolError, match="is missing"):
        bare.key_of(info, HEAD)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        ("", "before its key-info"),
        ("01", "cut"),
        ("0100", "cut"),
        ("010001", "broadcast"),
        ("01010700", "key-encrypting key 7"),
        ("0101000500", "announced"),
        ("0102010900", "scheme 09"),
        ("010200", "length"),
        ("01020102 01ff", "scheme 02"),
        ("0107", "cut"),
        ("010700", "kind 7"),
    ],
)
def test_key_info_that_cannot_be(octets: str, words: str) -> None:
    with pytest.raises(MalformedApdu, match=words):
        general.read_key_info(bytes.fromhex(octets), 0)


def test_the_header_is_authenticated_with_its_lengths() -> None:
    """Octets of the header may not move between its fields."""
    context = SecurityContext(1, Secret(bytes(16)), Secret(bytes(range(16))))
    body = context.seal(CLIENT, 9, GET, more=HEAD.octets)

    def apdu(octets: bytes) -> bytes:
        return b"\xdd" + octets + b"\0" + bytes([len(body)]) + body

    sealed = ciphering.peek(apdu(HEAD.octets))
    assert sealed.header == HEAD
    assert sealed.open(context).plain == GET
    moved = HEAD.octets[:9] + b"\x08" + CLIENT + b"\x07" + METER[:7] + b"\x01" + METER[7:] + b"\0"
    assert ciphering.peek(apdu(moved)).title == CLIENT
    with pytest.raises(TagInvalid):
        ciphering.peek(apdu(moved)).open(context)


@pytest.mark.parametrize("suite", [1, 2])
def test_general_signing(suite: int) -> None:
    client, meter = both(suite)
    assert client.sign is not None
    apdu = general.sign(HEAD, GET, client.sign)
    signed = general.peek_signed(apdu)
    assert (signed.header, signed.content) == (HEAD, GET)
    assert signed.signature == apdu[-len(signed.signature) :]
    assert meter.peer_sign is not None
    signed.verify(meter.peer_sign)
    assert client.peer_sign is not None
    with pytest.raises(TagInvalid):
        signed.verify(client.peer_sign)
    for at in range(1, len(apdu)):
        forged = apdu[:at] + bytes([apdu[at] ^ 1]) + apdu[at + 1 :]
        with pytest.raises(ProtocolError):
            general.peek_signed(forged).verify(meter.peer_sign)
    for end in range(len(apdu)):
        with pytest.raises(MalformedApdu):
            general.peek_signed(apdu[:end])
    with pytest.raises(MalformedApdu, match="follow"):
        general.peek_signed(apdu + b"\0")


def test_the_signature_covers_the_content_without_its_length() -> None:
    """As gurux and Connexo compute it: the header as encoded, then the bare content."""
    client, _ = both(1)
    assert client.sign is not None
    apdu = general.sign(HEAD, GET, client.sign)
    curves.verify(client.sign.public_key(), HEAD.octets + GET, apdu[-64:])
