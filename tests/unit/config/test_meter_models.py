"""Meter models: every model that comes with the product, and what is wrong with a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_core.config.load import ConfigErrors
from edge_core.config.models import (
    FOLDER,
    NAME,
    DlmsModel,
    ModbusModel,
    find_model,
    load_model,
    model_names,
)

HEAD = 'schema = "opendcu.model/1"\n[model]\nmaker = "T"\nfamilies = ["T1"]\nsource = ["test"]\n'
MODBUS = HEAD + 'protocol = "modbus"\n[link]\ntransports = ["rtu"]\n'
POINT = '[[points]]\nname = "voltage_l1"\nobis = "1.0.32.7.0.255"\naddress = 0\ntype = "float32"\nunit = "V"\n'
DLMS = HEAD + 'protocol = "dlms"\n'


@pytest.mark.parametrize("name", model_names())
def test_every_model_of_the_product_is_valid(name: str) -> None:
    model = load_model(name)
    assert NAME.fullmatch(name)
    assert model.name == name
    assert model.about.source, "a model names its document"
    if isinstance(model, ModbusModel):
        assert len({p.name for p in model.points}) == len(model.points)
    else:
        assert model.profiles or model.push, "a DLMS model can be read or pushes"


def write(folder: Path, text: str, name: str = "t1.toml") -> str:
    (folder / name).write_text(text)
    return f"./{name}"


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as refusal:
        load_model(write(folder, text), base=folder)
    return [f"{e.table}|{e.key}|{e.problem}|{e.hint}" for e in refusal.value.errors]


def test_a_modbus_model(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, MODBUS + POINT), base=tmp_path)
    assert isinstance(model, ModbusModel)
    assert model.link.transports == ("rtu",)
    assert model.points[0].obis == "1.0.32.7.0.255"


def test_a_dlms_model(tmp_path: Path) -> None:
    model = load_model(
        write(
            tmp_path,
            DLMS
            + '[association]\nclient = 48\nsecurity = "hls5"\nciphering = "glo"\nprotection = "authenticated-encrypted"\n'
            + '[time]\ndeviation = "utc-to-local"\n[profiles.interval]\nobis = "1.0.99.1.0.255"\nkind = "delta"\n'
            + '[profiles.events-0]\nobis = "0.0.99.98.0.255"\n[push.alert]\nobis = "0.4.25.9.0.255"\n',
        ),
        base=tmp_path,
    )
    assert isinstance(model, DlmsModel)
    assert model.time.deviation == "utc-to-local"
    assert set(model.profiles) == {"interval", "events-0"}
    assert model.profiles["interval"].kind == "delta"
    assert set(model.push) == {"alert"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "schema|expected"),
        ('schema = "opendcu.model/1"\n', "model||the table is missing"),
        (HEAD, "model|protocol|is missing"),
        (HEAD + 'protocol = "iec1107"\n', "none of: dlms, modbus"),
        (MODBUS, "at least one of [[points]]"),
        (
            MODBUS + POINT.replace("1.0.32.7.0.255", "1.0.32.7"),
            "points[1] (voltage_l1)|obis|'1.0.32.7' is no OBIS code",
        ),
        (MODBUS + POINT.replace('"V"', '"kWh"'), "is no unit"),
        (MODBUS + POINT.replace("address = 0", "address = 65536"), "<= 65535"),
        (MODBUS + POINT.replace("float32", "float23"), 'did you mean "float32"'),
        (MODBUS + POINT + POINT, "twice"),
        (MODBUS + POINT + 'scale_point = "sf"\n', 'no point "sf"'),
        (MODBUS + POINT.replace("float32", "string"), "has no length of its own"),
        (MODBUS + POINT + '[derived]\ntotal = ["voltage_l9"]\n', 'did you mean "voltage_l1"'),
        (MODBUS + POINT + "colour = 1\n", "points[1] (voltage_l1)|colour|unknown key"),
        (MODBUS + POINT + "[association]\nclient = 1\n", "association||unknown table"),
        (MODBUS.replace('"rtu"', '"rtuu"') + POINT, 'did you mean "rtu"'),
        (DLMS + '[profiles.hourly]\nobis = "1.0.99.1.0.255"\n', "unknown kind of profile"),
        (DLMS + '[profiles.interval]\nobis = "1.0.99.1.255"\n', "is no OBIS code"),
        (DLMS + '[association]\nsecurity = "hls5"\n', "hls5 needs ciphering"),
        (DLMS + '[association]\nsecurity = "hls7"\n', "need suite 1 or 2"),
        (DLMS + "[association]\nsigned = true\n", "need suite 1 or 2"),
        (
            DLMS + '[association]\nciphering = "general-ciphering"\nkey_info = "one-pass"\n',
            "need suite 1 or 2",
        ),
        (DLMS + "[association]\nmax_pdu_size = 4\n", ">= 12"),
        (DLMS + "profiles = 5\n", "unknown key"),
    ],
)
def test_mistakes_of_a_model(tmp_path: Path, text: str, says: str) -> None:
    found = mistakes(tmp_path, text)
    assert any(says in one for one in found), found


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="unknown meter model"):
        load_model("no-such-meter")
    with pytest.raises(ConfigErrors, match="unknown meter model"):
        load_model("..")
    with pytest.raises(ConfigErrors, match="no such model file"):
        find_model("./none.toml", tmp_path)
    with pytest.raises(ConfigErrors, match="no model name"):
        load_model(write(tmp_path, MODBUS + POINT, "My_Meter.toml"), base=tmp_path)
    with pytest.raises(ConfigErrors, match="cannot be read"):
        load_model(write(tmp_path, "= 5"), base=tmp_path)
    assert FOLDER.is_dir()


def test_an_unknown_key_of_a_model_does_not_stop_run(tmp_path: Path) -> None:
    name = write(tmp_path, MODBUS + POINT + "colour = 1\n")
    assert isinstance(load_model(name, base=tmp_path, strict=False), ModbusModel)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".toml", "a\0/b", "x/" * 3000])
def test_a_model_name_that_no_file_system_takes_is_unknown(name: str) -> None:
    with pytest.raises(ConfigErrors):
        find_model(name)
