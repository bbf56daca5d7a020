"""`opendcu anomalies` and `opendcu model train|evaluate|inject|verify`, as a user runs them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from edge_core.cli.main import run
from edge_core.detector import readings
from edge_core.detector.model import BUILTIN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
CURVES = Path("simulators/loads/sgsc_households_30min.csv.gz").absolute()


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert run(args) == code, capsys.readouterr()
    return capsys.readouterr().out


@pytest.fixture
def some_homes(tmp_path: Path) -> Path:
    """Ten real households, 100 days, as a file of its own."""
    table = readings.read(CURVES)
    picked = list(range(2, 62, 6))
    part = readings.Readings(
        [table.meters[k] for k in picked], table.wh[picked, 246:346], "2013-03-04"
    )
    readings.write(tmp_path / "homes.csv.gz", part, "+10:00")
    return tmp_path / "homes.csv.gz"


def test_inject_and_evaluate(
    some_homes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = str(tmp_path / "bad.csv"), str(tmp_path / "labels.csv")
    said(capsys, "model", "inject", str(some_homes), out, labels, "--seed", "3", "--share", "0.7")
    assert Path(labels).read_text().startswith("meter,kind,first_day,end_day,parameter\n")
    result = json.loads(said(capsys, "model", "evaluate", out, labels, "--json"))
    keys = {"meters", "anomalies", "found", "found_rate", "false_alarms", "false_alarms_per_meter_month",
            "median_delay_days", "auc", "by_kind", "baselines"}  # fmt: skip
    assert keys <= set(result)
    assert result["meters"] == 10
    assert result["anomalies"] == len(Path(labels).read_text().splitlines()) - 1 > 0
    assert result["found_rate"] == pytest.approx(result["found"] / result["anomalies"], abs=1e-3)
    assert sum(k["anomalies"] for k in result["by_kind"].values()) == result["anomalies"]
    assert set(result["baselines"]) == {"isolation_forest", "autoencoder", "seasonal_z"}
    for other in result["baselines"].values():
        assert keys - {"baselines"} <= set(other)
        assert other["false_alarms"] <= result["false_alarms"]
        assert len(other["found_rate_interval"]) == 2
    assert result["baselines"]["isolation_forest"]["by"]
    page = tmp_path / "report.html"
    text = said(capsys, "model", "evaluate", out, labels, "--no-baselines", "--report", str(page))
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "http" not in html.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded"
    for kind, own in result["by_kind"].items():
        assert f">{kind}</text>" in html
        assert f">{own['found']} of {own['anomalies']}</text>" in html
    assert f"found         {result['found']} of {result['anomalies']}" in text


def test_evaluate_names_what_is_wrong(
    some_homes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "l.csv").write_text("meter,kind,first_day,end_day,parameter\nnobody,h1,1,2,\n")
    document = json.loads(
        said(
            capsys, "model", "evaluate", str(some_homes), str(tmp_path / "l.csv"), "--json", code=1
        )
    )
    assert document["error"] == "ReadingsRefused"
    (tmp_path / "m").mkdir()
    document = json.loads(
        said(capsys, "model", "evaluate", str(some_homes), str(tmp_path / "l.csv"), "--model", str(tmp_path / "m"), "--json", code=1)
    )  # fmt: skip
    assert document["error"] == "ModelRefused"


@pytest.mark.slow
def test_train_writes_a_signed_model_twice_the_same(
    some_homes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [
        json.loads(
            said(capsys, "model", "train", str(some_homes), "--out", str(tmp_path / name), "--rounds", "4", "--replicas", "1", "--json")
        )
        for name in ("one", "two")
    ]  # fmt: skip
    one, two = (tmp_path / "one", tmp_path / "two")
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()
    assert (one / "model.json").read_bytes() == (two / "model.json").read_bytes()
    assert documents[0]["key"] != documents[1]["key"]
    key = documents[0]["key"]
    checked = json.loads(said(capsys, "model", "verify", str(one), "--key", key, "--json"))
    assert checked["version"] == documents[0]["version"]
    assert set(checked["data"]["households"]).isdisjoint(checked["data"]["held_out"])
    said(capsys, "model", "verify", str(one), "--key", documents[1]["key"], code=1)


def test_the_builtin_model_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "model", "verify")
    assert str(BUILTIN) in text
    assert "CC BY 3.0 AU" in text


def config_of(town) -> str:
    path = town.folder / "gateway.toml"
    path.write_text(
        f'[gateway]\nid = "dcu-1"\ndata_dir = "{town.folder}"\ntimezone = "Asia/Kolkata"\n'
    )
    return str(path)


async def test_the_days_of_a_meter_are_drawn(
    town, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(36):
        town.write(town.first + k, "D1", town.DELTA, np.zeros(96, int) if k >= 31 else town.day())
        town.write(town.first + k, "D2", town.DELTA, town.day())
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + 36) + 3 * 3600
    await town.until(lambda: town.scored(town.first + 35) and town.findings())
    config = config_of(town)
    text = said(capsys, "anomalies", "D1", "-c", config, "--svg", str(tmp_path / "days.svg"))
    assert text.count("stopped") >= 6
    assert "█" in text
    root = ET.parse(tmp_path / "days.svg").getroot()
    assert len([e for e in root.iter() if e.tag.endswith("rect")]) > 35 * 48
    document = json.loads(said(capsys, "anomalies", "D1", "-c", config, "--json"))
    assert [f["kind"] for f in document["findings"]] == ["stopped"]
    assert [d["kinds"] for d in document["days"]][-6:] == [[], *[["stopped"]] * 5]
    assert document["days"][-1]["total_wh"] == 0
    assert "nothing found" in said(capsys, "anomalies", "D2", "-c", config)
    every = json.loads(said(capsys, "anomalies", "-c", config, "--json"))
    assert (every["meters"], [f["meter"] for f in every["findings"]]) == (2, ["D1"])
    assert "2 meters watched, 1 findings" in said(capsys, "anomalies", "-c", config)
    said(capsys, "anomalies", "D9", "-c", config, code=2)


def test_without_a_detector_there_is_one_line(town, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["anomalies", "-c", config_of(town)]) == 1
    assert "no detector ever ran" in capsys.readouterr().err
