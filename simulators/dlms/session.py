"""One association with a simulated meter: APDU in, APDU out, no I/O.

Strict, as the best of real meters are: a counter that is not above the last accepted one, a tag that does not verify or
a plaintext request in a ciphered association closes the line without an answer (`Refused`); counters at fault are
violations in the record. A nonce used for both the GMAC and the ACTION around it is recorded too, but let through.
Serves GET normal, next and with-list, SET and ACTION normal and in blocks, ACCESS, block transfer of GET within the
negotiated PDU size or (quirk) general-block-transfer, LLS, HLS 2 to 7; how requests are opened and answers closed in
suites 0 to 2 is in `shield`.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from simulators.dlms import codec, objects, suites
from simulators.dlms.codec import BadRequest, BadTag, tlv
from simulators.dlms.layouts import CLOCK
from simulators.dlms.meter import SECURITIES
from simulators.dlms.shield import Refused, Shield

if TYPE_CHECKING:
    from simulators.dlms.meter import Meter

__all__ = ["Refused", "Session"]

_CONTEXT = b"\x60\x85\x74\x05\x08\x01"
_MECHANISM = b"\x60\x85\x74\x05\x08\x02"
_PUBLIC_CONFORMANCE = 0x001010  # block-get, get
_CONFORMANCE = (
    0x00121D | 0x000200
)  # block-get, multiple-references, get, set, selective-access, action
_GENERAL_PROTECTION = 0x400000
_GENERAL_BLOCKS = 0x200000
_REQUEST_BLOCKS = 0x001C00  # block-set, block-action beside block-get
_MAX_REQUEST = 65_536
_OVERHEAD = 48  # security header, tag, block header
_MAX_LIST = 32
_ACCESS = 0x000040

AUTHENTICATION_FAILURE, CONTEXT_UNSUPPORTED, MECHANISM_UNKNOWN = 13, 2, 11


class Session:
    """One client on one line.

    Attributes:
        state: idle, challenge (HLS pass 2 was sent) or associated.
    """

    def __init__(self, meter: Meter, client: int) -> None:
        self.meter, self.client = meter, client
        self.device = meter.device
        self.state = "idle"
        self._mechanism = 0
        self._shield = Shield(meter, client)
        self._c_to_s = self._s_to_c = b""
        self._last = b""
        self._pdu = meter.max_pdu
        self._blocks: list[bytes] = []
        self._pieces: list[bytes] = []
        self._written = bytearray()
        self._due = 1
        self._general = False
        self._lost: set[int] = set()

    def handle(self, apdu: bytes) -> bytes:
        """The answer to one APDU.

        Raises:
            Refused: the line is to be closed.
        """
        if self.meter.device is not self.device or not apdu:
            raise Refused  # another device answers here by now
        try:
            if apdu[0] == 0xE0 and self._pieces:
                return self._piece(int.from_bytes(apdu[4:6], "big") + 1)
            answer = self._dispatch(apdu)
            if self.state == "associated" and apdu[0] not in (0x60, 0x62):
                again, self._last = self._last, answer
                if again and self.meter.has("replay"):
                    answer = again
            return self._in_pieces(answer) if self._in_blocks(answer) else answer
        except BadRequest as error:
            self.meter.record.note(self.meter.id, "malformed-request", why=str(error), tag=apdu[0])
            raise Refused from None
        except BadTag:
            self.meter.record.note(self.meter.id, "tag-invalid", client=self.client)
            raise Refused from None

    # --- general-block-transfer

    def _in_blocks(self, answer: bytes) -> bool:
        return self._general and len(answer) > self._pdu

    def _in_pieces(self, answer: bytes) -> bytes:
        """The first piece of an answer that is cut as it is, sealed or not."""
        room = self._pdu - 16
        self._pieces = [answer[i : i + room] for i in range(0, len(answer), room)]
        self._lost = set(range(3, len(self._pieces) + 1, 8)) if self._loses() else set()
        return self._piece(1)

    def _loses(self) -> bool:
        return "block-loss" in self.meter.quirks

    def _piece(self, number: int) -> bytes:
        """A piece, without streaming: the client asks for each. b"" for one that is lost when it is sent first."""
        if number in self._lost:
            self._lost.discard(number)
            return b""
        if not 0 < number <= len(self._pieces):
            raise BadRequest(f"piece {number} of {len(self._pieces)}")
        part = self._pieces[number - 1]
        control = 0x80 * (number == len(self._pieces)) | 1
        head = bytes([0xE0, control]) + number.to_bytes(2, "big") + bytes(2)
        return head + codec.length(len(part)) + part

    def _dispatch(self, apdu: bytes) -> bytes:
        tag = apdu[0]
        if tag == 0x60:
            return self._associate(apdu)
        if tag == 0x62:
            return self._release(apdu)
        if self.state == "idle":
            raise Refused
        plain, wrap = self._shield.unwrap(apdu)
        self._shield.proven = self.state == "associated"
        answer = self._service(plain)
        if self._shield.proven and self.meter.has("wrong-invoke") and len(answer) > 3:
            answer = answer[:2] + bytes([answer[2] ^ 3]) + answer[3:]
        return wrap(answer)

    # --- association

    def _associate(self, apdu: bytes) -> bytes:
        layout, keys = self.meter.layout, self.meter.keys_now()
        self.state, self._blocks, self._last = "idle", [], b""
        fields = codec.ber_fields(apdu)
        context = fields.get(0xA1, b"\0")[-1]
        mechanism = fields[0x8B][-1] if fields.get(0x8B) else 0
        self._mechanism = mechanism
        self._shield.begin(keys, ciphered=context == 3)
        wanted, ciphered = SECURITIES[self.meter.security]
        known = {
            (layout.clients["none"], 0): {1},
            (self.meter.client, wanted): {3} if ciphered else {1, 3} if wanted > 5 else {1},
        }
        if wanted == 1 or layout.clients["lls"] != layout.clients["hls5"]:
            known[(layout.clients["lls"], 1)] = {1, 3}
        contexts = known.get((self.client, mechanism))
        if contexts is None:
            mine = any(client == self.client for client, _ in known)
            return self._aare(1, MECHANISM_UNKNOWN if mine else AUTHENTICATION_FAILURE)
        if context not in contexts:
            return self._aare(1, CONTEXT_UNSUPPORTED)
        secret = codec.inner(fields[0xAC]) if fields.get(0xAC) else b""
        if mechanism == 1 and not hmac.compare_digest(secret, keys.password.encode()):
            self.meter.record.note(self.meter.id, "password-wrong", client=self.client)
            return self._aare(1, AUTHENTICATION_FAILURE)
        initiate = codec.inner(fields.get(0xBE, b""))
        self._shield.peer = codec.inner(fields[0xA6]) if fields.get(0xA6) else b""
        if self._shield.ciphered:
            if initiate[:1] != b"\x21":
                return self._aare(1, AUTHENTICATION_FAILURE)
            try:
                initiate = self._shield.open(codec.inner(initiate))
            except BadTag:
                self.meter.record.note(
                    self.meter.id, "tag-invalid", client=self.client, during="AARQ"
                )
                return self._aare(1, AUTHENTICATION_FAILURE)
        conformance, client_pdu = self._initiate(initiate)
        self._pdu = min(client_pdu or 0xFFFF, self.meter.max_pdu)
        if self._pdu < 64:
            raise BadRequest(f"a client that can receive {client_pdu} octets")
        if mechanism > 1:
            self._c_to_s = secret
            if not 8 <= len(self._c_to_s) <= 64:
                return self._aare(1, AUTHENTICATION_FAILURE)
            self._s_to_c = os.urandom(16)
        granted = _PUBLIC_CONFORMANCE if mechanism == 0 else _CONFORMANCE | _REQUEST_BLOCKS
        if "general-block-transfer" in self.meter.quirks:
            granted |= _GENERAL_BLOCKS
        signing = self.meter.suite > 0 and mechanism > 5
        if (self._shield.ciphered or signing) and "service-glo-only" not in self.meter.quirks:
            granted |= _GENERAL_PROTECTION
        if mechanism:
            granted |= _ACCESS
        self._general = bool(conformance & granted & _GENERAL_BLOCKS)
        answer = self._aare(0, 14 if mechanism > 1 else 0, conformance & granted)
        self.state = "challenge" if mechanism > 1 else "associated"
        if mechanism == 1:
            self.meter.contacts += 1
        return answer

    def _initiate(self, octets: bytes) -> tuple[int, int]:
        """Proposed conformance and the client's PDU size; keeps a dedicated key."""
        if octets[:1] != b"\x01":
            raise BadRequest("not an InitiateRequest")
        at = 1
        present, at = codec.take(octets, at, 1)
        if present[0]:
            count, at = codec.read_length(octets, at)
            self._shield.dedicated, at = codec.take(octets, at, count)
            if len(self._shield.dedicated) != len(self.meter.keys.guek):
                raise BadRequest("a dedicated key of another suite")
        for _ in range(2):  # response-allowed, proposed quality of service
            present, at = codec.take(octets, at, 1)
            at += bool(present[0])
        version, at = codec.take(octets, at, 1)
        head, at = codec.take(octets, at, 1)
        if version[0] < 6 or head != b"\x5f":
            raise BadRequest("DLMS version or conformance block")
        if octets[at : at + 1] == b"\x1f":  # may be left out on HDLC
            at += 1
        block, at = codec.take(octets, at, 5)
        size, at = codec.take(octets, at, 2)
        return int.from_bytes(block[2:], "big"), int.from_bytes(size, "big")

    def _aare(self, result: int, diagnostic: int, conformance: int = 0) -> bytes:
        body = tlv(0xA1, tlv(0x06, _CONTEXT + (b"\x03" if self._shield.ciphered else b"\x01")))
        body += tlv(0xA2, tlv(0x02, bytes([result]))) + tlv(
            0xA3, tlv(0xA1, tlv(0x02, bytes([diagnostic])))
        )
        if result:
            return tlv(0x61, body)
        initiate = (
            b"\x08\x00\x06\x5f\x1f\x04\x00"
            + conformance.to_bytes(3, "big")
            + self.meter.max_pdu.to_bytes(2, "big")
            + b"\x00\x07"
        )
        if self._shield.ciphered or self._mechanism > 5:
            body += tlv(0xA4, tlv(0x04, self.device.title))
        if self._shield.ciphered:
            initiate = tlv(0x28, self._shield.close(initiate))
        if self._mechanism > 1:
            body += b"\x88\x02\x07\x80" + tlv(0x89, _MECHANISM + bytes([self._mechanism]))
            body += tlv(0xAA, tlv(0x80, self._s_to_c))
        return tlv(0x61, body + tlv(0xBE, tlv(0x04, initiate)))

    def _release(self, apdu: bytes) -> bytes:
        fields = codec.ber_fields(apdu)
        if self._shield.ciphered and fields.get(0xBE) and self.state != "idle":
            request = codec.inner(fields[0xBE])
            if request[:1] == b"\x21":
                self._shield.open(codec.inner(request))
        self.state = "idle"
        return b"\x63\x03\x80\x01\x00"

    def _reply_to_hls(self, invoke: bytes, token: codec.Parsed) -> bytes:
        """Pass 3 and 4 of HLS."""
        if not isinstance(token, bytes):
            raise BadRequest("reply_to_HLS needs an octet-string")
        shield, title = self._shield, self.device.title
        keys, peer = shield.keys, shield.peer
        if self._mechanism == 2:
            good = hmac.compare_digest(token, codec.hls2(keys.hls, self._s_to_c))
            mine = codec.hls2(keys.hls, self._c_to_s)
        elif self._mechanism == 7:
            pairs = keys.pairs(self.meter.suite)
            if pairs is None:
                raise BadRequest("ECDSA in suite 0")
            theirs = peer + title + self._s_to_c + self._c_to_s
            good = suites.verified(pairs.suite, pairs.client_sign, theirs, token)
            own = title + peer + self._c_to_s + self._s_to_c
            mine = suites.sign(pairs.suite, pairs.sign, own)
        elif self._mechanism != 5:
            theirs = codec.hls_hash(
                self._mechanism, keys.hls, self._s_to_c, self._c_to_s, peer + title
            )
            good = hmac.compare_digest(token, theirs)
            mine = codec.hls_hash(
                self._mechanism, keys.hls, self._c_to_s, self._s_to_c, title + peer
            )
        else:
            suite = self.meter.suite
            if len(token) != 17 or token[0] != 0x10 | suite:
                raise BadRequest("f(StoC) of HLS 5 has 17 octets")
            counter = int.from_bytes(token[1:5], "big")
            shield.above(counter, shield.floor, "GMAC")
            if counter == shield.outer:
                self.meter.record.violation(
                    self.meter.id,
                    "nonce-repeated",
                    counter=counter,
                    where="GMAC and ACTION",
                    title=peer.hex(),
                )
            good = hmac.compare_digest(
                token, codec.gmac(keys.guek, keys.gak, peer, counter, self._s_to_c, suite)
            )
            counters = self.meter.counters()
            counters.accept(max(counter, shield.accepted()), reading=shield.reading)
            mine = codec.gmac(keys.guek, keys.gak, title, counters.next_own(), self._c_to_s, suite)
        if not good:
            self.meter.record.note(self.meter.id, "hls-wrong", client=self.client)
            return b"\xc7\x01" + invoke + b"\x03\x00"
        self.state = "associated"
        self.meter.contacts += 1
        return b"\xc7\x01" + invoke + b"\x00\x01\x00" + codec.octet_string(mine)

    # --- services

    def _service(self, a: bytes) -> bytes:
        if len(a) < 4:
            raise BadRequest("a service of under four octets")
        invoke = a[2:3]
        if a[0] == 0xC3 and a[1] == 1:
            return self._action(a, invoke)
        if a[0] == 0xD9 and self.state == "associated" and self._mechanism:
            return self._access(a)
        if a[0] in (0xC1, 0xC3) and a[1] != 1 and self.state == "associated" and self._mechanism:
            return self._blocked(a, invoke)
        if self.state != "associated":
            return b"\xd8\x01\x01"  # service not allowed
        if a[0] == 0xC0 and a[1] == 1:
            return self._get(a, invoke)
        if a[0] == 0xC0 and a[1] == 2:
            number = int.from_bytes(a[3:7], "big")
            if not 0 < number < len(self._blocks):
                return b"\xc4\x02" + invoke + b"\x01" + number.to_bytes(4, "big") + b"\x01\x13"
            return self._block(number + 1, invoke)
        if a[0] == 0xC0 and a[1] == 3 and self._mechanism:
            return self._get_list(a, invoke)
        if a[0] == 0xC1 and a[1] == 1 and self._mechanism:
            return self._set(a, invoke)
        return b"\xd8\x01\x02"  # service unknown

    def _access(self, a: bytes) -> bytes:
        """Several services in one; each is run as if it had come alone."""
        count, at = codec.read_length(a, 5)
        _, at = codec.take(a, at, count)
        count, at = codec.read_length(a, at)
        if not 0 < count <= _MAX_LIST:
            raise BadRequest(f"an ACCESS of {count} specifications")
        wanted = []
        for _ in range(count):
            head, at = codec.take(a, at, 10)
            start = at
            if head[0] in (4, 5):
                _, at = codec.take(a, at, 1)
                _, at = codec.parse(a, at)
            wanted.append((head[0], head[1:], a[start:at]))
        again, at = codec.read_length(a, at)
        if again != count:
            raise BadRequest(f"{again} data for {count} specifications")
        data, results = [], []
        stopped = False
        for kind, target, selection in wanted:
            start = at
            _, at = codec.parse(a, at)
            service = kind - 3 if kind > 3 else kind
            result, value = 250, codec.NULL
            if not stopped:
                result, value = self._one_access(service, target, selection, a[start:at])
                stopped = bool(result and a[1] & 0x20)  # stop at the first error
            data.append(value)
            results.append(bytes([service, result]))
        size = codec.length(count)
        return b"\xda" + a[1:5] + b"\0\0" + size + b"".join(data) + size + b"".join(results)

    def _one_access(
        self, service: int, target: bytes, selection: bytes, value: bytes
    ) -> tuple[int, bytes]:
        """Result and data of one specification."""
        chosen = b"\1" + selection if selection else b"\0"
        if service == 1:
            class_id, obis, attribute, picked, _ = self._reference(target + chosen, 0)
            found = self._read(class_id, obis, attribute, picked)
            return (found, codec.NULL) if isinstance(found, int) else (0, found)
        if service == 2:
            return self._set(b"\xc1\x01\0" + target + chosen + value, b"\0")[3], codec.NULL
        if service == 3:
            return self._action(b"\xc3\x01\0" + target + b"\1" + value, b"\0")[3], codec.NULL
        raise BadRequest(f"a specification of kind {service}")

    def _blocked(self, a: bytes, invoke: bytes) -> bytes:
        """SET and ACTION requests whose value comes in blocks; run when the last has come."""
        first, more = (2, 3) if a[0] == 0xC1 else (4, 6)
        at = 3
        if a[1] == first:
            head, at = codec.take(a, at, 10 if a[0] == 0xC1 else 9)
            self._written = bytearray(a[:1] + b"\x01" + invoke + head)
            if a[0] == 0xC3:
                self._written += b"\x01"
            self._due = 1
        elif a[1] != more or not self._written:
            raise BadRequest("a block without a first one")
        last, at = codec.take(a, at, 1)
        number, at = codec.take(a, at, 4)
        count, at = codec.read_length(a, at)
        part, _ = codec.take(a, at, count)
        if int.from_bytes(number, "big") != self._due or len(self._written) > _MAX_REQUEST:
            raise BadRequest(f"block {number.hex()}, {self._due} is due")
        self._due += 1
        self._written += part
        if not last[0]:
            return (b"\xc5\x02" if a[0] == 0xC1 else b"\xc7\x04") + invoke + number
        request = bytes(self._written)
        self._written.clear()
        if a[0] == 0xC3:
            return self._action(request, invoke)
        return b"\xc5\x03" + invoke + self._set(request, invoke)[3:4] + number

    def _reference(self, a: bytes, at: int) -> tuple[int, str, int, objects.Selection | None, int]:
        head, at = codec.take(a, at, 10)
        selection: objects.Selection | None = None
        if head[9]:
            how, at = codec.take(a, at, 1)
            value, at = codec.parse(a, at)
            selection = (how[0], value)
        return int.from_bytes(head[:2], "big"), codec.obis_text(head[2:8]), head[8], selection, at

    def _read(
        self, class_id: int, obis: str, attribute: int, selection: objects.Selection | None
    ) -> bytes | int:
        return objects.read(self.meter, self.client, class_id, obis, attribute, selection)

    def _get(self, a: bytes, invoke: bytes) -> bytes:
        class_id, obis, attribute, selection, _ = self._reference(a, 3)
        value = self._read(class_id, obis, attribute, selection)
        if isinstance(value, int):
            return b"\xc4\x01" + invoke + b"\x01" + bytes([value])
        if len(value) <= self._pdu - _OVERHEAD or self._general:
            return b"\xc4\x01" + invoke + b"\x00" + value
        return self._cut(value, invoke)

    def _get_list(self, a: bytes, invoke: bytes) -> bytes:
        count, at = codec.read_length(a, 3)
        if not 0 < count <= _MAX_LIST:
            raise BadRequest(f"a list of {count} attributes")
        results = []
        for _ in range(count):
            class_id, obis, attribute, selection, at = self._reference(a, at)
            value = self._read(class_id, obis, attribute, selection)
            results.append(b"\x01" + bytes([value]) if isinstance(value, int) else b"\x00" + value)
        body = codec.length(count) + b"".join(results)
        return (
            b"\xc4\x03" + invoke + body
            if len(body) <= self._pdu - _OVERHEAD
            else self._cut(body, invoke)
        )

    def _cut(self, value: bytes, invoke: bytes) -> bytes:
        room = self._pdu - _OVERHEAD
        self._blocks = [value[i : i + room] for i in range(0, len(value), room)]
        return self._block(1, invoke)

    def _block(self, number: int, invoke: bytes) -> bytes:
        part = self._blocks[number - 1]
        last = bytes([number == len(self._blocks)])
        return (
            b"\xc4\x02"
            + invoke
            + last
            + number.to_bytes(4, "big")
            + b"\x00"
            + codec.length(len(part))
            + part
        )

    def _set(self, a: bytes, invoke: bytes) -> bytes:
        class_id, obis, attribute, _, at = self._reference(a, 3)
        value, _ = codec.parse(a, at)
        result = objects.DENIED
        if (class_id, obis, attribute) == (8, CLOCK, 2) and self.client == self.meter.client:
            result = objects.MISMATCH
            if isinstance(value, bytes):
                at_utc = codec.read_clock(
                    value, self.device.zone, east=self.meter.layout.east, default=-1
                )
                if at_utc > 0:
                    self.meter.capture()
                    self.device.set_clock(self.meter.clock.now(), at_utc)
                    self.meter.record.note(self.meter.id, "clock-set", to=at_utc)
                    result = 0
        return b"\xc5\x01" + invoke + bytes([result])

    def _action(self, a: bytes, invoke: bytes) -> bytes:
        head, at = codec.take(a, 3, 10)
        class_id, obis, method = (
            int.from_bytes(head[:2], "big"),
            codec.obis_text(head[2:8]),
            head[8],
        )
        value: codec.Parsed = None
        if head[9]:
            value, _ = codec.parse(a, at)
        names = ("0.0.40.0.0.255", self.meter.layout.object_names.get(self.client))
        if class_id == 15 and obis in names and method == 1 and self.state == "challenge":
            return self._reply_to_hls(invoke, value)
        if self.state != "associated":
            return b"\xd8\x01\x01"
        if (
            class_id == 70
            and obis == objects.RELAY
            and method in (1, 2)
            and self.client == self.meter.client
        ):
            self.meter.relay_closed = method == 2
            self.meter.record.note(self.meter.id, "relay", closed=self.meter.relay_closed)
            return b"\xc7\x01" + invoke + b"\x00\x00"
        return b"\xc7\x01" + invoke + b"\x03\x00"
