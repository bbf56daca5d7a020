"""What the journal hands out: frozen records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.domain import Obis

Durable = Literal["lazy", "soon", "now"]
Lane = Literal["live", "backlog"]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of the rows of one block, once they are durable.

    Attributes:
        new: rows that the ledger lacked; they are in the journal now.
        known: rows dropped because the same row is known.
        conflicts: rows whose identity is known with other values; they are in the journal now and
            supersede by their later `read_at`. The caller raises `value-conflict`.
    """

    new: int
    known: int
    conflicts: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: the blocks of one kind and one lane of one group commit.

    Attributes:
        id: rises with every segment, never used twice within a journal file.
        blocks: how many blocks; (segment id, block index) names a block.
        readings: cells in them.
        bytes: size on disk.
    """

    id: int
    lane: Lane
    kind: str
    blocks: int
    readings: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """A journalled message that is no block: a reply, a completeness figure, anomaly findings.

    Attributes:
        kind: last level of the topic, or "replies", ...
        sub: what else the topic needs (the command id), or "".
        body: JSON object.
    """

    id: int
    kind: str
    sub: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Aside:
    """Something that was refused for good and waits for a later release.

    Attributes:
        what: "segment", "alarm" or "note".
        id: segment or note id as text, or the alarm's id.
        cause: gap cause of DESIGN section 7, usually `cloud-refused`.
        why: what the refuser said.
        at: UTC second.
    """

    what: Literal["segment", "alarm", "note"]
    id: str
    cause: str
    why: str
    at: int


@dataclass(frozen=True, slots=True)
class Run:
    """Known capture times: first, first + step, ... last (both ends included), UTC seconds."""

    first: int
    last: int
    step: int

    @property
    def rows(self) -> int:
        """How many times."""
        return 1 if self.first == self.last else (self.last - self.first) // self.step + 1


@dataclass(frozen=True, slots=True)
class Hole:
    """Capture times that are missing: first to last, both included, UTC seconds.

    Attributes:
        rows: how many rows are missing by the period; 0 for profiles without a period.
        cause: gap cause of DESIGN section 7, "" = not named yet.
        merged: so long ago that only the number is kept: `rows` rows somewhere between first and last.
    """

    first: int
    last: int
    rows: int
    cause: str
    merged: bool = False


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What is known of one profile of one device.

    Attributes:
        period: capture period in seconds, 0 = irregular.
        runs: known times, oldest first (occurrence 0).
        repeats: rows with occurrence 1 and above (a clock was set back).
        holes: missing times with their cause, oldest first.
        watermark: where the next read starts, UTC seconds; None = nothing yet.
        captured: rows known since the entry began (distinct time and occurrence).
        due: captured plus missing.
        conflicts: rows that were published a second time with other values.
    """

    meter: str
    device: str
    profile: Obis
    kind: str
    period: int
    runs: tuple[Run, ...]
    repeats: int
    holes: tuple[Hole, ...]
    watermark: int | None
    captured: int
    due: int
    conflicts: int


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """Figures for health, console and `opendcu journal status`.

    Attributes:
        head: newest segment id.
        segments_waiting: not yet released; bytes_waiting is an estimate from the mean size.
        aside: set aside and not yet released.
        used_bytes: pages in use; `max_bytes` is the limit, `reserve_bytes` of it for alarms and midnights.
        hours_left: until profile rows are refused, at the present rate of filling and if nothing is acked; None = unknown.
        full: the last attempt to append was refused.
        refused: appends refused for lack of room since the start.
        merged: alarms that the newest of their event stands for, because even the reserve was full.
        unreadable: segments of a newer codec that are left pending.
        damaged: why the previous file was set aside, or None.
    """

    path: Path
    epoch: int
    head: int
    segments_waiting: int
    bytes_waiting: int
    alarms_waiting: int
    notes_waiting: int
    aside: int
    used_bytes: int
    max_bytes: int
    reserve_bytes: int
    hours_left: float | None
    full: bool
    refused: int
    commits: int
    readings: int
    conflicts: int
    unreadable: int
    damaged: str | None
    merged: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of `verify`.

    Attributes:
        problems: each names the hole; empty = sound.
    """

    segments: int
    readings: int
    alarms: int
    notes: int
    problems: tuple[str, ...]
