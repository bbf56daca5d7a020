"""Associations: AARQ, AARE, RLRQ, RLRE (BER) and what they carry: initiate-request and initiate-response (A-XDR).

Invariants: `user_information` stays octets: plain, it is decoded by `decode_initiate`; ciphered, it is opened by
`ciphering` first. An AARE that is accepted with diagnostic authentication-required is how HLS goes on, not an error.
A password stands in `authentication_value` of an AARQ: these structs hide it in their repr.
Limits: lengths in BER long form up to four octets, never the indefinite form; fields that a client does not need are
kept apart by tag and skipped.
Source: DLMS UA Green Book ed. 9, clauses 9.4.2 and 9.5, tables 6, 16, 17.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.apdu import ConfirmedServiceError
from edge_core.protocols.dlms.codes import (
    ApplicationContext,
    AssociationResult,
    Conformance,
    Mechanism,
    ProviderDiagnostic,
    ReleaseReason,
    UserDiagnostic,
    words,
)

AARQ: Final = 0x60
AARE: Final = 0x61
RLRQ: Final = 0x62
RLRE: Final = 0x63

_CONTEXT_OID: Final = bytes.fromhex("60857405 0801")
_MECHANISM_OID: Final = bytes.fromhex("60857405 0802")
_DLMS_VERSION: Final = 6
VAA_LN: Final = 0x0007
"""vaa-name of logical name referencing."""


class InitiateRequest(msgspec.Struct, frozen=True):
    """initiate-request.

    Attributes:
        conformance: what the client proposes.
        max_pdu: the longest APDU that the client takes; 0 = no limit.
        dedicated_key: key of this association, b"" without; never shown.
        response_allowed: False asks for an association without an answer.
        quality: proposed quality of service, None without.
        version: DLMS version, 6.
    """

    NAME: ClassVar[str] = "initiate-request"
    conformance: Conformance
    max_pdu: int = 0xFFFF
    dedicated_key: bytes = b""
    response_allowed: bool = True
    quality: int | None = None
    version: int = _DLMS_VERSION

    def __repr__(self) -> str:
        return (
            f"InitiateRequest(conformance={self.conformance!r}, max_pdu={self.max_pdu}, "
            f"dedicated_key={len(self.dedicated_key)} octets)"
        )

    def to_bytes(self) -> bytes:
        """The APDU."""
        return b"".join(
            (
                b"\x01",
                b"\x01" + axdr.encode_octets(self.dedicated_key) if self.dedicated_key else b"\x00",
                b"\x00" if self.response_allowed else b"\x01\x00",
                b"\x00" if self.quality is None else bytes((1, self.quality)),
                bytes((self.version,)),
                _encode_conformance(self.conformance),
                self.max_pdu.to_bytes(2, "big"),
            )
        )


class InitiateResponse(msgspec.Struct, frozen=True):
    """initiate-response.

    Attributes:
        conformance: what was negotiated.
        max_pdu: the longest APDU that the server takes; 0 = no limit.
        vaa_name: 0007 for logical names.
        quality: negotiated quality of service, None without.
        version: DLMS version, 6.
    """

    NAME: ClassVar[str] = "initiate-response"
    conformance: Conformance
    max_pdu: int
    vaa_name: int = VAA_LN
    quality: int | None = None
    version: int = _DLMS_VERSION

    def to_bytes(self) -> bytes:
        """The APDU."""
        return b"".join(
            (
                b"\x08",
                b"\x00" if self.quality is None else bytes((1, self.quality)),
                bytes((self.version,)),
                _encode_conformance(self.conformance),
                self.max_pdu.to_bytes(2, "big"),
                self.vaa_name.to_bytes(2, "big"),
            )
        )


class Aarq(msgspec.Struct, frozen=True):
    """AARQ: a client asks for an association.

    Attributes:
        context: see ApplicationContext.
        user_information: initiate-request, plain or ciphered.
        title: calling-AP-title: the client's system title, b"" without.
        mechanism: see Mechanism; None = lowest security, no authentication fields.
        authentication_value: password (LLS) or challenge CtoS (HLS); never shown.
        certificate: calling-AE-qualifier, b"" without.
        user_id: calling-AE-invocation-identifier, None without.
    """

    NAME: ClassVar[str] = "aarq"
    context: int
    user_information: bytes
    title: bytes = b""
    mechanism: int | None = None
    authentication_value: bytes = b""
    certificate: bytes = b""
    user_id: int | None = None

    def __repr__(self) -> str:
        return (
            f"Aarq(context={words(ApplicationContext, self.context)}, title={self.title.hex()}, "
            f"mechanism={self.mechanism}, "
            f"authentication_value={len(self.authentication_value)} octets, "
            f"user_information={len(self.user_information)} octets)"
        )

    def to_bytes(self) -> bytes:
        """The APDU."""
        parts = [_tlv(0xA1, _tlv(0x06, _CONTEXT_OID + bytes((self.context,))))]
        if self.title:
            parts.append(_tlv(0xA6, _tlv(0x04, self.title)))
        if self.certificate:
            parts.append(_tlv(0xA7, _tlv(0x04, self.certificate)))
        if self.user_id is not None:
            parts.append(_tlv(0xA9, _tlv(0x02, bytes((self.user_id,)))))
        if self.mechanism is not None:
            parts.append(b"\x8a\x02\x07\x80")
            parts.append(_tlv(0x8B, _MECHANISM_OID + bytes((self.mechanism,))))
            parts.append(_tlv(0xAC, _tlv(0x80, self.authentication_value)))
        parts.append(_tlv(0xBE, _tlv(0x04, self.user_information)))
        return _tlv(AARQ, b"".join(parts))


class Aare(msgspec.Struct, frozen=True):
    """AARE: the server's answer.

    Attributes:
        context: see ApplicationContext.
        result: see AssociationResult.
        diagnostic: see UserDiagnostic, or ProviderDiagnostic if `by_provider`.
        user_information: initiate-response or confirmed-service-error, plain or ciphered; b"" without.
        title: responding-AP-title: the server's system title, b"" without.
        mechanism: see Mechanism, None without.
        authentication_value: challenge StoC, b"" without.
        certificate: responding-AE-qualifier, b"" without.
        by_provider: whose diagnostic it is.
    """

    NAME: ClassVar[str] = "aare"
    context: int
    result: int
    diagnostic: int
    user_information: bytes = b""
    title: bytes = b""
    mechanism: int | None = None
    authentication_value: bytes = b""
    certificate: bytes = b""
    by_provider: bool = False

    @property
    def accepted(self) -> bool:
        """The association is there, or HLS may go on."""
        return self.result == AssociationResult.ACCEPTED

    @property
    def words(self) -> str:
        """Result and diagnostic in the standard's words: `rejected-permanent: authentication-failure`."""
        diagnostics = ProviderDiagnostic if self.by_provider else UserDiagnostic
        return f"{words(AssociationResult, self.result)}: {words(diagnostics, self.diagnostic)}"

    def to_bytes(self) -> bytes:
        """The APDU."""
        source = 0xA2 if self.by_provider else 0xA1
        parts = [
            _tlv(0xA1, _tlv(0x06, _CONTEXT_OID + bytes((self.context,)))),
            _tlv(0xA2, _tlv(0x02, bytes((self.result,)))),
            _tlv(0xA3, _tlv(source, _tlv(0x02, bytes((self.diagnostic,))))),
        ]
        if self.title:
            parts.append(_tlv(0xA4, _tlv(0x04, self.title)))
        if self.certificate:
            parts.append(_tlv(0xA5, _tlv(0x04, self.certificate)))
        if self.mechanism is not None:
            parts.append(b"\x88\x02\x07\x80")
            parts.append(_tlv(0x89, _MECHANISM_OID + bytes((self.mechanism,))))
            parts.append(_tlv(0xAA, _tlv(0x80, self.authentication_value)))
        if self.user_information:
            parts.append(_tlv(0xBE, _tlv(0x04, self.user_information)))
        return _tlv(AARE, b"".join(parts))


class Rlrq(msgspec.Struct, frozen=True):
    """RLRQ: the client releases. `user_information`: the ciphered initiate-request again, b"" without."""

    NAME: ClassVar[str] = "rlrq"
    reason: int | None = ReleaseReason.NORMAL
    user_information: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU."""
        return _release(RLRQ, self.reason, self.user_information)


class Rlre(msgspec.Struct, frozen=True):
    """RLRE: the server's answer."""

    NAME: ClassVar[str] = "rlre"
    reason: int | None = ReleaseReason.NORMAL
    user_information: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU."""
        return _release(RLRE, self.reason, self.user_information)


AcseApdu = Aarq | Aare | Rlrq | Rlre
Initiate = InitiateRequest | InitiateResponse | ConfirmedServiceError


def decode(octets: bytes) -> AcseApdu:
    """The ACSE APDU.

    Raises:
        MalformedApdu: another APDU, a length that cannot be, or a field without which it says nothing.
    """
    if octets[:1] not in _ACSE:
        raise MalformedApdu("no ACSE APDU", 0)
    tag, body, end = _read_tlv(octets, 0)
    if end != len(octets):
        raise MalformedApdu(f"{len(octets) - end} octets follow the APDU", end)
    fields = _fields(body)
    if tag == AARQ:
        return _aarq(fields)
    if tag == AARE:
        return _aare(fields)
    reason = _small_integer(fields[0x80]) if 0x80 in fields else None
    return (Rlrq if tag == RLRQ else Rlre)(reason, _inner(fields, 0xBE, 0x04))


_ACSE: Final = frozenset(bytes((tag,)) for tag in (AARQ, AARE, RLRQ, RLRE))


def _aarq(fields: dict[int, bytes]) -> Aarq:
    user_id = _inner(fields, 0xA9, 0x02)
    return Aarq(
        context=_oid(_inner(fields, 0xA1, 0x06), _CONTEXT_OID, "application context"),
        user_information=_inner(fields, 0xBE, 0x04),
        title=_inner(fields, 0xA6, 0x04),
        mechanism=_mechanism(fields.get(0x8B)),
        authentication_value=_authentication(fields.get(0xAC)),
        certificate=_inner(fields, 0xA7, 0x04),
        user_id=_small_integer(user_id) if user_id else None,
    )


def _aare(fields: dict[int, bytes]) -> Aare:
    for tag, name in ((0xA2, "result"), (0xA3, "diagnostic")):
        if tag not in fields:
            raise MalformedApdu(f"an AARE without its {name}", 0)
    source, diagnostic, _ = _read_tlv(fields[0xA3], 0)
    if source not in (0xA1, 0xA2):
        raise MalformedApdu(f"diagnostic of source {source:02X}", 0)
    return Aare(
        context=_oid(_inner(fields, 0xA1, 0x06), _CONTEXT_OID, "application context"),
        result=_small_integer(_inner(fields, 0xA2, 0x02)),
        diagnostic=_small_integer(_only(diagnostic, 0x02)),
        user_information=_inner(fields, 0xBE, 0x04),
        title=_inner(fields, 0xA4, 0x04),
        mechanism=_mechanism(fields.get(0x89)),
        authentication_value=_authentication(fields.get(0xAA)),
        certificate=_inner(fields, 0xA5, 0x04),
        by_provider=source == 0xA2,
    )


def decode_initiate(octets: bytes) -> Initiate:
    """What user-information holds once it is in the clear.

    Raises:
        MalformedApdu: something else, or cut.
    """
    try:
        if octets[0] == 0x01:
            return _initiate_request(octets)
        if octets[0] == 0x08:
            return _initiate_response(octets)
        if octets[0] == 0x0E:
            if len(octets) != 4:
                raise MalformedApdu("a confirmed-service-error has 4 octets", len(octets))
            return ConfirmedServiceError(octets[1], octets[2], octets[3])
    except IndexError:
        raise MalformedApdu("the user-information is cut", len(octets)) from None
    raise MalformedApdu(f"user-information {octets[0]:02X} is no initiate", 0)


def _initiate_request(octets: bytes) -> InitiateRequest:
    at = 1
    key = b""
    if _present(octets, at):
        key, at = axdr.read_octets(octets, at + 1)
    else:
        at += 1
    allowed = True
    if _present(octets, at):
        allowed = octets[at + 1] != 0
        at += 1
    at += 1
    quality = None
    if _present(octets, at):
        quality = octets[at + 1]
        at += 1
    version = octets[at + 1]
    conformance, at = _read_conformance(octets, at + 2)
    if len(octets) != at + 2:
        raise MalformedApdu("an initiate-request ends with the PDU size", at)
    return InitiateRequest(
        conformance, int.from_bytes(octets[at:], "big"), key, allowed, quality, version
    )


def _initiate_response(octets: bytes) -> InitiateResponse:
    at = 1
    quality = None
    if _present(octets, at):
        quality = octets[at + 1]
        at += 1
    version = octets[at + 1]
    conformance, at = _read_conformance(octets, at + 2)
    if len(octets) != at + 4:
        raise MalformedApdu("an initiate-response ends with PDU size and vaa-name", at)
    return InitiateResponse(
        conformance,
        int.from_bytes(octets[at : at + 2], "big"),
        int.from_bytes(octets[at + 2 :], "big"),
        quality,
        version,
    )


def _present(octets: bytes, at: int) -> bool:
    if octets[at] > 1:
        raise MalformedApdu("an optional field is neither absent (00) nor present (01)", at)
    return octets[at] == 1


def _encode_conformance(conformance: Conformance) -> bytes:
    return b"\x5f\x1f\x04\x00" + int(conformance).to_bytes(3, "big")


def _read_conformance(octets: bytes, at: int) -> tuple[Conformance, int]:
    """[APPLICATION 31] as 5F 1F, or as bare 5F, which some write over HDLC."""
    start = at
    if octets[at] != 0x5F:
        raise MalformedApdu("the conformance block is missing", at)
    at += 2 if octets[at + 1] == 0x1F else 1
    if octets[at : at + 2] != b"\x04\x00" or len(octets) < at + 5:
        raise MalformedApdu("a conformance block has 24 bits", start)
    return Conformance(int.from_bytes(octets[at + 2 : at + 5], "big")), at + 5


def _release(tag: int, reason: int | None, user_information: bytes) -> bytes:
    out = b"" if reason is None else _tlv(0x80, bytes((reason,)))
    if user_information:
        out += _tlv(0xBE, _tlv(0x04, user_information))
    return _tlv(tag, out)


def _tlv(tag: int, value: bytes) -> bytes:
    return bytes((tag,)) + axdr.encode_octets(value)


def _read_tlv(octets: bytes, at: int) -> tuple[int, bytes, int]:
    if at >= len(octets):
        raise MalformedApdu("a field is missing", at)
    value, end = axdr.read_octets(octets, at + 1)
    return octets[at], value, end


def _fields(octets: bytes) -> dict[int, bytes]:
    """The fields of an ACSE APDU by tag.

    Raises:
        MalformedApdu: one stands twice.
    """
    out: dict[int, bytes] = {}
    at = 0
    while at < len(octets):
        start = at
        tag, value, at = _read_tlv(octets, at)
        if tag in out:
            raise MalformedApdu(f"field {tag:02X} stands twice", start)
        out[tag] = value
    return out


def _only(octets: bytes, tag: int) -> bytes:
    """The value of the one field inside another."""
    found, value, end = _read_tlv(octets, 0)
    if found != tag or end != len(octets):
        raise MalformedApdu(f"field {found:02X} where {tag:02X} is due", 0)
    return value


def _inner(fields: dict[int, bytes], outer: int, tag: int) -> bytes:
    """The value of a wrapped field, b"" when it is absent."""
    return _only(fields[outer], tag) if outer in fields else b""


def _small_integer(octets: bytes) -> int:
    if not 1 <= len(octets) <= 4:
        raise MalformedApdu(f"an integer of {len(octets)} octets", 0)
    return int.from_bytes(octets, "big")


def _oid(octets: bytes, prefix: bytes, what: str) -> int:
    if len(octets) != len(prefix) + 1 or not octets.startswith(prefix):
        raise MalformedApdu(f"object identifier {octets.hex()} is no DLMS {what}", 0)
    return octets[-1]


def _mechanism(octets: bytes | None) -> int | None:
    return None if octets is None else _oid(octets, _MECHANISM_OID, "authentication mechanism")


def _authentication(octets: bytes | None) -> bytes:
    """Charstring [0] or bitstring [1]; an empty field is none."""
    if not octets:
        return b""
    tag, value, end = _read_tlv(octets, 0)
    if end != len(octets) or tag not in (0x80, 0x81):
        raise MalformedApdu(f"authentication value of form {tag:02X}", 0)
    return value if tag == 0x80 else value[1:]


def mechanism_words(mechanism: int | None) -> str:
    """`hls5-gmac`; `none` without a mechanism."""
    return words(Mechanism, mechanism or 0)
