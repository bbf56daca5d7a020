"""Bodies of notifications: shapes of the field, and what must not be guessed."""

from __future__ import annotations

import pytest

from edge_core.domain import obis_to_bytes
from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr, bodies
from edge_core.protocols.dlms.axdr import Data
from edge_core.protocols.dlms.bodies import Reading, recognise
from edge_core.protocols.dlms.cosem import CaptureObject

ENERGY = axdr.double_long_unsigned(1234)
CLOCK = bytes.fromhex("07e90601ff000f00fffeb600")


def name(obis: str) -> Data:
    return axdr.octet_string(obis_to_bytes(obis))


def scale(scaler: int, unit: int) -> Data:
    return axdr.structure(axdr.integer(scaler), axdr.enum(unit))


def found(body: Data) -> list[tuple[str, object, int | None, str | None]]:
    return [(r.obis, r.value.plain(), r.scaler, r.unit) for r in recognise(body).readings]


def test_triples() -> None:
    body = axdr.array(
        [
            axdr.structure(name("1.0.1.8.0.255"), ENERGY, scale(0, 30)),
            axdr.structure(name("1.0.32.7.0.255"), axdr.long_unsigned(2364), scale(-1, 35)),
            axdr.structure(name("0.0.96.1.0.255"), axdr.visible_string("7359")),
        ]
    )
    assert found(body) == [
        ("1.0.1.8.0.255", 1234, 0, "Wh"),
        ("1.0.32.7.0.255", 2364, -1, "V"),
        ("0.0.96.1.0.255", "7359", None, None),
    ]


def test_flat_pairs_with_a_time_in_front() -> None:
    body = axdr.structure(
        axdr.octet_string(CLOCK), name("1.0.1.8.0.255"), ENERGY, name("1.0.2.8.0.255"), axdr.NULL
    )
    recognised = recognise(body)
    assert recognised.clock == CLOCK
    assert [r.obis for r in recognised.readings] == ["1.0.1.8.0.255", "1.0.2.8.0.255"]
    assert recognised.warnings == ()


def test_flat_pairs_with_scalers_and_a_serial_without_code() -> None:
    body = axdr.structure(
        name("1.0.1.8.0.255"),
        ENERGY,
        scale(0, 30),
        name("1.0.1.7.0.255"),
        ENERGY,
        scale(0, 27),
        axdr.octet_string(b"181220000009"),
    )
    assert found(body)[-1] == ("0.0.96.1.0.255", b"181220000009", None, None)
    assert "no code" in recognise(body).warnings[0]


def test_an_obis_code_without_a_value_is_no_reading() -> None:
    assert found(axdr.structure(axdr.unsigned(1), name("1.0.1.8.0.255"))) == []


def test_units_that_nobody_named_are_empty() -> None:
    body = axdr.structure(name("1.0.1.8.0.255"), ENERGY, scale(0, 77))
    assert found(body) == [("1.0.1.8.0.255", 1234, 0, "")]


def test_object_lists() -> None:
    objects = axdr.array(
        CaptureObject(c, o, 2).to_data()
        for c, o in ((40, "0.1.25.9.0.255"), (8, "0.0.1.0.0.255"), (3, "1.0.1.8.0.255"))
    )
    recognised = recognise(axdr.structure(objects, axdr.octet_string(CLOCK), ENERGY))
    assert recognised.described
    assert (recognised.setup, recognised.clock) == ("0.1.25.9.0.255", CLOCK)
    assert recognised.readings[-1] == Reading("1.0.1.8.0.255", ENERGY)
    short = recognise(axdr.structure(objects, axdr.octet_string(CLOCK)))
    assert "3 objects are listed, 2 elements came" in short.warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        axdr.structure(),
        axdr.structure(axdr.array([axdr.structure(axdr.unsigned(1))])),
        axdr.structure(axdr.octet_string(b"KFM_001"), axdr.unsigned(1)),
        axdr.structure(axdr.unsigned(1)),
        axdr.unsigned(1),
        axdr.structure(
            axdr.array(
                [
                    axdr.structure(
                        axdr.long_unsigned(1), axdr.octet_string(b"x"), axdr.NULL, axdr.NULL
                    )
                ]
            )
        ),
    ],
)
def test_what_needs_a_schema_is_not_guessed(body: Data) -> None:
    assert recognise(body).readings == ()


def test_kaifa_lists_are_structures_of_a_known_list() -> None:
    other = axdr.structure(*[axdr.octet_string(b"XXX_001")] + [axdr.NULL] * 12)
    assert recognise(other).readings == ()
    assert recognise(axdr.array([ENERGY])).readings == ()


def test_one_number_is_only_taken_with_a_warning() -> None:
    recognised = recognise(axdr.structure(ENERGY))
    assert recognised.readings[0].obis == "1.0.1.7.0.255"
    assert "Kaifa list 1" in recognised.warnings[0]


DESCRIPTORS = bytes.fromhex(
    "0202 1601 0102 0202 00030100010800ff02 06000004d2 0202 0046000060030aff03 1601"
)


def test_descriptors_without_tags() -> None:
    body, warning = bodies.decode_body(DESCRIPTORS)
    assert warning
    assert found(body) == [("1.0.1.8.0.255", 1234, None, None), ("0.0.96.3.10.255", 1, None, None)]
    assert recognise(body).readings[1].attribute == 3
    for end in range(len(DESCRIPTORS)):
        if end == 12:
            continue  # where the octets happen to be proper A-XDR
        with pytest.raises(MalformedApdu):
            bodies.decode_body(DESCRIPTORS[:end])
    with pytest.raises(MalformedApdu):
        bodies.decode_body(DESCRIPTORS + b"\0")
    with pytest.raises(MalformedApdu):
        bodies.decode_body(DESCRIPTORS.replace(b"\x16\x01\x01\x02", b"\x16\x01\x02\x02"))
    with pytest.raises(MalformedApdu):
        bodies.decode_body(b"\x02\x02\x16\x01\x05")
    with pytest.raises(MalformedApdu):
        bodies.decode_body(DESCRIPTORS.replace(b"\xff\x02\x06", b"\xff\x00\x06"))


def test_date_times_are_recognised_by_their_fields() -> None:
    good = bytearray(CLOCK)
    assert bodies.looks_like_datetime(bytes(good))
    for position, value in (
        (0, 0x20),
        (2, 13),
        (3, 32),
        (4, 8),
        (5, 24),
        (6, 60),
        (7, 60),
        (8, 100),
        (9, 0x7F),
    ):
        wrong = bytearray(good)
        wrong[position] = value
        assert not bodies.looks_like_datetime(bytes(wrong)), position
    assert bodies.looks_like_datetime(b"\xff" * 9 + bytes.fromhex("8000ff"))
    assert not bodies.looks_like_datetime(b"181220000009")  # a serial of twelve digits
    assert not bodies.looks_like_datetime(CLOCK[:11])


def test_printable() -> None:
    assert bodies.printable(b"AB\0\0") == "AB"
    assert bodies.printable(b"\0") is None
    assert bodies.printable(b"A\x07") is None
