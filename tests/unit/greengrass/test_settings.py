"""The component configuration: scalars as nuclei write them, before gateway.toml, and kept for a start without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_core.config.tables import ConfigErrors
from edge_core.greengrass import settings
from edge_core.greengrass.settings import configure, keep, kept, overrides_of

THING = {"AWS_IOT_THING_NAME": "dcu-0007"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "USUAL_FILE", str(tmp_path / "etc" / "gateway.toml"))
    work = tmp_path / "work" / "io.opendcu.Gateway"
    work.mkdir(parents=True)
    return work


def test_numbers_and_booleans_come_as_text_as_floats_and_as_they_are(work: Path) -> None:
    for thousand, yes in (("1000", "true"), (1000, True), (1000.0, "True")):
        raw = {
            "MaxMessageBytes": thousand,
            "Set": {"uplink.basic_ingest": yes, "alarms.batch_ms": thousand},
        }
        config = configure(raw, work, nucleus=True, environment=THING)
        assert config.uplink.max_message_bytes == 1000
        assert config.uplink.basic_ingest is True
        assert config.alarms.batch_ms == 1000


def test_what_nobody_states_follows_from_the_component(work: Path) -> None:
    config = configure(
        {"GatewayId": "", "DataDir": "", "Set": {}}, work, nucleus=True, environment=THING
    )
    assert config.gateway.id == "dcu-0007"
    assert config.gateway.data_dir == str(work.parent / "io.opendcu.data")
    assert config.uplink.kind == "greengrass"
    assert (config.keys.provider, config.keys.file) == ("sealed", str(work / "keys.sealed"))
    assert configure({}, work, nucleus=False, environment=THING).uplink.kind == "mqtt"


def test_the_components_settings_go_before_the_file_and_the_file_before_defaults(
    work: Path, tmp_path: Path
) -> None:
    file = tmp_path / "box.toml"
    file.write_text(
        '[gateway]\nid = "dcu-9"\ndata_dir = "own"\n[uplink]\nkind = "file"\nurl = "out"\n'
    )
    config = configure({"ConfigFile": str(file)}, work, nucleus=True, environment=THING)
    assert (config.gateway.id, config.uplink.kind) == ("dcu-9", "file")
    assert config.gateway.data_dir == str(tmp_path / "own")
    stated = {
        "ConfigFile": str(file),
        "GatewayId": "dcu-8",
        "Roles": "dlms, uplink",
        "Set": {"uplink.kind": "greengrass"},
    }
    config = configure(stated, work, nucleus=True, environment=THING)
    assert (config.gateway.id, config.uplink.kind) == ("dcu-8", "greengrass")
    assert config.gateway.roles == ("dlms", "uplink")


def test_keys_are_sealed_unless_something_else_is_stated(work: Path) -> None:
    def keys(raw: dict[str, object], text: str = "") -> tuple[str, str, str]:
        file = work / "gateway.toml"
        file.write_text(f'[gateway]\nid = "dcu-7"\n{text}')
        found = configure(raw, work, nucleus=True, environment=THING).keys
        return found.provider, Path(found.file).name, found.kek

    assert keys({}) == ("sealed", "keys.sealed", "")
    assert keys({"KeysFile": "/etc/opendcu/k"}) == ("sealed", "k", "")
    assert keys({"KeysKek": "secret:kek"}) == ("sealed", "keys.sealed", "secret:kek")
    assert keys({}, '[keys]\nprovider = "file"\n') == ("file", "keys.toml", "")
    assert keys({"KeysProvider": "file"}) == ("file", "keys.toml", "")
    assert keys({}, '[keys]\nfile = "old.toml"\n') == ("sealed", "old.toml", "")
    assert keys({"KeysProvider": "secret", "KeysSecret": "meters"})[0] == "secret"


def test_the_usual_file_is_taken_where_none_is_named(work: Path) -> None:
    usual = Path(settings.USUAL_FILE)
    usual.parent.mkdir()
    usual.write_text('[gateway]\nid = "dcu-usual"\n')
    assert configure({}, work, nucleus=True, environment=THING).gateway.id == "dcu-usual"


def test_the_model_of_the_model_component_is_found(work: Path) -> None:
    assert configure({}, work, nucleus=True, environment=THING).detector.model == "builtin"
    model = work.parent / "io.opendcu.AnomalyModel" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    assert configure({}, work, nucleus=True, environment=THING).detector.model == str(model)
    raw = {"DetectorModel": "builtin"}
    assert configure(raw, work, nucleus=True, environment=THING).detector.model == "builtin"


def test_every_mistake_is_told_at_once() -> None:
    raw = {
        "GatewayID": "x",
        "Set": {"uplnk.kind": "mqtt", "alarms": "1", "alarms.batch_ms": [1]},
        "FleetFile": ["a"],
    }
    with pytest.raises(ConfigErrors) as caught:
        overrides_of(raw)
    text = str(caught.value)
    assert 'GatewayID: unknown key (did you mean "GatewayId"?)' in text
    assert 'Set.uplnk.kind: is no <table>.<key> (did you mean "uplink"?)' in text
    assert "Set.alarms: is no <table>.<key>" in text
    assert "Set.alarms.batch_ms: is no text, number or boolean" in text
    assert "FleetFile: is no text" in text


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"Set": ["a"]}, "Set: is no map"),
        ({"Set": "alarms.batch_ms=1"}, "Set: is no map"),
        ({"ConfigFile": ["/etc/x"]}, "ConfigFile: is no path"),
        ({"ConfigFile": 1}, "ConfigFile: is no path"),
    ],
)
def test_another_shape_is_a_mistake(raw: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigErrors, match=told):
        overrides_of(raw)


def test_a_wrong_value_is_named_with_its_table_and_key(work: Path) -> None:
    raw = {"MaxMessageBytes": "many", "Set": {"gateway.timezone": "Mars/Base"}}
    with pytest.raises(ConfigErrors) as caught:
        configure(raw, work, nucleus=True, environment=THING)
    assert "uplink: max_message_bytes" in str(caught.value)
    assert "Mars/Base" in str(caught.value)


def test_access_control_is_the_nucleus_own() -> None:
    assert overrides_of({"accessControl": {"aws.greengrass.ipc.mqttproxy": {}}}) == {}


def test_settings_are_kept_for_a_start_without_the_nucleus(work: Path) -> None:
    assert kept(work) == {}
    keep(work, {"GatewayId": "dcu-1", "Set": {"alarms.batch_ms": 5.0}})
    assert kept(work) == {"GatewayId": "dcu-1", "Set": {"alarms.batch_ms": 5.0}}
    (work / "settings.json").write_text("[1]")
    assert kept(work) == {}
    keep(work / "missing", {"a": 1})  # never a reason to fail
