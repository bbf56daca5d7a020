"""The proofs of high level security: what each side makes of the other's challenge.

Invariants: a side proves over the challenge that it received; whoever checks knows both challenges and both titles.
Proofs are compared in constant time. HLS 5 (GMAC) takes an invocation counter and lives in security; HLS 7 is a
signature over `signed_text`.
Mechanism 2 is each maker's own business by the standard; here it is what IS 15959 meters do, AES-128 of the challenge.
A maker's other transform is not guessed: its meter says no to pass 3, or its answer is refused as a wrong proof.
Source: DLMS UA Green Book ed. 9, clause 9.2.7.4, table 44; IS 15959-1 as public implementations agree on it.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from edge_core.errors import LocalProtocolError, TagInvalid
from edge_core.protocols.dlms.codes import Mechanism, words

if TYPE_CHECKING:
    from edge_core.domain import Secret


def prove(
    mechanism: Mechanism, secret: Secret, own: bytes, peer: bytes, received: bytes, sent: bytes
) -> bytes:
    """The proof by who bears the title `own`, under mechanisms 2, 3, 4 and 6.

    Args:
        mechanism: which.
        secret: the HLS secret of both sides.
        own: title of who proves.
        peer: title of who checks.
        received: challenge that who proves has received.
        sent: challenge that it has sent.

    Raises:
        LocalProtocolError: another mechanism, or a secret that is too long for it.
    """
    if mechanism is Mechanism.HLS2:
        return _aes(secret, received)
    key = secret.reveal()
    if mechanism is Mechanism.HLS3_MD5:
        return hashlib.md5(received + key).digest()  # noqa: S324 what the mechanism is
    if mechanism is Mechanism.HLS4_SHA1:
        return hashlib.sha1(received + key).digest()  # noqa: S324 what the mechanism is
    if mechanism is Mechanism.HLS6_SHA256:
        return hashlib.sha256(key + own + peer + received + sent).digest()
    raise LocalProtocolError(f"{words(Mechanism, mechanism)} proves nothing by a secret")


def signed_text(own: bytes, peer: bytes, received: bytes, sent: bytes) -> bytes:
    """What who bears the title `own` signs under mechanism 7."""
    return own + peer + received + sent


def same(expected: bytes, received: bytes) -> None:
    """Compare two proofs.

    Raises:
        TagInvalid: they differ.
    """
    if not compare_digest(expected, received):
        raise TagInvalid("the proof of the peer is wrong")


def _aes(secret: Secret, challenge: bytes) -> bytes:
    """AES-128 of the challenge, padded with zeros to whole blocks."""
    if len(secret) > 16:
        raise LocalProtocolError(f"an HLS secret of {len(secret)} octets: mechanism 2 takes 16")
    key = algorithms.AES(secret.reveal().ljust(16, b"\0"))
    padded = challenge.ljust(-(-len(challenge) // 16) * 16, b"\0")
    encryptor = Cipher(key, modes.ECB()).encryptor()  # noqa: S305 what the mechanism is
    return encryptor.update(padded) + encryptor.finalize()
