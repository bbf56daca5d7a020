"""The gap ledger: for one profile of one device, which rows are known. Pure: no I/O, no clock.

"New" is what this ledger lacks: never what lies after a watermark, never what arrives later.

A periodic profile keeps its known times as runs (first, last, step) and the hashes of its newest rows; an irregular one
(events, billing) keeps its newest KEEP_TIMES times with their hashes. A row is known when its time and occurrence are
known and its hash is the same or forgotten. A known row with another hash is a conflict: it is taken, counted, and its
hash becomes the current one. Of samples the first one wins, whatever comes later.

*Occurrences.* A meter whose clock was set back captures some times twice. The block numbers occurrences in buffer order,
but only over the rows that it holds. What it does not hold is added here: the rows of one time are laid against the known
occurrences of that time so that the hashes agree, and a step back in time that was never seen before proves that all rows
after it are new, for a buffer only grows at its end. Steps are remembered with the hashes on both sides; a step that lies
inside a remembered one is that one seen through a selective read. Limits, all of which end in a second delivery of the same
row under the same identity or in a conflict, never in silence: two steps back over the same times, of which a block shows
only the second, need the hashes of the rows between (kept for KEEP_REPEATS rows); a row pushed alone after a step back is
taken for a conflict until the buffer is read by entry, which sets both right.

*Forgetting.* MAX_RUNS runs, KEEP_REPEATS repeats and KEEP_TIMES irregular times are kept, oldest go first; a forgotten row
that comes again is delivered again, under the same identity.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_core.domain import Flag, as_list
from edge_core.journal.records import Hole, LedgerEntry, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Block, Obis

KEEP_HASHES = 6  # reads overlap by two periods; three more absorb a late read
KEEP_TIMES = 512
KEEP_REPEATS = 512
KEEP_STEPS = 16
MAX_RUNS = 96
MAX_GAPS = 64
HASH_OCTETS = 3


class Absorbed(msgspec.Struct, frozen=True):
    """What a block brings.

    Attributes:
        rows: its rows to keep, new ones and conflicts; None = all of them, as they are.
        occ: (position in `rows`, occurrence) of the kept ones.
        known: dropped rows.
        conflicts: kept rows that were known with other values.
    """

    rows: list[int] | None
    occ: tuple[tuple[int, int], ...]
    known: int
    conflicts: int

    def of(self, block: Block) -> Block | None:
        """The block of the kept rows with their occurrences, None when there are none."""
        if self.rows is None:
            return block if block.rows else None
        if not self.rows:
            return None
        kept = block if len(self.rows) == block.rows else block.take(self.rows)
        return kept if kept.occ == self.occ else msgspec.structs.replace(kept, occ=self.occ)


class Entry(msgspec.Struct, array_like=True):
    """The ledger of one profile of one device. Fields are only ever added at the end.

    Attributes:
        newest: the highest known time, 0 when there is none.
        times, hashes: newest (or, irregular, all kept) times of occurrence 0, ascending, HASH_OCTETS octets each.
        repeats: (time, occurrence, hash) of occurrences from 1 on.
        steps: (time before, time after, hash of both rows) where time went back.
        gaps: (first, last, cause) as told by `note_gap`.
    """

    kind: str
    period: int = 0
    newest: int = 0
    watermark: int | None = None
    captured: int = 0
    conflicts: int = 0
    runs: list[tuple[int, int, int]] = []
    times: list[int] = []
    hashes: bytes = b""
    repeats: list[tuple[int, int, int]] = []
    steps: list[tuple[int, int, int]] = []
    gaps: list[tuple[int, int, str]] = []

    # ---- absorbing rows ------------------------------------------------------------------------

    def absorb(self, block: Block, watermark: int | None = None) -> Absorbed:
        """Take in a block; the entry must be a private copy until the rows are durable.

        Args:
            watermark: where the next read starts; None = the newest row of the block. It never moves back.
        """
        times: list[int] = as_list(block.times)
        self.period = block.layout.period
        rises = all(a < b for a, b in pairwise(times))
        repeated = bool(times and self.repeats) and times[0] <= self.repeats[-1][0]
        if not rises or block.occ or repeated:
            out = self._absorb_stepping(block, times)
        else:
            out = self._absorb_rising(block, times)
        if times:
            self.newest = max(self.newest, max(times))
            watermark = max(times) if watermark is None else watermark
        if watermark is not None and (self.watermark is None or watermark > self.watermark):
            self.watermark = watermark
        return out

    def _absorb_rising(self, block: Block, times: list[int]) -> Absorbed:
        """The usual block: every time is there once and later than the one before."""
        if not times:
            return Absorbed(None, (), 0, 0)
        if not self.captured or times[0] > self.newest:
            self._remember(block, times, range(len(times)))
            return Absorbed(None, (), 0, 0)
        hashes = dict(self._hashes())
        sampled = _sampled(block)
        rows, new, conflicts = [], [], 0
        for row, time in enumerate(times):
            if not self.knows(time, hashes):
                new.append(row)
                rows.append(row)
            elif time in hashes and row not in sampled:
                value = row_hash(block, row)
                if value != hashes[time]:
                    self._change_hash(time, 0, value)
                    conflicts += 1
                    rows.append(row)
        self.conflicts += conflicts
        self._remember(block, times, new)
        if len(rows) == len(times):
            return Absorbed(None, (), 0, conflicts)
        return Absorbed(rows, (), len(times) - len(rows), conflicts)

    def _absorb_stepping(self, block: Block, times: list[int]) -> Absorbed:
        """Times that repeat or go back: lay the rows of each time against its known occurrences."""
        unproven = self._walk_steps(block, times)
        claimed = dict(block.occ)
        hashes = dict(self._hashes())
        sampled = _sampled(block)
        by_time: dict[int, list[int]] = {}
        for row, time in enumerate(times):
            by_time.setdefault(time, []).append(row)
        repeats: dict[int, list[int]] = {}
        for time, _, value in sorted(self.repeats):
            repeats.setdefault(time, []).append(value)
        kept: dict[int, int] = {}  # row -> occurrence
        firsts, conflicts = [], 0
        for time, rows in by_time.items():
            known: list[int | None] = []
            if self.knows(time, hashes):
                known = [hashes.get(time), *repeats.get(time, ())]
            values = [row_hash(block, row) for row in rows]
            places = _align(
                known,
                values,
                at_least=claimed.get(rows[0], 0),
                fresh_from=sum(row not in unproven for row in rows),
            )
            for row, value, place in zip(rows, values, places, strict=True):
                if place >= len(known):
                    kept[row] = place
                    if place:
                        self.repeats.append((time, place, value))
                        self.captured += 1
                    else:
                        firsts.append(row)
                elif known[place] not in (None, value) and row not in sampled:
                    self._change_hash(time, place, value)
                    conflicts += 1
                    kept[row] = place
        self.conflicts += conflicts
        self.repeats = sorted(self.repeats)[-KEEP_REPEATS:]
        self._remember(block, times, sorted(firsts, key=times.__getitem__))
        rows_kept = sorted(kept)
        occ = tuple((i, kept[row]) for i, row in enumerate(rows_kept) if kept[row])
        return Absorbed(rows_kept, occ, len(times) - len(rows_kept), conflicts)

    def _walk_steps(self, block: Block, times: list[int]) -> set[int]:
        """Rows that stand after a step back never seen before, and whose time may stand before it too.

        Such rows are new whatever their hash says: the buffer only grows at its end. Times above all that stood before the
        step are not among them: a selective read may have shown those already.
        """
        unproven: set[int] = set()
        left = list(self.steps)
        highest, new = times[0], None
        for row in range(1, len(times)):
            before, after = times[row - 1], times[row]
            if after < before:
                value = row_hash(block, row - 1) ^ (row_hash(block, row) << 1) & 0xFFFFFF
                step = (before, after, value)
                inside = [x for x in left if before <= x[0] and after >= x[1] and x[:2] != step[:2]]
                if step in left:
                    left.remove(step)
                elif inside:
                    left.remove(inside[0])
                else:
                    self.steps = [*self.steps, step][-KEEP_STEPS:]
                    new = highest
            if new is not None and after <= new:
                unproven.add(row)
            highest = max(highest, after)
        return unproven

    def _remember(self, block: Block, times: list[int], rows: Sequence[int]) -> None:
        """Enter rows of occurrence 0 that were not known, in ascending order of time."""
        if not rows:
            return
        self.captured += len(rows)
        period = self.period
        if period:
            first = last = times[rows[0]]
            for row in rows[1:]:
                if times[row] == last + period:
                    last = times[row]
                    continue
                self._add_run(first, last)
                first = last = times[row]
            self._add_run(first, last)
        keep = KEEP_HASHES if period else KEEP_TIMES
        merged = self._hashes()
        floor = merged[0][0] if len(merged) >= keep else None
        fresh = [
            (times[row], row_hash(block, row))
            for row in rows[-keep:]
            if floor is None or times[row] > floor
        ]
        if fresh:
            merged = sorted({**dict(merged), **dict(fresh)}.items())[-keep:]
            self._store_hashes(merged)

    def _add_run(self, first: int, last: int) -> None:
        """Enter consecutive unknown times, joined with the runs that they touch."""
        period, runs = self.period, self.runs
        if runs and runs[-1][1] + period == first and runs[-1][2] == period:  # the next read
            runs[-1] = (runs[-1][0], last, period)
            return
        joined = []
        for run in runs:
            fits = run[2] == period or run[0] == run[1]
            if fits and run[1] + period == first:
                first = run[0]
            elif fits and run[0] - period == last:
                last = run[1]
            else:
                joined.append(run)
        joined.insert(bisect_right(joined, (first, last, period)), (first, last, period))
        self.runs = joined[-MAX_RUNS:]

    def knows(self, time: int, hashes: dict[int, int] | None = None) -> bool:
        """Is occurrence 0 of this time known?"""
        if any(a <= time <= b and not (time - a) % s for a, b, s in reversed(self.runs)):
            return True
        return time in (hashes if hashes is not None else self.times)

    def _hashes(self) -> list[tuple[int, int]]:
        octets = self.hashes
        return [
            (time, int.from_bytes(octets[3 * i : 3 * i + 3], "big"))
            for i, time in enumerate(self.times)
        ]

    def _store_hashes(self, pairs: list[tuple[int, int]]) -> None:
        self.times = [time for time, _ in pairs]
        self.hashes = b"".join(value.to_bytes(HASH_OCTETS, "big") for _, value in pairs)

    def _change_hash(self, time: int, occurrence: int, value: int) -> None:
        if occurrence:
            self.repeats = [
                (t, k, value if (t, k) == (time, occurrence) else h) for t, k, h in self.repeats
            ]
        else:
            self._store_hashes([(t, value if t == time else h) for t, h in self._hashes()])

    # ---- what is missing -----------------------------------------------------------------------

    def note_gap(self, first: int, last: int, cause: str) -> None:
        """Name the cause of what is missing from first to last; a later word on the same times holds."""
        gaps = []
        for a, b, other in self.gaps:
            if b < first or a > last:
                gaps.append((a, b, other))
                continue
            if a < first:
                gaps.append((a, first - 1, other))
            if b > last:
                gaps.append((last + 1, b, other))
        gaps.append((first, last, cause))
        self.gaps = sorted(gaps)[-MAX_GAPS:]

    def forget(self, block: Block, cause: str) -> None:
        """Rows of a block were given up before they were delivered: they are missing, with a cause."""
        times: list[int] = sorted(set(as_list(block.times)))
        gone = set(times)
        occ = dict(block.occ)
        self.captured -= block.rows
        self.repeats = [
            r
            for r in self.repeats
            if (r[0], r[1]) not in {(as_list(block.times)[row], k) for row, k in occ.items()}
        ]
        self._store_hashes([(t, h) for t, h in self._hashes() if t not in gone])
        runs = []
        for first, last, step in self.runs:
            if last < times[0] or first > times[-1]:
                runs.append((first, last, step))
                continue
            start = None
            for time in range(first, last + 1, step or 1):
                if time in gone:
                    if start is not None:
                        runs.append((start, time - step, step))
                    start = None
                elif start is None:
                    start = time
            if start is not None:
                runs.append((start, last, step))
        self.runs = runs[-MAX_RUNS:]
        self.note_gap(times[0], times[-1], cause)

    def holes(self) -> tuple[Hole, ...]:
        """Missing times within what is known, and noted ones outside of it, oldest first."""
        spans: list[tuple[int, int, int]] = []  # first, last, step
        end = None
        for first, last, step in sorted(self.runs):
            if end is not None and step:
                rows = round((first - end) / step) - 1
                if rows > 0:
                    spans.append((end + step, end + step * rows, step))
            end = last if end is None else max(end, last)
        out: list[Hole] = []
        for first, last, step in spans:
            out += self._named(first, last, step)
        edges = (min(self.runs)[0], end) if self.runs and end is not None else None
        for first, last, cause in self.gaps:
            if edges is None:
                out.append(Hole(first, last, 0, cause))
                continue
            if first < edges[0]:
                out.append(self._outside(first, min(last, edges[0] - 1), cause))
            if last > edges[1]:
                out.append(self._outside(max(first, edges[1] + 1), last, cause))
        return tuple(sorted(out, key=lambda hole: hole.first))

    def _outside(self, first: int, last: int, cause: str) -> Hole:
        """A noted gap before or after all that is known, its rows counted on the grid of the nearest run."""
        if not self.period:
            return Hole(first, last, 0, cause)
        anchor = self.newest
        on_grid = first + (anchor - first) % self.period
        return Hole(first, last, max(0, (last - on_grid) // self.period + 1), cause)

    def _named(self, first: int, last: int, step: int) -> list[Hole]:
        """A missing span, split where the noted cause changes."""
        out: list[Hole] = []
        for time in self._edges(first, last, step):
            cause = next((c for a, b, c in self.gaps if a <= time[0] <= b), "")
            if out and out[-1].cause == cause:
                out[-1] = Hole(out[-1].first, time[1], (time[1] - out[-1].first) // step + 1, cause)
            else:
                out.append(Hole(time[0], time[1], (time[1] - time[0]) // step + 1, cause))
        return out

    def _edges(self, first: int, last: int, step: int) -> list[tuple[int, int]]:
        """Pieces of a span between the borders of the noted gaps, on the grid."""
        cuts = {first}
        for a, b, _ in self.gaps:
            for border in (a, b + 1):
                on_grid = border + (first - border) % step
                if first < on_grid <= last:
                    cuts.add(on_grid)
        ordered = sorted(cuts)
        return [
            (a, (ordered[i + 1] - step) if i + 1 < len(ordered) else last)
            for i, a in enumerate(ordered)
        ]

    def view(self, meter: str, device: str, profile: Obis) -> LedgerEntry:
        """The entry for people and for completeness figures."""
        holes = self.holes()
        if self.period or self.runs:
            runs = tuple(Run(a, b, s) for a, b, s in self.runs)
        else:
            runs = tuple(Run(t, t, 0) for t in self.times)
        return LedgerEntry(
            meter=meter,
            device=device,
            profile=profile,
            kind=self.kind,
            period=self.period,
            runs=runs,
            repeats=len(self.repeats),
            holes=holes,
            watermark=self.watermark,
            captured=self.captured,
            due=self.captured + sum(hole.rows for hole in holes),
            conflicts=self.conflicts,
        )


def row_hash(block: Block, row: int) -> int:
    """24 bits that change when a value or the layout of a row changes; the same on every machine and release."""
    cells = [c[row].item() if isinstance(c, np.ndarray) else c[row] for c in block.columns]
    return zlib.crc32(repr(cells).encode(), int(block.layout.digest[:8], 16)) & 0xFFFFFF


def _sampled(block: Block) -> set[int]:
    return {
        row
        for first, count, bits in block.flags
        if bits & Flag.SAMPLED
        for row in range(first, first + count)
    }


def _align(
    known: Sequence[int | None], values: Sequence[int], *, at_least: int, fresh_from: int
) -> range | list[int]:
    """The occurrences of the rows of one time.

    Args:
        known: hashes of the known occurrences 0, 1, ...; None = forgotten.
        values: hashes of the rows, in buffer order.
        at_least: so many rows of this time stand before the first one, says the block.
        fresh_from: rows from this position on are new, unless a repeat proves that it is them.
    """
    if not known:
        return range(at_least, at_least + len(values))
    best, best_score = -1, -1
    for start in range(at_least, max(len(known), at_least) + 1):
        if start >= len(known) and fresh_from and start > at_least:
            break  # without a step back the first row is one of the known, or in conflict with it
        score = 0
        for j, value in enumerate(values):
            place = start + j
            if place >= len(known):
                continue
            same = known[place] == value
            if j >= fresh_from and not (place and same):
                break
            if not same and known[place] is not None:
                break
            score += same
        else:
            if score > best_score:
                best, best_score = start, score
    if best >= 0:
        return range(best, best + len(values))
    start = max(at_least, len(known) - len(values))
    return [
        start + j if j < fresh_from else max(start + j, len(known) + j - fresh_from)
        for j in range(len(values))
    ]
