"""What a client asks for in an association: one value, made from the meter model before the line is opened.

Source: DLMS UA Green Book ed. 9, clauses 9.2.7, 9.3, 9.4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_core.protocols.dlms.codes import Conformance, Mechanism

if TYPE_CHECKING:
    from edge_core.domain import Obis
    from edge_core.protocols.dlms.general import KeyInfoKind

Ciphering = Literal["none", "glo", "ded", "general-glo", "general-ded", "general-ciphering"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What we ask for.

    Attributes:
        title: our system title, 8 octets.
        mechanism: authentication.
        level: bits of security.AUTHENTICATED and ENCRYPTED that we send with and demand of answers; 0 = plain.
        ciphering: which wrappers carry it; general-glo falls back to glo when it is not negotiated.
        key_info: how general-ciphering names or makes its key.
        signed: requests are signed (general-signing), answers must be.
        object: the association object that HLS passes 3 and 4 act on.
        max_pdu: octets that we can receive.
        conformance: services that we propose.
        release: plain RLRQ, RLRQ with the ciphered InitiateRequest, or none.
        bare_conformance: conformance tag 5F instead of 5F 1F.
    """

    title: bytes = b""
    mechanism: Mechanism = Mechanism.NONE
    level: int = 0
    ciphering: Ciphering = "none"
    key_info: KeyInfoKind = "identified"
    signed: bool = False
    object: Obis = "0.0.40.0.0.255"
    max_pdu: int = 0xFFFF
    conformance: Conformance = (
        Conformance.BLOCK_TRANSFER_GET
        | Conformance.BLOCK_TRANSFER_SET
        | Conformance.BLOCK_TRANSFER_ACTION
        | Conformance.MULTIPLE_REFERENCES
        | Conformance.GET
        | Conformance.SET
        | Conformance.SELECTIVE_ACCESS
        | Conformance.ACTION
        | Conformance.GENERAL_PROTECTION
    )
    release: Literal["rlrq", "rlrq-ciphered", "close"] = "rlrq"
    bare_conformance: bool = False
