"""Midnights of a meter that keeps none: the sample nearest to civil midnight, with its distance."""

from __future__ import annotations

import pytest

from edge_core.domain import as_list
from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = pytest.mark.integration

MIDNIGHT = T0 + 66_600  # T0 is 05:30 in Kolkata


def distances(p: Plant) -> dict[int, float]:
    """Seconds from each civil midnight in the journal to the sample that stands for it."""
    found: dict[int, float] = {}
    after = 0
    while page := p.journal.segments(after, limit=200):
        for segment in page:
            for block in p.journal.blocks(segment.id):
                if block.kind == "midnight":
                    (at,) = as_list(block.times)
                    assert block.q is not None
                    low, high = block.q["bound"]
                    assert low <= block.q["at"] <= high
                    found[at] = block.q["at"] / 1000 - at
        after = page[-1].id
    return found


async def near_midnight(plant: Make) -> Plant:
    p = await plant(modbus={"model": "eastron-sdm630"})
    await p.advance(3600)
    p.clock.advance(66_600 - 3600 - 1900)
    await p.settle()
    return p


async def test_a_midnight_is_sampled_at_once(plant: Make) -> None:
    p = await near_midnight(plant)
    await p.advance(2400, step_s=100)
    assert 0 <= distances(p)[MIDNIGHT] <= 100  # the steps of this test


async def test_a_meter_that_is_back_within_the_quarter_hour_has_its_midnight(plant: Make) -> None:
    p = await near_midnight(plant)
    await p.advance(1500, step_s=300)
    p.fault(p.meter_id(), "silent", 400 + 400)
    await p.advance(2400, step_s=100)
    assert 400 <= distances(p)[MIDNIGHT] <= 900
    assert p.holes(p.meter_id(), "midnight") == []
    assert p.missing(p.meter_id()) == {
        "line-silent": 1,
        "gateway-off": p.missing(p.meter_id())["gateway-off"],
    }


async def test_later_the_sample_before_is_nearer_and_the_midnight_is_a_gap_with_its_cause(
    plant: Make,
) -> None:
    p = await near_midnight(plant)
    await p.advance(2400, step_s=100)
    assert list(distances(p)) == [MIDNIGHT]
    p.clock.advance(86_400 - 900)
    await p.settle()
    p.fault(p.meter_id(), "silent", 400 + 2000)
    await p.advance(4000, step_s=200)
    assert list(distances(p)) == [MIDNIGHT]
    assert p.missing(p.meter_id(), "midnight")["line-silent"] == 1
