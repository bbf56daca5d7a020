"""What was sent and is not yet acked: which message carries which parts, and what an ack sets free.

Everything here belongs to the event loop. Rows are sent, acked, freed (DESIGN section 7): only an ack moves a part to
acked, whatever message it names: one of this run, one of an earlier run of the same epoch, or one set aside. An item
is released when all its parts are acked. A message whose parts were all acked under other numbers is settled too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edge_core.uplink.outbox import ALARM, AsideRow, Item, Outbox, Ranges, Ref, add_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Lane = Literal["alarms", "notes", "live", "backlog"]

FIRST_RESEND_S, LONGEST_RESEND_S = 5.0, 60.0
REMEMBERED = 20_000  # released items that a slow commit or a repeated push may bring up again

PASSING = frozenset(("broker-refused", "unanswered"))
"""Causes that may pass: the parts are sent again under a new number at a restart, and when RETRY_S has passed."""

RETRY_S = 3_600.0
RETRY_REFUSED_S = 6 * 3_600.0
"""For all other causes, civil seconds both: the ack that freed a refused message may have been lost, as acks may."""


@dataclass(slots=True)
class Sent:
    """One message of this run that is not acked.

    Attributes:
        due: monotonic second from which it is sent again.
        in_flight: a publish call has not returned.
        published: the broker confirmed it at least once.
        refusals: how often the broker refused it.
        breaks: how many connections broke under it since the last confirmation.
    """

    n: int
    topic: str
    payload: bytes
    refs: tuple[Ref, ...]
    lane: Lane
    due: float
    attempts: int = 0
    in_flight: bool = False
    published: bool = False
    refusals: int = 0
    breaks: int = 0

    def back_off(self, now: float) -> None:
        """Say when it is sent again if nothing is heard."""
        wait = FIRST_RESEND_S * 2 ** min(self.attempts - 1, 8)
        self.due = now + min(LONGEST_RESEND_S, wait)


@dataclass(slots=True)
class _Open:
    """An item of which something is under way, acked in part or set aside."""

    total: int
    acked: Ranges = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        return self.acked == [(0, self.total)]


class Deliveries:
    """The book of messages and items; keeps the outbox in step."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.sent: dict[int, Sent] = {}
        self.octets = 0  # of the payloads that are kept for a resend, alarms left out
        self._open: dict[Item, _Open] = {}
        self._released: OrderedDict[Item, None] = OrderedDict()
        self.load()

    def load(self) -> None:
        """Take over what the outbox knows of earlier runs."""
        self.sent.clear()
        self._open.clear()
        self.octets = 0
        for item, (total, ranges) in self.outbox.acked.items():
            self._open[item] = _Open(total, list(ranges))
        for n, row in list(self.outbox.aside.items()):
            if row.cause in PASSING:
                self.outbox.forget(n)
            else:
                self._enter(n, row.refs)
        for n, refs in self.outbox.earlier.items():
            self._enter(n, refs)

    def _enter(self, n: int, refs: Iterable[Ref]) -> None:
        for ref in refs:
            self._open.setdefault(ref.item, _Open(ref.total)).numbers.add(n)

    # --- questions

    @property
    def aside(self) -> int:
        """Messages that will not be sent again by themselves."""
        return len(self.outbox.aside)

    def knows(self, item: Item) -> bool:
        """Is the item under way in this run, set aside, or released lately?"""
        if item in self._released:
            return True
        state = self._open.get(item)
        if state is None:
            return False
        return any(n in self.sent or n in self.outbox.aside for n in list(state.numbers))

    def released(self, item: Item) -> bool:
        """Was the item acked lately?"""
        return item in self._released

    def covered(self, item: Item) -> Ranges | None:
        """Parts that must not be sent (again): acked or set aside; None = all of them. Any thread."""
        if item in self._released:
            return None
        state = self._open.get(item)
        if state is None:
            return []
        ranges = list(state.acked)
        for n in list(state.numbers):
            row = self.outbox.aside.get(n)
            if row is not None:
                for ref in row.refs:
                    if ref.item == item:
                        ranges = add_range(ranges, ref.first, ref.end)
        return None if ranges == [(0, state.total)] else ranges

    # --- what happens

    def send(self, sent: Sent, sha256: bytes) -> None:
        """A message is about to leave for the first time."""
        self.sent[sent.n] = sent
        if sent.lane != "alarms":
            self.octets += len(sent.payload)
        self._enter(sent.n, sent.refs)
        self.outbox.record(sent.n, sent.refs, sha256)

    def acked(self, ranges: Iterable[tuple[int, int]]) -> tuple[list[int], list[Item]]:
        """Numbers (both ends included) that the cloud stored: the ones that were open, and the items to release."""
        books: tuple[Mapping[int, object], ...] = (
            self.sent,
            self.outbox.earlier,
            self.outbox.aside,
        )
        numbers = {n for a, b in ranges for book in books for n in _within(book, a, b)}
        released: list[Item] = []
        for n in sorted(numbers):
            for ref in self._refs(n):
                state = self._open.get(ref.item)
                if state is None:
                    continue
                state.acked = add_range(state.acked, ref.first, ref.end)
                if state.complete:
                    released.append(ref.item)
                    self._release(ref.item)
                else:
                    self.outbox.keep_partial(ref.item, state.total, state.acked)
            self._settle(n)
        return sorted(numbers), released

    def release(self, items: Iterable[Item]) -> None:
        """These items are gone from the journal: nothing about them is open."""
        for item in items:
            if item in self._open:
                self._release(item)

    def refuse(self, n: int, cause: str, why: str, at: int) -> AsideRow | None:
        """Set a message of this or an earlier run aside; None when the number is not open."""
        refs = self.sent[n].refs if n in self.sent else self.outbox.earlier.get(n)
        if refs is None:
            return None
        row = AsideRow(refs, cause, why[:200], at)
        self._forget_payload(n)
        self.outbox.earlier.pop(n, None)
        self.outbox.set_aside(n, row)
        return row

    def refuse_unsent(self, n: int, refs: Sequence[Ref], cause: str, why: str, at: int) -> AsideRow:
        """Set parts aside that no message can carry."""
        row = AsideRow(tuple(refs), cause, why[:200], at)
        self._enter(n, row.refs)
        self.outbox.set_aside(n, row)
        return row

    def retry(self, now: float) -> list[Ref]:
        """Take back what has stood aside for long enough by civil time: its parts, which are pending again."""
        out: list[Ref] = []
        for n, row in list(self.outbox.aside.items()):
            if now - row.at >= (RETRY_S if row.cause in PASSING else RETRY_REFUSED_S):
                out += row.refs
                self._settle(n)
        return out

    def withdraw(self, n: int) -> tuple[Ref, ...]:
        """A message of this run that will not leave as it is: its parts, which are pending again."""
        refs = self._refs(n)
        self._settle(n)
        return refs

    def open_alarms(self) -> int:
        """Alarms that are under way or set aside."""
        return sum(1 for kind, _ in self._open if kind == ALARM)

    def only_earlier(self) -> list[Item]:
        """Items that nothing but records of earlier runs and acked ranges name."""
        return [
            item
            for item, state in self._open.items()
            if not any(n in self.sent or n in self.outbox.aside for n in state.numbers)
        ]

    def wholly_aside(self, row: AsideRow) -> list[Item]:
        """Items of which nothing is left to be sent or acked, because all that is not acked stands aside."""
        return [
            item
            for item in dict.fromkeys(ref.item for ref in row.refs)
            if self.covered(item) is None and item not in self._released
        ]

    # --- inside

    def _refs(self, n: int) -> tuple[Ref, ...]:
        if n in self.sent:
            return self.sent[n].refs
        if n in self.outbox.aside:
            return self.outbox.aside[n].refs
        return self.outbox.earlier.get(n, ())

    def _release(self, item: Item) -> None:
        state = self._open.pop(item)
        self._released[item] = None
        if len(self._released) > REMEMBERED:
            self._released.popitem(last=False)
        self.outbox.drop_partial(item)
        for n in state.numbers:
            if all(ref.item not in self._open for ref in self._refs(n)):
                self._settle(n)

    def _settle(self, n: int) -> None:
        for ref in self._refs(n):
            state = self._open.get(ref.item)
            if state is not None:
                state.numbers.discard(n)
                if not state.numbers and not state.acked:
                    del self._open[ref.item]
        self._forget_payload(n)
        self.outbox.forget(n)

    def _forget_payload(self, n: int) -> None:
        gone = self.sent.pop(n, None)
        if gone is not None and gone.lane != "alarms":
            self.octets -= len(gone.payload)


def _within(book: Mapping[int, object], a: int, b: int) -> list[int]:
    if b - a < len(book):
        return [n for n in range(a, b + 1) if n in book]
    return [n for n in book if a <= n <= b]
