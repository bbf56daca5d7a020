"""Reading plans: never a forbidden register, never dearer than point by point, and in fact the cheapest."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.config.models import load_model, model_names
from edge_core.protocols.modbus.codec import words_of
from edge_core.protocols.modbus.plan import (
    TCP_COST,
    Cost,
    Limits,
    Request,
    Span,
    halves,
    holes_of,
    plain,
    plan,
    rtu_cost,
    vary,
)

COSTS = st.builds(Cost, request=st.integers(1, 100_000), register=st.integers(0, 10_000))


@st.composite
def spans(draw, most=12):
    """Disjoint spans of 1 to 4 registers with holes between them, in one or two tables."""
    found, at = [], draw(st.integers(0, 20))
    for _ in range(draw(st.integers(1, most))):
        length = draw(st.sampled_from([1, 1, 2, 2, 4]))
        found.append(Span(draw(st.sampled_from(["holding", "holding", "input"])), at, at + length))
        at += length + draw(st.sampled_from([0, 0, 0, 1, 2, 5, 30]))
    return found


@st.composite
def cases(draw):
    defined = draw(spans())
    wanted = draw(st.lists(st.sampled_from(defined), min_size=1, unique=True))
    limits = Limits(
        draw(st.integers(4, 40)),
        draw(st.sampled_from(["tolerant", "do not cross", "unknown"])),
        tuple(defined),
        tuple(
            Span(table, start, start + count)
            for table, start, count in draw(
                st.lists(
                    st.tuples(
                        st.sampled_from(["holding", "input"]), st.integers(0, 80), st.integers(1, 3)
                    ),
                    max_size=3,
                )
            )
            if not any(
                s.table == table and s.start < start + count and start < s.end for s in wanted
            )
        ),
    )
    return wanted, limits, draw(COSTS)


def registers(span: Span) -> set[tuple[str, int]]:
    return {(span.table, at) for at in range(span.start, span.end)}


@given(cases())
def test_every_plan_reads_each_point_once_and_nothing_forbidden(case):
    wanted, limits, cost = case
    requests = plan(wanted, limits, cost)
    assert sorted(s for r in requests for s in r.wanted) == sorted(wanted)
    defined = set().union(*(registers(s) for s in limits.defined))
    forbidden = (
        set().union(*(registers(s) for s in limits.forbidden)) if limits.forbidden else set()
    )
    for request in requests:
        touched = registers(request.span)
        assert request.span.count <= limits.largest
        assert not touched & forbidden
        if limits.holes != "tolerant":
            assert touched <= defined
        for span in request.wanted:
            assert registers(span) <= touched
        # aligned: a request begins and ends with a wanted value
        assert request.span.start == min(s.start for s in request.wanted)
        assert request.span.end == max(s.end for s in request.wanted)


@given(cases())
def test_no_plan_costs_more_than_point_by_point(case):
    wanted, limits, cost = case
    assert sum(cost.of(r.span) for r in plan(wanted, limits, cost)) <= sum(
        cost.of(s) for s in wanted
    )


@settings(max_examples=60)
@given(spans(most=7), st.sampled_from(["tolerant", "do not cross"]), st.integers(4, 30), COSTS)
def test_the_plan_is_the_cheapest_of_all_cuts(wanted, holes, largest, cost):
    wanted = [Span("holding", s.start, s.end) for s in wanted]
    limits = Limits(largest, holes, tuple(wanted))
    found = sum(cost.of(r.span) for r in plan(wanted, limits, cost))
    best = min(
        total
        for cuts in itertools.product([False, True], repeat=len(wanted) - 1)
        if (total := _cost_of_cut(wanted, cuts, limits, cost)) is not None
    )
    assert found == best


def _cost_of_cut(wanted, cuts, limits, cost):
    groups, group = [], [wanted[0]]
    for span, cut in zip(wanted[1:], cuts, strict=True):
        if cut:
            groups.append(group)
            group = []
        group.append(span)
    groups.append(group)
    total = 0
    for members in groups:
        whole = Span("holding", members[0].start, members[-1].end)
        gaps = sum(s.count for s in members) != whole.count
        if whole.count > limits.largest or (gaps and limits.holes != "tolerant"):
            return None
        total += cost.of(whole)
    return total


def test_a_hole_is_worth_crossing_only_while_it_is_cheaper_than_a_request():
    cost = Cost(request=100, register=10)
    near = [Span("input", 0, 2), Span("input", 11, 13)]  # 9 registers between: 90 against 100
    far = [Span("input", 0, 2), Span("input", 13, 15)]  # 11 registers between: 110
    assert len(plan(near, Limits(125, "tolerant", ()), cost)) == 1
    assert len(plan(far, Limits(125, "tolerant", ()), cost)) == 2
    assert len(plan(near, Limits(125, "unknown", tuple(near)), cost)) == 2


def test_neighbouring_requests_differ_in_size_where_that_can_be_had():
    wanted = [Span("input", 100 * i, 100 * i + n) for i, n in enumerate((2, 2, 4, 2, 4))]
    requests = plan(wanted, Limits(125, "unknown", tuple(wanted)), TCP_COST)
    sizes = [r.span.count for r in requests]
    assert all(a != b for a, b in itertools.pairwise(sizes))


def test_a_value_longer_than_the_limit_is_refused():
    with pytest.raises(ValueError, match="longer"):
        plan([Span("input", 0, 4)], Limits(3, "tolerant", ()), TCP_COST)


@given(spans())
def test_splitting_loses_nothing_and_shrinks(wanted):
    wanted = sorted({Span("input", s.start, s.end) for s in wanted})
    if len(wanted) < 2:
        return
    whole = Request(Span("input", wanted[0].start, wanted[-1].end), tuple(wanted))
    left, right = halves(whole)
    assert left.wanted + right.wanted == whole.wanted
    assert left.span.end <= right.span.start


def test_one_value_cannot_be_split():
    with pytest.raises(ValueError, match="split"):
        halves(Request(Span("input", 0, 2), (Span("input", 0, 2),)))


def test_holes_are_what_no_point_covers():
    request = Request(Span("input", 0, 20), (Span("input", 0, 2), Span("input", 18, 20)))
    defined = [
        Span("input", 0, 2),
        Span("input", 4, 6),
        Span("holding", 8, 12),
        Span("input", 18, 20),
    ]
    assert holes_of(request, defined) == (Span("input", 2, 4), Span("input", 6, 18))


@pytest.mark.parametrize(
    "name", [n for n in model_names() if load_model(n).about.protocol == "modbus"]
)
def test_the_plan_of_every_model_is_lawful_and_cheaper(name):
    model = load_model(name)
    all_spans = {
        Span(p.table, p.address, p.address + words_of(p.type, p.length)) for p in model.points
    }
    limits = Limits(model.link.max_registers_per_read, model.link.hole_policy, tuple(all_spans))
    cost = rtu_cost(11 / 9600, 0.004)
    requests = plan(all_spans, limits, cost)
    assert sum(cost.of(r.span) for r in requests) <= sum(cost.of(s) for s in all_spans)
    assert all(r.span.count <= limits.largest for r in requests)
    assert sorted(s for r in requests for s in r.wanted) == sorted(all_spans)


def test_the_measured_example_of_sdm630():
    """46 points at 9,600 baud: 2.19 s one by one; fillers of 50 registers (Telegraf) take 3 requests, 0.385 s."""
    model = load_model("eastron-sdm630")
    wanted = [Span(p.table, p.address, p.address + 2) for p in model.points]
    cost = rtu_cost(11 / 9600, 3.5 * 11 / 9600)
    assert sum(cost.of(s) for s in wanted) == pytest.approx(2_190_000, rel=0.01)
    requests = plan(wanted, Limits(80, "tolerant", tuple(wanted)), cost)
    assert sum(cost.of(r.span) for r in requests) < 363_000


@given(cases(), st.sets(st.integers(1, 40), max_size=4))
def test_another_size_reads_the_same_points_and_nothing_that_a_plan_may_not(case, taken):
    wanted, limits, cost = case
    for request in plan(wanted, limits, cost):
        varied = vary(request, limits, {*taken, request.span.count})
        if not varied:
            continue
        assert [s for r in varied for s in r.wanted] == list(request.wanted)
        counts = [r.span.count for r in varied]
        assert not {*taken, request.span.count} & set(counts)
        assert len(set(counts)) == len(counts)
        defined = set().union(*(registers(s) for s in limits.defined))
        forbidden = set().union(*(registers(s) for s in limits.forbidden), set())
        for other in varied:
            assert other.span.count <= limits.largest
            touched = registers(other.span)
            assert not touched & forbidden
            assert limits.holes == "tolerant" or touched <= defined | registers(request.span)
            ends = {s.start for s in limits.defined}, {s.end for s in limits.defined}
            assert other.span.start in ends[0]
            assert other.span.end in ends[1]
            assert plain(other).wanted == other.wanted


@given(cases())
def test_where_a_neighbour_touches_another_size_is_always_found(case):
    """Two adjacent points of the model, room for both: the request for one can be made larger."""
    _, limits, _ = case
    spans_ = sorted(s for s in limits.defined)
    for left, right in itertools.pairwise(spans_):
        both = left.table == right.table and left.end == right.start
        free = not any(
            f.table == left.table and f.start < right.end and left.start < f.end
            for f in limits.forbidden
        )
        if both and free and left.count + right.count <= limits.largest:
            for one in (left, right):
                (varied, *rest) = vary(Request(one, (one,)), limits, {one.count})
                assert not rest
                assert varied.span.count > one.count
