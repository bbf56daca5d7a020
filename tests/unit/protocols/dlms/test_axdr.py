"""A-XDR: every type there and back, and counts that attackers choose."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import BitString, Data, DataType, TypeDescription

EXAMPLES = [
    ("00", axdr.NULL),
    ("ff", axdr.DONT_CARE),
    ("0300", axdr.boolean(False)),
    ("0301", axdr.boolean(True)),
    ("040aa5c0", axdr.bits("1010010111")),
    ("05ffffffff", axdr.double_long(-1)),
    ("06ffffffff", axdr.double_long_unsigned(2**32 - 1)),
    ("0903010203", axdr.octet_string(b"\1\2\3")),
    ("0a0441424344", axdr.visible_string("ABCD")),
    ("0c03c3a941", axdr.utf8_string("éA")),
    ("0d80", Data(DataType.BCD, -128)),
    ("0f80", axdr.integer(-128)),
    ("108000", axdr.long(-32768)),
    ("11ff", axdr.unsigned(255)),
    ("12ffff", axdr.long_unsigned(65535)),
    ("14ffffffffffffffff", axdr.long64(-1)),
    ("15ffffffffffffffff", axdr.long64_unsigned(2**64 - 1)),
    ("161e", axdr.enum(30)),
    ("173fc00000", axdr.float32(1.5)),
    ("183ff8000000000000", axdr.float64(1.5)),
    ("1907e50118ff0e303950ffc400", axdr.date_time(bytes.fromhex("07e50118ff0e303950ffc400"))),
    ("1a07e50118ff", Data(DataType.DATE, bytes.fromhex("07e50118ff"))),
    ("1b0e303950", Data(DataType.TIME, bytes.fromhex("0e303950"))),
    ("1cff", Data(DataType.DELTA_INTEGER, -1)),
    ("1dffff", Data(DataType.DELTA_LONG, -1)),
    ("1effffffff", Data(DataType.DELTA_DOUBLE_LONG, -1)),
    ("1fff", Data(DataType.DELTA_UNSIGNED, 255)),
    ("20ffff", Data(DataType.DELTA_LONG_UNSIGNED, 65535)),
    ("21ffffffff", Data(DataType.DELTA_DOUBLE_LONG_UNSIGNED, 2**32 - 1)),
    ("0100", axdr.array([])),
    ("0202110112 0002", axdr.structure(axdr.unsigned(1), axdr.long_unsigned(2))),
]


@pytest.mark.parametrize(("octets", "value"), EXAMPLES)
def test_every_type_there_and_back(octets: str, value: Data) -> None:
    raw = bytes.fromhex(octets)
    assert axdr.decode_whole(raw) == value
    assert axdr.encode(value) == raw
    assert axdr.skip(raw) == len(raw)


@pytest.mark.parametrize(("octets", "value"), EXAMPLES)
def test_every_cut_is_refused(octets: str, value: Data) -> None:
    raw = bytes.fromhex(octets)
    for end in range(len(raw)):
        with pytest.raises(MalformedApdu):
            axdr.decode_whole(raw[:end])
        with pytest.raises(MalformedApdu):
            axdr.skip(raw[:end])


def test_trailing_octets_are_refused() -> None:
    with pytest.raises(MalformedApdu, match="1 octets follow") as caught:
        axdr.decode_whole(b"\x11\x05\x00")
    assert caught.value.offset == 2
    assert axdr.decode(b"\x11\x05\x00") == (axdr.unsigned(5), 2)


def test_bit_zero_is_the_first_bit() -> None:
    word = BitString(bytes.fromhex("00000000000000000000040000000000"), 128)
    assert word.ones() == (85,)
    assert word[85]
    assert not word[86]
    assert str(word).index("1") == 85
    with pytest.raises(IndexError):
        word[128]


def test_bits_beyond_the_count_are_padding() -> None:
    value = axdr.decode_whole(bytes.fromhex("0404ff")).value
    assert isinstance(value, BitString)
    assert (str(value), value.ones(), len(value)) == ("1111", (0, 1, 2, 3), 4)
    assert axdr.encode(axdr.bits(value)) == bytes.fromhex("0404ff")


def test_long_form_lengths() -> None:
    value = axdr.octet_string(bytes(200))
    assert axdr.encode(value)[:3] == bytes.fromhex("0981c8")  # not the bare length octet C8
    assert axdr.decode_whole(bytes.fromhex("0982000141")) == axdr.octet_string(b"A")
    assert axdr.encode_length(0x7F) == b"\x7f"
    assert axdr.encode_length(0x10000) == bytes.fromhex("83010000")


@pytest.mark.parametrize(
    "octets",
    [
        "0980",  # the indefinite form
        "0982ff",  # a length that is cut
        "13110512",  # contents beyond the end
        "130205",  # a type description without its fields
        "098500000000ff",  # more than four octets of length
        "0184ffffffff",  # an array of four thousand million elements
        "0284ffffffff00",
        "0484ffffffff",
        "0984ffffffff41",
        "0c84ffffffff41",
        "0a05414243",
        "07",  # no type
        "2a00",
        "13",  # compact-array without anything
        "13000401020304",  # null-data elements take no octets: their number would be anything
        "1302000401020304",  # likewise an empty structure
        "1301ffff01ffff01ffff0001 00",  # an array of arrays of arrays of nothing
        "130112",
        "13 06 02 0102",  # contents end inside an element
        "13 13 00",  # a compact-array in a compact-array
    ],
)
def test_hostile_values(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        axdr.decode_whole(bytes.fromhex(octets))


def test_skip_refuses_what_it_must() -> None:
    for octets in ("0980", "0184ffffffff", "0984ffffffff41", "2a", "13130100", "1301ff", "0212"):
        with pytest.raises(MalformedApdu):
            axdr.skip(bytes.fromhex(octets))


def test_depth_is_bounded() -> None:
    fits = b"\x02\x01" * (axdr.MAX_DEPTH) + b"\x00"
    assert axdr.decode_whole(fits).tag == DataType.STRUCTURE
    with pytest.raises(MalformedApdu, match="levels"):
        axdr.decode_whole(b"\x02\x01" * (axdr.MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(MalformedApdu, match="levels"):
        axdr.decode_whole(b"\x01\x01" * 20000 + b"\x00")
    with pytest.raises(MalformedApdu, match="levels"):
        axdr.decode_whole(b"\x13" + b"\x02\x01" * 20000 + b"\x00\x00")
    assert axdr.skip(b"\x01\x01" * 20000 + b"\x00") == 40001  # costs no stack


def test_the_number_of_values_is_bounded() -> None:
    count = axdr.MAX_ELEMENTS + 1
    with pytest.raises(MalformedApdu, match="values"):
        axdr.decode_whole(b"\x01" + axdr.encode_length(count) + bytes(count))


def test_few_octets_are_never_many_values() -> None:
    """Found by atheris: elements of a compact-array that take no octets, described thousandfold in 75."""
    found = bytes.fromhex(
        "01040204090c07e30c241f0217000000ff0001041301003201400200100001000100010000041000020404020410"
        "1301000100010000041000020404020410130100320140010032014002"
    )
    with pytest.raises(MalformedApdu, match="more values"):
        axdr.decode_whole(found)
    nulls = b"\x13" + b"\x01\x03\xe8" * 2 + b"\x02\x02\x00\x11" + b"\x01" + b"\x07"
    reader = axdr._Reader(nulls, 0)
    with pytest.raises(MalformedApdu, match="more values"):
        reader.value(0)
    assert 256 + 8 * len(nulls) < 400, "so many values at most"
    rows = b"\x13" + b"\x02\x02\x11\x00" + axdr.encode_length(200) + bytes(200)
    assert len(axdr.decode_whole(rows).value.elements) == 200  # type: ignore[union-attr]


ROW = TypeDescription(
    DataType.STRUCTURE,
    inner=(
        TypeDescription(DataType.OCTET_STRING),
        TypeDescription(DataType.LONG_UNSIGNED),
        TypeDescription(DataType.NULL),
        TypeDescription(DataType.ARRAY, 2, (TypeDescription(DataType.UNSIGNED),)),
    ),
)


def test_compact_array() -> None:
    def row(text: bytes, n: int, a: int, b: int) -> Data:
        return axdr.structure(
            axdr.octet_string(text),
            axdr.long_unsigned(n),
            axdr.NULL,
            axdr.array([axdr.unsigned(a), axdr.unsigned(b)]),
        )

    value = axdr.compact_array(ROW, [row(b"ab", 258, 1, 2), row(b"", 3, 4, 5)])
    octets = bytes.fromhex("13 0204 09 12 00 01000211 0c 026162 0102 0102 00 0003 0405")
    assert axdr.encode(value) == octets
    assert axdr.decode_whole(octets) == value
    assert axdr.skip(octets) == len(octets)
    assert value.plain() == [[b"ab", 258, None, [1, 2]], [b"", 3, None, [4, 5]]]


@pytest.mark.parametrize(
    "value",
    [
        axdr.unsigned(256),
        axdr.integer(-129),
        axdr.double_long_unsigned(-1),
        axdr.date_time(bytes(11)),
        Data(DataType.UNSIGNED, None),
        Data(DataType.OCTET_STRING, "text"),
        Data(DataType.NULL, 0),
        axdr.float32(1e300),
        axdr.compact_array(TypeDescription(DataType.UNSIGNED), [axdr.long(1)]),
        axdr.compact_array(ROW, [axdr.structure(axdr.NULL)]),
    ],
)
def test_values_that_do_not_fit_their_type(value: Data) -> None:
    with pytest.raises(LocalProtocolError):
        axdr.encode(value)


def test_text_that_is_no_text_is_kept_readable() -> None:
    assert axdr.decode_whole(b"\x0a\x02A\xff").value == "A\ufffd"


def test_words() -> None:
    assert DataType.DOUBLE_LONG_UNSIGNED.words == "double-long-unsigned"
    assert DataType.NULL.words == "null-data"


def leaves() -> st.SearchStrategy[Data]:
    text = st.text(max_size=40)
    return st.one_of(
        st.just(axdr.NULL),
        st.just(axdr.DONT_CARE),
        st.booleans().map(axdr.boolean),
        st.text("01", max_size=40).map(axdr.bits),
        st.binary(max_size=300).map(axdr.octet_string),
        text.map(axdr.utf8_string),
        text.map(axdr.visible_string),
        st.integers(-128, 127).map(axdr.integer),
        st.integers(0, 255).map(axdr.unsigned),
        st.integers(-(2**15), 2**15 - 1).map(axdr.long),
        st.integers(0, 2**16 - 1).map(axdr.long_unsigned),
        st.integers(-(2**31), 2**31 - 1).map(axdr.double_long),
        st.integers(0, 2**32 - 1).map(axdr.double_long_unsigned),
        st.integers(-(2**63), 2**63 - 1).map(axdr.long64),
        st.integers(0, 2**64 - 1).map(axdr.long64_unsigned),
        st.integers(0, 255).map(axdr.enum),
        st.floats(width=32, allow_nan=False).map(axdr.float32),
        st.floats(allow_nan=False).map(axdr.float64),
        st.binary(min_size=12, max_size=12).map(axdr.date_time),
    )


def trees() -> st.SearchStrategy[Data]:
    return st.recursive(
        leaves(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=5).map(axdr.array),
            st.lists(inner, max_size=5).map(lambda items: axdr.structure(*items)),
        ),
        max_leaves=20,
    ).filter(lambda d: _depth(d) <= axdr.MAX_DEPTH)


def _depth(data: Data) -> int:
    if isinstance(data.value, tuple):
        return 1 + max((_depth(item) for item in data.value), default=0)
    return 0


@given(trees())
def test_trees_there_and_back(tree: Data) -> None:
    octets = axdr.encode(tree)
    assert axdr.decode_whole(octets) == tree
    assert axdr.decode(octets + b"\x11") == (tree, len(octets))
    assert axdr.skip(octets) == len(octets)


def test_nan_stays_a_number() -> None:
    value = axdr.decode_whole(bytes.fromhex("177fc00000")).value
    assert isinstance(value, float)
    assert math.isnan(value)
