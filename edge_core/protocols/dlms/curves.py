"""What suites 1 and 2 add to AES-GCM: keys on P-256 and P-384, signatures, key agreement, key derivation, key wrap.

Invariants: a point is on the curve of its suite before anything is computed with it; a signature is r || s, each as
long as a coordinate; nothing here shows a private key. An agreed key is the leftmost octets of the one-step
concatenation KDF: hash(00000001 || Z || AlgorithmID || PartyUInfo || PartyVInfo), SHA-256 in suite 1 and SHA-384 in
suite 2, Z the x coordinate of the shared point, U the originator and V the recipient (titles, bare; in the static
scheme U carries the transaction-id with its length octet).
Limits: of a certificate only the key is taken. Which meter it belongs to says whoever wrote it into the keys file: no
chain is followed, no date compared, for the box may have neither a root nor a clock.
Source: DLMS UA Green Book ed. 9, clauses 9.2.3.4 (ECDSA, ECDH), 9.2.3.4.6.5 (NIST SP 800-56A KDF), 9.2.3.3.8 (RFC 3394);
the vectors of its examples in tests/data/vectors/green_book_key_agreement.json.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, TagInvalid

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

_CURVES: Final[dict[int, ec.EllipticCurve]] = {1: ec.SECP256R1(), 2: ec.SECP384R1()}
_ORDERS: Final = {
    1: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    2: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
}
COORDINATE_OCTETS: Final = {1: 32, 2: 48}
"""By suite: half of a point, half of a signature, and the whole of a private key."""
_HASHES: Final = {1: hashlib.sha256, 2: hashlib.sha384}
_ALGORITHM: Final = {
    1: bytes.fromhex("60857405080300"),
    2: bytes.fromhex("60857405080301"),
}
"""AlgorithmID: AES-GCM-128 and AES-GCM-256."""
_KEY_OCTETS: Final = {1: 16, 2: 32}
_SPARE_OCTETS: Final = 8
_CERTIFICATE: Final = 0x30
"""First octet of a DER certificate; a point begins with 04, or with its x as long as it has no prefix."""


def private_key(suite: int, key: Secret) -> PrivateKey:
    """The private key that so many octets are.

    Raises:
        LocalProtocolError: suite 0 has none, another length, or a number beyond the order of the curve.
    """
    size = _size(suite)
    if len(key) != size:
        raise LocalProtocolError(
            f"a private key of suite {suite} has {size} octets, not {len(key)}"
        )
    try:
        return ec.derive_private_key(int.from_bytes(key.reveal(), "big"), _CURVES[suite])
    except ValueError:
        raise LocalProtocolError(f"no private key of suite {suite}: out of range") from None


def ephemeral_key(suite: int, random: bytes) -> PrivateKey:
    """A fresh key pair from `random`, `random_octets(suite)` of them, never used twice."""
    if len(random) != random_octets(suite):
        raise LocalProtocolError(f"{len(random)} random octets for a key of suite {suite}")
    number = int.from_bytes(random, "big") % (_ORDERS[suite] - 1) + 1
    return ec.derive_private_key(number, _CURVES[suite])


def random_octets(suite: int) -> int:
    """How many random octets `ephemeral_key` takes: some more than a key has, so that no key is likelier."""
    return _size(suite) + _SPARE_OCTETS


def public_key(suite: int, octets: bytes) -> PublicKey:
    """A peer's public key as the keys file gives it: x || y, 04 || x || y, or a DER certificate.

    Raises:
        LocalProtocolError: none of these, or of another suite's curve.
    """
    size = _size(suite)
    if len(octets) > 2 * size + 1 and octets[0] == _CERTIFICATE:
        from cryptography import x509

        try:
            key = x509.load_der_x509_certificate(octets).public_key()
        except ValueError:
            raise LocalProtocolError("no X.509 certificate in DER") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVES[suite].name:
            raise LocalProtocolError(f"a certificate of another curve than that of suite {suite}")
        return key
    try:
        return _point(suite, octets[1:] if len(octets) == 2 * size + 1 else octets)
    except ValueError as error:
        raise LocalProtocolError(str(error)) from None


def received_key(suite: int, octets: bytes) -> PublicKey:
    """A public key x || y of a message.

    Raises:
        MalformedApdu: another length, or no point of the curve.
    """
    try:
        return _point(suite, octets)
    except ValueError as error:
        raise MalformedApdu(str(error)) from None


def _point(suite: int, octets: bytes) -> PublicKey:
    size = _size(suite)
    if len(octets) != 2 * size:
        raise ValueError(f"a public key of suite {suite} has {2 * size} octets, not {len(octets)}")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[suite], b"\x04" + octets)
    except ValueError:
        raise ValueError(f"a public key that is no point of the curve of suite {suite}") from None


def point(key: PublicKey) -> bytes:
    """A public key as x || y."""
    numbers = key.public_numbers()
    size = (key.key_size + 7) // 8
    return numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")


def sign(key: PrivateKey, octets: bytes) -> bytes:
    """The ECDSA signature r || s: 64 octets, or 96 on P-384."""
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(octets, ec.ECDSA(_hash_of(key.key_size))))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def verify(key: PublicKey, octets: bytes, signature: bytes) -> None:
    """Check r || s.

    Raises:
        TagInvalid: the signature does not verify.
    """
    size = (key.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise TagInvalid(f"a signature of {len(signature)} octets, {2 * size} are due")
    der = encode_dss_signature(
        int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    )
    try:
        key.verify(der, octets, ec.ECDSA(_hash_of(key.key_size)))
    except InvalidSignature:
        raise TagInvalid("the signature does not verify") from None


def agree(suite: int, own: PrivateKey, peer: PublicKey, party_u: bytes, party_v: bytes) -> Secret:
    """The AES key that both sides come to.

    Args:
        suite: 1 or 2.
        own: our ephemeral or static key.
        peer: the other side's.
        party_u: the originator's title, with what the scheme adds.
        party_v: the recipient's.
    """
    shared = own.exchange(ec.ECDH(), peer)
    return Secret(derive(suite, shared, party_u + party_v)[: _KEY_OCTETS[suite]])


def derive(suite: int, shared: bytes, parties: bytes) -> bytes:
    """All octets of the KDF's one step, from the shared secret Z and PartyUInfo || PartyVInfo."""
    return _HASHES[suite](b"\x00\x00\x00\x01" + shared + _ALGORITHM[suite] + parties).digest()


def wrap(kek: Secret, key: Secret) -> bytes:
    """AES key wrap of a key under the master key."""
    return keywrap.aes_key_wrap(kek.reveal(), key.reveal())


def unwrap(kek: Secret, wrapped: bytes) -> Secret:
    """The key that was wrapped.

    Raises:
        TagInvalid: wrapped under another key, altered, or no wrapped key.
    """
    try:
        return Secret(keywrap.aes_key_unwrap(kek.reveal(), wrapped))
    except (keywrap.InvalidUnwrap, ValueError):
        raise TagInvalid("the wrapped key does not unwrap under the master key") from None


def _size(suite: int) -> int:
    size = COORDINATE_OCTETS.get(suite)
    if size is None:
        raise LocalProtocolError(f"suite {suite} has no elliptic curves, 1 and 2 have")
    return size


def _hash_of(key_bits: int) -> hashes.HashAlgorithm:
    return hashes.SHA384() if key_bits > 256 else hashes.SHA256()
