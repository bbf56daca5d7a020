"""The simulator's own octets: date-times with both signs, bounded parsing, GCM with a short tag."""

from __future__ import annotations

import contextlib
import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.civil import Zone, zone
from simulators.dlms import codec

KEY, AUTH, TITLE = bytes(range(16)), bytes(range(0xD0, 0xE0)), b"MTR00001"
ZURICH, INDIA = zone("Europe/Zurich"), zone("330")


@settings(deadline=None)
@given(st.integers(1_500_000_000, 2_300_000_000))
def test_zone_agrees_with_the_calendar(at: int) -> None:
    want = dt.datetime.fromtimestamp(at, ZoneInfo("Europe/Zurich"))
    offset = want.utcoffset()
    assert offset is not None
    assert int(ZURICH.offset_min(at)) * 60 == offset.total_seconds()
    assert bool(ZURICH.summer(at)) == bool(want.dst())
    midnight = dt.datetime.fromtimestamp(ZURICH.midnight_after(at), ZoneInfo("Europe/Zurich"))
    assert (midnight.hour, midnight.minute, midnight.second) == (0, 0, 0)
    assert midnight.date() == want.date() + dt.timedelta(days=1)


def test_a_zone_without_summer_time() -> None:
    assert Zone("Asia/Kolkata").standard_min == 330
    assert int(Zone("-60").offset_min(1_764_000_000)) == -60


@settings(deadline=None)
@given(st.integers(1_500_000_000, 2_300_000_000), st.sampled_from([(ZURICH, False), (INDIA, True)]))
def test_date_times_come_back(at: int, how: tuple[Zone, bool]) -> None:
    place, east = how
    octets = codec.date_time(at, place, east=east)
    assert codec.read_clock(octets, place, east=east, default=0) == at
    year, month, day = int.from_bytes(octets[:2], "big"), octets[2], octets[3]
    assert octets[4] == dt.date(year, month, day).isoweekday()


@pytest.mark.parametrize("deviation", [330, -330, -0x8000])
def test_a_client_with_the_other_sign_means_the_wall_clock(deviation: int) -> None:
    octets = bytearray(codec.date_time(1_764_000_000, INDIA, east=True))
    octets[9:11] = deviation.to_bytes(2, "big", signed=True)
    assert codec.read_clock(bytes(octets), INDIA, east=True, default=0) == 1_764_000_000


def test_another_deviation_is_honoured_and_unspecified_dates_are_the_default() -> None:
    utc = bytearray(codec.date_time(1_764_000_000 - 330 * 60, INDIA, east=True))
    utc[9:11] = b"\0\0"
    assert codec.read_clock(bytes(utc), INDIA, east=True, default=0) == 1_764_000_000
    assert codec.read_clock(b"\xff\xff" + bytes(utc[2:]), INDIA, east=True, default=-7) == -7
    for at, octet in ((2, 13), (3, 0), (5, 24), (6, 60)):
        wrong = bytearray(utc)
        wrong[at] = octet
        with pytest.raises(codec.BadRequest):
            codec.read_clock(bytes(wrong), INDIA, east=True, default=0)
    with pytest.raises(codec.BadRequest):
        codec.read_clock(bytes(11), INDIA, east=True, default=0)


def test_green_book_clock_sign() -> None:
    assert codec.date_time(1_764_000_000, INDIA, east=True)[9:] == bytes.fromhex("014a00")
    assert codec.date_time(1_764_000_000, ZURICH, east=False)[9:] == bytes.fromhex(
        "ffc400"
    )  # CET is -60
    assert codec.date_time(1_750_000_000, ZURICH, east=False)[9:] == bytes.fromhex(
        "ff8880"
    )  # summer: -120 and the bit


def test_seal_is_gcm_with_twelve_octets_of_tag() -> None:
    body = codec.seal(KEY, AUTH, TITLE, 7, b"plain text")
    want = AESGCM(KEY).encrypt(TITLE + b"\0\0\0\x07", b"plain text", b"\x30" + AUTH)
    assert body == b"\x30\0\0\0\x07" + want[:-4]
    assert codec.unseal(KEY, AUTH, TITLE, body) == b"plain text"
    for i in (5, len(body) - 1):
        forged = bytearray(body)
        forged[i] ^= 1
        with pytest.raises(codec.BadTag):
            codec.unseal(KEY, AUTH, TITLE, bytes(forged))
    for broken in (body[:16], b""):
        with pytest.raises(codec.BadTag):
            codec.unseal(KEY, AUTH, TITLE, broken)
    with pytest.raises(codec.BadTag):
        codec.unseal(KEY, AUTH, b"short", body)


def test_gmac_is_gcm_over_nothing() -> None:
    token = codec.gmac(KEY, AUTH, TITLE, 9, b"challenge")
    want = AESGCM(KEY).encrypt(TITLE + b"\0\0\0\x09", b"", b"\x10" + AUTH + b"challenge")
    assert token == b"\x10\0\0\0\x09" + want[:12]
    assert len(codec.hls2(KEY, b"12345678")) == 16


def test_bit_strings_begin_with_the_most_significant_bit() -> None:
    assert codec.bit_string(1 << 85, 128)[3 + 10] == 0x04  # bit 85 = octet 10, bit 5 from the left
    assert codec.bit_string(0b1, 3) == b"\x04\x03\x80"


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_octets_are_parsed_or_refused(octets: bytes) -> None:
    for parser in (codec.parse, lambda o: codec.ber_fields(o)):
        with contextlib.suppress(codec.BadRequest):
            parser(octets)


@pytest.mark.parametrize(
    "octets",
    ["0184ffffffff", "01", "0982", "0980", "0903aa", "55", "02" * 20, "06aabb"],
)
def test_what_a_meter_refuses(octets: str) -> None:
    with pytest.raises(codec.BadRequest):
        codec.parse(bytes.fromhex(octets))


def test_long_lengths() -> None:
    assert codec.length(127) == b"\x7f"
    assert codec.length(128) == b"\x81\x80"
    assert codec.length(300) == b"\x82\x01\x2c"
    assert codec.parse(codec.octet_string(bytes(300)))[0] == bytes(300)
