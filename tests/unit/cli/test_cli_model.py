"""`opendcu model`: list, show, check."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from edge_core.cli.main import run
from edge_core.config.models import model_names

MODEL = """
schema = "opendcu.model/1"
[model]
maker = "Mine"
families = ["M1"]
protocol = "modbus"
source = ["my manual, 1.0, page 3"]
[link]
transports = ["tcp"]
[[points]]
name = "voltage_l1"
address = 0
type = "uint16"
unit = "V"
"""


def out(capfd: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    capfd.readouterr()
    assert run(["model", *args]) == code
    captured = capfd.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def test_list(capfd: pytest.CaptureFixture[str]) -> None:
    models = json.loads(out(capfd, "list", "--json"))["models"]
    assert [m["model"] for m in models] == model_names()
    assert all(m["source"] and m["reads"] for m in models)
    eastron = out(capfd, "list", "EASTRON").splitlines()
    assert len(eastron) > 2
    assert all("eastron" in line for line in eastron[1:-1])
    assert "0 models" in out(capfd, "list", "no such maker")


def test_show(capfd: pytest.CaptureFixture[str]) -> None:
    name = model_names()[0]
    assert tomllib.loads(out(capfd, "show", name))["schema"] == "opendcu.model/1"
    assert json.loads(out(capfd, "show", name, "--json"))["name"] == name
    assert "unknown meter model" in out(capfd, "show", "nope", code=2)


def test_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(MODEL)
    assert "mine.toml: no mistakes: Mine M1, modbus, 1 points" in out(capfd, "check", "mine.toml")
    Path("mine.toml").write_text(
        MODEL.replace("uint16", "uint61").replace("address = 0", "address = -1")
    )
    text = out(capfd, "check", "mine.toml", code=2)
    assert 'did you mean "uint' in text
    assert ">= 0" in text
    document = json.loads(out(capfd, "check", "mine.toml", "--json", code=2).splitlines()[0])
    assert {m["key"] for m in document["mistakes"]} == {"type", "address"}
