"""The client's side of an association, without I/O: AARQ to RLRQ, GET, SET, ACTION, blocks, protection.

An operation is a generator: it yields an APDU to send and is sent the APDU that came back; what it returns is the
result. The states and their changes are the table TRANSITIONS; the picture in the docs is drawn from it.

Invariants, each one the cause of a fault in some published client:
- every protected APDU takes the next invocation counter, the GMAC of HLS 5 one of its own; none is used twice;
- of a protected answer nothing is looked at before its tag verified, and its counter only then counts;
- counters of the peer only rise; an answer with less protection than was asked for is refused;
- the peer proves in pass 4 that it knows the key; a challenge that mirrors ours is refused;
- an answer must carry the invoke-id of the request, blocks must come numbered without gaps;
- after anything of that fails the association is broken for good: close the line.
Limits: MAX_REPLY octets and MAX_BLOCKS blocks of one answer.
Exception-responses and confirmed-service-errors come in the clear: they are hints for people, never facts.
Source: DLMS UA Green Book ed. 9, clauses 9.2 (security), 9.3 (ACSE), 9.4.6 (xDLMS services).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from edge_core.errors import (
    Downgraded,
    LocalProtocolError,
    MalformedApdu,
    ProtocolError,
    Replayed,
    TagInvalid,
)
from edge_core.protocols.dlms import acse, apdu, axdr, ciphering
from edge_core.protocols.dlms.codes import (
    ApplicationContext,
    Conformance,
    DataAccessResult,
    Mechanism,
    words,
)
from edge_core.protocols.dlms.cosem import Attribute, Method, Selector
from edge_core.protocols.dlms.refusals import (
    AccessRefused,
    AssociationRefused,
    ExceptionAnswered,
    NotNegotiated,
    ProofInvalid,
    ProofRefused,
    Refused,
)
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    BROADCAST,
    SUITE_MASK,
    hls2,
    hls3,
    hls4,
    hls6,
    same_proof,
)
from edge_core.protocols.dlms.services import (
    ActionRequest,
    ActionRequestBlock,
    ActionRequestFirstBlock,
    ActionRequestNextBlock,
    ActionResponse,
    ActionResponseBlock,
    ActionResponseNextBlock,
    Block,
    GetRequest,
    GetRequestList,
    GetRequestNext,
    GetResponse,
    GetResponseBlock,
    GetResponseList,
    GetResult,
    SetRequest,
    SetRequestBlock,
    SetRequestFirstBlock,
    SetResponse,
    SetResponseBlock,
    SetResponseLastBlock,
)
from edge_core.protocols.dlms.states import TRANSITIONS, Event, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Obis, Secret
    from edge_core.protocols.dlms.security import SecurityContext

T = TypeVar("T")
Exchange = Generator[bytes, bytes, T]
"""Yields what to send (b"" = only wait for more), is sent what came back, returns the result."""

MAX_REPLY: Final = 8 << 20
MAX_BLOCKS: Final = 100_000
CHALLENGE_OCTETS: Final = range(8, 65)
"""Lengths that a challenge may have."""
BLOCK_OVERHEAD: Final = 64
"""Octets of a request that are not block data: wrapper, header, tag."""
MIN_BLOCK: Final = 8

_SPECIAL: Final = frozenset((b"\xd8", b"\x0e", b"\xe0"))
"""Answers that are no response of a service: exceptions, and pieces of a general-block-transfer."""

Ciphering = Literal["none", "glo", "ded", "general-glo", "general-ded"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What we ask for.

    Attributes:
        title: our system title, 8 octets.
        mechanism: authentication.
        level: bits of security.AUTHENTICATED and ENCRYPTED that we send with and demand of answers; 0 = plain.
        ciphering: which wrappers carry it; general-glo falls back to glo when it is not negotiated.
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


class Association:
    """One association with one logical device.

    Args:
        terms: what we ask for.
        next_counter: gives the next invocation counter; never the same twice, durable before it is given.
        context: the global keys; needed when `terms.level` is set or the mechanism is HLS 5.
        secret: password (LLS) or HLS secret (HLS 2, 3, 4, 6).
        accept: told the meter's title and each of its counters after the tag verified; False = accepted before.
        dedicated: makes the context of a dedicated key; with ciphering `ded` and `general-ded`.
        dedicated_key: that key, fresh for this association.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        next_counter: Callable[[], int] | None = None,
        context: SecurityContext | None = None,
        secret: Secret | None = None,
        accept: Callable[[bytes, int], bool] | None = None,
        dedicated: SecurityContext | None = None,
        dedicated_key: Secret | None = None,
    ) -> None:
        self.terms = terms
        self.state = State.IDLE
        self.negotiated = Conformance(0)
        self.meter_title = b""
        self.server_max_pdu = 0
        self.peer_counter = -1
        self._next_counter, self._context, self._secret = next_counter, context, secret
        self._accept, self._dedicated, self._dedicated_key = accept, dedicated, dedicated_key
        self._dedicated_counter = 0
        self._dedicated_peer_counter = -1
        self._invoke = 0
        self._level = terms.level
        self._wants_general = terms.ciphering.startswith("general")
        self._uses_dedicated = terms.ciphering in ("ded", "general-ded")
        self._general = False
        if (terms.level or terms.mechanism is Mechanism.HLS5_GMAC) and (
            context is None or next_counter is None
        ):
            raise LocalProtocolError("ciphering and GMAC need keys and counters")
        if (terms.ciphering == "none") != (terms.level == 0):
            raise LocalProtocolError(
                "protection without ciphering, or ciphering without protection"
            )
        if terms.mechanism not in (Mechanism.NONE, Mechanism.HLS5_GMAC) and secret is None:
            raise LocalProtocolError(f"{words(Mechanism, terms.mechanism)} needs a secret")
        if terms.ciphering in ("ded", "general-ded") and (
            dedicated is None or dedicated_key is None
        ):
            raise LocalProtocolError("dedicated ciphering needs a dedicated key")

    # --- operations

    def open(self, challenge: bytes = b"") -> Exchange[None]:
        """Associate: AARQ, AARE, and with HLS passes 3 and 4.

        Args:
            challenge: CtoS, 8 to 64 random octets; needed with HLS.

        Raises:
            AssociationRefused: the AARE says no.
            ProofRefused: the meter does not accept our proof.
            TagInvalid: the meter's InitiateResponse does not verify: other keys, or no meter.
            ProofInvalid: its proof is missing, mirrors ours or does not verify.
            Replayed, Downgraded, MalformedApdu, ExceptionAnswered.
        """
        terms = self.terms
        hls = terms.mechanism > Mechanism.LLS
        if hls and len(challenge) not in CHALLENGE_OCTETS:
            raise LocalProtocolError(f"a challenge of {len(challenge)} octets, 8 to 64 are due")
        self.move(Event.AARQ)
        with _Failing(self):
            reply = yield self._aarq(challenge)
            aare = self._read_aare(reply)
            if not hls:
                self.move(Event.ACCEPTED)
                return
            s_to_c = aare.authentication_value
            if len(s_to_c) not in CHALLENGE_OCTETS:
                raise MalformedApdu(f"StoC has {len(s_to_c)} octets, 8 to 64 are due")
            if s_to_c == challenge:
                raise ProofInvalid("StoC mirrors CtoS: whoever answers need not know the key")
            self.move(Event.CHALLENGED)
            floor = self.peer_counter
            proof = axdr.encode(axdr.octet_string(self._proof(challenge, s_to_c)))
            method = Method(15, terms.object, 1)
            answer = yield from self._ask(
                ActionRequest(method, proof, self._new_invoke()).to_bytes(), dedicated=False
            )
            if not isinstance(answer, ActionResponse):
                raise MalformedApdu(f"{type(answer).__name__} instead of the answer to pass 3")
            if answer.result:
                raise ProofRefused(
                    f"pass 3: {answer.words}", answer.result, authenticated=bool(terms.level)
                )
            if answer.returned is None or answer.returned.result:
                raise ProofInvalid("the meter does not prove that it knows the key")
            try:
                self._verify(answer.returned.data, challenge, s_to_c, floor)
            except TagInvalid as wrong:
                raise ProofInvalid(f"pass 4: {wrong}") from wrong
            self.move(Event.PROVEN)

    def get(self, attribute: Attribute, selector: Selector | None = None) -> Exchange[bytes]:
        """Read an attribute, in one answer or in blocks; the value as A-XDR.

        Raises:
            AccessRefused, NotNegotiated, ExceptionAnswered: the association lives on.
            ProtocolError: anything else; it does not.
        """
        if selector is not None:
            self.need(Conformance.SELECTIVE_ACCESS, "selective access")
        with _Asking(self):
            invoke = self._new_invoke()
            answer = yield from self._ask(GetRequest(attribute, selector, invoke).to_bytes())
            if isinstance(answer, GetResponse):
                self._check_result(str(attribute), answer.result)
                return answer.data
            if isinstance(answer, GetResponseBlock):
                return (yield from self._get_blocks(str(attribute), answer, invoke))
            raise MalformedApdu(f"{answer.NAME} instead of a get-response")

    def get_list(
        self, attributes: Sequence[tuple[Attribute, Selector | None]]
    ) -> Exchange[tuple[GetResult, ...]]:
        """Read several attributes at once; results in their order, each success or not.

        Raises:
            As `get`, but for AccessRefused of a single attribute.
        """
        self.need(Conformance.MULTIPLE_REFERENCES, "several attributes at once")
        if any(selector is not None for _, selector in attributes):
            self.need(Conformance.SELECTIVE_ACCESS, "selective access")
        with _Asking(self):
            invoke = self._new_invoke()
            answer = yield from self._ask(GetRequestList(tuple(attributes), invoke).to_bytes())
            if isinstance(answer, GetResponseList):
                results = answer.results
            elif isinstance(answer, GetResponseBlock):
                whole = yield from self._get_blocks("list", answer, invoke)
                listed = apdu.decode(bytes((0xC4, 3, invoke)) + whole)
                assert isinstance(listed, GetResponseList)
                results = listed.results
            else:
                raise MalformedApdu(f"{answer.NAME} instead of a get-response-with-list")
            if len(results) != len(attributes):
                raise MalformedApdu(f"{len(results)} results for {len(attributes)} attributes")
            return results

    def set(self, attribute: Attribute, data: bytes) -> Exchange[None]:
        """Write an attribute, in blocks where it does not fit the server's PDU.

        Args:
            attribute: what is written.
            data: the value as A-XDR.

        Raises:
            As `get`.
        """
        self.need(Conformance.SET, "SET")
        room = self._room(len(data))
        with _Asking(self):
            invoke = self._new_invoke()
            if len(data) <= room or Conformance.BLOCK_TRANSFER_SET not in self.negotiated:
                answer = yield from self._ask(SetRequest(attribute, data, None, invoke).to_bytes())
                if not isinstance(answer, SetResponse):
                    raise MalformedApdu(f"{answer.NAME} instead of a set-response")
                self._check_result(str(attribute), answer.result)
                return
            pieces = [data[i : i + room] for i in range(0, len(data), room)]
            for number, piece in enumerate(pieces, 1):
                block = Block(number == len(pieces), number, piece)
                request = (
                    SetRequestFirstBlock(attribute, block, None, invoke)
                    if number == 1
                    else SetRequestBlock(block, invoke)
                )
                answer = yield from self._ask(request.to_bytes())
                if isinstance(answer, SetResponseLastBlock):
                    self._check_result(str(attribute), answer.results[0] if answer.results else 250)
                    if not block.last:
                        raise MalformedApdu("the meter ended the block transfer early")
                elif isinstance(answer, SetResponse):
                    self._check_result(str(attribute), answer.result)
                    raise MalformedApdu("a set-response-normal within a block transfer")
                elif (
                    not isinstance(answer, SetResponseBlock)
                    or answer.number != number
                    or block.last
                ):
                    raise MalformedApdu(f"block {number} is not acknowledged")

    def act(self, method: Method, parameters: bytes | None = None) -> Exchange[bytes | None]:
        """Invoke a method; what it returned as A-XDR, or None.

        Raises:
            As `get`.
        """
        self.need(Conformance.ACTION, "ACTION")
        with _Asking(self):
            invoke = self._new_invoke()
            room = self._room(len(parameters or b""))
            if parameters is None or len(parameters) <= room or not self._blocks_in_actions():
                answer = yield from self._ask(ActionRequest(method, parameters, invoke).to_bytes())
            else:
                answer = yield from self._act_in_blocks(method, parameters, room, invoke)
            whole = b""
            blocks = 0
            while isinstance(answer, ActionResponseBlock):
                blocks += 1
                whole += self._checked_block(answer.block, blocks, len(whole))
                if answer.block.last:
                    answer = apdu.decode(bytes((0xC7, 1, invoke)) + whole)
                    break
                answer = yield from self._ask(ActionRequestNextBlock(blocks, invoke).to_bytes())
            if not isinstance(answer, ActionResponse):
                raise MalformedApdu(f"{answer.NAME} instead of an action-response")
            if answer.result:
                self._refuse(f"{method}: {answer.words}", answer.result)
            if answer.returned is None:
                return None
            if answer.returned.result:
                self._refuse(f"{method}: {answer.returned.words}", answer.returned.result)
            return answer.returned.data

    def _act_in_blocks(
        self, method: Method, parameters: bytes, room: int, invoke: int
    ) -> Exchange[apdu.Apdu]:
        """An ACTION whose parameters do not fit the server's PDU; the answer to the last block."""
        pieces = [parameters[i : i + room] for i in range(0, len(parameters), room)]
        for number, piece in enumerate(pieces, 1):
            block = Block(number == len(pieces), number, piece)
            request = (
                ActionRequestFirstBlock(method, block, invoke)
                if number == 1
                else ActionRequestBlock(block, invoke)
            )
            answer = yield from self._ask(request.to_bytes())
            if block.last:
                return answer
            if isinstance(answer, ActionResponse) and answer.result:
                self._refuse(f"{method}: {answer.words}", answer.result)
            if not isinstance(answer, ActionResponseNextBlock) or answer.number != number:
                raise MalformedApdu(f"block {number} is not acknowledged")
        raise LocalProtocolError("parameters without octets need no blocks")

    def _blocks_in_actions(self) -> bool:
        return Conformance.BLOCK_TRANSFER_ACTION in self.negotiated

    def _room(self, size: int) -> int:
        """Octets of a value that one request may carry; `size` where the server sets no limit."""
        if not self.server_max_pdu:
            return size
        return max(MIN_BLOCK, self.server_max_pdu - BLOCK_OVERHEAD)

    def release(self) -> Exchange[None]:
        """Release by RLRQ where the terms want one; without an association nothing is sent."""
        if self.state is not State.READY:
            return
        if self.terms.release == "close":
            self.state = State.CLOSED
            return
        self.move(Event.RLRQ)
        user = b""
        if self.terms.release == "rlrq-ciphered" and self.terms.level:
            user = self._protect(self._initiate_request(), dedicated=False)
        with _Failing(self):
            reply = yield acse.Rlrq(user_information=user).to_bytes()
            if not isinstance(acse.decode(reply), acse.Rlre):
                raise MalformedApdu("another answer than RLRE")
            self.move(Event.RLRE)

    def need(self, service: Conformance, what: str) -> None:
        """Was it negotiated?

        Raises:
            NotNegotiated: it was not.
        """
        if service not in self.negotiated:
            raise NotNegotiated(f"the meter does not offer {what}")

    # --- states

    def move(self, event: Event) -> None:
        """Change the state by the table."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise LocalProtocolError(f"{event.value} while {self.state.value}") from None

    # --- association

    def _initiate_request(self) -> bytes:
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

    def _aarq(self, challenge: bytes) -> bytes:
        terms = self.terms
        user = self._initiate_request()
        if terms.level:
            user = self._protect(user, dedicated=False)
        secret = challenge
        if terms.mechanism is Mechanism.LLS:
            assert self._secret is not None
            secret = self._secret.reveal()
        ciphered = terms.level != 0
        return acse.Aarq(
            context=ApplicationContext.LN_CIPHERED if ciphered else ApplicationContext.LN,
            mechanism=terms.mechanism or None,
            authentication_value=secret,
            title=terms.title if ciphered or terms.mechanism >= Mechanism.HLS5_GMAC else b"",
            user_information=user,
        ).to_bytes()

    def _read_aare(self, reply: bytes) -> acse.Aare:
        """Check the AARE and take what was negotiated."""
        terms = self.terms
        self._check_exception(reply)
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
        self.meter_title = aare.title
        if (terms.level or terms.mechanism >= Mechanism.HLS5_GMAC) and len(aare.title) != 8:
            raise MalformedApdu(f"the meter's system title has {len(aare.title)} octets, not 8")
        if terms.level:
            user = self._unprotect(user)
        initiate = acse.decode_initiate(user)
        if isinstance(initiate, apdu.ConfirmedServiceError):
            raise AssociationRefused(initiate.words, initiate.value)
        if not isinstance(initiate, acse.InitiateResponse):
            raise MalformedApdu(f"{initiate.NAME} instead of an initiate-response")
        self.negotiated = initiate.conformance
        self._general = self._wants_general and Conformance.GENERAL_PROTECTION in self.negotiated
        self.server_max_pdu = initiate.max_pdu
        return aare

    def _proof(self, c_to_s: bytes, s_to_c: bytes) -> bytes:
        """f(StoC) of pass 3."""
        mechanism, secret = self.terms.mechanism, self._secret
        if mechanism is Mechanism.HLS5_GMAC:
            assert self._context is not None
            return self._context.gmac(self.terms.title, self._counter(), s_to_c)
        assert secret is not None
        if mechanism is Mechanism.HLS2:
            return hls2(secret, s_to_c)
        if mechanism is Mechanism.HLS3_MD5:
            return hls3(secret, s_to_c)
        if mechanism is Mechanism.HLS4_SHA1:
            return hls4(secret, s_to_c)
        if mechanism is Mechanism.HLS6_SHA256:
            return hls6(secret, self.terms.title, self.meter_title, s_to_c, c_to_s)
        raise LocalProtocolError(f"mechanism {int(mechanism)} is not supported")

    def _verify(self, data: bytes, c_to_s: bytes, s_to_c: bytes, floor: int) -> None:
        """f(CtoS) of pass 4; `floor` is the meter's counter before this answer."""
        value = axdr.decode_whole(data).value
        if not isinstance(value, bytes):
            raise MalformedApdu("the proof of pass 4 is no octet-string")
        mechanism, secret = self.terms.mechanism, self._secret
        if mechanism is Mechanism.HLS5_GMAC:
            assert self._context is not None
            counter = self._context.verify_gmac(self.meter_title, value, c_to_s)
            if counter <= floor or counter == self.peer_counter:
                raise Replayed(f"the proof of pass 4 has counter {counter} again")
            if counter > self.peer_counter:
                self._accepted(counter)
            return
        assert secret is not None
        if mechanism is Mechanism.HLS2:
            same_proof(hls2(secret, c_to_s), value)
        elif mechanism is Mechanism.HLS3_MD5:
            same_proof(hls3(secret, c_to_s), value)
        elif mechanism is Mechanism.HLS4_SHA1:
            same_proof(hls4(secret, c_to_s), value)
        else:
            same_proof(hls6(secret, self.meter_title, self.terms.title, c_to_s, s_to_c), value)

    # --- requests

    def _new_invoke(self) -> int:
        self._invoke = (self._invoke + 1) & 0x0F
        return 0xC0 | self._invoke

    def _ask(self, plain: bytes, *, dedicated: bool | None = None) -> Exchange[apdu.Apdu]:
        """One request, one verified answer with the same invoke-id."""
        if dedicated is None:
            dedicated = self._uses_dedicated
        reply = yield self._protect(plain, dedicated=dedicated) if self._level else plain
        if reply[:1] in _SPECIAL:
            if reply[0] == apdu.GENERAL_BLOCK_TRANSFER:
                reply = yield from self._gather(reply)
            self._check_exception(reply)
        if self._level:
            reply = self._unprotect(reply)
            if reply[:1] in _SPECIAL:
                self._check_exception(reply, authenticated=True)
        elif ciphering.is_ciphered(reply):
            raise MalformedApdu("a ciphered answer in an association without ciphering")
        answer = apdu.decode(reply)
        invoke = getattr(answer, "invoke", None)
        if invoke is None or (invoke ^ plain[2]) & 0x0F:
            raise MalformedApdu(f"{answer.NAME} with invoke-id {invoke}, asked with {plain[2]}")
        return answer

    def _gather(self, reply: bytes) -> Exchange[bytes]:
        """An answer that comes by general-block-transfer, window 1 or streamed, put together."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = apdu.decode(reply)
            if not isinstance(message, apdu.GeneralBlockTransfer):
                raise MalformedApdu(f"{message.NAME} within a general-block-transfer")
            block = Block(message.last, message.number, message.data)
            parts.append(self._checked_block(block, len(parts) + 1, size))
            size += len(block.data)
            if block.last:
                return b"".join(parts)
            if message.streaming:
                reply = yield b""
            else:
                done = len(parts)
                reply = yield apdu.GeneralBlockTransfer(True, False, 1, done, done).to_bytes()

    def _get_blocks(self, what: str, answer: apdu.Apdu, invoke: int) -> Exchange[bytes]:
        """All blocks of a GET, in order and bounded."""
        parts: list[bytes] = []
        size = 0
        while True:
            if not isinstance(answer, GetResponseBlock):
                if isinstance(answer, GetResponse) and answer.result:
                    self._check_result(what, answer.result)
                raise MalformedApdu(f"{answer.NAME} within a block transfer")
            self._check_result(what, answer.result)
            part = self._checked_block(answer.block, len(parts) + 1, size)
            parts.append(part)
            size += len(part)
            if answer.block.last:
                return b"".join(parts)
            answer = yield from self._ask(GetRequestNext(len(parts), invoke).to_bytes())

    @staticmethod
    def _checked_block(block: Block, number: int, size: int) -> bytes:
        if block.number != number:
            raise MalformedApdu(f"block {block.number} came, {number} is due")
        if not block.data and not block.last:
            raise MalformedApdu(f"block {number} is empty")
        if number > MAX_BLOCKS or size + len(block.data) > MAX_REPLY:
            raise MalformedApdu(f"an answer of more than {MAX_BLOCKS} blocks or {MAX_REPLY} octets")
        return block.data

    def _check_result(self, what: str, result: int) -> None:
        if result:
            self._refuse(f"{what}: {words(DataAccessResult, result)}", result)

    def _refuse(self, message: str, code: int) -> None:
        raise AccessRefused(message, code, authenticated=bool(self.terms.level & AUTHENTICATED))

    @staticmethod
    def _check_exception(reply: bytes, *, authenticated: bool = False) -> None:
        """Exception-responses and confirmed-service-errors, which may come in the clear."""
        if reply[:1] not in (b"\xd8", b"\x0e"):
            return
        message = apdu.decode(reply)
        if isinstance(message, apdu.ExceptionResponse):
            raise ExceptionAnswered(message.words, message.service, authenticated=authenticated)
        if isinstance(message, apdu.ConfirmedServiceError):
            raise ExceptionAnswered(message.words, message.value, authenticated=authenticated)

    # --- protection

    def _counter(self) -> int:
        assert self._next_counter is not None
        return self._next_counter()

    def _protect(self, plain: bytes, *, dedicated: bool) -> bytes:
        terms = self.terms
        if dedicated:
            assert self._dedicated is not None
            self._dedicated_counter += 1
            context, counter = self._dedicated, self._dedicated_counter
        else:
            assert self._context is not None
            context, counter = self._context, self._counter()
        return ciphering.seal(
            context,
            terms.title,
            counter,
            plain,
            level=terms.level,
            general=self._general,
            dedicated=dedicated,
        )

    def _unprotect(self, reply: bytes) -> bytes:
        """What a protected answer holds; its counter is taken over only after its tag verified."""
        if not ciphering.is_ciphered(reply):
            name = f"APDU {reply[0]:02X}" if reply else "nothing"
            raise Downgraded(f"{name} in the clear within a ciphered association")
        sealed = ciphering.peek(reply)
        context = self._dedicated if sealed.dedicated else self._context
        if context is None:
            raise MalformedApdu(f"{sealed.name} without a dedicated key")
        if sealed.title and sealed.title != self.meter_title:
            raise MalformedApdu("the answer bears another system title than the AARE")
        missing = self._level & ~sealed.control
        if missing or sealed.control & BROADCAST:
            raise Downgraded(f"security control {sealed.control:02X} is less than was asked for")
        if sealed.control & SUITE_MASK != context.suite:
            raise Downgraded(f"suite {sealed.control & SUITE_MASK}, not {context.suite}")
        opened = sealed.open(context, self.meter_title)
        if sealed.dedicated:
            if opened.counter <= self._dedicated_peer_counter:
                raise Replayed(f"counter {opened.counter} again, under the dedicated key")
            self._dedicated_peer_counter = opened.counter
        else:
            if opened.counter <= self.peer_counter:
                raise Replayed(
                    f"the meter's counter {opened.counter} is not above {self.peer_counter}"
                )
            self._accepted(opened.counter, durable=opened.authenticated)
        return opened.plain

    def _accepted(self, counter: int, *, durable: bool = True) -> None:
        self.peer_counter = counter
        if durable and self._accept is not None and not self._accept(self.meter_title, counter):
            raise Replayed(f"the meter's counter {counter} was accepted before")


class _Failing:
    """Whatever escapes, an abandoned generator included, breaks the association."""

    __slots__ = ("association",)

    def __init__(self, association: Association) -> None:
        self.association = association

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.association.move(Event.FAILED)


class _Asking:
    """A request: an answer, also a no, leaves the association as it is; anything else breaks it."""

    __slots__ = ("association",)

    def __init__(self, association: Association) -> None:
        self.association = association

    def __enter__(self) -> None:
        self.association.move(Event.REQUEST)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        answered = kind is None or issubclass(kind, Refused)
        self.association.move(Event.ANSWERED if answered else Event.FAILED)
