"""Two foreign DLMS clients, programs of their own, read the simulated meters and must read the fleet's truth.

gurux-dlms (GPL-2.0) and dlms-cosem 21.3.2 (MIT) were written by others from the same standard: what both read is DLMS.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_core.clock import SystemClock
from simulators.dlms.meter import Meter
from simulators.dlms.suites import public
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec

pytestmark = [pytest.mark.integration, pytest.mark.peer]
PEERS = Path(__file__).parents[1] / "peers"
INTERVAL, MIDNIGHT, SCALERS = "1.0.99.1.0.255", "1.0.99.2.0.255", "1.0.94.91.4.255"
REGISTER = "1.0.1.8.0.255"


async def fleet_of(tmp_path: Path, **group: Any) -> Fleet:
    fleet = Fleet(FleetSpec(dlms=(DlmsGroup(**group),)), tmp_path, SystemClock())
    await fleet.open()
    return fleet


def job_of(meter: Meter, **more: Any) -> dict[str, Any]:
    """What a peer is told about one meter."""
    now = int(meter.clock.now())
    return {
        "host": meter.host,
        "port": meter.port,
        "framing": meter.framing,
        "server": meter.hdlc[1],
        "public": 16,
        "client": meter.client,
        "security": meter.security,
        "password": meter.keys.password,
        "guek": meter.keys.guek.hex(),
        "gak": meter.keys.gak.hex(),
        "hls": meter.keys.hls.hex(),
        "suite": meter.suite,
        "sign": meter.keys.client_sign.hex(),
        "meter_sign": public(meter.suite, meter.keys.sign).hex() if meter.suite else "",
        "counter": meter.layout.counters[meter.client],
        "registers": [REGISTER],
        "profiles": [INTERVAL, MIDNIGHT],
        "offset": int(meter.device.zone.offset_min(now)),
        "from": now - 86_400,
        "to": now,
        **more,
    }


async def run(script: str, work: Any) -> Any:
    """Run a peer; its last line is the document."""
    peer = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PEERS / script),
        json.dumps(work),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(peer.communicate(), 25)
    except TimeoutError:
        peer.kill()
        raise
    assert peer.returncode == 0, err.decode()
    return json.loads(out.decode().splitlines()[-1])


async def ask(script: str, meter: Meter, **more: Any) -> dict[str, Any]:
    """Run a peer against one meter."""
    job = job_of(meter, **more)
    return dict(await run(script, job)) | {"job": job}


def wall(meter: Meter, at: int) -> str:
    offset = dt.timezone(dt.timedelta(minutes=int(meter.device.zone.offset_min(at))))
    return dt.datetime.fromtimestamp(at, offset).replace(tzinfo=None).isoformat()


def truth_rows(meter: Meter, kind: str, first: int = 0, last: int = 1 << 40) -> list[list[Any]]:
    """Rows as the peers print them, without a status column: wall-clock time, values."""
    truth = meter.device.truth(kind)
    return [
        [wall(meter, t), *(column[i] for column in truth["values"])]
        for i, t in enumerate(truth["t"])
        if first <= t <= last
    ]


def without_status(profile: dict[str, Any], rows: list[list[Any]]) -> list[list[Any]]:
    keep = [
        i for i, (_, obis, _) in enumerate(profile["columns"]) if not obis.startswith("0.0.96.10.")
    ]
    return [[row[i] for i in keep] for row in rows]


@pytest.mark.parametrize(
    ("group", "more"),
    [
        ({}, {"list": True}),
        ({}, {"dedicated": "00112233445566778899aabbccddeeff"}),
        ({"framing": "hdlc"}, {}),
        ({"security": "lls"}, {}),
        ({"security": "hls2"}, {}),
        ({"model": "idis"}, {}),
        ({"pdu": 200}, {}),
    ],
    ids=["wrapper", "dedicated-key", "hdlc", "lls", "hls2", "idis", "small-pdu"],
)
async def test_gurux_reads_the_truth(
    tmp_path: Path, group: dict[str, Any], more: dict[str, Any]
) -> None:
    fleet = await fleet_of(tmp_path, **group)
    meter = fleet.dlms[0]
    east = meter.layout.east
    got = await ask(
        "gurux_client.py", meter, profiles=[INTERVAL, MIDNIGHT] + [SCALERS] * east, **more
    )
    first, last = got["job"]["from"], got["job"]["to"]

    assert got["serial"] == meter.device.serial
    assert abs(
        dt.datetime.fromisoformat(got["clock"]) - dt.datetime.fromisoformat(wall(meter, last))
    ) < dt.timedelta(seconds=30)
    value, scaler, unit = got["registers"][REGISTER]
    low, high = meter.device.registers([last, int(fleet.clock.now())])["import"].tolist()
    assert low <= value <= high
    assert (scaler, unit) == (1, 30)
    for kind, obis in (("interval", INTERVAL), ("midnight", MIDNIGHT)):
        profile = got["profiles"][obis]
        columns = meter.layout.profile(kind).columns
        assert [o for _, o, _ in profile["columns"]] == [
            "0.0.1.0.0.255",
            *(c.obis for c in columns),
        ]
        assert profile["period"] == {"interval": 900, "midnight": 86_400}[kind]
        whole = truth_rows(meter, kind)
        assert profile["in_use"] in (len(whole), len(whole) - 1)
        assert without_status(profile, profile["rows"]) == truth_rows(meter, kind, first, last)
        assert without_status(profile, profile["whole"]) == whole[: len(profile["whole"])]
        assert without_status(profile, profile["entries"]) == whole[1:4][: len(profile["entries"])]
        assert len(profile["rows"]) >= {"interval": 95, "midnight": 1}[kind]
    if east:
        scalers = got["profiles"][SCALERS]
        by_obis = {
            o: cell for (_, o, _), cell in zip(scalers["columns"], scalers["rows"][0], strict=True)
        }
        interval = meter.layout.profile("interval")
        assert by_obis == {
            c.obis: [c.scaler, {"A": 33, "V": 35, "Wh": 30, "varh": 32, "VAh": 31}[c.unit]]
            for c in interval.columns
        }
    assert got["blocks"] > 5  # block transfer, or HDLC segments, took place
    if more.get("list"):
        assert (
            low
            <= got["list"][0]
            <= int(meter.device.registers(int(fleet.clock.now()))["import"][0])
        )
        assert bytes.fromhex(got["list"][1]).decode() == meter.device.serial
    if meter.security == "hls5":
        assert got["replayed"] == "refused"
        assert fleet.record.violations == 1  # that replay, and nothing else
    else:
        assert fleet.record.violations == 0
    await fleet.close()


ASSOCIATIONS = (
    (0, "hls3", False),
    (0, "hls4", False),
    (0, "hls6", False),
    (1, "hls5", True),
    (2, "hls5", True),
    (2, "hls6", True),
    (1, "hls7", False),
    (1, "hls7", True),
)


async def test_gurux_associates_by_every_mechanism_and_suite(tmp_path: Path) -> None:
    """gurux-dlms 1.0.203 signs on P-256 alone: HLS 7 in suite 2 has no peer here."""
    groups = tuple(DlmsGroup(suite=suite, security=name) for suite, name, _ in ASSOCIATIONS)
    fleet = Fleet(FleetSpec(dlms=groups), tmp_path, SystemClock())
    await fleet.open()
    jobs = [
        job_of(meter, profiles=[], ciphered=ciphered, access=True)
        for meter, (_, _, ciphered) in zip(fleet.dlms, ASSOCIATIONS, strict=True)
    ]
    answers = await run("gurux_client.py", jobs)
    for meter, got, job in zip(fleet.dlms, answers, jobs, strict=True):
        value, scaler, unit = got["registers"][REGISTER]
        low, high = meter.device.registers([job["to"], int(fleet.clock.now())])["import"]
        assert low <= value <= high
        assert (scaler, unit) == (1, 30)
        (energy, first), (serial, second) = got["access"]
        assert (first, second) == (0, 0)
        assert low <= energy <= int(meter.device.registers(int(fleet.clock.now()))["import"][0])
        assert bytes.fromhex(serial).decode() == meter.device.serial
        assert meter.contacts == 1
        assert got.get("replayed") == ("refused" if job["ciphered"] else None)
    assert fleet.record.violations == sum(ciphered for _, _, ciphered in ASSOCIATIONS)
    await fleet.close()


async def test_gurux_sets_the_clock(tmp_path: Path) -> None:
    fleet = await fleet_of(tmp_path)
    meter = fleet.dlms[0]
    wanted = int(fleet.clock.now()) - 1_800
    got = await ask("gurux_client.py", meter, set_clock=wanted)
    late = dt.datetime.fromisoformat(got["clock_after"]) - dt.datetime.fromisoformat(
        wall(meter, wanted)
    )
    assert dt.timedelta(0) <= late < dt.timedelta(seconds=20)
    assert meter.device.offset < -1_700
    await fleet.close()


@pytest.mark.parametrize("model", ["is15959-3ph", "idis"])
async def test_dlms_cosem_reads_the_truth(tmp_path: Path, model: str) -> None:
    fleet = await fleet_of(tmp_path, model=model)
    meter = fleet.dlms[0]
    got = await ask("dlms_cosem_client.py", meter)
    first, last = got["job"]["from"], got["job"]["to"]
    assert got["serial"] == meter.device.serial
    assert got["counter"] >= 1_000
    value, scaler, unit = got["registers"][REGISTER]
    low, high = meter.device.registers([last, int(fleet.clock.now())])["import"].tolist()
    assert low <= value <= high
    assert (scaler, unit) == (0, 30)
    for kind, obis in (("interval", INTERVAL), ("midnight", MIDNIGHT)):
        profile = got["profiles"][obis]
        rows = []
        for cells in without_status(profile, profile["rows"]):
            raw = bytes.fromhex(cells[0])
            stamp = dt.datetime(int.from_bytes(raw[:2], "big"), raw[2], raw[3], *raw[5:8])
            rows.append([stamp.isoformat(), *cells[1:]])
            deviation = int.from_bytes(raw[9:11], "big", signed=True)
            assert deviation == (330 if meter.layout.east else -got["job"]["offset"])
        assert rows == truth_rows(meter, kind, first, last)
        assert len(rows) >= {"interval": 95, "midnight": 1}[kind]
    # dlms-cosem uses one nonce for the GMAC and the ACTION around it, once an association: the meter's record tells
    lines = [json.loads(line) for line in fleet.record.path.read_text().splitlines()]
    assert [line["what"] for line in lines] == ["nonce-repeated"]
    await fleet.close()
