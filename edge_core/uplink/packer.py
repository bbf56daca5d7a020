"""From the journals to messages: cursors over segments, bins of pieces per kind, drafts that fit.

Memory is bounded whatever waits: a lane holds pieces for little more than one message per kind, the rest stays in the
journal behind a cursor. Live is what was journalled since the cursor of the live lane; what waited before that (a
restart, a long outage) is a range of the backlog, so that the newest is never behind the oldest. A segment is read
once per run; after a restart parts that were acked or set aside before are left out (`covered`).

Runs in the uplink's builder thread; nothing here touches the event loop.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edge_core import errors
from edge_core.journal.journals import base_of
from edge_core.uplink.outbox import NOTE, SEGMENT, Ref
from edge_core.uplink.payloads import events, notes, reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edge_core.domain import Block
    from edge_core.journal import Journal, Journals, Segment
    from edge_core.journal import Lane as JournalLane
    from edge_core.uplink.outbox import Item, Ranges
    from edge_core.uplink.topics import Topics

log = logging.getLogger(__name__)

BATCH = 20  # segments asked for at a time
BEHIND = 50  # segments that the live lane may lag before they become backlog
MAX_PLAIN = (
    1 << 20
)  # octets before compression in one message: bounds memory and the time of one deflate
ENOUGH = 16_000  # octets before compression from which waiting for more company saves little
HEAD_ROOM = 200  # envelope without the gateway's id; a command id as its kind takes 64 of it

BulkLane = Literal["live", "backlog"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A message without number and time."""

    topic: str
    name: str
    kind: str
    members: list[tuple[str, bytes]]
    refs: tuple[Ref, ...]
    lane: Literal["alarms", "notes", "live", "backlog"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Parts that no message can carry, and why."""

    refs: tuple[Ref, ...]
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Part:
    """Something that fits a message: a piece of reads, or rows of an event log."""

    ref: Ref
    size: int
    piece: reads.Piece | None = None
    rows: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Bin:
    """Parts of one kind that wait for company."""

    kind: str
    parts: deque[Part] = field(default_factory=deque)
    octets: int = 0
    since: float = 0.0
    shrink: float = 2.0  # octets before over octets after compression, as last seen

    def add(self, part: Part, now: float) -> None:
        if not self.parts:
            self.since = now
        self.parts.append(part)
        self.octets += part.size

    def put_back(self, parts: Iterable[Part]) -> None:
        for part in reversed(list(parts)):
            self.parts.appendleft(part)
            self.octets += part.size


@dataclass(slots=True)
class Stretch:
    """Segments with an id above `after`, up to `upto`; of one lane, or of both (None)."""

    after: int
    upto: int
    lane: JournalLane | None


def room_of(limit: int, dcu: str) -> int:
    """Octets that a message of at most `limit` has for its members."""
    return limit - HEAD_ROOM - 6 * len(dcu)


def _nothing(*_: object) -> None:
    """What `seen` does where nobody wants to know."""


class Packer:
    """Makes drafts of what waits in one journal, or in the journals of all processes.

    Args:
        covered: parts of an item that must not be sent; None = all of them.
        room: octets of a message without its envelope; may change between drafts.
        describe: meaning of event codes.
        seen: told (kind, sub, body) of each note that is read.
    """

    def __init__(
        self,
        journal: Journal | Journals,
        topics: Topics,
        *,
        covered: Callable[[Item], Ranges | None],
        room: int,
        describe: events.Describe = events.unknown,
        seen: Callable[[str, str, dict[str, object]], object] = _nothing,
    ) -> None:
        self._seen = seen
        self._journal = journal
        self._topics = topics
        self._covered = covered
        self.room = room
        self._describe = describe
        self.refused: list[Refusal] = []
        self.reset()

    def reset(self) -> None:
        """Begin again at the oldest segment: what waits now is backlog, what comes is live."""
        self._old: deque[Stretch] = deque()
        self._live: deque[Stretch] = deque()
        self._fill: deque[Stretch] = deque()
        self._bases: set[int] = set()
        self._redo: deque[Ref] = deque()
        self._bins: dict[BulkLane, dict[str, Bin]] = {"live": {}, "backlog": {}}
        self._find_files()

    def _find_files(self) -> dict[int, int]:
        """Begin to read files that are new; the head of each file by its base."""
        heads = self._journal.heads()
        for base, head in heads.items():
            if base not in self._bases:
                if head > base:
                    self._old.append(Stretch(base, head, None))
                self._live.append(Stretch(head, -1, "live"))
                self._fill.append(Stretch(head, -1, "backlog"))
        if self._bases - heads.keys():  # set aside, or begun anew under another base
            for lane in (self._old, self._live, self._fill):
                kept = [stretch for stretch in lane if base_of(stretch.after) in heads]
                lane.clear()
                lane.extend(kept)
        self._bases = set(heads)
        return heads

    def again(self, refs: Iterable[Ref]) -> None:
        """Read these parts of segments once more."""
        self._redo.extend(ref for ref in refs if ref.kind == SEGMENT)

    def demote(self) -> None:
        """What the live lane has not read yet becomes backlog, if it lags."""
        heads = self._find_files()
        for live in self._live:
            head = heads[base_of(live.after)]
            if head - live.after > BEHIND:
                self._old.append(Stretch(live.after, head, "live"))
                live.after = head

    # --- drafts

    def draft(
        self, lane: BulkLane, now: float, linger_s: float
    ) -> tuple[Draft | None, float | None]:
        """The next message of a lane, or when to ask again (None = when something was journalled)."""
        self._fill_bins(lane, now)
        when: float | None = None
        for bin_ in sorted(self._bins[lane].values(), key=_urgency):
            while bin_.parts:
                due = bin_.since + (linger_s if lane == "live" and bin_.kind not in PROMPT else 0.0)
                if now < due and bin_.octets < min(ENOUGH, self._target(bin_)):
                    when = due if when is None else min(when, due)
                    break
                draft = self._take(bin_, lane)
                if draft is not None:
                    return draft, None
        return None, when

    def note_drafts(
        self, after: int, known: Callable[[Item], bool]
    ) -> Iterator[tuple[int, list[Draft]]]:
        """Drafts of notes that wait behind `after`, with the note's id; none for those under way."""
        for note in self._journal.notes_waiting(after, BATCH):
            self._seen(note.kind, note.sub, note.body)
            if known((NOTE, note.id)):
                yield note.id, []
                continue
            try:
                yield note.id, self._note(note.id, note.kind, note.sub, note.body)
            except (ValueError, TypeError) as error:  # what msgspec raises is a ValueError
                self.refused.append(
                    Refusal((Ref(NOTE, note.id, 0, 1, 1),), "malformed", f"{note.kind}: {error}")
                )
                yield note.id, []

    def _note(self, id_: int, kind: str, sub: str, body: dict[str, object]) -> list[Draft]:
        topic = self._topics.reply(sub) if kind == "replies" else self._topics.plain(kind)
        bodies = [body]
        for _ in range(12):
            sizes = [_size(notes.members(kind, sub, b)) for b in bodies]
            if max(sizes) <= self.room:
                break
            if kind == "anomalies":
                bodies = [half for b in bodies for half in _halves(b)]
            elif kind == "replies":
                bodies = [_short_reply(body, max(sizes))]
            else:
                raise ValueError(f"{max(sizes)} octets, at most {self.room}")
        else:
            raise ValueError(f"one finding has more than {self.room} octets")
        name = notes.SCHEMA_OF.get(kind, kind)
        return [
            Draft(
                topic,
                name,
                sub if kind == "replies" else kind,
                notes.members(kind, sub, b),
                (Ref(NOTE, id_, i, i + 1, len(bodies)),),
                "notes",
            )
            for i, b in enumerate(bodies)
        ]

    def _target(self, bin_: Bin) -> int:
        return min(MAX_PLAIN, max(self.room, int(self.room * bin_.shrink)))

    def _take(self, bin_: Bin, lane: BulkLane) -> Draft | None:
        """The longest run of parts from the front of the bin that fits, give or take a tenth."""
        allowed = self._target(bin_)
        for _ in range(16):
            chosen: list[Part] = []
            octets = 0
            while bin_.parts and (not chosen or octets + bin_.parts[0].size <= allowed):
                part = bin_.parts.popleft()
                bin_.octets -= part.size
                octets += part.size
                chosen.append(part)
            members = self._members(bin_.kind, chosen)
            size = _size(members)
            if size <= self.room:
                if octets > ENOUGH // 4:
                    bin_.shrink = max(1.0, 0.97 * octets / size)
                break
            if len(chosen) == 1:
                self.refused.append(
                    Refusal((chosen[0].ref,), "too-large", f"{size} octets, at most {self.room}")
                )
                return None
            bin_.put_back(chosen)
            allowed = min(int(octets * self.room / size * 0.97), octets - chosen[-1].size)
        if bin_.kind == "events":
            return Draft(
                self._topics.plain("events"), "events", "events", members, _merged(chosen), lane
            )
        return Draft(
            self._topics.reads(bin_.kind), "reads", bin_.kind, members, _merged(chosen), lane
        )

    def _members(self, kind: str, parts: list[Part]) -> list[tuple[str, bytes]]:
        if kind == "events":
            return events.members([row for part in parts for row in part.rows])
        return reads.members([part.piece for part in parts if part.piece is not None])

    # --- bins

    def _fill_bins(self, lane: BulkLane, now: float) -> None:
        bins = self._bins[lane]
        for segment, only in self._segments(lane):
            for part in self._parts(segment, only):
                kind = "events" if part.piece is None else part.piece.kind
                bins.setdefault(kind, Bin(kind)).add(part, now)
            if any(b.octets >= self._target(b) for b in bins.values()):
                return

    def _segments(self, lane: BulkLane) -> Iterator[tuple[int, Ref | None]]:
        """Segments of a lane in the order in which they are sent; the cursor moves with each."""
        self._find_files()
        if lane == "live":
            yield from self._scan_all(self._live)
            return
        while self._redo:
            ref = self._redo.popleft()
            yield int(ref.key), ref
        while self._old:
            yield from self._scan(self._old[0])
            self._old.popleft()
        yield from self._scan_all(self._fill)

    def _scan_all(self, stretches: deque[Stretch]) -> Iterator[tuple[int, None]]:
        """One stretch after the other, each time another one first."""
        stretches.rotate(-1)
        for stretch in list(stretches):
            yield from self._scan(stretch)

    def _scan(self, stretch: Stretch) -> Iterator[tuple[int, None]]:
        while True:
            found: list[Segment] = self._journal.segments(
                stretch.after, lane=stretch.lane, limit=BATCH
            )
            for segment in found:
                if 0 <= stretch.upto < segment.id:
                    return
                stretch.after = segment.id
                yield segment.id, None
            if len(found) < BATCH:
                return

    def _parts(self, segment: int, only: Ref | None) -> Iterator[Part]:
        """The parts of a segment that are still to be sent, cut so that each fits a message."""
        item = (SEGMENT, segment)
        covered = self._covered(item)
        if covered is None:
            return
        try:
            blocks = self._journal.blocks(segment)
        except errors.JournalDamaged as error:
            self.refused.append(Refusal((Ref(SEGMENT, segment, 0, 1, 1),), "damaged", str(error)))
            return
        except errors.JournalError as error:  # a newer release wrote it: it stays pending
            log.warning("uplink: segment %d is left: %s", segment, error)
            return
        total = sum(block.rows for block in blocks)
        if only is not None:
            covered = _outside(covered, only, total)
        start = 0
        for block in blocks:
            if not block.rows:
                continue
            for first, end in _open_rows(start, start + block.rows, covered):
                whole = (first, end) == (start, start + block.rows)
                rows = block if whole else block.take(range(first - start, end - start))
                yield from self._cut(rows, segment, first, total)
            start += block.rows

    def _cut(self, block: Block, segment: int, first: int, total: int) -> Iterator[Part]:
        """One part, or several of fewer rows where the block is too large for a message."""
        ref = Ref(SEGMENT, segment, first, first + block.rows, total)
        try:
            part = self._encode(block, ref)
        except (ValueError, TypeError) as error:
            self.refused.append(Refusal((ref,), "malformed", f"{block.meter}: {error}"))
            return
        overhead = 0 if part.piece is None else reads.layout_size(block.layout)
        if part.size + overhead <= self.room or block.rows == 1:
            yield part
            return
        each = max(1, int(block.rows * (self.room - overhead) / part.size * 0.9))
        each = min(each, block.rows - 1)
        for row in range(0, block.rows, each):
            some = range(row, min(row + each, block.rows))
            yield from self._cut(block.take(some), segment, first + row, total)

    def _encode(self, block: Block, ref: Ref) -> Part:
        if block.kind.startswith("events"):
            rows = tuple(events.rows_json(block, self._describe))
            return Part(ref, sum(map(len, rows)) + len(rows), None, rows)
        self._topics.reads(block.kind)
        piece = reads.piece_of(block)
        return Part(ref, piece.size, piece)


PROMPT = frozenset(("events", "instantaneous"))
"""Kinds that do not wait for company."""


def _urgency(bin_: Bin) -> tuple[bool, float]:
    return bin_.kind not in PROMPT, bin_.since


def _size(members: list[tuple[str, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in members)


def _merged(parts: list[Part]) -> tuple[Ref, ...]:
    """References of the parts, neighbours joined."""
    out: list[Ref] = []
    for part in parts:
        ref = part.ref
        if out and out[-1].key == ref.key and out[-1].end == ref.first:
            out[-1] = Ref(ref.kind, ref.key, out[-1].first, ref.end, ref.total)
        else:
            out.append(ref)
    return tuple(out)


def _open_rows(first: int, end: int, covered: Ranges) -> Iterator[tuple[int, int]]:
    """The rows from first to end (excluded) that are not covered."""
    at = first
    for a, b in covered:
        if b <= at:
            continue
        if a >= end:
            break
        if a > at:
            yield at, a
        at = b
    if at < end:
        yield at, end


def _outside(covered: Ranges, only: Ref, total: int) -> Ranges:
    """The covered rows and all those that `only` does not name."""
    out = list(covered)
    for first, end in ((0, only.first), (only.end, total)):
        if first < end:
            out.append((first, end))
    return sorted(out)


def _halves(body: dict[str, object]) -> list[dict[str, object]]:
    findings = body.get("findings")
    if not isinstance(findings, list) or len(findings) < 2:
        return [body]
    middle = len(findings) // 2
    return [body | {"findings": findings[:middle]}, body | {"findings": findings[middle:]}]


def _short_reply(body: dict[str, object], size: int) -> dict[str, object]:
    """What remains of an answer that no message can carry: that it was too large."""
    kept = {key: value for key, value in body.items() if key in ("id", "nonce")}
    return kept | {
        "state": "failed",
        "error": {"class": "MessageTooLarge", "message": f"the answer has {size} octets"},
    }
