"""Every Modbus meter model that we ship is whole, lawful and honest."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edge_core.acquisition.drivers.modbus.points import COARSE, Points
from edge_core.acquisition.profiles import kinds_of
from edge_core.config.load import load
from edge_core.config.models import load_model, model_names
from edge_core.protocols.modbus import codec

ENERGY = {"Wh", "varh", "VAh"}
NAMES = [n for n in model_names() if load_model(n).about.protocol == "modbus"]
COARSE_MODELS = {"hager-ecr380d", "socomec-diris-a10", "socomec-diris-b30"}
DRIVER = Path(__file__).resolve().parents[4] / "edge_core" / "acquisition" / "drivers" / "modbus"


@pytest.fixture(params=NAMES)
def model(request):
    return load_model(request.param)


def test_there_are_37_families_and_two_of_their_members_that_remember():
    with_history = {n for n in NAMES if load_model(n).history is not None}
    assert with_history == {"abb-a43-a44", "siemens-pac4200"}
    assert len(NAMES) - len(with_history) == 37


def test_sources_and_sureness_are_named(model):
    assert model.about.source
    assert model.about.sure in ("one", "two", "standard")


def test_what_the_map_leaves_open_is_settled_and_said(model):
    """Patterns for "not available", resolution of floats, packing of strings, the power factors of L&T."""
    told = {text.partition(":")[0] for text in model.about.assumed}
    measured = [p for p in model.points if p.kind in ("instantaneous", "cumulative")]
    types = {p.type for p in measured} - {"sunssf"}
    integers = types & (codec.SIGNED | codec.UNSIGNED)
    assert not integers or model.sentinels or "Not available" in told
    assert not types & codec.FLOATS or "Resolution" in told
    assert not any(p.type == "string" for p in model.points) or "Strings" in told
    assert model.about.maker != "Larsen & Toubro" or "Power factor" in told


def test_points_do_not_overlap(model):
    spans = sorted(Points(model).defined)
    assert all(a.table != b.table or a.end <= b.start for a, b in itertools.pairwise(spans))
    assert all(span.count <= model.link.max_registers_per_read for span in spans)
    assert all(span.end <= 65_536 for span in spans)


def test_the_table_of_each_point_can_be_read(model):
    functions = {"holding": 3, "input": 4}
    assert all(functions[p.table] in model.link.read_function_codes for p in model.points)


def test_codes_are_there_once(model):
    codes = [p.obis for p in model.points if p.obis] + [s.obis for s in Points(model).sums.values()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("table", ["interval", "midnight"])
def test_sampled_registers_are_fine_counters_with_codes(model, table):
    points = Points(model)
    sampling = getattr(model, table)
    assert sampling.points or sampling.refused or (table == "interval" and model.history)
    for item in points.named(sampling.points):
        assert item.obis
        for part in getattr(item, "parts", (item,)):
            assert part.kind == "cumulative"
            assert part.unit in ENERGY
            if table == "interval" and part.type not in codec.FLOATS:
                assert part.scale < COARSE


def test_whole_kilowatt_hours_are_refused_with_the_reason():
    refused = {n for n in NAMES if "whole kWh" in load_model(n).interval.refused}
    assert refused == COARSE_MODELS
    for name in refused:
        assert load_model(name).midnight.points
        assert kinds_of(load_model(name)) == ["midnight", "instantaneous"]


def test_units_of_reactive_quantities(model):
    for p in model.points:
        if p.name.startswith("reactive_"):
            assert p.unit in ("var", "varh")


def test_every_abb_of_the_model_is_known_by_its_type_designation():
    model = load_model("abb-b23-b24")
    assert model.identify is not None
    codes = {name: int(code).to_bytes(4) for code, name in model.identify.values.items()}
    assert codes == {name: f"{name} ".encode() for name in model.about.models}


def test_a_history_of_midnights_has_a_clock():
    with_history = [n for n in NAMES if load_model(n).midnight.history]
    assert with_history == ["lt-er300p"]
    for name in with_history:
        assert Points(load_model(name)).clock() is not None


def test_the_sample_of_the_driver_is_a_configuration(tmp_path):
    head = '[gateway]\nid = "dcu-1"\ndata_dir = "data"\n[uplink]\nkind = "file"\nurl = "up"\n'
    file = tmp_path / "gateway.toml"
    file.write_text(head + (DRIVER / "sample.toml").read_text())
    config = load(file)
    assert [str(config.address_of(m)) for m in config.meters.values()] == [
        "10.1.7.31:502/1",
        "17",
        "10.1.7.20:4001/3",
    ]
