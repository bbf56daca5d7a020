"""`opendcu probe` on Modbus: which model fits, and which would in the other word order or from a base that is off by one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from edge_core.acquisition.probing import Target, probe
from edge_core.clock import SystemClock
from edge_core.config.models import load_model
from simulators.fleet import Fleet
from simulators.spec import FleetSpec, ModbusGroup
from tests.integration.modbus.conftest import Slave as PlainSlave

pytestmark = pytest.mark.integration

SDM630 = {"voltage_l1": 230.5, "voltage_l2": 231.25, "voltage_l3": 229.0, "frequency": 50.02}


class Slave(PlainSlave):
    """A slave that hangs up on what is no Modbus request: a probe asks for DLMS as well."""

    def _cut(self, buffer: bytearray) -> Any:
        if len(buffer) >= 12 and (buffer[2:6] != b"\0\0\0\x06" or buffer[7] not in (3, 4)):
            buffer.clear()
            self.drop()
        return super()._cut(buffer)


async def found_of(slave: Slave) -> Any:
    port = await slave.serve()
    try:
        (one,) = await probe(Target("127.0.0.1", port, units=(1,)), SystemClock(), wait_s=0.5)
    finally:
        await slave.stop()
    return one


def image(model: str = "eastron-sdm630") -> Slave:
    slave = Slave(rtu=False, tolerant=True)
    slave.hold(1, load_model(model), SDM630)
    return slave


async def test_the_right_model_needs_no_remark():
    one = await found_of(image())
    assert "eastron-sdm630" in one.best()
    assert one.notes == []


async def test_swapped_words_are_named():
    slave = image()
    words = slave.registers[1]
    slave.registers[1] = {at: words[at ^ 1] for at in words}
    one = await found_of(slave)
    assert "eastron-sdm630" not in one.best()
    assert 'frequency and voltages fit eastron-sdm630 with word_order = "little"' in one.notes


@pytest.mark.parametrize(
    ("name", "shift", "words"),
    [
        ("schneider-iem3155", 1, "one higher"),
        ("schneider-iem3155", -1, "one lower"),
        (
            "siemens-pac3200",
            -1,
            "one lower",
        ),  # one higher is how Selec meters are read: nothing tells them apart
    ],
)
async def test_a_base_that_is_off_by_one_is_named(name, shift, words):
    slave = image(name)
    slave.registers[1] = {at + shift: word for at, word in slave.registers[1].items()}
    one = await found_of(slave)
    assert name not in one.best()
    assert f"frequency and voltages fit {name} with addresses {words}" in one.notes


async def test_the_type_designation_tells_abb_meters_apart(tmp_path):
    group = ModbusGroup(model="abb-b23-b24", count=1)
    fleet = Fleet(FleetSpec(modbus=(group,)), tmp_path, SystemClock())
    await fleet.open()
    try:
        host, _, port = fleet.modbus[0].address.split("/")[0].partition(":")
        (one,) = await probe(Target(host, int(port), units=(1,)), SystemClock(), wait_s=0.5)
    finally:
        await fleet.close()
    assert any("says A4" in why for why in one.fits[0].why)
    assert one.fits[0].model == "abb-a43-a44"  # the simulator says that it is an A44


async def test_the_command_says_it():
    slave = image()
    words = slave.registers[1]
    slave.registers[1] = {at: words[at ^ 1] for at in words}
    port = await slave.serve()
    try:
        command = [
            sys.executable,
            "-m",
            "edge_core.cli.main",
            "probe",
            f"127.0.0.1:{port}",
            "--units",
            "1",
            "--wait",
            "0.3",
            "--json",
        ]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=25, check=False
        )
    finally:
        await slave.stop()
    assert done.returncode == 0, done.stderr
    assert 'word_order = \\"little\\"' in done.stdout
    json.loads(done.stdout)
