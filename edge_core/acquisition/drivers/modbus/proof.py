"""First contact: is what answers really this model, in this word order, from this address base?

A wrong map gives plausible voltages and nonsense energy, so it must be found before anything is published. The proof
costs one request when all is well: frequency (45 to 65 Hz) and voltages. Only when they are off are the other word
order and the neighbouring addresses tried, so that the error can name the mistake. A meter without voltage (0 Hz, or
not available) proves nothing and is believed. SunSpec models are found by walking their chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_core.protocols.modbus import codec
from edge_core.protocols.modbus.plan import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.acquisition.drivers.modbus.points import Points
    from edge_core.acquisition.drivers.modbus.reader import Reader
    from edge_core.config.models import ModbusModel, Point

HERTZ = (45, 65)
VOLTS = (1, 1_000_000)  # primary values of medium-voltage meters included
PROBED_VOLTS = (20, 1_000_000)
NOMINAL = (58, 63, 110, 120, 230, 277, 400, 415, 480, 690)
VOLTAGES = ("voltage_l1", "voltage", "voltage_l1_l2", "voltage_ln_average")

MARKER = (0x5375, 0x6E53)  # "SunS"
MARKER_PLACES = (40_000, 50_000, 0)
COMMON_MODEL, END_OF_MODELS = 1, 0xFFFF
MAX_MODELS = 64
COMMON_FIELDS = {"maker": (2, 16), "model": (18, 16), "version": (42, 8), "serial": (50, 16)}


@dataclass(frozen=True, slots=True)
class Proof:
    """What the first contact showed.

    Attributes:
        order: the word order that fits, where the model's does not; None = the model's.
        problem: why the model does not fit, or "".
        hint: what to do about it.
    """

    order: codec.WordOrder | None = None
    problem: str = ""
    hint: str = ""


async def prove(points: Points, reader: Reader) -> Proof:
    """Frequency and voltage as the model has them; if they are impossible, why.

    Raises:
        Unanswered, Refused: from the reader.
    """
    witnesses = [(p, HERTZ) for p in _first(points, ("frequency",))]
    witnesses += [(p, VOLTS) for p in _first(points, VOLTAGES)]
    bulk = await reader.read(points.spans(p for p, _ in witnesses))
    for point, limits in witnesses:
        words = bulk.words.get(points.span(point))
        scale = points.scale(point, bulk.words)
        if (
            words is None
            or scale is None
            or _fits(point, words, points.order_of(point), scale, limits)
        ):
            continue
        return await _explain(points, reader, point, words, scale, limits)
    return Proof()


def _first(points: Points, names: Sequence[str]) -> list[Point]:
    return [points.by_name[n] for n in names if n in points.by_name][:1]


def _fits(
    point: Point,
    words: Sequence[int],
    order: codec.WordOrder,
    scale: int,
    limits: tuple[int, int],
    *,
    nothing: bool = True,
) -> bool:
    """Is the value possible? With `nothing`, zero and not available are."""
    if nothing and (not any(words) or codec.is_sentinel(point.type, words, order)):
        return True
    value = codec.exact(point.type, words, order, scale)
    if value is None:
        return nothing
    thousandths = value.in_scaler(-3)
    return limits[0] * 1000 <= thousandths <= limits[1] * 1000


async def _explain(
    points: Points,
    reader: Reader,
    point: Point,
    words: Sequence[int],
    scale: int,
    limits: tuple[int, int],
) -> Proof:
    """Try the other word order and the neighbouring addresses: exactly one of them should fit."""
    order = points.order_of(point)
    other: codec.WordOrder = "little" if order == "big" else "big"
    model = points.model.name
    at = points.span(point)
    fitting = []
    if len(words) > 1 and _fits(point, words, other, scale, limits, nothing=False):
        if points.model.link.word_order_selectable:
            return Proof(order=other)
        fitting.append(f"with the words swapped ({other} word order)")
    for shift in (-1, 1):
        if not 0 <= at.start + shift <= 65536 - at.count:
            continue
        moved = await reader.probe(Span(at.table, at.start + shift, at.end + shift))
        for candidate in (order, other) if moved and len(moved) > 1 else (order,):
            if moved and _fits(point, moved, candidate, scale, limits, nothing=False):
                swapped = "" if candidate == order else f" in {candidate} word order"
                fitting.append(f"at {at.start + shift}{swapped}")
    if fitting:
        # Half of a float beside a foreign register still reads about 50 Hz: often two readings are possible.
        return Proof(
            problem=f"{point.name} at {at.start} is impossible as modelled, and right {' or '.join(fitting)}",
            hint=f"Correct word_order or the addresses in a copy of the model {model}.",
        )
    shown = " ".join(f"{w:04x}" for w in words)
    return Proof(
        problem=f"{point.name} at {at.start} holds {shown}, which is no {point.unit} in any word order",
        hint=f"Is it a {model}? Compare with the display before you trust another value.",
    )


@dataclass(frozen=True, slots=True)
class Weight:
    """What frequency and voltages say about a model: values that are possible, near a nominal one, impossible.

    `mains`: the frequency is among the nominal ones.
    """

    mains: bool = False
    possible: int = 0
    nominal: int = 0
    against: int = 0


async def weigh(points: Points, reader: Reader) -> Weight:
    """Look at every frequency and voltage of a model, for a probe that does not know the model yet.

    Raises:
        Unanswered, Refused: from the reader.
    """
    witnesses = [(p, HERTZ) for p in _first(points, ("frequency",))]
    witnesses += [
        (p, PROBED_VOLTS)
        for p in points.all
        if p.unit == "V" and p.name in VOLTAGES + ("voltage_l2", "voltage_l3")
    ]
    bulk = await reader.read(points.spans(p for p, _ in witnesses))
    possible = nominal = against = 0
    mains = False
    for point, limits in witnesses:
        words = bulk.words.get(points.span(point))
        scale = points.scale(point, bulk.words)
        if words is None or scale is None:
            against += 1
            continue
        order = points.order_of(point)
        value = codec.exact(point.type, words, order, scale)
        if value is None or not any(words):
            continue
        thousandths = value.in_scaler(-3)
        if not limits[0] * 1000 <= thousandths <= limits[1] * 1000:
            against += 1
            continue
        possible += 1
        if limits is HERTZ:
            mains = any(abs(thousandths - hertz * 1000) <= 1000 for hertz in (50, 60))
            nominal += mains
        else:
            nominal += any(abs(thousandths - volts * 1000) <= 150 * volts for volts in NOMINAL)
    return Weight(mains, possible, nominal, against)


# --- SunSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where a SunSpec meter model stands, and what its common model says (maker, model, version, serial)."""

    base: int
    common: dict[str, str] = field(default_factory=dict)


async def locate(reader: Reader, model: ModbusModel, remembered: int | None) -> Place | None:
    """Find the meter model: where it was last time, else by walking the chain from the marker.

    Raises:
        Unanswered, Refused: from the reader.
    """
    wanted = set(model.identify.values) if model.identify else set()
    if remembered:
        header = await _registers(reader, remembered, 2)
        if header and str(header[0]) in wanted:
            return Place(remembered)
    for start in MARKER_PLACES:
        head = await _registers(reader, start, 4)
        if head and head[:2] == MARKER:
            return await _walk(reader, start + 2, wanted)
    return None


async def _walk(reader: Reader, at: int, wanted: set[str]) -> Place | None:
    common: dict[str, str] = {}
    for _ in range(MAX_MODELS):
        header = await _registers(reader, at, 2)
        if not header or header[0] == END_OF_MODELS:
            return None
        if str(header[0]) in wanted:
            return Place(at, common)
        if header[0] == COMMON_MODEL and header[1] >= 65:
            whole = await _registers(reader, at + 2, 64)
            for key, (offset, length) in COMMON_FIELDS.items() if whole else ():
                text = codec.text_of(whole[offset - 2 : offset - 2 + length])
                if text:
                    common[key] = text
        at += 2 + header[1]
        if at > 65_533:
            return None
    return None


async def _registers(reader: Reader, at: int, count: int) -> tuple[int, ...]:
    return await reader.probe(Span("holding", at, at + count)) or ()
