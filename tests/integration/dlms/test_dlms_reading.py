"""Reads on demand: partial failures stand beside what was read; the serial is checked; errors keep their text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edge_core.acquisition import second_opinion
from edge_core.acquisition.reading import Reading, read
from edge_core.acquisition.second_opinion import compare
from edge_core.config.models import load_model
from edge_core.config.schema import Meter as MeterConfig
from edge_core.errors import MeterRefused, WrongMeter
from edge_core.protocols.dlms import axdr
from simulators.dlms import objects
from tests.integration.dlms.conftest import Bench

pytestmark = pytest.mark.integration
Make = Callable[..., Any]


def config_of(b: Bench, **more: Any) -> MeterConfig:
    meter = b.meter
    return MeterConfig(
        id=meter.id, line=meter.line, model=meter.model, address=meter.address, **more
    )


async def reading(b: Bench, what: str, **more: Any) -> dict[str, Any]:
    driver = b.driver()
    try:
        return await read(
            driver,
            Reading(what=what),
            meter=config_of(b, **more),
            model=load_model(b.meter.model),
            clock=b.clock,
        )
    finally:
        await driver.close()


async def test_what_fails_in_part_prints_what_it_has(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await bench()
    b.meter.device.note_event(0, 101, int(b.clock.now()) - 500)
    honest = objects.read

    def without_log_1(*args: Any) -> bytes | int:
        return objects.DENIED if "0.0.99.98.1.255" in args else honest(*args)

    monkeypatch.setattr(objects, "read", without_log_1)
    document = await reading(b, "events")
    assert document["error"] == "MeterRefused"
    assert "0.0.99.98.1.255" in document["during"]
    assert document["message"]
    (block,) = document["blocks"]
    assert block["values"][0] == [101]
    assert block["t"] == [b.meter.device.rows["events-0"].times[0]]


async def test_all_event_logs(bench: Make) -> None:
    b = await bench()
    for log in (0, 3, 6):
        b.meter.device.note_event(log, 200 + log, int(b.clock.now()) - 500)
    document = await reading(b, "events")
    assert "error" not in document
    profiles = [document["layouts"][block["layout"]]["profile"] for block in document["blocks"]]
    assert profiles == [f"0.0.99.98.{log}.255" for log in (0, 3, 6)]
    document = await reading(b, "events-3")
    assert len(document["blocks"]) == 1


async def test_another_serial_is_not_read(bench: Make) -> None:
    b = await bench()
    with pytest.raises(WrongMeter, match="expected '4711'"):
        await reading(b, "interval", serial="4711")
    assert (await reading(b, "clock", serial=b.meter.device.serial))["registers"]


async def test_a_read_that_there_is_not(bench: Make) -> None:
    b = await bench()
    with pytest.raises(MeterRefused):
        await reading(b, "moonlight")


async def test_the_request_is_read_from_json() -> None:
    wanted = msgspec.convert(
        {"do": "read", "what": "billing", "from": 5, "to": 9, "meter": "m"}, Reading
    )
    assert (wanted.what, wanted.since, wanted.until) == ("billing", 5, 9)


@pytest.mark.peer
async def test_a_second_opinion_names_what_differs() -> None:
    values = [
        ("GET a", axdr.encode(axdr.double_long_unsigned(5))),
        ("GET b", axdr.encode(axdr.structure(axdr.octet_string(b"abc"), axdr.integer(-3)))),
        ("GET c", axdr.encode(axdr.bits("0101"))),  # not implemented there
        ("GET d", b"\x06\x00\x00\x00\x05\x00"),  # one octet too many: refused by us
    ]
    opinion = await compare(values)
    assert opinion["not_understood"] >= 1
    assert opinion["compared"] + opinion["not_understood"] == 4
    assert [d for d in opinion["differences"] if "GET d" not in d] == []


@pytest.mark.peer
async def test_a_peer_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "TIMEOUT_S", 3.0)
    opinion = await compare(
        [("GET a", b"\x06\x00\x00\x00\x05"), ("GET b", b"\x13\x01"), ("GET c", b"\x12\x00")]
    )
    assert opinion["compared"] >= 1
    assert opinion["differences"] == []
