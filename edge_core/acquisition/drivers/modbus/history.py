"""What a Modbus meter remembers, read back: histories behind a window, and the demand period that ended last.

**Window.** Per channel: its number, the start and the direction (forward) are written, then blocks are read and the next
one asked for, until an entry is missing: the meter has no more. Rows come oldest first, in portions of WINDOWS blocks a
channel, so that the line and the meter's neighbours are not kept waiting. Rules:
- Only `WindowHistory.requests` are written (`protocols.modbus.pdu.write_request` refuses all else), and only to one unit.
- Writing the start may be repeated: it sets where reading begins. It is repeated until `patience_s` is over, since a
  meter that searches far back answers late, or its gateway says busy for it. Asking for the next block may not: where
  the answer to that is lost nobody knows whether the window moved. Then, and whenever the entries do not go on behind
  the last one, the window is set anew at the last entry.
- After each block the channel's registers are read again: another master that moves the window between our requests is
  seen, the block thrown away. So is a meter that restarted and forgot the start. RESTARTS such accidents end the read.
- Times that a clock set back repeats are numbered occurrences within a portion; a search by time cannot find the second
  of two equal times, so that over the seam of two portions only the first is read.
- Stamps are the meter's civil time. The meter's clock cannot be read everywhere; the newest entry tells what it can: it
  cannot be in our future, and is not older than its interval while the meter records. `q.clock_offset_s` holds what is
  certain of the difference, 0 = the clocks may agree; beyond DOUBT_S ahead the rows are flagged CLOCK_INVALID.

**Last period.** Average power, real length and the seconds since its end are read together; the energy of the period is
power x length, rounded once. Its time is the multiple of the period that its end stands for: `q.clock_offset_s` is the
difference, by which the meter's clock is ahead (of whole periods nobody can know). Ends that are far from every multiple
are refused: then nothing says which interval this is. A shorter period is flagged PARTIAL, a longer one CLOCK_ADJUSTED.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from edge_core.acquisition.drivers.modbus.reader import NotKnown
from edge_core.acquisition.drivers.modbus.window import (
    NOTHING,
    Channel,
    Entry,
    Rows,
    channel_of,
    civil_before,
    entries_of,
    rows_of,
    stamp_words,
    utc_of,
)
from edge_core.config.history import CHANNEL_WORDS, ENTRY_WORDS
from edge_core.domain import Flag
from edge_core.protocols.modbus.codec import Exact
from edge_core.protocols.modbus.plan import Span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from edge_core.acquisition.drivers.modbus.points import Points
    from edge_core.acquisition.drivers.modbus.reader import Reader
    from edge_core.config.history import PeriodHistory, WindowHistory

WINDOWS = 7
"""Blocks of one channel in a portion: about a day of quarter hours, some seconds of a 9,600 baud line."""
RESTARTS = 3
MAX_BLOCKS = 20_000
FORWARD, GO_ON = 1, 1
DOUBT_S = 600
MISALIGNED = 0.2  # of a period: an end that far from its multiples names no interval
EARLY_S = 4 * 3600  # the start is put before an hour that comes twice
RECENT_S, RECENT_WAIT_S = 2 * 86_400, 5.0  # "recent entries are found fast"
EMPTY_LOOKS_S = (0.5, 1.0, 2.0)  # a window that was just placed and shows nothing may not be ready
FIRST_YEAR_S = 946_684_800  # 2000-01-01: before everything that such a clock can stamp
RUNNING_S = 1.0  # a period may end while its registers are read


class Unusable(Exception):
    """The history cannot be used; the text is the reason, `hint` what helps."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class _Moved(Exception):
    """The window is not where we left it."""


Timed = tuple[int, Entry]
"""UTC second, and the entry."""


@dataclass(slots=True)
class _Run:
    """Entries of one channel as they were read.

    Attributes:
        entries: in buffer order.
        ended: the meter has no more.
        behind: the time of the entry that the window stands behind, None = it was just placed.
        skipping: entries up to this time are known: the window was placed anew.
    """

    entries: list[Timed] = field(default_factory=list)
    ended: bool = False
    behind: int | None = None
    skipping: int | None = None


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows of a portion; `clock_offset_s` is known once the newest entry was seen."""

    channels: tuple[Channel, ...]
    rows: Rows
    more: bool
    clock_offset_s: float | None = None


class Window:
    """The history of one unit in one session.

    Args:
        history: where it stands.
        wanted: OBIS codes that the model knows; channels of others are left out.
        reader: asks.
        zone: of the stamps.
    """

    def __init__(
        self, history: WindowHistory, wanted: frozenset[str], reader: Reader, zone: ZoneInfo
    ) -> None:
        self._history = history
        self._wanted = wanted
        self._reader = reader
        self._zone = ZoneInfo(history.zone) if history.zone else zone
        self._shown = {
            name: Span("holding", getattr(history, name), getattr(history, name) + count)
            for name, count in CHANNEL_WORDS
        }
        self._block = Span("holding", history.block, history.block + ENTRY_WORDS * history.entries)

    async def channels(self) -> tuple[Channel, ...]:
        """The channels that store what the model knows, at its period.

        Raises:
            Unusable: there is none.
            Unanswered, Refused: from the reader.
        """
        found: dict[str, Channel] = {}
        others = []
        for number in range(1, self._history.channels + 1):
            await self._write(self._history.channel, (number,))
            channel = await self._show(number)
            if channel is None or channel.obis not in self._wanted:
                continue
            if channel.minutes * 60 != self._history.period_s:
                others.append(f"{channel.obis} every {channel.minutes} min")
            else:
                found.setdefault(channel.obis, channel)
        if not found:
            kept = f"; there are {', '.join(others)}" if others else ""
            raise Unusable(
                f"no channel of the load profile stores an energy every {self._history.period_s} s{kept}",
                "Set up a channel at the meter, or write its interval into period_s of a copy of the model.",
            )
        return tuple(found.values())

    async def portions(
        self, channels: Sequence[Channel], since: float | None, until: float | None, now: float
    ) -> AsyncIterator[Portion]:
        """Rows from `since` to `until`, oldest first.

        Raises:
            Unusable: the window never stays where it was put, or holds nonsense.
            Unanswered, Refused: from the reader.
        """
        begin = FIRST_YEAR_S if since is None else max(float(FIRST_YEAR_S), since)
        last: int | None = None
        for _ in range(MAX_BLOCKS):
            runs = [await self._run(channel, begin, until, now) for channel in channels]
            # Where one channel was left in the middle the others wait for it: rows are whole.
            open_ends = [run.entries[-1][0] for run in runs if not run.ended]
            limit = min(open_ends, default=None)
            rows = rows_of([_within(run.entries, since, until, last, limit) for run in runs])
            more = limit is not None and (until is None or limit < until)
            newest = max((run.entries[-1][0] for run in runs if run.entries), default=None)
            known = limit is None and newest is not None
            offset = self._offset(newest, now) if known and newest is not None else None
            yield Portion(tuple(channels), rows, more, offset)
            if not more or limit is None:
                return
            if last is not None and limit <= last:
                raise Unusable(f"the load profile does not go on behind {_text(limit, self._zone)}")
            begin = last = limit

    def _offset(self, newest: int, now: float) -> float:
        """What is certain of the meter's clock minus ours, from its newest entry."""
        if newest > now:
            return newest - now
        return min(0.0, newest + self._history.period_s - now)

    # --- one channel

    async def _run(self, channel: Channel, begin: float, until: float | None, now: float) -> _Run:
        """Up to WINDOWS blocks of a channel from a time on; at least one entry unless it ended."""
        run = _Run()
        blocks = restarts = 0
        placed = False
        while True:
            try:
                if not placed:
                    at = run.entries[-1][0] if run.entries else begin
                    await self._place(channel, at, now)
                    placed = True
                    run.behind, run.skipping = None, run.entries[-1][0] if run.entries else None
                else:
                    await self._go_on()
                entries = await self._look(channel)
                for pause_s in EMPTY_LOOKS_S if run.behind is None else ():
                    if entries:
                        break
                    await asyncio.sleep(pause_s)
                    entries = await self._look(channel)
                self._take(run, entries, begin)
            except _Moved as moved:
                placed = False
                restarts += 1
                if restarts > RESTARTS:
                    raise Unusable(
                        f"the window of channel {channel.number} does not stay where it was put: {moved}",
                        "Does another master read the load profile of this meter?",
                    ) from moved
                continue
            blocks += 1
            run.ended = len(entries) < self._history.entries
            enough = bool(run.entries) and (
                blocks >= WINDOWS or (until is not None and run.entries[-1][0] >= until)
            )
            if run.ended or enough:
                return run
            if blocks > MAX_BLOCKS:
                raise Unusable(f"channel {channel.number} never ends")

    def _take(self, run: _Run, entries: list[Entry], begin: float) -> None:
        """Add a block's entries, if they go on where the window stands.

        Raises:
            _Moved: they do not.
        """
        times = utc_of((e.stamp for e in entries), self._zone, run.behind)
        behind = run.behind
        fresh: list[Timed] = []
        skipping = run.skipping
        for time, entry in zip(times, entries, strict=True):
            if behind is None and time < begin - EARLY_S:
                raise _Moved(f"it shows {entry.stamp}, which is before what was asked for")
            if behind is not None and time <= behind and not entry.flags & Flag.CLOCK_ADJUSTED:
                raise _Moved(f"{entry.stamp} follows {_text(behind, self._zone)}")
            behind = time
            if skipping is not None and time <= skipping:
                continue
            skipping = None
            fresh.append((time, entry))
        run.behind, run.skipping = behind, skipping
        run.entries += fresh

    async def _place(self, channel: Channel, at: float, now: float) -> None:
        """Choose channel, start and direction."""
        long_ago = now - at > RECENT_S
        patience_s = (
            self._history.patience_s if long_ago else min(RECENT_WAIT_S, self._history.patience_s)
        )
        start = stamp_words(civil_before(at, self._zone))
        await self._write(self._history.channel, (channel.number,))
        await self._write(self._history.start, start, patience_s)
        await self._write(self._history.direction, (FORWARD,), patience_s)

    async def _go_on(self) -> None:
        """Ask for the next block.

        Raises:
            _Moved: whether it was asked for is not known.
        """
        try:
            await self._write(self._history.next, (GO_ON,), once=True)
        except NotKnown as unknown:
            raise _Moved(
                f"whether the next block was asked for is not known: {unknown}"
            ) from unknown

    async def _look(self, channel: Channel) -> list[Entry]:
        """The entries of the block, if it is the channel's."""
        words = (await self._reader.read({self._block})).words[self._block]
        if words is None:
            raise Unusable(f"the meter does not show registers {self._block.start} and on")
        if await self._show(channel.number) != channel:
            raise _Moved("another channel is shown, or it was set up anew")
        try:
            entries = entries_of(self._history, channel.type, words)
        except ValueError as error:
            raise _Moved(str(error)) from error
        if len(entries) < self._history.entries and await self._restarted():
            raise _Moved("the meter restarted, and forgot what was asked for")
        return entries

    async def _restarted(self) -> bool:
        """Is the start that was written gone? An empty block is no end then."""
        span = Span("holding", self._history.start, self._history.start + 3)
        words = (await self._reader.read({span})).words[span]
        return words is not None and all(word == NOTHING for word in words)

    async def _show(self, number: int) -> Channel | None:
        """What the chosen channel stores."""
        words = (await self._reader.read(self._shown.values())).words
        got = {name: words[span] for name, span in self._shown.items()}
        quantity, scaler, interval, data_type = (got[name] for name, _ in CHANNEL_WORDS)
        if quantity is None or scaler is None or interval is None or data_type is None:
            return None
        return channel_of(self._history, number, quantity, scaler[0], interval, data_type[0])

    async def _write(
        self, address: int, words: tuple[int, ...], patience_s: float = 0.0, *, once: bool = False
    ) -> None:
        await self._reader.write(
            address, words, self._history.requests, patience_s=patience_s, once=once
        )


def _within(
    entries: Sequence[Timed],
    since: float | None,
    until: float | None,
    last: int | None,
    limit: int | None,
) -> list[Timed]:
    """What of a run belongs to the portion."""
    return [
        (time, entry)
        for time, entry in entries
        if (since is None or time >= since)
        and (until is None or time <= until)
        and (last is None or time > last)
        and (limit is None or time <= limit)
    ]


def _text(at: float, zone: ZoneInfo) -> str:
    return f"{dt.datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S}"


# --- the demand period that ended last


@dataclass(frozen=True, slots=True)
class LastPeriod:
    """The energies of a demand period.

    Attributes:
        time: the multiple of the period that its end stands for.
        values: in the order of the model's columns, in 10**resolution of their units; None = not available.
        length_s: how long it really lasted.
        flags: PARTIAL, CLOCK_ADJUSTED.
        clock_offset_s: the meter's clock minus ours, of the part below a period.
    """

    time: int
    values: tuple[int | None, ...]
    length_s: int
    flags: int
    clock_offset_s: float


async def last_period(
    history: PeriodHistory, points: Points, reader: Reader
) -> tuple[LastPeriod | None, float]:
    """The period that ended last, None before the first has ended; and when it was read.

    Raises:
        Unusable: its end stands for no multiple of the period.
        Unanswered, Refused: from the reader.
    """
    elapsed, length = (points.by_name[name] for name in (history.elapsed, history.length))
    powers = [points.by_name[name] for name in history.columns.values()]
    bulk = await reader.read(points.spans([elapsed, length, *powers]))
    since_end = points.exact(elapsed, bulk.words)
    if since_end is not None and since_end.in_scaler(0) <= bulk.heard_at - bulk.sent_at + RUNNING_S:
        # The period may have ended between two requests: what came is of two periods.
        bulk = await reader.read(points.spans([elapsed, length, *powers]))
        since_end = points.exact(elapsed, bulk.words)
    lasted = points.exact(length, bulk.words)
    seconds = lasted.in_scaler(0) if lasted else 0
    if since_end is None or seconds <= 0:
        return None, bulk.heard_at
    end = (bulk.sent_at + bulk.heard_at) / 2 - since_end.in_scaler(-1) / 10
    time = round(end / history.period_s) * history.period_s
    offset = time - end
    if abs(offset) > MISALIGNED * history.period_s:
        raise Unusable(
            f"its demand periods end {abs(offset):.0f} s {'before' if offset > 0 else 'after'} the multiples of "
            f"{history.period_s} s: nothing tells which interval they are",
            "Let the meter's own clock synchronise its demand period, and set that clock.",
        )
    flags = 0
    if seconds < history.period_s:
        flags = int(Flag.PARTIAL)
    elif seconds > history.period_s:
        flags = int(Flag.CLOCK_ADJUSTED)
    values = tuple(
        _energy(points.exact(point, bulk.words), seconds, history.resolution) for point in powers
    )
    return LastPeriod(time, values, seconds, flags, offset), bulk.heard_at


def _energy(power: Exact | None, seconds: int, scaler: int) -> int | None:
    """Energy of an average power over some seconds, rounded once."""
    if power is None:
        return None
    return Exact(power.numerator * seconds, power.denominator * 3600, power.scale).in_scaler(scaler)
