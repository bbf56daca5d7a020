"""The history of a simulated meter behind a window: request registers are written, entries are read.

Entries are what the counters read at the ends of their intervals, on the meter's clock (which may be off), stamped in
its civil time. As ABB's manual has it (2CMC48001M0201 revision C, 9.5 and 9.9): writing start or direction begins a
search, writing 1 to "next" goes on by a block, all bits one are no entry, time registers are all bits one after a restart.

Traps: `busy` (so many writes of the start are refused with exception 6), `not_ready` (so many looks at the block show
nothing), `missing` (intervals that were not captured), `status` (bits of an entry), `moved_at` (looks at the block before
which another master has put the window elsewhere), `restarted_at` (the same, the meter has restarted).
"""

from __future__ import annotations

import datetime as dt
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, BUSY = 1, 2, 3, 6
NOTHING = 0xFFFF
ENTRY = 8
DEPTH_S = 2 * 86_400


@dataclass
class Channel:
    """What a channel is set up to store; `minutes` between entries."""

    obis: str
    scaler: int
    minutes: int
    signed: bool = False


@dataclass
class HistoryWindow:
    """One window.

    Attributes:
        table: [history] of the meter model.
        channels: from channel 1 on; None = not set up.
        raw: what a channel's counter held at a UTC second.
        clock_offset_s: the meter's clock minus UTC.
        zone: of its civil time.
        depth_s: how far back entries are kept.
        writes: (address, words) of every write that was taken.
        looks: how often the block was read.
    """

    table: dict[str, Any]
    channels: list[Channel | None]
    raw: Callable[[str, int], int]
    zone: dt.tzinfo
    clock_offset_s: int = 0
    depth_s: int = DEPTH_S
    busy: int = 0
    not_ready: int = 0
    missing: set[int] = field(default_factory=set)
    status: dict[int, int] = field(default_factory=dict)
    moved_at: set[int] = field(default_factory=set)
    restarted_at: set[int] = field(default_factory=set)
    writes: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    looks: int = 0
    _channel: int = 1
    _start: tuple[int, ...] = (NOTHING,) * 3
    _direction: int = 0
    _cursor: int | None = None
    _hidden: bool = False

    @property
    def registers(self) -> set[int]:
        """Every register that exists."""
        t = self.table
        shown = ((t["quantity"], 3), (t["scaler"], 1), (t["interval"], 2), (t["data_type"], 1))
        blocks = (*self._groups().items(), *shown, (t["block"], ENTRY * t["entries"]))
        return {at for first, count in blocks for at in range(first, first + count)}

    def _groups(self) -> dict[int, int]:
        t = self.table
        return {t["channel"]: 1, t["start"]: 3, t["direction"]: 1, t["next"]: 1}

    # --- what a master does

    def write(self, address: int, words: Sequence[int], now: int) -> int:
        """Take a write; the exception code, 0 = done."""
        if self._groups().get(address) != len(words):
            return ILLEGAL_ADDRESS
        t = self.table
        if address == t["start"] and self.busy:
            self.busy -= 1
            return BUSY
        self.writes.append((address, tuple(words)))
        if address == t["channel"]:
            if not 1 <= words[0] <= t["channels"]:
                return ILLEGAL_VALUE
            self._channel, self._cursor = words[0], None
        elif address == t["start"]:
            self._start = tuple(words)
            self._search(now)
        elif address == t["direction"]:
            self._direction = words[0]
            self._search(now)
        elif self._cursor is not None:
            self._cursor += t["entries"]
        return 0

    def read(self, addresses: range, now: int) -> list[int]:
        """Registers; those between the groups read 0."""
        block = range(self.table["block"], self.table["block"] + ENTRY * self.table["entries"])
        entries: list[int] = []
        if addresses[0] < block[-1] and block[0] <= addresses[-1]:
            self.looked()
            entries = self._block(now)
        return [entries[at - block[0]] if at in block else self._header(at) for at in addresses]

    def _header(self, address: int) -> int:
        t, channel = self.table, self._set_up()
        if channel is not None and t["quantity"] <= address < t["quantity"] + 3:
            octets = bytes(map(int, channel.obis.split(".")))
            return int(struct.unpack(">3H", octets)[address - t["quantity"]])
        told = {t["channel"]: self._channel}
        told |= {t["start"] + i: word for i, word in enumerate(self._start)}
        if channel is not None:
            told |= {
                t["scaler"]: channel.scaler & NOTHING,
                t["interval"] + 1: channel.minutes,
                t["data_type"]: 20 if channel.signed else 21,
            }
        return told.get(address, 0)

    def looked(self) -> None:
        """The block was asked for, and is about to be shown."""
        self.looks += 1
        if self.looks in self.moved_at:
            self._cursor = 0
        if self.looks in self.restarted_at:
            self._cursor, self._start = None, (NOTHING,) * 3
        self._hidden = self.not_ready > 0
        self.not_ready -= self._hidden

    # --- what is stored

    def _set_up(self) -> Channel | None:
        place = self._channel - 1
        return self.channels[place] if place < len(self.channels) else None

    def stored(self, minutes: int, now: int) -> list[int]:
        """Ends of the intervals whose entries there are, UTC seconds, oldest first."""
        period = 60 * minutes
        newest = (now + self.clock_offset_s) // period * period - self.clock_offset_s
        oldest = newest - self.depth_s // period * period
        return [at for at in range(oldest, newest + 1, period) if at not in self.missing]

    def civil(self, at: int) -> dt.datetime:
        """What the meter's clock shows at a UTC second."""
        return dt.datetime.fromtimestamp(at + self.clock_offset_s, self.zone).replace(tzinfo=None)

    def _search(self, now: int) -> None:
        """The first entry, in buffer order, whose stamp is not before the start."""
        channel = self._set_up()
        octets = struct.pack(">3H", *self._start)
        if channel is None or octets == b"\xff" * 6:
            self._cursor = None
            return
        year, month, day, hour, minute, second = octets
        try:
            start = dt.datetime(2000 + year, month, day, hour, minute, second)  # noqa: DTZ001 civil time is what is written
        except ValueError:
            self._cursor = None
            return
        times = self.stored(channel.minutes, now)
        after = (i for i, at in enumerate(times) if self.civil(at) >= start)
        self._cursor = next(after, len(times))

    def _block(self, now: int) -> list[int]:
        channel, entries = self._set_up(), self.table["entries"]
        shown: list[int] = []
        hidden = channel is None or self._cursor is None or self._hidden or self._direction != 1
        if channel is not None and self._cursor is not None and not hidden:
            times = self.stored(channel.minutes, now)[self._cursor : self._cursor + entries]
            for at in times:
                shown += self._entry(channel, at)
        return shown + [NOTHING] * (ENTRY * entries - len(shown))

    def _entry(self, channel: Channel, at: int) -> list[int]:
        civil = self.civil(at)
        stamp = (civil.year - 2000, civil.month, civil.day, civil.hour, civil.minute, civil.second)
        value = self.raw(channel.obis, at).to_bytes(8, "big", signed=channel.signed)
        status = self.status.get(at, 1)
        return [*struct.unpack(">3H", bytes(stamp)), status, *struct.unpack(">4H", value)]
