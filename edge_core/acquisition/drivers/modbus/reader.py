"""Reads sets of registers of one unit by plan, through whatever the unit and the line throw back.

What the answers teach is kept in `Learned` (and by the driver in the meter's memory): registers that the unit refuses
(exception 2: the request is split until the culprit stands alone) and its size limit (exception 3: halved). A busy
unit (5, 6) is asked again after a pause. An answer that was lost or garbled is asked for again while the session's
budget lasts, but only of a unit that has answered before in this session: a dead unit costs its line one time-out. On
lines that cannot tell a late answer from the next one it is asked for in another size (`plan.vary`).

Bounds: RETRIES repeats and BUSY_WAITS pauses a session, MAX_SPLITS splits a read; each wait is the line's own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_core.acquisition.drivers.modbus.line import Ask, Garbled, Silent
from edge_core.protocols.modbus import pdu
from edge_core.protocols.modbus.pdu import ModbusException
from edge_core.protocols.modbus.plan import (
    Limits,
    Request,
    Span,
    halves,
    holes_of,
    plain,
    plan,
    vary,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_core.acquisition.drivers import Tracer
    from edge_core.acquisition.drivers.modbus.line import Answered, ModbusLine
    from edge_core.protocols.modbus.plan import HolePolicy

RETRIES = 3
BUSY_WAITS = 4
BUSY_FIRST_S = 0.25
MAX_SPLITS = 64
LONGEST_PAUSE_S = 8.0
ADDRESS_REFUSED, COUNT_REFUSED, BUSY = 2, 3, (5, 6)
WORKING = (*BUSY, 10, 11)  # a gateway gives up on a meter that searches
HOPELESS = 3  # single values refused before anything was read: the table is wrong, not a register


class Refused(Exception):
    """The unit says no, finally. `code` is its exception code, `ask` what was asked."""

    def __init__(self, ask: Ask, code: int, text: str) -> None:
        super().__init__(text)
        self.ask = ask
        self.code = code


class Unanswered(Exception):
    """No usable answer, finally. `garbled` tells octets that are no answer from none at all."""

    def __init__(self, ask: Ask, cause: str, garbled: bool) -> None:
        super().__init__(cause)
        self.ask = ask
        self.garbled = garbled


class NotKnown(Exception):
    """A write that may not be repeated had no answer, or one that does not say whether it was done."""


@dataclass(slots=True)
class Learned:
    """What this unit taught beyond its model.

    Attributes:
        largest: registers in one request, or None while the model's limit holds.
        refused: spans that may not be touched.
        changed: something new since it was loaded.
    """

    largest: int | None = None
    refused: set[Span] = field(default_factory=set)
    changed: bool = False


@dataclass(slots=True)
class Bulk:
    """What a read brought.

    Attributes:
        words: registers by span; None where the unit refuses the span.
        sent_at: UTC epoch seconds when the first request left.
        heard_at: UTC epoch seconds when the last answer had come.
    """

    words: dict[Span, tuple[int, ...] | None] = field(default_factory=dict)
    sent_at: float = 0.0
    heard_at: float = 0.0


class Reader:
    """Reads of one unit in one session.

    Args:
        line: the shared line.
        unit: whom to ask.
        largest: registers in one request, by the model.
        holes: may registers be crossed that no point covers?
        defined: spans of all points of the model.
        learned: what earlier sessions found out; added to.
        gap_s: silence before each request.
        tracer: is shown plans and frames.
    """

    def __init__(
        self,
        line: ModbusLine,
        unit: int,
        *,
        largest: int,
        holes: HolePolicy,
        defined: tuple[Span, ...],
        learned: Learned,
        gap_s: float = 0.0,
        tracer: Tracer | None = None,
    ) -> None:
        self._line = line
        self._unit = unit
        self._largest = largest
        self._holes: HolePolicy = holes
        self._defined = defined
        self._learned = learned
        self._gap_s = gap_s
        self._tracer = tracer
        self._retries = RETRIES
        self._busy_waits = 0
        self._refusals = 0
        self._unvaried: set[Span] = set()
        self.answered = False

    async def read(self, spans: Iterable[Span]) -> Bulk:
        """The registers of the spans, with as few and as short requests as the limits allow.

        Raises:
            Unanswered, Refused: the read ends; nothing of it is to be believed.
        """
        bulk = Bulk()
        wanted = set(spans)
        known = {s for s in wanted if any(_touches(s, r) for r in self._learned.refused)}
        bulk.words.update(dict.fromkeys(known))
        waiting = self._plan(wanted - known)
        splits = 0
        while waiting:
            request, *others = self._distinct(waiting.pop(0))
            waiting[:0] = others
            ask = self._ask(request)
            try:
                answered = await self._attempt(ask)
            except ModbusException as refusal:
                splits += 1
                waiting = self._after(refusal, request, ask, waiting, bulk, splits)
                continue
            if answered is None:
                waiting.insert(0, request)
                continue
            bulk.sent_at = bulk.sent_at or answered.sent_at
            bulk.heard_at = answered.heard_at
            for span in request.wanted:
                at = span.start - request.span.start
                bulk.words[span] = answered.registers[at : at + span.count]
        return bulk

    async def probe(self, span: Span) -> tuple[int, ...] | None:
        """The registers of one span whatever the model says of it; None if the unit refuses them.

        Raises:
            Unanswered, Refused: as in `read`; exceptions 2 and 3 are no errors here.
        """
        ask = self._ask(Request(span, (span,)))
        try:
            while (answered := await self._attempt(ask)) is None:
                pass
            return answered.registers
        except ModbusException as refusal:
            if refusal.code in (ADDRESS_REFUSED, COUNT_REFUSED):
                return None
            raise Refused(ask, refusal.code, str(refusal)) from refusal

    async def write(
        self,
        address: int,
        words: tuple[int, ...],
        declared: tuple[tuple[int, int], ...],
        *,
        patience_s: float = 0.0,
        once: bool = False,
    ) -> None:
        """Write request registers of a history.

        Args:
            declared: the groups of registers that may be written.
            patience_s: how long the meter may work on it; repeated until then while it, or its gateway, is busy.
            once: it may not be done twice.

        Raises:
            NotKnown: `once`, and nobody knows whether it was done.
            Unanswered, Refused: as in `read`.
        """
        ask = Ask(
            self._unit, pdu.WRITE, address, len(words),
            gap_s=self._gap_s, words=words, declared=declared, patience_s=patience_s,
        )  # fmt: skip
        time = asyncio.get_running_loop().time
        until, pause_s = time() + patience_s, BUSY_FIRST_S
        while True:
            try:
                await self._line.read(ask, self._tracer)
            except ModbusException as refusal:
                self.answered = True
                if once and refusal.code != BUSY[1]:  # 6: it was not done
                    raise NotKnown(str(refusal)) from refusal
                if refusal.code not in WORKING or not self._wait(time(), until):
                    raise Refused(ask, refusal.code, str(refusal)) from refusal
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except (Silent, Garbled) as trouble:
                if once:
                    raise NotKnown(str(trouble)) from trouble
                if not self._retries or (patience_s and time() >= until):
                    raise Unanswered(ask, str(trouble), isinstance(trouble, Garbled)) from trouble
                self._retries -= 1
            else:
                self.answered = True
                return

    def _wait(self, now: float, until: float) -> bool:
        """May a busy unit be waited for? Some pauses a session, and as long as a search may last."""
        if now < until:
            return True
        self._busy_waits += 1
        return self._busy_waits <= BUSY_WAITS

    # --- one request

    async def _attempt(self, ask: Ask) -> Answered | None:
        """One answer, after pauses if the unit is busy; None when it is to be asked again."""
        while True:
            try:
                answered = await self._line.read(ask, self._tracer)
            except ModbusException as refusal:
                self.answered = True
                if refusal.code not in BUSY:
                    raise
                if self._busy_waits >= BUSY_WAITS:
                    raise Refused(ask, refusal.code, str(refusal)) from refusal
                await asyncio.sleep(BUSY_FIRST_S * 2**self._busy_waits)
                self._busy_waits += 1
            except (Silent, Garbled) as trouble:
                garbled = isinstance(trouble, Garbled)
                if not (self.answered or garbled) or not self._retries:
                    raise Unanswered(ask, str(trouble), garbled) from trouble
                self._retries -= 1
                return None
            else:
                self.answered = True
                return answered

    def _distinct(self, request: Request) -> tuple[Request, ...]:
        """The request, in another size where the unit still owes an answer of this one."""
        owed = {
            count for function, count in self._line.owed(self._unit) if function == request.function
        }
        if request.span.count not in owed or request.span in self._unvaried:
            return (request,)
        return vary(request, self._limits(), owed) or (request,)

    def _after(
        self,
        refusal: ModbusException,
        request: Request,
        ask: Ask,
        waiting: list[Request],
        bulk: Bulk,
        splits: int,
    ) -> list[Request]:
        """The requests that are left after the unit refused one."""
        code = refusal.code
        if code not in (ADDRESS_REFUSED, COUNT_REFUSED) or splits > MAX_SPLITS:
            raise Refused(ask, code, str(refusal)) from refusal
        wanted = plain(request)
        if wanted.span != request.span:  # a neighbour that only changed the size may be at fault
            self._unvaried.add(wanted.span)
            return [wanted, *waiting]
        if code == COUNT_REFUSED and len(request.wanted) > 1:
            self._learned.largest = max(
                request.span.count // 2, max(s.count for s in request.wanted)
            )
            self._learned.changed = True
            return self._plan([s for r in (request, *waiting) for s in r.wanted])
        if len(request.wanted) > 1:
            for hole in holes_of(request, self._defined):
                self._learned.refused.add(hole)
                self._learned.changed = True
            return [*halves(request), *waiting]
        self._refusals += 1
        if self._refusals >= HOPELESS and not any(bulk.words.values()):
            raise Refused(ask, code, str(refusal)) from refusal
        bulk.words[request.span] = None
        return waiting

    def settle(self, bulk: Bulk) -> None:
        """After a read that brought something: remember what single values were refused."""
        if any(words is not None for words in bulk.words.values()):
            for span, words in bulk.words.items():
                if words is None and span not in self._learned.refused:
                    self._learned.refused.add(span)
                    self._learned.changed = True

    # --- plan

    def _ask(self, request: Request) -> Ask:
        span = request.span
        return Ask(
            self._unit,
            request.function,
            span.start,
            span.count,
            first=not self.answered,
            gap_s=self._gap_s,
        )

    def _plan(self, spans: Iterable[Span]) -> list[Request]:
        requests = plan(spans, self._limits(), self._line.cost)
        if self._tracer:
            self._tracer("plan", describe(requests, self._line).encode())
        return requests

    def _limits(self) -> Limits:
        return Limits(
            min(self._largest, self._learned.largest or self._largest),
            self._holes,
            self._defined,
            tuple(self._learned.refused),
        )


def describe(requests: list[Request], line: ModbusLine) -> str:
    """A plan for people: what is asked together, and the line time that it costs."""
    total = sum(line.cost.of(r.span) for r in requests)
    parts = ", ".join(
        f"{r.span.table} {r.span.start}..{r.span.end - 1} ({len(r.wanted)} values)"
        for r in requests
    )
    return f"{len(requests)} requests, about {total / 1000:.0f} ms: {parts}"


def _touches(a: Span, b: Span) -> bool:
    return a.table == b.table and a.start < b.end and b.start < a.end
