"""Any capture to one document, offline: what `opendcu decode` prints (DESIGN section 4).

Frames -> APDUs (framing) -> general-block-transfer -> deciphering -> block transfer -> value, readings. Of an exchange
of several APDUs the document is that of the last one that holds a value; `apdus` names them all.

Invariants: octets decode or raise ProtocolError; what was assumed stands in `warnings`; no key is part of any output.
Passwords of AARQs are masked in `details` (`plain_apdu` is the input itself).
Limits: framing.MAX_OCTETS of input; keys are tried in turn where several are given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_core.domain import Secret, obis_from_bytes
from edge_core.errors import MalformedApdu, ProtocolError, TagInvalid
from edge_core.protocols.dlms import acse, apdu, axdr, bodies, ciphering, general, services
from edge_core.protocols.dlms.axdr import BitString, CompactArray, Data
from edge_core.protocols.dlms.blocks import BlockAssembler
from edge_core.protocols.dlms.bodies import Reading
from edge_core.protocols.dlms.describe import details_of, iso_of, link_details, octets_json
from edge_core.protocols.dlms.framing import Direction, Piece, unframe
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    ENCRYPTED,
    HEADER_OCTETS,
    SUITE_MASK,
    TAG_OCTETS,
    Opened,
    SecurityContext,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_core.protocols.dlms.cosem import Attribute, Selector

_SCALED_CLASSES: Final = (3, 4, 5)
_GENERAL_BLOCK: Final = bytes((apdu.GENERAL_BLOCK_TRANSFER,))
_ACSE_TAGS: Final = (acse.AARQ, acse.AARE, acse.RLRQ, acse.RLRE)


class Keys(msgspec.Struct, frozen=True):
    """Keys to try.

    Attributes:
        encryption: GUEK, or a dedicated key.
        authentication: GAK; None = tags cannot be verified, what is encrypted is shown all the same.
    """

    encryption: Secret
    authentication: Secret | None = None


class Decoded(msgspec.Struct, frozen=True):
    """The document; field by field as in DESIGN section 4, and beyond it `details` and `apdus`."""

    framing: str
    apdu: str
    plain_apdu: str | None
    ciphered: bool
    authenticated: bool
    invocation_counter: int | None
    system_title: str | None
    value: Any
    readings: list[dict[str, Any]]
    warnings: list[str]
    details: dict[str, Any]
    apdus: list[str]


class _Message(msgspec.Struct):
    """One APDU on its way."""

    name: str
    plain: bytes | None = None
    ciphered: bool = False
    authenticated: bool = False
    counter: int | None = None
    title: bytes = b""
    body: Data | None = None
    readings: tuple[Reading, ...] = ()
    time: bytes = b""
    details: dict[str, Any] = {}


def decode(
    frames: Sequence[bytes],
    keys: Sequence[Keys] = (),
    titles: Sequence[bytes] = (),
    *,
    utc_to_local: bool = False,
) -> Decoded:
    """Decode a capture.

    Args:
        frames: one frame an element, or several concatenated; an exchange in the order of the line.
        keys: tried in turn.
        titles: system titles to try where the capture names none.
        utc_to_local: deviations count from UTC to local time (India); False = Blue Book.

    Raises:
        ProtocolError: nothing can be decoded; `offset` is the octet of the frame, or of the APDU once that is there.
    """
    unframed = unframe(frames)
    reading = _Exchange(keys, titles, utc_to_local=utc_to_local)
    reading.warnings.extend(unframed.warnings)
    try:
        messages = list(reading.messages(unframed.pieces))
    except ProtocolError:
        if unframed.framing != "none":
            raise
        messages = _bare_data(frames, reading)
    message = next((m for m in reversed(messages) if m.body is not None), messages[-1])
    warnings = reading.warnings + reading.unfinished()
    if message.time or any(bodies.is_clock(r.value) for r in message.readings):
        warnings.extend(_doubtful_deviation(message, utc_to_local=utc_to_local))
    return Decoded(
        framing=unframed.framing,
        apdu=message.name,
        plain_apdu=message.plain.hex() if message.plain is not None else None,
        ciphered=message.ciphered,
        authenticated=message.authenticated,
        invocation_counter=message.counter,
        system_title=message.title.hex() or None,
        value=to_json(message.body, utc_to_local=utc_to_local)
        if message.body is not None
        else None,
        readings=list(_readings(message, utc_to_local=utc_to_local)),
        warnings=list(dict.fromkeys(warnings)),
        details=message.details,
        apdus=[m.name for m in messages],
    )


def _bare_data(frames: Sequence[bytes], reading: _Exchange) -> list[_Message]:
    """One APDU over several lines, or a bare A-XDR value; else the first error again."""
    whole = b"".join(frames)
    first: ProtocolError | None = None
    try:
        return list(reading.messages([Piece((b"", b""), whole)]))
    except ProtocolError as error:
        first = error
    for start, name in ((0, "data"), (1, "get-data-result")):
        if start and whole[:1] != b"\0":
            continue
        try:
            body = axdr.decode_whole(whole, start)
        except ProtocolError:
            continue
        if isinstance(body.value, tuple) and body.value:
            found = bodies.recognise(body)
            return [_Message(name, whole, body=body, readings=found.readings, time=found.clock)]
    raise first


class _Exchange:
    """Reads the APDUs of one capture in order, and remembers what later ones need."""

    def __init__(
        self, keys: Sequence[Keys], titles: Sequence[bytes], *, utc_to_local: bool
    ) -> None:
        self._utc_to_local = utc_to_local
        self._contexts = [
            (
                k,
                SecurityContext(
                    2 if len(k.encryption) == 32 else 0, k.encryption, k.authentication
                ),
            )
            for k in keys
        ]
        self._given = list(titles)
        self._titles: dict[Direction, bytes] = {}
        self._general: dict[Direction, BlockAssembler] = {}
        self._blocks: dict[tuple[Direction, int], BlockAssembler] = {}
        self._heads: dict[tuple[Direction, int], bytes] = {}
        self._asked: dict[tuple[Direction, int], tuple[tuple[Attribute, Selector | None], ...]] = {}
        self._scalers: dict[str, Data] = {}
        self._readings: list[Reading] = []
        self.warnings: list[str] = []

    def messages(self, pieces: Sequence[Piece]) -> Iterator[_Message]:
        """The messages that the pieces make."""
        for piece in pieces:
            if piece.link is not None:
                yield _Message(piece.link.kind.name.lower(), details=link_details(piece.link))
                continue
            octets = piece.apdu
            if octets[:1] == _GENERAL_BLOCK:
                block = apdu.decode(octets)
                assert isinstance(block, apdu.GeneralBlockTransfer)
                whole = self._general_block(piece.direction, block)
                if whole is None:
                    yield _Message(block.NAME, details=details_of(block))
                    continue
                octets = whole
            yield self._message(piece.direction, octets)

    def _general_block(
        self, direction: Direction, block: apdu.GeneralBlockTransfer
    ) -> bytes | None:
        if not block.data and direction not in self._general:
            return None  # an acknowledgement
        assembler = self._general.setdefault(direction, BlockAssembler())
        whole = assembler.take(block)
        if block.last:
            del self._general[direction]
        return whole

    def _message(self, direction: Direction, octets: bytes) -> _Message:
        if not octets:
            raise MalformedApdu("an empty APDU", 0)
        if octets[0] == general.GENERAL_SIGNING:
            signed = general.peek_signed(octets)
            self.warnings.append("general-signing: the signature was not verified")
            if signed.content[:1] == octets[:1]:
                raise MalformedApdu("a general-signing within a general-signing", 1)
            message = self._message(direction, signed.content)
            message.title = message.title or signed.header.originator
            return message
        if ciphering.is_ciphered(octets):
            return self._sealed(direction, octets)
        if octets[0] in _ACSE_TAGS:
            return self._association(direction, octets)
        return self._plain(direction, octets, _Message(""))

    def _sealed(self, direction: Direction, octets: bytes) -> _Message:
        sealed = ciphering.peek(octets)
        message = _Message(sealed.name, ciphered=True, counter=sealed.counter, title=sealed.title)
        if sealed.title:
            self._titles[direction] = sealed.title
        if not self._contexts:
            self.warnings.append(f"{sealed.name}: no key was given")
            return message
        opened, title = self._open(direction, sealed)
        message.authenticated = opened.authenticated
        message.title = title
        return self._plain(direction, opened.plain, message)

    def _open(self, direction: Direction, sealed: ciphering.Sealed) -> tuple[Opened, bytes]:
        """Try every key under every title; the tag decides, without a tag the first APDU that can be read.

        Raises:
            TagInvalid, MalformedApdu: none fits; the first cause.
        """
        known = sealed.title or self._titles.get(direction, b"")
        titles = [known] if known else [*self._given, b""]
        first: ProtocolError | None = None
        for keys, context in self._contexts:
            for title in titles:
                unverified = bool(sealed.control & AUTHENTICATED) and keys.authentication is None
                try:
                    opened = (
                        _open_unverified(sealed, context, title)
                        if unverified
                        else sealed.open(context, title)
                    )
                    if not opened.authenticated:
                        _require_apdu(opened.plain)
                except ProtocolError as error:
                    first = first or error
                    continue
                if unverified:
                    self.warnings.append("the tag was not verified: no authentication key")
                elif not opened.authenticated:
                    self.warnings.append("encrypted without a tag: anybody may have sent it")
                if title:
                    self._titles[direction] = title
                return opened, title
        assert first is not None
        raise first

    def _association(self, direction: Direction, octets: bytes) -> _Message:
        message = acse.decode(octets)
        out = _Message(message.NAME, octets)
        if isinstance(message, acse.Aarq | acse.Aare) and message.title:
            self._titles[direction] = out.title = message.title
        information = message.user_information
        initiate: acse.Initiate | None = None
        if information and ciphering.is_ciphered(information):
            sealed = ciphering.peek(information)
            out.ciphered, out.counter = True, sealed.counter
            if self._contexts:
                opened, out.title = self._open(direction, sealed)
                out.authenticated = opened.authenticated
                initiate = acse.decode_initiate(opened.plain)
            else:
                self.warnings.append(f"{sealed.name}: no key was given")
        elif information:
            initiate = acse.decode_initiate(information)
        out.details = details_of(message, utc_to_local=self._utc_to_local)
        if initiate is not None:
            out.details["initiate"] = details_of(initiate)
        return out

    def _plain(self, direction: Direction, octets: bytes, out: _Message) -> _Message:
        if octets[:1] in (b"\x01", b"\x08"):
            initiate = acse.decode_initiate(octets)
            out.name, out.plain, out.details = initiate.NAME, octets, details_of(initiate)
            return out
        message = apdu.decode(octets)
        key = (direction, getattr(message, "invoke", 0) & 0x0F)
        joined = self._joined(key, message)
        if joined is not None:
            octets = joined
            message = apdu.decode(octets)
        out.name, out.plain, out.details = (
            message.NAME,
            octets,
            details_of(message, utc_to_local=self._utc_to_local),
        )
        match message:
            case apdu.DataNotification():
                out.body, warning = bodies.decode_body(octets, len(octets) - len(message.body))
                found = bodies.recognise(out.body)
                out.readings, out.time = found.readings, message.time or found.clock
                self.warnings.extend(w for w in (warning, *found.warnings) if w)
            case apdu.EventNotification():
                out.body, warning = bodies.decode_body(octets, len(octets) - len(message.body))
                thing = message.attribute
                out.readings = (Reading(thing.obis, out.body, thing.index),)
                out.time = message.time
                self.warnings.extend(w for w in (warning,) if w)
            case services.GetRequest():
                self._asked[key] = ((message.attribute, message.selector),)
            case services.GetRequestList():
                self._asked[key] = message.attributes
            case services.GetResponse() if message.result == 0:
                out.body = axdr.decode_whole(octets, len(octets) - len(message.data))
                out.readings = self._answered(key, (out.body,))
            case services.GetResponseList():
                values = tuple(
                    axdr.decode_whole(r.data) if r.result == 0 else None for r in message.results
                )
                out.body = axdr.array(axdr.NULL if v is None else v for v in values)
                out.readings = self._answered(key, values)
            case services.SetRequest():
                out.body = axdr.decode_whole(octets, len(octets) - len(message.data))
            case services.ActionRequest() if message.parameters is not None:
                out.body = axdr.decode_whole(octets, len(octets) - len(message.parameters))
            case services.ActionResponse() if message.returned and message.returned.data:
                out.body = axdr.decode_whole(message.returned.data)
        return out

    def _joined(self, key: tuple[Direction, int], message: apdu.Apdu) -> bytes | None:
        """The normal APDU that the last block of a transfer completes, None otherwise."""
        match message:
            case services.GetResponseBlock() if message.result == 0:
                head = bytes((0xC4, 1, message.invoke, 0))
            case services.ActionResponseBlock():
                head = bytes((0xC7, 1, message.invoke))
            case services.SetRequestFirstBlock():
                request = services.SetRequest(
                    message.attribute, b"", message.selector, message.invoke
                )
                head = self._heads[key] = request.to_bytes()
            case services.ActionRequestFirstBlock():
                action = services.ActionRequest(message.method, b"", message.invoke)
                head = self._heads[key] = action.to_bytes()
            case services.SetRequestBlock() | services.ActionRequestBlock() if key in self._heads:
                head = self._heads[key]
            case _:
                return None
        assembler = self._blocks.setdefault(key, BlockAssembler())
        try:
            whole = assembler.take(message.block)
        except MalformedApdu as error:
            del self._blocks[key]
            self.warnings.append(f"{message.NAME}: {error}")
            return None
        if whole is not None:
            del self._blocks[key]
            return head + whole
        return None

    def unfinished(self) -> list[str]:
        """What still waits for blocks."""
        waiting = [*self._blocks.values(), *self._general.values()]
        return [f"block {a.number} came, more are due" for a in waiting]

    def _answered(
        self, key: tuple[Direction, int], values: tuple[Data | None, ...]
    ) -> tuple[Reading, ...]:
        """What the values of a response are, if the request is part of the capture."""
        (source, destination), invoke = key
        asked = self._asked.pop(((destination, source), invoke), ())
        if not asked:
            asked = self._asked.pop((_requester(source), invoke), ())
        for (attribute, _), value in zip(asked, values, strict=False):
            if value is None:
                continue
            if attribute.class_id in _SCALED_CLASSES and attribute.index == 3:
                self._scalers[attribute.obis] = value
            elif (
                attribute.class_id != 7
                and attribute.index != 1
                and not isinstance(value.value, tuple | CompactArray)
            ):
                self._readings.append(Reading(attribute.obis, value, attribute.index))
        out = []
        for reading in self._readings:
            scale = bodies.scaler_unit(self._scalers.get(reading.obis, axdr.NULL))
            if scale is not None and reading.attribute == 2:
                reading = msgspec.structs.replace(reading, scaler=scale[0], unit=scale[1])
            out.append(reading)
        return tuple(out)


def _requester(source: bytes) -> Direction:
    """The direction of requests where frames name no addresses: bare APDUs, or an LLC header."""
    return (b"\xe6\xe6\x00", b"") if source else (b"", b"")


def _open_unverified(sealed: ciphering.Sealed, context: SecurityContext, title: bytes) -> Opened:
    """What is inside, though the tag cannot be checked: the ciphertext of GCM is that of counter mode."""
    if len(sealed.body) < HEADER_OCTETS + TAG_OCTETS:
        raise MalformedApdu("an authenticated APDU without its tag", len(sealed.body))
    control = sealed.control & (ENCRYPTED | SUITE_MASK)
    body = bytes((control,)) + sealed.body[1:-TAG_OCTETS]
    return msgspec.structs.replace(sealed, body=body, control=control).open(context, title)


def _require_apdu(plain: bytes) -> None:
    """Without a tag only the content can tell a wrong key.

    Raises:
        TagInvalid: it does not look like an APDU.
    """
    try:
        if plain[:1] in (b"\x01", b"\x08"):
            acse.decode_initiate(plain)
        else:
            message = apdu.decode(plain)
            if isinstance(message, apdu.DataNotification):
                bodies.decode_body(message.body)
            elif isinstance(message, services.GetResponse) and message.data:
                axdr.decode_whole(message.data)
    except ProtocolError:
        raise TagInvalid("what the key gives is no APDU: a wrong key or system title") from None


def _readings(message: _Message, *, utc_to_local: bool) -> Iterator[dict[str, Any]]:
    time = iso_of(message.time, utc_to_local=utc_to_local) if message.time else None
    for reading in message.readings:
        value = _scalar(reading.value, utc_to_local=utc_to_local)
        if value is not None:
            yield {
                "obis": reading.obis,
                "value": value,
                "scaler": reading.scaler,
                "unit": reading.unit,
                "time": time,
            }


def _scalar(data: Data, *, utc_to_local: bool) -> int | str | None:
    """A value as a reading carries it; None for null-data and for structures."""
    value = data.value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, BitString):
        return str(value)
    if isinstance(value, bytes):
        if bodies.is_clock(data):
            return iso_of(value, utc_to_local=utc_to_local) or value.hex()
        text = bodies.printable(value)
        if text is not None:
            return text
        return obis_from_bytes(value) if bodies.is_obis(data) else value.hex()
    return None


def to_json(data: Data, *, utc_to_local: bool = False) -> Any:
    """A value as `opendcu decode` prints it."""
    value = data.value
    if isinstance(value, tuple):
        return [to_json(item, utc_to_local=utc_to_local) for item in value]
    if isinstance(value, CompactArray):
        return [to_json(item, utc_to_local=utc_to_local) for item in value.elements]
    if isinstance(value, BitString):
        return {"bits": str(value), "set": list(value.ones())}
    if isinstance(value, bytes):
        return octets_json(data.tag, value, utc_to_local=utc_to_local)
    if isinstance(value, float) and not math.isfinite(value):
        return {"value": None, "float": repr(value)}
    return value


def _doubtful_deviation(message: _Message, *, utc_to_local: bool) -> Iterator[str]:
    """Nobody lives at UTC-5:30: a positive deviation that is no whole hour was written the Indian way."""
    if utc_to_local:
        return
    for octets in (message.time, *(r.value.value for r in message.readings)):
        if isinstance(octets, bytes) and bodies.looks_like_datetime(octets):
            deviation = int.from_bytes(octets[9:11], "big", signed=True)
            if deviation in (330, 345):
                yield (
                    f"deviation {deviation:+} was taken as minutes from local time to UTC (Blue Book); "
                    "Indian meters write UTC to local: --deviation utc-to-local"
                )
