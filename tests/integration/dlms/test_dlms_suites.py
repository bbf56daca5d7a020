"""Suites 1 and 2 over real sockets: AES-128 and AES-256, HLS 5 to 7, every key-info, signatures, and what is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from edge_core.acquisition.causes import refusal_of
from edge_core.acquisition.drivers import ProfileRequest
from edge_core.config.models import DlmsModel, load_model
from edge_core.domain import Secret
from edge_core.errors import KeyRejected, MalformedReply, MeterError, MeterRefused
from edge_core.health import events
from edge_core.health.metrics import REGISTRY
from tests.integration.dlms.conftest import Bench, keys_of, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]
HOURS = 6 * 3600
"""Of history: enough for several blocks at the PDU size used here."""


def model(**association: Any) -> DlmsModel:
    """The Indian three-phase model under another security suite."""
    plain = load_model("is15959-3ph")
    assert isinstance(plain, DlmsModel)
    return msgspec.structs.replace(
        plain, association=msgspec.structs.replace(plain.association, **association)
    )


async def read(b: Bench, **changes: Any) -> set[int]:
    """Read the interval profile whole, compare it with what the meter holds; tags of what we sent."""
    b.meter.freeze()
    driver = b.driver(**changes)
    try:
        blocks = list(await driver.read_profile(ProfileRequest("interval")))
    finally:
        await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval")
    assert b.fleet.record.violations == 0
    return {octets[8] for way, octets in b.frames if way == "send"}


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("security", ["hls5", "hls6", "hls7"])
@pytest.mark.parametrize("ciphering", ["glo", "general-ded"])
async def test_suites_and_mechanisms(
    bench: Make, suite: int, security: str, ciphering: str
) -> None:
    b = await bench(suite=suite, security=security, history_s=HOURS)
    tags = await read(b, model=model(suite=suite, security=security, ciphering=ciphering))
    assert {"glo": 0xC8, "general-ded": 0xDC}[ciphering] in tags
    assert b.meter.contacts == 1


@pytest.mark.parametrize("suite", [1, 2])
async def test_hls_7_without_ciphering(bench: Make, suite: int) -> None:
    b = await bench(suite=suite, security="hls7", history_s=HOURS)
    plain = model(suite=suite, security="hls7", ciphering="none", protection="none")
    assert 0xC0 in await read(b, model=plain)


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("key_info", ["none", "identified", "wrapped", "one-pass", "static"])
async def test_general_ciphering(bench: Make, suite: int, key_info: str) -> None:
    b = await bench(suite=suite, security="hls7", pdu=256, history_s=HOURS)
    tags = await read(
        b,
        model=model(suite=suite, security="hls7", ciphering="general-ciphering", key_info=key_info),
    )
    assert tags == {0x60, 0xDD, 0xC0}  # the last by the public client


@pytest.mark.parametrize("key_info", ["none", "identified"])
async def test_general_ciphering_in_suite_0(bench: Make, key_info: str) -> None:
    b = await bench()
    tags = await read(b, model=model(ciphering="general-ciphering", key_info=key_info))
    assert 0xDD in tags


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("ciphering", ["none", "glo", "general-ciphering"])
async def test_general_signing(bench: Make, suite: int, ciphering: str) -> None:
    b = await bench(suite=suite, security="hls7", history_s=HOURS)
    terms = {"ciphering": ciphering, "key_info": "one-pass", "signed": True}
    if ciphering == "none":
        terms["protection"] = "none"
    tags = await read(b, model=model(suite=suite, security="hls7", **terms))
    assert tags - {0xC0} == {0x60, 0xDF}


async def test_no_key_of_a_message_is_in_a_frame_or_an_error(bench: Make) -> None:
    b = await bench(suite=1, security="hls7", history_s=HOURS)
    await read(
        b, model=model(suite=1, security="hls7", ciphering="general-ciphering", key_info="static")
    )
    for secret in keys_of(b.meter).secrets():
        assert all(secret.reveal() not in octets for _, octets in b.frames)


# --- what is refused


@pytest.mark.parametrize("name", ["sign", "meter_sign", "agree", "meter_agree", "master"])
async def test_a_missing_key_is_named_before_the_line_is_opened(bench: Make, name: str) -> None:
    b = await bench(suite=1, security="hls7", history_s=HOURS)
    key_info = "wrapped" if name == "master" else "one-pass"
    wanted = model(suite=1, security="hls7", ciphering="general-ciphering", key_info=key_info)
    driver = b.driver(model=wanted, keys=msgspec.structs.replace(keys_of(b.meter), **{name: None}))
    with pytest.raises(KeyRejected, match=f"the key {name} is missing"):
        await driver.identify()
    await driver.close()
    assert not any(octets[8] == 0xDD for way, octets in b.frames if way == "send")


@pytest.mark.parametrize(
    ("name", "octets"),
    [("sign", b"\xff" * 32), ("meter_sign", bytes(64)), ("agree", bytes(31))],
    ids=["sign", "meter_sign", "agree"],
)
async def test_a_key_that_is_none_is_named_and_not_shown(
    bench: Make, name: str, octets: bytes
) -> None:
    b = await bench(suite=1, security="hls7", history_s=HOURS)
    keys = msgspec.structs.replace(keys_of(b.meter), **{name: Secret(octets)})
    driver = b.driver(model=model(suite=1, security="hls7"), keys=keys)
    with pytest.raises(KeyRejected, match=f"the key {name}") as refused:
        await driver.identify()
    await driver.close()
    assert octets.hex()[:16] not in str(refused.value)


@pytest.mark.parametrize("name", ["sign", "meter_sign"])
async def test_another_key_pair_is_tried_once(bench: Make, name: str) -> None:
    b = await bench(suite=1, security="hls7", history_s=HOURS)
    keys = keys_of(b.meter)
    other = {"sign": Secret(b"\0" + bytes(30) + b"\7"), "meter_sign": keys.meter_agree}[name]
    driver = b.driver(
        model=model(suite=1, security="hls7"), keys=msgspec.structs.replace(keys, **{name: other})
    )
    with pytest.raises(KeyRejected, match="Check sign and meter_sign"):
        await driver.identify()
    await driver.close()
    notes = b.fleet.record.path.read_text()
    assert notes.count("hls-wrong") == (1 if name == "sign" else 0)
    aarqs = [octets for way, octets in b.frames if way == "send" and octets[8] == 0x60]
    assert len(aarqs) == 2  # the public client for the counter, then one attempt


@pytest.mark.parametrize("suite", [0, 2])
async def test_another_suite_than_the_meter_s(bench: Make, suite: int) -> None:
    b = await bench(suite=1)
    keys = keys_of(b.meter)
    if suite == 2:
        keys = msgspec.structs.replace(keys, guek=Secret(bytes(32)), gak=Secret(bytes(32)))
    driver = b.driver(model=model(suite=suite), keys=keys)
    with pytest.raises(MeterError):
        await driver.identify()
    await driver.close()
    assert "less-protection" in b.fleet.record.path.read_text()


async def test_a_meter_without_general_protection(bench: Make) -> None:
    b = await bench(suite=1, security="hls7", quirks=("service-glo-only",))
    driver = b.driver(model=model(suite=1, security="hls7", ciphering="general-ciphering"))
    with pytest.raises(MeterRefused, match="does not offer general-protection"):
        await driver.identify()
    await driver.close()


GENERAL = {"suite": 1, "security": "hls7", "ciphering": "general-ciphering"}


@pytest.mark.parametrize(
    ("fault", "association", "counted"),
    [
        ("wrong-tag", {}, "tag-invalid"),
        ("plain", {}, "downgraded"),
        ("weaker", {}, "downgraded"),
        ("replay", {}, "replayed"),
        ("wrong-invoke", {}, "wrong-invoke-id"),
        ("wrong-tag", GENERAL | {"key_info": "one-pass"}, "tag-invalid"),
        ("plain", GENERAL | {"key_info": "identified"}, "downgraded"),
        ("weaker", GENERAL | {"key_info": "static"}, "downgraded"),
        ("replay", GENERAL | {"key_info": "one-pass"}, "replayed"),
        ("replay", GENERAL | {"key_info": "static"}, "replayed"),
        ("replay", GENERAL | {"key_info": "wrapped"}, "replayed"),
        ("wrong-invoke", GENERAL | {"key_info": "one-pass"}, "wrong-invoke-id"),
        ("unsigned", GENERAL | {"signed": True}, "downgraded"),
        ("replay", GENERAL | {"signed": True}, "replayed"),
        (
            "replay",
            {"suite": 1, "security": "hls7", "ciphering": "none", "protection": "none"}
            | {"signed": True},
            "replayed",
        ),
    ],
)
async def test_answers_that_are_less_old_or_another_s_are_refused(
    bench: Make, fault: str, association: dict[str, Any], counted: str
) -> None:
    b = await bench(suite=association.get("suite", 0), security=association.get("security", "hls5"))
    driver = b.driver(model=model(**association))
    assert (await driver.identify()).serial == b.meter.device.serial
    b.meter.faults.begin(fault, b.meter.clock.monotonic() + 60)
    before = events.REFUSED.value(counted)
    with pytest.raises(MalformedReply) as refused:
        await driver.read_profile(ProfileRequest("interval"))
    await driver.close()
    assert refusal_of(refused.value.__cause__) == counted
    assert events.REFUSED.value(counted) == before + 1
    assert f'opendcu_acquisition_refused_answers_total{{cause="{counted}"}}' in REGISTRY.text()
    b.meter.faults.end(fault)
    again = b.driver(model=model(**association))
    assert (await again.identify()).serial == b.meter.device.serial
    await again.close()
