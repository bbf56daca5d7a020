"""Register codecs: exact, rounded once, and honest about what is not available."""

from __future__ import annotations

import math
import struct
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.protocols.modbus import codec

ORDERS = st.sampled_from(["big", "little"])
RANGES = {
    "uint16": (0, 0xFFFE),
    "int16": (-0x7FFF, 0x7FFE),
    "uint32": (0, 2**32 - 2),
    "int32": (-(2**31) + 1, 2**31 - 2),
    "uint64": (0, 2**64 - 2),
    "int64": (-(2**63) + 1, 2**63 - 2),
    "acc32": (0, 2**32 - 1),
    "bitfield32": (0, 2**32 - 1),
}


@given(st.data())
def test_integers_come_back_as_they_were_encoded(data):
    type_ = data.draw(st.sampled_from(sorted(RANGES)))
    value = data.draw(st.integers(*RANGES[type_]))
    order = data.draw(ORDERS)
    words = codec.encode(type_, value, order)
    assert len(words) == codec.WORDS[type_]
    assert codec.exact(type_, words, order, 0) == codec.Exact(value, 1, 0)


@given(st.sampled_from(["uint32", "int64", "float32"]), st.integers(1, 2**31 - 2))
def test_the_wrong_word_order_gives_another_number(type_, value):
    words = codec.encode(type_, value, "big")
    if words == words[::-1]:
        return
    assert codec.number(type_, words, "little") != codec.number(type_, words, "big")


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-4, 3), ORDERS)
def test_a_float_is_rounded_once_from_its_exact_value(value, scaler, order):
    words = codec.encode("float32", value, order)
    found = codec.publish(codec.exact("float32", words, order, 0), scaler)
    with localcontext() as context:
        context.prec = 400
        due = int((Decimal(value) / Decimal(1).scaleb(scaler)).quantize(0, ROUND_HALF_EVEN))
    assert found == (due if -codec.LARGEST <= due < codec.LARGEST else None)


@pytest.mark.parametrize(
    ("value", "scaler", "published"),
    [
        (2.5, 0, 2),  # ties go to the even one
        (3.5, 0, 4),
        (-2.5, 0, -2),
        (230.25, -1, 2302),
        (0.1, -1, 1),
        # 16,777,217 is no float32: the register itself holds 16,777,216
        (16_777_217.0, 0, 16_777_216),
    ],
)
def test_rounding_examples(value, scaler, published):
    words = codec.encode("float32", value, "big")
    assert codec.publish(codec.exact("float32", words, "big", 0), scaler) == published


def test_kilowatt_hours_as_float_become_watt_hours():
    words = codec.encode("float32", 12345.678, "big")
    # the float nearest to 12345.678 is 12345.677734375
    assert codec.publish(codec.exact("float32", words, "big", 3), 0) == 12_345_678


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        ("uint16", (0xFFFF,)),
        ("uint32", (0xFFFF, 0xFFFF)),
        ("uint64", (0xFFFF,) * 4),
        ("int16", (0x7FFF,)),
        ("int16", (0x8000,)),
        ("int32", (0x7FFF, 0xFFFF)),
        ("int32", (0x8000, 0)),
        ("int64", (0x7FFF, 0xFFFF, 0xFFFF, 0xFFFF)),
        ("float32", (0x7FC0, 0)),
        ("float32", (0xFFFF, 0xFFFF)),
        ("float32", (0x7F80, 0)),
        ("float32", (0xFF80, 0)),
        ("float64", (0x7FF8, 0, 0, 0)),
        ("float64", (0x7FF0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize("order", ["big", "little"])
def test_what_is_not_available_is_none(type_, words, order):
    assert codec.exact(type_, words if order == "big" else words[::-1], order, 0) is None


def test_a_float_of_a_wrong_word_order_is_no_number_of_63_bits():
    words = codec.encode("float32", 3.0e38, "big")
    assert codec.publish(codec.exact("float32", words, "big", 0), 0) is None


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_doubles_of_any_size_are_bounded(value):
    words = codec.encode("float64", value, "little")
    found = codec.publish(codec.exact("float64", words, "little", 3), -3)
    assert found is None or abs(found) <= codec.LARGEST


@given(st.lists(st.integers(0, 9), min_size=4, max_size=16).filter(lambda d: len(d) % 4 == 0))
def test_bcd_digits(digits):
    text = "".join(map(str, digits))
    words = codec.encode("bcd", int(text), "big", len(text) // 4)
    assert codec.number("bcd", words, "big") == int(text)


def test_bcd_with_a_digit_that_is_none():
    assert codec.number("bcd", (0x12A4,), "big") is None


@given(st.integers(0, 10**12 - 1), ORDERS)
def test_four_digits_a_register(value, order):
    assert codec.number("mod10k", codec.encode("mod10k", value, order, 3), order) == value


def test_four_digits_a_register_above_9999():
    assert codec.number("mod10k", (1, 10_000), "big") is None


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
def test_text_in_either_packing(text):
    assert codec.text_of(codec.encode("string", text, "big", 10)) == text
    sparse = tuple(ord(c) for c in text)  # one character in the low octet of each register
    assert codec.text_of(sparse) == text


@pytest.mark.parametrize(
    "words", [(0, 0), (0x2020, 0x2020), (0xFFFF, 0xFFFF), (0x0102,), (0xC3A4,)]
)
def test_text_that_is_none(words):
    assert codec.text_of(words) is None


@pytest.mark.parametrize(
    ("raw", "factor"),
    [(0.87, 870), (1.13, 870), (-0.5, -500), (-1.5, -500), (1.0, 1000), (2.0, 0)],
)
def test_the_four_quadrant_power_factor_is_folded(raw, factor):
    words = codec.encode("float32", raw, "big")
    folded = codec.exact("float32", words, "big", 0, "schneider-4q")
    assert codec.publish(folded, -3) == factor


@given(
    st.integers(-(10**9), 10**9),
    st.integers(-6, 6),
    st.floats(-1e9, 1e9, width=32),
    st.integers(-3, 3),
)
def test_sums_are_exact(a, scale_a, b, scale_b):
    numerator, denominator = b.as_integer_ratio()
    left, right = codec.Exact(a, 1, scale_a), codec.Exact(numerator, denominator, scale_b)
    total = left.plus(right)
    with localcontext() as context:
        context.prec = 300
        due = Decimal(a).scaleb(scale_a) + Decimal(b).scaleb(scale_b)
        found = Decimal(total.numerator) / Decimal(total.denominator)
        assert found.scaleb(total.scale) == due


@pytest.mark.parametrize("value", [-1, 65536, 1.5])
def test_what_does_not_fit_is_refused(value):
    with pytest.raises(ValueError, match="uint16"):
        codec.encode("uint16", value, "big")


def test_text_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="fit"):
        codec.encode("string", "too long", "big", 2)


@given(
    st.sampled_from(sorted(codec.FORMATS)),
    st.binary(min_size=8, max_size=8),
    ORDERS,
    st.integers(-3, 3),
    st.sampled_from(["", "schneider-4q"]),
)
def test_any_registers_decode_to_a_bounded_integer_or_none(type_, octets, order, scale, form):
    words = struct.unpack(f">{codec.WORDS[type_]}H", octets[: 2 * codec.WORDS[type_]])
    value = codec.publish(codec.exact(type_, words, order, scale, form), -1)
    assert value is None or (isinstance(value, int) and abs(value) <= codec.LARGEST)


def test_the_one_rounding_has_no_float_in_it():
    huge = codec.Exact(2**80 + 1, 2**70, 0)
    assert codec.publish(huge, -3) == 1_024_000
    assert math.isclose(2**80 / 2**70, 1024)
