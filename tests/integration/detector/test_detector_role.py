"""The role `detector` on a real journal: blocks in, findings out, across kills and lateness."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest

from edge_core.detector.history import Store, decode
from edge_core.detector.rules import VERSION
from edge_core.uplink.payloads.notes import members


async def test_a_stopped_register_is_found_for_registers_and_energies(town) -> None:
    for k in range(33):
        day = town.first + k
        for meter, layout in (("R1", town.REGISTER), ("D1", town.DELTA), ("D2", town.DELTA)):
            still = k >= 31 and meter != "D2"
            town.write(day, meter, layout, np.zeros(96, int) if still else town.day())
        town.flush()
    town.clock.civil = town.calendar.begin(town.first + 33) + 3 * 3600
    await town.until(lambda: town.scored(town.first + 32) and len(town.findings()) >= 2)
    found = {f["meter"]: f for f in town.findings()}
    assert set(found) == {"R1", "D1"}
    for meter, finding in found.items():
        assert finding["kind"] == "stopped"
        begin = town.calendar.begin(town.first + 32)
        assert finding["from"] == begin
        text = f"{meter}|stopped|{begin}|{VERSION}"
        assert finding["id"] == hashlib.sha256(text.encode()).hexdigest()
    (note,) = (n for n in town.journal.notes_waiting() if n.kind == "anomalies")
    assert members("anomalies", "", note.body), "the uplink takes it"


async def test_half_hours_are_the_sums_of_quarters(town) -> None:
    days = {}
    for k in range(3):
        wh = days[k] = town.day()
        town.write(town.first + k, "D1", town.DELTA, wh)
        town.write(town.first + k, "R1", town.REGISTER, wh)
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + 3) + 3 * 3600
    await town.until(lambda: town.scored(town.first + 2))
    with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
        for meter in ("D1", "R1"):
            number = store.meters[meter]
            wh = decode(store.window(0, town.first, town.first + 2))[number]
            expected = np.stack([days[k].reshape(48, 2).sum(axis=1) for k in range(3)])
            if meter == "R1":
                assert np.isnan(wh[0, 0]), "the first register has none before it"
                wh[0, 0] = expected[0, 0]
                np.testing.assert_allclose(wh, expected, atol=10)  # steps of 10 Wh
            else:
                np.testing.assert_allclose(wh, expected, rtol=4e-4)


async def test_evidence_of_rows_is_told_before_the_day_ends(town) -> None:
    wh = town.day()
    wh[40:50] = 0
    volts, amps = [2300] * 96, [100] * 96
    amps[40:50] = [1500] * 10
    town.write(town.first, "P1", town.POWERED, wh, power=(amps, volts))
    town.write(
        town.first, "P2", town.POWERED, wh, power=(amps, volts), flags=((40, 10, 8),)
    )  # not valid
    town.flush()
    town.clock.civil = town.calendar.begin(town.first) + 20 * 3600
    await town.until(lambda: town.findings())
    (finding,) = town.findings()
    assert (finding["meter"], finding["kind"]) == ("P1", "current-without-energy")
    begin = town.calendar.begin(town.first)
    assert finding["explain"]["since"] == begin + 41 * 900
    assert finding["explain"]["seconds"] == 10 * 900


async def test_a_restart_goes_on_where_it_stopped_and_tells_nothing_twice(town) -> None:
    for k in range(34):
        town.write(town.first + k, "D1", town.DELTA, np.zeros(96, int) if k >= 31 else town.day())
    town.flush()
    for k in (31, 32, 33):
        town.clock.civil = town.calendar.begin(town.first + k + 1) + 3 * 3600
        await town.until(lambda k=k: town.scored(town.first + k))
    assert [(f["kind"], f["rev"]) for f in town.findings()] == [("stopped", 0)]
    with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
        (row,) = store.findings()
        assert (row["state"], row["first"], row["last"]) == (
            "open",
            town.first + 32,
            town.first + 33,
        )


async def test_a_damaged_history_is_set_aside_and_learned_again(town) -> None:
    for k in range(3):
        town.write(town.first + k, "D1", town.DELTA, town.day())
    town.flush()
    (town.folder / "detector.db").write_bytes(b"no database at all" * 200)
    town.clock.civil = town.calendar.begin(town.first + 3) + 3 * 3600
    await town.until(lambda: (town.folder / "damaged").exists() and town.scored(town.first + 2))
    assert list((town.folder / "damaged").glob("detector*.db"))


@pytest.mark.parametrize("late", [1, 2])
async def test_rows_that_come_late_fill_their_day(town, late: int) -> None:
    days = [town.day() for _ in range(4)]
    for k in range(4):
        if k != late:
            town.write(town.first + k, "D1", town.DELTA, days[k])
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + 4) + 3 * 3600
    await town.until(lambda: town.scored(town.first + 3))
    town.write(town.first + late, "D1", town.DELTA, days[late])
    town.flush()

    def filled() -> bool:
        with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
            wh = decode(store.window(0, town.first + late, town.first + late))[0, 0]
            return bool(np.isfinite(wh).all())

    await town.until(filled)
