"""The elliptic curves of suites 1 and 2: the Green Book's examples, and what is refused."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, TagInvalid
from edge_core.protocols.dlms import curves

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "data" / "vectors" / "green_book_key_agreement.json").read_text()
)
KEK = Secret(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def key(text: str) -> curves.PrivateKey:
    return curves.private_key(1, Secret(octets(text)))


def made(suite: int, first: int) -> curves.PrivateKey:
    return curves.ephemeral_key(suite, bytes([first]) * curves.random_octets(suite))


@pytest.mark.parametrize("case", VECTORS["one_pass"], ids=lambda case: case["what"])
def test_one_pass_diffie_hellman_of_the_green_book(case: dict[str, str]) -> None:
    static = key(case["static_private"])
    assert curves.point(static.public_key()).hex() == case["static_public"]
    ephemeral = curves.received_key(1, octets(case["ephemeral_public"]))
    z = static.exchange(ec.ECDH(), ephemeral)
    assert z.hex() == case["z"]
    parties = octets(case["u"]) + octets(case["v"])
    assert curves.derive(1, z, parties).hex().startswith(case["kdf"])
    agreed = curves.agree(1, static, ephemeral, octets(case["u"]), octets(case["v"]))
    assert agreed.reveal().hex() == case["kdf"][:32]
    if "ephemeral_private" in case:
        other = key(case["ephemeral_private"])
        assert curves.point(other.public_key()).hex() == case["ephemeral_public"]
        peer = curves.public_key(1, octets(case["static_public"]))
        assert curves.agree(1, other, peer, octets(case["u"]), octets(case["v"])) == agreed


def test_the_shared_secret_of_the_ephemeral_unified_model() -> None:
    case = VECTORS["ephemeral_unified"]
    server = key(case["server_private"])
    assert curves.point(server.public_key()).hex() == case["server_public"]
    client = curves.received_key(1, octets(case["client_public"]))
    assert server.exchange(ec.ECDH(), client).hex() == case["z"]


def test_suite_2_takes_sha_384_and_32_octets() -> None:
    one, other = made(2, 1), made(2, 2)
    agreed = curves.agree(2, one, other.public_key(), b"U", b"V")
    z = other.exchange(ec.ECDH(), one.public_key())
    text = b"\0\0\0\1" + z + octets("60857405080301") + b"UV"
    assert agreed.reveal() == hashlib.sha384(text).digest()[:32]
    assert curves.agree(2, other, one.public_key(), b"U", b"V") == agreed
    assert curves.agree(2, other, one.public_key(), b"V", b"U") != agreed


@pytest.mark.parametrize(("suite", "size"), [(1, 64), (2, 96)])
def test_signatures(suite: int, size: int) -> None:
    own = made(suite, 7)
    signature = curves.sign(own, b"what is signed")
    assert len(signature) == size
    curves.verify(own.public_key(), b"what is signed", signature)
    for text, wrong in (
        (b"what is signeD", signature),
        (b"what is signed", signature[:-1]),
        (b"what is signed", signature[:-1] + bytes([signature[-1] ^ 1])),
        (b"what is signed", bytes(size)),
        (b"what is signed", b"\xff" * size),
        (b"what is signed", b""),
    ):
        with pytest.raises(TagInvalid):
            curves.verify(own.public_key(), text, wrong)
    with pytest.raises(TagInvalid):
        curves.verify(made(suite, 8).public_key(), b"what is signed", signature)


def test_a_public_key_in_every_form() -> None:
    own = made(1, 9)
    bare = curves.point(own.public_key())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MTR0000000000001")])
    day = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(own.public_key())
        .serial_number(1)
        .not_valid_before(day)
        .not_valid_after(day + dt.timedelta(days=1))
        .sign(own, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    for form in (bare, b"\x04" + bare, certificate):
        assert curves.point(curves.public_key(1, form)) == bare
    with pytest.raises(LocalProtocolError, match="another curve"):
        curves.public_key(2, certificate)
    with pytest.raises(LocalProtocolError, match="certificate"):
        curves.public_key(1, certificate[:-9])


def test_what_is_no_point_is_refused() -> None:
    bare = curves.point(made(1, 9).public_key())
    for wrong in (b"", bare[:-1], bytes(64), bare[:-1] + bytes([bare[-1] ^ 1]), b"\xff" * 64):
        with pytest.raises(MalformedApdu):
            curves.received_key(1, wrong)
        with pytest.raises(LocalProtocolError):
            curves.public_key(1, wrong)
    with pytest.raises(MalformedApdu, match="96"):
        curves.received_key(2, bare)


def test_what_is_no_private_key_is_refused_and_not_shown() -> None:
    for wrong in (bytes(32), b"\xff" * 32, b"\x5a" * 31, b"\x5a" * 48):
        with pytest.raises(LocalProtocolError) as refused:
            curves.private_key(1, Secret(wrong))
        assert wrong.hex()[:16] not in str(refused.value)
    with pytest.raises(LocalProtocolError, match="suite 0"):
        curves.private_key(0, Secret(bytes(32)))


def test_an_ephemeral_key_takes_all_its_random_octets() -> None:
    assert curves.random_octets(1) == 40
    assert curves.random_octets(2) == 56
    for random in (bytes(40), b"\xff" * 40):
        assert curves.ephemeral_key(1, random)
    with pytest.raises(LocalProtocolError):
        curves.ephemeral_key(1, bytes(32))
    assert "PrivateKey" in repr(curves.ephemeral_key(1, bytes(40)))


def test_key_wrap() -> None:
    """RFC 3394, 4.1."""
    wrapped = curves.wrap(KEK, Secret(octets("00112233445566778899aabbccddeeff")))
    assert wrapped.hex() == "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"
    assert curves.unwrap(KEK, wrapped).reveal().hex() == "00112233445566778899aabbccddeeff"
    for wrong in (b"", wrapped[:-1], wrapped[:-1] + b"\0", bytes(24)):
        with pytest.raises(TagInvalid):
            curves.unwrap(KEK, wrong)
    with pytest.raises(TagInvalid):
        curves.unwrap(Secret(bytes(16)), wrapped)
