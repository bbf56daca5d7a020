import msgspec
import numpy as np
import pytest

from edge_core.config.models import ObisCode, UnitName
from edge_core.domain import Block, Column, Layout, RegisterReading, Secret, alarm_id, make_alarm
from edge_core.domain.block import runs_of
from edge_core.domain.obis import obis_from_bytes, obis_to_bytes

LAYOUT = Layout(
    "1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 0), Column("1.0.32.27.0.255", "V", -1))
)


def block(**more) -> Block:
    return Block(
        meter="GP1", device="7", kind="interval", layout=LAYOUT,
        times=np.array([900, 1800, 1800, 2700]), columns=([1, 2, 3, None], np.array([5, 6, 7, 8])),
        occ=((2, 1),), flags=((0, 2, 4), (3, 1, 8)), **more,
    )  # fmt: skip


def test_a_layout_from_a_model_can_be_encoded_and_hashed():
    """Models hold checked subtypes of str; the first end-to-end run failed on them in the journal's writer."""
    layout = Layout(
        ObisCode("1.0.99.1.0.255"), 900, (Column(ObisCode("1.0.1.29.0.255"), UnitName("Wh"), 0),)
    )
    assert (
        layout.digest == Layout("1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 0),)).digest
    )
    assert msgspec.json.decode(msgspec.json.encode(layout))["cols"][0]["obis"] == "1.0.1.29.0.255"


def test_a_register_from_a_model_can_be_encoded():
    reading = RegisterReading(ObisCode("1.0.1.8.0.255"), "energy", 2, 5, 0, UnitName("Wh"))
    assert msgspec.json.decode(msgspec.json.encode(reading))["obis"] == "1.0.1.8.0.255"


@pytest.mark.parametrize("other", [
    Layout("1.0.99.2.0.255", 900, LAYOUT.cols),
    Layout("1.0.99.1.0.255", 1800, LAYOUT.cols),
    Layout("1.0.99.1.0.255", 900, LAYOUT.cols[::-1]),
    Layout("1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 1), LAYOUT.cols[1])),
])  # fmt: skip
def test_the_digest_tells_layouts_apart(other):
    assert other.digest != LAYOUT.digest


def test_taking_rows_keeps_occurrences_and_flags_with_their_rows():
    taken = block().take([1, 2, 3])
    assert taken.times == [1800, 1800, 2700]
    assert taken.columns == ([2, 3, None], [6, 7, 8])
    assert taken.occ == ((1, 1),)
    assert taken.flags == ((0, 1, 4), (2, 1, 8))
    assert taken.rows == 3
    assert taken.readings == 6


def test_flag_runs():
    assert runs_of([0, 4, 4, 8, 0, 8]) == ((1, 2, 4), (3, 1, 8), (5, 1, 8))


def test_alarm_ids_are_those_of_the_contract():
    # SHA-256 of "GP1|last-gasp||1764000000", computed with sha256sum
    import hashlib

    expected = hashlib.sha256(b"GP1|last-gasp||1764000000").hexdigest()[:16]
    assert alarm_id("GP1", "last-gasp", [], 1764000000) == expected
    assert (
        alarm_id("GP1", "phase-outage", ["L1", "L3"], 5)
        == hashlib.sha256(b"GP1|phase-outage|L1,L3|5").hexdigest()[:16]
    )


def test_an_alarm_takes_class_and_code_from_the_vocabulary():
    alarm = make_alarm("GP1", "last-gasp", at=5, heard=6, authenticated=True)
    assert (alarm.class_, alarm.iec61968) == ("outage", "3.26.136.47")
    with pytest.raises(KeyError):
        make_alarm("GP1", "no-such-code", at=5, heard=6, authenticated=True)


def test_obis():
    assert obis_from_bytes(obis_to_bytes("1.0.99.1.0.255")) == "1.0.99.1.0.255"
    for bad in ("1.0.99.1.0", "1.0.99.1.0.256", "1.0.99.1.0.x", ""):
        with pytest.raises(ValueError, match="OBIS"):
            obis_to_bytes(bad)


def test_a_secret_shows_nothing():
    secret = Secret(b"0123456789abcdef")
    assert "0123" not in repr(secret) + str(secret) + f"{secret}"
    assert len(secret) == 16
    import pickle

    with pytest.raises(TypeError):
        pickle.dumps(secret)
