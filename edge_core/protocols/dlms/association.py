"""The client's side of an association, without I/O: AARQ to RLRQ, GET, SET, ACTION, ACCESS and their blocks.

An operation is a generator: it yields an APDU to send and is sent the APDU that came back; what it returns is the
result. The states and their changes are the table TRANSITIONS; the picture in the docs is drawn from it. What is sealed,
and what is believed of an answer, is the business of `protection`.

Invariants, each one the cause of a fault in some published client:
- the peer proves in pass 4 that it knows the key; a challenge that mirrors ours is refused;
- an answer must carry the invoke-id of the request, blocks must come numbered without gaps;
- after anything of that fails the association is broken for good: close the line.
Limits: blocks.MAX_OCTETS and MAX_BLOCKS of one answer.
Exception-responses and confirmed-service-errors come in the clear: they are hints for people, never facts.
Source: DLMS UA Green Book ed. 9, clauses 9.2 (security), 9.3 (ACSE), 9.4.6 (xDLMS services).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, TypeVar

from edge_core.errors import (
    LocalProtocolError,
    MalformedApdu,
    TagInvalid,
    WrongInvokeId,
)
from edge_core.protocols.dlms import access, acse, apdu, axdr
from edge_core.protocols.dlms.blocks import MAX_BLOCKS, BlockAssembler, cut
from edge_core.protocols.dlms.codes import (
    Conformance,
    DataAccessResult,
    Mechanism,
    words,
)
from edge_core.protocols.dlms.cosem import Attribute, Method, Selector, encode_selection
from edge_core.protocols.dlms.handshake import Handshake
from edge_core.protocols.dlms.protection import Protection
from edge_core.protocols.dlms.refusals import (
    AccessRefused,
    ExceptionAnswered,
    NotNegotiated,
    ProofInvalid,
    ProofRefused,
    Refused,
    ServiceErrorAnswered,
)
from edge_core.protocols.dlms.security import AUTHENTICATED
from edge_core.protocols.dlms.services import (
    ActionRequest,
    ActionRequestBlock,
    ActionRequestFirstBlock,
    ActionRequestNextBlock,
    ActionResponse,
    ActionResponseBlock,
    ActionResponseNextBlock,
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

    from edge_core.domain import Secret
    from edge_core.protocols.dlms.general import KeyPairs
    from edge_core.protocols.dlms.security import SecurityContext
    from edge_core.protocols.dlms.terms import Terms

T = TypeVar("T")
Exchange = Generator[bytes, bytes, T]
"""Yields what to send (b"" = only wait for more), is sent what came back, returns the result."""

CHALLENGE_OCTETS: Final = range(8, 65)
"""Lengths that a challenge may have."""
BLOCK_OVERHEAD: Final = 64
"""Octets of a request that are not block data: wrapper, header, tag."""
GAP_RETRIES: Final = 3
"""How often in a row blocks of a general-block-transfer are asked for again."""
MIN_BLOCK: Final = 8

_SPECIAL: Final = frozenset((b"\xd8", b"\x0e", b"\xe0"))
"""Answers that are no response of a service: exceptions, and pieces of a general-block-transfer."""

_ASKING: Final = TRANSITIONS[State.READY, Event.REQUEST]
_ANSWERED: Final = TRANSITIONS[_ASKING, Event.ANSWERED]
_BROKEN: Final = TRANSITIONS[_ASKING, Event.FAILED]


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
        pairs: key pairs, for HLS 7, general-signing and the agreed keys of general-ciphering.
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
        pairs: KeyPairs | None = None,
    ) -> None:
        self.terms = terms
        self.state = State.IDLE
        self.negotiated = Conformance(0)
        self.server_max_pdu = 0
        self.protection = Protection(
            terms.title,
            terms.level,
            terms.ciphering,
            context=context,
            next_counter=next_counter,
            accept=accept,
            dedicated=dedicated,
            pairs=pairs,
            key_info=terms.key_info,
            signed=terms.signed,
        )
        self._handshake = Handshake(terms, self.protection, context, secret, dedicated_key, pairs)
        self._invoke = 0
        if (terms.level or terms.mechanism is Mechanism.HLS5_GMAC) and next_counter is None:
            raise LocalProtocolError("ciphering and GMAC need counters")
        if terms.ciphering in ("ded", "general-ded") and dedicated is None:
            raise LocalProtocolError("dedicated ciphering needs a dedicated key")

    @property
    def meter_title(self) -> bytes:
        """The meter's system title as its AARE gave it; b"" before."""
        return self.protection.meter_title

    @property
    def peer_counter(self) -> int:
        """The meter's last invocation counter that was verified; -1 before."""
        return self.protection.peer_counter

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
            reply = yield self._handshake.aarq(challenge)
            self._check_exception(reply)
            aare, initiate = self._handshake.read_aare(reply)
            self.negotiated, self.server_max_pdu = initiate.conformance, initiate.max_pdu
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
            proof = axdr.encode(axdr.octet_string(self._handshake.proof(challenge, s_to_c)))
            invoke = self._new_invoke()
            request = ActionRequest(Method(15, terms.object, 1), proof, invoke).to_bytes()
            reply = yield self.protection.seal_proof(request)
            answer = yield from self._answer(reply, invoke)
            if not isinstance(answer, ActionResponse):
                raise MalformedApdu(f"{type(answer).__name__} instead of the answer to pass 3")
            if answer.result:
                raise ProofRefused(
                    f"pass 3: {answer.words}", answer.result, authenticated=bool(terms.level)
                )
            if answer.returned is None or answer.returned.result:
                raise ProofInvalid("the meter does not prove that it knows the key")
            try:
                self._handshake.verify(answer.returned.data, challenge, s_to_c, floor)
            except TagInvalid as wrong:
                raise ProofInvalid(f"pass 4: {wrong}") from wrong
            self.move(Event.PROVEN)

    def get(self, attribute: Attribute, selector: Selector | None = None) -> Exchange[bytes]:
        """Read an attribute, in one answer or in blocks; the value as A-XDR.

        Raises:
            AccessRefused, NotNegotiated, ExceptionAnswered: the association lives on.
            ProtocolError: anything else; it does not.
        """
        selection = b"\x00"
        if selector is not None:
            self.need(Conformance.SELECTIVE_ACCESS, "selective access")
            selection = encode_selection(selector)
        if self.state is not State.READY:
            self.move(Event.REQUEST)
        self.state = _ASKING
        try:
            self._invoke = invoke = (self._invoke + 1) & 0x0F | 0xC0
            request = b"\xc0\x01%c%b%b" % (invoke, attribute.to_bytes(), selection)
            reply = yield self.protection.seal(request)
            if reply[:1] in _SPECIAL:
                reply = yield from self._special(reply)
            plain = self.protection.open(reply)
            if (
                plain[:2] == b"\xc4\x01"
                and plain[3:4] == b"\x00"
                and not (plain[2] ^ invoke) & 0x0F
            ):
                data = plain[4:]  # the usual: get-response-normal with data
            else:
                data = yield from self._get_rest(str(attribute), plain, invoke)
        except Refused:
            self.state = _ANSWERED
            raise
        except BaseException:
            self.state = _BROKEN
            raise
        self.state = _ANSWERED
        return data

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
            for block in cut(data, room):
                answer = yield from self._ask(
                    SetRequestFirstBlock(attribute, block, None, invoke).to_bytes()
                    if block.number == 1
                    else SetRequestBlock(block, invoke).to_bytes()
                )
                if isinstance(answer, SetResponseLastBlock):
                    self._check_result(str(attribute), answer.results[0] if answer.results else 250)
                    if not block.last:
                        raise MalformedApdu("the meter ended the block transfer early")
                elif isinstance(answer, SetResponse):
                    self._check_result(str(attribute), answer.result)
                    raise MalformedApdu("a set-response-normal within a block transfer")
                elif (
                    not isinstance(answer, SetResponseBlock)
                    or answer.number != block.number
                    or block.last
                ):
                    raise MalformedApdu(f"block {block.number} is not acknowledged")

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
            blocks = BlockAssembler(repeats=False)
            while isinstance(answer, ActionResponseBlock):
                whole = blocks.take(answer.block)
                if whole is not None:
                    answer = apdu.decode(bytes((0xC7, 1, invoke)) + whole)
                    break
                request = ActionRequestNextBlock(blocks.number, invoke)
                answer = yield from self._ask(request.to_bytes())
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
        for block in cut(parameters, room):
            answer = yield from self._ask(
                ActionRequestFirstBlock(method, block, invoke).to_bytes()
                if block.number == 1
                else ActionRequestBlock(block, invoke).to_bytes()
            )
            if block.last:
                return answer
            if isinstance(answer, ActionResponse) and answer.result:
                self._refuse(f"{method}: {answer.words}", answer.result)
            if not isinstance(answer, ActionResponseNextBlock) or answer.number != block.number:
                raise MalformedApdu(f"block {block.number} is not acknowledged")
        raise LocalProtocolError("parameters without octets need no blocks")

    def access(
        self, specifications: Sequence[access.Specification]
    ) -> Exchange[tuple[access.AccessResult, ...]]:
        """Several GET, SET and ACTION at once; results in their order, each success or not.

        In a ciphered association it goes by a general wrapper: there is no service-specific one.

        Raises:
            As `get`, but for AccessRefused of a single specification.
        """
        self.need(Conformance.ACCESS, "ACCESS")
        if not 0 < len(specifications) <= access.MAX_SPECIFICATIONS:
            raise LocalProtocolError(f"{len(specifications)} specifications in one ACCESS")
        with _Asking(self):
            invoke = self._new_invoke()
            request = access.AccessRequest(
                tuple(specifications), access.INVOKE & ~0xFFFFFF | invoke & 0x0F
            )
            reply = yield self.protection.seal(request.to_bytes())
            answer = yield from self._answer(reply, invoke)
            if not isinstance(answer, access.AccessResponse):
                raise MalformedApdu(f"{answer.NAME} instead of an access-response")
            if [r.service for r in answer.results] != [
                access.service_of(s) for s in specifications
            ]:
                raise MalformedApdu("the results are not those of the specifications")
            return answer.results

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
            user = self.protection.seal_global(self._handshake.initiate_request())
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

    # --- requests

    def _new_invoke(self) -> int:
        self._invoke = (self._invoke + 1) & 0x0F
        return 0xC0 | self._invoke

    def _ask(self, plain: bytes) -> Exchange[apdu.Apdu]:
        """One request, one verified answer with the same invoke-id."""
        reply = yield self.protection.seal(plain)
        return (yield from self._answer(reply, plain[2]))

    def _answer(self, reply: bytes, invoke: int) -> Exchange[apdu.Apdu]:
        """The message of an answer, opened and verified."""
        if reply[:1] in _SPECIAL:
            reply = yield from self._special(reply)
        return self._message(self.protection.open(reply), invoke)

    def _special(self, reply: bytes) -> Exchange[bytes]:
        """An answer that is not sealed itself: put together from its blocks, or a no in the clear, which is raised."""
        if reply[0] == apdu.GENERAL_BLOCK_TRANSFER:
            reply = yield from self._gather(reply)
        self._check_exception(reply)
        return reply

    def _message(self, plain: bytes, invoke: int) -> apdu.Apdu:
        """The message that an opened answer is; it must carry the invoke-id of the request."""
        if plain[:1] in _SPECIAL:
            self._check_exception(plain, authenticated=bool(self.terms.level))
        answer = apdu.decode(plain)
        got = getattr(answer, "invoke", None)
        if got is None or (got ^ invoke) & 0x0F:
            raise WrongInvokeId(f"{answer.NAME} with invoke-id {got}, asked with {invoke}")
        return answer

    def _gather(self, reply: bytes) -> Exchange[bytes]:
        """An answer that comes by general-block-transfer, put together; we ask for one block at a time.

        A meter that streams all the same is followed. After a gap the blocks from there on are asked for again, after a
        block that came before the next one; a few times without progress.
        """
        blocks = BlockAssembler(repeats=False)
        vain = 0
        for _ in range(MAX_BLOCKS):
            message = apdu.decode(reply)
            if not isinstance(message, apdu.GeneralBlockTransfer):
                raise MalformedApdu(f"{message.NAME} within a general-block-transfer")
            if message.number == blocks.number + 1:
                vain = 0
                whole = blocks.take(message)
                if whole is not None:
                    return whole
            elif not message.streaming:
                vain += 1
            if vain > GAP_RETRIES:
                raise MalformedApdu(f"block {message.number} again, expected {blocks.number + 1}")
            if message.streaming:
                reply = yield b""
            else:
                done = blocks.number
                reply = yield apdu.GeneralBlockTransfer(True, False, 1, done, done).to_bytes()
        raise MalformedApdu(f"more than {MAX_BLOCKS} blocks")

    def _get_rest(self, what: str, plain: bytes, invoke: int) -> Exchange[bytes]:
        """A GET whose answer is a no, or comes in blocks."""
        answer = self._message(plain, invoke)
        if isinstance(answer, GetResponse):
            self._check_result(what, answer.result)
            return answer.data
        if isinstance(answer, GetResponseBlock):
            return (yield from self._get_blocks(what, answer, invoke))
        raise MalformedApdu(f"{answer.NAME} instead of a get-response")

    def _get_blocks(self, what: str, answer: apdu.Apdu, invoke: int) -> Exchange[bytes]:
        """All blocks of a GET, in order and bounded."""
        blocks = BlockAssembler(repeats=False)
        while True:
            if not isinstance(answer, GetResponseBlock):
                if isinstance(answer, GetResponse) and answer.result:
                    self._check_result(what, answer.result)
                raise MalformedApdu(f"{answer.NAME} within a block transfer")
            self._check_result(what, answer.result)
            whole = blocks.take(answer.block)
            if whole is not None:
                return whole
            answer = yield from self._ask(GetRequestNext(blocks.number, invoke).to_bytes())

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
            raise ServiceErrorAnswered(message.words, message.value, authenticated=authenticated)


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
