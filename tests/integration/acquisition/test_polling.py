"""The poller against simulated fleets over sockets: what is read, when, by whom, and what becomes of meters that fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_core.acquisition.standing import POLICIES
from edge_core.errors import KeyRejected, LineSilent, WrongMeter
from edge_core.schedule.agenda import Job
from tests.conftest import eventually
from tests.integration.acquisition.conftest import Make, Plant

pytestmark = pytest.mark.integration


async def test_everything_that_meters_hold_is_read_once(plant: Make) -> None:
    p = await plant(dlms=4, history_s=3 * 86_400)
    await p.settle()
    await p.advance(3 * 3600)
    await p.all_read()
    p.agrees()
    assert all(p.missing(m.id).total() == 0 for m in p.fleet.dlms)


async def test_a_meter_has_one_visit_at_a_time(plant: Make) -> None:
    p = await plant(dlms=1)
    meter, inside, most = p.meter_id(), 0, 0

    async def action(driver: Any) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        device = await driver.identify()
        await asyncio.sleep(0.01)
        inside -= 1
        return device.serial

    done = await asyncio.gather(*(p.poller.on_demand(meter, action) for _ in range(6)))
    assert set(done) == {p.fleet.dlms[0].device.serial}
    assert most == 1
    await p.settle()
    assert p.poller.meters[meter].last_read is not None


async def test_on_demand_goes_before_what_is_scheduled(plant: Make) -> None:
    p = await plant(dlms=8, line={"timeout_s": 5, "concurrency": 1})
    order: list[str] = []
    p.poller.on_block = lambda visit: order.append(visit["meter"])
    last = p.meter_id(7)

    async def action(driver: Any) -> None:
        await driver.identify()
        order.append("on demand")

    await asyncio.sleep(0)  # the first visit is under way
    await p.poller.on_demand(last, action)
    assert len(order) <= 2
    await p.settle()
    assert set(order) == {m.id for m in p.fleet.dlms} | {"on demand"}


async def test_midnight_is_read_before_intervals(plant: Make) -> None:
    p = await plant(dlms=1, history_s=2 * 86_400)
    await p.settle()
    jobs = [visit["jobs"] for visit in p.visits]
    assert jobs[0][:2] == ["MIDNIGHT", "INTERVAL"]


@pytest.mark.parametrize(
    ("fault", "kind", "attempts"),
    [("silent", LineSilent, 2), ("refuse", LineSilent, 2), ("wrong-key", KeyRejected, 1)],
)
async def test_what_fails_is_tried_again_by_the_table(
    plant: Make, fault: str, kind: type[Exception], attempts: int
) -> None:
    p = await plant(dlms=1)
    await p.settle()
    meter, state = p.meter_id(), p.poller.meters[p.meter_id()]
    p.fault(meter, fault, 1e9)
    seen: list[int] = []
    attempt = p.poller._attempt

    async def counted(*args: Any) -> Any:
        seen.append(1)
        return await attempt(*args)

    p.poller._attempt = counted  # type: ignore[method-assign]
    now = p.clock.now()
    p.poller.agenda.now_due(meter, None, now)
    await p.settle()
    assert isinstance(state.last_error, kind)
    assert len(seen) == attempts
    policy = POLICIES[kind]  # type: ignore[index]
    assert p.poller.agenda.due_times(meter)[Job.INTERVAL] == now + policy.first_s
    seen.clear()
    await p.advance(policy.first_s)
    assert len(seen) == 1  # a suspect has one attempt
    assert p.poller.agenda.due_times(meter)[Job.INTERVAL] == p.clock.now() + 2 * policy.first_s
    for _ in range(12):
        await p.advance(policy.max_s)
    assert p.poller.agenda.due_times(meter)[Job.INTERVAL] <= p.clock.now() + policy.max_s
    p.fleet.find(meter).faults.end(fault)
    await p.advance(policy.max_s)
    assert (state.failures, state.cause, state.last_error) == (0, "", None)
    code = "key-rejected" if kind is KeyRejected else "meter-silent"
    assert p.codes(meter)[code] == 1  # told once
    await p.all_read()
    p.agrees()


async def test_what_a_silent_meter_owes_is_known_and_read_when_it_is_back(plant: Make) -> None:
    p = await plant(dlms=2)
    await p.settle()
    meter = p.meter_id()
    p.fault(meter, "silent", 9_000)
    await p.advance(2 * 3600)
    state = p.poller.meters[meter]
    assert (state.cause, state.failures > 2) == ("line-silent", True)
    assert p.poller.meters[p.meter_id(1)].failures == 0
    await p.restart()  # a suspect stays one
    assert p.poller.meters[meter].failures == 1
    assert p.poller.meters[meter].cause == "line-silent"
    await p.advance(3600)
    await p.all_read()
    p.agrees()
    assert p.missing(meter).total() == 0


async def test_a_parked_meter_is_left_alone_until_its_time(plant: Make) -> None:
    p = await plant(dlms=2)
    await p.settle()
    meter = p.meter_id()
    p.poller.park(meter, "works on the feeder", p.clock.now() + 3 * 3600)
    read = p.poller.meters[meter].last_read
    await p.advance(2 * 3600)
    assert p.poller.meters[meter].last_read == read
    assert p.poller.meters[p.meter_id(1)].last_read != read
    await p.restart()
    assert p.poller.meters[meter].parked is not None
    await p.settle()
    assert p.poller.meters[meter].last_read is None  # also after a restart
    await p.advance(2 * 3600)
    assert p.poller.meters[meter].last_read is not None
    p.poller.park(meter, "again", p.clock.now() + 1e6)
    p.poller.unpark(meter)
    before = p.poller.meters[meter].last_read
    await p.advance(1)
    assert p.poller.meters[meter].last_read != before
    assert len(p.poller.meters[meter].parkings()) == 2


async def test_a_wrong_serial_is_never_read(plant: Make) -> None:
    p = await plant(dlms=2)
    await p.stop()
    file = p.folder / "fleet/meters.csv"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([rows[0] + ",serial", rows[1] + ",99999999", rows[2] + ","]) + "\n")
    (p.folder / "data/journal.db").unlink()
    p.start()
    await p.settle()
    meter = p.meter_id()
    assert isinstance(p.poller.meters[meter].last_error, WrongMeter)
    assert "99999999" in str(p.poller.meters[meter].last_error)
    assert p.journal.ledger(meter) == []
    assert p.codes(meter)["wrong-meter"] == 1
    assert {key[0] for key in p.stored()} == {p.meter_id(1)}


async def test_a_swapped_meter_is_another_device_and_nothing_is_mixed(plant: Make) -> None:
    p = await plant(dlms=1)
    await p.settle()
    meter = p.meter_id()
    before = p.poller.meters[meter].device
    p.fleet.dlms[0].swap()
    await p.advance(2 * 3600)
    after = p.poller.meters[meter].device
    assert after != before
    assert [e.device for e in p.ledger(meter)] == [before, after]
    assert p.codes(meter)["wrong-meter"] == 1
    await p.all_read()
    p.agrees()


async def test_a_sweep_visits_all_and_says_how_many(plant: Make) -> None:
    p = await plant(dlms=3, modbus=1)
    p.fault(p.meter_id(2), "silent", 1e9)
    assert await p.poller.sweep(timeout_s=2.0) == 2
    assert await p.poller.sweep([p.meter_id(0)], timeout_s=5.0) == 1


async def test_a_full_journal_pauses_acquisition_and_loses_nothing(plant: Make) -> None:
    p = await plant(
        dlms=3,
        history_s=20 * 86_400,
        journal={"max_bytes": 120_000, "alarm_reserve_bytes": 40_000},
    )
    await eventually(lambda: p.poller.counts["refused-by-journal"] > 0, 20)
    for state in p.poller.meters.values():
        assert state.failures == 0  # not the meters' fault
    await p.stop()
    p.settings["journal"] = {}
    p.start()
    await p.all_read()
    p.agrees()


async def slow_line(plant: Make, **more: Any) -> Plant:
    return await plant(
        dlms={"count": 2, "framing": "hdlc"}, line={"timeout_s": 5, "concurrency": 1}, **more
    )


async def test_on_demand_fits_between_the_portions_of_a_long_read(plant: Make) -> None:
    p = await slow_line(plant, history_s=12 * 86_400)
    first, second = p.meter_id(0), p.meter_id(1)
    state = p.poller.meters[first]
    await eventually(lambda: any(s.busy for s in p.poller.meters.values()))
    busy = first if state.busy else second
    other = second if busy == first else first
    rows: dict[str, int] = {}

    def asked(name: str) -> Any:
        async def action(driver: Any) -> str:
            rows[name] = p.poller.meters[busy].rows
            return str((await driver.identify()).serial)

        return p.poller.on_demand(name, action)

    same, elsewhere = await asyncio.gather(asked(busy), asked(other))
    assert {same, elsewhere} == {m.device.serial for m in p.fleet.dlms}
    await p.settle(25)
    await p.all_read()
    whole = len(p.fleet.dlms[0].device.rows["interval"].times)
    assert whole > 1000
    assert rows[other] < whole  # it did not wait for the whole history
    p.agrees()
