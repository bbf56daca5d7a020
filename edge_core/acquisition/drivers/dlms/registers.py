"""Single values of a DLMS meter: nameplate, clock, what it measures now, any attribute of any object.

Which objects a meter has, and of which class, stands in its association object; it is read once and remembered.
Values become integers with scaler and unit, text, or a hex string; what is nested becomes JSON text.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from edge_core.acquisition.drivers.dlms.proving import scalers_of
from edge_core.domain import RegisterReading, obis_from_bytes, obis_to_bytes
from edge_core.errors import MalformedApdu, MeterRefused
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import BitString, DataType
from edge_core.protocols.dlms.cosem import Attribute
from edge_core.protocols.dlms.datetime import decode_datetime
from edge_core.protocols.dlms.layouts import FLOAT_SCALER, float_cell
from edge_core.protocols.dlms.profile import ScalerUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.acquisition.drivers.dlms.driver import Driver
    from edge_core.domain import Obis

ASSOCIATION_CLASS: Final = 15
PROFILE_CLASS: Final = 7
CLOCK_CLASS: Final = 8
MEASURED_CLASSES: Final = frozenset((3, 4, 5))
MAX_OBJECTS: Final = 5_000
_DATE_TIME_ATTRIBUTES: Final = frozenset(((8, 2), (4, 5), (5, 6), (5, 7)))
_FLOATS: Final = frozenset((DataType.FLOAT32, DataType.FLOAT64))


async def read(driver: Driver, what: str) -> Sequence[RegisterReading]:
    """What `Driver.read_registers` promises.

    Args:
        driver: identified.
        what: clock, nameplate, instantaneous, or `<OBIS>[:attribute]`.

    Raises:
        MeterError: MeterRefused also for what no meter can be asked.
    """
    if what == "clock":
        return [await _attribute(driver, CLOCK_CLASS, driver.model.time.clock, 2, "clock")]
    if what == "nameplate":
        return await _nameplate(driver)
    if what == "instantaneous":
        return await _instantaneous(driver)
    match = re.fullmatch(r"((?:[0-9]{1,3}\.){5}[0-9]{1,3})(?::([0-9]{1,3}))?", what)
    index = int(match[2] or 2) if match else 0
    try:
        obis_to_bytes(match[1] if match else "")
    except ValueError:
        match = None
    if match is None or index > 127:
        raise MeterRefused(
            driver.session.meter.id,
            driver.session.place,
            what,
            "there is no such read",
            "Write clock, nameplate, instantaneous, or an OBIS code with an attribute: 1.0.1.8.0.255:2",
        )
    return [await _attribute(driver, await _class_of(driver, match[1]), match[1], index, "")]


async def _nameplate(driver: Driver) -> list[RegisterReading]:
    """The nameplate objects of the model that this meter has, serial first."""
    association = driver.model.association
    out = []
    for name, obis in {"serial": association.serial, **association.nameplate}.items():
        try:
            out.append(await _attribute(driver, 1, obis, 2, name))
        except MeterRefused:
            continue
    return out


async def _instantaneous(driver: Driver) -> list[RegisterReading]:
    """The instantaneous profile where there is one, else every register of electricity that measures now."""
    if "instantaneous" in driver.model.profiles:
        try:
            row = await driver.read_row("instantaneous")
        except MeterRefused:
            row = None
        if row is not None:
            return row
    out = []
    for obis, class_id in (await _objects(driver)).items():
        a, _, c, d, _, _ = (int(part) for part in obis.split("."))
        if class_id in MEASURED_CLASSES and a == 1 and (d == 7 or (d == 8 and c != 0)):
            try:
                out.append(await _attribute(driver, class_id, obis, 2, ""))
            except MeterRefused:
                continue
    return out


async def _attribute(
    driver: Driver, class_id: int, obis: Obis, index: int, name: str
) -> RegisterReading:
    """One attribute as a reading."""
    data = await driver.get(Attribute(class_id, obis, index))
    with driver.session.step(f"GET {obis}:{index}"):
        value = axdr.decode_whole(data)
    if (class_id, index) in _DATE_TIME_ATTRIBUTES and isinstance(value.value, bytes):
        at = decode_datetime(value.value, driver.rules).at
        if at is not None:
            return RegisterReading(obis, name, index, at, 0, "epoch")
    scaled = ScalerUnit(0, "")
    if class_id in MEASURED_CLASSES and index in (2, 3) and isinstance(value.value, (int, float)):
        scaled = await _scaler(driver, class_id, obis)
    if value.tag in _FLOATS and isinstance(value.value, float):
        number = float_cell(value.value)
        return RegisterReading(obis, name, index, number, scaled.scaler + FLOAT_SCALER, scaled.unit)
    unit = "bits" if isinstance(value.value, BitString) else scaled.unit
    plain = value_of(value.plain())
    return RegisterReading(obis, name, index, plain, scaled.scaler, unit)


async def _scaler(driver: Driver, class_id: int, obis: Obis) -> ScalerUnit:
    """Scaler and unit of a register, remembered."""
    key = f"scaler.{class_id}.{obis}"
    known = driver.memory.get(key)
    if isinstance(known, list) and len(known) == 2:
        return ScalerUnit(known[0], known[1])
    scaled = (await scalers_of(driver, [(class_id, obis)]))[class_id, obis]
    driver.memory.put(key, list(scaled))
    return scaled


async def _class_of(driver: Driver, obis: Obis) -> int:
    """The class of an object: as the association says, else as its group values suggest."""
    if obis == driver.model.time.clock:
        return CLOCK_CLASS
    try:
        found = (await _objects(driver)).get(obis)
    except MeterRefused:
        found = None
    if found is not None:
        return found
    a, _, c, d, _, _ = (int(part) for part in obis.split("."))
    if c in (98, 99) or (c == 94 and d == 91 and a == 1):
        return PROFILE_CLASS
    if (a, c) == (0, 40):
        return ASSOCIATION_CLASS
    return 3 if a == 1 and d in (7, 8, 27, 29) else 1


async def _objects(driver: Driver) -> dict[Obis, int]:
    """The objects that this client sees: logical name to class."""
    known = driver.memory.get("objects")
    if isinstance(known, dict):
        return known
    obis = driver.model.association.object
    data = await driver.get(Attribute(ASSOCIATION_CLASS, obis, 2))
    with driver.session.step(f"GET {obis}:2"):
        found = object_list(axdr.decode_whole(data).plain())
    driver.memory.put("objects", found)
    return found


def object_list(value: Any) -> dict[Obis, int]:
    """Attribute 2 of an association: logical name to class.

    Raises:
        MalformedApdu: no list of objects, or more than MAX_OBJECTS.
    """
    if not isinstance(value, list) or len(value) > MAX_OBJECTS:
        raise MalformedApdu(f"no list of at most {MAX_OBJECTS} objects")
    out: dict[Obis, int] = {}
    for item in value:
        if (
            not isinstance(item, list)
            or len(item) < 3
            or not isinstance(item[0], int)
            or not isinstance(item[2], bytes)
            or len(item[2]) != 6
        ):
            raise MalformedApdu("an object is (class, version, logical name, rights)")
        out[obis_from_bytes(item[2])] = item[0]
    return out


def text_of(data: bytes) -> str:
    """A nameplate value as text.

    Raises:
        MalformedApdu: no value.
    """
    value = value_of(axdr.decode_whole(data).plain())
    return "" if value is None else str(value).strip()


def value_of(plain: Any) -> int | str | None:
    """A plain value as a reading carries it."""
    if plain is None or isinstance(plain, (int, str)):
        return int(plain) if isinstance(plain, bool) else plain
    if isinstance(plain, bytes):
        text = plain.rstrip(b"\0")
        return text.decode() if text and all(32 <= b < 127 for b in text) else plain.hex()
    if isinstance(plain, BitString):
        return int.from_bytes(plain.octets, "big") >> -plain.count % 8
    if isinstance(plain, float):
        return repr(plain)
    return json.dumps(plain, default=value_of)
