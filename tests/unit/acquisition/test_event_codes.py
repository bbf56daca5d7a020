"""Event codes: what is in the data, and which rows of a log raise an alarm with which id."""

from __future__ import annotations

from edge_core.acquisition.event_codes import alarms_of, describe, vocabulary
from edge_core.config.models import load_model
from edge_core.domain import Block, Column, Layout, Obis, alarm_id
from edge_core.domain.alarm_codes import ALARM_KINDS

NOW = 1_764_000_000
LOG = Obis("0.0.99.98.4.255")


def rows(*events: tuple[int, int], log: Obis = LOG, code: str = "0.0.96.11.4.255") -> Block:
    layout = Layout(log, 0, (Column(Obis("1.0.1.8.0.255"), "Wh", 0), Column(Obis(code), "", 0)))
    return Block(
        meter="GP1", device="7", kind="events", layout=layout, times=[at for at, _ in events],
        columns=([0] * len(events), [code for _, code in events]),
    )  # fmt: skip


def test_the_data_names_only_alarms_and_severities_that_exist_and_its_source():
    assert len(vocabulary()) > 140
    for key, event in vocabulary().items():
        assert event.severity in ("info", "warning", "major", "critical"), key
        assert not event.alarm or event.alarm in ALARM_KINDS, key
        assert set(event.phases) <= {"L1", "L2", "L3"}, key
        assert event.meaning, key


def test_rows_of_the_last_day_raise_what_they_mean_and_history_does_not():
    model = load_model("is15959-3ph")
    block = rows((NOW - 90_000, 201), (NOW - 60, 201), (NOW - 50, 202), (NOW - 40, 9999))
    alarms = list(alarms_of(block, model, NOW, authenticated=True))
    assert [(a.code, a.at, a.authenticated) for a in alarms] == [("magnet", NOW - 60, True)]
    assert alarms[0].detail["event"] == 201


def test_a_row_and_a_push_of_one_event_share_their_id():
    model = load_model("is15959-3ph")
    block = rows((NOW - 60, 3), log=Obis("0.0.99.98.0.255"), code="0.0.96.11.0.255")
    (alarm,) = alarms_of(block, model, NOW, authenticated=True)
    assert (alarm.code, alarm.phases) == ("phase-outage", ("L2",))
    assert alarm.id == alarm_id("GP1", "phase-outage", ("L2",), NOW - 60)


def test_a_power_failure_in_the_log_is_the_last_gasp_that_was_pushed():
    model = load_model("is15959-3ph")
    block = rows((NOW - 60, 101), log=Obis("0.0.99.98.2.255"), code="0.0.96.11.2.255")
    (alarm,) = alarms_of(block, model, NOW, authenticated=False)
    assert alarm.id == alarm_id("GP1", "last-gasp", (), NOW - 60)


def test_meanings_are_told_by_model_and_log():
    model = load_model("is15959-3ph")
    found = describe(model, LOG, 201)
    assert found is not None
    assert found.severity == "critical"
    assert describe(model, LOG, 65_000) is None
    assert describe(model, "1.0.99.1.0.255", 201) is None
    assert describe(load_model("eastron-sdm630"), LOG, 201) is None
