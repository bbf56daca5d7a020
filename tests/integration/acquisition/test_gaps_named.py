"""Every gap has a name: what meters lose, skip, overwrite; what was not sampled; clocks that step."""

from __future__ import annotations

import sys
import threading

import pytest

from edge_core.domain import Flag
from tests.conftest import eventually
from tests.integration.acquisition.conftest import T0, Make

pytestmark = pytest.mark.integration


async def test_rows_that_a_meter_never_captured_are_no_such_rows(plant: Make) -> None:
    p = await plant(dlms=2)
    await p.settle()
    meter = p.meter_id()
    p.fault(meter, "rows-missing", 3 * 3600 - 1)
    await p.advance(3 * 3600)
    p.fleet.dlms[0].capture()
    await p.advance(3 * 3600)
    assert p.missing(meter) == {"no-such-row": 11}
    assert p.missing(p.meter_id(1)).total() == 0
    (entry,) = p.ledger(meter)
    assert entry.due == entry.captured + 11


async def test_rows_that_are_missing_because_the_supply_was_off_say_so(plant: Make) -> None:
    p = await plant(dlms={"model": "idis"})  # its rows have a status; IS 15959 has none
    await p.settle()
    meter = p.fleet.dlms[0]
    meter.device.power_off(p.clock.now())
    await p.advance(2 * 3600)
    assert p.poller.meters[meter.id].failures > 0
    meter.device.power_on(p.clock.now())
    await p.advance(2 * 3600)
    missing = p.missing(meter.id)
    assert set(missing) == {"meter-power-off"}
    assert missing.total() in (7, 8)
    await p.all_read()
    p.agrees()


async def test_what_the_meter_overwrote_before_we_came_back_is_told(plant: Make) -> None:
    p = await plant(dlms=1, schedule={"midnight_reads": '"off"'})
    await p.settle()
    await p.stop()
    held = p.fleet.dlms[0].device.rows["interval"].profile.capacity
    away = (held + 500) * 900
    p.clock.advance(away)
    p.start()
    await p.settle()
    meter = p.meter_id()
    missing = p.missing(meter)
    assert set(missing) == {"overwritten"}
    assert 490 <= missing.total() <= 510


async def test_a_clock_set_back_repeats_rows_and_all_are_kept(plant: Make) -> None:
    p = await plant(dlms=1)
    await p.settle()
    meter = p.fleet.dlms[0]
    for periods in (2, 3):
        await p.advance(1800)
        await p.fleet.obey({"do": "step-back", "meter": meter.id, "periods": periods})
        await p.advance(3600)
    assert p.ledger(meter.id)[0].repeats >= 4
    await p.all_read()
    p.agrees()


async def test_a_clock_set_back_by_days_is_read_from_where_it_stands(plant: Make) -> None:
    p = await plant(dlms=1, history_s=5 * 86_400)
    await p.settle()
    await p.fleet.obey({"do": "step-back", "meter": p.meter_id(), "periods": 3 * 96})
    await p.advance(6 * 3600)
    assert p.codes(p.meter_id())["clock"] >= 1
    await p.all_read()
    p.agrees(kinds=("interval",))


async def test_a_clock_set_ahead_explains_the_rows_that_never_were(plant: Make) -> None:
    p = await plant(dlms=1)
    await p.settle()
    meter = p.fleet.dlms[0]
    now = p.clock.now()
    meter.device.set_clock(now, int(now) + 2 * 3600)
    await p.advance(2 * 3600)
    missing = p.missing(meter.id)
    assert set(missing) == {"meter-clock"}
    assert missing.total() in (7, 8)
    await p.all_read()
    p.agrees(kinds=("interval",))


async def test_the_clock_alarm_is_raised_by_bands_and_once(plant: Make) -> None:
    p = await plant(dlms=1)
    await p.settle()
    meter = p.fleet.dlms[0]

    def set_off(seconds: int) -> None:
        meter.device.set_clock(p.clock.now(), int(p.clock.now()) + seconds)

    set_off(200)
    await p.advance(2 * 3600)
    assert p.codes(meter.id)["clock"] == 0
    set_off(400)
    await p.advance(3 * 3600)
    assert p.codes(meter.id)["clock"] == 1
    set_off(-700)
    await p.advance(3 * 3600)
    assert p.codes(meter.id)["clock"] == 2
    set_off(0)
    await p.advance(2 * 3600)
    assert p.codes(meter.id)["clock"] == 2
    set_off(400)
    await p.advance(2 * 3600)
    assert p.codes(meter.id)["clock"] == 3


@pytest.mark.parametrize(
    ("offset", "mode", "is_set", "alarms"),
    [
        (120, "on", True, 1),
        (-45, "on", True, 1),
        (6, "on", False, 0),
        (420, "on", True, 2),
        (1200, "on", False, 1),
        (120, "off", False, 0),
    ],
)
async def test_meters_are_set_within_the_bands_after_they_were_read(
    plant: Make, offset: int, mode: str, is_set: bool, alarms: int
) -> None:
    p = await plant(dlms=1, set_meters=mode, schedule={"clock_check": '"every 1d"'})
    meter = p.fleet.dlms[0]
    meter.device.set_clock(p.clock.now(), int(p.clock.now()) + offset)
    await p.settle()
    told = [a for a in p.alarms if a.code == "clock"]
    assert len(told) == alarms
    if is_set:
        assert abs(meter.device.offset) <= 2
        (journalled,) = [a for a in told if a.detail.get("set")]
        assert journalled.detail["old"] - journalled.detail["new"] == pytest.approx(offset, abs=3)
    else:
        assert meter.device.offset == offset
    await p.advance(3 * 3600)
    await p.all_read()
    p.agrees(kinds=("interval",))


async def test_samples_stand_on_their_boundaries_at_a_constant_offset(plant: Make) -> None:
    p = await plant(modbus={"count": 3, "model": "eastron-sdm630"})
    await p.advance(6 * 3600, step_s=1.0 * 60)
    delays: dict[str, set[int]] = {}
    after = 0
    while page := p.journal.segments(after, limit=100):
        for segment in page:
            for block in p.journal.blocks(segment.id):
                assert all(t % 900 == 0 for t in block.times)
                assert all(bits & Flag.SAMPLED for _, _, bits in block.flags)
                if block.kind == "interval":
                    delays.setdefault(block.meter, set()).add(block.read_at - int(block.times[0]))
        after = page[-1].id
    assert set(delays) == {u.id for u in p.fleet.modbus}
    for meter, seen in delays.items():
        assert max(seen) - min(seen) <= 60, meter  # the test's step of time
        (entry,) = p.ledger(meter)
        assert (entry.captured, entry.holes) == (entry.due, ())


async def test_samples_that_a_silent_meter_did_not_give_are_gaps_with_the_cause(
    plant: Make,
) -> None:
    p = await plant(modbus=2)
    await p.advance(3600, step_s=60)
    meter = p.meter_id()
    p.fault(meter, "silent", 3600 - 5)
    await p.advance(3600, step_s=60)
    await p.advance(3600, step_s=60)
    missing = p.missing(meter)
    assert set(missing) == {"line-silent"}
    assert missing.total() in (3, 4)
    assert p.missing(p.meter_id(1)).total() == 0


async def test_samples_that_fell_into_downtime_are_gateway_off(plant: Make) -> None:
    p = await plant(modbus=1)
    await p.advance(3600, step_s=60)
    await p.stop()
    p.clock.advance(2 * 3600 + 400)
    p.start()
    await p.settle()
    await p.advance(3600, step_s=60)
    missing = p.missing(p.meter_id())
    assert set(missing) == {"gateway-off"}
    assert missing.total() in (8, 9)


async def test_boundaries_are_named_however_fast_the_journal_commits(plant: Make) -> None:
    """The sample after a pause may be durable before the pause before it gets its name."""
    p = await plant(modbus=1)
    await p.settle()
    stop = threading.Event()

    def commit() -> None:
        while not stop.is_set():
            p.journal.flush().result()

    thread = threading.Thread(target=commit)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for pauses in range(1, 25):
            p.clock.advance(2 * 900 - p.clock.now() % 900)  # one boundary passes unseen
            await p.settle()
            assert p.missing(p.meter_id()) == {"gateway-off": pauses}
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


async def test_samples_that_our_clock_jumped_over_are_gateway_clock(plant: Make) -> None:
    p = await plant(modbus=1)
    await p.advance(3600, step_s=60)
    p.clock.civil += 7200  # civil time alone: a step
    await p.settle()
    await p.advance(3600, step_s=60)
    missing = p.missing(p.meter_id())
    assert set(missing) == {"gateway-clock"}
    assert missing.total() in (7, 8)
    assert p.codes("")["clock"] == 1


async def test_nothing_is_read_nor_stamped_while_our_clock_is_invalid(plant: Make) -> None:
    p = await plant(dlms=1, modbus=1)
    await p.advance(900, step_s=60)
    p.clock.valid = False
    p.poller._wake.set()
    await eventually(lambda: not p.poller.watch._valid)
    before = p.poller.counts["visits"]
    head = p.journal.head()
    p.clock.advance(7200)
    p.poller._wake.set()
    await p.poller.sweep(timeout_s=0.3)
    assert p.poller.counts["visits"] == before
    assert p.journal.head() == head
    p.clock.valid = True
    await p.settle()
    await p.advance(1800, step_s=60)
    assert set(p.missing(p.meter_id(1))) == {"gateway-clock"}
    assert p.missing(p.meter_id(0)).total() == 0  # this meter remembers


async def test_after_our_clock_was_set_back_reading_goes_on(plant: Make) -> None:
    p = await plant(dlms=1)
    await p.settle()
    await p.advance(3600)
    p.clock.civil -= 86_400
    await p.advance(2 * 3600)
    assert (p.poller.meters[p.meter_id()].last_read or 0) > p.clock.now() - 2 * 3600
    assert p.clock.now() < T0


async def test_event_rows_travel_and_raise_their_alarms_once(plant: Make) -> None:
    p = await plant(dlms=1, schedule={"events": '"every 1h"'})
    meter = p.fleet.dlms[0]
    meter.device.note_event(4, 201, int(p.clock.now()) - 40 * 86_400)
    meter.device.note_event(4, 201, int(p.clock.now()) - 60)
    meter.device.note_event(0, 3, int(p.clock.now()) - 50)
    await p.settle()
    await p.advance(5 * 3600)
    raised = [(a.code, a.phases, a.at) for a in p.alarms]
    assert sorted(raised) == [
        ("magnet", (), T0 - 60),
        ("phase-outage", ("L2",), T0 - 50),
    ]
    rows = [
        block.rows
        for segment in p.journal.segments(0, limit=1000)
        for block in p.journal.blocks(segment.id)
        if block.kind == "events"
    ]
    assert sum(rows) == 3


async def test_billing_rows_are_read_when_they_are_closed(plant: Make) -> None:
    p = await plant(dlms=1, history_s=33 * 86_400, schedule={"billing": '"every 1d"'})
    await p.settle()
    meter = p.fleet.dlms[0]
    entries = p.ledger(meter.id, "billing")
    assert sum(e.captured for e in entries) == len(meter.device.rows["billing"].times) == 1
    p.agrees(kinds=("interval", "midnight", "billing"))
