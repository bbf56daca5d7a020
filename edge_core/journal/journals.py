"""All journals of a data directory as one: our own, which we write, and those that other processes write or wrote.

A segment or note of a file is numbered `base + id` here: our own journal has the base 0, each other file a base of its
own for as long as its epoch lasts (`Register`). Cursors are kept for each base: `segments(base + cursor)` goes on within
that file. What is released or set aside in another's file is written into the register, where its owner finds it; it is
served no more from that moment.

Limits: ids below 1 << SHIFT, 2^23 files and epochs.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edge_core.errors import JournalError
from edge_core.journal.elsewhere import Elsewhere
from edge_core.journal.records import Note, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from edge_core.clock import Clock
    from edge_core.domain import Alarm, Block
    from edge_core.journal.journal import Journal
    from edge_core.journal.records import JournalStatus, Lane

log = logging.getLogger(__name__)

SHIFT = 40
LOOK_S = 2.0
_LOCAL = (1 << SHIFT) - 1


class Freed(msgspec.Struct, frozen=True, array_like=True):
    """What an owner is to release (cause = "") or to set aside."""

    segments: list[int] = []
    alarms: list[str] = []
    notes: list[int] = []
    cause: str = ""
    why: str = ""


class Register(Protocol):
    """Numbers the files for ever, and keeps what their owners are to free: uplink.db."""

    def number(self, name: str, epoch: int) -> int:
        """The number of a file in this epoch, from 1 on; the same at every call."""

    def free(self, number: int, freed: Freed) -> None:
        """Keep this until the owner has taken it."""

    def freed(self, number: int) -> list[Freed]:
        """What is kept for the owner of a file."""

    def taken(self, number: int, mark: str) -> None:
        """The owner's mark as it is now: what it names is kept no longer."""


class Unregistered:
    """A register for who only reads: numbers for this run, nothing is freed."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], int] = {}

    def number(self, name: str, epoch: int) -> int:
        """As `Register.number`, for this run."""
        return self._numbers.setdefault((name, epoch), len(self._numbers) + 1)

    def free(self, number: int, freed: Freed) -> None:  # noqa: ARG002
        """Nobody releases through a reader."""
        raise JournalError(f"file {number} is only read here")

    def freed(self, number: int) -> list[Freed]:  # noqa: ARG002
        """Nothing."""
        return []

    def taken(self, number: int, mark: str) -> None:
        """Nothing is kept."""


def _nothing(*_: object) -> None:
    """What is called back where nobody listens."""


TAKEN = "taken"
"""Key of the mark under which an owner says how far it has released what the uplink freed."""


class Journals:
    """Our own journal and those of other processes. All methods may be called from any thread.

    Args:
        own: the journal that this process writes.
        clock: says when the directory is looked at again.
    """

    def __init__(self, own: Journal, clock: Clock) -> None:
        self.own = own
        self._clock = clock
        self._register: Register = Unregistered()
        self._others: dict[int, Elsewhere] = {}
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._unreadable: set[str] = set()
        self._alarm_callbacks: list[Callable[[Alarm], None]] = []
        self._commit_callbacks: list[Callable[[], None]] = []
        self.on_hold: Callable[[Elsewhere, str, int], object] = _nothing

    def register(self, register: Register) -> None:
        """Number and free by this register from now on; before the first read."""
        self._register = register
        self.look()

    # ---- files

    def look(self) -> None:
        """See which files there are, and what their owners have taken over of what was freed."""
        with self._looking:
            self._looked = self._clock.monotonic()
            for number, other in list(self._others.items()):
                try:
                    other.look()
                    if not other.gone:
                        self._register.taken(number, other.mark(TAKEN))
                        continue
                except Exception as error:  # noqa: BLE001 whatever it is, the file is opened anew below
                    log.warning("%s cannot be read any more: %s", other.name, error)
                self._replace({n: o for n, o in self._others.items() if n != number})
                other.close()
            known = {other.path for other in self._others.values()}
            found = self.own.path.parent.glob("journal*.db")
            for path in sorted(found, key=lambda p: (p.name != "journal.db", p.name)):
                if path not in known and path != self.own.path:
                    self._enter(path)

    def _enter(self, path: Path) -> None:
        try:
            other = Elsewhere(path)
        except JournalError as error:  # just being made, or damaged: its owner sets it aside
            if path.name not in self._unreadable:
                log.info("%s", error)
                self._unreadable.add(path.name)
            return
        self._unreadable.discard(path.name)
        number = self._register.number(path.name, other.epoch)
        self._register.taken(number, other.mark(TAKEN))
        for freed in self._register.freed(number):
            other.release(freed.segments, freed.alarms, freed.notes)
        self._replace({**self._others, number: other})
        log.info("reading %s of epoch %d", path.name, other.epoch)

    def _replace(self, others: dict[int, Elsewhere]) -> None:
        self._others = others  # swapped, for readers in other threads

    def _tell(self, other: Elsewhere, error: Exception) -> None:
        """One file that cannot be read is no reason not to send the others; its owner will find out, too."""
        if other.name not in self._unreadable:
            self._unreadable.add(other.name)
            log.error("%s cannot be read: %s", other.name, error)

    def _now(self) -> dict[int, Elsewhere]:
        if self._clock.monotonic() - self._looked > LOOK_S:
            self.look()
        return self._others

    def names(self) -> dict[int, str]:
        """File names by base."""
        others = {n << SHIFT: other.name for n, other in self._now().items()}
        return {0: self.own.path.name, **others}

    def epochs(self) -> dict[int, int]:
        """Epochs of the files, by base."""
        others = {n << SHIFT: other.epoch for n, other in self._now().items()}
        return {0: self.own.epoch, **others}

    def is_used(self) -> bool:
        """Does any file hold, or did it hold, something that may have been sent?"""
        return self.own.is_used() or (
            not self.own.was_created and any(other.is_used() for other in self._now().values())
        )

    # ---- hearing of it

    def on_alarm(self, callback: Callable[[Alarm], None]) -> None:
        """Call back with every new alarm, ours and those that other processes told of (`heard`)."""
        self.own.on_alarm(callback)
        self._alarm_callbacks.append(callback)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back after every commit, ours and those that we were woken for (`committed`)."""
        self.own.on_commit(callback)
        self._commit_callbacks.append(callback)

    def heard(self, alarm: Alarm) -> None:
        """Another process raised an alarm."""
        for callback in self._alarm_callbacks:
            callback(alarm)

    def committed(self) -> None:
        """Another process committed."""
        for callback in self._commit_callbacks:
            callback()

    # ---- reading

    @property
    def epoch(self) -> int:
        """Epoch of our own journal."""
        return self.own.epoch

    def heads(self) -> dict[int, int]:
        """Newest durable segment, as it is numbered here, by base."""
        out = {0: self.own.head()}
        for number, other in self._now().items():
            try:
                other.look()
            except (JournalError, sqlite3.Error) as error:
                self._tell(other, error)
            out[number << SHIFT] = (number << SHIFT) + other.head()
        return out

    def segments(
        self, after: int, *, lane: Lane | None = None, limit: int = 100, everything: bool = False
    ) -> list[Segment]:
        """As `Journal.segments`, within the file of the base of `after`."""
        number = after >> SHIFT
        if not number:
            return self.own.segments(after, lane=lane, limit=limit, everything=everything)
        other = self._others.get(number)
        if other is None or other.gone:
            return []
        base = number << SHIFT
        try:
            found = other.segments(after - base, lane=lane, limit=limit, everything=everything)
        except (JournalError, sqlite3.Error) as error:
            self._tell(other, error)
            return []
        return [_numbered(segment, base) for segment in found]

    def blocks(self, segment: int) -> list[Block]:
        """As `Journal.blocks`."""
        number = segment >> SHIFT
        if not number:
            return self.own.blocks(segment)
        other = self._others.get(number)
        return [] if other is None or other.gone else other.blocks(segment & _LOCAL)

    def alarms_waiting(self, limit: int = 1000) -> list[Alarm]:
        """Durable alarms of all files that wait for an ack."""
        found = {alarm.id: alarm for alarm in self.own.alarms_waiting(limit)}
        for other in self._now().values():
            if len(found) >= limit:
                break
            try:
                found.update((alarm.id, alarm) for alarm in other.alarms_waiting(limit))
            except (JournalError, sqlite3.Error) as error:
                self._tell(other, error)
        return list(found.values())[:limit]

    def notes_waiting(self, after: int = 0, limit: int = 100) -> list[Note]:
        """As `Journal.notes_waiting`, within the file of the base of `after`."""
        number = after >> SHIFT
        if not number:
            return self.own.notes_waiting(after, limit)
        other = self._others.get(number)
        if other is None or other.gone:
            return []
        base = number << SHIFT
        try:
            notes = other.notes_waiting(after - base, limit)
        except (JournalError, sqlite3.Error) as error:
            self._tell(other, error)
            return []
        return [Note(base + note.id, note.kind, note.sub, note.body) for note in notes]

    def status(self) -> JournalStatus:
        """Figures of our own journal."""
        return self.own.status()

    # ---- writing

    def release(
        self,
        *,
        segments: Iterable[int] = (),
        alarms: Iterable[str] = (),
        notes: Iterable[int] = (),
    ) -> Future[None]:
        """As `Journal.release`; what other processes own is left to them."""
        ids = list(alarms)
        by_number = _by_number(segments, notes)
        for number, other in self._others.items():  # files are looked for by who reads
            mine, their_notes = by_number.pop(number, ([], []))
            freed = Freed(mine, other.holding(ids) if ids else [], their_notes)
            self._free(number, other, freed)
        mine, our_notes = by_number.pop(0, ([], []))  # the rest is of files that are gone
        return self.own.release(segments=mine, alarms=ids, notes=our_notes)

    def set_aside(
        self, cause: str, why: str = "", *, segments: Iterable[int] = (), notes: Iterable[int] = ()
    ) -> Future[None]:
        """As `Journal.set_aside`; what other processes own is left to them."""
        by_number = _by_number(segments, notes)
        for number, other in self._others.items():  # files are looked for by who reads
            mine, their_notes = by_number.pop(number, ([], []))
            mine = [segment for segment in mine if other.waiting(segment)]
            self._free(number, other, Freed(mine, [], their_notes, cause, why))
        mine, our_notes = by_number.pop(0, ([], []))
        return self.own.set_aside(cause, why, segments=mine, notes=our_notes)

    def _free(self, number: int, other: Elsewhere, freed: Freed) -> None:
        if freed.segments or freed.alarms or freed.notes:
            other.release(freed.segments, freed.alarms, freed.notes)
            self._register.free(number, freed)

    def note(self, kind: str, sub: str, body: dict[str, Any]) -> Future[int]:
        """As `Journal.note`, in our own journal."""
        return self.own.note(kind, sub, body)

    def hold(self, name: str, cursor: int) -> None:
        """As `Journal.hold`, of the file of the base of the cursor; other processes are told (`on_hold`)."""
        number = cursor >> SHIFT
        other = self._others.get(number)
        if not number:
            self.own.hold(name, cursor)
        elif other is not None:
            self.on_hold(other, name, cursor & _LOCAL)

    def renew_epoch(self) -> int:
        """As `Journal.renew_epoch`, of our own journal."""
        return self.own.renew_epoch()

    def close(self) -> None:
        """Close what is only read; our own journal is its opener's."""
        others = self._others
        self._others = {}
        for other in others.values():
            other.close()


def base_of(number: int) -> int:
    """The base of the file that a segment or note is of."""
    return number >> SHIFT << SHIFT


def _numbered(segment: Segment, base: int) -> Segment:
    return Segment(
        base + segment.id, segment.lane, segment.kind, segment.blocks, segment.readings, segment.bytes
    )  # fmt: skip


def _by_number(
    segments: Iterable[int], notes: Iterable[int]
) -> dict[int, tuple[list[int], list[int]]]:
    """Ids within their files, by the number of the file."""
    out: dict[int, tuple[list[int], list[int]]] = {}
    for place, ids in enumerate((segments, notes)):
        for id_ in ids:
            out.setdefault(id_ >> SHIFT, ([], []))[place].append(id_ & _LOCAL)
    return out
