"""Layouts that changed between two proofs, on the way into the journal: read again, or doubted, and settled once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from edge_core.domain import Block, Flag, as_list
from simulators.dlms.meter import Meter
from tests.integration.acquisition.conftest import Plant

Make = Callable[..., Awaitable[Plant]]


def configure(meter: Meter, *, held: int, firmware: str = "") -> None:
    """Somebody takes a column out of the load profile, and the meter keeps so many of its rows; or new firmware does."""
    rows = meter.device.rows["interval"]
    old = rows.profile
    new = replace(old, columns=old.columns[:-1], capacity=held)
    nameplate = meter.layout.nameplate | ({"1.0.0.2.0.255": firmware} if firmware else {})
    layout = replace(
        meter.layout,
        profiles=tuple(new if p is old else p for p in meter.layout.profiles),
        nameplate=nameplate,
    )
    rows.profile = new
    meter.layout = meter.device.layout = layout


def blocks(p: Plant) -> list[Block]:
    return list(p.journal.find(p.meter_id(), kind="interval"))


def doubted(p: Plant) -> list[tuple[int, tuple[Any, ...]]]:
    """(time, values) of every row flagged layout-doubt."""
    return [
        (as_list(block.times)[row], tuple(as_list(column)[row] for column in block.columns))
        for block in blocks(p)
        for first, count, bits in block.flags
        if bits & Flag.LAYOUT_DOUBT
        for row in range(first, first + count)
    ]


async def test_what_the_meter_no_longer_holds_is_doubted(plant: Make) -> None:
    p = await plant(dlms=1, schedule={"events": '"every 1h"'})
    meter = p.fleet.dlms[0]
    await p.settle()
    proven = p.clock.now()
    await p.advance(3 * 3600)
    before = {
        at: tuple(as_list(c)[row] for c in block.columns)
        for block in blocks(p)
        for row, at in enumerate(as_list(block.times))
    }
    since = {at for at in before if at > proven}
    assert len(since) >= 9
    meter.capture()
    configure(meter, held=2)
    meter.device.note_event(3, 153, int(p.clock.now()))  # profile capture period changed
    await p.advance(2 * 3600)
    assert p.codes()["layout-changed"] == 1
    found = doubted(p)
    assert len(found) == len(dict(found)) == len(since - held_now(p)), "each once"
    assert all(before[at] == values for at, values in found), "as they were read"
    (alarm,) = [a for a in p.alarms if a.code == "layout-changed"]
    assert alarm.detail["removed"] == ["1.0.9.29.0.255:2"]
    assert alarm.detail["doubted"] == len(found)
    await p.advance(2 * 3600)
    assert doubted(p) == found, "settled"
    assert p.codes()["layout-changed"] == 1


def held_now(p: Plant) -> set[int]:
    """Times whose row was read under the new layout."""
    return {
        at
        for block in blocks(p)
        if (block.q or {}).get("relaid") and not (block.q or {}).get("doubt")
        for at in as_list(block.times)
    }


async def test_new_firmware_is_seen_at_the_clock_check_and_proves_everything_again(
    plant: Make,
) -> None:
    p = await plant(dlms=1, schedule={"clock_check": '"every 1h"'})
    meter = p.fleet.dlms[0]
    await p.settle()
    proven = p.clock.now()
    await p.advance(2 * 3600)
    configure(meter, held=10_000, firmware="OM4.00")
    await p.advance(2 * 3600)
    (alarm,) = [a for a in p.alarms if a.code == "layout-changed"]
    assert alarm.detail["doubted"] == 0
    assert doubted(p) == []
    again = held_now(p)
    assert sorted(again) == list(range(int(proven) + 900, max(again) + 1, 900))
    assert len(again) >= 8, "all that was captured since the disproved proof"
    newest = [block for block in blocks(p) if not block.q or "relaid" not in block.q][-1]
    assert len(newest.columns) == len(meter.device.rows["interval"].profile.columns)


async def test_other_events_and_the_same_firmware_prove_nothing(plant: Make) -> None:
    p = await plant(dlms=1, schedule={"events": '"every 1h"', "clock_check": '"every 1h"'})
    meter = p.fleet.dlms[0]
    await p.advance(3600)
    proofs = p.memories.get(meter.id, "proof.interval")
    meter.device.note_event(4, 201, int(p.clock.now()))
    await p.advance(2 * 3600)
    assert p.memories.get(meter.id, "proof.interval") == proofs
    meter.device.note_event(3, 157, int(p.clock.now()))  # new firmware activated
    await p.advance(2 * 3600)
    _, proven = p.memories.get(meter.id, "proof.interval")
    assert proven > proofs[1]
    assert p.codes()["layout-changed"] == 0, "nothing differs"
    await p.all_read()
    p.agrees()
