"""What the views of a gateway say of a meter that only speaks: when it was heard, and that it is silent."""

from __future__ import annotations

import asyncio
import os
import tty
from pathlib import Path

import pytest

from edge_core.acquisition import listener
from edge_core.clock import ManualClock
from edge_core.config.load import load
from edge_core.gateway import Gateway
from tests.conftest import eventually
from tests.integration.dlms.test_pushed_values import capture


async def test_a_port_is_ok_when_heard_and_silent_when_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOOK_S", 0.01)
    master, slave = os.openpty()
    tty.setraw(master)
    tty.setraw(slave)
    file = tmp_path / "gateway.toml"
    file.write_text(
        f"""
[gateway]
id = "dcu-1"
data_dir = "data"
[uplink]
kind = "file"
url = "sent"
[push]
listen = []
[[lines]]
id = "han"
transport = "serial"
framing = "hdlc"
device = "{os.ttyname(slave)}"
baudrate = 2400
[[meters]]
id = "M1"
line = "han"
model = "han-aidon"
address = "1"
"""
    )
    clock = ManualClock()
    gateway = Gateway(load(file), clock, roles=("dlms", "push"))
    running = asyncio.create_task(gateway.run())
    try:
        (row,) = gateway.views.meters()
        assert row["state"] == "not yet read"
        assert gateway.listener is not None
        counts = gateway.listener.counts
        await eventually(lambda: counts["lines-opened"])
        os.write(master, capture("amshan_aidon_no_list_2"))
        await eventually(lambda: counts["values"])
        clock.advance(50)
        (row,) = gateway.views.meters()
        assert (row["state"], row["last_read"]) == ("ok", int(clock.now()) - 50)
        assert gateway.views.health()["meters"]["silent"] == 0
        clock.advance(300)
        await eventually(lambda: counts["silent"])
        (row,) = gateway.views.meters()
        assert (row["state"], row["error_class"]) == ("silent", "LineSilent")
        assert row["error"] == "nothing was pushed for 350 s"
        assert gateway.views.health()["meters"]["silent"] == 1
    finally:
        gateway.stop()
        await running
        os.close(master)
        os.close(slave)
