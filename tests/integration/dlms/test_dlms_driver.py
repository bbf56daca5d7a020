"""The DLMS driver against simulated meters on real sockets: every row exactly, every fault named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.drivers.dlms import session as session_module
from edge_core.config.keys import MeterKeys
from edge_core.config.models import load_model
from edge_core.config.schema import Line
from edge_core.domain import Flag, Secret
from edge_core.errors import KeyRejected, LineSilent, MalformedReply, MeterError, MeterRefused
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

pytestmark = pytest.mark.integration
Make = Callable[..., Any]


async def read_all(bench: Bench, kinds: tuple[str, ...], **changes: Any) -> dict[str, list[Any]]:
    driver = bench.driver(**changes)
    try:
        await driver.identify()
        return {kind: list(await driver.read_profile(ProfileRequest(kind))) for kind in kinds}
    finally:
        await driver.close()


@pytest.mark.parametrize(
    "group",
    [
        {},
        {"pdu": 256},
        {"quirks": ("null-data",)},
        {"quirks": ("newest-first",)},
        {"quirks": ("no-selection",)},
        {"quirks": ("service-glo-only",)},
        {"framing": "hdlc"},
        {"framing": "hdlc", "pdu": 200},
        {"security": "hls2"},
        {"security": "lls"},
        {"security": "lls", "framing": "hdlc"},
        {"model": "idis"},
        {"model": "idis", "quirks": ("null-data", "newest-first")},
        {"model": "idis", "framing": "hdlc", "security": "hls2"},
    ],
    ids=lambda g: "-".join(str(v) for v in g.values()) or "usual",
)
async def test_every_row_as_the_meter_holds_it(bench: Make, group: dict[str, Any]) -> None:
    b = await bench(**group)
    meter = b.meter
    meter.freeze()
    kinds = tuple(load_model(meter.model).profiles)
    kinds = tuple(k for k in kinds if meter.layout.profile(k) is not None)
    assert "interval" in kinds
    assert "midnight" in kinds
    for log in (0, 1):
        for code in (101, 102):
            meter.device.note_event(log, code, int(meter.clock.now()) - 1000 * code)
    found = await read_all(b, kinds)
    for kind in kinds:
        assert rows_of(found[kind]) == truth_of(meter, kind), kind
    unauthenticated = meter.security in ("lls", "hls2")
    for block in found["interval"]:
        assert block.device == meter.device.serial
        assert block.multiplier == 1
        assert any(bits & Flag.UNAUTHENTICATED for _, _, bits in block.flags) == unauthenticated
    assert b.fleet.record.violations == 0


async def test_status_column_becomes_flags(bench: Make) -> None:
    b = await bench(model="idis")
    device = b.meter.device
    device.power_off(b.clock.now() - 7200)
    device.power_on(b.clock.now() - 3600)
    b.meter.freeze()
    (block,) = (await read_all(b, ("interval",)))["interval"]
    truth = {
        r: bits
        for first, n, bits in device.truth("interval")["flags"]
        for r in range(first, first + n)
    }
    got = {r: bits for first, n, bits in block.flags for r in range(first, first + n)}
    assert got == truth
    assert got


async def test_a_warm_visit_takes_five_exchanges(bench: Make) -> None:
    b = await bench()
    await read_all(b, ("interval", "midnight"))
    b.frames.clear()
    driver = b.driver()
    await driver.identify()
    offset = await driver.clock_offset()
    assert offset is not None
    assert abs(offset) < 2
    since = int(b.clock.now()) - 3600
    await driver.read_profile(ProfileRequest("interval", since=since))
    await driver.read_profile(ProfileRequest("midnight", since=since))
    await driver.close()
    sent = [direction for direction, _ in b.frames].count("send")
    assert sent == 5  # AARQ, pass 3, clock, two profiles; the end of the connection releases


async def test_the_second_contact_does_not_ask_the_public_client(bench: Make) -> None:
    b = await bench()
    for expected in (True, False):
        b.frames.clear()
        driver = b.driver()
        await driver.identify()
        await driver.close()
        public = b"\x00\x01\x00\x10\x00\x01"
        assert any(octets.startswith(public) for _, octets in b.frames) is expected


async def test_ranges_by_time_and_by_entry(bench: Make) -> None:
    b = await bench()
    b.meter.freeze()
    everything = truth_of(b.meter, "interval")
    low, high = everything[100][0], everything[120][0]
    driver = b.driver()
    for by_entry in (False, True):
        request = ProfileRequest("interval", since=low, until=high, by_entry=by_entry)
        assert rows_of(list(await driver.read_profile(request))) == everything[100:121]
        request = ProfileRequest("interval", since=low + 1, by_entry=by_entry)
        assert rows_of(list(await driver.read_profile(request))) == everything[101:]
        request = ProfileRequest("interval", until=high - 1, by_entry=by_entry)
        assert rows_of(list(await driver.read_profile(request))) == everything[:120]
    await driver.close()


async def test_a_range_that_leaves_out_its_begin(bench: Make) -> None:
    b = await bench(quirks=("range-open",))
    b.meter.freeze()
    everything = truth_of(b.meter, "interval")
    model = load_model("is15959-3ph")
    interval = msgspec.structs.replace(model.profiles["interval"], range="exclusive")
    model = msgspec.structs.replace(model, profiles={**model.profiles, "interval": interval})
    driver = b.driver(model=model)
    blocks = await driver.read_profile(ProfileRequest("interval", since=everything[50][0]))
    await driver.close()
    assert rows_of(list(blocks)) == everything[50:]


async def test_a_long_history_comes_in_several_requests(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_core.acquisition.drivers.dlms import driver as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 50)
    b = await bench()
    b.meter.freeze()
    everything = truth_of(b.meter, "interval")
    for by_entry in (False, True):
        driver = b.driver()
        await driver.identify()
        b.frames.clear()
        blocks = list(await driver.read_profile(ProfileRequest("interval", by_entry=by_entry)))
        assert rows_of(blocks) == everything
        assert len(blocks) >= 4
        since = everything[7][0]
        blocks = list(
            await driver.read_profile(ProfileRequest("interval", since=since, by_entry=by_entry))
        )
        assert rows_of(blocks) == everything[7:]
        await driver.close()


async def test_a_clock_set_back_repeats_times_and_none_is_lost(bench: Make) -> None:
    b = await bench()
    meter = b.meter
    meter.capture()
    meter.device.set_clock(b.clock.now(), int(b.clock.now()) - 5 * 900)
    meter.device.capture(b.clock.now() + 4 * 900)
    meter.freeze()
    everything = truth_of(meter, "interval")
    assert any(k for _, k, _ in everything)
    driver = b.driver()
    since = everything[-12][0]
    blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
    offset = await driver.clock_offset()
    await driver.close()
    assert rows_of(blocks) == [row for row in everything if row[0] >= since]
    assert offset is not None
    assert offset == pytest.approx(-4500, abs=2)


async def test_setting_the_clock(bench: Make) -> None:
    b = await bench()
    meter = b.meter
    meter.device.set_clock(b.clock.now(), int(b.clock.now()) - 100)
    driver = b.driver()
    before = await driver.set_clock()  # type: ignore[attr-defined]
    assert before == pytest.approx(-100, abs=2)
    assert abs(await driver.clock_offset() or 99) < 2
    await driver.close()
    assert abs(meter.device.offset) < 2


async def test_a_client_that_may_not_set_the_clock(bench: Make) -> None:
    b = await bench(security="none")
    driver = b.driver()
    with pytest.raises(MeterRefused, match="does not offer SET"):
        await driver.set_clock()  # type: ignore[attr-defined]
    await driver.close()


async def test_single_values(bench: Make) -> None:
    b = await bench()
    driver = b.driver()
    nameplate = {r.name: r.value for r in await driver.read_registers("nameplate")}
    assert nameplate["serial"] == b.meter.device.serial
    assert nameplate["maker"] == "OPEN METERS"
    assert nameplate["year"] == 2024
    (clock,) = await driver.read_registers("clock")
    assert clock.unit == "epoch"
    assert abs(int(clock.value or 0) - b.clock.now()) < 2
    (energy,) = await driver.read_registers("1.0.9.8.0.255")
    assert (energy.scaler, energy.unit, energy.attribute) == (1, "VAh", 2)
    (period,) = await driver.read_registers("1.0.99.1.0.255:4")
    assert period.value == 900
    now = await driver.read_registers("instantaneous")
    assert {"1.0.32.7.0.255", "1.0.14.7.0.255", "1.0.1.8.0.255"} <= {r.obis for r in now}
    assert all(isinstance(r.value, int) for r in now)
    with pytest.raises(MeterRefused, match="object-undefined"):
        await driver.read_registers("1.0.99.99.0.255:2")
    assert (await driver.read_registers("clock"))[
        0
    ].unit == "epoch"  # a no does not end the association
    for what in ("sunshine", "1.0.1.8.0.256", "1.0.1.8.0.255:400"):
        with pytest.raises(MeterRefused, match="no such read"):
            await driver.read_registers(what)
    with pytest.raises(MeterRefused, match="has no profile"):
        await driver.read_profile(ProfileRequest("events-9"))
    await driver.close()


async def test_instantaneous_without_such_a_profile(bench: Make) -> None:
    b = await bench(model="idis")
    driver = b.driver()
    now = {r.obis: r for r in await driver.read_registers("instantaneous")}
    await driver.close()
    assert now["1.0.32.7.0.255"].unit == "V"
    assert now["1.0.31.7.0.255"].scaler == -2


async def test_another_device_is_noticed_and_proven_anew(bench: Make) -> None:
    b = await bench()
    await read_all(b, ("interval",))
    first = b.memories[b.meter.id]["identity"]
    b.meter.swap()
    driver = b.driver()
    device = await driver.identify()
    await driver.read_profile(ProfileRequest("interval"))
    await driver.close()
    assert device.serial == b.meter.device.serial != first["serial"]
    assert device.title == b.meter.device.title
    assert b.memories[b.meter.id]["proof.interval"][0] == device.serial


async def test_a_layout_that_no_longer_fits_is_proven_again(bench: Make) -> None:
    b = await bench()
    b.meter.freeze()
    await read_all(b, ("interval",))
    memory = b.memories[b.meter.id]
    stale = memory["profile.interval"]
    del stale["objects"][4]
    memory.put("profile.interval", stale)
    found = await read_all(b, ("interval",))
    assert rows_of(found["interval"]) == truth_of(b.meter, "interval")
    assert len(memory["profile.interval"]["objects"]) == len(stale["objects"]) + 1


async def test_what_an_older_release_remembered_is_read_again(bench: Make) -> None:
    b = await bench()
    b.meter.freeze()
    driver = b.driver()
    b.memories[b.meter.id].put("profile.interval", {"objects": 7})
    b.memories[b.meter.id].put("identity", ["nonsense"])
    blocks = list(await driver.read_profile(ProfileRequest("interval")))
    await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval")


@pytest.mark.parametrize("mode_e", [False, True])
async def test_hdlc_on_a_serial_line(bench: Make, mode_e: bool) -> None:
    """A pseudo-terminal in front of the meter: what a USB adapter or an optical head is to us."""
    import os
    import tty

    b = await bench(framing="hdlc")
    meter = b.meter
    meter.freeze()
    adapter, port = os.openpty()
    tty.setraw(adapter)
    tty.setraw(port)
    reader, writer = await asyncio.open_connection(meter.host, meter.port)
    loop = asyncio.get_running_loop()
    signed_on: list[bytes] = []

    def forth() -> None:
        octets = os.read(adapter, 4096)
        if mode_e and octets.startswith(b"/?!"):
            os.write(adapter, octets + b"/LGZ5E450\r\n")  # an optical head echoes
        elif mode_e and octets.startswith(b"\x06"):
            signed_on.append(octets)
        else:
            writer.write(octets)

    loop.add_reader(adapter, forth)

    async def back() -> None:
        while octets := await reader.read(4096):
            os.write(adapter, octets)

    pump = asyncio.create_task(back())
    line = Line(
        id="bus-1", transport="serial", framing="hdlc", device=os.ttyname(port), mode_e=mode_e
    )
    try:
        for _ in range(2):  # the port is free again after a visit
            driver = b.driver(line=line, address=f"{meter.hdlc[0]}.{meter.hdlc[1]}")
            since = truth_of(meter, "interval")[-8][0]
            blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
            await driver.close()
            assert rows_of(blocks) == truth_of(meter, "interval", since)
        assert set(signed_on) == ({b"\x06252\r\n"} if mode_e else set())
    finally:
        loop.remove_reader(adapter)
        pump.cancel()
        writer.close()
        os.close(adapter)
        os.close(port)


# --- faults


async def failing(b: Bench, **changes: Any) -> MeterError:
    driver = b.driver(**changes)
    try:
        await driver.identify()
        await driver.clock_offset()
        await driver.read_profile(ProfileRequest("interval"))
    except MeterError as error:
        return error
    finally:
        await driver.close()
    pytest.fail("the read went well")


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("silent", LineSilent),
        ("refuse", LineSilent),
        ("garbage", (MalformedReply, LineSilent)),
        ("cut", (LineSilent, MalformedReply)),
        ("wrong-tag", MalformedReply),
    ],
)
@pytest.mark.parametrize("framing", ["wrapper", "hdlc"])
async def test_faults_of_the_line(bench: Make, fault: str, kinds: Any, framing: str) -> None:
    b = await bench(framing=framing)
    await read_all(b, ("interval",))
    b.meter.faults.begin(fault, time.monotonic() + 60)
    error = await failing(b, timeout_s=0.3)
    assert isinstance(error, kinds), error
    assert error.meter == b.meter.id
    assert error.during
    assert b.meter.host in error.line
    b.meter.faults.end(fault)
    b.meter.freeze()
    found = await read_all(b, ("interval",))
    assert rows_of(found["interval"]) == truth_of(b.meter, "interval")
    assert b.fleet.record.violations == 0


async def test_slow_answers_arrive(bench: Make) -> None:
    b = await bench()
    b.meter.freeze()
    await read_all(b, ("interval",))
    b.meter.faults.begin("slow", time.monotonic() + 60)
    since = truth_of(b.meter, "interval")[-4][0]
    driver = b.driver(timeout_s=0.5)
    blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
    await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval", since)


async def test_nobody_listens(bench: Make) -> None:
    b = await bench()
    error = await failing(b, address="127.0.0.1:1")
    assert isinstance(error, LineSilent)
    assert error.during == "connect"


@pytest.mark.parametrize("security", ["hls5", "hls2", "lls"])
async def test_wrong_keys_stop_and_never_loop(bench: Make, security: str) -> None:
    b = await bench(security=security)
    keys = MeterKeys(
        guek=Secret(bytes(16)),
        gak=Secret(bytes(16)),
        password=Secret(b"wrong"),
        hls=Secret(bytes(16)),
    )
    error = await failing(b, keys=keys)
    assert isinstance(error, KeyRejected)
    assert error.hint
    text = "".join(octets.hex() for _, octets in b.frames)
    assert (
        text.count(
            "60857405080202"
            if security == "hls2"
            else "60857405080201"
            if security == "lls"
            else "60857405080205"
        )
        <= 2
    )
    assert bytes(16).hex() not in str(error)


async def test_a_key_that_is_missing(bench: Make) -> None:
    b = await bench()
    error = await failing(b, keys=MeterKeys())
    assert isinstance(error, KeyRejected)
    assert "guek is missing" in str(error)


async def test_a_counter_that_others_used_up_is_read_once_more(bench: Make) -> None:
    b = await bench()
    await read_all(b, ("interval",))
    counters = b.meter.counters()
    accepted = counters.accepted(reading=False)
    driver = b.driver()
    await driver.identify()
    await driver.close()
    other = b.site.title
    b.site = type(b.site)(b"ODCtest2", "Asia/Kolkata")  # another head end with the same key
    b.counters.raise_to(
        b"ODCtest2", Secret(b.meter.keys.guek).fingerprint(), accepted + 5000
    ).result(5)
    driver = b.driver()
    await driver.identify()
    await driver.close()
    b.site = type(b.site)(other, "Asia/Kolkata")
    before = b.fleet.record.violations
    driver = b.driver()
    device = await driver.identify()
    assert device.serial == b.meter.device.serial
    ((code, detail),) = driver.notices  # type: ignore[attr-defined]
    assert code == "foreign-client"
    assert detail["theirs"] >= detail["ours"]
    await driver.close()
    assert b.fleet.record.violations == before + 1  # the one refused try that told us


async def test_a_counter_near_the_end_is_not_believed(bench: Make) -> None:
    b = await bench()
    b.meter.counters().accept(2**32 - 10)
    error = await failing(b)
    assert isinstance(error, KeyRejected)
    assert "near the end" in str(error)
    fingerprint = Secret(b.meter.keys.guek).fingerprint()
    assert b.counters.current(b.site.title, fingerprint) is None  # ours did not follow
    b.meter.counters().accept(5)
    driver = b.driver()
    assert (await driver.identify()).serial
    await driver.close()


async def test_a_lost_counter_file_jumps(bench: Make) -> None:
    b = await bench()
    b.counters.was_created = False  # so many meters: a restart came before this one was visited
    driver = b.driver()
    await driver.identify()
    await driver.close()
    assert b.meter.counters().accepted(reading=False) > session_module.COUNTER_JUMP


async def test_cancelled_visits_release_the_line(bench: Make) -> None:
    b = await bench()
    await read_all(b, ("interval",))
    b.meter.faults.begin("silent", time.monotonic() + 60)
    driver = b.driver(timeout_s=30.0)
    task = asyncio.create_task(driver.identify())
    while not b.frames:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await driver.close()
    with pytest.raises(MeterError):
        await asyncio.wait_for(b.driver(timeout_s=0.2).identify(), 5)


async def test_a_hundred_meters_at_once(bench: Make) -> None:
    b = await bench(count=100)
    for meter in b.fleet.dlms:
        meter.freeze()

    async def one(meter: Any) -> None:
        driver = b.driver(meter)
        await driver.identify()
        blocks = list(
            await driver.read_profile(ProfileRequest("interval", since=int(b.clock.now()) - 3600))
        )
        await driver.close()
        assert rows_of(blocks) == truth_of(meter, "interval", int(b.clock.now()) - 3600)

    await asyncio.gather(*(one(meter) for meter in b.fleet.dlms))
    assert b.fleet.record.violations == 0
