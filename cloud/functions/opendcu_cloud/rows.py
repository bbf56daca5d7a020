"""Readings as items of the table, and items as readings again.

An item is meter x profile x civil hour. Each row is one attribute, named by what identifies it (time, occurrence,
device, layout) and written with `if_not_exists`: the first writer stays, a duplicate changes nothing, two writers at
once lose nothing, and no item is read before it is written. A row that differs from what the item already has becomes
a further attribute, so the item is a set that only grows: the same readings in any order give the same answer.
Which value is current is decided when the item is read: the later `read_at`, never the order of arrival.
Identity is that of the contract: (meter, device, profile, time, occurrence, OBIS, attribute); a null is no reading.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opendcu_cloud.envelope import Layout, Message

DAY_S = 86_400
MAX_ROWS_PER_UPDATE = 40  # an UpdateExpression holds 4 KB

LONG_RUN = 5  # hours from which on a block counts as history

KEPT_LONG = ("midnight", "billing")


class Identity(NamedTuple):
    """What one reading is, within one meter and profile."""

    device: str
    at: int
    occurrence: int
    obis: str
    attribute: int


class Reading(NamedTuple):
    """One value; physical = value * 10**scaler, before any multiplier."""

    value: int | str
    scaler: int
    unit: str
    read_at: int
    flags: int
    multiplier: int

    @property
    def says(self) -> tuple[int | str, int, str]:
        """What two readings of one identity are compared by."""
        return self.value, self.scaler, self.unit


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One captured row as an attribute holds it."""

    at: int
    occurrence: int
    device: str
    layout: str
    read_at: int
    values: list[int | str | None]
    flags: int = 0
    multiplier: int = 1

    @property
    def name(self) -> str:
        """Attribute name; equal for rows that answer the same questions."""
        return f"R{self.at}.{self.occurrence}.{_short(self.device + '|' + self.layout)}"

    @property
    def version_name(self) -> str:
        """Attribute name for a row that differs from the one under `name`."""
        return f"{self.name}!{self.read_at}.{_short(msgspec.json.encode(self.values).decode())}"


class HourItem(NamedTuple):
    """What one message adds to one item: at most MAX_ROWS_PER_UPDATE rows of one layout."""

    pk: str
    sk: str
    ttl: int
    layout: str
    layout_text: str
    rows: list[Row]


class Conflict(NamedTuple):
    """Two readings of one identity that say different things."""

    identity: Identity
    stored: Reading
    arrived: Reading


_row_encode = msgspec.json.Encoder().encode
_row_decode = msgspec.json.Decoder(Row).decode


def meter_key(meter: str) -> str:
    """Partition of everything that belongs to a meter."""
    return f"M#{meter}"


def meter_of(pk: str) -> str:
    """The meter of a partition."""
    return pk.removeprefix("M#")


@lru_cache(4096)
def hour_text(hour: int) -> str:
    """`2026-06-18T09` of the civil hour that is `hour` hours after 1970-01-01T00 civil."""
    return datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%dT%H")


def civil_hour(at: int, tz: int) -> int:
    """The civil hour that a row captured at `at` (end of its interval) belongs to: that of at - 1 s."""
    return (at - 1 + tz * 60) // 3600


def sort_key(kind: str, hour: int, profile: str) -> str:
    """Sort key of an hour: kind first, then time, so that one query reads a span of one kind."""
    return f"{kind}#{hour_text(hour)}#{profile}"


def layout_text(layout: Layout) -> str:
    """Canonical text of a layout."""
    return msgspec.json.encode([layout.profile, layout.period, list(layout.cols)]).decode()


def hour_items(message: Message, interval_days: int, long_days: int) -> Iterator[HourItem]:
    """The items that a message of reads adds to; kept `interval_days`, midnight and billing `long_days`."""
    keep = (long_days if message.sub in KEPT_LONG else interval_days) * DAY_S
    texts = [layout_text(layout) for layout in message.layouts]
    for block in message.blocks:
        layout, text = message.layouts[block.layout], texts[block.layout]
        name = _short(text)
        by_hour: dict[int, list[Row]] = {}
        columns = list(zip(*block.values, strict=True))
        for at, occurrence, flags, values in zip(
            block.times(layout.period), block.occurrences(), block.flag_bits(), columns, strict=True
        ):
            row = Row(
                at,
                occurrence,
                block.device,
                name,
                block.read_at,
                list(values),
                flags,
                block.multiplier,
            )
            by_hour.setdefault(civil_hour(at, block.tz), []).append(row)
        for hour, rows in by_hour.items():
            sk = sort_key(message.sub, hour, layout.profile)
            for start in range(0, len(rows), MAX_ROWS_PER_UPDATE):
                some = rows[start : start + MAX_ROWS_PER_UPDATE]
                yield HourItem(meter_key(block.meter), sk, some[-1].at + keep, name, text, some)


def merge(items: Iterable[HourItem]) -> list[HourItem]:
    """Fewer updates for the same rows: one for each item and layout, as far as an update holds them."""
    pools: dict[tuple[str, str, str], HourItem] = {}
    full: list[HourItem] = []
    for item in items:
        key = item.pk, item.sk, item.layout
        had = pools.get(key)
        if had is None:
            pools[key] = item._replace(rows=list(item.rows))
            continue
        names = {row.name for row in had.rows}
        if len(had.rows) + len(item.rows) > MAX_ROWS_PER_UPDATE or any(
            r.name in names for r in item.rows
        ):
            full.append(
                item
            )  # a row that is there twice needs a look at what was stored: an update of its own
            continue
        had.rows.extend(item.rows)
        pools[key] = had._replace(ttl=max(had.ttl, item.ttl))
    return list(pools.values()) + full


def inner_hours(items: Iterable[HourItem]) -> tuple[list[HourItem], list[HourItem]]:
    """The items that are probably new and stand alone for their key, and all others.

    Probably new is what lies between the first and the last hour of a long block: an hourly poll touches two hours,
    both of which may be there.
    """
    runs: dict[tuple[str, str, str], list[HourItem]] = {}
    for item in items:
        kind, _, profile = item.sk.split("#")
        runs.setdefault((item.pk, kind, profile), []).append(item)
    inner: list[HourItem] = []
    others: list[HourItem] = []
    for run in runs.values():
        times = sorted(item.sk for item in run)
        once = {sk for sk in times[1:-1] if times.count(sk) == 1} if len(run) >= LONG_RUN else set()
        for item in run:
            (inner if item.sk in once else others).append(item)
    return inner, others


def attributes(item: HourItem) -> dict[str, str]:
    """Attribute name to text of what `item` adds."""
    out = {f"L{item.layout}": item.layout_text}
    for row in item.rows:
        out.setdefault(row.name, _row_encode(row).decode())
    return out


def compare(item: HourItem, old: Mapping[str, str]) -> tuple[dict[str, str], list[Conflict]]:
    """What the update of `item` still lacks, given the attributes that the stored item had before it.

    Returns:
        Further attributes to write (rows that differ from the stored ones), and the conflicts among them.
    """
    stamps = {(row.at, row.occurrence) for row in item.rows}
    stored: dict[tuple[str, int, int], list[Row]] = {}
    for name, text in old.items():
        if name[0] == "R":
            row = _row_decode(text)
            if (row.at, row.occurrence) in stamps:
                stored.setdefault((row.device, row.at, row.occurrence), []).append(row)
    further: dict[str, str] = {}
    conflicts: list[Conflict] = []
    if not stored:
        return further, conflicts
    layouts = {**layouts_of(old), item.layout: _columns(item.layout_text)}
    for row in item.rows:
        same_time = stored.get((row.device, row.at, row.occurrence), [])
        arrived = dict(_cells(row, layouts))
        for other in same_time:
            for identity, reading in _cells(other, layouts):
                mine = arrived.get(identity)
                if mine is not None and mine.says != reading.says:
                    conflicts.append(Conflict(identity, reading, mine))
        first = next((r for r in same_time if r.layout == row.layout), None)
        if first is None:
            continue  # no row under this name: the update itself wrote ours
        if any(
            r.layout == row.layout and r.values == row.values and r.read_at >= row.read_at
            for r in same_time
        ):
            continue  # a duplicate
        further[row.version_name] = _row_encode(row).decode()
    return further, conflicts


def readings(item: Mapping[str, str]) -> dict[Identity, Reading]:
    """The current readings of one stored item: of two that differ, the one read later.

    Two that were read in the same second and differ are told apart by their text, so that the answer does not depend
    on the order of arrival.
    """
    layouts = layouts_of(item)
    out: dict[Identity, Reading] = {}
    for name, text in item.items():
        if name[0] != "R":
            continue
        for identity, reading in _cells(_row_decode(text), layouts):
            had = out.get(identity)
            if had is None or current(reading) > current(had):
                out[identity] = reading
    return out


def current(reading: Reading) -> tuple[int, str]:
    """Of two readings of one identity, the one for which this is larger is current."""
    return reading.read_at, msgspec.json.encode(reading.says).decode()


def layouts_of(item: Mapping[str, str]) -> dict[str, list[list[Any]]]:
    """Columns `[obis, unit, scaler, attribute]` by layout name."""
    return {name[1:]: _columns(text) for name, text in item.items() if name[0] == "L"}


def _columns(text: str) -> list[list[Any]]:
    columns: list[list[Any]] = msgspec.json.decode(text)[2]
    return columns


def _cells(row: Row, layouts: Mapping[str, list[list[Any]]]) -> Iterator[tuple[Identity, Reading]]:
    for (obis, unit, scaler, *attribute), value in zip(
        layouts[row.layout], row.values, strict=True
    ):
        if value is not None:
            yield (
                Identity(
                    row.device, row.at, row.occurrence, obis, attribute[0] if attribute else 2
                ),
                Reading(value, scaler, unit, row.read_at, row.flags, row.multiplier),
            )


@lru_cache(8192)
def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
