"""Table [history] of a Modbus model: what may be written is declared, and can be nothing that the meter measures."""

from __future__ import annotations

import textwrap

import pytest

from edge_core.config.history import WindowHistory, flags_of
from edge_core.config.models import load_model
from edge_core.config.tables import ConfigErrors
from edge_core.domain import Flag

HEAD = """
    schema = "opendcu.model/1"
    model.maker = "Test"
    model.families = ["Probe"]
    model.protocol = "modbus"
    model.source = ["this test"]
    link.transports = ["tcp"]
    points = [
      { name = "active_energy_import", obis = "1.0.1.8.0.255", address = 100, type = "uint64", unit = "Wh", kind = "cumulative" },
      { name = "elapsed", address = 200, type = "uint32", unit = "s" },
      { name = "length", address = 202, type = "uint32", unit = "s" },
      { name = "demand", address = 204, type = "float32", unit = "W" },
    ]
"""
WINDOW = {
    "kind": '"window"', "channel": "1", "start": "2", "direction": "5", "next": "6", "quantity": "10", "scaler": "13",
    "interval": "14", "data_type": "16", "types": '{ "21" = "uint64" }', "block": "300",
}  # fmt: skip
PERIOD = {
    "kind": '"last-period"', "elapsed": '"elapsed"', "length": '"length"',
    "columns": '{ "1.0.1.29.0.255" = "demand" }',
}  # fmt: skip


@pytest.fixture
def model_of(tmp_path):
    def make(keys):
        file = tmp_path / "probe.toml"
        table = "".join(f"{key} = {value}\n" for key, value in keys.items())
        file.write_text(textwrap.dedent(HEAD) + "[history]\n" + table)
        return load_model(str(file))

    return make


def test_both_kinds_are_read(model_of):
    window = model_of(WINDOW).history
    assert isinstance(window, WindowHistory)
    assert window.requests == ((1, 1), (2, 3), (5, 1), (6, 1))
    assert model_of(PERIOD).history.columns == {"1.0.1.29.0.255": "demand"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": '"windov"'}, 'did you mean "window"'),
        ({"start": "99"}, "belongs to point active_energy_import"),
        ({"next": "103"}, "belongs to point active_energy_import"),
        ({"channel": "310"}, "belongs to what is read of the history"),
        ({"direction": "4"}, "belongs to `start`"),
        ({"start": "65534"}, "beyond the last register"),
        ({"entries": "16"}, "entries"),
        ({"status_bits": '{ "16" = "partial" }'}, "no bit of a register"),
        ({"status_bits": '{ "3" = "partal" }'}, 'did you mean "partial"'),
        ({"zone": '"Europe/Berlim"'}, "no IANA time zone"),
        ({"types": '{ "21" = "float32" }'}, "types"),
        ({"period_s": "30"}, "period_s"),
        ({"writes": "[1]"}, "unknown key"),
    ],
)
def test_mistakes_of_a_window_are_named(model_of, change, words):
    with pytest.raises(ConfigErrors) as errors:
        model_of({**WINDOW, **change})
    assert words in str(errors.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"elapsed": '"elapse"'}, 'did you mean "elapsed"'),
        ({"length": '"demand"'}, '"demand" is in W'),
        ({"columns": '{ "1.0.1.29.0.255" = "length" }'}, '"length" is in s'),
        ({"columns": '{ "1.0.1.29.0" = "demand" }'}, "no OBIS code"),
        ({"columns": "{}"}, "at least one"),
    ],
)
def test_mistakes_of_a_period_are_named(model_of, change, words):
    with pytest.raises(ConfigErrors) as errors:
        model_of({**PERIOD, **change})
    assert words in str(errors.value)


def test_status_bits_become_flags(model_of):
    window = model_of({**WINDOW, "valid_bit": "2", "status_bits": '{ "0" = "power-down" }'}).history
    assert flags_of(window, 0b100) == 0
    assert flags_of(window, 0b101) == Flag.POWER_DOWN
    assert flags_of(window, 0b001) == Flag.POWER_DOWN | Flag.NOT_VALID


def test_midnights_that_name_no_point_are_mistakes(tmp_path):
    file = tmp_path / "probe.toml"
    file.write_text(
        textwrap.dedent(HEAD) + '[midnight.history]\nactive_energy_import = ["yesterday"]\n'
    )
    with pytest.raises(ConfigErrors, match='no point "yesterday"'):
        load_model(str(file))
