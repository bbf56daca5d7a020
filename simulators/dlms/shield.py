"""How a simulated meter opens requests and closes answers: ciphering, signatures, counters, and its faults in these.

Strict as `session` says. An answer is wrapped as its request was: service-specific, general-glo, general-ded,
general-ciphering with the same kind of key-info, signed where the request was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simulators.dlms import codec, suites
from simulators.dlms.codec import BadRequest, BadTag, tlv

if TYPE_CHECKING:
    from simulators.dlms.meter import Keys, Meter

_ANSWER_TAGS = {0xC4: (0xCC, 0xD4), 0xC5: (0xCD, 0xD5), 0xC7: (0xCF, 0xD7)}
_SPECIFIC = (0xC8, 0xC9, 0xCB, 0xD0, 0xD1, 0xD3)

Wrap = Callable[[bytes], bytes]


class Refused(Exception):
    """The meter closes the line without an answer."""


class Shield:
    """The protection of one association.

    Attributes:
        peer: system title of the client, from its AARQ.
        keys: what the meter goes by in this association.
        ciphered: the association has a ciphered context.
        signed: the last request bore a signature.
        floor: counter of the client before this request.
        outer: counter of this request.
    """

    def __init__(self, meter: Meter, client: int) -> None:
        self.meter, self.client = meter, client
        self.peer = b""
        self.keys: Keys = meter.keys
        self.ciphered = False
        self.dedicated = b""
        self._dedicated_in = self._dedicated_out = 0
        self.floor = self.outer = 0
        self.proven = False

    def begin(self, keys: Keys, *, ciphered: bool) -> None:
        """A new AARQ has come."""
        self.keys, self.ciphered, self.proven = keys, ciphered, False
        self.dedicated = b""
        self._dedicated_in = self._dedicated_out = 0

    # --- requests and their answers

    def unwrap(self, apdu: bytes) -> tuple[bytes, Wrap]:
        """The service that a request holds, and how its answer is wrapped.

        Raises:
            Refused: less protection than this association has, or a counter of the past.
            BadRequest, BadTag.
        """
        if apdu[0] == 0xDF:
            return self._signed(apdu)
        if not self.ciphered:
            return apdu, self._plainly
        service_only = "service-glo-only" in self.meter.quirks
        if apdu[0] in _SPECIFIC:
            return self._specific(apdu)
        if apdu[0] in (0xDB, 0xDC) and not service_only:
            return self._general(apdu)
        if apdu[0] == 0xDD and not service_only:
            return self._addressed(apdu)
        self.meter.record.note(self.meter.id, "plaintext-request", tag=apdu[0])
        raise Refused

    def _specific(self, apdu: bytes) -> tuple[bytes, Wrap]:
        dedicated = apdu[0] >= 0xD0
        count, at = codec.read_length(apdu, 1)
        plain = self.open(codec.take(apdu, at, count)[0], dedicated=dedicated)

        def wrap(answer: bytes) -> bytes:
            if answer[0] == 0xD8 or self._has("plain"):
                return answer
            return tlv(_ANSWER_TAGS[answer[0]][dedicated], self.close(answer, dedicated=dedicated))

        return plain, wrap

    def _general(self, apdu: bytes) -> tuple[bytes, Wrap]:
        dedicated = apdu[0] == 0xDC
        count, at = codec.read_length(apdu, 1)
        title, at = codec.take(apdu, at, count)
        count, at = codec.read_length(apdu, at)
        if title and title != self.peer:
            raise BadRequest("general ciphering under another title than the AARQ's")
        plain = self.open(codec.take(apdu, at, count)[0], dedicated=dedicated)

        def wrap(answer: bytes) -> bytes:
            if self._has("plain"):
                return answer
            sealed = self.close(answer, dedicated=dedicated)
            return apdu[:1] + b"\x08" + self._title + codec.length(len(sealed)) + sealed

        return plain, wrap

    def _addressed(self, apdu: bytes) -> tuple[bytes, Wrap]:
        """general-ciphering."""
        frame = suites.read_head(apdu)
        self._meant(frame)
        pairs = self.keys.pairs(self.meter.suite)
        kind, key, at = suites.key_of(pairs, apdu, frame)
        count, at = codec.read_length(apdu, at)
        plain = self.open(codec.take(apdu, at, count)[0], key=key, more=frame.octets)

        def wrap(answer: bytes) -> bytes:
            if self._has("plain"):
                return answer
            head = suites.write_head(frame.transaction, self._title, self.peer)
            info, own = b"\1\0\0" if kind == "identified" else b"\0", None
            if pairs is not None:
                info, own = suites.offer(pairs, kind, frame.transaction, self._title, self.peer)
            sealed = self.close(answer, key=own, more=head)
            return b"\xdd" + head + info + codec.length(len(sealed)) + sealed

        return plain, wrap

    def _signed(self, apdu: bytes) -> tuple[bytes, Wrap]:
        pairs = self.keys.pairs(self.meter.suite)
        frame = suites.read_head(apdu)
        self._meant(frame)
        count, at = codec.read_length(apdu, frame.end)
        content, at = codec.take(apdu, at, count)
        count, at = codec.read_length(apdu, at)
        signature, at = codec.take(apdu, at, count)
        if pairs is None or at != len(apdu) or content[:1] == b"\xdf":
            raise BadRequest("a signature that cannot be")
        if not suites.verified(pairs.suite, pairs.client_sign, frame.octets + content, signature):
            raise BadTag
        plain, inner = self.unwrap(content)

        def wrap(answer: bytes) -> bytes:
            wrapped = inner(answer)
            if self._has("unsigned"):
                return wrapped
            head = suites.write_head(frame.transaction, self._title, self.peer)
            text = suites.sign(pairs.suite, pairs.sign, head + wrapped)
            return (
                b"\xdf" + head + codec.length(len(wrapped)) + wrapped
                + codec.length(len(text)) + text
            )  # fmt: skip

        return plain, wrap

    def _plainly(self, answer: bytes) -> bytes:
        return answer

    def _meant(self, frame: suites.Frame) -> None:
        if frame.originator != self.peer or frame.recipient not in (b"", self._title):
            raise BadRequest("between others than the two of this association")

    @property
    def _title(self) -> bytes:
        return self.meter.device.title

    def _has(self, fault: str) -> bool:
        return self.proven and self.meter.has(fault)

    # --- AES-GCM and counters

    def close(
        self,
        plain: bytes,
        *,
        dedicated: bool = False,
        key: bytes | None = None,
        more: bytes = b"",
    ) -> bytes:
        """SC, counter, ciphertext, tag under the global key, the dedicated key or a key of the message."""
        if dedicated:
            self._dedicated_out += 1
            counter, key = self._dedicated_out, self.dedicated
        else:
            counter = self.meter.counters().next_own()
        weaker = self._has("weaker")
        control = (0x10 if weaker else 0x30) | self.meter.suite
        make = codec.authenticate if weaker else codec.seal
        key = self.keys.guek if key is None else key
        sealed = make(key, self.keys.gak, self._title, counter, plain, control, more)
        if self._has("wrong-tag"):
            sealed = sealed[:-1] + bytes([sealed[-1] ^ 0x40])
        return sealed

    def open(
        self,
        body: bytes,
        *,
        dedicated: bool = False,
        key: bytes | None = None,
        more: bytes = b"",
    ) -> bytes:
        """Plaintext of what the client sealed; its counter is accepted once the tag has verified."""
        if len(body) < 17 or body[0] != 0x30 | self.meter.suite:
            control = body[0] if body else None
            self.meter.record.note(self.meter.id, "less-protection", control=control)
            raise Refused
        if dedicated:
            if not self.dedicated:
                raise BadRequest("no dedicated key was agreed")
            key = self.dedicated
        key = self.keys.guek if key is None else key
        plain = codec.unseal(key, self.keys.gak, self.peer, body, more)
        counter = int.from_bytes(body[1:5], "big")
        if dedicated:
            self.above(counter, self._dedicated_in, "dedicated")
            self._dedicated_in = counter
        else:
            self.floor = self.accepted()
            self.above(counter, self.floor, "request")
            self.meter.counters().accept(counter, reading=self.reading)
            self.outer = counter
        return plain

    @property
    def reading(self) -> bool:
        """Has the reading client counters of its own, and is it that?"""
        clients = self.meter.layout.clients
        return self.client == clients["lls"] != clients["hls5"]

    def accepted(self) -> int:
        """The client's last counter."""
        return self.meter.counters().accepted(reading=self.reading)

    def above(self, counter: int, floor: int, where: str) -> None:
        """Refuse a counter of the past, and write it down."""
        if counter <= floor:
            self.meter.record.violation(
                self.meter.id,
                "counter-low",
                counter=counter,
                accepted=floor,
                where=where,
                title=self.peer.hex(),
            )
            raise Refused
