"""Register codecs: words from the wire to exact numbers, text or None, and back.

Invariants: a number is an integer with a scaler, exact for integer registers; a float register becomes an integer by
one half-even rounding of its exact binary value, and never exists as a float outside this file. What the meter marks
as not available is None. Words are taken most significant first after the point's word order is applied; octets in a
register are always high octet first. Nothing here knows addresses or frames.

Limits: numbers beyond 2**63 in their own scaler are no readings (a wrong word order makes such), they are None too.
Sources: register maps' README (types), IEEE 754, SunSpec information model specification (sunssf, acc32).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

WordOrder = Literal["big", "little"]
Value = int | str | None

WORDS = {
    "uint16": 1,
    "int16": 1,
    "sunssf": 1,
    "uint32": 2,
    "int32": 2,
    "float32": 2,
    "acc32": 2,
    "bitfield32": 2,
    "uint64": 4,
    "int64": 4,
    "float64": 4,
}
"""Registers of each type that has a size of its own; bcd, mod10k, string and bytes have a length."""

FORMATS = {
    "uint16": ">H",
    "int16": ">h",
    "sunssf": ">h",
    "uint32": ">I",
    "int32": ">i",
    "acc32": ">I",
    "bitfield32": ">I",
    "uint64": ">Q",
    "int64": ">q",
    "float32": ">f",
    "float64": ">d",
}
FLOATS = frozenset(("float32", "float64"))
SIGNED = frozenset(("int16", "int32", "int64"))
UNSIGNED = frozenset(("uint16", "uint32", "uint64"))
OCTET_TYPES = frozenset(("string", "bytes"))
UNORDERED = OCTET_TYPES | {"bcd", "mod10k"}
"""Types whose registers stand in reading order, whatever the word order of the numbers."""

RESOLUTION = {"V": -1, "A": -2, "Hz": -2, "": -3, "deg": -1, "degC": -1, "%": -1}
"""Scaler that a float is published in, by unit, where the model gives none; 0 for powers and energies."""

LARGEST = 1 << 63
SUNSPEC_EXPONENTS = range(-10, 11)


@dataclass(frozen=True, slots=True)
class Exact:
    """An exact number: numerator / denominator * 10**scale; denominator a power of two (1 for integers)."""

    numerator: int
    denominator: int
    scale: int

    def in_scaler(self, scaler: int) -> int:
        """The nearest integer in the given scaler, half to even: the one rounding."""
        shift = self.scale - scaler
        numerator, denominator = self.numerator, self.denominator
        if shift >= 0:
            numerator *= 10**shift
        else:
            denominator *= 10**-shift
        return round_half_even(numerator, denominator)

    def plus(self, other: Exact) -> Exact:
        """The exact sum."""
        scale = min(self.scale, other.scale)
        a = self.numerator * 10 ** (self.scale - scale) * other.denominator
        b = other.numerator * 10 ** (other.scale - scale) * self.denominator
        return Exact(a + b, self.denominator * other.denominator, scale)


def round_half_even(numerator: int, denominator: int) -> int:
    """Nearest integer to a fraction with a positive denominator, ties to the even one."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient & 1))


def words_of(type_: str, length: int | None) -> int:
    """Registers of a value.

    Raises:
        ValueError: a type without a size of its own and without a length.
    """
    if type_ in WORDS:
        return WORDS[type_]
    if not length:
        raise ValueError(f"{type_} needs a length in registers")
    return length


def octets_of(words: Sequence[int], order: WordOrder) -> bytes:
    """Octets of the registers, most significant first."""
    return struct.pack(f">{len(words)}H", *(words if order == "big" else reversed(words)))


def number(type_: str, words: Sequence[int], order: WordOrder) -> int | tuple[int, int] | None:
    """The raw number of a numeric type.

    Returns:
        An integer, (numerator, denominator) of a float's exact value, or None for NaN, infinity and invalid digits.
    """
    if type_ == "bcd":
        text = octets_of(words, "big").hex()
        return int(text) if text.isdecimal() else None
    if type_ == "mod10k":
        total = 0
        for word in words if order == "big" else reversed(words):
            if word > 9999:
                return None
            total = total * 10_000 + word
        return total
    raw = struct.unpack(FORMATS[type_], octets_of(words, order))[0]
    if type_ in FLOATS:
        if raw != raw or raw in (float("inf"), float("-inf")):
            return None
        ratio: tuple[int, int] = raw.as_integer_ratio()
        return ratio
    return int(raw)


def is_sentinel(type_: str, words: Sequence[int], order: WordOrder) -> bool:
    """Is this the type's own pattern for "not available"?

    Unsigned: all bits one. Signed: the most positive (ABB) or the most negative (SunSpec) number. sunssf: 0x8000.
    Floats: NaN and infinity are caught by `number`. acc32, bitfields, BCD and text have none of their own.
    """
    if type_ in UNSIGNED:
        return all(word == 0xFFFF for word in words)
    if type_ in SIGNED or type_ == "sunssf":
        ordered = words if order == "big" else words[::-1]
        first, rest = ordered[0], ordered[1:]
        most_positive = first == 0x7FFF and all(word == 0xFFFF for word in rest)
        most_negative = first == 0x8000 and not any(rest)
        return most_negative or (most_positive and type_ != "sunssf")
    return False


def text_of(words: Sequence[int]) -> str | None:
    """Text of a string register, however it is packed (two characters a register, or one in the low octet).

    Returns:
        None where nothing printable is there: NULs, blanks, 0xFF, garbage.
    """
    octets = octets_of(words, "big").replace(b"\0", b"").rstrip(b" \xff")
    try:
        text = octets.decode("ascii").strip()
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None


def exact(
    type_: str, words: Sequence[int], order: WordOrder, scale: int, form: str = ""
) -> Exact | None:
    """The exact value in the point's unit; None where it is not available.

    Args:
        scale: power of ten of one raw step, that of a scale register included.
        form: "schneider-4q" folds Schneider's four-quadrant power factor (-2..2) into -1..1.
    """
    if is_sentinel(type_, words, order):
        return None
    raw = number(type_, words, order)
    if raw is None:
        return None
    numerator, denominator = raw if isinstance(raw, tuple) else (raw, 1)
    if form == "schneider-4q" and abs(numerator) > denominator:
        # |x| > 1 stands for a leading power factor of 2 - |x|
        folded = 2 * denominator - abs(numerator)
        numerator = folded if numerator > 0 else -folded
    return Exact(numerator, denominator, scale)


def scaler_of(type_: str, unit: str, scale: int, resolution: int | None) -> int:
    """The scaler that a point is published in: its own for integers, the resolution for floats."""
    if type_ not in FLOATS:
        return scale
    return RESOLUTION.get(unit, 0) if resolution is None else resolution


def publish(value: Exact | None, scaler: int) -> int | None:
    """The integer to publish in a scaler, or None."""
    if value is None:
        return None
    rounded = value.in_scaler(scaler)
    return rounded if -LARGEST <= rounded < LARGEST else None


def encode(
    type_: str, value: int | float | str | bytes, order: WordOrder, length: int | None = None
) -> tuple[int, ...]:
    """Registers of a raw value, for simulators and tests.

    Raises:
        ValueError: the value does not fit the type.
    """
    count = words_of(type_, length)
    try:
        if type_ == "string":
            octets = (value if isinstance(value, bytes) else str(value).encode("ascii")).ljust(
                2 * count, b"\0"
            )
        elif type_ == "bytes":
            octets = value if isinstance(value, bytes) else b""
        elif type_ == "bcd":
            octets = bytes.fromhex(f"{int(value):0{4 * count}d}")
        elif type_ == "mod10k":
            digits = f"{int(value):0{4 * count}d}"
            words = tuple(int(digits[i : i + 4]) for i in range(0, len(digits), 4))
            if len(words) != count or int(value) < 0:
                raise ValueError(f"{value!r} does not fit {count} registers of four digits")
            return words if order == "big" else words[::-1]
        else:
            octets = struct.pack(FORMATS[type_], value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{value!r} is no {type_}: {error}") from None
    if len(octets) != 2 * count:
        raise ValueError(f"{value!r} does not fit {count} registers")
    found = struct.unpack(f">{count}H", octets)
    return found if order == "big" or type_ in UNORDERED else found[::-1]
