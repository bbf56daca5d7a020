"""Counting the lake: by identity, the later read current, whatever form the envelopes have."""

import base64
import gzip
import json

from simulators.cloud.lake import Identity, Value, stored
from simulators.cloud.local import alarms_of


def put(bucket, envelope, n, kind="interval", suffix=""):
    folder = bucket / kind / "day=2025-11-24" / "dcu=dcu-0001"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{envelope['epoch']}-{n}{suffix}.json"
    path.write_text(json.dumps(envelope))
    path.with_name(path.name + ".meta.json").write_text("{}")


def test_readings_by_identity(tmp_path, envelope):
    put(tmp_path, envelope, 1)
    found = stored(tmp_path, "interval")
    assert found.messages == 1
    assert found.cells == len(found.readings) == 7  # a null is no reading
    key = Identity(
        "GP1000001", "12345678", "1.0.99.1.0.255", 1_764_000_900, 0, "1.0.12.27.0.255", 2
    )
    assert found.readings[key] == Value(2303, -1, "V")


def test_compressed_envelopes_count_alike(tmp_path, envelope):
    put(tmp_path / "plain", envelope, 1)
    inner = json.dumps({k: envelope.pop(k) for k in ("layouts", "blocks")}).encode()
    put(
        tmp_path / "packed",
        envelope | {"enc": "gzip+base64", "data": base64.b64encode(gzip.compress(inner)).decode()},
        1,
    )
    assert (
        stored(tmp_path / "packed", "interval").readings
        == stored(tmp_path / "plain", "interval").readings
    )


def test_repetitions_and_conflicts(tmp_path, envelope):
    put(tmp_path, envelope, 1)
    put(tmp_path, envelope, 2)
    envelope["blocks"][0]["values"][0][0] = 11
    envelope["blocks"][0]["read_at"] += 5
    put(tmp_path, envelope, 3, suffix=".beside")
    found = stored(tmp_path, "interval")
    assert found.messages == 3
    assert len(found.readings) == 7
    assert found.cells == 21
    assert len(found.conflicts) == 1
    assert found.duplicates == 13
    assert sorted(v.value for k, v in found.readings.items() if k.obis == "1.0.1.29.0.255") == [
        2,
        3,
        4,
        11,
    ]


def test_the_later_read_wins_whichever_file_comes_first(tmp_path, envelope):
    for name, order in (
        ("a", [(1, 5), (2, 9), (1, 7)]),
        ("b", [(2, 9), (1, 7), (1, 5)]),
        ("c", [(1, 7), (1, 5), (2, 9)]),
    ):
        for n, (value, read_at) in enumerate(order):
            envelope["blocks"][0]["values"][0][0] = value
            envelope["blocks"][0]["read_at"] = read_at
            put(tmp_path / name, envelope, n)
        found = stored(tmp_path / name, "interval")
        (values,) = found.conflicts.values()
        assert {v.value for _, v in values} == {1, 2}
        assert min(v.value for k, v in found.readings.items() if k.obis == "1.0.1.29.0.255") == 2


def test_occurrences_and_other_attributes_are_other_readings(tmp_path, envelope):
    block = envelope["blocks"][0]
    del block["t0"]
    block |= {"t": [100, 100, 200, 300], "occ": [[1, 1]]}
    envelope["layouts"][0]["cols"][1] = ["1.0.1.29.0.255", "V", -1, 4]
    put(tmp_path, envelope, 1)
    readings = stored(tmp_path, "interval").readings
    assert len(readings) == 7
    assert {(k.at, k.occurrence) for k in readings} == {(100, 0), (100, 1), (200, 0), (300, 0)}
    assert {k.attribute for k in readings} == {2, 4}


def test_compact_alarms_are_spread_out():
    compact = {"code": "last-gasp", "at": [1, 2], "meters": ["a", "b"], "ids": ["x", "y"]}
    assert [
        (a["id"], a["meter"], a["at"], a["class"])
        for a in alarms_of({"kind": "outage", "alarms": compact})
    ] == [
        ("x", "a", 1, "outage"),
        ("y", "b", 2, "outage"),
    ]
