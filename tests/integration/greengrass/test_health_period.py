"""How often health is published follows from what the nucleus can do, not from a variable of the environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.config.load import load
from edge_core.gateway import Gateway
from edge_core.greengrass.component import Component
from edge_core.greengrass.ipc import Ipc
from edge_core.greengrass.restarts import Restarts
from tests.conftest import eventually
from tests.integration.greengrass.conftest import Nucleus

pytestmark = [pytest.mark.integration]


@pytest.mark.parametrize(("stated", "on_lite_s"), [("", 900.0), ('every = "5min"', 300.0)])
async def test_health_comes_less_often_on_lite(
    tmp_path: Path, nucleus: Nucleus, stated: str, on_lite_s: float
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[gateway]\nid = "dcu-0001"\ndata_dir = "data"\n[health]\n{stated}\n')
    gateway = Gateway(load(file), SystemClock(), roles=("uplink",))
    ipc = Ipc(nucleus.socket, "the-token", restarts=Restarts(tmp_path / "restarts.json"))
    component = Component(ipc, "io.opendcu.Gateway", changed=lambda: None, busy=str, environment={})
    gateway.on_lite = component.on_lite
    usual_s = gateway.health_period_s()
    attached = asyncio.create_task(component.run())
    await eventually(lambda: "component-updates" in ipc.capabilities)
    assert usual_s == (60.0 if not stated else 300.0)
    assert gateway.health_period_s() == (on_lite_s if nucleus.kind == "lite" else usual_s)
    attached.cancel()
    await ipc.drop()
    gateway.stop()
    await gateway.run()  # closes what the construction opened
