"""Simulated days in seconds: meters die, return, lose rows, power and time, are swapped; the gateway restarts.

At the end the ledger agrees with the meters' own books to the interval, and the figures of every day reconcile.
"""

from __future__ import annotations

import datetime as dt
import os
import random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from edge_core.acquisition.causes import CAUSES
from edge_core.acquisition.completeness import figures
from edge_core.gateway.daily import account_of
from tests.integration.acquisition.conftest import T0, Make, Plant

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

KOLKATA = ZoneInfo("Asia/Kolkata")
LOAD = "1.0.99.1.0.255"


async def something_happens(p: Plant, rng: random.Random) -> None:
    """One accident of an hour."""
    what = rng.choice(
        ["silent", "refuse", "garbage", "wrong-key", "rows-missing", "step-back", "power", "swap", "restart", "modbus",
         "away"]
    )  # fmt: skip
    meter = rng.choice(p.fleet.dlms)
    hours = rng.choice([1, 2, 5, 9])
    if what in ("restart", "away"):
        await p.stop()
        p.clock.advance(
            rng.choice([10, 1000, 4000, 9000] if what == "restart" else [40_000, 70_000])
        )
        p.start()
        await p.settle()
        await p.advance(
            900 - p.clock.now() % 900
        )  # the clock of this test steps from boundary to boundary
    elif what == "modbus":
        p.fault(rng.choice(p.fleet.modbus).id, "silent", hours * 3600)
    elif what == "step-back":
        await p.fleet.obey({"do": "step-back", "meter": meter.id, "periods": rng.choice([1, 2, 5])})
    elif what == "swap":
        if rng.random() < 0.3 and meter.device.off_since is None:
            meter.swap()
    elif what == "power":
        if meter.device.off_since is None:
            meter.device.power_off(p.clock.now())
        else:
            meter.device.power_on(p.clock.now())
    else:
        p.fault(meter.id, what, hours * 3600)


def times_of(runs: Any) -> set[int]:
    return {t for run in runs for t in range(run.first, run.last + 1, run.step or 1)}


def power_cuts_are_named(p: Plant, meter: Any) -> None:
    """What fell into a power cut of a meter whose clock was never set is missing for that, or because it was lost anyway."""
    device = meter.device
    if device.rows["interval"].shifts != [(0, 0)]:
        return
    holes = [
        hole
        for entry in p.ledger(meter.id)
        if entry.device == device.serial
        for hole in entry.holes
    ]
    for off, on in device.outages:
        for at in range(off - off % 900 + 900, on, 900):
            causes = {hole.cause for hole in holes if hole.first <= at <= hole.last}
            assert causes <= {"meter-power-off"}, (meter.id, at, holes)


SHORT = [(1, 3)]
LONG = [
    *(
        pytest.param(seed, 10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])
        for seed in (2, 4, 5, 6)
    ),
    *(
        pytest.param(seed, 30, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])
        for seed in (3, 7, 8)
    ),
]
"""Minutes each: with OPENDCU_LONG=1."""


@pytest.mark.parametrize(("seed", "days"), SHORT + (LONG if os.environ.get("OPENDCU_LONG") else []))
async def test_the_ledger_agrees_with_the_meters_books(plant: Make, seed: int, days: int) -> None:
    rng = random.Random(seed)
    p = await plant(
        dlms=[3, {"count": 2, "model": "idis", "line": "feeder-2"}],
        modbus=2,
        history_s=86_400,
        line={"timeout_s": 0.3},
        schedule={"events": '"every 6h"'},
    )
    await p.settle()
    end = T0 + days * 86_400
    while p.clock.now() < end:
        if rng.random() < 0.12:
            await something_happens(p, rng)
        await p.advance(3600)
    for meter in p.fleet.all():
        for fault in ("silent", "refuse", "garbage", "wrong-key", "rows-missing"):
            meter.faults.end(fault)
    for meter in p.fleet.dlms:
        meter.device.power_on(p.clock.now())
    await p.advance(8 * 3600)
    await p.all_read()

    stored, ever = p.stored(), p.truth()
    dlms = {m.id for m in p.fleet.dlms}
    ours = {key: n for key, n in stored.items() if key[0] in dlms}
    assert sorted(p.truth(held=True).keys() - ours.keys())[:3] == []  # nothing is lost
    assert sorted(ours.keys() - ever.keys())[:3] == []  # nor invented
    assert {key: n for key, n in ours.items() if n != 1} == {}  # nor doubled
    assert [key for key in ours if ever[key] != p.values[key]][:3] == []  # nor altered

    books: dict[tuple[str, str, str], set[int]] = {}
    for key in ours:
        books.setdefault(key[:3], set()).add(key[3])
    for meter in p.fleet.dlms:
        for entry in p.journal.ledger(meter.id):
            if not entry.period:
                continue  # event logs
            known = times_of(entry.runs)
            assert known == books[meter.id, entry.device, entry.profile]
            missing = {
                t for hole in entry.holes for t in range(hole.first, hole.last + 1, entry.period)
            }
            assert not missing & known
            if entry.period == 900:
                grid = set(range(min(known), max(known) + 1, 900))
                assert missing == grid - known
            assert all(hole.cause in CAUSES for hole in entry.holes), entry.holes
            assert entry.due == entry.captured + sum(hole.rows for hole in entry.holes)
        power_cuts_are_named(p, meter)

    for unit in p.fleet.modbus:
        (entry,) = [e for e in p.journal.ledger(unit.id) if e.profile == LOAD]
        known = times_of(entry.runs)
        missing = {t for hole in entry.holes for t in range(hole.first, hole.last + 1, 900)}
        assert known | missing == set(range(min(known), max(known) + 1, 900))
        assert {hole.cause for hole in entry.holes} <= {"line-silent", "gateway-off"}

    for state in p.poller.meters.values():
        account = account_of(state, p.journal)
        for back in range(days + 1):
            day = dt.datetime.fromtimestamp(T0 + back * 86_400, KOLKATA).date()
            for found in figures(account, day, KOLKATA, p.clock.now()).values():
                assert found.due == found.captured + found.missing.total() + found.excused
                assert set(found.missing) <= CAUSES
