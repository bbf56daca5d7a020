"""Days that are not as others: clocks of whole countries change, February has 29 days, years end."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from edge_core.acquisition.completeness import day_bounds, figures
from edge_core.gateway.daily import account_of
from tests.integration.acquisition.conftest import Make

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

LOAD = "1.0.99.1.0.255"


@pytest.mark.parametrize(
    ("zone", "day", "hours", "model"),
    [
        ("Europe/Berlin", dt.date(2026, 3, 29), 23, "idis"),
        ("Europe/Berlin", dt.date(2026, 10, 25), 25, "idis"),
        ("Asia/Beirut", dt.date(2026, 3, 29), 23, "idis"),  # its midnight does not exist
        ("Asia/Beirut", dt.date(2026, 10, 24), 25, "idis"),
        ("America/New_York", dt.date(2026, 3, 8), 23, "idis"),
        ("America/New_York", dt.date(2026, 11, 1), 25, "idis"),
        ("Asia/Kolkata", dt.date(2028, 2, 29), 24, "is15959-3ph"),
        ("Asia/Kolkata", dt.date(2026, 12, 31), 24, "is15959-3ph"),
    ],
)
async def test_every_interval_of_the_day_is_there_once(
    plant: Make, zone: str, day: dt.date, hours: int, model: str
) -> None:
    place = ZoneInfo(zone)
    begin, end = day_bounds(day, place)
    assert end - begin == hours * 3600
    group = {"count": 1, "model": model, **({"zone": zone} if model == "idis" else {})}
    p = await plant(dlms=group, modbus=1, history_s=3600, began=begin - 7200, timezone=zone)
    await p.settle()
    await p.advance((hours + 4) * 3600, step_s=900)
    await p.all_read()
    p.agrees()
    for state in p.poller.meters.values():
        counted = figures(account_of(state, p.journal), day, place, p.clock.now())
        periods = {key: (f.due, f.captured) for key, f in counted.items()}
        assert periods.pop(LOAD) == (hours * 4, hours * 4), state.config.id
        assert list(periods.values()) == [(1, 1)], (state.config.id, periods)
