"""`opendcu gaps` and `opendcu journal` on the files of a gateway that is not running."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest

from edge_core.cli.main import run
from edge_core.clock import ManualClock
from edge_core.domain import Alarm, Block, Column, Layout, alarm_id
from edge_core.journal import CounterStore, Journal

T0 = 1_764_000_000 // 900 * 900
INTERVAL = Layout(
    "1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 0), Column("1.0.12.27.0.255", "V", -1))
)
CONFIG = """
[gateway]
id = "dcu-1"
data_dir = "data"
timezone = "Asia/Kolkata"
roles = ["dlms"]
[uplink]
kind = "file"
url = "out"
[[lines]]
id = "l"
transport = "tcp"
framing = "modbus-tcp"
"""
METER = '[[meters]]\nid = "{0}"\nline = "l"\nmodel = "./m.toml"\naddress = "127.0.0.1:502/{1}"\n'
MODEL = """
schema = "opendcu.model/1"
[model]
maker = "T"
families = ["T"]
protocol = "modbus"
source = ["test"]
[link]
transports = ["tcp"]
[[points]]
name = "voltage_l1"
address = 0
type = "uint16"
unit = "V"
"""


def block(meter: str, rows: Sequence[int]) -> Block:
    return Block(
        meter=meter,
        device="dev-1",
        kind="interval",
        layout=INTERVAL,
        times=[T0 + 900 * r for r in rows],
        columns=([100 + r for r in rows], [2300 + r for r in rows]),
        tz=330,
        read_at=T0 + 90_000,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A gateway whose journal holds two meters, one with holes."""
    (tmp_path / "m.toml").write_text(MODEL)
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG + "".join(METER.format(f"GP{i}", i) for i in (1, 2, 3)))
    journal = Journal.open(tmp_path / "data" / "journal.db", clock=ManualClock(civil=T0 + 90_000))
    journal.append(block("GP1", [0, 1, 2, 3]), durable="now").result()
    journal.append(block("GP1", [8, 9]), durable="now").result()
    journal.append(block("GP2", [0, 1]), durable="now").result()
    journal.note_gap(
        "GP1", "dev-1", INTERVAL.profile, T0 + 4 * 900, T0 + 5 * 900, "meter-power-off"
    )
    journal.alarm(
        Alarm(
            id=alarm_id("GP1", "last-gasp", (), T0),
            meter="GP1",
            class_="outage",
            code="last-gasp",
            at=T0,
            heard=T0,
            authenticated=True,
        )
    ).result()
    journal.flush().result()
    journal.close()
    return path


def out(capfd: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    capfd.readouterr()
    assert run(args) == code, capfd.readouterr()
    return capfd.readouterr().out


def test_gaps_with_their_causes(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = out(capfd, "gaps", "-c", str(config))
    lines = text.splitlines()
    assert lines[0].split() == ["METER", "PROFILE", "MISSING", "FROM", "TO", "CAUSE"]
    assert {tuple(re.split(r" {2,}", line.strip())) for line in lines[1:3]} == {
        ("GP1", "interval", "2", "2025-11-24 22:30", "2025-11-24 22:45", "meter-power-off"),
        ("GP1", "interval", "2", "2025-11-24 23:00", "2025-11-24 23:15", "not named yet"),
    }
    assert "3 meters: 8 rows known, 4 missing; 1 never read" in text
    assert "GP2" not in text
    assert re.search(
        r"GP2 +interval +0 .* complete", out(capfd, "gaps", "-c", str(config), "--all", "GP2")
    )


def test_gaps_as_json(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = json.loads(out(capfd, "gaps", "GP1", "-c", str(config), "--json"))
    (entry,) = document["meters"]["GP1"]
    assert (entry["captured"], entry["missing"], entry["due"]) == (6, 4, 10)
    assert [h["cause"] for h in entry["holes"]] == ["meter-power-off", ""]
    assert json.loads(out(capfd, "gaps", "-c", str(config), "--json", "--kind", "midnight")) == {
        "meters": {"GP1": [], "GP2": [], "GP3": []}
    }


def test_gaps_of_one_cause(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for cause, rows in (("meter-power-off", "2"), ("unnamed", "2")):
        text = out(capfd, "gaps", "-c", str(config), "--cause", cause)
        (line,) = [line for line in text.splitlines() if line.startswith("GP1")]
        assert line.split()[2] == rows
        assert line.endswith("not named yet" if cause == "unnamed" else cause)
    document = json.loads(out(capfd, "gaps", "-c", str(config), "--cause", "link", "--json"))
    assert document == {"meters": {}}
    assert run(["gaps", "-c", str(config), "--cause", "meter-power"]) == 2
    assert 'did you mean "meter-power-off"?' in capfd.readouterr().err


def test_a_meter_that_is_not_there(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["gaps", "GP11", "-c", str(config)]) == 2
    assert 'did you mean "GP1"?' in capfd.readouterr().err


def test_status_and_list(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = out(capfd, "journal", "status", "-c", str(config))
    assert "3 segments" in text
    assert "1 alarms" in text
    status = json.loads(out(capfd, "journal", "status", "-c", str(config), "--json"))
    assert (status["head"], status["alarms_waiting"], status["full"]) == (3, 1, False)
    listed = json.loads(out(capfd, "journal", "list", "-c", str(config), "--json"))["segments"]
    assert [(s["id"], s["kind"], s["lane"], s["readings"]) for s in listed] == [
        (1, "interval", "live", 8),
        (2, "interval", "live", 4),
        (3, "interval", "live", 4),
    ]
    table = out(
        capfd, "journal", "list", "-c", str(config), "--after", "1", "--limit", "1"
    ).splitlines()
    assert len(table) == 2
    assert table[1].split()[:3] == ["journal.db", "2", "live"]


def test_export_gives_back_every_row(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [
        json.loads(line) for line in out(capfd, "journal", "export", "-c", str(config)).splitlines()
    ]
    assert [line["meter"] for line in lines] == ["GP1", "GP2"]
    values = {}
    for b in lines[0]["blocks"]:
        values |= {
            b["t0"] + i * 900: (b["values"][0][i], b["values"][1][i]) for i in range(b["rows"])
        }
    assert values == {T0 + 900 * r: (100 + r, 2300 + r) for r in (0, 1, 2, 3, 8, 9)}
    some = out(
        capfd,
        "journal",
        "export",
        "-c",
        str(config),
        "--meter",
        "GP1",
        "--from",
        str(T0 + 900),
        "--to",
        str(T0 + 1800),
    )
    assert [b["values"][0] for b in json.loads(some)["blocks"]] == [[101, 102]]
    assert out(capfd, "journal", "export", "-c", str(config), "--kind", "midnight") == ""


def test_verify_a_sound_journal(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "sound: 3 segments, 16 readings, 1 alarms" in out(
        capfd, "journal", "verify", "-c", str(config)
    )
    assert json.loads(out(capfd, "journal", "verify", "-c", str(config), "--json"))["ok"] is True


def test_verify_names_damage_and_leaves_the_file_as_it_is(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = config.parent / "data" / "journal.db"
    octets = bytearray(path.read_bytes())
    for page in range(4, len(octets) // 1024):
        octets[page * 1024 : page * 1024 + 64] = b"\xff" * 64
    path.write_bytes(octets)
    text = out(capfd, "journal", "verify", "-c", str(config), code=1)
    assert "problems:" in text
    assert "sets the file aside" in text
    assert path.read_bytes() == octets
    assert not (path.parent / "damaged").exists()
    path.write_bytes(b"this is no database at all" * 100)
    document = json.loads(out(capfd, "journal", "verify", "-c", str(config), "--json", code=1))
    assert document["ok"] is False
    assert "not a database" in document["journals"][0]["problems"][0]


def test_without_a_journal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    for args in (
        ["journal", "status"],
        ["journal", "list"],
        ["journal", "verify"],
        ["journal", "export"],
        ["gaps"],
    ):
        assert run([*args, "-c", str(path)]) == 1
        assert "no gateway ever ran on it" in capfd.readouterr().err
    assert not (tmp_path / "data").exists(), "looking makes nothing"


def test_looking_beside_the_one_who_writes(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = Journal.open(config.parent / "data" / "journal.db", clock=ManualClock())
    try:
        journal.append(block("GP3", [0, 1]), durable="now").result()
        journal.release(segments=[1], alarms=[a.id for a in journal.alarms_waiting()])
        assert (journal.status().segments_waiting, journal.status().alarms_waiting) == (3, 0)
        journal.flush().result()
        listed = json.loads(out(capfd, "journal", "list", "-c", str(config), "--json"))["segments"]
        assert [s["id"] for s in listed] == [2, 3, 4]
        assert len(out(capfd, "journal", "list", "-c", str(config), "--all").splitlines()) == 5
        assert "sound: 4 segments, 20 readings, 0 alarms" in out(
            capfd, "journal", "verify", "-c", str(config)
        )
        lines = out(capfd, "journal", "export", "-c", str(config)).splitlines()
        assert [json.loads(line)["meter"] for line in lines] == ["GP1", "GP2", "GP3"]
        assert run(["journal", "status", "-c", str(config)]) == 1  # it would open it to write
        assert "does not answer" in capfd.readouterr().err
    finally:
        journal.close()


def test_export_as_parquet(config: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "it's.parquet"
    told = out(capfd, "journal", "export", "-c", str(config), "--parquet", str(target))
    assert told.strip() == f"{target}: 16 readings"
    with duckdb.connect() as db:
        found = db.execute(
            "SELECT captured_at, value FROM read_parquet($1) WHERE meter = 'GP1' AND obis = $2 ORDER BY 1",
            [str(target), "1.0.1.29.0.255"],
        ).fetchall()
        assert [(at, int(value)) for at, value in found] == [
            (T0 + 900 * r, 100 + r) for r in (0, 1, 2, 3, 8, 9)
        ]
    assert run(["journal", "export", "-c", str(config), "--parquet", "/nowhere/x.parquet"]) == 1
    assert "/nowhere/x.parquet" in capfd.readouterr().err


def test_verify_looks_at_the_other_files_too(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = config.parent / "data" / "counters.db"
    CounterStore.open(other, clock=ManualClock()).close()
    assert f"{other}: sound" in out(capfd, "journal", "verify", "-c", str(config))
    other.write_bytes(b"this is no database at all" * 100)
    document = json.loads(out(capfd, "journal", "verify", "-c", str(config), "--json", code=1))
    assert (document["ok"], document["journals"][0]["problems"]) == (False, [])
    assert "not a database" in document["others"][0]["problems"][0]


def test_verify_decodes_the_ledger(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(config.parent / "data" / "journal.db") as db:
        db.execute("UPDATE ledger SET body = x'0102'")
    db.close()
    assert "ledger: 1 blobs do not decode" in out(
        capfd, "journal", "verify", "-c", str(config), code=1
    )


def test_live_views_need_a_gateway(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("top", "tap"):
        assert run([command, "-c", str(config)]) == 1
        assert "no gateway listens on" in capfd.readouterr().err
