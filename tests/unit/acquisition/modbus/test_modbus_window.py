"""Entries behind a history window: stamps, hours that come twice, channels side by side."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.acquisition.drivers.modbus.window import (
    Channel,
    Entry,
    channel_of,
    civil_before,
    entries_of,
    rows_of,
    stamp_of,
    stamp_words,
    utc_of,
)
from edge_core.config.models import load_model
from edge_core.domain import Flag

BERLIN = ZoneInfo("Europe/Berlin")
HISTORY = load_model("abb-a43-a44").history
ENERGY = (0x0100, 0x0108, 0x00FF)
NOTHING = (0xFFFF,) * 8


@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2099, 12, 31, 23, 59, 59)))
def test_stamps_come_back(moment):
    moment = moment.replace(microsecond=0)
    assert stamp_of(stamp_words(moment)) == moment


def test_the_manuals_octets():
    assert stamp_words(dt.datetime(2010, 1, 1, 0, 15, 0)) == (0x0A01, 0x0100, 0x0F00)


def test_a_start_outside_the_century_is_refused():
    with pytest.raises(ValueError, match="century"):
        stamp_words(dt.datetime(1999, 12, 31))


@given(st.tuples(*[st.integers(0, 0xFFFF)] * 3))
def test_any_registers_are_a_time_or_none(words):
    moment = stamp_of(words)
    assert moment is None or stamp_words(moment) == words


@pytest.mark.parametrize(
    "zone", [BERLIN, ZoneInfo("Asia/Kolkata"), ZoneInfo("Australia/Lord_Howe")]
)
@given(begin=st.integers(1_700_000_000 // 900, 1_790_000_000 // 900), rows=st.integers(1, 200))
def test_whatever_the_zone_does_the_order_tells_the_times(zone, begin, rows):
    """Stamps of consecutive quarter hours, from an unambiguous one on, as a meter's civil clock writes them."""
    times = [900 * (begin + row) for row in range(rows)]
    before = int(civil_before(times[0], zone).replace(tzinfo=zone).timestamp())
    whole = [at for at in range(before // 900 * 900, times[-1] + 1, 900) if at >= before]
    stamps = [dt.datetime.fromtimestamp(at, zone).replace(tzinfo=None) for at in whole]
    assert utc_of(stamps, zone) == whole


@given(st.integers(1_700_000_000, 1_790_000_000))
def test_a_start_is_never_after_what_is_wanted_and_stands_for_one_instant(at):
    start = civil_before(at, BERLIN)
    first = start.replace(tzinfo=BERLIN, fold=0)
    assert first.timestamp() == start.replace(tzinfo=BERLIN, fold=1).timestamp()
    assert 0 <= at - first.timestamp() < 3 * 3600


@pytest.mark.parametrize(
    ("quantity", "scaler", "interval", "data_type", "due"),
    [
        (ENERGY, 1, (0, 15), 21, Channel(3, "1.0.1.8.0.255", 1, "uint64", 15)),
        (ENERGY, 0xFFFE, (0, 15), 20, Channel(3, "1.0.1.8.0.255", -2, "int64", 15)),
        ((0, 0, 0), 1, (0, 15), 21, None),
        ((0xFFFF,) * 3, 1, (0, 15), 21, None),
        (ENERGY, 1, (0, 15), 22, None),
        (ENERGY, 1, (0, 0), 21, None),
        (ENERGY, 1, (1, 15), 21, None),
        (ENERGY, 200, (0, 15), 21, None),
    ],
)
def test_what_a_channel_stores(quantity, scaler, interval, data_type, due):
    assert channel_of(HISTORY, 3, quantity, scaler, interval, data_type) == due


def entry(at: dt.datetime, status: int, value: int) -> tuple[int, ...]:
    words = value.to_bytes(8, "big")
    raw = tuple(int.from_bytes(words[i : i + 2], "big") for i in range(0, 8, 2))
    return (*stamp_words(at), status, *raw)


def test_a_block_ends_at_the_first_entry_that_is_none():
    at = dt.datetime(2026, 3, 1, 12, 15)
    words = (*entry(at, 1, 4_000), *entry(at, 0b10, 7), *NOTHING, *entry(at, 1, 9))
    found = entries_of(HISTORY, "uint64", words)
    assert found == [
        Entry(at, 0, 4_000),
        Entry(at, int(Flag.NOT_VALID | Flag.POWER_DOWN), None),
    ]


def test_a_stamp_that_is_no_time_is_named():
    with pytest.raises(ValueError, match="entry 1 is stamped 1a 0d 01 00 00 00"):
        entries_of(HISTORY, "uint64", (0x1A0D, 0x0100, 0, 1, 0, 0, 0, 1))


@given(st.lists(st.integers(0, 0xFFFF), max_size=40))
def test_any_registers_are_entries_or_an_error_that_names_the_stamp(words):
    try:
        found = entries_of(HISTORY, "int64", words)
    except ValueError:
        stamps = [words[i : i + 3] for i in range(0, len(words) - 7, 8)]
        assert any(stamp_of(stamp) is None for stamp in stamps)
        return
    assert len(found) <= len(words) // 8


def flat(value: int | None, flags: int = 0) -> Entry:
    return Entry(dt.datetime(2026, 1, 1), flags, value)


def test_channels_are_joined_by_time():
    rows = rows_of([[(900, flat(1)), (1800, flat(2))], [(1800, flat(7)), (2700, flat(8, 64))]])
    assert (rows.times, rows.occ) == ([900, 1800, 2700], [])
    assert rows.columns == [[1, 2, None], [None, 7, 8]]
    assert rows.flags == [0, 0, 64]


def test_a_time_that_is_stored_twice_is_an_occurrence():
    rows = rows_of([[(900, flat(1)), (1800, flat(2)), (1800, flat(3))]])
    assert rows.times == [900, 1800, 1800]
    assert rows.occ == [(2, 1)]
    assert rows.columns == [[1, 2, 3]]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_no_entry_is_lost_or_doubled(channels):
    timed = [[(900 * at, flat(value)) for at, value in channel] for channel in channels]
    rows = rows_of(timed)
    keys = list(
        zip(rows.times, [dict(rows.occ).get(i, 0) for i in range(len(rows.times))], strict=True)
    )
    assert len(set(keys)) == len(keys)
    for channel, column in zip(timed, rows.columns, strict=True):
        assert sorted(v for v in column if v is not None) == sorted(e.value for _, e in channel)
