"""A meter model's points made ready for reading: spans, lookups, decoding into readings.

Here the words of a request become `RegisterReading`s: sums of tariff counters, scale registers, forms. Nothing is
asked here and nothing is remembered.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_core.domain import RegisterReading
from edge_core.protocols.modbus import codec
from edge_core.protocols.modbus.plan import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edge_core.config.models import ModbusModel, Point
    from edge_core.domain import Obis
    from edge_core.protocols.modbus.codec import Exact

Words = "Mapping[Span, tuple[int, ...] | None]"

SERIAL = "meter_serial_number"
CLOCK_FORMS = ("schneider-datetime", "bcd-clock")
COARSE = 3  # steps of 10**3 Wh and more are no 15-minute energy


@dataclass(frozen=True, slots=True)
class Sum:
    """A total that the meter keeps only in parts (tariffs)."""

    name: str
    parts: tuple[Point, ...]

    @property
    def obis(self) -> Obis:
        """The parts' code with tariff 0: the total."""
        groups = self.parts[0].obis.split(".")
        return ".".join((*groups[:4], "0", groups[5]))


class Points:
    """The points of a model, at their place.

    Args:
        model: the meter model.
        base: register of the SunSpec model's ID for relative addresses, else 0.
        orders: word order learned by the probe, where it is a setting of the meter.
    """

    def __init__(
        self, model: ModbusModel, base: int = 0, order: codec.WordOrder | None = None
    ) -> None:
        self.model = model
        self.base = base
        self.order = order
        self.all = model.points
        self.by_name = {p.name: p for p in model.points}
        self.sums = {
            name: Sum(name, tuple(self.by_name[part] for part in parts))
            for name, parts in model.derived.items()
        }
        self.defined = tuple(self.span(p) for p in model.points)

    # --- which

    def of_kinds(self, *kinds: str) -> list[Point]:
        """Points of these kinds, without the scale registers, which only serve others."""
        return [p for p in self.all if p.kind in kinds and p.type != "sunssf"]

    def named(self, names: Iterable[str]) -> list[Point | Sum]:
        """Points and sums by name."""
        return [self.sums[n] if n in self.sums else self.by_name[n] for n in names]

    def with_obis(self, obis: Obis) -> list[Point | Sum]:
        """What has this code."""
        points: list[Point | Sum] = [p for p in self.all if p.obis == obis]
        return points or [s for s in self.sums.values() if s.obis == obis]

    def clock(self) -> Point | None:
        """The meter's clock, if the model has one."""
        return next((p for p in self.all if p.form in CLOCK_FORMS), None)

    # --- where

    def span(self, point: Point) -> Span:
        """The registers of a point."""
        start = point.address + self.base
        return Span(point.table, start, start + codec.words_of(point.type, point.length))

    def spans(self, items: Iterable[Point | Sum]) -> set[Span]:
        """All registers that these need, their scale registers among them."""
        found = set()
        for item in items:
            for point in item.parts if isinstance(item, Sum) else (item,):
                found.add(self.span(point))
                if point.scale_point:
                    found.add(self.span(self.by_name[point.scale_point]))
        return found

    # --- what

    def exact(self, point: Point, words: Mapping[Span, tuple[int, ...] | None]) -> Exact | None:
        """The exact value of a numeric point, None where it is not available."""
        registers = words.get(self.span(point))
        scale = self.scale(point, words)
        if registers is None or scale is None:
            return None
        if point.type == "acc32" and point.optional and not any(registers):
            return None  # SunSpec: an accumulator that is not kept reads 0
        return codec.exact(point.type, registers, self.order_of(point), scale, point.form)

    def scale(self, point: Point, words: Mapping[Span, tuple[int, ...] | None]) -> int | None:
        """The power of ten of a raw step, that of a scale register included; None if that is not available."""
        if not point.scale_point:
            return point.scale
        registers = words.get(self.span(self.by_name[point.scale_point]))
        if registers is None or codec.is_sentinel("sunssf", registers, "big"):
            return None
        exponent = codec.number("sunssf", registers, "big")
        if not isinstance(exponent, int) or exponent not in codec.SUNSPEC_EXPONENTS:
            return None
        return point.scale + exponent

    def order_of(self, point: Point) -> codec.WordOrder:
        """The word order of a point: the model's, or what the probe found where it is a setting."""
        return self.order or point.word_order

    def reading(
        self, item: Point | Sum, words: Mapping[Span, tuple[int, ...] | None]
    ) -> RegisterReading:
        """The reading of a point or sum; its value is None where the meter has none."""
        if isinstance(item, Sum):
            return self._sum(item, words)
        value: int | str | None
        scaler = 0
        if item.type in codec.OCTET_TYPES or item.form in CLOCK_FORMS:
            value = self._octets(item, words.get(self.span(item)))
        elif (
            item.kind in ("nameplate", "status") and item.type not in codec.FLOATS and not item.unit
        ):
            exact = self.exact(item, words)
            value = exact.numerator if exact else None
            scaler = self.scale(item, words) or 0
        else:
            scaler = self.scaler(item, words)
            value = codec.publish(self.exact(item, words), scaler)
        return RegisterReading(item.obis or None, item.name, 2, value, scaler, item.unit)

    def scaler(self, point: Point, words: Mapping[Span, tuple[int, ...] | None]) -> int:
        """The scaler that a number is published in."""
        scale = self.scale(point, words)
        return codec.scaler_of(
            point.type, point.unit, point.scale if scale is None else scale, point.resolution
        )

    def _sum(self, item: Sum, words: Mapping[Span, tuple[int, ...] | None]) -> RegisterReading:
        scaler = min(self.scaler(part, words) for part in item.parts)
        total: Exact | None = None
        for part in item.parts:
            exact = self.exact(part, words)
            if exact is None:  # a total without one of its parts would be a wrong total
                total = None
                break
            total = exact if total is None else total.plus(exact)
        value = codec.publish(total, scaler)
        return RegisterReading(item.obis, item.name, 2, value, scaler, item.parts[0].unit)

    def _octets(self, point: Point, registers: tuple[int, ...] | None) -> str | None:
        if registers is None:
            return None
        if point.form:
            moment = clock_of(point.form, registers)
            return moment.isoformat() if moment else None
        if point.type == "string":
            return codec.text_of(registers)
        return codec.octets_of(registers, "big").hex()


def clock_of(form: str, registers: tuple[int, ...]) -> dt.datetime | None:
    """The meter's civil time without a zone; None where the octets are no time.

    schneider-datetime: year from 2000 (7 bits) / month, weekday and day / hour, minute / milliseconds of the minute.
    bcd-clock (L&T): year month / day / hour minute / second, two digits each.
    """
    octets = codec.octets_of(registers, "big")
    try:
        if form == "bcd-clock":
            digits = [int(f"{octet:02x}") for octet in octets]
            year, month, _, day, hour, minute, _, second = digits
            return dt.datetime(2000 + year, month, day, hour, minute, second)  # noqa: DTZ001 the meter names no zone
        year, month, day = octets[1] & 0x7F, octets[2] & 0x0F, octets[3] & 0x1F
        milliseconds = int.from_bytes(octets[6:8], "big")
        return dt.datetime(  # noqa: DTZ001 the meter names no zone
            2000 + year, month, day, octets[4] & 0x1F, octets[5] & 0x3F, milliseconds // 1000
        )
    except (ValueError, IndexError):
        return None
