"""Suites 0, 1 and 2: AES-GCM with 12-octet tags, GMAC, and the proofs of the authentication mechanisms.

Invariants: nothing of an authenticated message is returned before its tag verified; the invocation counter of a
message is reported, never judged here (the caller stores it after this returned, per title, key and channel). The
nonce is the sender's system title (8) and the counter (4): whoever seals must never use a counter twice under one
key, and GMAC and GCM share the counter (journal.counters keeps that promise).

What is authenticated beside the ciphertext: SC || AK || further fields (general-ciphering), then the plaintext where
it is only authenticated. Messages that are only encrypted have no tag: they are opened, and say so.
Limits: V.44 compression (bit 7 of SC) is refused.
Source: DLMS UA Green Book ed. 9, clause 9.2.7, figure 29; vectors in tests/data/frames/greenbook_*.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_core.errors import CounterExhausted, LocalProtocolError, MalformedApdu, TagInvalid

if TYPE_CHECKING:
    from edge_core.domain import Secret

TAG_OCTETS: Final = 12
TITLE_OCTETS: Final = 8
HEADER_OCTETS: Final = 5
"""SC and invocation counter."""
MAX_COUNTER: Final = 2**32 - 1

SUITE_MASK: Final = 0x0F
AUTHENTICATED: Final = 0x10
ENCRYPTED: Final = 0x20
BROADCAST: Final = 0x40
COMPRESSED: Final = 0x80
AUTHENTICATED_ENCRYPTED: Final = AUTHENTICATED | ENCRYPTED

_GCM_TAG_OCTETS: Final = 16
_CUT: Final = (
    TAG_OCTETS - _GCM_TAG_OCTETS
)  # AESGCM writes whole tags, DLMS sends the first 12 octets
_KEY_OCTETS: Final = {0: 16, 1: 16, 2: 32}


class Opened(NamedTuple):
    """An opened message.

    Attributes:
        plain: the APDU that was protected.
        control: the security control octet.
        counter: the sender's invocation counter; believe it only if `authenticated`.
    """

    plain: bytes
    control: int
    counter: int

    @property
    def authenticated(self) -> bool:
        """The tag was there and verified."""
        return bool(self.control & AUTHENTICATED)

    @property
    def encrypted(self) -> bool:
        """It was encrypted."""
        return bool(self.control & ENCRYPTED)


class SecurityContext:
    """The keys of one meter under one suite.

    Args:
        suite: 0, 1 (both AES-128) or 2 (AES-256).
        encryption: global unicast encryption key, or a dedicated key.
        authentication: global authentication key; None = nothing can be authenticated.
        broadcast: global broadcast encryption key, for messages that say so.

    Raises:
        LocalProtocolError: an unknown suite, or a key of the wrong length.
    """

    __slots__ = ("_aes", "_ak", "_broadcast", "_gcm", "suite")

    def __init__(
        self,
        suite: int,
        encryption: Secret,
        authentication: Secret | None = None,
        broadcast: Secret | None = None,
    ) -> None:
        size = _KEY_OCTETS.get(suite)
        if size is None:
            raise LocalProtocolError(f"security suite {suite} is not 0, 1 or 2")
        for name, key in (
            ("encryption", encryption),
            ("authentication", authentication),
            ("broadcast", broadcast),
        ):
            if key is not None and len(key) != size:
                raise LocalProtocolError(
                    f"the {name} key has {len(key)} octets, suite {suite} takes {size}"
                )
        self.suite = suite
        self._aes = algorithms.AES(encryption.reveal())
        self._gcm = AESGCM(encryption.reveal())
        self._ak = authentication.reveal() if authentication is not None else None
        self._broadcast = algorithms.AES(broadcast.reveal()) if broadcast is not None else None

    def seal(
        self,
        title: bytes,
        counter: int,
        plain: bytes,
        level: int = AUTHENTICATED_ENCRYPTED,
        more: bytes = b"",
    ) -> bytes:
        """SC || IC || protected APDU [|| tag].

        Args:
            title: our system title, 8 octets.
            counter: durable and never used before under this key.
            plain: the APDU.
            level: AUTHENTICATED, ENCRYPTED or both.
            more: further authenticated octets (general-ciphering).

        Raises:
            CounterExhausted: the counter does not fit 32 bits.
            LocalProtocolError: the title is not 8 octets long, or there is no authentication key.
        """
        control = level | self.suite
        nonce, count = _nonce(title, counter)
        head = bytes((control,)) + count
        if level == AUTHENTICATED_ENCRYPTED:
            sealed = self._gcm.encrypt(nonce, plain, self._authenticated(control, more))
            return head + sealed[:_CUT]
        if level == AUTHENTICATED:
            tag = self._gcm.encrypt(nonce, b"", self._authenticated(control, more) + plain)
            return head + plain + tag[:_CUT]
        if level == ENCRYPTED:
            return head + self._gcm.encrypt(nonce, plain, None)[:-_GCM_TAG_OCTETS]
        raise LocalProtocolError(f"level {level:02X} protects nothing")

    def open(self, title: bytes, sealed: bytes, more: bytes = b"") -> Opened:
        """Verify, then decrypt SC || IC || protected APDU [|| tag].

        Args:
            title: the sender's system title, 8 octets.
            sealed: as it came.
            more: further authenticated octets (general-ciphering).

        Raises:
            MalformedApdu: too short, an unknown suite, compressed, or the sender's title is unknown.
            TagInvalid: the tag does not verify, or the key that it needs is not there.
        """
        if len(sealed) < HEADER_OCTETS:
            raise MalformedApdu("a security header has 5 octets", 0)
        control = sealed[0]
        if control & COMPRESSED:
            raise MalformedApdu("compressed (V.44) APDUs are not supported", 0)
        if control & SUITE_MASK not in _KEY_OCTETS:
            raise MalformedApdu(f"security suite {control & SUITE_MASK} is unknown", 0)
        if len(title) != TITLE_OCTETS:
            raise MalformedApdu("the sender's system title is not known: 8 octets are needed", 0)
        aes = self._aes
        if control & BROADCAST:
            if self._broadcast is None:
                raise TagInvalid("sealed under the broadcast key, which is not configured", 0)
            aes = self._broadcast
        nonce = title + sealed[1:HEADER_OCTETS]
        counter = int.from_bytes(sealed[1:HEADER_OCTETS], "big")
        if not control & AUTHENTICATED:
            plain = sealed[HEADER_OCTETS:]
            if control & ENCRYPTED:
                plain = Cipher(aes, modes.GCM(nonce)).encryptor().update(plain)  # counter mode
            return Opened(plain, control, counter)
        if len(sealed) < HEADER_OCTETS + TAG_OCTETS:
            raise MalformedApdu("an authenticated APDU without its tag", len(sealed))
        body, tag = sealed[HEADER_OCTETS:-TAG_OCTETS], sealed[-TAG_OCTETS:]
        gcm = Cipher(aes, modes.GCM(nonce, tag, TAG_OCTETS)).decryptor()
        try:
            if control & ENCRYPTED:
                gcm.authenticate_additional_data(self._authenticated(control, more))
                plain = gcm.update(body)
            else:
                gcm.authenticate_additional_data(self._authenticated(control, more) + body)
                plain = body
            gcm.finalize()
        except InvalidTag:
            raise TagInvalid("the tag does not verify") from None
        return Opened(plain, control, counter)

    def gmac(self, title: bytes, counter: int, challenge: bytes) -> bytes:
        """The proof of HLS 5: SC || IC || GMAC(challenge), 17 octets. Takes a counter of its own.

        Raises:
            CounterExhausted, LocalProtocolError: as `seal`.
        """
        sealed = self.seal(title, counter, challenge, AUTHENTICATED)
        return sealed[:HEADER_OCTETS] + sealed[-TAG_OCTETS:]

    def verify_gmac(self, title: bytes, proof: bytes, challenge: bytes) -> int:
        """Check the peer's proof of HLS 5 over our challenge; its invocation counter.

        Raises:
            MalformedApdu: not SC 1x || IC || 12 octets.
            TagInvalid: the peer does not know the keys.
        """
        if len(proof) != HEADER_OCTETS + TAG_OCTETS or proof[0] & ~SUITE_MASK != AUTHENTICATED:
            raise MalformedApdu("a GMAC proof is SC 10 (or 11, 12), a counter and 12 octets", 0)
        sealed = proof[:HEADER_OCTETS] + challenge + proof[HEADER_OCTETS:]
        return self.open(title, sealed).counter

    def _authenticated(self, control: int, more: bytes) -> bytes:
        if self._ak is None:
            raise TagInvalid("there is no authentication key")
        return bytes((control,)) + self._ak + more


def _nonce(title: bytes, counter: int) -> tuple[bytes, bytes]:
    if len(title) != TITLE_OCTETS:
        raise LocalProtocolError(f"a system title has 8 octets, not {len(title)}")
    if not 0 <= counter <= MAX_COUNTER:
        raise CounterExhausted(f"invocation counter {counter} does not fit 32 bits")
    count = counter.to_bytes(4, "big")
    return title + count, count


def hls2(secret: Secret, challenge: bytes) -> bytes:
    """The proof of mechanism 2 as IS 15959 uses it: AES-128 of the challenge, padded with zeros to whole blocks.

    Raises:
        LocalProtocolError: a secret of more than 16 octets.
    """
    if len(secret) > 16:
        raise LocalProtocolError(f"an HLS secret of {len(secret)} octets: mechanism 2 takes 16")
    key = algorithms.AES(secret.reveal().ljust(16, b"\0"))
    padded = challenge.ljust(-(-len(challenge) // 16) * 16, b"\0")
    encryptor = Cipher(key, modes.ECB()).encryptor()  # noqa: S305 what the mechanism is
    return encryptor.update(padded) + encryptor.finalize()


def hls3(secret: Secret, challenge: bytes) -> bytes:
    """The proof of mechanism 3: MD5(challenge || secret)."""
    return hashlib.md5(challenge + secret.reveal()).digest()  # noqa: S324 what the mechanism is


def hls4(secret: Secret, challenge: bytes) -> bytes:
    """The proof of mechanism 4: SHA-1(challenge || secret)."""
    return hashlib.sha1(challenge + secret.reveal()).digest()  # noqa: S324 what the mechanism is


def hls6(secret: Secret, own: bytes, peer: bytes, received: bytes, sent: bytes) -> bytes:
    """The proof of mechanism 6 by `own`: SHA-256(secret || own title || peer's || challenge received || sent)."""
    return hashlib.sha256(secret.reveal() + own + peer + received + sent).digest()


def hls7_sign(
    key: ec.EllipticCurvePrivateKey, own: bytes, peer: bytes, received: bytes, sent: bytes
) -> bytes:
    """The proof of mechanism 7 by `own`: ECDSA over own title || peer's || challenge received || sent, as r || s."""
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(
        key.sign(own + peer + received + sent, ec.ECDSA(_hash_of(key.key_size)))
    )
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def hls7_verify(
    key: ec.EllipticCurvePublicKey,
    peer: bytes,
    own: bytes,
    sent: bytes,
    received: bytes,
    proof: bytes,
) -> None:
    """Check the peer's proof of mechanism 7: it received what we `sent`.

    Raises:
        TagInvalid: the signature does not verify.
    """
    size = (key.key_size + 7) // 8
    if len(proof) != 2 * size:
        raise TagInvalid(f"a signature of {len(proof)} octets, {2 * size} are due")
    der = encode_dss_signature(
        int.from_bytes(proof[:size], "big"), int.from_bytes(proof[size:], "big")
    )
    try:
        key.verify(der, peer + own + sent + received, ec.ECDSA(_hash_of(key.key_size)))
    except InvalidSignature:
        raise TagInvalid("the signature does not verify") from None


def _hash_of(key_bits: int) -> hashes.HashAlgorithm:
    return hashes.SHA384() if key_bits > 256 else hashes.SHA256()


def same_proof(expected: bytes, received: bytes) -> None:
    """Compare proofs of mechanisms 2, 3, 4 and 6 in constant time.

    Raises:
        TagInvalid: they differ.
    """
    if not compare_digest(expected, received):
        raise TagInvalid("the proof of the peer is wrong")
