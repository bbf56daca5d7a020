"""Entries of a history window: octets to stamps, values and flags, and channels side by side as rows. No I/O.

An entry has a time stamp (year of the century, month, day, hour, minute, second, an octet each: civil time without a
zone, the end of the interval), a status register and a value of four registers; all bits one = there is none. Where
civil time runs twice over an hour, the order of the entries tells the first pass from the second. Entries that stand
behind another with the same time are numbered occurrences, as everywhere.
Source: ABB A43/A44 user manual 2CMC48001M0201 revision C, sections 9.5 and 9.9.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_core.config.history import ENTRY_WORDS, flags_of
from edge_core.domain import obis_from_bytes
from edge_core.protocols.modbus import codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from edge_core.config.history import WindowHistory
    from edge_core.domain import Obis

NOTHING = 0xFFFF
CENTURY = 2000


@dataclass(frozen=True, slots=True)
class Channel:
    """What a channel stores.

    Attributes:
        number: from 1.
        obis: its quantity.
        scaler: power of ten of a raw step in the base unit.
        type: codec type of a value.
        minutes: its interval.
    """

    number: int
    obis: Obis
    scaler: int
    type: str
    minutes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `value` is None where it holds none."""

    stamp: dt.datetime
    flags: int
    value: int | None


def stamp_words(moment: dt.datetime) -> tuple[int, int, int]:
    """Three registers of a civil time.

    Raises:
        ValueError: outside the century.
    """
    if not CENTURY <= moment.year < CENTURY + 100:
        raise ValueError(f"{moment} is outside the century of the meter's clock")
    return (
        (moment.year - CENTURY) << 8 | moment.month,
        moment.day << 8 | moment.hour,
        moment.minute << 8 | moment.second,
    )


def stamp_of(words: Sequence[int]) -> dt.datetime | None:
    """The civil time in three registers, None where they hold no time."""
    year, month, day, hour, minute, second = codec.octets_of(words, "big")
    try:
        return dt.datetime(CENTURY + year, month, day, hour, minute, second)  # noqa: DTZ001 the meter names no zone
    except ValueError:
        return None


def channel_of(
    history: WindowHistory,
    number: int,
    quantity: Sequence[int],
    scaler: int,
    interval: Sequence[int],
    data_type: int,
) -> Channel | None:
    """What a channel stores, from its registers; None for a channel that is not set up."""
    octets = codec.octets_of(quantity, "big")
    type_ = history.types.get(str(data_type))
    power = scaler - 0x10000 if scaler & 0x8000 else scaler
    minutes = interval[0] << 16 | interval[1]
    unset = set(octets) <= {0} or set(octets) <= {0xFF}
    if unset or type_ is None or not -12 <= power <= 12 or not 0 < minutes <= 1440:
        return None
    return Channel(number, obis_from_bytes(octets), power, type_, minutes)


def entries_of(history: WindowHistory, type_: str, words: Sequence[int]) -> list[Entry]:
    """The entries of a block, up to the first that is none.

    Raises:
        ValueError: a stamp that is no time.
    """
    found = []
    for at in range(0, len(words) - ENTRY_WORDS + 1, ENTRY_WORDS):
        entry = words[at : at + ENTRY_WORDS]
        if all(word == NOTHING for word in entry[:3]):
            break
        stamp = stamp_of(entry[:3])
        if stamp is None:
            octets = codec.octets_of(entry[:3], "big").hex(" ")
            raise ValueError(f"entry {at // ENTRY_WORDS + 1} is stamped {octets}")
        bits = flags_of(history, entry[3])
        valid = entry[3] >> history.valid_bit & 1
        raw = codec.number(type_, entry[4:], "big")
        empty = codec.is_sentinel(type_, entry[4:], "big")
        value = raw if valid and not empty and isinstance(raw, int) else None
        found.append(Entry(stamp, bits, value))
    return found


def utc_of(stamps: Iterable[dt.datetime], zone: ZoneInfo, before: int | None = None) -> list[int]:
    """UTC seconds of civil stamps in buffer order: an hour that comes twice is told by the order.

    Args:
        before: the time of the entry in front of them.
    """
    times: list[int] = []
    for stamp in stamps:
        first = int(stamp.replace(tzinfo=zone, fold=0).timestamp())
        second = int(stamp.replace(tzinfo=zone, fold=1).timestamp())
        last = times[-1] if times else before
        again = second > first and last is not None and first <= last < second
        times.append(second if again else first)
    return times


def civil_before(instant: float, zone: ZoneInfo) -> dt.datetime:
    """The latest civil time that is not after an instant and stands for one instant only, whichever way it is read."""
    at = int(instant)
    while True:
        moment = dt.datetime.fromtimestamp(at, zone)
        if moment.utcoffset() == moment.replace(fold=1 - moment.fold).utcoffset():
            return moment.replace(tzinfo=None, fold=0)
        at -= 3600


@dataclass(frozen=True, slots=True)
class Rows:
    """Channels side by side.

    Attributes:
        times: UTC seconds, in the order of the entries.
        occ: (row, k) where the time stands in the rows before.
        flags: bits of each row, of all channels together.
        columns: values by channel; None where a channel has no such entry.
    """

    times: list[int]
    occ: list[tuple[int, int]]
    flags: list[int]
    columns: list[list[int | None]]


def rows_of(channels: Sequence[Sequence[tuple[int, Entry]]]) -> Rows:
    """Rows of the entries of several channels, each (UTC second, entry) in buffer order."""
    keyed: list[Mapping[tuple[int, int], Entry]] = []
    order: dict[tuple[int, int], None] = {}
    for entries in channels:
        counted: dict[int, int] = {}
        table: dict[tuple[int, int], Entry] = {}
        for time, entry in entries:
            key = time, counted.get(time, 0)
            counted[time] = key[1] + 1
            table[key] = entry
            order.setdefault(key)
        keyed.append(table)
    # The first channel's order holds; what only another one has goes to its time.
    first = list(keyed[0]) if keyed else []
    extra = sorted(key for key in order if not keyed or key not in keyed[0])
    keys = sorted(order) if first == sorted(first) else first + extra
    return Rows(
        [time for time, _ in keys],
        [(row, k) for row, (_, k) in enumerate(keys) if k],
        [_bits(keyed, key) for key in keys],
        [[table[key].value if key in table else None for key in keys] for table in keyed],
    )


def _bits(tables: Iterable[Mapping[tuple[int, int], Entry]], key: tuple[int, int]) -> int:
    bits = 0
    for table in tables:
        if key in table:
            bits |= table[key].flags
    return bits
