"""Capture objects and scalers that change between two proofs: named, read again, and never mixed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.domain import Block, Flag, as_list
from edge_core.journal import Journal
from simulators.dlms.layouts import Column
from simulators.dlms.meter import Meter
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]
DAY_S = 86_400


def relayout(meter: Meter, columns: Callable[[tuple[Column, ...]], tuple[Column, ...]]) -> None:
    """Somebody configures the load profile anew at the meter."""
    rows = meter.device.rows["interval"]
    old = rows.profile
    new = replace(old, columns=columns(old.columns))
    layout = replace(
        meter.layout, profiles=tuple(new if p is old else p for p in meter.layout.profiles)
    )
    rows.profile = new
    meter.layout = meter.device.layout = layout


def coarser(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """The import counts in 10 Wh from now on."""
    return tuple(replace(c, scaler=1) if c.source == "block:import" else c for c in columns)


def shorter(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    return columns[:-1]


def swapped(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """As many as before, of the same size, in another order: nothing in a row gives it away."""
    return (*columns[:-2], columns[-1], columns[-2])


async def read(b: Bench, since: int | None) -> tuple[list[Block], list[tuple[str, dict[str, Any]]]]:
    driver: Any = b.driver()
    try:
        blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
        driver.settled("interval")  # as a visit does when the journal has them
        return blocks, driver.notices
    finally:
        await driver.close()


def age(b: Bench, seconds: int) -> int:
    """Let the last proof lie back; returns when it was."""
    memory = b.memories[b.meter.id]
    serial, proven_at = memory["proof.interval"]
    memory.put("proof.interval", [serial, proven_at - seconds])
    return int(proven_at) - seconds


@pytest.mark.parametrize(
    ("change", "words"),
    [(coarser, "rescaled"), (shorter, "removed"), (swapped, "")],
    ids=["scaler", "fewer", "order"],
)
async def test_a_change_is_named_and_what_was_read_since_is_read_again(
    bench: Make, tmp_path: Path, change: Any, words: str
) -> None:
    b = await bench(history_s=4 * DAY_S)
    meter = b.meter
    meter.freeze()
    journal = Journal.open(tmp_path / "journal.db", clock=b.clock)
    try:
        first, notices = await read(b, None)
        assert notices == []
        for block in first:
            await asyncio.wrap_future(journal.append(block, durable="now"))
        before = rows_of(first)
        proven = age(b, 2 * DAY_S)
        relayout(meter, change)
        newest = before[-1][0]
        again, notices = await read(b, newest - 3600)
        ((code, detail),) = notices
        assert code == "layout-changed"
        assert detail["profile"] == "1.0.99.1.0.255"
        assert detail["proven_before"] == proven
        for key in ("rescaled", "removed", "added"):
            assert bool(detail[key]) == (key == words), key
        truth = truth_of(meter, "interval", proven)
        got = [row for row in rows_of(again) if row[0] >= proven]
        assert got == truth, "every row since the last proof, under the layout of now"
        assert {block.layout.digest for block in again}.isdisjoint(
            {block.layout.digest for block in first}
        )
        taken = [await asyncio.wrap_future(journal.append(block, durable="now")) for block in again]
        assert sum(t.conflicts for t in taken) == sum(row[0] > proven for row in rows_of(again))
        assert sum(t.new for t in taken) == 0
        third, notices = await read(b, newest - 3600)
        assert notices == [], "named once"
        assert all(block.layout.digest == again[0].layout.digest for block in third)
    finally:
        journal.close(5)


async def test_rows_between_two_proofs_with_other_scalers_are_doubted(bench: Make) -> None:
    b = await bench(history_s=4 * DAY_S)
    b.meter.freeze()
    await read(b, None)
    proven = age(b, 2 * DAY_S)
    relayout(b.meter, coarser)
    blocks, notices = await read(b, proven - DAY_S)
    (_, detail) = notices[0]
    assert detail["rescaled"] == ["1.0.1.29.0.255:2 0 Wh -> 1 Wh"]
    doubted = {
        as_list(block.times)[row]
        for block in blocks
        for first, count, bits in block.flags
        if bits & Flag.LAYOUT_DOUBT
        for row in range(first, first + count)
    }
    times = {t for block in blocks for t in as_list(block.times)}
    assert doubted == {t for t in times if t > proven}
    assert min(times) < proven


async def test_a_changed_order_of_columns_is_no_change_of_values(bench: Make) -> None:
    """Between two proofs a swap of like columns cannot be seen; the next proof finds it and all is read anew."""
    b = await bench(history_s=2 * DAY_S)
    b.meter.freeze()
    await read(b, None)
    relayout(b.meter, swapped)
    unseen, notices = await read(b, None)
    assert notices == []
    assert rows_of(unseen) != truth_of(b.meter, "interval")
    age(b, DAY_S)
    seen, notices = await read(b, None)
    assert [code for code, _ in notices] == ["layout-changed"]
    assert rows_of(seen) == truth_of(b.meter, "interval")


async def test_a_row_that_does_not_fit_proves_the_layout_at_once(bench: Make) -> None:
    b = await bench(history_s=4 * DAY_S)
    b.meter.freeze()
    await read(b, None)
    serial, proven_at = b.memories[b.meter.id]["proof.interval"]
    b.memories[b.meter.id].put("proof.interval", [serial, proven_at - DAY_S // 2])
    relayout(b.meter, shorter)
    newest = truth_of(b.meter, "interval")[-1][0]
    blocks, notices = await read(b, newest - 3600)
    assert [code for code, _ in notices] == ["layout-changed"]
    since = proven_at - DAY_S // 2
    assert [r for r in rows_of(blocks) if r[0] >= since] == truth_of(b.meter, "interval", since)


async def test_a_visit_that_ends_early_reads_the_rest_next_time(bench: Make) -> None:
    """The proof is kept at once, so what it asks for must outlive the session too."""
    b = await bench(history_s=4 * DAY_S)
    b.meter.freeze()
    await read(b, None)
    proven = age(b, 2 * DAY_S)
    relayout(b.meter, coarser)
    newest = truth_of(b.meter, "interval")[-1][0]
    driver = b.driver()
    portions = driver.portions(ProfileRequest("interval", since=newest - 3600))  # type: ignore[attr-defined]
    async for _ in portions:
        break  # before the journal has the rest
    await portions.aclose()
    await driver.close()
    blocks, notices = await read(b, newest - 3600)
    assert notices == [], "named once"
    assert [r for r in rows_of(blocks) if r[0] >= proven] == truth_of(b.meter, "interval", proven)
    assert {block.q["relaid"] for block in blocks if block.q} == {proven}
    blocks, _ = await read(b, newest - 3600)
    assert min(t for block in blocks for t in as_list(block.times)) >= newest - 3600


async def test_another_scaler_profile_order_is_matched_by_capture_object(bench: Make) -> None:
    """IS 15959: the scaler profile has another column order than the profile; nothing changes with it."""
    b = await bench(history_s=2 * DAY_S)
    b.meter.freeze()
    blocks, _ = await read(b, None)
    scalers = {c.obis: c.scaler for c in blocks[0].layout.cols}
    assert scalers == {c.obis: c.scaler for c in b.meter.device.rows["interval"].profile.columns}
    age(b, DAY_S)
    _, notices = await read(b, None)
    assert notices == []


async def test_a_change_is_not_settled_by_who_only_looks(bench: Make) -> None:
    """A read on demand is not journalled: the next visit must still read what lies since the last proof."""
    b = await bench(history_s=4 * DAY_S)
    b.meter.freeze()
    await read(b, None)
    proven = age(b, 2 * DAY_S)
    relayout(b.meter, coarser)
    newest = truth_of(b.meter, "interval")[-1][0]
    for _ in range(2):
        driver: Any = b.driver()
        await driver.read_profile(ProfileRequest("interval", since=newest - 3600))
        assert driver.relaid("interval") == proven
        await driver.close()
    blocks, _ = await read(b, newest - 3600)
    assert min(t for block in blocks for t in as_list(block.times)) <= proven
    driver = b.driver()
    assert driver.relaid("interval") is None
