"""From blocks to half hours: energies of the civil days that are still arriving, and the evidence of their rows.

Invariants: the state after some segments is a function of these segments and nothing else; `save` writes it with the
cursor in one transaction. Rows of bad quality (Flag) count as missing. A half hour counts when exactly 1,800 s of it
arrived: a row that is there twice (a conflict) makes it missing, never doubled.

Bounds: open days of MAX_OPEN groups of 64 meters are held (18 kB each), longest untouched ones are closed first; a day
that gets rows after it was closed is opened again, and closing merges.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_core.detector import evidence
from edge_core.detector.channels import channels_of
from edge_core.detector.days import SLOT_S, SLOTS
from edge_core.detector.history import GROUP, KEEP_DAYS, encode
from edge_core.domain import Flag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_core.detector.channels import Channels, Energy
    from edge_core.detector.days import Calendar
    from edge_core.detector.evidence import Floats
    from edge_core.detector.history import Store
    from edge_core.domain import Block

MAX_OPEN = 400
BAD = (
    Flag.POWER_DOWN
    | Flag.CLOCK_ADJUSTED
    | Flag.NOT_VALID
    | Flag.CLOCK_INVALID
    | Flag.PARTIAL
    | Flag.LAYOUT_DOUBT
)
_TIME, _IMPORT, _EXPORT, _DEVICE = range(4)

Evidence = dict[str, list[float]]
"""By kind: seconds in which it was seen, first and last row (UTC s), extreme value."""


class OpenDay:
    """One day of 64 meters while it arrives."""

    __slots__ = ("changed", "evidence", "seconds", "wh")

    def __init__(self, body: bytes = b"", found: dict[str, Evidence] | None = None) -> None:
        size = GROUP * SLOTS
        if body:
            self.wh = np.frombuffer(body[: 4 * size], np.float32).reshape(GROUP, SLOTS).copy()
            self.seconds = np.frombuffer(body[4 * size :], np.uint16).reshape(GROUP, SLOTS).copy()
        else:
            self.wh = np.zeros((GROUP, SLOTS), np.float32)
            self.seconds = np.zeros((GROUP, SLOTS), np.uint16)
        self.evidence: dict[int, Evidence] = {int(k): v for k, v in (found or {}).items()}
        self.changed = False

    def body(self) -> bytes:
        """The arrays as they are."""
        return self.wh.tobytes() + self.seconds.tobytes()

    def codes(self) -> Any:
        """Complete half hours as history keeps them, shape (64, 48)."""
        return encode(np.where(self.seconds == SLOT_S, self.wh, np.nan))


class Collector:
    """Open days of all meters, on top of a store."""

    def __init__(self, store: Store, calendar: Calendar) -> None:
        self._store, self._calendar = store, calendar
        self.open: dict[tuple[int, int], OpenDay] = {}
        for day, part, body, found in store.opened():
            self.open[day, part] = OpenDay(body, found)
        self._newest: dict[int, Any] = dict(store.newest())
        self._touched: set[int] = set()
        self._floor: dict[int, Any] = {}
        self.fresh: set[tuple[int, int]] = set()
        """(day, meter number) with evidence that grew since the caller cleared it."""

    def start_over(self) -> None:
        """The journal is another one: rows that are known already are left out from now on."""
        self._floor = {part: rows[:, _TIME].copy() for part, rows in self._newest.items()}

    def take(self, block: Block, *, oldest: int) -> None:
        """Account for the rows of an interval block; days before `oldest` are left out."""
        channels = channels_of(block.layout)
        if block.kind != "interval" or channels.energy is None or not block.rows:
            return
        number = self._store.number(block.meter)
        part, row = divmod(number, GROUP)
        times, keep = _rising(block)
        if part in self._floor:
            fresh = times > self._floor[part][row]
            times, keep = times[fresh], keep[fresh]
        if not len(times):
            return
        newest = self._newest.get(part)
        if newest is None:
            newest = self._newest[part] = np.full((GROUP, 4), np.nan)
        rows = _rows(block, channels, times, keep, newest[row])
        if np.isnan(newest[row, _TIME]) or times[-1] >= newest[row, _TIME]:
            newest[row] = rows.last
            self._touched.add(part)
        for day, first, last in self._calendar.split(times.tolist()):
            if day >= oldest:
                self._add(day, part, row, rows, first, last)

    def _add(self, day: int, part: int, row: int, rows: _Rows, first: int, last: int) -> None:
        # popped and put back: the longest untouched one stands first
        held = self.open.pop((day, part), None) or OpenDay()
        self.open[day, part] = held
        held.changed = True
        since = rows.times[first:last] - self._calendar.begin(day)
        span = slice(first, last)
        if not rows.coarse:
            _fill(held, row, since, rows.look.wh[span], rows.look.seconds[span])
        shown = evidence.look(rows.of_day(span, since))
        for kind, (mask, extreme) in shown.items():
            seconds = float(rows.look.seconds[span][mask].sum()) or 1.0
            at = rows.times[span][mask]
            known = held.evidence.setdefault(row, {}).setdefault(
                kind, [0.0, float(at[0]), 0.0, extreme]
            )
            known[0] += seconds
            known[1] = min(known[1], float(at[0]))
            known[2] = max(known[2], float(at[-1]))
            known[3] = (
                min(known[3], extreme) if kind in ("voltage-low", "power-factor") else max(known[3], extreme)
            )  # fmt: skip
            self.fresh.add((day, part * GROUP + row))

    def evidence(self, day: int, number: int) -> Evidence:
        """Evidence of a meter on an open day."""
        held = self.open.get((day, number // GROUP))
        return held.evidence.get(number % GROUP, {}) if held else {}

    def closing(self, before: int) -> Iterator[tuple[int, int]]:
        """Open days to be closed: those before a day, and the longest untouched ones beyond MAX_OPEN."""
        surplus = len(self.open) - MAX_OPEN
        for count, (day, part) in enumerate(list(self.open)):
            if day < before or count < surplus:
                yield day, part

    def close(self, day: int, part: int) -> None:
        """Move an open day into the history, within the store's transaction."""
        held = self.open[day, part]
        self._store.put_history(day, part, held.codes())
        self._store.drop_open(day, part)

    def closed(self, day: int, part: int) -> None:
        """That transaction was committed."""
        self.open.pop((day, part), None)

    def save(self) -> None:
        """Write what changed, within the store's transaction."""
        self._store.save_meters()
        for (day, part), held in self.open.items():
            if held.changed:
                found = {str(row): kinds for row, kinds in held.evidence.items()}
                self._store.put_open(day, part, held.body(), found)
        for part in self._touched:
            self._store.put_newest(part, self._newest[part])

    def saved(self) -> None:
        """That transaction was committed."""
        for held in self.open.values():
            held.changed = False
        self._touched.clear()


class _Rows:
    """Rows of one block in physical units."""

    __slots__ = ("coarse", "last", "look", "times")

    def __init__(self, times: Any, look: evidence.Rows, last: list[float], *, coarse: bool) -> None:
        self.times, self.look, self.last, self.coarse = times, look, last, coarse

    def of_day(self, span: slice, since: Any) -> evidence.Rows:
        look = self.look
        cut = [None if v is None else v[span] for v in (look.export_wh, look.vah, look.neutral)]
        return evidence.Rows(
            seconds=look.seconds[span],
            wh=look.wh[span],
            export_wh=cut[0],
            vah=cut[1],
            volts=[None if v is None else v[span] for v in look.volts],
            amps=[None if v is None else v[span] for v in look.amps],
            neutral=cut[2],
            hour=since / 3600,
            fell=look.fell[span],
            scaled=look.scaled,
        )


def oldest_day(today: int) -> int:
    """The first day that is kept."""
    return today - KEEP_DAYS


def _rising(block: Block) -> tuple[Any, Any]:
    """Times without repetitions, rising, and the rows that they are of."""
    times = np.asarray(block.times, np.int64)
    keep = np.arange(len(times))
    if block.occ:
        keep = np.setdiff1d(keep, [row for row, _ in block.occ])
    _, first = np.unique(times[keep], return_index=True)
    keep = keep[first]
    return times[keep], keep


def _rows(block: Block, channels: Channels, times: Any, keep: Any, newest: Any) -> _Rows:
    """Physical values of a block's rows; energies of registers are differences, the first to the newest row before."""
    energy = channels.energy
    assert energy is not None
    good = np.ones(block.rows, np.bool_)
    for first, count, bits in block.flags:
        if bits & BAD:
            good[first : first + count] = False
    good = good[keep]
    device = float(zlib.crc32(block.device.encode()))
    before = newest if newest[_DEVICE] == device and newest[_TIME] < times[0] else None

    def column(index: int, factor: float) -> Floats:
        try:
            values = np.asarray(block.columns[index], np.float64)
        except (TypeError, ValueError):  # text
            return np.full(len(keep), np.nan)
        physical: Floats = values[keep] * factor
        return physical

    steps = np.diff(times, prepend=before[_TIME] if before is not None else times[0] - np.inf)

    def energies(of: Energy | None, place: int | None) -> tuple[Floats | None, Any, float]:
        """Wh of each row, where it fell, the last register."""
        none = np.zeros(len(times), np.bool_)
        if of is None:
            return None, none, np.nan
        values = column(of.column, of.factor)
        if not of.cumulative:
            return values, none, np.nan
        start = before[place] if before is not None and place is not None else np.nan
        moved = np.diff(values, prepend=start)
        fell = moved < 0
        for at in np.flatnonzero(fell):
            top = values[at] - moved[at]
            digits = 10.0 ** np.ceil(np.log10(top)) if top > 0 else 0.0
            if top > 0.95 * digits and values[at] < 0.05 * digits:
                moved[at] += digits
                fell[at] = False
        return np.where(fell, np.nan, moved), fell, float(values[-1])

    wh, fell, register = energies(energy, _IMPORT)
    export, fell_too, export_register = energies(channels.export, _EXPORT)
    vah, _, _ = energies(channels.apparent, None)
    assert wh is not None
    period = float(block.layout.period)
    seconds = steps if energy.cumulative or not period else np.full(len(times), period)
    sound = good & np.isfinite(seconds) & (seconds <= 2 * SLOT_S)
    look = evidence.Rows(
        seconds=np.where(np.isfinite(seconds), seconds, 0.0),
        wh=np.where(sound, wh, np.nan),
        export_wh=export,
        vah=vah,
        volts=[None if c is None else np.where(good, column(*c), np.nan) for c in channels.volts],
        amps=[None if c is None else np.where(good, column(*c), np.nan) for c in channels.amps],
        neutral=None if channels.neutral is None else column(*channels.neutral),
        hour=np.zeros(len(times)),
        fell=(fell | fell_too) & good,
        scaled=block.multiplier != 1,
    )
    last = [float(times[-1]), register, export_register, device]
    return _Rows(times, look, last, coarse=channels.coarse)


def _fill(held: OpenDay, row: int, since: Any, wh: Floats, seconds: Floats) -> None:
    """Add rows to the half hours of a day; `since` = seconds after midnight at their ends."""
    usable = np.isfinite(wh) & (wh >= 0)
    slot = (since - 1) // SLOT_S
    for share, back in ((0.5, 1), (0.5, 0)):  # an hour is two halves
        at = slot - back
        whole = usable & (seconds == 2 * SLOT_S) & (at >= 0) & (at < SLOTS)
        np.add.at(held.wh[row], at[whole], wh[whole] * share)
        np.add.at(held.seconds[row], at[whole], SLOT_S)
    short = usable & (seconds > 0) & (seconds <= SLOT_S) & (slot < SLOTS)
    np.add.at(held.wh[row], slot[short], wh[short])
    np.add.at(held.seconds[row], slot[short], seconds[short].astype(np.uint16))
