"""Pushes: from a datagram to a notification, and from a notification to alerts.

    envelope = push.open_datagram(octets)              # wrapper; sender's title and counter, nothing verified
                                                       # (by TCP: for envelope in push_stream.feed(octets))
    context = keys of the meter with envelope.title    # the caller knows the meters
    opened = envelope.open(context, title)             # tag verified
    ... the caller refuses a counter that was heard before, and too little protection ...
    notification = push.read(opened.plain, schemas)    # device id, push setup, clock, values
    for alert in push.alerts(notification, schemas): ...

A body is read by the schema of its source, found by the logical name of the push setup that it names, or by the only
schema there is; without one only what a body says itself is taken (see bodies).

Invariants: bit 0 of a bit-string is its first bit (IS 15959 event status word: 85 = last gasp, 86 = first breath), bit
0 of an integer is its least significant one (alarm registers and descriptors). Nothing here knows keys, meters or time.
Source: DLMS UA Green Book ed. 9, 9.3.10 (data-notification), Blue Book class_id 40; tests/data/frames/gurux_last_gasp_push.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Final

import msgspec

from edge_core.domain import Obis, obis_from_bytes
from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.dlms import apdu, bodies, ciphering, wrapper
from edge_core.protocols.dlms.axdr import BitString, Data, DataType
from edge_core.protocols.dlms.blocks import BlockAssembler
from edge_core.protocols.dlms.bodies import CLOCK, Reading
from edge_core.protocols.dlms.security import (
    AUTHENTICATED,
    AUTHENTICATED_ENCRYPTED,
    ENCRYPTED,
    Opened,
    SecurityContext,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_core.config.models import PushSetup

EVENT_STATUS_WORD: Final = "0.0.94.91.18.255"
LAST_GASP_BIT: Final = 85
FIRST_BREATH_BIT: Final = 86
DEVICE_IDS: Final = ("0.0.96.1.2.255", "0.0.96.1.0.255", "0.0.42.0.0.255")
"""Codes under which pushes name their device, best first."""
MAX_NAMES: Final = 4
"""Elements of a push that are looked at for the name of its device."""

_PROTECTIONS: Final = {
    0: "none",
    AUTHENTICATED: "authenticated",
    ENCRYPTED: "encrypted",
    AUTHENTICATED_ENCRYPTED: "authenticated-encrypted",
}


class Envelope(msgspec.Struct, frozen=True):
    """One wrapped APDU, unopened.

    Attributes:
        source: wPort of the sender.
        destination: wPort of the receiver: 64 = push.
        apdu: as it came.
        sealed: its protection, None in the clear.
    """

    source: int
    destination: int
    apdu: bytes
    sealed: ciphering.Sealed | None

    @property
    def title(self) -> bytes:
        """The sender's system title, b"" where it gives none."""
        return self.sealed.title if self.sealed is not None else b""

    @property
    def counter(self) -> int | None:
        """The sender's invocation counter, unverified; None in the clear."""
        return self.sealed.counter if self.sealed is not None else None

    @property
    def protection(self) -> str:
        """As models spell it: none, authenticated, encrypted, authenticated-encrypted."""
        return protection(self.sealed.control if self.sealed is not None else 0)

    def open(self, context: SecurityContext | None, title: bytes = b"") -> Opened:
        """The APDU inside.

        Args:
            context: keys of the sender; not needed in the clear.
            title: the sender's title, where the envelope gives none.

        Raises:
            MalformedApdu, TagInvalid: as ciphering.Sealed.open.
            LocalProtocolError: it is sealed and there are no keys.
        """
        if self.sealed is None:
            return Opened(self.apdu, 0, 0)
        if context is None:
            raise LocalProtocolError("a sealed push needs keys")
        return self.sealed.open(context, title)


def protection(control: int) -> str:
    """What a security control octet protects with, as models spell it."""
    return _PROTECTIONS[control & AUTHENTICATED_ENCRYPTED]


def open_datagram(octets: bytes) -> Envelope:
    """What one datagram holds.

    Raises:
        MalformedFrame: no WPDU.
        MalformedApdu: lengths that cannot be.
    """
    return envelope(wrapper.parse_datagram(octets))


def envelope(wpdu: wrapper.Wpdu) -> Envelope:
    """The same for a WPDU of a stream.

    Raises:
        MalformedApdu: lengths that cannot be.
    """
    sealed = ciphering.peek(wpdu.apdu) if ciphering.is_ciphered(wpdu.apdu) else None
    return Envelope(wpdu.source, wpdu.destination, wpdu.apdu, sealed)


class PushStream:
    """Pushes that come by TCP: cut from the stream, general block transfers put together.

    Args:
        max_apdu: longest APDU that is accepted, also after a block transfer.
    """

    __slots__ = ("_blocks", "_reader", "max_apdu")

    def __init__(self, max_apdu: int = wrapper.MAX_APDU) -> None:
        self.max_apdu = max_apdu
        self._reader = wrapper.WrapperReader(max_apdu)
        self._blocks: BlockAssembler | None = None

    def feed(self, octets: bytes) -> list[Envelope]:
        """What these octets complete.

        Raises:
            MalformedFrame: no wrapper stream, now and from then on: close the connection.
            MalformedApdu: lengths that cannot be, or a block is missing.
        """
        self._reader.feed(octets)
        out: list[Envelope] = []
        while (wpdu := self._reader.next()) is not None:
            if wpdu.apdu[:1] == b"\xe0":
                whole = self._take(wpdu.apdu)
                if whole is None:
                    continue
                wpdu = wpdu._replace(apdu=whole)
            out.append(envelope(wpdu))
        return out

    def _take(self, octets: bytes) -> bytes | None:
        block = apdu.decode(octets)
        assert isinstance(block, apdu.GeneralBlockTransfer)
        if self._blocks is None or block.number == 1:
            self._blocks = BlockAssembler(self.max_apdu)
        whole = self._blocks.take(block)
        if block.last:
            self._blocks = None
        return whole


class Cause(msgspec.Struct, frozen=True):
    """What a bit or value of an alert word means: a code of the alarm vocabulary, and its phases."""

    code: str
    phases: tuple[str, ...] = ()


class PushSchema(msgspec.Struct, frozen=True):
    """How the body of one push is built; compiled from the model's [push.<name>].

    Attributes:
        obis: logical name of the push setup.
        shape: list or positions (`columns` names the elements), pairs or triples (the elements name themselves).
        columns: logical names by position, "" = ignored.
        alert: logical name of the alert word; "" = none.
        causes: bit of the alert word to what it means.
        others: the same for further alert words, by their logical names.
        by_value: `causes` are values of an event code, not bits.
        latches: bits stay set until they are cleared at the meter.
    """

    obis: Obis
    shape: str = "list"
    columns: tuple[Obis, ...] = ()
    alert: Obis = ""
    causes: dict[int, Cause] = {}
    others: dict[Obis, dict[int, Cause]] = {}
    by_value: bool = False
    latches: bool = False

    @classmethod
    def of(cls, setup: PushSetup) -> PushSchema:
        """The schema that a model's table describes."""
        return cls(
            obis=str(setup.obis),
            shape=setup.shape,
            columns=tuple(str(column) for column in setup.columns),
            alert=str(setup.alert),
            causes=_causes(setup.alarms),
            others={obis: _causes(alarms) for obis, alarms in setup.others.items()},
            by_value=setup.carries == "event",
            latches=setup.latches,
        )

    @property
    def words(self) -> dict[Obis, dict[int, Cause]]:
        """Every alert word with what its bits mean."""
        return ({self.alert: self.causes} if self.alert else {}) | self.others


def _causes(alarms: Mapping[str, str]) -> dict[int, Cause]:
    """`alarms` of a model: bit or value to what it means."""
    causes = {}
    for number, text in alarms.items():
        code, _, phases = text.partition(":")
        causes[int(number)] = Cause(code, tuple(phases.split(",")) if phases else ())
    return causes


class Notification(msgspec.Struct, frozen=True):
    """What a push says.

    Attributes:
        service: data-notification or event-notification-request.
        long_invoke_id: 24 bits, None in an event-notification.
        time: date-time octets of the header, b"" without.
        device_id: as text, "" where none is named.
        setup: logical name of the push setup, "" where none is named.
        clock: date-time octets of the body, b"" without.
        readings: every element that has a code.
        body: all of it.
        warnings: what was assumed.
    """

    service: str
    long_invoke_id: int | None
    time: bytes
    device_id: str
    setup: Obis
    clock: bytes
    readings: tuple[Reading, ...]
    body: Data
    warnings: tuple[str, ...] = ()

    @property
    def event_time(self) -> bytes:
        """The 12 octets that say when: of the body, else of the header; b"" without either."""
        return self.clock or self.time

    def get(self, obis: Obis) -> Data | None:
        """The first value with this code, None without."""
        return next((r.value for r in self.readings if r.obis == obis), None)


class Alert(msgspec.Struct, frozen=True):
    """One bit that is set, or one event code.

    Attributes:
        code: of the alarm vocabulary.
        phases: any of L1 L2 L3.
        number: the bit or value.
        word: logical name of the alert word that it stands in.
    """

    code: str
    phases: tuple[str, ...]
    number: int
    word: Obis = ""


Schemas = dict[Obis, PushSchema]


def schemas_of(push: Mapping[str, PushSetup]) -> Schemas:
    """The schemas of a model by the logical name of their push setup."""
    return {str(setup.obis): PushSchema.of(setup) for setup in push.values()}


def read(plain: bytes, schemas: Schemas | None = None) -> Notification:
    """What an opened push says.

    Raises:
        MalformedApdu: no push, or a body that cannot be decoded.
    """
    tag = plain[:1]
    if tag == b"\x0f":
        long_invoke, time, at = apdu.split_data_notification(plain)
        body, warning = bodies.decode_body(plain, at)
        warnings = (warning,) if warning else ()
        return _read(
            apdu.DataNotification.NAME,
            long_invoke & 0xFFFFFF,
            time,
            body,
            warnings,
            schemas or {},
        )
    if tag == b"\xc2":
        event = apdu.decode(plain)
        assert isinstance(event, apdu.EventNotification)
        body, warning = bodies.decode_body(event.body)
        reading = Reading(event.attribute.obis, body, event.attribute.index)
        return Notification(
            service=event.NAME,
            long_invoke_id=None,
            time=event.time,
            device_id="",
            setup="",
            clock=b"",
            readings=(reading,),
            body=body,
            warnings=(warning,) if warning else (),
        )
    raise MalformedApdu(f"APDU {plain[:1].hex()} is no push", 0)


def _read(
    service: str,
    long_invoke_id: int,
    time: bytes,
    body: Data,
    warnings: tuple[str, ...],
    schemas: Schemas,
) -> Notification:
    values = bodies.elements(body)
    schema = _schema_for(values, schemas)
    if schema is not None and schema.columns and schema.shape in ("list", "positions"):
        readings, setup, clock = _by_columns(values, schema)
        if len(values) != len(schema.columns):
            warnings += (
                f"{len(values)} elements came, the schema of {schema.obis} has {len(schema.columns)}",
            )
    else:
        found = bodies.recognise(body)
        readings, setup, clock = found.readings, found.setup, found.clock
        warnings += found.warnings
        if not setup and schema is not None:
            setup = schema.obis
    return Notification(
        service,
        long_invoke_id,
        time,
        _device_id(readings),
        setup,
        clock,
        readings,
        body,
        warnings,
    )


def _schema_for(values: tuple[Data, ...], schemas: Schemas) -> PushSchema | None:
    """By the push setup that an element names; else the only one there is. An object list needs none."""
    if not schemas or (values and bodies.object_list(values[0]) is not None):
        return None
    for value in values:
        if bodies.is_setup(value):
            assert isinstance(value.value, bytes)
            return schemas.get(obis_from_bytes(value.value))
    return next(iter(schemas.values())) if len(schemas) == 1 else None


def _by_columns(
    values: tuple[Data, ...], schema: PushSchema
) -> tuple[tuple[Reading, ...], Obis, bytes]:
    readings = []
    clock = b""
    for column, value in zip(schema.columns, values, strict=False):
        if not column or column == schema.obis:
            continue
        if column == CLOCK and isinstance(value.value, bytes):
            clock = value.value
        readings.append(Reading(column, value))
    return tuple(readings), schema.obis, clock


def _device_id(readings: tuple[Reading, ...]) -> str:
    for obis in DEVICE_IDS:
        for reading in readings:
            if reading.obis == obis:
                value = reading.value.value
                if isinstance(value, bytes):
                    return value.decode("ascii", "replace").strip("\0 ")
                return value if isinstance(value, str) else ""
    return ""


def names(plain: bytes) -> tuple[str, ...]:
    """Texts among the first elements of a push in the clear that may name its device; () of anything else. Never raises."""
    try:
        found = read(plain)
    except MalformedApdu:
        return ()
    values = [found.device_id, *(v.value for v in bodies.elements(found.body)[:MAX_NAMES])]
    texts = [v.decode("ascii", "replace") if isinstance(v, bytes) else v for v in values]
    return tuple(t for v in texts if isinstance(v, str) and (t := v.strip("\0 ")))


def alerts(
    notification: Notification, schemas: Schemas, before: Mapping[Obis, int] | None = None
) -> tuple[Alert, ...]:
    """The alerts of a push, by the schema of its push setup, else by any schema with its alert word.

    Bits that the schema does not name raise nothing: `status_bits` lists them all.

    Args:
        notification: what came.
        schemas: of the meter's model.
        before: alert word to the bits that it had in the push before; of words that latch only further ones are news.
    """
    named = schemas.get(notification.setup)
    found: list[Alert] = []
    for schema in (named,) if named is not None else schemas.values():
        for obis, causes in schema.words.items():
            word = notification.get(obis)
            if word is None:
                continue
            old = before.get(obis, 0) if before and schema.latches else 0
            numbers = status_bits(word)
            if schema.by_value and isinstance(word.value, int):
                numbers, old = (word.value,), 0
            found += [
                Alert(cause.code, cause.phases, number, obis)
                for number in numbers
                if (cause := causes.get(number)) is not None and not old >> number & 1
            ]
        if found:
            break
    return tuple(found)


def latched(notification: Notification, schemas: Schemas) -> dict[Obis, int]:
    """The alert words of a push that latch, each as an integer whose bit n is its bit n; for `alerts` of the next one."""
    return {
        obis: sum(1 << bit for bit in status_bits(word))
        for schema in schemas.values()
        if schema.latches
        for obis in schema.words
        if (word := notification.get(obis)) is not None
    }


def status_bits(word: Data) -> tuple[int, ...]:
    """Numbers of the bits that are set in an alert word: a bit-string, an integer, or an octet-string of bits."""
    value = word.value
    if isinstance(value, BitString):
        return value.ones()
    if isinstance(value, bytes) and word.tag == DataType.OCTET_STRING:
        return BitString(value, 8 * len(value)).ones()
    if isinstance(value, int) and value > 0:
        return tuple(bit for bit in range(value.bit_length()) if value >> bit & 1)
    return ()


class StatusBit(msgspec.Struct, frozen=True):
    """One bit of the IS 15959 event status word."""

    meaning: str
    severity: str


@lru_cache(maxsize=1)
def event_status_word() -> dict[int, StatusBit]:
    """What the bits of the IS 15959 event status word mean, from `event_status_word.csv`."""
    text = resources.files(__package__).joinpath("event_status_word.csv").read_text("utf-8")
    return {
        int(row["bit"]): StatusBit(row["meaning"], row["severity"])
        for row in csv.DictReader(text.splitlines())
    }
