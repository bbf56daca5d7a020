"""The load profiles of simulated meters add up to what their registers rise by; a scaler that lies is found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.integration.acquisition.conftest import Plant

Make = Callable[..., Awaitable[Plant]]
DAY_S = 86_400


@pytest.mark.parametrize("model", ["is15959-3ph", "is15959-1ph", "is15959-ct", "idis"])
async def test_honest_meters_agree(plant: Make, model: str) -> None:
    p = await plant(dlms={"model": model}, history_s=4 * DAY_S)
    await p.settle()
    deltas = p.poller.meters[p.meter_id()].deltas
    assert deltas.compared >= 2, "a day was compared"
    assert p.codes()["profile-mismatch"] == 0


async def test_a_scaler_that_lies_is_told_once(plant: Make) -> None:
    p = await plant(dlms=1, history_s=DAY_S // 4)
    meter = p.fleet.dlms[0]
    await p.settle()
    lying = tuple(
        replace(c, scaler=1) if c.source == "block:import" else c
        for c in meter.layout.profile("interval").columns  # type: ignore[union-attr]
    )
    meter.layout = replace(  # what it says of its columns; the rows stay as they are
        meter.layout,
        profiles=tuple(
            replace(q, columns=lying) if q.kind == "interval" else q for q in meter.layout.profiles
        ),
    )
    await p.advance(3 * DAY_S, step_s=6 * 3600)
    found = [a for a in p.alarms if a.code == "profile-mismatch"]
    assert [a.detail["channel"] for a in found] == ["1.0.1"]
    (alarm,) = found
    assert alarm.detail["rows_wh"] == pytest.approx(10 * alarm.detail["register_wh"], rel=0.02)
    assert alarm.detail["to"] - alarm.detail["from"] == DAY_S
