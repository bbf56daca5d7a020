"""`opendcu read` of a Modbus meter, as the installed command: table, JSON, trace, and errors that name the meter."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

OPENDCU = Path(sys.executable).with_name("opendcu")
SERVER = """
    import asyncio
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    async def main():
        held = {0: 230.5, 6: 4.25, 70: 50.0, 72: 1234.5, 74: 0.25}
        floats = [held.get(2 * i, 0.0) for i in range(190)]
        device = SimDevice(id=1, simdata=[SimData(0, values=floats, datatype=DataType.FLOAT32)])
        server = ModbusTcpServer([device], address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        print(server.transport.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Path]:
    """A configuration with a meter that is there, and one that is not."""
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(SERVER))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        file = tmp_path / "gateway.toml"
        file.write_text(
            f'[gateway]\nid = "dcu-1"\ndata_dir = "{tmp_path}/data"\nroles = ["modbus"]\n'
            f'[uplink]\nkind = "file"\nurl = "{tmp_path}/up"\n'
            '[[lines]]\nid = "panel"\ntransport = "tcp"\nframing = "modbus-tcp"\ntimeout_s = 0.5\n'
            f'[[meters]]\nid = "SM1"\nline = "panel"\nmodel = "eastron-sdm630"\naddress = "127.0.0.1:{port}/1"\n'
            '[[meters]]\nid = "SM2"\nline = "panel"\nmodel = "eastron-sdm630"\naddress = "127.0.0.1:9/2"\n'
        )
        yield file
        server.kill()


def read(gateway: Path, meter: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OPENDCU, "read", meter, "-c", gateway, *options],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )


def test_json(gateway):
    done = read(gateway, "SM1", "--what", "instantaneous", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["meter"], document["device"], document["model"]) == (
        "SM1",
        "unit-1",
        "eastron-sdm630",
    )
    found = {r["name"]: r for r in document["registers"]}
    assert found["voltage_l1"] == {
        "obis": "1.0.32.7.0.255", "name": "voltage_l1", "attribute": 2, "value": 2305, "scaler": -1, "unit": "V",
    }  # fmt: skip
    assert (found["active_energy_import"]["value"], found["active_energy_import"]["unit"]) == (
        1_234_500,
        "Wh",
    )


def test_an_interval_is_a_sample(gateway):
    document = json.loads(read(gateway, "SM1", "--what", "interval", "--json").stdout)
    (block,) = document["blocks"]
    assert document["layouts"][block["layout"]]["period"] == 900
    assert block["values"][:2] == [[1_234_500], [250]]
    assert block["flags"] == [[0, 1, 128]]
    assert block["t0"] % 900 == 0
    assert block["q"]["bound"][0] < block["q"]["at"] <= block["q"]["bound"][1]


def test_table_and_trace(gateway):
    done = read(gateway, "SM1", "--what", "1.0.1.8.0.255", "--trace")
    assert done.returncode == 0
    assert "1234500 Wh" in done.stdout
    assert "plan 1 requests" in done.stderr
    assert "unit 1: read 2 input registers from 72" in done.stderr


def test_an_error_names_meter_step_and_cause(gateway):
    done = read(gateway, "SM2", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["error"], document["meter"]) == ("LineSilent", "SM2")
    assert document["during"] == "read 2 input registers from 0"
    assert "no connection to 127.0.0.1:9" in document["message"]
    assert document["hint"]
    assert "Traceback" not in done.stderr
