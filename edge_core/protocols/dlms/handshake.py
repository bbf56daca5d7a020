"""The messages and proofs that make an association: AARQ, AARE and, with HLS, what passes 3 and 4 hold.

Invariants: nothing of a ciphered AARE is believed before its InitiateResponse verified; an AARE of another context or
mechanism than was asked for is refused. A password stands in the AARQ of low level security, and nowhere else.
Source: DLMS UA Green Book ed. 9, clauses 9.2.7.4 (HLS), 9.3.2, 9.4.2.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from edge_core.errors import Downgraded, LocalProtocolError, MalformedApdu, ProtocolError
from edge_core.protocols.dlms import acse, apdu, axdr, curves, proofs
from edge_core.protocols.dlms.codes import ApplicationContext, Conformance, Mechanism, words
from edge_core.protocols.dlms.refusals import AssociationRefused

if TYPE_CHECKING:
    from edge_core.domain import Secret
    from edge_core.protocols.dlms.general import KeyPairs
    from edge_core.protocols.dlms.protection import Protection
    from edge_core.protocols.dlms.security import SecurityContext
    from edge_core.protocols.dlms.terms import Terms


class Handshake:
    """Makes and reads what an association begins with; see `association.Association` for the arguments.

    Raises:
        LocalProtocolError: terms that contradict each other, or a key that they need is not there.
    """

    __slots__ = ("_context", "_dedicated_key", "_pairs", "_secret", "protection", "terms")

    def __init__(
        self,
        terms: Terms,
        protection: Protection,
        context: SecurityContext | None,
        secret: Secret | None,
        dedicated_key: Secret | None,
        pairs: KeyPairs | None,
    ) -> None:
        self.terms, self.protection = terms, protection
        self._context, self._secret, self._pairs = context, secret, pairs
        self._dedicated_key = dedicated_key
        mechanism = terms.mechanism
        if (terms.level or mechanism is Mechanism.HLS5_GMAC) and context is None:
            raise LocalProtocolError("ciphering and GMAC need keys")
        if (terms.ciphering == "none") != (terms.level == 0):
            raise LocalProtocolError(
                "protection without ciphering, or ciphering without protection"
            )
        if mechanism is Mechanism.HLS7_ECDSA:
            if pairs is None or pairs.sign is None or pairs.peer_sign is None:
                raise LocalProtocolError("hls7-ecdsa needs our signing key and the meter's")
        elif mechanism not in (Mechanism.NONE, Mechanism.HLS5_GMAC) and secret is None:
            raise LocalProtocolError(f"{words(Mechanism, mechanism)} needs a secret")
        if terms.ciphering in ("ded", "general-ded") and dedicated_key is None:
            raise LocalProtocolError("dedicated ciphering needs a dedicated key")
        if (terms.signed or terms.ciphering == "general-ciphering") and pairs is None:
            raise LocalProtocolError("general-ciphering and general-signing need key pairs")

    def initiate_request(self) -> bytes:
        """The InitiateRequest, plain."""
        terms = self.terms
        request = acse.InitiateRequest(
            conformance=terms.conformance,
            max_pdu=terms.max_pdu,
            dedicated_key=self._dedicated_key.reveal() if self._dedicated_key is not None else b"",
        ).to_bytes()
        return (
            request.replace(b"\x5f\x1f\x04\x00", b"\x5f\x04\x00")
            if terms.bare_conformance
            else request
        )

    def aarq(self, challenge: bytes) -> bytes:
        """The AARQ; `challenge` is CtoS, b"" without HLS."""
        terms = self.terms
        user = self.initiate_request()
        if terms.level:
            user = self.protection.seal_global(user)
        secret = challenge
        if terms.mechanism is Mechanism.LLS:
            assert self._secret is not None
            secret = self._secret.reveal()
        ciphered = terms.level != 0
        return acse.Aarq(
            context=ApplicationContext.LN_CIPHERED if ciphered else ApplicationContext.LN,
            mechanism=terms.mechanism or None,
            authentication_value=secret,
            title=terms.title
            if ciphered or terms.signed or terms.mechanism >= Mechanism.HLS5_GMAC
            else b"",
            user_information=user,
        ).to_bytes()

    def read_aare(self, reply: bytes) -> tuple[acse.Aare, acse.InitiateResponse]:
        """Check the AARE; it and the initiate-response in it.

        Raises:
            AssociationRefused: it says no.
            NotNegotiated: the protection that is asked for needs general-protection.
            Downgraded, Replayed, TagInvalid, MalformedApdu.
        """
        terms = self.terms
        aare = acse.decode(reply)
        if not isinstance(aare, acse.Aare):
            raise MalformedApdu(f"{aare.NAME} instead of an AARE")
        user = aare.user_information
        if not aare.accepted:
            error = ""
            with contextlib.suppress(ProtocolError):
                message = acse.decode_initiate(user)
                error = (
                    f" ({message.words})" if isinstance(message, apdu.ConfirmedServiceError) else ""
                )
            raise AssociationRefused(aare.words + error, aare.diagnostic)
        context = ApplicationContext.LN_CIPHERED if terms.level else ApplicationContext.LN
        if aare.context != context:
            raise MalformedApdu(f"application context {aare.context}, asked for {context}")
        if terms.mechanism > Mechanism.LLS and aare.mechanism not in (None, terms.mechanism):
            raise Downgraded(f"mechanism {aare.mechanism}, asked for {int(terms.mechanism)}")
        self.protection.meter_title = aare.title
        if (terms.level or terms.mechanism >= Mechanism.HLS5_GMAC or terms.signed) and len(
            aare.title
        ) != 8:
            raise MalformedApdu(f"the meter's system title has {len(aare.title)} octets, not 8")
        initiate = acse.decode_initiate(self.protection.open_initiate(user))
        if isinstance(initiate, apdu.ConfirmedServiceError):
            raise AssociationRefused(initiate.words, initiate.value)
        if not isinstance(initiate, acse.InitiateResponse):
            raise MalformedApdu(f"{initiate.NAME} instead of an initiate-response")
        general_protection = Conformance.GENERAL_PROTECTION in initiate.conformance
        self.protection.negotiated(general_protection=general_protection)
        return aare, initiate

    def proof(self, c_to_s: bytes, s_to_c: bytes) -> bytes:
        """f(StoC) of pass 3."""
        mechanism, own, peer = self.terms.mechanism, self.terms.title, self.protection.meter_title
        if mechanism is Mechanism.HLS5_GMAC:
            assert self._context is not None
            return self._context.gmac(own, self.protection.counter(), s_to_c)
        if mechanism is Mechanism.HLS7_ECDSA:
            assert self._pairs is not None
            assert self._pairs.sign is not None
            return curves.sign(self._pairs.sign, proofs.signed_text(own, peer, s_to_c, c_to_s))
        assert self._secret is not None
        return proofs.prove(mechanism, self._secret, own, peer, s_to_c, c_to_s)

    def verify(self, data: bytes, c_to_s: bytes, s_to_c: bytes, floor: int) -> None:
        """f(CtoS) of pass 4; `floor` is the meter's counter before this answer."""
        value = axdr.decode_whole(data).value
        if not isinstance(value, bytes):
            raise MalformedApdu("the proof of pass 4 is no octet-string")
        mechanism, own, peer = self.terms.mechanism, self.terms.title, self.protection.meter_title
        if mechanism is Mechanism.HLS5_GMAC:
            self.protection.verify_gmac(value, c_to_s, floor)
        elif mechanism is Mechanism.HLS7_ECDSA:
            assert self._pairs is not None
            assert self._pairs.peer_sign is not None
            text = proofs.signed_text(peer, own, c_to_s, s_to_c)
            curves.verify(self._pairs.peer_sign, text, value)
        else:
            assert self._secret is not None
            expected = proofs.prove(mechanism, self._secret, peer, own, c_to_s, s_to_c)
            proofs.same(expected, value)
