"""A proof of what a profile holds: capture objects, period, sort method and scalers, read from the meter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_core.acquisition.drivers.dlms.learned import (
    Learned,
    capture_objects,
    scaler_row,
    scaler_unit,
    whole_number,
)
from edge_core.errors import MeterRefused
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.cosem import Attribute, CaptureObject
from edge_core.protocols.dlms.profile import ScalerUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.acquisition.drivers.dlms.driver import Driver
    from edge_core.config.models import Profile
    from edge_core.domain import Obis

PROFILE_CLASS: Final = 7
_SCALER_ATTRIBUTE: Final = {3: 3, 4: 3, 5: 4}
"""Attribute that holds scaler and unit, by class."""
_SCALED_ATTRIBUTES: Final = frozenset(((3, 2), (4, 2), (5, 2), (5, 3)))


async def learn(driver: Driver, profile: Profile, serial: str, now: int) -> Learned:
    """What the meter says of a profile.

    Raises:
        MeterError: it has none, or says what cannot be.
    """
    obis = profile.obis
    objects = await _capture_objects(driver, obis)
    numbers = [0, 0]
    answers = await driver.get_all([Attribute(PROFILE_CLASS, obis, 4), Attribute(7, obis, 5)])
    for place, data in enumerate(answers):
        if data is not None:
            with driver.session.step(f"GET {obis}:{4 + place}"):
                numbers[place] = whole_number(data)
    scalers = await _scalers(driver, profile, objects)
    return Learned(
        serial,
        now,
        objects,
        numbers[0],
        numbers[1],
        tuple((o, a, s.scaler, s.unit) for (o, a), s in scalers.items()),
    )


async def scalers_of(
    driver: Driver, wanted: Sequence[tuple[int, Obis]]
) -> dict[tuple[int, Obis], ScalerUnit]:
    """Scaler and unit of registers by (class, logical name); (0, "") where one has none."""
    attributes = [Attribute(c, obis, _SCALER_ATTRIBUTE[c]) for c, obis in wanted]
    found = {}
    for key, attribute, data in zip(
        wanted, attributes, await driver.get_all(attributes), strict=True
    ):
        found[key] = ScalerUnit(0, "")
        if data is not None:
            with driver.session.step(f"GET {attribute}"):
                found[key] = scaler_unit(axdr.decode_whole(data).plain())
    return found


async def _capture_objects(driver: Driver, obis: Obis) -> tuple[CaptureObject, ...]:
    data = await driver.get(Attribute(PROFILE_CLASS, obis, 3))
    with driver.session.step(f"GET {obis}:3"):
        return capture_objects(data)


async def _scalers(
    driver: Driver, profile: Profile, objects: tuple[CaptureObject, ...]
) -> dict[tuple[Obis, int], ScalerUnit]:
    """Scaler and unit by (logical name, attribute): of the scaler profile, else of the objects themselves."""
    wanted = dict.fromkeys(
        (o.class_id, o.obis) for o in objects if (o.class_id, o.attribute) in _SCALED_ATTRIBUTES
    )
    found: dict[tuple[int, Obis], ScalerUnit] = {}
    if profile.scaler_profile and wanted:
        try:
            named = await _capture_objects(driver, profile.scaler_profile)
            data = await driver.get(Attribute(PROFILE_CLASS, profile.scaler_profile, 2))
            with driver.session.step(f"GET {profile.scaler_profile}:2"):
                found = scaler_row(data, named)
        except MeterRefused:
            found = {}
    found |= await scalers_of(driver, [key for key in wanted if key not in found])
    return {
        (o.obis, o.attribute): found[o.class_id, o.obis]
        for o in objects
        if (o.class_id, o.obis) in found
    }
