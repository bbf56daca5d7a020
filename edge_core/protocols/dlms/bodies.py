"""Bodies of notifications: which value belongs to which OBIS code.

Meters push values in many shapes: with their own object list in front, as (OBIS, value) pairs, as triples with a
scaler_unit, flat or nested, by position alone, and with COSEM descriptors that are not A-XDR (Sagemcom, EG.D). What
says itself what it is, is recognised here; everything else needs the schema of its source (push.PushSchema), for a
guess mis-reads.

Invariants: values are never changed; a shape that is not sure is said so in `warnings`.
Source: captures in tests/data/frames; Norwegian HAN list of Kaifa ("KFM_001"); EG.D customer interface.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edge_core.domain import Obis, Unit, obis_from_bytes, unit_from_dlms
from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import Data, DataType
from edge_core.protocols.dlms.cosem import DESCRIPTOR_OCTETS, CaptureObject

PUSH_SETUP_CLASS: Final = 40
DEVICE_ID: Final = "0.0.96.1.0.255"
CLOCK: Final = "0.0.1.0.0.255"
_MAX_ATTRIBUTE: Final = 32
_MAX_CLASS: Final = 0x0400


class Reading(msgspec.Struct, frozen=True):
    """One value and what it is.

    Attributes:
        obis: its code.
        value: as the meter sent it.
        attribute: COSEM attribute, 2 = the value.
        scaler: power of ten, None where the meter sends none.
        unit: unit, None where the meter sends none.
    """

    obis: Obis
    value: Data
    attribute: int = 2
    scaler: int | None = None
    unit: Unit | None = None


class Recognised(msgspec.Struct, frozen=True):
    """What a body says itself.

    Attributes:
        readings: in the order sent.
        setup: logical name of the push setup, "" where none is named.
        clock: the 12 octets of a date-time that stands for the whole body, b"" without.
        described: the body begins with its own object list.
        warnings: what was assumed.
    """

    readings: tuple[Reading, ...] = ()
    setup: Obis = ""
    clock: bytes = b""
    described: bool = False
    warnings: tuple[str, ...] = ()


def decode_body(octets: bytes, offset: int = 0) -> tuple[Data, str]:
    """The body of a notification from `offset` to the end, and a warning ("" = proper A-XDR).

    Raises:
        MalformedApdu: neither A-XDR nor a list with raw descriptors.
    """
    try:
        return axdr.decode_whole(octets, offset), ""
    except MalformedApdu:
        body = _raw_descriptors(octets, offset)
        if body is None:
            raise
        return body, "attribute descriptors without A-XDR tags (Sagemcom, EG.D)"


def _raw_descriptors(octets: bytes, at: int) -> Data | None:
    """structure(enum, array of structure(class-id, logical name, attribute as 9 bare octets; value)), or None.

    The 9 octets are returned as an octet-string, so that the tree keeps them.
    """
    if octets[at : at + 2] != b"\x02\x02" or octets[at + 2 : at + 3] != b"\x16":
        return None
    try:
        if octets[at + 4] != DataType.ARRAY:
            return None
        kind = axdr.enum(octets[at + 3])
        count, at = axdr.read_length(octets, at + 5)
        pairs = []
        for _ in range(count):
            descriptor = octets[at + 2 : at + 2 + DESCRIPTOR_OCTETS]
            if octets[at : at + 2] != b"\x02\x02" or not is_descriptor(descriptor):
                return None
            value, at = axdr.decode(octets, at + 2 + DESCRIPTOR_OCTETS)
            pairs.append(axdr.structure(axdr.octet_string(descriptor), value))
    except (IndexError, MalformedApdu):
        return None
    return axdr.structure(kind, axdr.array(pairs)) if at == len(octets) else None


def is_descriptor(octets: bytes) -> bool:
    """Could these 9 octets be class-id, logical name, attribute?"""
    return (
        len(octets) == DESCRIPTOR_OCTETS
        and 0 < int.from_bytes(octets[:2], "big") < _MAX_CLASS
        and octets[7] == 0xFF
        and 0 < octets[8] <= _MAX_ATTRIBUTE
    )


def is_obis(data: Data) -> bool:
    """Could this be a logical name? Six octets that end with 255: a current value."""
    value = data.value
    return (
        data.tag == DataType.OCTET_STRING
        and isinstance(value, bytes)
        and len(value) == 6
        and value[5] == 0xFF
    )


def is_setup(data: Data) -> bool:
    """Could this be the logical name of a push setup, 0.b.25.9.0.255?"""
    value = data.value
    return (
        data.tag == DataType.OCTET_STRING
        and isinstance(value, bytes)
        and len(value) == 6
        and value[0] == 0
        and value[2:] == b"\x19\x09\x00\xff"
    )


def is_clock(data: Data) -> bool:
    """Could these octets be a date-time?"""
    value = data.value
    return (
        data.tag in (DataType.OCTET_STRING, DataType.DATE_TIME)
        and isinstance(value, bytes)
        and looks_like_datetime(value)
    )


def looks_like_datetime(octets: bytes) -> bool:
    """12 octets whose fields are in range or unspecified; the year between 1990 and 2100, or unspecified."""
    if len(octets) != 12:
        return False
    year = octets[0] << 8 | octets[1]
    deviation = int.from_bytes(octets[9:11], "big", signed=True)
    return (
        (1990 <= year <= 2100 or year == 0xFFFF)
        and (1 <= octets[2] <= 12 or octets[2] >= 0xFD)
        and (1 <= octets[3] <= 31 or octets[3] >= 0xFD)
        and (octets[4] <= 7 or octets[4] == 0xFF)
        and (octets[5] <= 23 or octets[5] == 0xFF)
        and (octets[6] <= 59 or octets[6] == 0xFF)
        and (octets[7] <= 59 or octets[7] == 0xFF)
        and (octets[8] <= 99 or octets[8] == 0xFF)
        and (-840 <= deviation <= 840 or deviation == -0x8000)
    )


def scaler_unit(data: Data) -> tuple[int, Unit] | None:
    """Scaler and unit of a scaler_unit structure, None for anything else."""
    fields = data.value
    if data.tag == DataType.STRUCTURE and isinstance(fields, tuple) and len(fields) == 2:
        scaler, unit = fields
        if scaler.tag == DataType.INTEGER and unit.tag == DataType.ENUM:
            assert isinstance(scaler.value, int)
            assert isinstance(unit.value, int)
            return scaler.value, unit_from_dlms(unit.value)
    return None


def elements(data: Data) -> tuple[Data, ...]:
    """The elements of an array or structure; the value itself, alone, where it is none."""
    return data.value if isinstance(data.value, tuple) else (data,)


def object_list(data: Data) -> tuple[CaptureObject, ...] | None:
    """The push object list that some meters send as their first element, None for anything else."""
    entries = data.value
    if not isinstance(entries, tuple) or not entries:
        return None
    out = []
    for entry in entries:
        fields = entry.value
        if (
            entry.tag != DataType.STRUCTURE
            or not isinstance(fields, tuple)
            or len(fields) not in (4, 6)
            or fields[0].tag != DataType.LONG_UNSIGNED
            or fields[1].tag != DataType.OCTET_STRING
        ):
            return None
        try:
            out.append(CaptureObject.from_data(entry))
        except MalformedApdu:
            return None
    return tuple(out)


def recognise(body: Data) -> Recognised:
    """What a body says itself; no readings where it needs a schema."""
    values = elements(body)
    if not values:
        return Recognised()
    objects = object_list(values[0])
    if objects is not None:
        return _described(objects, values)
    kaifa = _kaifa(body, values)
    if kaifa is not None:
        return kaifa
    setup = next((obis_from_bytes(v.value) for v in values if is_setup(v)), "")  # type: ignore[arg-type]
    clock = next((v.value for v in values if is_clock(v)), b"")
    readings: list[Reading] = []
    warnings: list[str] = []
    _collect(body, readings, warnings)
    assert isinstance(clock, bytes)
    return Recognised(tuple(readings), setup, clock, warnings=tuple(warnings))


def _described(objects: tuple[CaptureObject, ...], values: tuple[Data, ...]) -> Recognised:
    """The elements in the order of the object list, which is itself the first one."""
    setup = next((o.obis for o in objects if o.class_id == PUSH_SETUP_CLASS), "")
    readings = []
    clock = b""
    for thing, value in zip(objects[1:], values[1:], strict=False):
        if is_clock(value) and thing.obis == CLOCK and isinstance(value.value, bytes):
            clock = value.value
        readings.append(Reading(thing.obis, value, thing.attribute))
    warnings = []
    if len(objects) != len(values):
        warnings.append(f"{len(objects)} objects are listed, {len(values)} elements came")
    return Recognised(tuple(readings), setup, clock, described=True, warnings=tuple(warnings))


def _collect(data: Data, readings: list[Reading], warnings: list[str]) -> None:
    values = data.value
    if not isinstance(values, tuple):
        return
    if len(values) == 2 and _described_by_octets(values, readings):
        return
    if not any(is_obis(v) and not is_setup(v) for v in values):
        for value in values:
            _collect(value, readings, warnings)
        return
    at = 0
    while at < len(values):
        if not is_obis(values[at]) or is_setup(values[at]):
            at += 1
            continue
        if at + 1 == len(values):
            break
        octets = values[at].value
        assert isinstance(octets, bytes)
        scale = scaler_unit(values[at + 2]) if at + 2 < len(values) else None
        readings.append(
            Reading(obis_from_bytes(octets), values[at + 1], 2, *(scale or (None, None)))
        )
        at += 2 if scale is None else 3
    _stray_serial(values, readings, warnings)


def _described_by_octets(values: tuple[Data, ...], readings: list[Reading]) -> bool:
    """A pair whose first half is a raw descriptor."""
    octets = values[0].value
    if (
        values[0].tag != DataType.OCTET_STRING
        or not isinstance(octets, bytes)
        or not is_descriptor(octets)
    ):
        return False
    readings.append(Reading(obis_from_bytes(octets[2:8]), values[1], octets[8]))
    return True


def _stray_serial(values: tuple[Data, ...], readings: list[Reading], warnings: list[str]) -> None:
    """Austrian customer interfaces end a flat list with the device id, without its code."""
    last = values[-1]
    if (
        len(values) > 4
        and last.tag == DataType.OCTET_STRING
        and not is_obis(values[-2])
        and not is_obis(last)
        and isinstance(last.value, bytes)
        and len(last.value) >= 6
        and last.value.isalnum()
        and readings[-1].value is not last
        and all(r.obis != DEVICE_ID for r in readings)
    ):
        readings.append(Reading(DEVICE_ID, last))
        warnings.append(f"the last element has no code: taken as the device id {DEVICE_ID}")


_KAIFA_IDENTITY: Final = (
    ("1.1.0.2.129.255", None, None),
    ("0.0.96.1.0.255", None, None),
    ("0.0.96.1.7.255", None, None),
)
_KAIFA_POWER: Final = (
    ("1.0.1.7.0.255", 0, "W"),
    ("1.0.2.7.0.255", 0, "W"),
    ("1.0.3.7.0.255", 0, "var"),
    ("1.0.4.7.0.255", 0, "var"),
)
_KAIFA_ONE_PHASE: Final = (("1.0.31.7.0.255", -3, "A"), ("1.0.32.7.0.255", -1, "V"))
_KAIFA_THREE_PHASES: Final = (
    ("1.0.31.7.0.255", -3, "A"),
    ("1.0.51.7.0.255", -3, "A"),
    ("1.0.71.7.0.255", -3, "A"),
    ("1.0.32.7.0.255", -1, "V"),
    ("1.0.52.7.0.255", -1, "V"),
    ("1.0.72.7.0.255", -1, "V"),
)
_KAIFA_ENERGY: Final = (
    (CLOCK, None, None),
    ("1.0.1.8.0.255", 0, "Wh"),
    ("1.0.2.8.0.255", 0, "Wh"),
    ("1.0.3.8.0.255", 0, "varh"),
    ("1.0.4.8.0.255", 0, "varh"),
)
_KAIFA_LISTS: Final = {
    len(columns): columns
    for columns in (
        _KAIFA_POWER[:1],
        _KAIFA_IDENTITY + _KAIFA_POWER + _KAIFA_ONE_PHASE,
        _KAIFA_IDENTITY + _KAIFA_POWER + _KAIFA_THREE_PHASES,
        _KAIFA_IDENTITY + _KAIFA_POWER + _KAIFA_ONE_PHASE + _KAIFA_ENERGY,
        _KAIFA_IDENTITY + _KAIFA_POWER + _KAIFA_THREE_PHASES + _KAIFA_ENERGY,
    )
}
"""Columns by the number of elements: list 1, list 2 and list 3 for one and three phases."""


def _kaifa(body: Data, values: tuple[Data, ...]) -> Recognised | None:
    """The position-only lists of Kaifa meters in Norway, None for anything else."""
    columns = _KAIFA_LISTS.get(len(values))
    if columns is None or body.tag != DataType.STRUCTURE:
        return None
    warnings: tuple[str, ...] = ()
    if len(values) == 1:
        if values[0].tag != DataType.DOUBLE_LONG_UNSIGNED:
            return None
        warnings = ("one number without a code: taken as Kaifa list 1, active power import",)
    elif not (isinstance(values[0].value, bytes) and values[0].value.startswith(b"KFM_")):
        return None
    readings = tuple(
        Reading(obis, value, 2, scaler, unit)
        for (obis, scaler, unit), value in zip(columns, values, strict=True)
    )
    clock = next((r.value.value for r in readings if r.obis == CLOCK), b"")
    return Recognised(readings, clock=clock if isinstance(clock, bytes) else b"", warnings=warnings)


def printable(octets: bytes) -> str | None:
    """Octets as text, without padding, if they are visible ASCII; None otherwise."""
    text = octets.rstrip(b"\0 ")
    if not octets:
        return ""
    return text.decode("ascii") if text and all(0x20 <= o < 0x7F for o in text) else None
