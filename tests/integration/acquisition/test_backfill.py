"""Going back for what is missing: what is new first, then oldest first and so many rows a round, until the meter has no more."""

from __future__ import annotations

import pytest

from edge_core.acquisition.backfill import FRESH_PERIODS, ROUND_ROWS
from edge_core.domain import as_list
from edge_core.journal import book
from tests.conftest import eventually
from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

DAY_S = 86_400


def blocks(p: Plant, kind: str = "interval") -> list[list[int]]:
    """Times of the blocks of a kind, in the order in which they were journalled."""
    found, after = [], 0
    while page := p.journal.segments(after, limit=200):
        for segment in page:
            found += [as_list(b.times) for b in p.journal.blocks(segment.id) if b.kind == kind]
        after = page[-1].id
    return found


async def test_after_a_long_absence_what_is_new_goes_first_and_the_rest_oldest_first(
    plant: Make,
) -> None:
    p = await plant(dlms=1, history_s=DAY_S)
    await p.settle()
    before = len(blocks(p))
    await p.stop()
    p.clock.advance(25 * DAY_S)
    p.start()
    visits = len(p.visits)
    await p.settle()
    now = p.clock.now()
    fresh, *older = blocks(p)[before:]
    assert min(fresh) >= now - (FRESH_PERIODS + 1) * 900
    assert max(fresh) > now - 900
    assert [min(rows) for rows in older] == sorted(min(rows) for rows in older)
    assert all(len(rows) <= ROUND_ROWS + 3 for rows in older)
    rounds = [v["jobs"] for v in p.visits[visits:] if v["jobs"] in ([], ["BACKFILL"])]
    assert len(rounds) == 3  # 2,400 rows, 960 a round
    assert p.missing(p.meter_id()).total() == 0
    await p.all_read()
    p.agrees()


async def test_what_was_jumped_over_when_we_were_killed_is_gone_back_for_by_the_next_process(
    plant: Make,
) -> None:
    p = await plant(dlms=1, history_s=DAY_S)
    await p.settle()
    await p.stop()
    p.clock.advance(20 * DAY_S)
    p.start()
    begun = len(p.visits)
    await eventually(lambda: len(p.visits) > begun)  # the newest rows; closing makes them durable
    await p.stop()
    p.start()
    await p.settle()
    assert p.missing(p.meter_id()).total() == 0
    await p.all_read()
    p.agrees()


async def test_going_back_stops_at_the_memory_of_the_meter_and_says_so(plant: Make) -> None:
    p = await plant(dlms=1, schedule={"midnight_reads": '"off"'})
    await p.settle()
    await p.stop()
    meter = p.fleet.dlms[0]
    held = meter.device.rows["interval"].profile.capacity
    p.clock.advance((held + 1500) * 900)
    p.start()
    await p.settle()
    (entry,) = p.ledger(meter.id)
    (hole,) = entry.holes
    assert hole.cause == "overwritten"
    meter.capture()
    rows = meter.device.rows["interval"]
    assert hole.last == rows.times[rows.oldest] - 900  # the meter's own book
    assert entry.due == entry.captured + hole.rows
    asked = meter.device  # a second round asks for nothing: every hole has a name
    visits = len(p.visits)
    await p.advance(3600)
    assert all("BACKFILL" not in v["jobs"] for v in p.visits[visits:])
    assert asked is meter.device


async def test_a_command_looks_for_what_nobody_gave_a_cause_for(plant: Make) -> None:
    p = await plant(dlms=1, history_s=DAY_S)
    await p.settle()
    meter = p.meter_id()
    (entry,) = p.ledger(meter)
    # rows that the journal forgot without a word, as after damage, between rows that it knows
    block = next(
        b for s in p.journal.segments(0) for b in p.journal.blocks(s.id) if b.kind == "interval"
    )
    with p.journal._lock:
        staged = p.journal._book
        (key,) = [k for k in staged._place if k[1] == entry.profile]
        blob = staged._blobs[staged._place[key]]
        held = book._unpack(blob.entries[key])
        held.forget(block.take(range(20, 30)), "link")
        held.gaps = []
        blob.entries[key] = book._pack(held)
    assert p.missing(meter) == {"": 10}
    assert await p.poller.go_back(meter) == 1
    await p.settle()
    assert p.missing(meter).total() == 0
    (entry,) = p.ledger(meter)
    assert entry.due == entry.captured


async def test_on_demand_work_goes_between_the_rounds_of_going_back(plant: Make) -> None:
    p = await plant(dlms=1, history_s=DAY_S)
    await p.settle()
    await p.stop()
    p.clock.advance(30 * DAY_S)
    p.start()
    begun = len(p.visits)
    await eventually(lambda: len(p.visits) > begun)
    serial = (await p.poller.on_demand(p.meter_id(), lambda driver: driver.identify())).serial
    assert serial == p.fleet.dlms[0].device.serial
    await p.settle()
    assert p.missing(p.meter_id()).total() == 0


@pytest.mark.parametrize("events", ["every 1h", "off"])
async def test_a_power_cut_is_named_from_the_log_of_an_indian_meter(
    plant: Make, events: str
) -> None:
    p = await plant(dlms=1, schedule={"events": f'"{events}"'})
    await p.settle()
    meter = p.fleet.dlms[0]
    await p.advance(7200)
    meter.device.power_off(p.clock.now())
    await p.advance(3 * 3600)
    meter.device.power_on(p.clock.now())
    await p.advance(3 * 3600)
    named = "no-such-row" if events == "off" else "meter-power-off"
    missing = p.missing(meter.id)
    assert set(missing) == {named}
    assert missing.total() in (11, 12)
    if events != "off":
        assert p.codes(meter.id)["restore"] == 1
    await p.all_read()
    p.agrees()


async def test_a_cut_that_was_logged_before_its_rows_were_missed_names_them_too(
    plant: Make,
) -> None:
    p = await plant(dlms=1, schedule={"events": '"every 1h"', "interval_reads": '"every 1d"'})
    await p.settle()
    meter = p.fleet.dlms[0]
    await p.advance(7200)
    meter.device.power_off(p.clock.now())
    await p.advance(3 * 3600)
    meter.device.power_on(p.clock.now())
    await p.advance(DAY_S)
    assert set(p.missing(meter.id)) == {"meter-power-off"}
    assert p.clock.now() > T0
