"""A meter of suite 1 by the installed files: keys file, a model of one's own, `opendcu check` and `opendcu read`."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edge_core.clock import SystemClock
from edge_core.config.keys import KeyRing
from edge_core.config.models import FOLDER
from edge_core.config.schema import Keys
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]  # processes on a slow core
GATEWAY = """
[gateway]
id = "dcu-suites"
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
async def meters(tmp_path: Path) -> AsyncIterator[Callable[[int], Awaitable[Fleet]]]:
    made: list[Fleet] = []

    async def make(suite: int) -> Fleet:
        spec = FleetSpec(dlms=(DlmsGroup(suite=suite, security="hls7"),), history_s=6 * 3600)
        made.append(Fleet(spec, tmp_path / "state", SystemClock()))
        await made[0].open()
        made[0].write_files(tmp_path)
        (tmp_path / "gateway.toml").write_text(GATEWAY + (tmp_path / "lines.toml").read_text())
        return made[0]

    yield make
    for fleet in made:
        await fleet.close()


Make = Callable[[int], Awaitable[Fleet]]


async def opendcu(folder: Path, *args: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_core.cli.main", *args,
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("suite", [1, 2])
async def test_read_with_key_pairs_of_a_keys_file(meters: Make, tmp_path: Path, suite: int) -> None:
    fleet = await meters(suite)
    (meter,) = fleet.dlms
    meter.freeze()
    table = (tmp_path / "meters.csv").read_text()
    (tmp_path / "meters.csv").write_text(table.replace("is15959-3ph", "curved.toml"))
    model = (FOLDER / "is15959-3ph.toml").read_text()
    for old, new in (
        ('security = "hls5"', 'security = "hls7"'),
        ("suite = 0", f"suite = {suite}"),
        (
            'ciphering = "glo"',
            'ciphering = "general-ciphering"\nkey_info = "one-pass"\nsigned = true',
        ),
    ):
        assert model.count(old) == 1
        model = model.replace(old, new)
    (tmp_path / "curved.toml").write_text(model)

    code, out, err = await opendcu(
        tmp_path, "read", meter.id, "-c", "gateway.toml", "--trace", "--json"
    )
    assert code == 0, err
    (block,) = json.loads(out)["blocks"]
    truth = meter.device.truth("interval")
    assert block["rows"] == len(truth["t"])
    assert block["values"] == truth["values"]
    assert "general-signing" in err
    ring = KeyRing.open(Keys(file=str(tmp_path / "keys.toml")))
    ring.get(meter.id)
    private = [key.reveal() for key in ring.secrets()]
    assert len(private) == 9
    for key in private:
        for text in (key.hex(), key.hex().upper(), base64.b64encode(key).decode(), key.hex(" ")):
            assert text not in out + err


async def test_check_names_the_pair_that_is_missing(meters: Make, tmp_path: Path) -> None:
    await meters(1)
    keys = (tmp_path / "keys.toml").read_text()
    (tmp_path / "keys.toml").write_text(
        "".join(line for line in keys.splitlines(True) if not line.startswith("meter_sign"))
    )
    code, out, err = await opendcu(tmp_path, "check", "gateway.toml")
    assert code == 2
    assert "meter_sign" in out + err
    assert "missing" in out + err
