"""The daily completeness message, from simulated meters to the journal: at its times, once, caught up after downtime."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from edge_core.acquisition.completeness import day_bounds
from edge_core.config.load import load
from edge_core.gateway.daily import Daily
from edge_core.uplink.payloads.notes import members
from tests.conftest import eventually
from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
KOLKATA = ZoneInfo("Asia/Kolkata")


def notes(p: Plant) -> list[dict[str, Any]]:
    return [n.body for n in p.journal.notes_waiting(0, 100) if n.kind == "completeness"]


def daily(p: Plant) -> Daily:
    return Daily(load(p.write_config()), p.poller, p.journal, p.memories, p.clock)


async def published(p: Plant, count: int) -> list[dict[str, Any]]:
    """Let the room run until so many messages stand in the journal."""
    room = asyncio.create_task(daily(p).run())

    async def told() -> bool:
        await asyncio.wrap_future(
            p.journal.flush()
        )  # the journal waits by the test's clock, which stands
        return len(notes(p)) >= count

    await eventually(told)
    room.cancel()
    await asyncio.gather(room, return_exceptions=True)
    return notes(p)


async def begun(p: Plant) -> None:
    """The room has run: figures are due from today on."""
    room = asyncio.create_task(daily(p).run())
    await eventually(lambda: p.memories.get("", "began") is not None)
    room.cancel()
    await asyncio.gather(room, return_exceptions=True)


async def test_a_day_is_told_at_five_and_later_with_what_is_missing_and_why(plant: Make) -> None:
    began = int(dt.datetime(2025, 11, 20, tzinfo=KOLKATA).timestamp())
    p = await plant(dlms=3, modbus=1, history_s=3600, began=began + 60)
    await p.settle()
    await begun(p)
    lost, silent = p.meter_id(0), p.meter_id(1)
    p.fault(lost, "rows-missing", 2 * 3600 - 1)
    await p.advance(12 * 3600, step_s=900)
    p.fault(silent, "silent", 1e9)
    await p.advance(17 * 3600, step_s=900)
    assert daily(p).count(dt.date(2025, 11, 20))["day"] == "2025-11-20"
    (body,) = await published(p, 1)
    assert (body["day"], body["stage"]) == ("2025-11-20", "05:00")
    members("completeness", "", body)  # the message that the uplink makes of it
    by_profile = {found["profile"]: found for found in body["profiles"]}
    load_profile = by_profile["1.0.99.1.0.255"]
    assert load_profile["due"] == 4 * 96
    for found in by_profile.values():
        assert found["due"] == found["captured"] + sum(found["missing"].values()) + found["excused"]
        assert found["delivered"] == 0  # nothing is acked here
    meter = p.fleet.dlms[0]
    meter.capture()
    begin, end = day_bounds(dt.date(2025, 11, 20), KOLKATA)
    held = {t for t in meter.device.rows["interval"].times if begin < t <= end}
    assert load_profile["missing"]["no-such-row"] == 96 - len(held) > 0  # the meter's own book
    assert 40 <= load_profile["missing"]["line-silent"] <= 52
    p.fleet.find(silent).faults.end("silent")
    await p.advance(20 * 3600)
    again = await published(p, 2)
    assert [b["stage"] for b in again] == ["05:00", "24h"]
    later = {found["profile"]: found for found in again[1]["profiles"]}["1.0.99.1.0.255"]
    assert "line-silent" not in later["missing"]
    assert later["captured"] > load_profile["captured"]


async def test_what_is_acked_is_delivered_and_parked_is_excused(plant: Make) -> None:
    began = int(dt.datetime(2025, 11, 20, tzinfo=KOLKATA).timestamp())
    p = await plant(dlms=2, history_s=1800, began=began + 60)
    await p.settle()
    p.poller.park(p.meter_id(1), "works", began + 40 * 86_400)
    await p.advance(24 * 3600, step_s=3600)
    day = dt.date(2025, 11, 20)
    before = {f["profile"]: f for f in daily(p).count(day)["profiles"]}["1.0.99.1.0.255"]
    assert before["delivered"] == 0
    assert before["excused"] > 90
    assert before["missing"].keys() <= {"no-such-row", "gateway-off"}
    segments = [s.id for s in p.journal.segments(0, limit=10_000)]
    p.journal.release(segments=segments)
    await asyncio.wrap_future(p.journal.flush())
    after = {f["profile"]: f for f in daily(p).count(day)["profiles"]}["1.0.99.1.0.255"]
    assert after["delivered"] == after["captured"] == before["captured"] > 90


async def test_days_that_ended_while_the_box_was_off_are_caught_up(plant: Make) -> None:
    p = await plant(dlms=1, history_s=3600)
    await p.settle()
    await begun(p)
    await p.stop()
    p.clock.advance(3 * 86_400)
    p.start()
    await p.settle()
    assert p.clock.now() > T0
    told = await published(p, 5)
    days = [(b["day"], b["stage"]) for b in told]
    assert len(days) == len(set(days))
    assert ("2025-11-24", "05:00") in days
    assert ("2025-11-24", "24h") in days
    await p.restart()
    p.clock.advance(86_400)  # what falls due then is told after all that might be told again
    again = [(b["day"], b["stage"]) for b in await published(p, len(told) + 3)]
    assert again[: len(days)] == days
    assert len(again) == len(set(again)) == len(days) + 3
