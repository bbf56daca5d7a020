"""Midnights that a meter without a load profile keeps itself (L&T ER300P): whoever comes late still gets them."""

from __future__ import annotations

from typing import Any

import pytest

from edge_core.clock import ManualClock
from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = pytest.mark.integration

MIDNIGHT = T0 + 66_600  # T0 is 05:30 in Kolkata
DAY_S = 86_400


def midnights(p: Plant) -> list[int]:
    """Times of the midnights in the journal; each stands there once, and its counter is what the unit counted then."""
    stored = {k: n for k, n in p.stored(kinds=("midnight",)).items() if k[5] == "1.0.1.8.0.255"}
    assert set(stored.values()) == {1}
    (unit,) = p.fleet.modbus
    for key in stored:
        assert unit.agrees("1.0.1.8.0.255", p.values[key], 0, key[3], key[3])
    return sorted((key[3] - MIDNIGHT) // DAY_S for key in stored)


async def test_a_gateway_that_starts_hours_after_midnight_has_it(plant: Make) -> None:
    p = await plant(modbus={"model": "lt-er300p"})
    await p.advance(3600)
    await p.stop()
    p.clock.advance(66_600 - 3600 + 3 * 3600 + 1234)
    p.start()
    await p.settle()
    assert midnights(p) == [-2, -1, 0]
    assert p.holes(p.meter_id(), "midnight") == []


async def test_a_meter_that_is_silent_over_midnight_is_asked_again_soon(plant: Make) -> None:
    p = await plant(modbus={"model": "lt-er300p"})
    await p.advance(66_600 - 3600)
    await p.advance(1800, step_s=60)
    p.fault(p.meter_id(), "silent", 3600)
    await p.advance(3500, step_s=60)
    assert p.poller.meters[p.meter_id()].failures > 0
    assert midnights(p) == [-2, -1]
    await p.advance(3600, step_s=60)
    assert midnights(p) == [-2, -1, 0]
    assert p.holes(p.meter_id(), "midnight") == []
    assert set(p.missing(p.meter_id())) == {"line-silent"}  # intervals it does not keep


class Behind:
    """The clock of a meter that is slow."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def now(self) -> float:
        return self.clock.now() - self.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)


async def test_a_meter_whose_clock_is_slow_is_asked_when_its_day_has_begun(plant: Make) -> None:
    p = await plant(modbus={"model": "lt-er300p"})
    p.fleet.modbus[0].clock = Behind(p.clock, 90)
    await p.advance(66_600 - 600)
    await p.advance(600 + 3000, step_s=60)
    assert midnights(p) == [-2, -1, 0]


async def test_midnights_that_the_meter_overwrote_are_named_and_no_others(plant: Make) -> None:
    p = await plant(modbus={"model": "lt-er300p"})
    await p.advance(3600)
    await p.stop()
    p.clock.advance(66_600 + 3 * DAY_S + 3 * 3600)
    p.start()
    await p.settle()
    assert midnights(p) == [-2, -1, 2, 3]
    (hole,) = p.holes(p.meter_id(), "midnight")
    assert (hole.rows, hole.cause) == (2, "overwritten")
