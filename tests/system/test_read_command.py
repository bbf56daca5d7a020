"""`opendcu read` as a user runs it: against simulated meters, as a subprocess."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition.drivers import Site, open_driver
from edge_core.acquisition.reading import Reading, read
from edge_core.clock import SystemClock
from edge_core.config.keys import KeyRing
from edge_core.config.load import load
from edge_core.journal import CounterStore
from edge_core.journal.datadir import DataDirectory, Memories
from edge_core.transports.control import ControlServer
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec

pytestmark = pytest.mark.system

GATEWAY = """
[gateway]
id = "dcu-read"
data_dir = "data"
timezone = "Asia/Kolkata"
[uplink]
kind = "file"
url = "out"
[fleet]
file = "meters.csv"
[keys]
file = "keys.toml"
"""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    spec = FleetSpec(
        dlms=(
            DlmsGroup(count=1, pdu=400),
            DlmsGroup(count=1, model="idis", line="feeder-2", security="lls"),
            DlmsGroup(count=1, line="feeder-3", framing="hdlc"),
        )
    )
    made = Fleet(spec, tmp_path / "state", SystemClock())
    await made.open()
    made.write_files(tmp_path)
    (tmp_path / "gateway.toml").write_text(GATEWAY + (tmp_path / "lines.toml").read_text())
    for meter in made.dlms:
        meter.freeze()
    yield made
    await made.close()


async def opendcu(folder: Path, *args: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_core.cli.main",
        "read",
        *args,
        "-c",
        str(folder / "gateway.toml"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


def rows(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    out = []
    for block in document["blocks"]:
        period = document["layouts"][block["layout"]]["period"]
        times = block.get("t") or [block["t0"] + i * period for i in range(block["rows"])]
        out += list(zip(times, *block["values"], strict=True))
    return out


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_profiles_as_json(fleet: Fleet, tmp_path: Path, index: int) -> None:
    meter = fleet.dlms[index]
    for what in ("interval", "midnight"):
        code, out, err = await opendcu(tmp_path, meter.id, "--what", what, "--json")
        assert code == 0, err
        document = json.loads(out)
        assert list(document) == [
            "meter",
            "device",
            "model",
            "read_at",
            "layouts",
            "blocks",
            "registers",
        ]
        assert (document["meter"], document["device"], document["model"]) == (
            meter.id,
            meter.device.serial,
            meter.model,
        )
        truth = meter.device.truth(what)
        assert document["layouts"][0]["cols"] == [c[:3] for c in truth["cols"]]
        assert rows(document) == list(zip(truth["t"], *truth["values"], strict=True))


async def test_single_values_and_ranges(fleet: Fleet, tmp_path: Path) -> None:
    meter = fleet.dlms[0]
    code, out, _ = await opendcu(tmp_path, meter.id, "--what", "1.0.9.8.0.255", "--json")
    assert code == 0
    (register,) = json.loads(out)["registers"]
    assert (register["obis"], register["attribute"], register["scaler"], register["unit"]) == (
        "1.0.9.8.0.255",
        2,
        1,
        "VAh",
    )
    times = meter.device.truth("interval")["t"]
    code, out, _ = await opendcu(
        tmp_path, meter.id, "--from", str(times[10]), "--to", str(times[12]), "--json"
    )
    assert code == 0
    assert [r[0] for r in rows(json.loads(out))] == times[10:13]


async def test_tables_for_people(fleet: Fleet, tmp_path: Path) -> None:
    meter = fleet.dlms[0]
    code, out, _ = await opendcu(tmp_path, meter.id, "--from", "-2h")
    assert code == 0
    assert f"device {meter.device.serial}" in out
    assert "1.0.32.27.0 V" in out
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:(00|15|30|45):00", out)
    code, out, _ = await opendcu(tmp_path, meter.id, "--what", "nameplate")
    assert code == 0
    assert "OPEN METERS" in out


async def test_failures_name_meter_step_and_cause(fleet: Fleet, tmp_path: Path) -> None:
    meter = fleet.dlms[0]
    keys = (tmp_path / "keys.toml").read_text()
    (tmp_path / "keys.toml").write_text(keys.replace(meter.keys.guek.hex(), "00" * 16))
    code, out, _ = await opendcu(tmp_path, meter.id, "--json")
    assert code == 1
    error = json.loads(out)
    assert error["error"] == "KeyRejected"
    assert (error["meter"], error["during"]) == (meter.id, "AARQ")
    assert error["hint"]
    code, out, err = await opendcu(tmp_path, "GP9")
    assert code == 2
    assert "no meter GP9" in err
    code, _, err = await opendcu(tmp_path, meter.id, "--from", "yesterday")
    assert code == 2
    assert "yesterday" in err


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_the_trace_shows_every_frame_and_no_secret(
    fleet: Fleet, tmp_path: Path, index: int
) -> None:
    meter = fleet.dlms[index]
    code, out, err = await opendcu(tmp_path, meter.id, "--what", "midnight", "--trace", "--json")
    assert code == 0
    json.loads(out)
    assert "AARQ" in err
    assert "AARE" in err
    assert "-> " in err
    assert "<- " in err
    secrets = [meter.keys.guek, meter.keys.gak, meter.keys.hls, meter.keys.password.encode()]
    spoken = (out + err).replace(" ", "").lower()
    for secret in secrets:
        assert secret.hex() not in spoken
        assert secret.decode("latin-1") not in out + err
    if meter.security == "hls5":
        assert "glo-get-response" in err
        assert meter.device.serial.encode().hex() not in spoken  # nothing that was deciphered


@pytest.mark.peer
async def test_a_second_opinion_agrees(fleet: Fleet, tmp_path: Path) -> None:
    for meter in fleet.dlms:
        code, out, err = await opendcu(tmp_path, meter.id, "--second-opinion", "--json")
        assert code == 0, err
        opinion = json.loads(out)["second_opinion"]
        assert opinion["by"] == "dlms-cosem 21.3.2"
        assert opinion["compared"] >= 3
        assert opinion["differences"] == []


async def test_a_running_gateway_reads_for_us(fleet: Fleet, tmp_path: Path) -> None:
    """The lock is held and the line is busy: the command must go through the control socket."""
    config = load(tmp_path / "gateway.toml")
    directory = DataDirectory(config.data_dir).prepare()
    clock = SystemClock()
    counters = CounterStore.open(directory.counters, clock=clock)
    memories = Memories(directory)
    keys = KeyRing.open(config.keys)
    asked: list[dict[str, Any]] = []

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        meter = config.meters[request["meter"]]
        model = config.models[meter.model]
        driver = open_driver(
            meter,
            config.lines[meter.line],
            model,
            keys.get(meter.id),
            counters,
            memories.of(meter.id),
            clock,
            site=Site(config.gateway.title, config.gateway.timezone),
        )
        try:
            wanted = Reading(what=request["what"], since=request["from"], until=request["to"])
            return await read(driver, wanted, meter=meter, model=model, clock=clock)
        finally:
            await driver.close()

    server = ControlServer(directory.control, {"read": answer})
    with directory.lock(["dlms"]):
        await server.start()
        code, out, err = await opendcu(tmp_path, fleet.dlms[0].id, "--what", "midnight", "--json")
        assert code == 0, err
        assert [request["do"] for request in asked] == ["read"]
        truth = fleet.dlms[0].device.truth("midnight")
        assert rows(json.loads(out)) == list(zip(truth["t"], *truth["values"], strict=True))
        await server.close()
        code, out, _ = await opendcu(tmp_path, fleet.dlms[0].id, "--json")
        assert code == 1
        assert json.loads(out)["error"] == "DataDirectoryBusy"
    counters.close()
    memories.close()
