"""Reading plans: which registers to ask for together, so that a set of points costs the least line time.

Exact, by a dynamic programme over the sorted points of a table: wire cost is linear, a request costs `request` plus
`register` for each register, so `best[i] = min over j of best[j] + cost(j..i)` under the meter's size limit and with
no register touched that may not be read. Invariants of every plan: each point lies whole in exactly one request (a
counter is never torn over two requests); a request begins and ends with a wanted point; no request is longer than the
limit or touches a forbidden register; the plan never costs more than reading point by point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

HolePolicy = Literal["tolerant", "do not cross", "unknown"]
Table = Literal["holding", "input"]

FUNCTIONS: dict[str, int] = {"holding": 3, "input": 4}
PROTOCOL_LIMIT = 125


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Registers [start, end) of a table."""

    table: str
    start: int
    end: int

    @property
    def count(self) -> int:
        """How many registers."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the registers, and the wanted spans in it, ascending."""

    span: Span
    wanted: tuple[Span, ...]

    @property
    def function(self) -> int:
        """3 for holding registers, 4 for input registers."""
        return FUNCTIONS[self.span.table]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request costs, in any one unit (microseconds of line time).

    Attributes:
        request: of a request without its registers: both headers, silences, the meter's answer delay.
        register: of one register more in the answer.
    """

    request: int
    register: int

    def of(self, span: Span) -> int:
        """Cost of asking for a span."""
        return self.request + self.register * span.count


TCP_COST = Cost(request=20_000, register=10)


def rtu_cost(character_s: float, silence_s: float, delay_s: float = 0.02) -> Cost:
    """Cost on a serial line: (13 + 2n) characters, two silent intervals, the meter's answer delay."""
    return Cost(
        round((13 * character_s + 2 * silence_s + delay_s) * 1e6), round(2 * character_s * 1e6)
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a meter allows, from its model and from what was learned of it.

    Attributes:
        largest: registers in one request.
        holes: may a request cross registers that no point of the model covers?
        defined: spans of all points of the model, wanted or not.
        forbidden: spans that this meter refused.
    """

    largest: int
    holes: HolePolicy
    defined: tuple[Span, ...]
    forbidden: tuple[Span, ...] = ()


def plan(wanted: Iterable[Span], limits: Limits, cost: Cost) -> list[Request]:
    """The cheapest requests for the wanted spans, in an order that helps to tell stale answers.

    Raises:
        ValueError: a span is longer than the limit.
    """
    tables: dict[str, list[Span]] = {}
    for span in sorted(set(wanted)):
        if span.count > limits.largest:
            raise ValueError(f"{span} is longer than a request of {limits.largest} registers")
        tables.setdefault(span.table, []).append(span)
    requests = []
    for table, spans in tables.items():
        requests += _plan_table(spans, _gaps(table, spans, limits), limits.largest, cost)
    return _apart(requests)


def _gaps(table: str, spans: Sequence[Span], limits: Limits) -> list[bool]:
    """May the registers between span i and span i + 1 be read? One entry fewer than spans."""
    covered = sorted((s.start, s.end) for s in limits.defined if s.table == table)
    refused = [(s.start, s.end) for s in limits.forbidden if s.table == table]
    return [
        _passable(left.end, right.start, limits, covered, refused)
        for left, right in itertools.pairwise(spans)
    ]


def _passable(
    start: int,
    end: int,
    limits: Limits,
    covered: Iterable[tuple[int, int]],
    refused: Iterable[tuple[int, int]],
) -> bool:
    """May the registers [start, end) be read?"""
    free = limits.holes == "tolerant" or _covered(start, end, covered)
    return free and not any(a < end and start < b for a, b in refused)


def _covered(start: int, end: int, covered: Iterable[tuple[int, int]]) -> bool:
    """Does every register of [start, end) belong to one of the ascending spans?"""
    for first, last in covered:
        if first <= start < last:
            start = last
    return start >= end


def _plan_table(
    spans: Sequence[Span], passable: Sequence[bool], largest: int, cost: Cost
) -> list[Request]:
    best = [0]
    back = [0]
    for i in range(len(spans)):
        least, cut, end = cost.of(spans[i]) + best[i], i, spans[i].end
        for j in range(i - 1, -1, -1):
            end = max(end, spans[j].end)
            if not passable[j] or end - spans[j].start > largest:
                break
            total = best[j] + cost.request + cost.register * (end - spans[j].start)
            if total < least:
                least, cut = total, j
        best.append(least)
        back.append(cut)
    requests: list[Request] = []
    i = len(spans)
    while i:
        j = back[i]
        members = tuple(spans[j:i])
        whole = Span(members[0].table, members[0].start, max(s.end for s in members))
        requests.append(Request(whole, members))
        i = j
    return requests[::-1]


def _apart(requests: list[Request]) -> list[Request]:
    """Where it can be had, no two consecutive requests of equal function and count.

    On RTU nothing but its size tells a late answer from the answer to the next request.
    """
    waiting = list(requests)
    ordered: list[Request] = []
    while waiting:
        last = (ordered[-1].function, ordered[-1].span.count) if ordered else None
        pick = next((i for i, r in enumerate(waiting) if (r.function, r.span.count) != last), 0)
        ordered.append(waiting.pop(pick))
    return ordered


def halves(request: Request) -> tuple[Request, Request]:
    """A refused request of several points as two, cut at its widest hole, else in the middle.

    Raises:
        ValueError: it holds only one point.
    """
    wanted = request.wanted
    if len(wanted) < 2:
        raise ValueError("one point cannot be split")
    holes = [right.start - left.end for left, right in itertools.pairwise(wanted)]
    widest = max(holes)
    cut = holes.index(widest) + 1 if widest > 0 else len(wanted) // 2
    return _request(wanted[:cut]), _request(wanted[cut:])


def plain(request: Request) -> Request:
    """The request without neighbours that nobody wants."""
    return _request(request.wanted)


def _request(members: tuple[Span, ...]) -> Request:
    return Request(Span(members[0].table, members[0].start, max(s.end for s in members)), members)


def vary(request: Request, limits: Limits, taken: Collection[int]) -> tuple[Request, ...]:
    """The same values in requests of other counts than `taken`, so that a late answer to one of those does not fit.

    A neighbour of the model is read with them, to the right or to the left, or they are asked for in two parts. What
    a plan may not do is not done here either.

    Returns:
        One request or two; none where it cannot be had.
    """
    table, span = request.span.table, request.span
    covered = sorted((s.start, s.end) for s in limits.defined if s.table == table)
    refused = [(s.start, s.end) for s in limits.forbidden if s.table == table]
    for start, end in covered:
        if start >= span.end and end - span.start <= limits.largest:
            wider = Span(table, span.start, end)
            beyond = (span.end, end)
        elif end <= span.start and span.end - start <= limits.largest:
            wider = Span(table, start, span.end)
            beyond = (start, span.start)
        else:
            continue
        if wider.count not in taken and _passable(*beyond, limits, covered, refused):
            return (Request(wider, request.wanted),)
    for cut in range(1, len(request.wanted)):
        parts = _request(request.wanted[:cut]), _request(request.wanted[cut:])
        counts = {part.span.count for part in parts}
        if len(counts) == 2 and not counts & set(taken):
            return parts
    return ()


def holes_of(request: Request, defined: Collection[Span]) -> tuple[Span, ...]:
    """Registers in a request that no point of the model covers."""
    covered = sorted((s.start, s.end) for s in defined if s.table == request.span.table)
    found, at = [], request.span.start
    for start, end in (*covered, (request.span.end, request.span.end)):
        if at < min(start, request.span.end):
            found.append(Span(request.span.table, at, min(start, request.span.end)))
        at = max(at, end)
    return tuple(found)
