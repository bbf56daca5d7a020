"""Every DLMS model that is polled, read whole from a simulated meter of its kind: every profile, event log and bill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.config.models import DlmsModel, load_model, model_names
from simulators.dlms.layouts import LAYOUTS
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]
POLLED = [
    name
    for name in model_names()
    if isinstance(model := load_model(name), DlmsModel) and model.profiles
]
TWO_MONTHS_S = 65 * 86_400


def test_every_polled_model_has_a_simulated_meter() -> None:
    assert set(POLLED) == set(LAYOUTS)


@pytest.mark.parametrize("name", POLLED)
async def test_a_meter_is_read_whole(bench: Make, name: str) -> None:
    model = load_model(name)
    assert isinstance(model, DlmsModel)
    b = await bench(model=name, history_s=TWO_MONTHS_S)
    meter = b.meter
    now = int(b.clock.now())
    logs = [kind for kind in model.profiles if kind.startswith("events-")]
    for place, kind in enumerate(logs):
        for k in range(3):
            code = (
                min(100 * place + 1 + k, 250) if model.time.deviation == "utc-to-local" else 1 + k
            )
            meter.device.note_event(int(kind[7:]), code, now - 10_000 + 100 * place + k)
    meter.freeze()
    driver = b.driver()
    for kind, profile in model.profiles.items():
        if kind in ("instantaneous", "nameplate"):
            continue
        blocks = list(await driver.read_profile(ProfileRequest(kind)))
        rows = rows_of(blocks)
        assert rows == truth_of(meter, kind), kind
        assert rows, f"the simulated meter has no rows of {kind}"
        assert {block.layout.profile for block in blocks} == {str(profile.obis)}
        if profile.code:
            codes = [c for block in blocks for c in block.layout.cols if c.obis == profile.code]
            assert codes, f"{kind} has no column {profile.code}"
    registers = {r.obis: r for r in await driver.read_registers("instantaneous")}
    for column in meter.layout.instantaneous:
        if column.obis in registers and column.unit in ("Wh", "VAh", "varh"):
            assert registers[column.obis].scaler == column.scaler
            assert registers[column.obis].unit == column.unit
    plate = (await driver.identify()).nameplate
    await driver.close()
    assert set(plate) <= set(model.association.nameplate)
    assert plate["firmware"] == meter.layout.nameplate["1.0.0.2.0.255"]
    assert b.fleet.record.violations == 0


@pytest.mark.parametrize("name", [n for n in POLLED if n.startswith("is15959")])
async def test_the_nameplate_tells_the_ratios(bench: Make, name: str) -> None:
    b = await bench(model=name)
    driver = b.driver()
    plate = (await driver.identify()).nameplate
    await driver.close()
    assert plate["ct_ratio"] == ("40" if name == "is15959-ct" else "1")
    assert plate["type"] == ("1" if name == "is15959-1ph" else "3")
