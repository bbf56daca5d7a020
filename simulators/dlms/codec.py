"""Octets of the simulated meters: A-XDR, BER, date-times, GCM. Written apart from the product's decoder on purpose.

Encoders return octets; parsers take (octets, position) and return (value, position), and raise `BadRequest` for
whatever a meter would refuse: a length past the end, an unknown tag, more nesting or elements than a request can need.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from simulators.civil import Zone

Ints = npt.NDArray[np.int64]
Parsed = None | bool | int | bytes | list["Parsed"]

NULL = b"\x00"
MAX_DEPTH, MAX_ELEMENTS = 8, 256


class BadRequest(Exception):
    """The client's octets cannot be what the standard allows."""


class BadTag(Exception):
    """A GCM tag does not verify under the meter's keys."""


# --- A-XDR, encoding


def length(n: int) -> bytes:
    """Length of a string or number of elements."""
    if n < 0x80:
        return bytes([n])
    raw = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(raw)]) + raw


def tlv(tag: int, body: bytes) -> bytes:
    """Tag, length, value: BER of ACSE, and A-XDR strings."""
    return bytes([tag]) + length(len(body)) + body


def octet_string(body: bytes) -> bytes:
    """Octets with tag and length."""
    return b"\x09" + length(len(body)) + body


def u8(n: int) -> bytes:
    """Unsigned, tag 17."""
    return bytes([0x11, n])


def i8(n: int) -> bytes:
    """Integer, tag 15."""
    return b"\x0f" + n.to_bytes(1, "big", signed=True)


def u16(n: int) -> bytes:
    """Long-unsigned, tag 18."""
    return b"\x12" + n.to_bytes(2, "big")


def i16(n: int) -> bytes:
    """Long, tag 16."""
    return b"\x10" + n.to_bytes(2, "big", signed=True)


def u32(n: int) -> bytes:
    """Double-long-unsigned, tag 6."""
    return b"\x06" + n.to_bytes(4, "big")


def i32(n: int) -> bytes:
    """Double-long, tag 5."""
    return b"\x05" + n.to_bytes(4, "big", signed=True)


def enum(n: int) -> bytes:
    """Enumeration, tag 22."""
    return bytes([0x16, n])


def array(items: list[bytes]) -> bytes:
    """An array of encoded elements."""
    return b"\x01" + length(len(items)) + b"".join(items)


def structure(*items: bytes) -> bytes:
    """A structure of encoded elements."""
    return b"\x02" + length(len(items)) + b"".join(items)


def bit_string(bits: int, count: int) -> bytes:
    """`count` bits, bit 0 of the standard first (the most significant of the first octet); `bits` has bit k at 1 << k."""
    value = sum(1 << (count - 1 - k) for k in range(count) if bits >> k & 1)
    padding = -count % 8
    return b"\x04" + length(count) + (value << padding).to_bytes((count + padding) // 8, "big")


def scaler_unit(scaler: int, unit_code: int) -> bytes:
    """The structure of a register's attribute 3."""
    return structure(i8(scaler), enum(unit_code))


def logical_name(obis: str) -> bytes:
    """Six octets of an OBIS code."""
    return bytes(map(int, obis.split(".")))


def obis_text(octets: bytes) -> str:
    """Six octets as text."""
    return ".".join(map(str, octets))


# --- parsing


def read_length(octets: bytes, at: int) -> tuple[int, int]:
    """A length in short or long form."""
    if at >= len(octets):
        raise BadRequest("a length is missing")
    first, at = octets[at], at + 1
    if first < 0x80:
        return first, at
    count = first & 0x7F
    if not 0 < count <= 4 or at + count > len(octets):
        raise BadRequest("a length that no request needs")
    return int.from_bytes(octets[at : at + count], "big"), at + count


def take(octets: bytes, at: int, count: int) -> tuple[bytes, int]:
    """`count` octets."""
    if at + count > len(octets):
        raise BadRequest("a length runs past the end")
    return octets[at : at + count], at + count


_FIXED = {5: ">i", 6: ">I", 15: ">b", 16: ">h", 17: ">B", 18: ">H", 20: ">q", 21: ">Q", 22: ">B"}


def parse(octets: bytes, at: int = 0, depth: int = 0) -> tuple[Parsed, int]:
    """One value of the types that requests carry; date-times and strings as octets."""
    raw, at = take(octets, at, 1)
    tag = raw[0]
    if tag == 0:
        return None, at
    if tag in (1, 2):
        count, at = read_length(octets, at)
        if count > MAX_ELEMENTS or depth > MAX_DEPTH:
            raise BadRequest("more elements than a request can need")
        items: list[Parsed] = []
        for _ in range(count):
            item, at = parse(octets, at, depth + 1)
            items.append(item)
        return items, at
    if tag in (9, 10, 12):
        count, at = read_length(octets, at)
        return take(octets, at, count)
    if tag == 25:
        return take(octets, at, 12)
    if tag == 3:
        raw, at = take(octets, at, 1)
        return raw != b"\0", at
    if tag not in _FIXED:
        raise BadRequest(f"a value of type {tag} in a request")
    form = _FIXED[tag]
    raw, at = take(octets, at, struct.calcsize(form))
    return int(struct.unpack(form, raw)[0]), at


def ber_fields(octets: bytes) -> dict[int, bytes]:
    """Top-level fields of an ACSE APDU, the APDU's own tag and length included in `octets`."""
    _, at = take(octets, 0, 1)
    count, at = read_length(octets, at)
    body, _ = take(octets, at, count)
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(body):
        tag = body[at]
        count, at = read_length(body, at + 1)
        fields[tag], at = take(body, at, count)
    return fields


def inner(field: bytes) -> bytes:
    """The value inside an explicitly tagged field, or the field itself when it is too short to hold one."""
    count, at = read_length(field, 1)
    return take(field, at, count)[0]


# --- date-times


def clock_octets(
    at: npt.ArrayLike, zone: Zone, *, east: bool, status: npt.ArrayLike = 0
) -> npt.NDArray[np.uint8]:
    """COSEM date-times, shape (n, 12).

    Args:
        at: UTC epoch seconds.
        east: the deviation is written from UTC to local (India); else from local to UTC (Blue Book).
        status: clock status octets; the daylight saving bit is added here.
    """
    times = np.atleast_1d(np.asarray(at, np.int64))
    offset = zone.offset_min(times)
    day, second = np.divmod(times + offset * 60, 86_400)
    date = day.astype("datetime64[D]")
    month = date.astype("datetime64[M]")
    months = month.astype(np.int64)
    out = np.zeros((len(times), 12), np.uint8)
    out[:, 0:2] = (months // 12 + 1970).astype(">u2").view(np.uint8).reshape(-1, 2)
    out[:, 2] = months % 12 + 1
    out[:, 3] = (date - month.astype("datetime64[D]")).astype(np.int64) + 1
    out[:, 4] = (day + 3) % 7 + 1
    out[:, 5], out[:, 6], out[:, 7] = second // 3600, second // 60 % 60, second % 60
    out[:, 9:11] = (offset if east else -offset).astype(">i2").view(np.uint8).reshape(-1, 2)
    out[:, 11] = np.asarray(status, np.uint8) | (zone.summer(times) * np.uint8(0x80))
    return out


def date_time(at: int, zone: Zone, *, east: bool, status: int = 0) -> bytes:
    """One COSEM date-time, 12 octets."""
    return clock_octets([at], zone, east=east, status=status).tobytes()


def read_clock(octets: bytes, zone: Zone, *, east: bool, default: int) -> int:
    """UTC of a date-time in a request; `default` when the date is not specified.

    A deviation that is unspecified, or is the meter's own with either sign, means the meter's wall clock: clients differ
    in the sign, and real meters compare the fields.
    """
    if len(octets) != 12:
        raise BadRequest(f"a date-time of {len(octets)} octets")
    year, month, day, _, hour, minute, second, _, deviation, status = struct.unpack(
        ">HBBBBBBBhB", octets
    )
    if year == 0xFFFF or month == 0xFF or day == 0xFF:
        return default
    deviation = int(deviation)
    hour, minute, second = (0 if part == 0xFF else part for part in (hour, minute, second))
    if not (
        1 <= month <= 12
        and 1 <= day <= 31
        and hour < 24
        and minute < 60
        and second < 60
        and 1970 <= year < 2200
    ):
        raise BadRequest("a date-time that no calendar has")
    months = (year - 1970) * 12 + month - 1
    days = int(np.datetime64(months, "M").astype("datetime64[D]").astype(np.int64)) + day - 1
    local: int = days * 86_400 + hour * 3600 + minute * 60 + second
    known = {int(zone.offset_min(0)), zone.standard_min, zone.standard_min + 60}
    if deviation == -0x8000 or abs(deviation) in {abs(k) for k in known}:
        if status != 0xFF and status & 0x80:
            return local - (zone.standard_min + 60) * 60
        if deviation != -0x8000 and abs(deviation) != abs(int(zone.offset_min(zone.to_utc(local)))):
            return local - abs(deviation) * 60
        return zone.to_utc(local)
    return local - deviation * 60 if east else local + deviation * 60


# --- AES-GCM of all suites


def seal(
    key: bytes,
    auth_key: bytes,
    title: bytes,
    counter: int,
    plain: bytes,
    control: int = 0x30,
    more: bytes = b"",
) -> bytes:
    """Security control, counter, ciphertext, tag of 12 octets; `more` is authenticated beside it."""
    run = Cipher(algorithms.AES(key), modes.GCM(title + counter.to_bytes(4, "big"))).encryptor()
    run.authenticate_additional_data(bytes([control]) + auth_key + more)
    body = run.update(plain) + run.finalize()
    return bytes([control]) + counter.to_bytes(4, "big") + body + run.tag[:12]


def authenticate(
    key: bytes,
    auth_key: bytes,
    title: bytes,
    counter: int,
    plain: bytes,
    control: int = 0x10,
    more: bytes = b"",
) -> bytes:
    """Security control, counter, plaintext, tag."""
    run = Cipher(algorithms.AES(key), modes.GCM(title + counter.to_bytes(4, "big"))).encryptor()
    run.authenticate_additional_data(bytes([control]) + auth_key + more + plain)
    run.finalize()
    return bytes([control]) + counter.to_bytes(4, "big") + plain + run.tag[:12]


def unseal(key: bytes, auth_key: bytes, title: bytes, body: bytes, more: bytes = b"") -> bytes:
    """The plaintext of what `seal` makes; the caller has looked at control and counter.

    Raises:
        BadTag: the tag does not verify.
    """
    if len(body) < 17 or len(title) != 8:
        raise BadTag
    run = Cipher(algorithms.AES(key), modes.GCM(title + body[1:5], body[-12:], 12)).decryptor()
    run.authenticate_additional_data(body[:1] + auth_key + more)
    try:
        return run.update(body[5:-12]) + run.finalize()
    except InvalidTag:
        raise BadTag from None


def gmac(
    key: bytes, auth_key: bytes, title: bytes, counter: int, challenge: bytes, suite: int = 0
) -> bytes:
    """HLS 5: security control 0x10 and the suite, counter, tag over the challenge; 17 octets."""
    whole = authenticate(key, auth_key, title, counter, challenge, 0x10 | suite)
    return whole[:5] + whole[-12:]


def hls_hash(mechanism: int, secret: bytes, mine: bytes, yours: bytes, titles: bytes) -> bytes:
    """HLS 3 (MD5), 4 (SHA-1): hash of challenge and secret; 6 (SHA-256): of secret, titles and both challenges.

    Args:
        mine: the challenge that is answered.
        yours: the challenge of who answers.
        titles: system titles, that of who answers first.
    """
    if mechanism == 6:
        return hashlib.sha256(secret + titles + mine + yours).digest()
    run = hashlib.md5 if mechanism == 3 else hashlib.sha1
    return run(mine + secret, usedforsecurity=False).digest()


def hls2(secret: bytes, challenge: bytes) -> bytes:
    """HLS 2: AES-128 of the challenge, padded with zeros to whole blocks."""
    run = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()
    return run.update(challenge + bytes(-len(challenge) % 16)) + run.finalize()
