"""The COSEM objects of a simulated meter: an attribute in, its encoding or a data-access-result out.

Serves clock, data, registers, profile generic (attributes 1 to 8, selection by range and by entry), the association's
object list and the relay. The public client sees clock, serial, names and invocation counters, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulators.dlms import codec
from simulators.dlms.codec import BadRequest, Parsed
from simulators.dlms.device import unit_code
from simulators.dlms.layouts import CLOCK, Column, Profile

if TYPE_CHECKING:
    from simulators.dlms.meter import Meter

DENIED, UNDEFINED, UNAVAILABLE, MISMATCH = 3, 4, 11, 12  # data-access-results
DEVICE_NAME, SERIAL, RELAY = "0.0.42.0.0.255", "0.0.96.1.0.255", "0.0.96.3.10.255"

Selection = tuple[int, Parsed]


def read(
    meter: Meter, client: int, class_id: int, obis: str, attribute: int, selection: Selection | None
) -> bytes | int:
    """One attribute as `client` may see it.

    Returns:
        Its A-XDR encoding, or a data-access-result.
    """
    if attribute == 1:
        return codec.octet_string(codec.logical_name(obis))
    if class_id == 8 and obis == CLOCK:
        return _clock(meter, attribute)
    if class_id == 15:
        return _association(meter, client, obis, attribute)
    if class_id == 1 and (value := _public_data(meter, obis)) is not None:
        return value if attribute == 2 else DENIED
    if client == meter.layout.clients["none"]:
        return DENIED if class_id in (1, 3, 4, 7) else UNDEFINED
    if class_id == 7:
        return _profile(meter, obis, attribute, selection)
    if class_id == 1 and obis in meter.layout.nameplate:
        return nameplate(meter, obis) if attribute == 2 else DENIED
    if class_id == 70 and obis == RELAY:
        states = {
            2: b"\x03" + bytes([meter.relay_closed]),
            3: codec.enum(int(meter.relay_closed)),
            4: codec.enum(4),
        }
        return states.get(attribute, DENIED)
    return _register(meter, class_id, obis, attribute)


def nameplate(meter: Meter, obis: str) -> bytes:
    """A value of the nameplate."""
    value = meter.layout.nameplate[obis]
    if isinstance(value, int):
        return codec.u16(value)
    return codec.octet_string(value.format(serial=meter.device.serial).encode())


def _clock(meter: Meter, attribute: int) -> bytes | int:
    device, now = meter.device, int(meter.clock.now()) + meter.device.offset
    east = meter.layout.east
    minutes = int(device.zone.offset_min(now))
    match attribute:
        case 2:
            return codec.octet_string(codec.date_time(now, device.zone, east=east))
        case 3:
            return codec.i16(minutes if east else -minutes)
        case 4:
            return codec.u8(0x80 if device.zone.summer(now) else 0)
        case 9:
            return codec.enum(1)  # internal crystal
    return DENIED


def _public_data(meter: Meter, obis: str) -> bytes | None:
    if obis == DEVICE_NAME and obis in meter.layout.nameplate:
        return nameplate(meter, obis)
    if obis == DEVICE_NAME:
        return codec.octet_string((meter.layout.maker.decode() + meter.device.serial).encode())
    if obis == SERIAL:
        return codec.octet_string(meter.device.serial.encode())
    if obis.startswith("0.0.43.1."):
        names = {name: client for client, name in meter.layout.counters.items()}
        client = names.get(obis)
        if client is None:
            return codec.u32(0) if obis.split(".")[4] in "0123456" else None
        if client == meter.layout.clients["none"]:
            return codec.u32(0)
        reading = client == meter.layout.clients["lls"] != meter.layout.clients["hls5"]
        return codec.u32(min(meter.counters().accepted(reading=reading), 0xFFFFFFFF))
    return None


def _register(meter: Meter, class_id: int, obis: str, attribute: int) -> bytes | int:
    for column in _registers(meter):
        if column.obis == obis and column.class_id == class_id and column.attribute == 2:
            break
    else:
        return UNDEFINED
    if attribute == 3 and class_id in (3, 4):
        return codec.scaler_unit(column.scaler, unit_code(column))
    if attribute != 2:
        return DENIED
    meter.capture()
    return _integer(meter.device.now_value(column, meter.clock.now()), column)


def _registers(meter: Meter) -> list[Column]:
    """Columns that can be read as objects of their own; the instantaneous ones first, for they are read now."""
    return [
        *meter.layout.instantaneous,
        *(c for p in meter.layout.profiles if p.log is None for c in p.columns),
    ]


def _integer(value: int, column: Column) -> bytes:
    if column.width == 1:
        return codec.u8(value & 0xFF)
    if column.width == 2:
        return codec.i16(value) if value < 0 else codec.u16(value & 0xFFFF)
    return codec.i32(value) if value < 0 else codec.u32(value & 0xFFFFFFFF)


# --- profiles


def _profile(meter: Meter, obis: str, attribute: int, selection: Selection | None) -> bytes | int:
    layout = meter.layout
    found = next((p for p in layout.profiles if p.obis == obis), None)
    if found is not None:
        return _captured(meter, found, attribute, selection)
    if obis == layout.nameplate_profile:
        names = list(layout.nameplate)
        objects = [(1, name, 2) for name in names]
        row = codec.structure(*(nameplate(meter, name) for name in names))
    elif obis == layout.instantaneous_profile:
        objects = [
            (8, CLOCK, 2),
            *((c.class_id, c.obis, c.attribute) for c in layout.instantaneous),
        ]
        clock = _clock(meter, 2)
        assert isinstance(clock, bytes)
        meter.capture()
        now = meter.clock.now()
        cells = (
            [_integer(meter.device.now_value(c, now), c) for c in layout.instantaneous]
            if attribute == 2
            else []
        )
        row = codec.structure(clock, *cells)
    elif columns := _scaled(meter, obis):
        objects = [(c.class_id, c.obis, 3) for c in columns]
        row = codec.structure(*(codec.scaler_unit(c.scaler, unit_code(c)) for c in columns))
    else:
        return UNDEFINED
    simple = {
        2: codec.array([row]),
        3: _objects(objects),
        4: codec.u32(0),
        5: codec.enum(1),
        7: codec.u32(1),
    }
    return simple.get(attribute, codec.u32(1) if attribute == 8 else DENIED)


def _scaled(meter: Meter, obis: str) -> list[Column]:
    """Columns of a scaler profile, in another order than in the profile that it belongs to."""
    layout = meter.layout
    if obis == layout.instantaneous_scalers and obis:
        columns = layout.instantaneous
    else:
        owner = next((p for p in layout.profiles if p.scaler_profile == obis and obis), None)
        columns = owner.columns if owner else ()
    return [
        c
        for c in reversed(columns)
        if (c.unit and c.class_id in (3, 4) and c.attribute == 2) or c.source == "factor"
    ]


def _objects(objects: list[tuple[int, str, int]]) -> bytes:
    return codec.array(
        [
            codec.structure(
                codec.u16(c), codec.octet_string(codec.logical_name(o)), codec.i8(a), codec.u16(0)
            )
            for c, o, a in objects
        ]
    )


def _captured(
    meter: Meter, profile: Profile, attribute: int, selection: Selection | None
) -> bytes | int:
    meter.capture()
    rows = meter.device.rows[profile.kind]
    objects = [(8, CLOCK, 2), *((c.class_id, c.obis, c.attribute) for c in profile.columns)]
    held = np.arange(rows.oldest, len(rows.times))
    match attribute:
        case 2:
            try:
                positions, chosen = _select(meter, profile, held, objects, selection)
            except (BadRequest, ValueError, TypeError, IndexError):
                meter.record.note(
                    meter.id, "selection-malformed", profile=profile.obis, selection=repr(selection)
                )
                return MISMATCH
            quirks = meter.quirks
            if "compact-array" in quirks and len(positions):
                packed = meter.device.encode(profile.kind, positions, chosen, packed=True)
                return _compact(profile, chosen, b"".join(packed))
            return codec.array(
                meter.device.encode(
                    profile.kind,
                    positions,
                    chosen,
                    nulls="null-data" in quirks,
                    deltas="delta" in quirks,
                )
            )
        case 3:
            return _objects(objects)
        case 4:
            return codec.u32(profile.period)
        case 5:
            return codec.enum(2 if "newest-first" in meter.quirks else 1)
        case 6:
            return codec.structure(
                codec.u16(0), codec.octet_string(bytes(6)), codec.i8(0), codec.u16(0)
            )
        case 7:
            return codec.u32(len(held))
        case 8:
            return codec.u32(profile.capacity)
    return DENIED


def _compact(profile: Profile, chosen: list[int] | None, packed: bytes) -> bytes:
    """A compact-array: one type description, then the rows without tags."""
    tags = {1: 0x11, 2: 0x12, 4: 0x06, 12: 0x09}
    widths = [12, *(column.width for column in profile.columns)]
    if chosen is not None:
        widths = [widths[k] for k in chosen]
    kinds = bytes(tags[width] for width in widths)
    return b"\x13\x02" + codec.length(len(kinds)) + kinds + codec.length(len(packed)) + packed


def _select(
    meter: Meter,
    profile: Profile,
    held: codec.Ints,
    objects: list[tuple[int, str, int]],
    selection: Selection | None,
) -> tuple[codec.Ints, list[int] | None]:
    """Positions to send in their order, and the columns."""
    newest_first = "newest-first" in meter.quirks
    order = held[::-1] if newest_first else held
    if selection is None or "no-selection" in meter.quirks:
        return order, None
    how, parameters = selection
    if not isinstance(parameters, list) or len(parameters) != 4:
        raise BadRequest("a selection has four elements")
    if how == 1:
        _, low, high, wanted = parameters
        if not (isinstance(low, bytes) and isinstance(high, bytes) and isinstance(wanted, list)):
            raise BadRequest("a range needs two date-times and an array")
        zone, east = meter.device.zone, meter.layout.east
        first = codec.read_clock(low, zone, east=east, default=0)
        last = codec.read_clock(high, zone, east=east, default=1 << 40)
        times = meter.device.rows[profile.kind].at(order)
        begins = times > first if "range-open" in meter.quirks else times >= first
        names = [(c, codec.logical_name(o), a) for c, o, a in objects]
        chosen = [names.index((w[0], w[1], w[2])) for w in wanted if isinstance(w, list)]  # type: ignore[arg-type]
        return order[begins & (times <= last)], chosen or None
    if how == 2:
        begin, end, first_column, last_column = (int(p) for p in parameters if isinstance(p, int))
        columns = list(range(max(first_column, 1) - 1, last_column or len(objects)))
        if columns and columns[-1] >= len(objects):
            raise BadRequest("no such column")
        return order[max(begin, 1) - 1 : end or None], columns
    raise BadRequest("no such selector")


# --- associations


def _association(meter: Meter, client: int, obis: str, attribute: int) -> bytes | int:
    if obis not in ("0.0.40.0.0.255", meter.layout.object_names.get(client)):
        return UNDEFINED
    if attribute == 2:
        return _object_list(meter, client)
    if attribute == 3:
        return codec.structure(codec.i8(client), codec.u16(1))
    return codec.enum(2) if attribute == 8 else DENIED


def _object_list(meter: Meter, client: int) -> bytes:
    layout = meter.layout
    objects: list[tuple[int, int, str]] = [
        (8, 0, CLOCK),
        (1, 0, SERIAL),
        (1, 0, DEVICE_NAME),
        (15, 1, "0.0.40.0.0.255"),
    ]
    objects += [(1, 0, name) for name in layout.counters.values()]
    if client != layout.clients["none"]:
        seen = {o for _, _, o in objects}
        objects += [(1, 0, name) for name in layout.nameplate if name not in seen]
        objects += sorted({(c.class_id, 0, c.obis) for c in _registers(meter)})
        profiles = [p.obis for p in layout.profiles] + sorted(
            {p.scaler_profile for p in layout.profiles}
        )
        profiles += [
            layout.nameplate_profile,
            layout.instantaneous_profile,
            layout.instantaneous_scalers,
        ]
        objects += [(7, 1, name) for name in profiles if name]
        objects.append((70, 0, RELAY))
    writable = {(8, 2)} if client == meter.layout.clients["hls5"] else set()
    methods = {70: 2} if client == meter.layout.clients["hls5"] else {}
    readable = {1: 2, 3: 3, 4: 5, 7: 8, 8: 4, 15: 3, 70: 4}
    return codec.array(
        [
            codec.structure(
                codec.u16(class_id),
                codec.u8(version),
                codec.octet_string(codec.logical_name(name)),
                codec.structure(
                    codec.array(
                        [
                            codec.structure(
                                codec.i8(k),
                                codec.enum(3 if (class_id, k) in writable else 1),
                                codec.NULL,
                            )
                            for k in range(1, readable[class_id] + 1)
                        ]
                    ),
                    codec.array(
                        [
                            codec.structure(codec.i8(k), codec.enum(1))
                            for k in range(1, methods.get(class_id, 0) + 1)
                        ]
                    ),
                ),
            )
            for class_id, version, name in objects
        ]
    )
