"""What protects the APDUs of one association, both ways: ciphering, counters, signatures.

Invariants, each one the cause of a fault in some published client:
- every protected APDU takes the next invocation counter, the GMAC of HLS 5 one of its own; none is used twice;
- of a protected answer nothing is looked at before its tag verified, and its counter only then counts;
- counters of the peer only rise, under each key; an answer with less protection than was asked for is refused;
- an answer by general-ciphering or general-signing bears our title and the transaction-id of its request.
What the meter chooses as wrapper of its answer is its own affair: service-specific, general-glo, general-ciphering.
Source: DLMS UA Green Book ed. 9, clause 9.2.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_core.errors import Downgraded, LocalProtocolError, MalformedApdu, Replayed, TagInvalid
from edge_core.protocols.dlms import axdr, ciphering, general
from edge_core.protocols.dlms.refusals import NotNegotiated
from edge_core.protocols.dlms.security import (
    AUTHENTICATED_ENCRYPTED,
    BROADCAST,
    HEADER_OCTETS,
    SUITE_MASK,
    TAG_OCTETS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.domain import Secret
    from edge_core.protocols.dlms.ciphering import Sealed
    from edge_core.protocols.dlms.general import KeyInfoKind, KeyPairs
    from edge_core.protocols.dlms.security import SecurityContext
    from edge_core.protocols.dlms.terms import Ciphering

_TRANSACTION_OCTETS: Final = 8
_USUAL: Final = frozenset((0xCC, 0xCD, 0xCF))
"""glo-get-response, glo-set-response, glo-action-response."""
_SIGNED: Final = bytes((general.GENERAL_SIGNING,))


class Protection:
    """The protection of one association with one meter.

    Args:
        title: our system title.
        level: bits of AUTHENTICATED and ENCRYPTED that we send with and demand of answers; 0 = plain.
        ciphering: which wrappers carry it; the general ones but general-ciphering need `negotiated`.
        context: the global keys.
        next_counter: gives the next invocation counter; never the same twice, durable before it is given.
        accept: told the meter's title and each of its counters after the tag verified; False = accepted before.
        dedicated: the context of a dedicated key.
        pairs: key pairs and master key, for general-ciphering and general-signing.
        key_info: how general-ciphering names or makes its key.
        signed: requests are signed, answers must be.

    Attributes:
        meter_title: the meter's system title, from the AARE.
        peer_counter: its last counter that was verified, under the global key; -1 before.
    """

    __slots__ = (
        "_accept",
        "_ciphering",
        "_context",
        "_control",
        "_dedicated",
        "_dedicated_counter",
        "_dedicated_peer_counter",
        "_general",
        "_headed",
        "_key_info",
        "_message_key",
        "_message_peer_counter",
        "_next_counter",
        "_pairs",
        "_signed",
        "_specific",
        "_title",
        "_transaction",
        "_uses_dedicated",
        "level",
        "meter_title",
        "peer_counter",
    )

    def __init__(
        self,
        title: bytes,
        level: int,
        ciphering: Ciphering,
        *,
        context: SecurityContext | None,
        next_counter: Callable[[], int] | None,
        accept: Callable[[bytes, int], bool] | None,
        dedicated: SecurityContext | None,
        pairs: KeyPairs | None,
        key_info: KeyInfoKind,
        signed: bool,
    ) -> None:
        self.level = level
        self.meter_title = b""
        self.peer_counter = -1
        self._title, self._ciphering = title, ciphering
        self._context, self._next_counter, self._accept = context, next_counter, accept
        self._dedicated, self._pairs, self._key_info, self._signed = (
            dedicated,
            pairs,
            key_info,
            signed,
        )
        self._dedicated_counter = 0
        self._dedicated_peer_counter = self._message_peer_counter = -1
        self._message_key: SecurityContext | None = None
        self._transaction = b""
        self._general = False
        self._headed = signed or (level != 0 and ciphering == "general-ciphering")
        self._uses_dedicated = ciphering in ("ded", "general-ded")
        self._specific = level != 0 and not self._headed
        usual = level == AUTHENTICATED_ENCRYPTED and not signed and context is not None
        self._control = level | context.suite if usual and context is not None else -1

    def negotiated(self, *, general_protection: bool) -> None:
        """What came out for general-protection; without it general-glo and -ded fall back to service-specific wrappers.

        Raises:
            NotNegotiated: general-ciphering or signatures are asked for, and the meter has none.
        """
        self._general = general_protection
        if general_protection and self._ciphering.startswith("general"):
            self._specific = False
        if not general_protection and self._headed:
            raise NotNegotiated("the meter does not offer general-protection")

    # --- what we send

    def seal(self, plain: bytes) -> bytes:
        """A request as it is sent.

        Raises:
            CounterExhausted, LocalProtocolError: as SecurityContext.seal; a key that is missing.
            NotNegotiated: a service without a wrapper of its own needs general-protection.
        """
        dedicated = self._dedicated if self._uses_dedicated else None
        tag = (ciphering.GLO if dedicated is None else ciphering.DED).get(plain[0])
        if not self._specific or tag is None:
            return self._wrap(plain, dedicated=dedicated is not None)
        if dedicated is not None:
            self._dedicated_counter += 1
            body = dedicated.seal(self._title, self._dedicated_counter, plain, self.level)
        else:
            assert self._context is not None
            assert self._next_counter is not None
            body = self._context.seal(self._title, self._next_counter(), plain, self.level)
        size = len(body)
        if size < 0x80:
            return b"%c%c%b" % (tag, size, body)
        return bytes((tag,)) + axdr.encode_length(size) + body

    def seal_proof(self, plain: bytes) -> bytes:
        """The ACTION of pass 3: as any request, but never under the dedicated key."""
        return self._wrap(plain, dedicated=False)

    def seal_global(self, plain: bytes) -> bytes:
        """A service-specific wrapper under the global key: InitiateRequests, in AARQ and RLRQ."""
        assert self._context is not None
        return ciphering.seal(self._context, self._title, self.counter(), plain, level=self.level)

    def counter(self) -> int:
        """The next invocation counter, for a GMAC."""
        assert self._next_counter is not None
        return self._next_counter()

    def _wrap(self, plain: bytes, *, dedicated: bool) -> bytes:
        """In whatever is asked for, the signature outside."""
        if not self._headed:
            return self._cipher(plain, dedicated=dedicated) if self.level else plain
        pairs = self._pairs
        assert pairs is not None
        self._transaction = pairs.random(_TRANSACTION_OCTETS)
        head = general.header(self._transaction, self._title, self.meter_title)
        out = plain
        if self.level and self._ciphering == "general-ciphering":
            out = self._seal_for(plain, pairs, head)
        elif self.level:
            out = self._cipher(plain, dedicated=dedicated)
        if not self._signed:
            return out
        if pairs.sign is None:
            raise LocalProtocolError("the key sign is missing")
        return general.sign(head, out, pairs.sign)

    def _cipher(self, plain: bytes, *, dedicated: bool) -> bytes:
        """Service-specific, general-glo or general-ded."""
        bare = plain[0] not in ciphering.GLO
        if bare and not self._general:
            raise NotNegotiated("the meter does not offer general-protection")
        if dedicated:
            assert self._dedicated is not None
            self._dedicated_counter += 1
            context, counter = self._dedicated, self._dedicated_counter
        else:
            assert self._context is not None
            context, counter = self._context, self.counter()
        return ciphering.seal(
            context,
            self._title,
            counter,
            plain,
            level=self.level,
            general=bare or (self._general and self._ciphering.startswith("general")),
            dedicated=dedicated,
        )

    def _seal_for(self, plain: bytes, pairs: KeyPairs, head: general.Header) -> bytes:
        """By general-ciphering; also under a key made for this message the counter is one that never comes again."""
        assert self._context is not None
        info, key = pairs.offer(self._key_info, head)
        context = self._context if key is None else self._context.under(key)
        body = context.seal(self._title, self.counter(), plain, self.level, head.octets)
        return b"".join(
            (
                bytes((general.GENERAL_CIPHERING,)),
                head.octets,
                general.write_key_info(info),
                axdr.encode_octets(body),
            )
        )

    # --- what comes

    def open(self, reply: bytes) -> bytes:
        """What an answer holds; its counter is taken over only after its tag verified.

        Raises:
            Downgraded: less protection than was asked for, or none.
            Replayed: a counter or transaction-id of the past.
            TagInvalid: the tag or the signature does not verify.
            Compressed, MalformedApdu.
        """
        if len(reply) > 4 + HEADER_OCTETS + TAG_OCTETS and reply[0] in _USUAL:
            size, at = reply[1], 2
            if size == 0x81:
                size, at = reply[2], 3
            elif size == 0x82:
                size, at = reply[2] << 8 | reply[3], 4
            if at + size == len(reply) and reply[at] == self._control:
                assert self._context is not None
                count = reply[at + 1 : at + HEADER_OCTETS]
                plain = self._context.open_usual(
                    self.meter_title + count, reply[at + HEADER_OCTETS :]
                )
                if plain is not None and plain[:1] == bytes((ciphering.PLAIN_OF[reply[0]],)):
                    self._accepted(int.from_bytes(count, "big"))
                    return plain
        if self._signed or reply[:1] == _SIGNED:
            reply = self._open_signed(reply)
        if not self.level:
            if ciphering.is_ciphered(reply):
                raise MalformedApdu("a ciphered answer in an association without ciphering")
            return reply
        return self._open_sealed(reply)

    def open_initiate(self, user: bytes) -> bytes:
        """What the user-information of an AARE holds."""
        return self._open_sealed(user) if self.level else user

    def _open_signed(self, reply: bytes) -> bytes:
        if reply[:1] != _SIGNED:
            raise Downgraded("an answer without a signature")
        signed = general.peek_signed(reply)
        key = self._pairs.peer_sign if self._pairs is not None else None
        if key is None:
            raise TagInvalid("the answer is signed, and the meter's public key is not known")
        self._addressed(signed.header)
        signed.verify(key)
        self._timely(signed.header)
        return signed.content

    def _open_sealed(self, reply: bytes) -> bytes:
        if not ciphering.is_ciphered(reply):
            name = f"APDU {reply[0]:02X}" if reply else "nothing"
            raise Downgraded(f"{name} in the clear within a ciphered association")
        sealed = ciphering.peek(reply)
        global_ = self._dedicated if sealed.dedicated else self._context
        if global_ is None:
            raise MalformedApdu(f"{sealed.name} without a dedicated key")
        if sealed.title and sealed.title != self.meter_title:
            raise MalformedApdu("the answer bears another system title than the AARE")
        if self.level & ~sealed.control or sealed.control & BROADCAST:
            raise Downgraded(f"security control {sealed.control:02X} is less than was asked for")
        if sealed.control & SUITE_MASK != global_.suite:
            raise Downgraded(f"suite {sealed.control & SUITE_MASK}, not {global_.suite}")
        if sealed.header is not None:
            return self._open_addressed(sealed, sealed.header, global_)
        opened = sealed.open(global_, self.meter_title)
        if sealed.dedicated:
            if opened.counter <= self._dedicated_peer_counter:
                raise Replayed(f"counter {opened.counter} again, under the dedicated key")
            self._dedicated_peer_counter = opened.counter
        else:
            self._accepted(opened.counter, durable=opened.authenticated)
        return opened.plain

    def _open_addressed(
        self, sealed: Sealed, head: general.Header, global_: SecurityContext
    ) -> bytes:
        """general-ciphering, under the global key or one that it brings along."""
        self._addressed(head)
        info = sealed.key_info
        key: Secret | None = None
        if info.kind in ("wrapped", "one-pass", "static"):
            if self._pairs is None:
                raise MalformedApdu(f"a {info.kind} key, and no key pairs to make it with")
            key = self._pairs.key_of(info, head)
        message_key = self._message_key if info.kind == "none" else None
        if key is not None:
            message_key = global_.under(key)
        opened = sealed.open(message_key or global_, self.meter_title)
        self._timely(head)
        if message_key is None:
            self._accepted(opened.counter, durable=opened.authenticated)
            return opened.plain
        if key is None and opened.counter <= self._message_peer_counter:
            raise Replayed(f"counter {opened.counter} again, under a key of the message")
        self._message_key, self._message_peer_counter = message_key, opened.counter
        return opened.plain

    def _addressed(self, head: general.Header) -> None:
        if head.originator != self.meter_title:
            raise MalformedApdu("the answer bears another system title than the AARE")
        if head.recipient not in (b"", self._title):
            raise MalformedApdu("the answer is for another system title than ours")

    def _timely(self, head: general.Header) -> None:
        if self._transaction and head.transaction != self._transaction:
            raise Replayed("the answer belongs to another transaction")

    def verify_gmac(self, proof: bytes, challenge: bytes, floor: int) -> None:
        """Check the proof of HLS 5 over our challenge; `floor` is the meter's counter before the answer around it.

        Raises:
            TagInvalid, MalformedApdu, Replayed.
        """
        assert self._context is not None
        counter = self._context.verify_gmac(self.meter_title, proof, challenge)
        if counter <= floor or counter == self.peer_counter:
            raise Replayed(f"the proof of pass 4 has counter {counter} again")
        if counter > self.peer_counter:
            self._accepted(counter)

    def _accepted(self, counter: int, *, durable: bool = True) -> None:
        if counter <= self.peer_counter:
            raise Replayed(f"the meter's counter {counter} is not above {self.peer_counter}")
        self.peer_counter = counter
        if durable and self._accept is not None and not self._accept(self.meter_title, counter):
            raise Replayed(f"the meter's counter {counter} was accepted before")
