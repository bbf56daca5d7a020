"""Each quirk that a meter model may have: read against a meter that has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.config.models import DlmsModel, Quirks, load_model
from edge_core.domain import Secret
from edge_core.errors import LineSilent, MalformedReply, MeterRefused
from edge_core.protocols.hdlc.frame import Frame, FrameReader, Kind
from edge_core.protocols.hdlc.parameters import parse_parameters
from simulators.dlms.session import Session
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]


def model_with(name: str, *, release: str = "", profile: dict[str, Any] | None = None, **quirks: Any) -> DlmsModel:  # fmt: skip
    model = load_model(name)
    assert isinstance(model, DlmsModel)
    assert set(quirks) <= set(Quirks.__struct_fields__)
    change = msgspec.structs.replace
    profiles = {k: change(p, **(profile or {})) for k, p in model.profiles.items()}
    association = change(model.association, **({"release": release} if release else {}))
    return change(
        model,
        association=association,
        profiles=profiles,
        quirks=change(model.quirks, **quirks),
    )


async def interval(b: Bench, since: int | None = None, **changes: Any) -> list[tuple[Any, ...]]:
    driver = b.driver(**changes)
    try:
        return rows_of(list(await driver.read_profile(ProfileRequest("interval", since=since))))
    finally:
        await driver.close()


async def test_several_attributes_at_once_take_less_exchanges(bench: Make) -> None:
    b = await bench(model="idis")
    b.meter.freeze()
    assert await interval(b) == truth_of(b.meter, "interval")
    one_by_one = len(b.frames)
    b.memories.clear()
    b.frames.clear()
    listed = await interval(b, model=model_with("idis", get_with_list=True))
    assert listed == truth_of(b.meter, "interval")
    assert len(b.frames) <= one_by_one - 6, "four scalers, period and sort method"
    assert b.fleet.record.violations == 0


@pytest.mark.parametrize(
    ("quirks", "second", "weekday", "deviation"),
    [({}, None, False, False), ({"second_in_range": True}, 0, False, False),
     ({"bare_range_time": True}, None, True, True)],
    ids=["usual", "second 0", "bare"],
)  # fmt: skip
async def test_the_style_of_times_in_a_range(
    bench: Make, quirks: dict[str, bool], second: int | None, weekday: bool, deviation: bool
) -> None:
    b = await bench()
    b.meter.freeze()
    model = model_with("is15959-3ph", **quirks)
    since = truth_of(b.meter, "interval")[50][0] + 7
    assert await interval(b, since, model=model) == truth_of(b.meter, "interval", since)
    driver: Any = b.driver(model=model)
    selector = driver._range(since, since + 900, model.profiles["interval"], 900)
    for bound in (selector.start, selector.end):
        octets = bound.value
        assert second is None or octets[7] == second
        assert (octets[4] == 0xFF) == weekday
        assert (octets[9:11] == b"\x80\x00") == deviation


@pytest.mark.parametrize("quirks", [("newest-first",), ()])
async def test_entries_are_counted_from_the_newest_or_the_oldest(
    bench: Make, quirks: tuple[str, ...]
) -> None:
    b = await bench(quirks=quirks)
    b.meter.freeze()
    base = "newest" if quirks else "oldest"
    model = model_with("is15959-3ph", profile={"range": "entry", "entry_base": base})
    since = truth_of(b.meter, "interval")[-10][0]
    assert await interval(b, since, model=model) == truth_of(b.meter, "interval", since)
    assert await interval(b, model=model) == truth_of(b.meter, "interval")


async def test_a_release_that_is_ciphered(bench: Make) -> None:
    b = await bench()
    driver = b.driver(model=model_with("is15959-3ph", release="rlrq-ciphered"))
    await driver.identify()
    await driver.close()
    sent = [octets[8:] for way, octets in b.frames if way == "send"]
    assert sent[-1][0] == 0x62
    assert b"\xbe" in sent[-1]
    assert b"\x04" in sent[-1]
    assert b"\x21" in sent[-1], "an initiate-request under the global key"
    answered = [octets[8:] for way, octets in b.frames if way == "receive"]
    assert answered[-1][0] == 0x63
    assert b.fleet.record.violations == 0


async def test_a_counter_that_begins_anew_with_each_association(bench: Make) -> None:
    b = await bench()
    b.meter.freeze()
    await interval(b)
    counters = b.meter.counters()

    def restart() -> None:
        counters._record.store(counters._place, 3, 0)

    restart()
    with pytest.raises(MalformedReply, match="counter"):
        await interval(b)
    restart()
    model = model_with("is15959-3ph", counter_restarts=True)
    assert await interval(b, model=model) == truth_of(b.meter, "interval")


async def test_a_meter_that_wants_a_pause_between_two_sessions(bench: Make) -> None:
    b = await bench()
    model = model_with("is15959-3ph", link_pause_s=0.25)
    time = asyncio.get_running_loop().time
    driver = b.driver(model=model)
    await driver.identify()
    await driver.close()
    ended = time()
    b.frames.clear()
    driver = b.driver(model=model)
    task = asyncio.create_task(driver.identify())
    while not b.frames:
        await asyncio.sleep(0)
    assert time() - ended > 0.2
    await task
    await driver.close()


async def test_a_meter_that_says_nothing_to_a_low_counter_is_compared_before_it_is_asked_again(
    bench: Make,
) -> None:
    """Some answer a low counter with nothing: whoever is silent to an AARQ is next asked for its counter, in the clear."""
    b = await bench()
    await interval(b)
    fingerprint = Secret(b.meter.keys.guek).fingerprint()
    ours = b.counters.current(b.site.title, fingerprint)
    assert ours is not None
    b.meter.faults.begin("silent", b.clock.monotonic() + 3600)
    driver = b.driver(timeout_s=1.5)
    with pytest.raises(LineSilent) as silent:
        await driver.identify()
    assert silent.value.during == "AARQ"
    await driver.close()
    b.meter.faults.end("silent")
    b.meter.counters().accept(ours + 1000)
    before = b.fleet.record.violations
    b.frames.clear()
    assert await interval(b)
    first = next(octets for way, octets in b.frames if way == "send")
    assert int.from_bytes(first[2:4], "big") == 16, "the public client"
    assert b.fleet.record.violations == before


def frames_of(b: Bench, way: str) -> list[Frame]:
    reader = FrameReader()
    reader.feed(b"".join(octets for towards, octets in b.frames if towards == way))
    found = []
    while (frame := reader.next()) is not None:
        found.append(frame)
    return found


async def test_windows_of_several_frames(bench: Make) -> None:
    """One RR acknowledges so many frames as the meter may send at once."""
    b = await bench(framing="hdlc", pdu=4096)
    b.meter.freeze()
    acknowledged = {}
    for window in (1, 3):
        b.frames.clear()
        model = model_with("is15959-3ph", hdlc_window=window)
        assert await interval(b, model=model) == truth_of(b.meter, "interval")
        acknowledged[window] = sum(frame.kind is Kind.RR for frame in frames_of(b, "send"))
        ua = [f for f in frames_of(b, "receive") if f.kind is Kind.UA and f.information][-1]
        assert parse_parameters(ua.information).window_send == window
    assert acknowledged[1] > 2 * acknowledged[3] > 0
    assert b.fleet.record.violations == 0


@pytest.mark.parametrize("keyed", [True, False], ids=["sealed", "in the clear"])
async def test_what_a_meter_says_instead_of_an_answer_is_told_in_words(
    bench: Make, keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exception-response and confirmed-service-error, from the meter to the text of the error."""
    b = await bench(security="hls5" if keyed else "lls")
    honest = Session.handle
    for octets, words in (
        (b"\xd8\x01\x02", "exception-response: service-not-allowed: service-not-supported"),
        (b"\xd8\x02\x03", "exception-response: service-unknown: other-reason"),
        (b"\x0e\x05\x05\x01", "confirmed-service-error: read: access: scope-of-access-violated"),
    ):
        driver = b.driver()
        await driver.identify()
        monkeypatch.setattr(Session, "handle", lambda self, apdu, o=octets: o)
        with pytest.raises(MeterRefused) as refused:
            await driver.read_registers("clock")
        assert words in str(refused.value)
        assert "in the clear" in refused.value.hint
        monkeypatch.setattr(Session, "handle", honest)
        await driver.close()
