"""Modbus meters that remember their intervals: what a late poll finds goes through the ledger as with DLMS."""

from __future__ import annotations

import pytest

from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = pytest.mark.integration

IMPORT = "1.0.1.8.0.255"
ENERGY = "1.0.1.29.0.255"


def intervals(p: Plant, obis: str) -> dict[int, int]:
    """Values by time of the intervals in the journal; each stands there once."""
    stored = {k: n for k, n in p.stored(kinds=("interval",)).items() if k[5] == obis}
    assert set(stored.values()) <= {1}
    return {key[3]: p.values[key] for key in stored}


async def test_a_gateway_that_was_away_reads_the_load_profile_back(plant: Make) -> None:
    p = await plant(modbus={"model": "abb-a43-a44"})
    (unit,) = p.fleet.modbus
    assert unit.window is not None
    await p.advance(2 * 3600)
    await p.stop()
    p.clock.advance(9 * 3600 + 17)
    p.start()
    await p.settle()
    await p.advance(3600)
    found = intervals(p, IMPORT)
    newest = max(found)
    assert newest >= p.clock.now() - 3600
    assert sorted(found) == list(range(min(found), newest + 1, 900))
    assert min(found) <= T0 - 2 * 86_400 + 900  # what it held before we came
    assert found == {at: unit.kept(IMPORT, at) for at in found}
    assert p.holes(p.meter_id()) == []


async def test_a_meter_that_was_silent_is_read_back(plant: Make) -> None:
    p = await plant(modbus={"model": "abb-a43-a44"})
    await p.advance(3600)
    p.fault(p.meter_id(), "silent", 3 * 3600)
    await p.advance(2 * 3600, step_s=1800)
    assert p.poller.meters[p.meter_id()].failures > 0
    await p.advance(5 * 3600, step_s=1800)
    found = intervals(p, IMPORT)
    assert sorted(found) == list(range(min(found), max(found) + 1, 900))
    assert max(found) > T0 + 6 * 3600
    assert p.missing(p.meter_id()) == {}


async def test_a_backfill_on_demand_reads_what_there_is_now(plant: Make) -> None:
    p = await plant(modbus={"model": "abb-a43-a44"})
    await p.advance(3600)
    p.clock.advance(2700)
    assert await p.poller.sweep([p.meter_id()]) == 1
    await p.settle()
    assert max(intervals(p, IMPORT)) == T0 + 3600 + 2700
    assert p.holes(p.meter_id(), "midnight") == []


async def test_what_the_meter_never_stored_is_named(plant: Make) -> None:
    p = await plant(modbus={"model": "abb-a43-a44"})
    (unit,) = p.fleet.modbus
    assert unit.window is not None
    unit.window.missing = {T0 + 5 * 900, T0 + 6 * 900}
    await p.advance(4 * 3600)
    assert p.missing(p.meter_id()) == {"no-such-row": 2}
    assert not unit.window.missing & set(intervals(p, IMPORT))


async def test_what_the_meter_overwrote_is_named(plant: Make) -> None:
    p = await plant(modbus={"model": "abb-a43-a44"})
    (unit,) = p.fleet.modbus
    assert unit.window is not None
    await p.advance(3600)
    last = max(intervals(p, IMPORT))
    await p.stop()
    p.clock.advance(4 * 86_400)
    p.start()
    await p.settle()
    oldest = unit.window.stored(15, int(p.clock.now()))[0]
    (hole,) = p.holes(p.meter_id())
    assert hole.cause == "overwritten"
    assert hole.rows == (oldest - last) // 900 - 1


async def test_every_demand_period_is_read_before_the_next_one_ends(plant: Make) -> None:
    p = await plant(modbus={"model": "siemens-pac4200"})
    (unit,) = p.fleet.modbus
    await p.advance(6 * 3600, step_s=300)
    found = intervals(p, ENERGY)
    assert sorted(found) == list(range(min(found), max(found) + 1, 900))
    assert len(found) >= 24
    sums = unit.quantities.energies
    assert found == {at: 100 * (sums(at)["import"] - sums(at - 900)["import"]) for at in found}
    assert p.holes(p.meter_id()) == []


async def test_a_demand_period_is_still_there_when_the_line_was_silent_for_minutes(
    plant: Make,
) -> None:
    p = await plant(modbus={"model": "siemens-pac4200"})
    await p.advance(3600, step_s=300)
    p.fault(p.meter_id(), "silent", 400)  # over the boundary and well behind it
    await p.advance(1800, step_s=100)
    found = intervals(p, ENERGY)
    assert sorted(found) == list(range(min(found), max(found) + 1, 900))
    assert p.holes(p.meter_id()) == []


async def test_a_demand_period_that_was_overwritten_is_named(plant: Make) -> None:
    p = await plant(modbus={"model": "siemens-pac4200"})
    await p.advance(3600, step_s=300)
    p.fault(p.meter_id(), "silent", 2000)
    await p.advance(5400, step_s=300)
    missing = p.missing(p.meter_id())
    assert set(missing) == {"overwritten"}
    assert 1 <= missing["overwritten"] <= 2
