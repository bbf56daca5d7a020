"""COSEM date-time: both deviation conventions, unspecified fields, DST, a column at once."""

import datetime as dt
import struct
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.domain import Flag
from edge_core.protocols.dlms.datetime import (
    LOCAL_TO_UTC,
    UTC_TO_LOCAL,
    ClockRules,
    decode_array,
    decode_column,
    decode_datetime,
    encode_datetime,
)

INDIA = ClockRules(UTC_TO_LOCAL, ZoneInfo("Asia/Kolkata"))
BERLIN = ClockRules(LOCAL_TO_UTC, ZoneInfo("Europe/Berlin"))


def octets(text: str, deviation: int = -0x8000, status: int = 0, hundredths: int = 0) -> bytes:
    t = dt.datetime.fromisoformat(text)
    return struct.pack(
        ">HBBBBBBBhB",
        t.year,
        t.month,
        t.day,
        t.isoweekday(),
        t.hour,
        t.minute,
        t.second,
        hundredths,
        deviation,
        status,
    )


def utc(text: str) -> int:
    return int(dt.datetime.fromisoformat(text + "+00:00").timestamp())


def test_india_writes_utc_to_local() -> None:
    moment = decode_datetime(octets("2025-11-24 05:30:00", 330), INDIA)
    assert (moment.at, moment.flags, moment.east_min) == (utc("2025-11-24 00:00:00"), 0, 330)


def test_blue_book_writes_local_to_utc() -> None:
    moment = decode_datetime(octets("2025-07-01 02:00:00", -120, 0x80), BERLIN)
    assert (moment.at, moment.flags, moment.east_min) == (utc("2025-07-01 00:00:00"), Flag.DST, 120)


def test_deviation_that_stays_in_summer() -> None:
    rules = ClockRules(LOCAL_TO_UTC, ZoneInfo("Europe/Berlin"), deviation_holds_dst=False)
    assert decode_datetime(octets("2025-07-01 02:00:00", -60, 0x80), rules).at == utc(
        "2025-07-01 00:00:00"
    )
    assert decode_datetime(octets("2025-01-01 02:00:00", -60, 0x00), rules).at == utc(
        "2025-01-01 01:00:00"
    )
    assert decode_datetime(encode_datetime(utc("2025-07-01 00:00:00"), rules), rules).at == utc(
        "2025-07-01 00:00:00"
    )


def test_unspecified_deviation_means_the_configured_zone() -> None:
    assert decode_datetime(octets("2025-07-01 02:00:00"), BERLIN).at == utc("2025-07-01 00:00:00")
    assert decode_datetime(octets("2025-07-01 05:30:00", status=0xFF), INDIA) == (
        utc("2025-07-01 00:00:00"),
        0,
        330,
        utc("2025-07-01 05:30:00"),
        False,
    )


def test_a_deviation_beyond_the_earth_is_flagged_and_ignored() -> None:
    moment = decode_datetime(octets("2025-07-01 05:30:00", 9000), INDIA)
    assert moment.at == utc("2025-07-01 00:00:00")
    assert moment.flags == Flag.CLOCK_INVALID


@pytest.mark.parametrize(
    ("status", "flags"),
    [(0, 0), (0x01, 16), (0x02, 16), (0x04, 0), (0x08, 16), (0x80, 4), (0xFF, 0)],
)
def test_status_octet(status: int, flags: int) -> None:
    assert decode_datetime(octets("2025-01-01 00:00:00", 0, status), BERLIN).flags == flags


def test_unspecified_seconds_and_hundredths_are_zero() -> None:
    raw = bytearray(octets("2025-01-01 10:15:00", 330))
    raw[7] = raw[8] = 0xFF
    assert decode_datetime(bytes(raw), INDIA).at == utc("2025-01-01 04:45:00")


@pytest.mark.parametrize(
    ("index", "octet"),
    [
        (0, 0xFF),
        (2, 0xFF),
        (2, 0xFE),
        (2, 13),
        (3, 0xFD),
        (3, 32),
        (3, 0),
        (5, 24),
        (5, 0xFF),
        (6, 60),
    ],
)
def test_what_names_no_instant_is_none(index: int, octet: int) -> None:
    raw = bytearray(octets("2025-01-01 10:15:00", 330))
    raw[index] = octet
    if index == 0:
        raw[1] = octet
    assert decode_datetime(bytes(raw), INDIA).at is None


@pytest.mark.parametrize("raw", [b"", b"\x07\xe9", bytes(13)])
def test_other_lengths_name_no_instant(raw: bytes) -> None:
    assert decode_datetime(raw, INDIA).at is None


def test_29_february() -> None:
    assert decode_datetime(octets("2024-02-29 00:00:00", 0), BERLIN).at == utc(
        "2024-02-29 00:00:00"
    )
    raw = bytearray(octets("2025-02-28 00:00:00", 0))
    raw[3] = 29
    assert decode_datetime(bytes(raw), BERLIN).at is None


REPEATED = [f"2025-10-26 {h:02d}:{m:02d}:00" for h in (1, 2, 2, 3) for m in (0, 30)]
REPEATED_UTC = [utc("2025-10-25 23:00:00") + 1800 * i for i in range(8)]


def test_repeated_hour_by_the_order_of_rows() -> None:
    column = decode_column([octets(t, status=0xFF) for t in REPEATED], BERLIN)
    assert column.at == REPEATED_UTC
    assert column.east_min == 60
    assert not any(column.flags)


def test_repeated_hour_by_the_dst_bit() -> None:
    cells = [octets(t, status=0x80 if i < 4 else 0) for i, t in enumerate(REPEATED)]
    assert decode_column(cells, BERLIN).at == REPEATED_UTC
    assert decode_column(cells[3:], BERLIN).at == REPEATED_UTC[3:]  # also without the drop in sight
    assert decode_column(cells[:4] + cells[4:5], BERLIN).at == REPEATED_UTC[:5]


def test_one_passing_alone_follows_its_neighbours_else_it_is_flagged() -> None:
    cells = [octets(t, status=0xFF) for t in REPEATED]
    assert decode_column(cells[:4], BERLIN).at == REPEATED_UTC[:4]
    assert decode_column(cells[4:], BERLIN).at == REPEATED_UTC[4:]
    doubtful = decode_column(cells[2:4], BERLIN)
    assert doubtful.at == REPEATED_UTC[2:4]
    assert set(doubtful.flags) == {Flag.CLOCK_INVALID}


def test_null_cells_count_on_from_the_row_above_also_in_the_repeated_hour() -> None:
    cells = [octets(t, status=0xFF) for t in REPEATED]
    with_nulls = [cells[0], None, cells[2], None, cells[4], None, cells[6], None]
    assert decode_column(with_nulls, BERLIN, 1800).at == REPEATED_UTC
    assert decode_column([None, cells[0], None], BERLIN, 1800).at == [None, *REPEATED_UTC[:2]]
    assert decode_column([cells[0], None], BERLIN, 0).at == [REPEATED_UTC[0], None]


def test_an_hour_that_does_not_exist_is_taken_before_the_change() -> None:
    assert decode_datetime(octets("2025-03-30 02:30:00"), BERLIN).at == utc("2025-03-30 01:30:00")


INSTANTS = st.integers(0, 4_000_000_000)
RULES = st.sampled_from([INDIA, BERLIN, ClockRules(UTC_TO_LOCAL, ZoneInfo("America/St_Johns"))])


@given(INSTANTS, RULES, st.booleans())
def test_encode_then_decode(at: int, rules: ClockRules, weekday: bool) -> None:
    assert decode_datetime(encode_datetime(at, rules, weekday=weekday), rules).at == at


@given(st.lists(st.binary(min_size=12, max_size=12), max_size=8), RULES)
def test_any_octets_are_an_instant_or_none(cells: list[bytes], rules: ClockRules) -> None:
    column = decode_column(cells, rules)
    assert len(column.at) == len(column.flags) == len(cells)


@given(
    st.lists(INSTANTS, min_size=1, max_size=30),
    RULES,
    st.sampled_from(["deviation", "unspecified"]),
    st.lists(st.integers(0, 255), min_size=30, max_size=30),
)
def test_array_agrees_with_the_column(
    at: list[int], rules: ClockRules, how: str, status: list[int]
) -> None:
    cells = []
    for t, bits in zip(at, status, strict=False):
        raw = bytearray(encode_datetime(t, rules, deviation=how == "deviation"))
        raw[11] = bits
        cells.append(bytes(raw))
    array = decode_array(b"".join(cells), rules)
    if array is None:
        assert how == "unspecified"  # days with a change are left to the column
        return
    column = decode_column(cells, rules)
    assert isinstance(array.at, np.ndarray)
    assert array.at.tolist() == list(column.at)
    assert list(array.flags) == list(column.flags)
    assert array.east_min == column.east_min


@given(st.lists(st.binary(min_size=12, max_size=12), min_size=1, max_size=8), RULES)
def test_array_refuses_or_agrees_on_any_octets(cells: list[bytes], rules: ClockRules) -> None:
    array = decode_array(b"".join(cells), rules)
    if array is not None:
        assert list(array.at) == list(decode_column(cells, rules).at)
