"""Meter models as the simulator needs them: points, identification, limits; read from TOML, checked elsewhere.

SunSpec models are placed where a client finds them: marker at 40000, common model, the meter model at 40070, end mark.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edge_core.errors import ConfigError

SIZES = {
    "uint16": 1, "int16": 1, "sunssf": 1, "uint32": 2, "int32": 2, "float32": 2, "acc32": 2, "bitfield32": 2,
    "uint64": 4, "int64": 4, "float64": 4,
}  # fmt: skip
SUNSPEC_MARK, SUNSPEC_COMMON = 40_000, 66
SUNSPEC_MODEL = SUNSPEC_MARK + 2 + 2 + SUNSPEC_COMMON


@dataclass(frozen=True)
class Point:
    """One value of a map; `address` is what goes on the wire, `size` in registers."""

    name: str
    obis: str
    address: int
    table: str
    type: str
    word_order: str
    scale: int
    unit: str
    kind: str
    size: int
    scale_point: str = ""
    form: str = ""
    modulus: int = 0

    @property
    def end(self) -> int:
        """Address after the last register."""
        return self.address + self.size


@dataclass(frozen=True)
class Map:
    """A meter model.

    Attributes:
        functions: function codes that read it; with both, one table answers to both.
        identify: (table, address, words) of the registers that prove the model.
        derived: name of a sum -> its points.
        history: [history] of the model, {} = it remembers nothing.
    """

    name: str
    points: tuple[Point, ...]
    phases: int
    functions: tuple[int, ...]
    limit: int
    tolerant: bool
    aligned: bool
    sunspec: bool
    sparse_text: bool
    identify: tuple[str, int, tuple[int, ...]] | None
    derived: dict[str, tuple[str, ...]]
    history: dict[str, Any]

    def find(self, obis_or_name: str) -> list[Point]:
        """The point, or the points that are summed up, for an OBIS code or a name."""
        for point in self.points:
            if obis_or_name in (point.obis, point.name):
                return [point]
        parts = self.derived.get(obis_or_name) or self.derived.get(_TOTALS.get(obis_or_name, ""))
        return [point for point in self.points if parts and point.name in parts]


_TOTALS = {
    "1.0.1.8.0.255": "active_energy_import",
    "1.0.2.8.0.255": "active_energy_export",
    "1.0.3.8.0.255": "reactive_energy_import",
    "1.0.4.8.0.255": "reactive_energy_export",
    "1.0.9.8.0.255": "apparent_energy_import",
}


def load_map(model: str) -> Map:
    """The map of a model by name (edge_core/acquisition/meters/<name>.toml) or by path.

    Raises:
        ConfigError: there is no such model, or it is none for Modbus.
    """
    if model.endswith(".toml"):
        file: Any = Path(model)
    else:
        file = resources.files("edge_core").joinpath("acquisition", "meters", f"{model}.toml")
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        points, link, about = document["points"], document["link"], document["model"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ConfigError(
            "fleet", "modbus", "model", f"no Modbus meter model {model!r}", str(error)
        ) from error
    sunspec = link.get("addressing") == "sunspec_model_relative"
    offset = SUNSPEC_MODEL if sunspec else 0
    phases = about.get("phases", 3)
    return Map(
        name=Path(model).stem if model.endswith(".toml") else model,
        points=tuple(_point(entry, offset) for entry in points),
        phases=phases if isinstance(phases, int) else 3,
        functions=tuple(link.get("read_function_codes", (3,))),
        limit=link.get("max_registers_per_read", 125),
        tolerant=link.get("hole_policy") == "tolerant",
        aligned=bool(link.get("align_reads_to_values")),
        sunspec=sunspec,
        sparse_text="one character in the low byte" in about.get("notes", ""),
        identify=_identify(document.get("identify"), sunspec=sunspec),
        derived={name: tuple(parts) for name, parts in document.get("derived", {}).items()},
        history=document.get("history", {}),
    )


def _point(entry: dict[str, Any], offset: int) -> Point:
    kind = entry["type"]
    return Point(
        name=entry["name"],
        obis=entry.get("obis", ""),
        address=entry["address"] + offset,
        table=entry.get("table", "holding"),
        type=kind,
        word_order=entry.get("word_order", "big"),
        scale=entry.get("scale", 0),
        unit=entry.get("unit", ""),
        kind=entry.get("kind", "instantaneous"),
        size=entry.get("length") or SIZES[kind],
        scale_point=entry.get("scale_point", ""),
        form=entry.get("form", ""),
        modulus=entry.get("modulus", 0),
    )


def _identify(
    table: dict[str, Any] | None, *, sunspec: bool
) -> tuple[str, int, tuple[int, ...]] | None:
    values = list((table or {}).get("values", {}))
    if table is None or not values or sunspec:
        return None
    value = values[-1]
    number = int(value, 0) if re.fullmatch(r"0x[0-9A-Fa-f]+|\d+", value) else 0
    size = SIZES.get(table.get("type", "uint16"), 1)
    words = tuple(number >> 16 * k & 0xFFFF for k in reversed(range(size)))
    if table.get("word_order") == "little":
        words = words[::-1]
    return table.get("table", "holding"), table["address"], words
