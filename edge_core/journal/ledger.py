"""The gap ledger: for one profile of one device, which rows are known. Pure: no I/O, no clock.

"New" is what this ledger lacks: never what lies after a watermark, never what arrives later.

A periodic profile keeps its known times as runs (first, last, step), an irregular one (events, billing) its newest KEEP_TIMES
times with their hashes. The last KEEP_TAIL rows of the buffer are kept with their hashes, in buffer order: the tail. A row is
known when its time and occurrence are known and its hash is the same or forgotten. A known row with another hash is a
conflict: it is taken, counted, and its hash becomes the current one. So is a row above `q["relaid"]` of its block (the
layout that it was read under was disproved), unless its hash is known and the same; and every row of a block with
`q["doubt"]`, which says again what was known, now with doubt. Of samples the first one wins, whatever comes later.

*Occurrences.* A meter whose clock was set back captures some times twice. The block numbers occurrences in buffer order,
but only over the rows that it holds; what it does not hold is added here. Three things tell a row of the second pass from a
repeated one of the first, for a buffer only grows at its end: it stands after the last row of the tail; it stands after a
step back that was never seen before (steps are remembered with the hashes on both sides; one that lies inside a remembered
one is that one seen through a selective read); its hash. The rows of one time are laid against the known occurrences so
that all three agree.

Limits. A selective read across a step hides rows; if the first pass had gaps there, a later read by entry may deliver rows
of the second pass that were not hidden once more, as a further occurrence. Where nothing tells them apart (the same step back twice with values that never change), rows of the second step
are taken for those of the first. A row that arrives alone after a step back which nobody has seen yet is a conflict, or
dropped when the hash is forgotten: after a clock event the buffer is to be read by entry, from before the first
conflicting row if there was one, and both are set right.

*Forgetting.* KEEP_REPEATS repeats and KEEP_TIMES irregular times are kept, oldest go first. Noted gaps of one cause become one
where nothing else is missing between them. Beyond MAX_RUNS runs or MAX_GAPS gaps the oldest are merged: what was missing
among them stays as one number for each cause, so that due = captured + missing holds for ever, to the row. A forgotten
row that comes again is delivered again, under the same identity, and counted no second time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from edge_core.domain import Flag, as_list
from edge_core.journal.records import Hole, LedgerEntry, Run
from edge_core.journal.rows import (
    HASH,
    HASH_OCTETS,
    align,
    integers,
    join,
    row_hashes,
    split,
    varints,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Block, Obis

KEEP_TAIL = 4  # reads overlap by two periods; with HASH_OCTETS: a blob of 64 meters fits a page
KEEP_TIMES = 512
KEEP_REPEATS = 512
KEEP_STEPS = 16
MAX_RUNS = 1024  # three gaps a day for a year
MAX_GAPS = 256
KEEP_LONG = 8  # runs
TIDY_GAPS = 32  # above this, gaps of one cause become one


class Absorbed(msgspec.Struct, frozen=True):
    """What a block brings.

    Attributes:
        rows: its rows to keep, new ones and conflicts; None = all of them, as they are.
        occ: (position in `rows`, occurrence) of the kept ones.
        known: dropped rows.
        conflicts: kept rows that were known with other values.
        stepped: the kept rows alone do not tell how the entry changed (a clock was set back).
    """

    rows: list[int] | None
    occ: tuple[tuple[int, int], ...]
    known: int
    conflicts: int
    stepped: bool = False

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
        times, hashes: known times of an irregular profile, ascending, and HASH_OCTETS octets for each.
        tail_times, tail_hashes: the last rows of the buffer, in buffer order.
        tail_occ: their occurrences, empty when all are 0.
        repeats: (time, occurrence, hash) of occurrences from 1 on.
        steps: (time before, time after, hash of both rows) where time went back.
        gaps: (first, last, cause) as told by `note_gap`, ascending, disjoint.
        merged: (first, last, rows, cause) of what was missing at `merged_to` and before, one for each cause; the rows lie
            somewhere between first and last.
        origin: the oldest time that was ever known above `merged_to`, where its row was given up; else 0.
        spans: runs after the first one in short form, while the entry is not in use (`shorten`).
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
    tail_times: list[int] = []
    tail_hashes: bytes = b""
    tail_occ: list[int] = []
    repeats: list[tuple[int, int, int]] = []
    steps: list[tuple[int, int, int]] = []
    gaps: list[tuple[int, int, str]] = []
    merged: list[tuple[int, int, int, str]] = []
    merged_to: int = 0
    origin: int = 0
    spans: bytes = b""

    # ---- absorbing rows ------------------------------------------------------------------------

    def absorb(self, block: Block, watermark: int | None = None) -> Absorbed:
        """Take in a block; the entry must be a private copy until the rows are durable.

        Args:
            watermark: where the next read starts; None = the newest row of the block. It never moves back.
        """
        times: list[int] = as_list(block.times)
        self.period = block.layout.period
        rises = not block.occ and all(a < b for a, b in pairwise(times))
        if rises and (not times or not self.captured or times[0] > self.newest):
            self._remember(block, times, range(len(times)))
            self._extend_tail(block, range(len(times)))
            out = Absorbed(None, (), 0, 0)
        elif rises and not self.steps and not self.repeats:
            out = self._absorb_rising(block, times)
        else:
            out = self._absorb_stepping(block, times)
        if times:
            self.newest = max(self.newest, max(times))
            watermark = max(times) if watermark is None else watermark
        if watermark is not None and (self.watermark is None or watermark > self.watermark):
            self.watermark = watermark
        return out

    def _absorb_rising(self, block: Block, times: list[int]) -> Absorbed:
        """The usual overlap: the clock was never set back, every time is there once."""
        hashes = self._base_hashes()
        sampled, relaid = _sampled(block), _relaid(block)
        rows, new, conflicts = [], [], 0
        for row, time in enumerate(times):
            if not self.knows(time, hashes):
                new.append(row)
                rows.append(row)
            elif _doubts(block):
                conflicts += 1
                rows.append(row)
            elif row not in sampled and (time in hashes or time > relaid):
                (value,) = row_hashes(block, (row,))
                if value != hashes.get(time):
                    self._change_hash(time, 0, value)
                    conflicts += 1
                    rows.append(row)
        self.conflicts += conflicts
        self._remember(block, times, new)
        self._extend_tail(block, [row for row in new if times[row] > self.newest])
        if len(rows) == len(times):
            return Absorbed(None, (), 0, conflicts)
        return Absorbed(rows, (), len(times) - len(rows), conflicts)

    def _absorb_stepping(self, block: Block, times: list[int]) -> Absorbed:
        """Times repeat or go back, here or earlier: lay the rows of each time against its known occurrences."""
        values = row_hashes(block, range(len(times)))
        unproven, first_step = self._walk_steps(times, values)
        end = self._find_tail(times, values, first_step)
        claimed = dict(block.occ)
        hashes = self._base_hashes()
        sampled, relaid = _sampled(block), _relaid(block)
        by_time: dict[int, list[int]] = {}
        for row, time in enumerate(times):
            by_time.setdefault(time, []).append(row)
        repeats: dict[int, list[int]] = {}
        for time, _, value in sorted(self.repeats):
            repeats.setdefault(time, []).append(value)
        places: dict[int, int] = {}  # row -> occurrence
        kept: list[int] = []
        firsts, conflicts = [], 0
        for time, rows in by_time.items():
            known: list[int | None] = []
            if self.knows(time, hashes):
                known = [hashes.get(time), *repeats.get(time, ())]
            found = align(
                known,
                [values[row] for row in rows],
                at_least=claimed.get(rows[0], 0),
                unproven_from=sum(row not in unproven for row in rows),
                new_from=sum(row < end for row in rows),
            )
            for row, place in zip(rows, found, strict=True):
                places[row] = place
                if place >= len(known):
                    kept.append(row)
                    if place:
                        self.repeats.append((time, place, values[row]))
                        self.captured += 1
                    else:
                        firsts.append(row)
                elif _doubts(block):
                    conflicts += 1
                    kept.append(row)
                elif row not in sampled and (
                    known[place] not in (None, values[row])
                    or (known[place] is None and time > relaid)
                ):
                    self._change_hash(time, place, values[row])
                    conflicts += 1
                    kept.append(row)
        self.conflicts += conflicts
        self.repeats = sorted(self.repeats)[-KEEP_REPEATS:]
        self._remember(block, times, sorted(firsts, key=times.__getitem__))
        if end == len(times) and (not self.tail_times or first_step < len(times)):
            end = 0  # the tail is not in here, yet this block ends where the buffer does
        elif end == len(times):
            end = next((row for row in kept if times[row] > self.newest), end)
        self._extend_tail(
            block, range(end, len(times)), [places[row] for row in range(end, len(times))]
        )
        kept.sort()
        occ = tuple((i, places[row]) for i, row in enumerate(kept) if places[row])
        return Absorbed(kept, occ, len(times) - len(kept), conflicts, stepped=True)

    def _walk_steps(self, times: list[int], values: list[int]) -> tuple[set[int], int]:
        """Look for steps back in time.

        Returns:
            The rows that stand after a step never seen before and whose time may stand before it too: they are new,
            whatever their hash says. Times above all that stood before the step are not among them: a selective read may
            have shown those already. And the row after the first such step, or the number of rows.
        """
        unproven: set[int] = set()
        left = list(self.steps)
        first, highest, ceiling = len(times), times[0], None
        for row in range(1, len(times)):
            before, after = times[row - 1], times[row]
            if after < before:
                step = (before, after, values[row - 1] ^ (values[row] << 1 & HASH))
                inside = [x for x in left if before <= x[0] and after >= x[1] and x[:2] != step[:2]]
                if step in left:
                    left.remove(step)
                elif inside:
                    left.remove(inside[0])
                else:
                    self.steps = [*self.steps, step][-KEEP_STEPS:]
                    ceiling = highest
                    first = min(first, row)
            if ceiling is not None and after <= ceiling:
                unproven.add(row)
            highest = max(highest, after)
        return unproven, first

    def _find_tail(self, times: list[int], values: list[int], first_step: int) -> int:
        """The row after the last row of the tail, so that what follows was never seen; the number of rows if it is not there."""
        count = len(times)
        if not self.tail_times:
            return count
        low, high = min(times), max(times)
        tail = [
            (time, value)
            for time, value in zip(self.tail_times, split(self.tail_hashes), strict=True)
            if low <= time <= high
        ]
        if not tail or tail[-1][0] != self.tail_times[-1]:
            following = self.tail_times[-1] + self.period
            known = (following, values[0]) in self._proven()
            if times == [following] and following <= self.newest and not known:
                return 0  # the next row of a second pass, pushed alone
            return count
        best, best_length = count, 0
        for row in range(count):
            if row >= first_step and best_length:
                break  # a step that was never seen lies behind the tail
            length = 0
            while (
                length <= row
                and length < len(tail)
                and (times[row - length], values[row - length]) == tail[-1 - length]
            ):
                length += 1
            whole = length == len(tail) or length > row
            if whole and length >= best_length and length:
                best, best_length = row + 1, length
        return best

    def _extend_tail(self, block: Block, rows: Sequence[int], occ: Sequence[int] = ()) -> None:
        """Rows follow on the tail, in buffer order; `occ` are their occurrences, empty when all are 0."""
        rows, occ = rows[-KEEP_TAIL:], occ[-KEEP_TAIL:]
        if not rows:
            return
        keep = max(0, min(KEEP_TAIL - len(rows), len(self.tail_times)))
        if occ or self.tail_occ:
            old = (self.tail_occ or [0] * len(self.tail_times))[-keep:] if keep else []
            whole = [*old, *(occ or [0] * len(rows))]
            self.tail_occ = whole if any(whole) else []
        times = block.times
        self.tail_times = [
            *(self.tail_times[-keep:] if keep else ()),
            *(int(times[row]) for row in rows),
        ]
        old_hashes = self.tail_hashes[-HASH_OCTETS * keep :] if keep else b""
        self.tail_hashes = old_hashes + join(row_hashes(block, rows))

    def _remember(self, block: Block, times: list[int], rows: Sequence[int]) -> None:
        """Enter rows of occurrence 0 that were not known, in ascending order of time."""
        if self.merged_to:
            rows = [row for row in rows if times[row] > self.merged_to]
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
            return
        in_order = sorted(rows[-KEEP_TIMES:])
        hashes = row_hashes(block, in_order)
        fresh = [(times[row], value) for row, value in zip(in_order, hashes, strict=True)]
        pairs = sorted([*zip(self.times, split(self.hashes), strict=True), *fresh])[-KEEP_TIMES:]
        self.times = [time for time, _ in pairs]
        self.hashes = join(value for _, value in pairs)

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
        self.runs = joined
        self._bound()

    def knows(self, time: int, hashes: dict[int, int] | None = None) -> bool:
        """Is occurrence 0 of this time known?"""
        if any(a <= time <= b and not (time - a) % s for a, b, s in reversed(self.runs)):
            return True
        return time in (hashes if hashes is not None else self.times)

    def _base_hashes(self) -> dict[int, int]:
        """Hashes of occurrence 0 that are not forgotten, by time."""
        hashes = dict(zip(self.times, split(self.hashes), strict=True))
        occ = self.tail_occ or [0] * len(self.tail_times)
        tail = zip(self.tail_times, occ, split(self.tail_hashes), strict=True)
        hashes.update({time: value for time, k, value in tail if not k})
        return hashes

    def _proven(self) -> set[tuple[int, int]]:
        """(time, hash) of all known rows whose hash is not forgotten."""
        return {*self._base_hashes().items(), *((t, h) for t, _, h in self.repeats)}

    def _change_hash(self, time: int, occurrence: int, value: int) -> None:
        """A conflict: the later values are the current ones."""
        self.repeats = [
            (t, k, value if (t, k) == (time, occurrence) else h) for t, k, h in self.repeats
        ]
        if not occurrence:
            self.hashes = join(
                value if t == time else h
                for t, h in zip(self.times, split(self.hashes), strict=True)
            )
        occ = self.tail_occ or [0] * len(self.tail_times)
        self.tail_hashes = join(
            value if (t, k) == (time, occurrence) else h
            for t, k, h in zip(self.tail_times, occ, split(self.tail_hashes), strict=True)
        )

    # ---- what is missing -----------------------------------------------------------------------

    def note_gap(self, first: int, last: int, cause: str, *, over: str | None = None) -> None:
        """Name the cause of what is missing from first to last.

        Neighbours of one cause become one: a meter that is silent for days is one gap, told boundary by boundary.

        Args:
            over: only where this was said before, "" = only where nothing was; None = whatever was said.
        """
        if over is not None:
            for a, b in self._said(first, last, over):
                self.note_gap(a, b, cause)
            return
        pieces = [(first, last, cause)]
        for a, b, other in self.gaps:
            if a < first:
                pieces.append((a, min(b, first - 1), other))
            if b > last:
                pieces.append((max(a, last + 1), b, other))
        gaps: list[tuple[int, int, str]] = []
        for a, b, other in sorted(pieces):
            if gaps and gaps[-1][2] == other and a - gaps[-1][1] <= max(self.period, 1):
                gaps[-1] = (gaps[-1][0], b, other)
            else:
                gaps.append((a, b, other))
        self.gaps = gaps
        self._bound()

    def _said(self, first: int, last: int, cause: str) -> list[tuple[int, int]]:
        """Parts of a span that are named so; "" = not named."""
        inside = [
            (max(a, first), min(b, last), c) for a, b, c in self.gaps if a <= last and b >= first
        ]
        if cause:
            return [(a, b) for a, b, c in inside if c == cause]
        out = []
        for a, b, _ in inside:
            if a > first:
                out.append((first, a - 1))
            first = b + 1
        return [*out, (first, last)] if first <= last else out

    def _bound(self) -> None:
        """Keep runs and gaps within their limits without losing count of a row."""
        if len(self.gaps) > TIDY_GAPS:
            self._tidy_gaps()
        runs, gaps = self.runs, self.gaps
        drop = len(runs) - MAX_RUNS + MAX_RUNS // 16 if len(runs) > MAX_RUNS else 0
        if len(gaps) > MAX_GAPS:
            upto = gaps[len(gaps) - MAX_GAPS + MAX_GAPS // 16][1]
            drop = max(drop, sum(run[0] <= upto for run in runs))
        if not runs:
            self.gaps = gaps[-MAX_GAPS:]  # nothing is counted here
        elif drop:
            self._merge_oldest(min(drop, len(runs) - 1))

    def _tidy_gaps(self) -> None:
        """Make neighbours of one cause one gap, where no row between them is missing for another cause or without one."""
        spans = self._spans()
        tidy: list[tuple[int, int, str]] = []
        place = 0
        for first, last, cause in self.gaps:
            if tidy and tidy[-1][2] == cause:
                while place < len(spans) and spans[place][1] <= tidy[-1][1]:
                    place += 1
                if place == len(spans) or not _missing(spans[place:], tidy[-1][1] + 1, first - 1):
                    tidy[-1] = (tidy[-1][0], last, cause)
                    continue
            tidy.append((first, last, cause))
        self.gaps = tidy

    def _merge_oldest(self, count: int) -> None:
        """So many of the oldest runs are forgotten, and what is missing among and before them becomes a sum."""
        upto = self.runs[count][0] - 1
        for hole in self.holes():
            if not hole.merged and hole.last <= upto:
                self._merge(hole.first, hole.last, hole.rows, hole.cause)
        self.runs, self.origin = self.runs[count:], 0
        self.gaps = [(max(a, upto + 1), b, cause) for a, b, cause in self.gaps if b > upto]
        self.merged_to = upto

    def _merge(self, first: int, last: int, rows: int, cause: str) -> None:
        sums = {entry[3]: entry for entry in self.merged}
        a, b, before, _ = sums.get(cause, (first, last, 0, cause))
        sums[cause] = (min(a, first), max(b, last), before + rows, cause)
        self.merged = sorted(sums.values())

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
        pairs = [
            (t, h) for t, h in zip(self.times, split(self.hashes), strict=True) if t not in gone
        ]
        self.times = [t for t, _ in pairs]
        self.hashes = join(h for _, h in pairs)
        if gone.intersection(self.tail_times):
            self.tail_times, self.tail_hashes, self.tail_occ = [], b"", []
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
        if self.runs:
            oldest = min(self.runs)[0]
            self.origin = min(self.origin or oldest, oldest)
        self.runs = runs
        old = [time for time in times if time <= self.merged_to]
        if old:
            self._merge(old[0], old[-1], sum(as_list(block.times).count(t) for t in old), cause)
        if len(old) < len(times):
            self.note_gap(times[len(old)], times[-1], cause)

    def holes(self) -> tuple[Hole, ...]:
        """Missing times within what is known, and noted ones outside of it, oldest first."""
        out = [Hole(a, b, rows, cause, merged=True) for a, b, rows, cause in self.merged]
        for first, last, step in self._spans():
            out += self._named(first, last, step)
        edges = None
        if self.runs:
            first, last = min(self.runs)[0], max(run[1] for run in self.runs)
            edges = min(first, self.origin or first), last
        for first, last, cause in self.gaps:
            if edges is None:
                out.append(Hole(first, last, 0, cause))
                continue
            if first < edges[0]:
                out.append(self._outside(first, min(last, edges[0] - 1), cause))
            if last > edges[1]:
                out.append(self._outside(max(first, edges[1] + 1), last, cause))
        return tuple(sorted(out, key=lambda hole: hole.first))

    def _spans(self) -> list[tuple[int, int, int]]:
        """(first, last, step) of what is missing between the first and the last known row, ascending."""
        spans = []
        end = self.origin - self.period if self.origin and self.period else None
        for first, last, step in sorted(self.runs):
            if end is not None and step:
                rows = round((first - end) / step) - 1
                if rows > 0:
                    spans.append((end + step, end + step * rows, step))
            end = last if end is None else max(end, last)
        return spans

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
        at = first
        for a, b, cause in self.gaps[bisect_left(self.gaps, first, key=lambda gap: gap[1]) :]:
            if a > last:
                break
            begin, end = max(at, a + (first - a) % step), min(last, b - (b - first) % step)
            if begin > end:
                continue  # between two rows
            if begin > at:
                out.append(Hole(at, begin - step, (begin - at) // step, ""))
            if out and out[-1].cause == cause and out[-1].last + step == begin:
                begin = out.pop().first
            out.append(Hole(begin, end, (end - begin) // step + 1, cause))
            at = end + step
        if at <= last:
            out.append(Hole(at, last, (last - at) // step + 1, ""))
        return out

    def shorten(self) -> None:
        """Bring many runs into a form of 2 octets each, for keeping; `lengthen` undoes it."""
        runs, period = self.runs, self.period
        if len(runs) <= KEEP_LONG or not period or any(run[2] != period for run in runs):
            return
        borders = [border for first, last, _ in runs for border in (first, last)]
        steps = [(b - a) // period for a, b in pairwise(borders)]
        if any(
            b - a != step * period or step < 0
            for (a, b), step in zip(pairwise(borders), steps, strict=True)
        ):
            return
        self.runs, self.spans = runs[:1], varints(steps[1:])

    def lengthen(self) -> None:
        """Undo `shorten`."""
        if not self.spans:
            return
        ((_, last, period),) = self.runs
        steps = iter(integers(self.spans))
        for gap, length in zip(steps, steps, strict=True):
            first = last + gap * period
            last = first + length * period
            self.runs.append((first, last, period))
        self.spans = b""

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


def _missing(spans: Sequence[tuple[int, int, int]], first: int, last: int) -> bool:
    """Does any of the missing times lie between first and last, both included?"""
    for a, b, step in spans:
        if a > last:
            return False
        on_grid = a if a >= first else first + (a - first) % step
        if on_grid <= min(b, last):
            return True
    return False


def _sampled(block: Block) -> set[int]:
    return {
        row
        for first, count, bits in block.flags
        if bits & Flag.SAMPLED
        for row in range(first, first + count)
    }


def _relaid(block: Block) -> float:
    """Rows above this time were read under a layout that no longer holds: what came before is no longer current."""
    value = (block.q or {}).get("relaid")
    return value if isinstance(value, int) else math.inf


def _doubts(block: Block) -> bool:
    """Rows that the meter no longer holds, published once more as doubtful."""
    return bool((block.q or {}).get("doubt"))
