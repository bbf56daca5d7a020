"""Civil days, capture periods and due times: pure arithmetic over UTC epoch seconds.

A rule says when something is due: `Every` so many seconds, aligned to UTC epoch multiples, or `Daily` at a civil
minute. Both are right across DST: a civil minute that does not exist (spring) is due at the first instant after the
gap, one that exists twice (autumn) is due once, at its first occurrence. A daily row stamped 00:00 belongs to the
civil day that ended (DESIGN section 6).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Every:
    """Due at every multiple of `period_s` since the epoch."""

    period_s: int


@dataclass(frozen=True, slots=True)
class Daily:
    """Due once a civil day, `minute` minutes after local midnight."""

    minute: int


Rule = Every | Daily


def parse_rule(text: str) -> Rule | None:
    """A rule in the grammar of [schedule]: `off`, `every <n>(s|min|h|d)` or `HH:MM`.

    Returns:
        None for `off`.

    Raises:
        ValueError: anything else, with what is allowed.
    """
    text = text.strip()
    if text == "off":
        return None
    if text.startswith("every "):
        amount = text[6:].strip()
        for suffix, seconds in (("min", 60), ("s", 1), ("h", 3600), ("d", DAY_S)):
            number = amount.removesuffix(suffix)
            if number != amount and number.strip().isdigit() and int(number) > 0:
                return Every(int(number) * seconds)
    else:
        hour, colon, minute = text.partition(":")
        if colon and hour.isdigit() and minute.isdigit() and int(hour) < 24 and int(minute) < 60:
            return Daily(int(hour) * 60 + int(minute))
    raise ValueError(
        f"{text!r}: write off, every <n>s, every <n>min, every <n>h, every <n>d or HH:MM"
    )


def next_due(rule: Rule, after: float, zone: ZoneInfo, phase_s: float = 0.0) -> float:
    """The first due time strictly later than `after`, each shifted by `phase_s`.

    Args:
        rule: when.
        after: UTC epoch seconds.
        zone: civil days of a Daily rule.
        phase_s: the meter's own place in the spread, the same every time.
    """
    base = after - phase_s
    if isinstance(rule, Every):
        return (base // rule.period_s + 1) * rule.period_s + phase_s
    day = dt.datetime.fromtimestamp(base, zone).date()
    for ahead in range(3):
        due = at_civil_minute(day + dt.timedelta(days=ahead), rule.minute, zone)
        if due > base:
            return due + phase_s
    raise AssertionError("a civil day comes at least every two days")


def at_civil_minute(day: dt.date, minute: int, zone: ZoneInfo) -> int:
    """UTC second of a civil minute; the end of the gap when DST leaves it out, the first when it comes twice."""
    naive = dt.datetime.combine(day, dt.time(minute // 60, minute % 60))
    instant = naive.replace(tzinfo=zone, fold=0)
    utc = int(instant.timestamp())
    if dt.datetime.fromtimestamp(utc, zone).replace(tzinfo=None) != naive:
        # In the gap: fold=0 read it with the offset before; the same reading with the offset after lies earlier, and
        # the change is where both meet.
        before, after = instant.utcoffset(), naive.replace(tzinfo=zone, fold=1).utcoffset()
        low, high = utc - abs(_seconds(after) - _seconds(before)), utc
        while high - low > 1:
            middle = (low + high) // 2
            if dt.datetime.fromtimestamp(middle, zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        return high
    return utc


def _seconds(delta: dt.timedelta | None) -> int:
    return int(delta.total_seconds()) if delta is not None else 0


def midnight_at_or_before(instant: float, zone: ZoneInfo) -> int:
    """UTC second of the civil midnight at or before the instant."""
    day = dt.datetime.fromtimestamp(instant, zone).date()
    midnight = at_civil_minute(day, 0, zone)
    if midnight > instant:
        midnight = at_civil_minute(day - dt.timedelta(days=1), 0, zone)
    return midnight


def day_of_daily_row(captured_at: int, zone: ZoneInfo) -> dt.date:
    """The civil day that a daily row belongs to: that of the second before its stamp."""
    return dt.datetime.fromtimestamp(captured_at - 1, zone).date()


def minutes_east(instant: float, zone: ZoneInfo) -> int:
    """`tz` of a block: minutes east of UTC at the instant."""
    return _seconds(dt.datetime.fromtimestamp(instant, zone).utcoffset()) // 60


def phase_of(identity: str, spread_s: float) -> float:
    """The constant place of one meter in a spread of `spread_s` seconds: [0, spread_s)."""
    draw = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=6).digest(), "big")
    return draw / (1 << 48) * spread_s
