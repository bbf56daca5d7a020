"""The role `detector` on a real journal: blocks in, findings out, across kills and lateness."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_core.config import schema
from edge_core.detector import inject
from edge_core.detector.detector import Detector
from edge_core.detector.history import Store, decode
from edge_core.detector.model import BUILTIN, load, trusted_keys, write
from edge_core.detector.readings import read
from edge_core.detector.rules import VERSION
from edge_core.uplink.payloads.notes import members

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
]  # children that import onnxruntime, on a busy machine


async def test_a_stopped_register_is_found_for_registers_and_energies(town) -> None:
    for k in range(36):
        day = town.first + k
        for meter, layout in (("R1", town.REGISTER), ("D1", town.DELTA), ("D2", town.DELTA)):
            still = k >= 31 and meter != "D2"
            town.write(day, meter, layout, np.zeros(96, int) if still else town.day())
        town.flush()
    town.clock.civil = town.calendar.begin(town.first + 36) + 3 * 3600
    await town.until(lambda: town.scored(town.first + 35) and len(town.findings()) >= 2)
    found = {f["meter"]: f for f in town.findings()}
    assert set(found) == {"R1", "D1"}
    for meter, finding in found.items():
        assert finding["kind"] == "stopped"
        begin = town.calendar.begin(town.first + 31)  # since the first day of zeros
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
                np.testing.assert_allclose(wh, expected, rtol=6e-4)


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
    for k in range(37):
        town.write(town.first + k, "D1", town.DELTA, np.zeros(96, int) if k >= 31 else town.day())
    town.flush()
    for k in (34, 35, 36):
        town.clock.civil = town.calendar.begin(town.first + k + 1) + 3 * 3600
        await town.until(lambda k=k: town.scored(town.first + k))
    assert [(f["kind"], f["rev"]) for f in town.findings()] == [("stopped", 0)]
    with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
        (row,) = store.findings()
        assert (row["state"], row["first"], row["last"]) == (
            "open",
            town.first + 31,
            town.first + 36,
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


HELD_OUT = (2, 7, 12, 17, 22, 27, 32, 37, 47, 52)
ALTERED = {7: "h4", 17: "h3", 32: "h2", 52: "h1"}
DAYS = 66


def real_town(town) -> None:
    """Ten real households that the builtin model never saw, from 2013-03-04; four altered for the last 18 days."""
    table = read(Path("simulators/loads/sgsc_households_30min.csv.gz").absolute())
    rng = np.random.default_rng(4)
    for index in HELD_OUT:
        wh = table.wh[index, 246 : 246 + DAYS]
        if index in ALTERED:
            part = wh[-18:] * 0.15 if ALTERED[index] == "h1" else wh[-18:]
            wh = np.concatenate([wh[:-18], inject.apply(ALTERED[index], part, rng)[0]])
        for k in range(DAYS):
            half_hours = [None if v != v else int(v) for v in wh[k].tolist()]
            town.half_hours(town.first + k, table.meters[index], half_hours)
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + DAYS) + 3 * 3600


async def test_the_model_finds_altered_real_households(town) -> None:
    real_town(town)
    await town.until(lambda: town.scored(town.first + DAYS - 1) and town.findings())
    found = {}
    for finding in town.findings():
        if finding["kind"] == "consumption":
            found.setdefault(finding["meter"], finding)
    altered = {f"D{index + 1:03}" for index in ALTERED}
    right = altered & set(found)
    assert len(right) >= 3, found
    assert len(set(found) - altered) <= 1, found
    first = town.calendar.begin(town.first + DAYS - 18)
    for meter in right:
        finding = found[meter]
        assert finding["from"] >= first
        assert finding["score"] > finding["threshold"] > 500
        assert finding["model"] == load(BUILTIN, trusted_keys())[0].version
        assert len(finding["explain"]["features"]) == 3
        assert finding["explain"]["expected_wh"] > 0
    with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
        row = store.meters["D018"]
        scores = store.scores(0, town.first + 40, town.first + DAYS - 1)[row]
        assert scores[-1] > 500 > scores[0] >= 0


async def test_a_transformer_that_loses_energy_is_told(town) -> None:
    """Forty days of a transformer and five meters; then two of them count a tenth."""
    names = ["M1", "M2", "M3", "M4", "M5"]
    plain = {"line": "l", "model": "m", "address": "a"}
    meters = {name: schema.Meter(id=name, transformer="T1", **plain) for name in names}
    meters["T1"] = schema.Meter(id="T1", multiplier=20, **plain)
    town.config = msgspec.structs.replace(town.config, meters=meters)
    for k in range(36):
        used = {name: np.rint(town.day() * 5) for name in names}
        total = sum(used.values()) * 1.05 / 20
        town.write(town.first + k, "T1", town.DELTA, np.rint(total).astype(int))
        for name in names:
            share = 0.1 if k >= 30 and name in ("M1", "M2") else 1.0
            town.write(town.first + k, name, town.DELTA, (used[name] * share).astype(int))
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + 36) + 3 * 3600

    def loss() -> list[dict]:
        return [f for f in town.findings() if f["kind"] == "non-technical-loss"]

    await town.until(lambda: town.scored(town.first + 35) and loss())
    (finding,) = loss()
    assert finding["meter"] == "T1"
    assert finding["from"] == town.calendar.begin(town.first + 30)
    explain = finding["explain"]
    assert 0.3 < explain["loss_share"] < 0.5
    assert 0.03 < explain["usual_share"] < 0.07
    assert explain["meters"] == 5


async def test_a_shadow_marks_its_findings(town, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN, tmp_path / "next")
    town.config = msgspec.structs.replace(
        town.config, detector=schema.Detector(shadow=str(tmp_path / "next"), false_alarms=0.03)
    )
    real_town(town)
    await town.until(lambda: town.scored(town.first + DAYS - 1) and town.findings())
    by_kind = {
        kind: {f["meter"] for f in town.findings() if f["kind"] == kind}
        for kind in ("consumption", "consumption-shadow")
    }
    assert by_kind["consumption"] == by_kind["consumption-shadow"] != set()
    marked = [f for f in town.findings() if f["kind"] == "consumption-shadow"]
    assert all(f["explain"]["mode"] == "shadow" for f in marked)


async def test_a_model_is_switched_and_rolled_back_without_a_restart(town, tmp_path: Path) -> None:
    """As the component AnomalyModel does it: another directory under the same name, while the detector runs."""
    card, onnx = load(BUILTIN, trusted_keys())
    private = os.urandom(32)
    key = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
    write(tmp_path / "new", msgspec.structs.replace(card, version="trees-new"), onnx, private)
    current = tmp_path / "current"
    current.symlink_to(BUILTIN)
    town.clock.speed = 600  # rounds follow each other within seconds
    town.config = msgspec.structs.replace(
        town.config,
        detector=schema.Detector(model=str(current)),
        commands=schema.Commands(signers=[key]),
    )
    for k in range(48):
        town.write(town.first + k, "D1", town.DELTA, town.day())
        town.write(town.first + k, "D2", town.DELTA, town.day())
    town.flush()
    steps = [(45, BUILTIN, card.version), (46, tmp_path / "new", "trees-new"), (47, BUILTIN, card.version)]  # fmt: skip
    town.clock.civil = town.calendar.begin(town.first + 46) + 3 * 3600
    scored_by = []

    def walked() -> bool:
        """Once the day of a step is scored: note by which model, then take the next step."""
        day, _, version = steps[len(scored_by)]
        if not town.scored(town.first + day):
            return False
        with contextlib.closing(Store(town.folder / "detector.db", reader=True)) as store:
            newest = list(store.logits(version, town.first + day, town.first + day))
        scored_by.append(version if newest else None)
        if len(scored_by) == len(steps):
            return True
        day, target, _ = steps[len(scored_by)]
        beside = tmp_path / "beside"
        beside.symlink_to(target)
        beside.replace(current)
        town.clock.civil = town.calendar.begin(town.first + day + 1) + 3 * 3600
        town.write(town.first + day + 1, "D1", town.DELTA, town.day())  # a commit wakes it
        return False

    await town.until(walked)
    assert scored_by == [card.version, "trees-new", card.version]


@pytest.mark.parametrize("fault", ["no onnxruntime", "not trusted"])
async def test_without_a_usable_model_the_rules_go_on_and_one_line_says_so(
    town,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if fault == "no onnxruntime":
        (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        says = "onnxruntime is not installed"
    else:
        shutil.copytree(BUILTIN, tmp_path / "other")
        (tmp_path / "other" / "model.sig").write_text("00" * 64)
        town.config = msgspec.structs.replace(
            town.config, detector=schema.Detector(model=str(tmp_path / "other"))
        )
        says = "no trusted key signed"
    for k in range(64):
        town.write(town.first + k, "D1", town.DELTA, np.zeros(96, int) if k >= 58 else town.day())
    town.flush()
    for k in (62, 63, 64):
        town.clock.civil = town.calendar.begin(town.first + k) + 3 * 3600
        await town.until(lambda k=k: town.scored(town.first + k - 1))
    assert [f["kind"] for f in town.findings()] == ["stopped"]
    lines = [r.getMessage() for r in caplog.records if says in r.getMessage()]
    assert len(lines) == 3, "one a run, and these are three"


async def test_a_kill_between_journal_and_file_tells_the_same_finding_again(town) -> None:
    for k in range(36):
        town.write(town.first + k, "D1", town.DELTA, np.zeros(96, int) if k >= 31 else town.day())
    town.flush()
    town.clock.civil = town.calendar.begin(town.first + 36) + 3 * 3600
    saved = Detector._save_findings

    def killed(self: Detector) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    Detector._save_findings = killed  # type: ignore[method-assign]
    try:
        await town.until(lambda: town.findings())
    finally:
        Detector._save_findings = saved  # type: ignore[method-assign]
    await town.until(lambda: len(town.findings()) >= 2 and town.scored(town.first + 35))
    assert len({(f["id"], f["rev"]) for f in town.findings()}) == 1
