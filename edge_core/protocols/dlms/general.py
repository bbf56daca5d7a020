"""general-ciphering and general-signing: APDUs that name both parties and the key, or bear a signature.

    general-ciphering (DD): header, key-info, SC || IC || protected APDU [|| tag]
    general-signing (DF):   header, content, signature
    header: transaction-id, originator, recipient, date-time, other-information, each an octet-string

Invariants: the header is authenticated as it is encoded, length octets included: in the AAD behind SC || AK, in a signed
text in front of the content, which stands there without its length. An answer bears the transaction-id of its request
and our title, so an old one under a key agreed anew cannot be played again. Private keys and agreed keys are in no
repr and no error.
Key-info: identified (the global unicast key), wrapped (a fresh key under the master key), agreed with one-pass
Diffie-Hellman C(1e, 1s), the ephemeral key signed by its owner, or agreed with the static unified model C(0e, 2s). The
ephemeral unified model C(2e, 0s) is no key-info: it is how `key_agreement` of a security setup makes new global keys
(curves.agree has its arithmetic). Without key-info the key is the one that the same side named last, else the global one.
Limits: the signature over an ephemeral key is taken over the bare point, as we make it, or over 01 || point: public
implementations differ. Broadcast keys are refused.
Source: DLMS UA Green Book ed. 9, clauses 9.2.7.2.4 to 9.2.7.2.6, 9.2.3.4.6, 9.5; what public implementations agree on
(gurux, EnergyICT Connexo, spodes-rs) where the excerpt is silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, TagInvalid
from edge_core.protocols.dlms import axdr, curves

if TYPE_CHECKING:
    from collections.abc import Callable

GENERAL_CIPHERING: Final = 0xDD
GENERAL_SIGNING: Final = 0xDF

_IDENTIFIED, _WRAPPED, _AGREED = 0, 1, 2
_ONE_PASS, _STATIC = b"\x01", b"\x02"
_UNICAST: Final = 0
_MASTER: Final = 0
_AES_OCTETS: Final = {0: 16, 1: 16, 2: 32}

K = TypeVar("K")
KeyInfoKind = Literal["none", "identified", "wrapped", "one-pass", "static"]


class Header(msgspec.Struct, frozen=True):
    """Who speaks to whom.

    Attributes:
        transaction: transaction-id; an answer repeats its request's.
        originator: system title of the sender.
        recipient: system title of the receiver, b"" for anybody.
        octets: the whole header as encoded: what is authenticated.
    """

    transaction: bytes
    originator: bytes
    recipient: bytes
    octets: bytes


class KeyInfo(msgspec.Struct, frozen=True):
    """Which key; `data` is the wrapped key, or the ephemeral public key and its signature."""

    kind: KeyInfoKind = "none"
    data: bytes = b""


class Signed(msgspec.Struct, frozen=True):
    """A general-signing APDU, unverified.

    Attributes:
        header: who signed it, for whom.
        content: the APDU that was signed.
        signature: r || s.
    """

    header: Header
    content: bytes
    signature: bytes

    def verify(self, key: curves.PublicKey) -> None:
        """Check the signature.

        Raises:
            TagInvalid: it does not verify.
        """
        curves.verify(key, self.header.octets + self.content, self.signature)


def header(transaction: bytes, originator: bytes, recipient: bytes) -> Header:
    """The header of a message without date-time and other-information."""
    octets = b"".join(
        axdr.encode_octets(field) for field in (transaction, originator, recipient, b"", b"")
    )
    return Header(transaction, originator, recipient, octets)


def read_header(apdu: bytes) -> tuple[Header, int]:
    """The header behind the tag, and the offset behind it.

    Raises:
        MalformedApdu: it is cut.
    """
    at = 1
    fields = []
    for _ in range(5):
        field, at = axdr.read_octets(apdu, at)
        fields.append(field)
    return Header(fields[0], fields[1], fields[2], apdu[1:at]), at


def read_key_info(apdu: bytes, at: int) -> tuple[KeyInfo, int]:
    """Key-info, and the offset behind it.

    Raises:
        MalformedApdu: it is cut, or a kind that is not known.
    """
    head = apdu[at : at + 3]
    if not head:
        raise MalformedApdu("general-ciphering ends before its key-info", at)
    if head[0] == 0:
        return KeyInfo(), at + 1
    if len(head) < 3:
        raise MalformedApdu("the key-info is cut", at)
    if head[1] == _IDENTIFIED:
        if head[2] != _UNICAST:
            raise MalformedApdu("general-ciphering under the broadcast key is not supported", at)
        return KeyInfo("identified"), at + 3
    if head[1] == _WRAPPED:
        if head[2] != _MASTER:
            raise MalformedApdu(f"a key wrapped under key-encrypting key {head[2]}", at)
        data, at = axdr.read_octets(apdu, at + 3)
        return KeyInfo("wrapped", data), at
    if head[1] == _AGREED:
        scheme, end = axdr.read_octets(apdu, at + 2)
        data, end = axdr.read_octets(apdu, end)
        if scheme == _ONE_PASS:
            return KeyInfo("one-pass", data), end
        if scheme == _STATIC and not data:
            return KeyInfo("static"), end
        raise MalformedApdu(f"a key agreed by scheme {scheme.hex()}, which is not known", at)
    raise MalformedApdu(f"key-info of kind {head[1]}", at)


def write_key_info(info: KeyInfo) -> bytes:
    """Key-info with its presence octet."""
    if info.kind == "none":
        return b"\x00"
    if info.kind == "identified":
        return bytes((1, _IDENTIFIED, _UNICAST))
    if info.kind == "wrapped":
        return bytes((1, _WRAPPED, _MASTER)) + axdr.encode_octets(info.data)
    scheme = _ONE_PASS if info.kind == "one-pass" else _STATIC
    return bytes((1, _AGREED)) + axdr.encode_octets(scheme) + axdr.encode_octets(info.data)


def peek_signed(apdu: bytes) -> Signed:
    """Read a general-signing APDU; the signature is not verified.

    Raises:
        MalformedApdu: another APDU, or lengths that do not end with it.
    """
    if apdu[:1] != bytes((GENERAL_SIGNING,)):
        raise MalformedApdu("no general-signing APDU", 0)
    head, at = read_header(apdu)
    content, at = axdr.read_octets(apdu, at)
    signature, end = axdr.read_octets(apdu, at)
    if end != len(apdu):
        raise MalformedApdu(f"{len(apdu) - end} octets follow the signature", end)
    return Signed(head, content, signature)


def sign(head: Header, content: bytes, key: curves.PrivateKey) -> bytes:
    """A general-signing APDU around another one, ciphered or plain."""
    signature = curves.sign(key, head.octets + content)
    return b"".join(
        (
            bytes((GENERAL_SIGNING,)),
            head.octets,
            axdr.encode_octets(content),
            axdr.encode_octets(signature),
        )
    )


class KeyPairs:
    """The keys of two parties beside their global ones, and the message keys they make.

    Args:
        suite: security suite; 0 has wrapped keys alone.
        random: gives fresh random octets.
        master: the key-encrypting key, for wrapped keys.
        sign: our private signing key.
        peer_sign: the peer's public signing key.
        agree: our private key agreement key.
        peer_agree: the peer's public key agreement key.
    """

    __slots__ = ("_agree", "_master", "_peer_agree", "_suite", "peer_sign", "random", "sign")

    def __init__(
        self,
        suite: int,
        random: Callable[[int], bytes],
        *,
        master: Secret | None = None,
        sign: curves.PrivateKey | None = None,
        peer_sign: curves.PublicKey | None = None,
        agree: curves.PrivateKey | None = None,
        peer_agree: curves.PublicKey | None = None,
    ) -> None:
        self._suite, self.random, self._master = suite, random, master
        self.sign, self.peer_sign = sign, peer_sign
        self._agree, self._peer_agree = agree, peer_agree

    def offer(self, kind: KeyInfoKind, head: Header) -> tuple[KeyInfo, Secret | None]:
        """Key-info of a message of ours, and its key; None = the global one.

        Raises:
            LocalProtocolError: a key that this kind needs is not there.
        """
        if kind == "wrapped":
            key = Secret(self.random(_AES_OCTETS[self._suite]))
            return KeyInfo("wrapped", curves.wrap(_need(self._master, "master"), key)), key
        if kind == "one-pass":
            ephemeral = curves.ephemeral_key(
                self._suite, self.random(curves.random_octets(self._suite))
            )
            bare = curves.point(ephemeral.public_key())
            signature = curves.sign(_need(self.sign, "sign"), bare)
            peer = _need(self._peer_agree, "meter_agree")
            key = curves.agree(self._suite, ephemeral, peer, head.originator, head.recipient)
            return KeyInfo("one-pass", bare + signature), key
        if kind == "static":
            return KeyInfo("static"), self._static(head)
        return KeyInfo(kind), None

    def key_of(self, info: KeyInfo, head: Header) -> Secret | None:
        """The key of a message of the peer's; None = the global one, or for kind none the one before.

        Raises:
            TagInvalid: the ephemeral key bears no signature of the peer, or the wrapped key is not under ours.
            MalformedApdu: an ephemeral key that is no point of the curve.
            LocalProtocolError: a key that it needs is not there.
        """
        if info.kind == "wrapped":
            key = curves.unwrap(_need(self._master, "master"), info.data)
            if len(key) != _AES_OCTETS[self._suite]:
                raise MalformedApdu(f"a wrapped key of {len(key)} octets in suite {self._suite}")
            return key
        if info.kind == "static":
            return self._static(head)
        if info.kind != "one-pass":
            return None
        size = 2 * curves.COORDINATE_OCTETS.get(self._suite, 0)
        bare, signature = info.data[:size], info.data[size:]
        ephemeral = curves.received_key(self._suite, bare)
        peer = _need(self.peer_sign, "meter_sign")
        try:
            curves.verify(peer, bare, signature)
        except TagInvalid:
            curves.verify(peer, _ONE_PASS + bare, signature)
        own = _need(self._agree, "agree")
        return curves.agree(self._suite, own, ephemeral, head.originator, head.recipient)

    def _static(self, head: Header) -> Secret:
        own = _need(self._agree, "agree")
        peer = _need(self._peer_agree, "meter_agree")
        party_u = head.originator + axdr.encode_octets(head.transaction)
        return curves.agree(self._suite, own, peer, party_u, head.recipient)


def key_pairs(
    suite: int,
    random: Callable[[int], bytes],
    *,
    master: Secret | None = None,
    sign: Secret | None = None,
    meter_sign: Secret | None = None,
    agree: Secret | None = None,
    meter_agree: Secret | None = None,
) -> KeyPairs:
    """Key pairs from the octets of a keys file.

    Raises:
        LocalProtocolError: one is no key of this suite; the message names it and does not show it.
    """
    try:
        name = "sign"
        own_sign = curves.private_key(suite, sign) if sign is not None else None
        name = "agree"
        own_agree = curves.private_key(suite, agree) if agree is not None else None
        name = "meter_sign"
        peer_sign = curves.public_key(suite, meter_sign.reveal()) if meter_sign else None
        name = "meter_agree"
        peer_agree = curves.public_key(suite, meter_agree.reveal()) if meter_agree else None
    except LocalProtocolError as error:
        raise LocalProtocolError(f"the key {name}: {error}") from None
    return KeyPairs(
        suite,
        random,
        master=master,
        sign=own_sign,
        agree=own_agree,
        peer_sign=peer_sign,
        peer_agree=peer_agree,
    )


def _need(key: K | None, name: str) -> K:
    if key is None:
        raise LocalProtocolError(f"the key {name} is missing")
    return key
