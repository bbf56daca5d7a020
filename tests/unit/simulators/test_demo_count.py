"""The demo's judge must be able to say no: each way in which counts can disagree."""

import json

import pytest

from simulators.cloud import Identity, Stored, Value
from simulators.demo import count
from simulators.demo.plan import FAULTS, LASTS_S, own_programme, parse

TRUTH = {
    "meter": "GP1", "device": "7", "held": True, "kind": "interval", "profile": "1.0.99.1.0.255", "period": 900,
    "cols": [["1.0.1.29.0.255", "Wh", 0, 2], ["1.0.32.27.0.255", "V", -1, 2]],
    "t": [900, 1800, 1800], "occ": [[2, 1]], "values": [[1, 2, 3], [2300, None, 2310]], "flags": [], "held_from": 0,
}  # fmt: skip


def cell(at, occurrence, obis, value, scaler, unit):
    return Identity("GP1", "7", "1.0.99.1.0.255", at, occurrence, obis, 2), Value(
        value, scaler, unit
    )


CELLS = dict(
    [
        cell(900, 0, "1.0.1.29.0.255", 1, 0, "Wh"),
        cell(1800, 0, "1.0.1.29.0.255", 2, 0, "Wh"),
        cell(1800, 1, "1.0.1.29.0.255", 3, 0, "Wh"),
        cell(900, 0, "1.0.32.27.0.255", 2300, -1, "V"),
        cell(1800, 1, "1.0.32.27.0.255", 2310, -1, "V"),
    ]
)


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.jsonl"
    midnight = TRUTH | {"kind": "midnight", "profile": "1.0.99.2.0.255"}
    path.write_text(json.dumps(TRUTH) + "\n" + json.dumps(midnight) + "\n")
    return path


def account(truth, cells, **more):
    stored = Stored(readings=dict(cells), messages=1, cells=len(cells), **more)
    return count.dlms_account(truth, "interval", stored, {"MB1"})


def test_agreement(truth):
    a = account(truth, CELLS)
    assert (a.captured, a.stored, a.lost, a.doubled, a.altered) == (5, 5, 0, 0, 0)


def test_one_lost(truth):
    a = account(truth, list(CELLS.items())[1:])
    assert (a.captured, a.stored, a.lost) == (5, 4, 1)
    assert "900" in a.examples[0]


@pytest.mark.parametrize("wrong", [Value(9, 0, "Wh"), Value(1, 1, "Wh"), Value(1, 0, "varh")])
def test_one_altered(truth, wrong):
    identity = next(iter(CELLS))
    assert account(truth, CELLS | {identity: wrong}).altered == 1


def test_one_that_no_meter_held_and_modbus_left_to_its_own_judge(truth):
    identity = next(iter(CELLS))
    assert account(truth, CELLS | {identity._replace(at=901): Value(1, 0, "Wh")}).altered == 1
    assert account(truth, CELLS | {identity._replace(meter="MB1"): Value(1, 0, "Wh")}).altered == 0


def test_one_with_two_values(truth):
    identity = next(iter(CELLS))
    a = account(
        truth, CELLS, conflicts={identity: [(1, Value(1, 0, "Wh")), (2, Value(2, 0, "Wh"))]}
    )
    assert a.doubled == 1


def test_modbus_rows_that_were_committed_and_not_stored_are_lost(truth):
    a = count.Account()
    stored = Stored()
    for at in (900, 1800):
        for obis in ("1.0.1.8.0.255", "1.0.2.8.0.255"):
            stored.readings[Identity("MB1", "u1", "1.0.99.1.0.255", at, 0, obis, 2)] = Value(
                1, 0, "Wh"
            )
    count.add_modbus(a, {("MB1", "1.0.99.1.0.255"): 3}, stored, {"MB1"})
    assert (a.captured, a.stored, a.lost) == (6, 4, 2)


def test_the_own_programme_fits_into_any_run():
    for run_s in (20, 60, 600):
        programme = own_programme(run_s)
        assert {f.what for f in programme} == {
            "meter-silent",
            "uplink-cut",
            "gasp-storm",
            "garbage",
            "kill-gateway",
        }
        assert all(f.at_s + f.for_s < run_s for f in programme)


def test_faults_of_the_command_line():
    assert parse("uplink-cut@5").for_s == LASTS_S["uplink-cut"]
    assert parse("uplink-cut@5s/2.5s") == parse("uplink-cut@5/2.5")
    for text in (
        "",
        "uplink-cut",
        "flood@5",
        "uplink-cut@soon",
        "uplink-cut@5/long",
        "uplink-cut@-5",
    ):
        with pytest.raises(ValueError, match=r"NAME@SECONDS|seconds"):
            parse(text)
    assert set(LASTS_S) == set(FAULTS)
