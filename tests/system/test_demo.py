"""`opendcu demo` as a newcomer runs it: the real processes, a cut uplink, a killed gateway, and counts that agree."""

import json
import subprocess

import pytest

from tests.system.conftest import OPENDCU

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(180)]


def test_the_demo_ends_by_itself_and_its_counts_agree(tmp_path):
    folder = tmp_path / "demo"
    done = subprocess.run(
        [OPENDCU, "demo", "--for", "20s", "--meters", "14", "--history", "6h", "--json", "--dir", folder],
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["meters"] == {"dlms": 12, "modbus": 2}
    assert document["captured"] == document["stored"]
    assert document["captured"]["interval"] > 2_000
    assert document["lost"] == document["doubled"] == document["altered"] == 0
    assert document["alarms"]["sent"] >= 8
    assert document["alarms"]["lost"] == 0
    assert document["gateway"]["restarts"] == 1
    assert {f["what"] for f in document["faults"]} >= {"uplink-cut", "kill-gateway", "gasp-storm"}
    assert all(not any(t.values()) for t in document["table"].values())


def test_wrong_use_is_told(tmp_path):
    (tmp_path / "something").touch()
    for options in (["--fault", "flood@3"], ["--for", "soon"], ["--dir", str(tmp_path)]):
        done = subprocess.run(
            [OPENDCU, "demo", *options], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
