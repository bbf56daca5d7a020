"""COSEM date-time (12 octets) to UTC epoch seconds and back, one at a time or a column at once.

Octets: year (2), month, day, weekday, hour, minute, second, hundredths, deviation (2, signed minutes), clock status.
Two conventions of the deviation exist and a meter never says which: the Blue Book and IDIS write minutes from local
time to UTC (CET is -60), India, Saudi Arabia and Italy write UTC to local (IST is +330). So it is a rule of the meter
model, never a guess. An unspecified deviation (8000) means the civil time of a configured zone, where the hour that a
DST change repeats is told apart by the DST bit, else by the order of the rows, else flagged.

Invariants: the status octet is looked at before a time is converted; a date that does not exist, or whose year,
month, day, hour or minute is unspecified, is no instant (`None`), never a guess. Unspecified seconds and hundredths
are 0. Hundredths are dropped: register captures happen on whole seconds.
Source: DLMS UA Blue Book ed. 13, 4.1.6.1; the conventions: facts gathered in docs/explanation.
"""

from __future__ import annotations

import struct
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edge_core.domain import Flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

OCTETS: Final = 12
UNSPECIFIED_DEVIATION: Final = -0x8000
LOCAL_TO_UTC: Final = 1
"""Blue Book, IDIS, DSMR: UTC = local + deviation."""
UTC_TO_LOCAL: Final = -1
"""India, Saudi Arabia, Italy: UTC = local - deviation."""

STATUS_DST: Final = 0x80
STATUS_UNSPECIFIED: Final = 0xFF
_DOUBTFUL: Final = 0x01 | 0x02 | 0x08  # invalid value, doubtful value, invalid clock status
_MAX_DEVIATION_MIN: Final = 14 * 60

_FIELDS: Final = struct.Struct(">HBBBBBBBhB")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class ClockRules:
    """How one meter model writes time.

    Attributes:
        sign: LOCAL_TO_UTC or UTC_TO_LOCAL.
        zone: civil time where the deviation is unspecified.
        deviation_holds_dst: the deviation moves with DST (CEST is -120); False = it stays and the DST bit adds an hour.
    """

    sign: int = LOCAL_TO_UTC
    zone: tzinfo = UTC
    deviation_holds_dst: bool = True


class Moment(NamedTuple):
    """One date-time as an instant.

    Attributes:
        at: UTC epoch seconds, or None where the octets name no instant.
        flags: bits of domain.Flag: DST, CLOCK_INVALID.
        east_min: minutes east of UTC that the local time had.
        local: the civil time as if it were UTC, in seconds; orders the rows of a repeated hour.
        folded: the local time happens twice and the octets do not say which one; `at` is then the first.
    """

    at: int | None
    flags: int
    east_min: int
    local: int = 0
    folded: bool = False


NO_MOMENT: Final = Moment(None, 0, 0)


_DST: Final = int(
    Flag.DST
)  # plain integers: an operation of an enumeration costs as much as a whole date
_CLOCK_INVALID: Final = int(Flag.CLOCK_INVALID)


def flags_of_status(status: int) -> int:
    """Bits of domain.Flag that the clock status octet means."""
    if status == STATUS_UNSPECIFIED:
        return 0
    return (_DST if status & STATUS_DST else 0) | (_CLOCK_INVALID if status & _DOUBTFUL else 0)


def decode_datetime(octets: bytes, rules: ClockRules) -> Moment:
    """The instant that 12 octets name; `Moment.at` is None where they name none, also when there are not 12."""
    if len(octets) != OCTETS:
        return NO_MOMENT
    year, month, day, _, hour, minute, second, _, deviation, status = _FIELDS.unpack(octets)
    if second == 0xFF:
        second = 0
    if hour > 23 or minute > 59 or second > 59:
        return NO_MOMENT
    try:
        days = date(year, month, day).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return NO_MOMENT
    local = days * _DAY_S + hour * 3600 + minute * 60 + second
    flags = flags_of_status(status) if status else 0
    if -_MAX_DEVIATION_MIN <= deviation <= _MAX_DEVIATION_MIN:
        east = -rules.sign * deviation
        if flags & _DST and not rules.deviation_holds_dst:
            east += 60
        return Moment(local - east * 60, flags, east, local)
    if deviation != UNSPECIFIED_DEVIATION:
        flags |= _CLOCK_INVALID
    first, second_pass = _offsets(local, rules.zone)
    folded = first > second_pass and not flags & _DST
    return Moment(local - first, flags, first // 60, local, folded)


def _offsets(local: int, zone: tzinfo) -> tuple[int, int]:
    """Seconds east of UTC at a civil time, for its first and its second passing."""
    civil = datetime(1970, 1, 1) + timedelta(seconds=local)  # noqa: DTZ001 civil time is what is asked for
    try:
        first = civil.replace(tzinfo=zone).utcoffset()
        again = civil.replace(tzinfo=zone, fold=1).utcoffset()
    except OverflowError:  # a zone cannot look beyond the years 1 and 9999
        return 0, 0
    return (
        int(first.total_seconds()) if first is not None else 0,
        int(again.total_seconds()) if again is not None else 0,
    )


def encode_datetime(
    at: int, rules: ClockRules, *, deviation: bool = True, weekday: bool = True
) -> bytes:
    """12 octets for a UTC second in the meter's civil time and convention.

    Args:
        at: UTC epoch seconds.
        rules: zone and sign of the model.
        deviation: write it and the status; False = both unspecified, as some meters compare octets.
        weekday: write it; False = FF.

    Raises:
        OverflowError, ValueError: a year outside 1 to 9999.
    """
    t = datetime.fromtimestamp(at, rules.zone)
    offset, dst = t.utcoffset(), t.dst()
    east = int(offset.total_seconds()) // 60 if offset is not None else 0
    summer = dst is not None and bool(dst)
    if summer and not rules.deviation_holds_dst:
        east -= int(dst.total_seconds()) // 60 if dst is not None else 0
    return _FIELDS.pack(
        t.year,
        t.month,
        t.day,
        t.isoweekday() if weekday else 0xFF,
        t.hour,
        t.minute,
        t.second,
        0,
        -rules.sign * east if deviation else UNSPECIFIED_DEVIATION,
        (STATUS_DST if summer else 0) if deviation else STATUS_UNSPECIFIED,
    )


class Instants(NamedTuple):
    """A column of date-times.

    Attributes:
        at: UTC epoch seconds per cell, None where there is no instant; an int64 array when all have one.
        flags: bits per cell.
        east_min: the smallest offset of the column: standard time where DST changes within it.
    """

    at: Sequence[int | None] | npt.NDArray[np.int64]
    flags: Sequence[int]
    east_min: int


def decode_column(cells: Sequence[bytes | None], rules: ClockRules, step_s: int = 0) -> Instants:
    """The instants of a column, oldest first; None is null-data: one step after the cell before it.

    A repeated DST hour that no bit tells apart is resolved by the order of the rows: what stands before the civil
    time drops is the first passing. Where nothing tells, the first is taken and flagged CLOCK_INVALID.

    Args:
        cells: 12 octets each, or None.
        rules: of the model.
        step_s: capture period in seconds; 0 = a null cell has no instant.
    """
    moments: list[Moment] = []
    derived: dict[int, int] = {}  # cell -> the cell it is counted from
    for i, cell in enumerate(cells):
        if cell is not None:
            moments.append(decode_datetime(cell, rules))
            continue
        before = moments[-1] if moments else NO_MOMENT
        if before.at is None or not step_s:
            moments.append(NO_MOMENT)
            continue
        derived[i] = derived.get(i - 1, i - 1)
        moments.append(
            Moment(
                before.at + step_s,
                before.flags & ~_CLOCK_INVALID,
                before.east_min,
                before.local,
            )
        )
    if any(m.folded for m in moments):
        own = [i for i in range(len(moments)) if i not in derived]
        for i, moment in zip(own, _unfold([moments[i] for i in own], rules), strict=True):
            moments[i] = moment
        for i, source in derived.items():
            base = moments[source].at
            if base is not None:
                moments[i] = moments[i]._replace(at=base + (i - source) * step_s)
    placed = [m.east_min for m in moments if m.at is not None]
    return Instants([m.at for m in moments], [m.flags for m in moments], min(placed, default=0))


def _unfold(moments: list[Moment], rules: ClockRules) -> list[Moment]:
    """Decide for each run of folded cells which passing of the repeated hour it is."""
    tells = any(
        m.flags & _DST for m in moments
    )  # this meter sets the bit, so its absence means winter
    i = 0
    while i < len(moments):
        if not moments[i].folded:
            i += 1
            continue
        end = i
        while end < len(moments) and moments[end].folded:
            end += 1
        drop = next(
            (k for k in range(i + 1, end) if moments[k].local <= moments[k - 1].local), None
        )
        doubt = 0
        if tells:
            second_from = i
        elif drop is not None:
            second_from = drop
        else:
            second_from = i if i == 0 and end < len(moments) else end
            doubt = _CLOCK_INVALID if (i > 0) == (end < len(moments)) else 0
        for k in range(i, end):
            m = moments[k]
            if k >= second_from:
                east = _offsets(m.local, rules.zone)[1]
                moments[k] = m._replace(
                    at=m.local - east, flags=m.flags | doubt, east_min=east // 60, folded=False
                )
            else:
                moments[k] = m._replace(flags=m.flags | doubt, folded=False)
        i = end
    return moments


def decode_array(octets: bytes, rules: ClockRules) -> Instants | None:
    """The instants of many date-times at once, shape (n, 12) octets without gaps.

    Returns:
        None where only `decode_column` knows: a cell without an instant, or a day in which the zone's offset changes.
    """
    count = len(octets) // OCTETS
    fields = np.frombuffer(octets, _ARRAY, count)
    year, month, day = fields["year"].astype(np.int64), fields["month"], fields["day"]
    hour, minute, second = fields["hour"], fields["minute"], fields["second"]
    if not count or int(hour.max()) > 23 or int(minute.max()) > 59:
        return None
    if int(second.max()) > 59:
        second = np.where(second == 0xFF, np.uint8(0), second)
        if int(second.max()) > 59:
            return None
    if (
        int(month.min()) < 1
        or int(year.min()) < 1
        or int(year.max()) > 9999
        or int(month.max()) > 12
        or int(day.min()) < 1
    ):
        return None
    index = (
        year * 12 + month
    )  # a month's days and first day come from one table look-up per distinct month
    months, which = np.unique(index, return_inverse=True)
    starts = [_month_start(int(m)) for m in months]
    length = np.array([s[1] for s in starts], np.int64)[which]
    if (day > length).any():
        return None
    days = np.array([s[0] for s in starts], np.int64)[which] + day
    local = days * _DAY_S + hour.astype(np.int64) * 3600 + minute.astype(np.int64) * 60 + second
    deviation, status = fields["deviation"], fields["status"]
    flags = _STATUS_FLAGS[status].tolist() if int(status.max()) else [0] * count
    low, high = int(deviation.min()), int(deviation.max())
    if low >= -_MAX_DEVIATION_MIN and high <= _MAX_DEVIATION_MIN:
        east = -rules.sign * deviation.astype(np.int64)
        if not rules.deviation_holds_dst:
            east += np.where(status & STATUS_DST, 60, 0) * (status != STATUS_UNSPECIFIED)
        return Instants(local - east * 60, flags, int(east.min()))
    if high != UNSPECIFIED_DEVIATION:
        return None
    civil_days, which = np.unique(local // _DAY_S, return_inverse=True)
    offsets = [_day_offset(int(d), rules.zone) for d in civil_days]
    known = [offset for offset in offsets if offset is not None]
    if len(known) < len(offsets):
        return None
    return Instants(local - np.array(known, np.int64)[which], flags, min(known) // 60)


def _month_start(index: int) -> tuple[int, int]:
    """Days from 1970-01-01 to the day before the first of a month, and its length; (0, 0) for no month."""
    year, month = divmod(index - 1, 12)
    if not 1 <= year <= 9999:
        return 0, 0
    first = date(year, month + 1, 1).toordinal() - _EPOCH_ORDINAL - 1
    return first, monthrange(year, month + 1)[1]


def _day_offset(day: int, zone: tzinfo) -> int | None:
    """Seconds east of UTC throughout a civil day, or None when they change in it."""
    start, end = _offsets(day * _DAY_S, zone), _offsets((day + 1) * _DAY_S, zone)
    return start[0] if start == end and start[0] == start[1] else None


_ARRAY: Final = np.dtype(
    [
        ("year", ">u2"),
        ("month", "u1"),
        ("day", "u1"),
        ("weekday", "u1"),
        ("hour", "u1"),
        ("minute", "u1"),
        ("second", "u1"),
        ("hundredths", "u1"),
        ("deviation", ">i2"),
        ("status", "u1"),
    ]
)
_STATUS_FLAGS: Final = np.array([flags_of_status(status) for status in range(256)], np.int64)
