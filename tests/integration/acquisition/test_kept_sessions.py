"""Associations that stay open between visits, where the meter model allows it."""

from __future__ import annotations

import pytest

from edge_core.acquisition.kept import KeptSessions
from edge_core.config.models import FOLDER
from tests.conftest import eventually
from tests.integration.acquisition.conftest import Make, Plant

pytestmark = pytest.mark.integration


async def keeping(plant: Make, meters: int, keep_s: int = 3600) -> Plant:
    """A plant whose meters may be kept open."""
    p = await plant(dlms=meters)
    await p.settle()
    await p.stop()
    model = p.folder / "kept.toml"
    text = (FOLDER / "is15959-3ph.toml").read_text()
    model.write_text(text.replace("[association]", f"[association]\nkeep_s = {keep_s}"))
    fleet = p.folder / "fleet/meters.csv"
    fleet.write_text(fleet.read_text().replace("is15959-3ph", str(model)))
    await eventually(lambda: not lines(p))
    p.start()
    await p.settle()
    return p


def lines(p: Plant) -> set[object]:
    """Connections that the meters have open."""
    return set(p.fleet._lines._live)


async def test_the_association_of_the_last_visit_serves_the_next(plant: Make) -> None:
    p = await keeping(plant, 3)
    open_now = lines(p)
    assert len(open_now) == len(p.poller.kept) == 3
    for _ in range(4):
        await p.advance(3600)
        assert lines(p) == open_now
    await p.all_read()
    p.agrees()
    await p.poller.kept.close()
    await eventually(lambda: not lines(p))


async def test_models_that_do_not_say_so_are_released_after_every_visit(plant: Make) -> None:
    p = await plant(dlms=2)
    await p.settle()
    assert len(p.poller.kept) == 0
    await eventually(lambda: not lines(p))


async def test_an_association_that_the_meter_gave_up_costs_nothing_but_another(plant: Make) -> None:
    p = await keeping(plant, 1)
    (line,) = lines(p)
    line.forget()  # the association is gone, the line is not: the meter does not answer ciphered requests
    await p.advance(3600)
    assert p.poller.counts["failures"] == 0
    (line,) = lines(p)
    line.abort()
    await eventually(lambda: not lines(p))
    await p.advance(3600)
    assert p.poller.counts["failures"] == 0
    assert len(lines(p)) == 1
    await p.all_read()
    p.agrees()


async def test_on_demand_work_has_a_session_of_its_own_after_the_kept_one_is_released(
    plant: Make,
) -> None:
    p = await keeping(plant, 1)
    before = lines(p)
    device = await p.poller.on_demand(p.meter_id(), lambda driver: driver.identify())
    assert device.serial == p.fleet.dlms[0].device.serial
    await eventually(lambda: not lines(p))
    await p.advance(3600)
    assert len(lines(p)) == 1
    assert lines(p) != before


async def test_the_least_recently_used_gives_way_when_there_are_too_many(plant: Make) -> None:
    p = await keeping(plant, 4)
    p.poller.kept.most = 2
    await p.advance(3600)
    assert len(p.poller.kept) == 2
    await eventually(lambda: len(lines(p)) == 2)
    await p.all_read()
    p.agrees()


async def test_the_time_that_the_model_allows_ends_it(plant: Make) -> None:
    p = await keeping(plant, 1, keep_s=1)
    await eventually(lambda: not lines(p) and len(p.poller.kept) == 0)
    await p.advance(3600)
    assert p.poller.counts["failures"] == 0


async def test_a_pool_is_bounded_by_the_files_of_the_process() -> None:
    assert 0 < KeptSessions().most <= 1_000
    assert KeptSessions(most=3).most == 3
