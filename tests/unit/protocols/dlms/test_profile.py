"""Profile buffers to columns: every way through the decoder gives the same rows, and no octets break it."""

from __future__ import annotations

import datetime as dt
import struct
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.domain import Flag, as_list
from edge_core.errors import MalformedApdu, ProtocolError
from edge_core.protocols.dlms.cosem import CaptureObject
from edge_core.protocols.dlms.datetime import (
    LOCAL_TO_UTC,
    UTC_TO_LOCAL,
    ClockRules,
    encode_datetime,
)
from edge_core.protocols.dlms.profile import ColumnMismatch, Plan, Rows, ScalerUnit

INDIA = ClockRules(UTC_TO_LOCAL, ZoneInfo("Asia/Kolkata"))
T0 = 1_763_999_100
CLOCK = CaptureObject(8, "0.0.1.0.0.255", 2)
STATUS = CaptureObject(1, "0.0.96.10.1.255", 2)
ENERGY = CaptureObject(3, "1.0.1.29.0.255", 2)
VOLTS = CaptureObject(3, "1.0.32.27.0.255", 2)
SCALERS = {("1.0.1.29.0.255", 2): ScalerUnit(1, "Wh"), ("1.0.32.27.0.255", 2): ScalerUnit(-1, "V")}


def size(n: int) -> bytes:
    return bytes([n]) if n < 0x80 else b"\x82" + n.to_bytes(2, "big")


def clock(at: int, status: int = 0) -> bytes:
    raw = bytearray(encode_datetime(at, INDIA))
    raw[11] = status
    return b"\x09\x0c" + bytes(raw)


def u8(n: int) -> bytes:
    return b"\x11" + bytes([n])


def u32(n: int) -> bytes:
    return b"\x06" + n.to_bytes(4, "big")


def structure(*cells: bytes) -> bytes:
    return b"\x02" + size(len(cells)) + b"".join(cells)


def array(rows: list[bytes]) -> bytes:
    return b"\x01" + size(len(rows)) + b"".join(rows)


NULL = b"\x00"


def plan(*objects: CaptureObject, **options: Any) -> Plan:
    options.setdefault("status", STATUS.obis)
    return Plan("1.0.99.1.0.255", objects, SCALERS, 900, INDIA, **options)


def usual(rows: int, status: Any = lambda i: 0) -> bytes:
    return array(
        [
            structure(
                clock(T0 + 900 * i),
                u8(status(i)),
                u32(70_000 + i),
                b"\x12" + struct.pack(">H", 2300 + i % 7),
            )
            for i in range(rows)
        ]
    )


def only(found: list[Rows]) -> Rows:
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("rows", [1, 4, 23, 24, 79, 80, 96, 300])
def test_uniform_buffer(rows: int) -> None:
    p = plan(CLOCK, STATUS, ENERGY, VOLTS)
    for _ in range(2):  # as first met, and by the layout that was learned
        got = only(p.decode(usual(rows)))
        assert as_list(got.times) == [T0 + 900 * i for i in range(rows)]
        assert [as_list(c) for c in got.columns] == [
            [70_000 + i for i in range(rows)],
            [2300 + i % 7 for i in range(rows)],
        ]
        assert (got.occ, got.flags, got.tz, got.unplaced) == ((), (), 330, 0)
    assert [(c.obis, c.unit, c.scaler) for c in got.layout.cols] == [
        ("1.0.1.29.0.255", "Wh", 1),
        ("1.0.32.27.0.255", "V", -1),
    ]


@pytest.mark.parametrize("rows", [4, 100])
def test_status_column_and_clock_status_become_flags(rows: int) -> None:
    p = plan(CLOCK, STATUS, ENERGY, VOLTS)
    got = only(p.decode(usual(rows, lambda i: 0x84 if i in (1, 2) else 0x02 if i == 3 else 0)))
    assert got.flags == ((1, 2, Flag.POWER_DOWN | Flag.NOT_VALID), (3, 1, Flag.CLOCK_INVALID))
    late = array(
        [
            structure(clock(T0 + 900 * i, 0x80 if i == 1 else 0), u8(1 if i == 1 else 0))
            for i in range(rows)
        ]
    )
    assert only(plan(CLOCK, STATUS).decode(late)).flags == ((1, 1, Flag.DST | Flag.CRITICAL),)


@pytest.mark.parametrize("rows", [4, 100])
def test_one_wrong_tag_anywhere_is_never_read_as_the_learned_layout(rows: int) -> None:
    p = plan(CLOCK, STATUS, ENERGY, VOLTS)
    buffer = usual(rows)
    p.decode(buffer)
    row = (len(buffer) - (2 if rows < 128 else 4)) // rows
    for at in (
        0,
        1,
        len(buffer) - 3,
        len(buffer) - 3 - row,
    ):  # array, count, tags of the last column
        broken = bytearray(buffer)
        broken[at] ^= 0x10
        try:
            found = p.decode(bytes(broken))
        except ProtocolError:
            continue
        assert [as_list(c) for c in only(found).columns] != [[], []]
        assert at > 1


@pytest.mark.parametrize("rows", [3, 90])
def test_step_back_gives_occurrences_in_buffer_order(rows: int) -> None:
    times = [T0 + 900 * i for i in range(rows)] + [T0 + 900 * i for i in range(rows - 2, rows + 1)]
    got = only(
        plan(CLOCK, ENERGY).decode(
            array([structure(clock(t), u32(i)) for i, t in enumerate(times)])
        )
    )
    assert as_list(got.times) == times
    assert got.occ == ((rows, 1), (rows + 1, 1))


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("told", [True, False])
def test_newest_first_is_turned(rows: int, told: bool) -> None:
    oldest_first = [structure(clock(T0 + 900 * i), u8(i % 3 == 0), u32(i)) for i in range(rows)]
    straight = only(plan(CLOCK, STATUS, ENERGY).decode(array(oldest_first)))
    turned = only(plan(CLOCK, STATUS, ENERGY, newest_first=told).decode(array(oldest_first[::-1])))
    assert as_list(turned.times) == as_list(straight.times)
    assert as_list(turned.columns[0]) == list(range(rows))
    assert turned.flags == straight.flags


def test_null_data_is_the_row_above_and_one_period_later() -> None:
    rows = [
        structure(clock(T0), u8(4), u32(7)),
        structure(NULL, NULL, NULL),
        structure(NULL, u8(0), u32(9)),
    ]
    got = only(plan(CLOCK, STATUS, ENERGY).decode(array(rows)))
    assert as_list(got.times) == [T0, T0 + 900, T0 + 1800]
    assert as_list(got.columns[0]) == [7, 7, 9]
    assert got.flags == ((0, 2, Flag.NOT_VALID),)


def test_null_data_newest_first() -> None:
    rows = [structure(clock(T0), u32(9)), structure(NULL, NULL), structure(NULL, u32(7))]
    got = only(plan(CLOCK, ENERGY, newest_first=True).decode(array(rows)))
    assert as_list(got.times) == [T0 - 1800, T0 - 900, T0]
    assert as_list(got.columns[0]) == [7, 9, 9]


def test_null_data_may_mean_no_reading() -> None:
    rows = [structure(clock(T0), u32(7)), structure(clock(T0 + 900), NULL)]
    assert as_list(
        only(plan(CLOCK, ENERGY, null_is_same=False).decode(array(rows))).columns[0]
    ) == [7, None]


def test_a_public_capture_of_null_compression() -> None:
    # tests of pwitab/dlms-cosem (MIT), see tests/data/frames/SOURCES.md: profile_hourly_null_compressed
    buffer = bytes.fromhex(
        "01040204090c07e30c1f0217000000ffc400110606000005ed0600000654020400110606000005ed0600000654"
        "020400110606000005ed0600000654020400110606000005ed0600000654"
    )
    rules = ClockRules(LOCAL_TO_UTC, ZoneInfo("Europe/Stockholm"))
    objects = [
        CLOCK,
        STATUS,
        CaptureObject(3, "1.0.1.8.0.255", 2),
        CaptureObject(3, "1.0.2.8.0.255", 2),
    ]
    got = only(Plan("1.0.99.1.0.255", objects, {}, 3600, rules, status=STATUS.obis).decode(buffer))
    first = int(dt.datetime(2019, 12, 31, 22, tzinfo=dt.UTC).timestamp())
    assert as_list(got.times) == [first + 3600 * i for i in range(4)]
    assert [as_list(c) for c in got.columns] == [[1517] * 4, [1620] * 4]
    assert got.tz == 60


def test_shortened_rows_and_delta_types() -> None:
    rows = [
        structure(clock(T0), u32(1000), u32(50)),
        structure(NULL, b"\x1f\x05"),  # delta-unsigned 5, trailing column left out
        structure(NULL, b"\x1c\xfe", b"\x20\x01\x00"),  # delta-integer -2, delta-long-unsigned 256
        structure(NULL, b"\x1c\xfe", b"\x20\x01\x00"),
    ]
    got = only(plan(CLOCK, ENERGY, VOLTS).decode(array(rows)))
    assert [as_list(c) for c in got.columns] == [[1000, 1005, 1003, 1001], [50, 50, 306, 562]]


def test_a_delta_without_a_value_above_is_no_reading() -> None:
    got = only(
        plan(CLOCK, ENERGY).decode(
            array([structure(clock(T0), b"\x1f\x05"), structure(NULL, u32(3))])
        )
    )
    assert as_list(got.columns[0]) == [None, 3]


def test_compact_array() -> None:
    row = encode_datetime(T0, INDIA), encode_datetime(T0 + 900, INDIA)
    contents = (
        b"\x0c" + row[0] + struct.pack(">IB", 7, 4) + b"\x0c" + row[1] + struct.pack(">IB", 8, 0)
    )
    buffer = b"\x13\x02\x03\x09\x06\x11" + size(len(contents)) + contents
    got = only(plan(CLOCK, ENERGY, STATUS).decode(buffer))
    assert as_list(got.times) == [T0, T0 + 900]
    assert as_list(got.columns[0]) == [7, 8]
    assert got.flags == ((0, 1, Flag.NOT_VALID),)
    with pytest.raises(ColumnMismatch):
        plan(CLOCK, ENERGY).decode(buffer)
    for cut in range(1, len(buffer)):
        with pytest.raises(MalformedApdu):
            plan(CLOCK, ENERGY, STATUS).decode(buffer[:cut])


@pytest.mark.parametrize("rows", [2, 100])
def test_columns_of_every_type(rows: int) -> None:
    objects = [
        CLOCK,
        CaptureObject(4, "1.0.1.6.0.255", 2),
        CaptureObject(4, "1.0.1.6.0.255", 5),
        CaptureObject(1, "0.0.96.1.0.255", 2),
        CaptureObject(1, "0.0.96.11.0.255", 2),
        CaptureObject(3, "1.0.13.7.0.255", 2),
        CaptureObject(3, "1.0.15.8.0.255", 2),
        CaptureObject(3, "1.0.16.8.0.255", 2),
        CaptureObject(1, "0.0.94.91.18.255", 2),
    ]

    def row(i: int) -> bytes:
        return structure(
            clock(T0 + 900 * i),
            u32(i),
            clock(T0 + 60 * i),
            b"\x09\x03" + b"M%02d" % (i % 100),
            b"\x12\x00\x65",
            b"\x17" + struct.pack(">f", 0.9876),
            b"\x15" + (2**64 - 1 - i).to_bytes(8, "big"),
            b"\x14" + (-5 - i).to_bytes(8, "big", signed=True),
            b"\x04\x0a\x80\x40",
        )

    got = only(plan(*objects).decode(array([row(i) for i in range(rows)])))
    assert [(c.attribute, c.unit, c.scaler) for c in got.layout.cols] == [
        (2, "", 0), (5, "epoch", 0), (2, "hex", 0), (2, "", 0), (2, "", -3), (2, "", 0), (2, "", 0), (2, "bits", 0),
    ]  # fmt: skip
    last = [as_list(c)[-1] for c in got.columns]
    i = rows - 1
    assert last == [
        i,
        T0 + 60 * i,
        (b"M%02d" % (i % 100)).hex(),
        101,
        988,
        2**64 - 1 - i,
        -5 - i,
        0x8040,
    ]


def test_a_column_that_changes_from_number_to_text_cuts_the_block() -> None:
    cells = [u32(5), u32(6), b"\x09\x01A", NULL, u32(7)]
    buffer = array(
        [structure(clock(T0 + 900 * i if i != 3 else T0), c) for i, c in enumerate(cells)]
    )
    found = plan(CLOCK, ENERGY).decode(buffer)
    assert [[as_list(c) for c in part.columns] for part in found] == [
        [[5, 6]],
        [["41", "41"]],
        [[7]],
    ]
    assert [part.layout.cols[0].unit for part in found] == ["Wh", "hex", "Wh"]
    assert [part.occ for part in found] == [(), ((1, 1),), ()]


def test_strings_longer_than_a_column_carries_are_no_reading() -> None:
    name = CaptureObject(1, "0.0.96.1.0.255", 2)
    got = only(plan(CLOCK, name).decode(array([structure(clock(T0), b"\x09\x41" + bytes(65))])))
    assert as_list(got.columns[0]) == [None]


@pytest.mark.parametrize("rows", [3, 100])
def test_a_row_without_an_instant_is_counted_and_left_out(rows: int) -> None:
    cells = [
        structure(clock(T0 + 900 * i) if i != 1 else b"\x09\x0c" + b"\xff" * 12, u8(i == 2), u32(i))
        for i in range(rows)
    ]
    got = only(plan(CLOCK, STATUS, ENERGY).decode(array(cells)))
    assert got.unplaced == 1
    assert as_list(got.columns[0]) == [0, *range(2, rows)]
    assert as_list(got.times) == [T0, *(T0 + 900 * i for i in range(2, rows))]
    assert got.flags == ((1, 1, Flag.CRITICAL),)


def test_a_clock_cell_of_another_length_or_type_is_no_instant() -> None:
    for cell in (b"\x09\x05hello", u32(17), b"\x00"):
        for rows in (2, 90):
            got = only(plan(CLOCK, ENERGY).decode(array([structure(cell, u32(1))] * rows)))
            assert (got.unplaced, as_list(got.times)) == (rows, [])


def test_the_same_register_twice_is_told_apart_by_its_data_index() -> None:
    objects = [
        CLOCK,
        CaptureObject(3, "1.0.1.8.0.255", 2, 1),
        CaptureObject(3, "1.0.1.8.0.255", 2, 2),
    ]
    assert [c.attribute for c in plan(*objects).layout.cols] == [2, 2 * 16 + 2]


def test_no_rows() -> None:
    assert plan(CLOCK, ENERGY).decode(b"\x01\x00") == []
    assert plan(CLOCK, ENERGY).decode(b"\x00") == []


def test_a_profile_without_a_clock_is_refused_unless_the_model_names_a_column() -> None:
    billing = CaptureObject(1, "0.0.0.1.2.255", 2)
    with pytest.raises(MalformedApdu, match="no clock"):
        plan(billing, ENERGY)
    got = only(
        plan(billing, ENERGY, clock="0.0.0.1.2.255").decode(array([structure(clock(T0), u32(1))]))
    )
    assert as_list(got.times) == [T0]


@pytest.mark.parametrize(
    ("buffer", "error"),
    [
        (b"", MalformedApdu),
        (b"\x01", MalformedApdu),
        (b"\x01\x84\xff\xff\xff\xff", MalformedApdu),
        (b"\x01\x80", MalformedApdu),
        (b"\x01\x85\x00\x00\x00\x00\x01", MalformedApdu),
        (b"\x01\x00\x00", MalformedApdu),
        (b"\x01\x01\x02\x03" + clock(T0) + u32(1) + u32(2), ColumnMismatch),
        (b"\x01\x01\x02\x01" + clock(T0), ColumnMismatch),
        (b"\x01\x01\x02\x02" + clock(T0) + u32(1) + b"\x00", MalformedApdu),
        (b"\x01\x02\x02\x02" + clock(T0) + u32(1), MalformedApdu),
        (b"\x01\x01\x02\x02" + clock(T0) + b"\x09\x84\xff\xff\xff\xff", MalformedApdu),
        (b"\x01\x01\x02\x02" + clock(T0) + b"\x02\x84\xff\xff\xff\xff", MalformedApdu),
        (b"\x01\x01\x02\x02" + clock(T0) + b"\x02\x01" * 60 + b"\x00", MalformedApdu),
        (b"\x01\x01\x02\x02" + clock(T0) + b"\x63\x00", MalformedApdu),
        (b"\x02\x01\x00", MalformedApdu),
        (b"\x13\x02\x02\x09\x06\x84\xff\xff\xff\xff", MalformedApdu),
        (b"\x13\x02\x02\x00\x00\x02\x00\x00", MalformedApdu),
    ],
)
def test_what_is_wrong_is_refused(buffer: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        plan(CLOCK, ENERGY).decode(buffer)


CELLS = st.one_of(
    st.integers(0, 2**32 - 1).map(u32),
    st.integers(0, 255).map(u8),
    st.just(NULL),
    st.integers(0, 255).map(lambda n: b"\x1f" + bytes([n])),
    st.binary(max_size=6).map(lambda b: b"\x09" + bytes([len(b)]) + b),
)
CLOCKS = st.one_of(st.integers(0, 50).map(lambda i: clock(T0 + 900 * i)), st.just(NULL))


@given(st.lists(st.tuples(CLOCKS, CELLS, CELLS), min_size=1, max_size=12), st.booleans())
def test_rows_of_any_layouts_against_a_plain_reading_of_the_rules(
    rows: list[tuple[bytes, ...]], known: bool
) -> None:
    p = plan(CLOCK, ENERGY, VOLTS)
    if known:
        p.decode(usual_pair())
    buffer = array([structure(*cells) for cells in rows])
    got: list[tuple[Any, ...]] = []
    for part in p.decode(buffer):
        got += list(zip(as_list(part.times), *(as_list(c) for c in part.columns), strict=True))
    assert sorted(map(repr, got)) == sorted(map(repr, plain(rows)))


def usual_pair() -> bytes:
    return array([structure(clock(T0 + 900 * i), u32(i), u32(i)) for i in range(3)])


def plain(rows: list[tuple[bytes, ...]]) -> list[tuple[Any, ...]]:
    """The rules of compression, written down once more, row by row."""
    out: list[tuple[Any, ...]] = []
    at: int | None = None
    above: list[Any] = [None, None]
    for stamp, *cells in rows:
        if stamp != NULL:
            at = next(T0 + 900 * i for i in range(51) if clock(T0 + 900 * i) == stamp)
        elif at is not None:
            at += 900
        for k, cell in enumerate(cells):
            if cell[0] in (6, 17):
                above[k] = int.from_bytes(cell[1:], "big")
            elif cell[0] == 9:
                above[k] = cell[2:].hex()
            elif cell[0] == 31:
                above[k] = above[k] + cell[1] if isinstance(above[k], int) else None
        if at is not None:
            out.append((at, *above))
    return out


@settings(max_examples=300)
@given(st.data())
def test_any_mutation_of_a_buffer_is_read_or_refused(data: st.DataObject) -> None:
    buffer = bytearray(usual(data.draw(st.sampled_from([3, 100]))))
    for _ in range(data.draw(st.integers(1, 4))):
        buffer[data.draw(st.integers(0, len(buffer) - 1))] = data.draw(st.integers(0, 255))
    p = plan(CLOCK, STATUS, ENERGY, VOLTS)
    p.decode(usual(3))
    try:
        found = p.decode(
            bytes(
                buffer[: data.draw(st.integers(0, len(buffer)))]
                if data.draw(st.booleans())
                else buffer
            )
        )
    except ProtocolError:
        return
    for part in found:
        assert all(len(column) == len(part.times) for column in part.columns)
