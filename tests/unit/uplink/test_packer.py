"""Drafts from a real journal: they fit, hold every row once, group by kind, leave out what is covered."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.clock import SystemClock
from edge_core.domain import Block, Column, Layout
from edge_core.journal import Journal
from edge_core.uplink.outbox import Ref
from edge_core.uplink.packer import Draft, Packer, room_of
from edge_core.uplink.payloads.envelope import message
from edge_core.uplink.payloads.reads import Reads
from edge_core.uplink.topics import Topics

T0 = 1763999100


class Box:
    """A journal and a packer on it."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self.journal = Journal.open(folder / "journal.db", clock=SystemClock())
        self.covered: dict[Any, list[tuple[int, int]] | None] = {}
        self.packer = self.restart()

    def restart(self) -> Packer:
        self.packer = Packer(
            self.journal,
            Topics("dcu", "d"),
            covered=lambda item: self.covered.get(item, []),
            room=room_of(self.limit, "d"),
        )
        return self.packer

    def append(self, *blocks: Block, lane: Any = "live") -> None:
        for b in blocks:
            self.journal.append(b, lane=lane)
        self.journal.flush().result(10)

    def drafts(self, lane: Any = "live") -> list[Draft]:
        out = []
        while (draft := self.packer.draft(lane, 0.0, 0.0)[0]) is not None:
            out.append(draft)
        return out

    def opened(self, draft: Draft) -> Reads:
        whole = message(
            draft.name,
            dcu="d",
            epoch=10**10,
            n=10**9,
            sent=10**10,
            kind=draft.kind,
            members=draft.members,
        )
        assert len(whole) <= self.limit
        return msgspec.json.decode(whole, type=Reads)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path, 4_800)
    yield box
    box.journal.close()


def layout(columns: int, period: int = 900) -> Layout:
    return Layout(
        "1.0.99.1.0.255",
        period,
        tuple(Column(f"1.0.{c}.29.0.255", "Wh", 0) for c in range(1, columns + 1)),
    )


def block(meter: int, rows: int, columns: int = 4, kind: str = "interval", t0: int = T0) -> Block:
    return Block(
        meter=f"m{meter}",
        device=f"d{meter}",
        kind=kind,
        layout=layout(columns),
        times=[t0 + 900 * i for i in range(rows)],
        columns=tuple(
            [(meter * 7919 + i * 104_729 + c * 31) % 99_991 for i in range(rows)]
            for c in range(columns)
        ),
        read_at=t0 + 900 * rows,
    )


def rows_of(box: Box, drafts: list[Draft]) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for draft in drafts:
        content = box.opened(draft).content()
        for b in content.blocks:
            period = content.layouts[b.layout].period
            times = b.t if isinstance(b.t, list) else [b.t0 + i * period for i in range(b.rows)]  # type: ignore[operator]
            found.update((b.meter, t) for t in times)
    return found


def test_nothing_waits_nothing_comes(box: Box) -> None:
    assert box.drafts("live") == []
    assert box.drafts("backlog") == []


def test_every_row_once_and_every_message_fits(box: Box) -> None:
    blocks = [block(m, rows) for m, rows in enumerate((1, 4, 96, 700, 3, 2_500))]
    box.append(*blocks)
    drafts = box.drafts()
    assert rows_of(box, drafts) == Counter((b.meter, t) for b in blocks for t in b.times)
    refs = [ref for draft in drafts for ref in draft.refs]
    covered = sorted((r.key, r.first, r.end) for r in refs)
    assert sum(end - first for _, first, end in covered) == sum(b.rows for b in blocks)
    assert all(a[2] <= b[1] or a[0] != b[0] for a, b in itertools.pairwise(covered))
    assert sum({r.key: r.total for r in refs}.values()) == sum(b.rows for b in blocks)
    assert box.packer.refused == []


def test_the_same_drafts_after_a_restart(box: Box) -> None:
    box.append(*(block(m, 50) for m in range(20)))
    first = box.drafts()
    box.restart()
    again = box.drafts("backlog")
    assert [d.members for d in again] == [d.members for d in first]
    assert [d.refs for d in again] == [d.refs for d in first]


def test_kinds_do_not_mix_and_share_over_segments(box: Box) -> None:
    for m in range(6):
        box.append(block(m, 2), block(100 + m, 2, kind="midnight"))
    drafts = box.drafts()
    assert sorted((d.kind, len({r.key for r in d.refs})) for d in drafts) == [
        ("interval", 6),
        ("midnight", 6),
    ]


def test_what_is_covered_is_left_out(box: Box) -> None:
    box.append(block(1, 10), block(2, 10), block(3, 10))
    box.append(block(4, 10))
    box.append(block(5, 10))
    one, two, three = (s.id for s in box.journal.segments(0))
    box.covered = {("s", one): [(0, 3), (8, 25)], ("s", two): None}
    box.restart()
    found = rows_of(box, box.drafts("backlog"))
    expected = [("m1", T0 + 900 * i) for i in range(3, 8)]
    expected += [("m3", T0 + 900 * i) for i in range(5, 10)]
    expected += [("m5", T0 + 900 * i) for i in range(10)]
    assert found == Counter(expected)
    assert three


def test_parts_are_read_again_when_asked(box: Box) -> None:
    box.append(block(1, 10), block(2, 10))
    box.drafts()
    (segment,) = (s.id for s in box.journal.segments(0))
    box.packer.again([Ref("s", segment, 5, 12, 20), Ref("a", "x", 0, 1, 1)])
    drafts = box.drafts("backlog")
    assert [d.refs for d in drafts] == [(Ref("s", segment, 5, 12, 20),)]
    assert sum(rows_of(box, drafts).values()) == 7


def test_live_waits_for_company_backlog_does_not(box: Box) -> None:
    box.append(block(1, 4), lane="backlog")
    box.append(block(2, 4))
    assert box.packer.draft("live", 100.0, 60.0) == (None, 160.0)
    assert box.packer.draft("backlog", 100.0, 60.0)[0] is not None
    assert box.packer.draft("live", 159.0, 60.0) == (None, 160.0)
    draft, _ = box.packer.draft("live", 160.0, 60.0)
    assert draft is not None
    box.append(block(3, 4, kind="instantaneous"))
    draft, _ = box.packer.draft("live", 161.0, 60.0)
    assert draft is not None
    assert draft.kind == "instantaneous"
    box.append(*(block(m, 96) for m in range(10, 30)))
    draft, _ = box.packer.draft("live", 161.0, 60.0)
    assert draft is not None
    assert draft.kind == "interval"


def test_what_waits_is_bounded_however_much_is_queued(box: Box) -> None:
    for m in range(120):
        box.append(block(m, 250))
    box.restart()
    assert box.packer.draft("backlog", 0.0, 0.0)[0] is not None
    held = sum(bin_.octets for bin_ in box.packer._bins["backlog"].values())
    assert held < 60_000


def test_a_row_that_fits_no_message_is_refused_and_the_rest_flows(box: Box) -> None:
    wide = Block(
        meter="wide",
        device="",
        kind="interval",
        layout=Layout(
            "1.0.99.1.0.255",
            900,
            tuple(Column(f"1.{c}.1.8.0.255", "hex", 0) for c in range(1, 200)),
        ),
        times=[T0],
        columns=tuple([f"{pow(3, c + 900, 2**256):064x}"] for c in range(1, 200)),
        read_at=T0,
    )
    box.append(wide, block(1, 4))
    drafts = box.drafts()
    assert rows_of(box, drafts) == Counter(("m1", T0 + 900 * i) for i in range(4))
    assert [(r.cause, r.refs[0].end - r.refs[0].first) for r in box.packer.refused] == [
        ("too-large", 1)
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 120), st.integers(1, 12), st.sampled_from(["interval", "billing"])
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([4_800, 20_000, 100_000]),
)
def test_any_blocks_any_limit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int, str]], limit: int
) -> None:
    box = Box(tmp_path_factory.mktemp("any"), limit)
    blocks = [block(m, rows, columns, kind) for m, (rows, columns, kind) in enumerate(shapes)]
    box.append(*blocks)
    assert rows_of(box, box.drafts()) == Counter((b.meter, t) for b in blocks for t in b.times)
    box.journal.close()
