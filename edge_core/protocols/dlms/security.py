"""Suites 0, 1 and 2: AES-GCM with 12-octet tags, and GMAC. Their elliptic curves are in curves.

Invariants: nothing of an authenticated message is returned before its tag verified; the invocation counter of a
message is reported, never judged here (the caller stores it after this returned, per title, key and channel). The
nonce is the sender's system title (8) and the counter (4): whoever seals must never use a counter twice under one
key, and GMAC and GCM share the counter (journal.counters keeps that promise).

What is authenticated beside the ciphertext: SC || AK || further fields (general-ciphering), then the plaintext where
it is only authenticated. Messages that are only encrypted have no tag: they are opened, and say so.
The one-shot AES-GCM of the library takes whole tags only. Counter mode is its own inverse, so a short message is opened
by sealing its ciphertext, and verified by sealing what came out: two calls of half a microsecond against one of four.
Limits: compressed APDUs (ITU-T V.44, bit 7 of SC) raise `Compressed`: the algorithm is not part of this product.
Source: DLMS UA Green Book ed. 9, clause 9.2.7, figure 29; vectors in tests/data/frames/greenbook_*.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_core.domain import Secret
from edge_core.errors import (
    Compressed,
    CounterExhausted,
    LocalProtocolError,
    MalformedApdu,
    TagInvalid,
)

TAG_OCTETS: Final = 12
TITLE_OCTETS: Final = 8
NONCE_OCTETS: Final = 12
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
KEY_OCTETS: Final = {0: 16, 1: 16, 2: 32}
"""By suite: octets of an AES key."""
_SHORT: Final = 2048
"""Octets up to which sealing twice costs less than a decryptor, with AES in hardware and without."""


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

    __slots__ = ("_aad", "_aes", "_ak", "_broadcast", "_encrypt", "_head", "suite")

    def __init__(
        self,
        suite: int,
        encryption: Secret,
        authentication: Secret | None = None,
        broadcast: Secret | None = None,
    ) -> None:
        size = KEY_OCTETS.get(suite)
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
        self._encrypt = AESGCM(encryption.reveal()).encrypt
        self._ak = authentication.reveal() if authentication is not None else None
        self._head = bytes((AUTHENTICATED_ENCRYPTED | suite,))
        self._aad = self._head + self._ak if self._ak is not None else None
        self._broadcast = algorithms.AES(broadcast.reveal()) if broadcast is not None else None

    def under(self, encryption: Secret) -> SecurityContext:
        """The same suite and authentication key with another encryption key: one of a message or an association.

        Raises:
            LocalProtocolError: a key of the wrong length.
        """
        ak = Secret(self._ak) if self._ak is not None else None
        return SecurityContext(self.suite, encryption, ak)

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
        if len(title) != TITLE_OCTETS:
            raise LocalProtocolError(f"a system title has 8 octets, not {len(title)}")
        if not 0 <= counter <= MAX_COUNTER:
            raise CounterExhausted(f"invocation counter {counter} does not fit 32 bits")
        count = counter.to_bytes(4, "big")
        if level == AUTHENTICATED_ENCRYPTED:
            aad = self._aad
            if aad is None:
                raise TagInvalid("there is no authentication key")
            return self._head + count + self._encrypt(title + count, plain, aad + more)[:_CUT]
        control = level | self.suite
        head = bytes((control,)) + count
        if level == AUTHENTICATED:
            tag = self._encrypt(title + count, b"", self._authenticated(control, more) + plain)
            return head + plain + tag[:_CUT]
        if level == ENCRYPTED:
            return head + self._encrypt(title + count, plain, None)[:-_GCM_TAG_OCTETS]
        raise LocalProtocolError(f"level {level:02X} protects nothing")

    def open_usual(self, nonce: bytes, body: bytes) -> bytes | None:
        """What the usual message holds: authenticated and encrypted under this suite and key, not long.

        Args:
            nonce: the sender's title and its counter.
            body: ciphertext and tag.

        Returns:
            The APDU; None where `open` has to tell.

        Raises:
            TagInvalid: the tag does not verify.
        """
        if not TAG_OCTETS <= len(body) <= _SHORT or self._aad is None or len(nonce) != NONCE_OCTETS:
            return None
        plain = self._encrypt(nonce, body[:-TAG_OCTETS], None)[:-_GCM_TAG_OCTETS]
        tag = self._encrypt(nonce, plain, self._aad)[-_GCM_TAG_OCTETS:_CUT]
        if not compare_digest(tag, body[-TAG_OCTETS:]):
            raise TagInvalid("the tag does not verify")
        return plain

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
            raise Compressed("the APDU is compressed (V.44), which is not supported", 0)
        if control & SUITE_MASK not in KEY_OCTETS:
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
