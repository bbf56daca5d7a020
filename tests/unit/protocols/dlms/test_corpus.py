"""The captured frames: reassembly, deciphering, every leaf, and what the sources themselves state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_core.domain import Secret
from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr, bodies
from edge_core.protocols.dlms.apdu import split_data_notification
from edge_core.protocols.dlms.decode import Decoded, Keys, decode

FRAMES = Path(__file__).parents[3] / "data" / "frames"
CASES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FRAMES.glob("*.json"))
}


def keys_of(case: dict[str, Any]) -> tuple[list[Keys], list[bytes]]:
    keys = case.get("keys") or {}
    if "encryption" not in keys:
        return [], []
    authentication = keys.get("authentication")
    titles = [keys[name] for name in keys if name.endswith("system_title")]
    return [
        Keys(
            Secret(bytes.fromhex(keys["encryption"])),
            Secret(bytes.fromhex(authentication)) if authentication else None,
        )
    ], [bytes.fromhex(title) for title in titles]


def captures(case: dict[str, Any]) -> list[tuple[list[str], str | None]]:
    """(frames, plain APDU) pairs of a case."""
    frames, plain = case.get("frames"), case.get("plain_apdu")
    if not frames:
        return []
    if isinstance(frames, dict):
        return [(value, plain if key == "general_glo" else None) for key, value in frames.items()]
    if isinstance(plain, list):
        return [([frame], one) for frame, one in zip(frames, plain, strict=True)]
    return [(frames, plain)]


def run(case: dict[str, Any], frames: list[str]) -> Decoded:
    keys, titles = keys_of(case)
    return decode([bytes.fromhex(frame) for frame in frames], keys, titles)


def leaves(value: Any) -> list[Any]:
    """Leaves of the printed value, octets and bits as text."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, dict):
        return [value.get("octets", value.get("bits"))]
    return [value]


def leaves_of_data(data: axdr.Data) -> list[Any]:
    value = data.value
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in leaves_of_data(item)]
    if isinstance(value, bytes):
        return [value.hex()]
    return [str(value) if isinstance(value, axdr.BitString) else value]


NO_APDU = {"amshan_hdlc_frame_short_info": "02"}
"""Frames whose information is no APDU."""


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if captures(c) and n not in NO_APDU])
def test_every_capture_decodes(name: str) -> None:
    case = CASES[name]
    for frames, plain in captures(case):
        document = run(case, frames)
        framing = case["framing"]
        if framing not in ("mixed", "axdr", "apdu"):
            assert document.framing == framing
        if plain is not None:
            assert document.plain_apdu == plain
        json.dumps(document.value, allow_nan=False)
        if plain is not None and plain.startswith("0f"):
            octets = bytes.fromhex(plain)
            body = axdr.decode_whole(octets, split_data_notification(octets)[2])
            assert leaves(document.value) == leaves_of_data(body)
            assert axdr.encode(body) == octets[split_data_notification(octets)[2] :]


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, c in CASES.items()
        if isinstance(c.get("expected_by_source"), dict)
        and "numbers_scaled" in c["expected_by_source"]
    ],
)
def test_readings_are_what_the_source_states(name: str) -> None:
    case = CASES[name]
    expected = case["expected_by_source"]
    (frames, _), *_ = captures(case)
    document = run(case, frames)
    readings = {r["obis"]: r for r in document.readings}
    for obis, number in expected["numbers_scaled"].items():
        reading = readings[obis]
        assert reading["value"] * 10 ** (reading["scaler"] or 0) == pytest.approx(number, rel=1e-9)
    for obis, text in expected["strings"].items():
        if obis in ("0.0.0.0.0.0", "0.1.1.0.0.255"):
            continue  # codes that the source made up for a list version and a header time
        if not text:
            continue  # the source gives logical names as empty text
        assert readings[obis]["value"] == text


@pytest.mark.parametrize("name", NO_APDU)
def test_information_that_is_no_apdu(name: str) -> None:
    with pytest.raises(MalformedApdu, match=f"APDU {NO_APDU[name]} is unknown"):
        run(CASES[name], CASES[name]["frames"])


def test_units_and_times_of_readings() -> None:
    case = CASES["dlmsparser_hdlc_iskra550"]
    document = run(case, case["frames"])
    reading = next(r for r in document.readings if r["obis"] == "1.0.32.7.0.255")
    assert reading == {
        "obis": "1.0.32.7.0.255",
        "value": 2364,
        "scaler": -1,
        "unit": "V",
        "time": "2023-04-01T21:32:35+02:00",
    }


@pytest.mark.parametrize(
    ("name", "count", "voltage"),
    [
        ("amshan_kaifa_no_list_1", 1, None),
        ("amshan_kaifa_no_list_2", 13, (2168, -1)),
        ("amshan_kaifa_no_list_3", 18, (2193, -1)),
        ("dlmsparser_hdlc_kaifa_ma304h3e", 13, (2385, -1)),
    ],
)
def test_lists_by_position(name: str, count: int, voltage: tuple[int, int] | None) -> None:
    case = CASES[name]
    readings = {r["obis"]: r for r in run(case, case["frames"]).readings}
    assert len(readings) == count
    assert readings["1.0.1.7.0.255"]["unit"] == "W"
    if voltage:
        found = readings["1.0.32.7.0.255"]
        assert (found["value"], found["scaler"]) == voltage


@pytest.mark.parametrize(
    ("name", "ciphered", "authenticated", "counter"),
    [
        ("dlmsparser_mbus_netz_noe_p1", True, False, 35),
        ("dlmsparser_hdlc_kamstrup_omnipower", True, True, 17784996),
        ("gurux_last_gasp_push", True, True, 7),
        ("amshan_kamstrup_se_hdlc", False, False, None),
    ],
)
def test_protection_is_told(
    name: str, ciphered: bool, authenticated: bool, counter: int | None
) -> None:
    case = CASES[name]
    frames = captures(case)[-1][0]
    document = run(case, frames)
    assert (document.ciphered, document.authenticated) == (ciphered, authenticated)
    assert document.invocation_counter == counter
    assert any("without a tag" in w for w in document.warnings) == (ciphered and not authenticated)


def test_bodies_that_are_not_axdr_keep_their_descriptors() -> None:
    case = CASES["dlmsparser_raw_egd_example"]
    octets = bytes.fromhex(case["frames"][0])
    body, warning = bodies.decode_body(octets, 6)
    assert "A-XDR" in warning
    recognised = bodies.recognise(body)
    assert len(recognised.readings) == 27
    assert recognised.readings[0].obis == "0.0.42.0.0.255"


def test_the_sources_are_named() -> None:
    text = (FRAMES / "SOURCES.md").read_text()
    for name, case in CASES.items():
        assert name in text
        assert case["source"]["licence"].startswith(("MIT", "Apache-2.0", "own data"))
