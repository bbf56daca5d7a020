"""SNRM and UA parameters: one or two octets, defaults, views of both sides."""

from __future__ import annotations

import pytest

from edge_core.errors import MalformedFrame
from edge_core.protocols.hdlc.parameters import Parameters, parse_parameters


@pytest.mark.parametrize(
    ("octets", "parameters"),
    [
        ("", Parameters()),
        ("818012 05019a 06019a 070400000001 080400000001", Parameters(154, 154)),
        ("818013 050180 06020200 070400000001 080400000001", Parameters(128, 512)),
        ("818014 0502007e 06020200 070400000007 080400000003", Parameters(126, 512, 7, 3)),
        ("818003 050140", Parameters(64)),
        ("818006 050140 990102", Parameters(64)),  # unknown ones are passed over
        ("818004 0502ffff", Parameters(2030)),
        ("818003 0701ff", Parameters(window_send=7)),
    ],
)
def test_values_in_any_width(octets: str, parameters: Parameters) -> None:
    assert parse_parameters(bytes.fromhex(octets)) == parameters


def test_there_and_back() -> None:
    for parameters in (Parameters(), Parameters(2030, 512, 7, 3), Parameters(255, 256)):
        assert parse_parameters(parameters.to_bytes()) == parameters
    assert Parameters(154, 154).to_bytes().hex() == "81801205019a06019a070400000001080400000001"


@pytest.mark.parametrize(
    "octets",
    [
        "81",
        "8080",
        "818001",
        "81800305",
        "818003050100",
        "81800105",
        "818003050240",
        "8180070505000000 0001",
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(MalformedFrame):
        parse_parameters(bytes.fromhex(octets))


def test_each_side_speaks_from_its_own_view() -> None:
    """What the meter sends is bound by what we take, and the other way round."""
    ours = Parameters(512, 2030, window_send=7, window_receive=3)
    meter = Parameters(1024, 128, window_send=1, window_receive=5)
    assert ours.agreed(meter) == Parameters(128, 1024, window_send=5, window_receive=1)
    assert ours.agreed(Parameters()) == Parameters()
