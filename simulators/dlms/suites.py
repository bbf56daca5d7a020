"""Suites 1 and 2 at the meter: curves, key agreement, general-ciphering, general-signing. Written apart from the product's.

Private keys are octets, as long as a coordinate; public keys are x || y. All of a simulated fleet's keys are test keys.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from simulators.dlms import codec
from simulators.dlms.codec import BadRequest, BadTag

SIZES = {1: 32, 2: 48}
_CURVES: dict[int, ec.EllipticCurve] = {1: ec.SECP256R1(), 2: ec.SECP384R1()}
_DIGESTS: dict[int, hashes.HashAlgorithm] = {1: hashes.SHA256(), 2: hashes.SHA384()}


def _private(suite: int, key: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(key, "big"), _CURVES[suite])


def _public(suite: int, octets: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[suite], b"\x04" + octets)
    except ValueError:
        raise BadRequest("no point of the curve") from None


def public(suite: int, key: bytes) -> bytes:
    """The public key of a private one."""
    numbers = _private(suite, key).public_key().public_numbers()
    size = SIZES[suite]
    return numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")


def sign(suite: int, key: bytes, text: bytes) -> bytes:
    """ECDSA, r || s."""
    pair = utils.decode_dss_signature(_private(suite, key).sign(text, ec.ECDSA(_DIGESTS[suite])))
    return b"".join(number.to_bytes(SIZES[suite], "big") for number in pair)


def verified(suite: int, key: bytes, text: bytes, signature: bytes) -> bool:
    """Is r || s the signature over `text` of who has the private key to the public `key`?"""
    size = SIZES[suite]
    r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
    try:
        _public(suite, key).verify(
            utils.encode_dss_signature(r, s), text, ec.ECDSA(_DIGESTS[suite])
        )
    except InvalidSignature:
        return False
    return len(signature) == 2 * size


def agreed(suite: int, key: bytes, peer: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """ECDH and one step of the concatenation KDF."""
    z = _private(suite, key).exchange(ec.ECDH(), _public(suite, peer))
    algorithm = bytes.fromhex("608574050803") + bytes([suite - 1])
    digest = hashlib.new("sha256" if suite == 1 else "sha384")
    digest.update(b"\0\0\0\1" + z + algorithm + party_u + party_v)
    return digest.digest()[: 16 * suite]


@dataclass(frozen=True)
class Pairs:
    """What the meter holds: its own private keys, the client's public ones, and the master key of both."""

    suite: int
    master: bytes
    sign: bytes
    agree: bytes
    client_sign: bytes
    client_agree: bytes


@dataclass(frozen=True)
class Frame:
    """The head of a general-ciphering or general-signing APDU, and where it ends."""

    transaction: bytes
    originator: bytes
    recipient: bytes
    octets: bytes
    end: int


def read_head(apdu: bytes) -> Frame:
    """transaction-id, originator, recipient, date-time, other-information."""
    at, fields = 1, []
    for _ in range(5):
        count, at = codec.read_length(apdu, at)
        field, at = codec.take(apdu, at, count)
        fields.append(field)
    return Frame(fields[0], fields[1], fields[2], apdu[1:at], at)


def write_head(transaction: bytes, originator: bytes, recipient: bytes) -> bytes:
    """The head of an answer."""
    parts = (transaction, originator, recipient, b"", b"")
    return b"".join(codec.length(len(part)) + part for part in parts)


def key_of(pairs: Pairs | None, apdu: bytes, frame: Frame) -> tuple[str, bytes | None, int]:
    """Kind of key-info, the key it leads to (None = the global one), and the offset behind it."""
    at = frame.end
    present, at = codec.take(apdu, at, 1)
    if not present[0]:
        return "none", None, at
    choice, at = codec.take(apdu, at, 1)
    if choice[0] == 0:
        which, at = codec.take(apdu, at, 1)
        if which[0]:
            raise BadRequest("another key than the global unicast key")
        return "identified", None, at
    if pairs is None:
        raise BadRequest("key agreement in suite 0")
    if choice[0] == 1:
        _, at = codec.take(apdu, at, 1)
        count, at = codec.read_length(apdu, at)
        wrapped, at = codec.take(apdu, at, count)
        try:
            return "wrapped", aes_key_unwrap(pairs.master, wrapped), at
        except (InvalidUnwrap, ValueError):
            raise BadTag from None
    count, at = codec.read_length(apdu, at)
    scheme, at = codec.take(apdu, at, count)
    count, at = codec.read_length(apdu, at)
    data, at = codec.take(apdu, at, count)
    if scheme == b"\x02":
        u = frame.originator + codec.length(len(frame.transaction)) + frame.transaction
        key = agreed(pairs.suite, pairs.agree, pairs.client_agree, u, frame.recipient)
        return "static", key, at
    size = 2 * SIZES[pairs.suite]
    if scheme != b"\x01" or not verified(pairs.suite, pairs.client_sign, data[:size], data[size:]):
        raise BadTag
    key = agreed(pairs.suite, pairs.agree, data[:size], frame.originator, frame.recipient)
    return "one-pass", key, at


def offer(
    pairs: Pairs, kind: str, transaction: bytes, own: bytes, peer: bytes
) -> tuple[bytes, bytes | None]:
    """Key-info of an answer of the same kind as its request, and the key."""
    if kind == "none":
        return b"\0", None
    if kind == "identified":
        return b"\1\0\0", None
    if kind == "wrapped":
        key = os.urandom(16 * pairs.suite)
        wrapped = aes_key_wrap(pairs.master, key)
        return b"\1\1\0" + codec.length(len(wrapped)) + wrapped, key
    if kind == "static":
        u = own + codec.length(len(transaction)) + transaction
        return b"\1\2\1\2\0", agreed(pairs.suite, pairs.agree, pairs.client_agree, u, peer)
    fresh = os.urandom(SIZES[pairs.suite] - 1).rjust(SIZES[pairs.suite], b"\0")
    bare = public(pairs.suite, fresh)
    data = bare + sign(pairs.suite, pairs.sign, bare)
    key = agreed(pairs.suite, fresh, pairs.client_agree, own, peer)
    return b"\1\2\1\1" + codec.length(len(data)) + data, key
