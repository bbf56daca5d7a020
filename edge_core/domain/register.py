"""A single value read now: a register, a clock, a point of a Modbus meter."""

from __future__ import annotations

import msgspec

from edge_core.domain.obis import Obis, plain_text
from edge_core.domain.units import Unit


class RegisterReading(msgspec.Struct, frozen=True):
    """One value with its scaler and unit; physical value = value * 10**scaler.

    Attributes:
        obis: the code, or None where no code exists (then `name` identifies it).
        name: the model's term, "" when there is none.
        attribute: COSEM attribute index.
        value: raw integer, text, or None where the meter says "not available".
        scaler: power of ten.
        unit: as DESIGN section 3 spells it.
    """

    obis: Obis | None
    name: str
    attribute: int
    value: int | str | None
    scaler: int
    unit: Unit

    def __post_init__(self) -> None:
        plain_text(self, "obis")
        plain_text(self, "name")
        plain_text(self, "unit")
