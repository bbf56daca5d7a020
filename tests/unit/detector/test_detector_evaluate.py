"""Files of readings and labels, and how findings are counted."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from edge_core.detector import baselines, evaluate, readings, replay
from edge_core.detector.readings import Label


def stamped(minutes: int, count: int, first: str = "2026-03-01T00:30+05:30") -> list[str]:
    from datetime import datetime, timedelta

    begin = datetime.fromisoformat(first)
    return [
        (begin + timedelta(minutes=minutes * k)).isoformat(timespec="minutes") for k in range(count)
    ]


def file_of(path: Path, stamps: list[str], columns: dict[str, list[object]]) -> Path:
    lines = ["interval_end," + ",".join(columns)]
    lines += [
        f"{stamp}," + ",".join(str(v) for v in row)
        for stamp, *row in zip(stamps, *columns.values(), strict=True)
    ]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_half_hours_come_as_they_are(tmp_path: Path) -> None:
    values: list[object] = list(range(96))
    values[5] = ""
    for name in ("r.csv", "r.csv.gz"):
        table = readings.read(
            file_of(tmp_path / name, stamped(30, 96), {"A": values, "B": [1] * 96})
        )
        assert (table.meters, table.first, table.wh.shape) == (["A", "B"], "2026-03-01", (2, 2, 48))
        assert np.isnan(table.wh[0, 0, 5])
        assert table.wh[0, 1, 47] == 95


def test_quarters_are_summed_and_hours_are_halved(tmp_path: Path) -> None:
    quarters: list[object] = [10] * 96
    quarters[7] = ""
    table = readings.read(
        file_of(tmp_path / "q.csv", stamped(15, 96, "2026-03-01T00:15+05:30"), {"A": quarters})
    )
    assert table.wh[0, 0, 0] == 20
    assert np.isnan(table.wh[0, 0, 3])
    hours = readings.read(
        file_of(tmp_path / "h.csv", stamped(60, 24, "2026-03-01T01:00+05:30"), {"A": [10] * 24})
    )
    assert (hours.wh == 5).all()


def test_a_first_row_at_midnight_belongs_to_no_day_of_its_own(tmp_path: Path) -> None:
    table = readings.read(
        file_of(
            tmp_path / "m.csv", stamped(30, 97, "2026-03-01T00:00+00:00"), {"A": list(range(97))}
        )
    )
    assert (table.first, table.wh.shape) == ("2026-03-01", (1, 2, 48))
    assert table.wh[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,A\n", "interval_end"),
        ("interval_end,A,A\n", "two columns"),
        ("interval_end,A\n2026-03-01T00:30,1\n2026-03-01T01:00,1\n", "no offset"),
        ("interval_end,A\n2026-03-01T00:30+00:00,x\n", "line 2"),
        ("interval_end,A\n2026-03-01T00:30+00:00,1,2\n", "3 cells"),
        ("interval_end,A\n2026-03-01T00:30+00:00,1\n", "fewer"),
        ("interval_end,A\n2026-03-01T01:00+00:00,1\n2026-03-01T00:30+00:00,1\n", "rise"),
        ("interval_end,A\n2026-03-01T00:07+00:00,1\n2026-03-01T00:14+00:00,1\n", "half hours"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(readings.ReadingsRefused, match=says):
        readings.read(path)
    with pytest.raises(readings.ReadingsRefused):
        readings.read(tmp_path / "none.csv")
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(readings.ReadingsRefused):
        readings.read(tmp_path / "bad.csv.gz")


def test_labels_are_read_and_written(tmp_path: Path) -> None:
    table = readings.Readings(["A", "B"], np.zeros((2, 9, 48), np.float32), "2026-03-01")
    found = [Label(1, "h1", 3, 7, "0.300")]
    readings.write_labels(tmp_path / "l.csv", found, table.meters)
    assert readings.labels(tmp_path / "l.csv", table) == found
    readings.write(tmp_path / "r.csv.gz", table)
    again = readings.read(tmp_path / "r.csv.gz")
    assert again.first == table.first
    np.testing.assert_array_equal(again.wh, table.wh)
    (tmp_path / "l.csv").write_text("meter,kind,first_day,end_day,parameter\nC,h1,3,7,\n")
    with pytest.raises(readings.ReadingsRefused, match="line 2"):
        readings.labels(tmp_path / "l.csv", table)
    (tmp_path / "l.csv").write_text("meter,kind,first_day,end_day,parameter\nA,h1,7,7,\n")
    with pytest.raises(readings.ReadingsRefused, match="days 7 to 7"):
        readings.labels(tmp_path / "l.csv", table)


def test_findings_are_counted_as_an_operator_would() -> None:
    known = np.ones((3, 100), bool)
    labels = [Label(0, "h1", 20, 40, ""), Label(1, "h6", 50, 60, "")]
    begins = [(0, 25), (0, 30), (0, 39), (0, 45), (0, 60), (1, 49), (2, 10)]
    scores = np.zeros((3, 100))
    scores[0, 20:40] = 1
    result = evaluate.count(begins, scores, labels, known)
    assert (result["found"], result["anomalies"], result["false_alarms"], result["late"]) == (
        1,
        2,
        3,
        1,
    )
    assert result["median_delay_days"] == 5
    assert result["by_kind"]["h6"]["found"] == 0
    clean = 300 - (20 + 14) - (10 + 14)
    assert result["false_alarms_per_meter_month"] == pytest.approx(3 / (clean / 30.4), abs=1e-4)
    assert result["auc"] == pytest.approx(20 / 30 + 10 / 30 * 0.5, abs=1e-3)


def test_intervals() -> None:
    low, high = evaluate.wilson(8, 10)  # type: ignore[misc]
    assert low == pytest.approx(0.49, abs=0.01)
    assert high == pytest.approx(0.943, abs=0.01)
    low, high = evaluate.poisson(4)
    assert low == pytest.approx(1.09, abs=0.05)
    assert high == pytest.approx(10.24, abs=0.1)
    assert evaluate.poisson(0)[0] == 0
    assert evaluate.auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


def test_a_replay_raises_one_alarm_an_episode_and_keeps_it_out_of_the_baseline() -> None:
    rng = np.random.default_rng(0)
    wh = rng.integers(100, 500, (10, 120, 48)).astype(np.float32)
    wh[3, 80:100] *= 0.3

    def level(rows: np.ndarray) -> np.ndarray:
        return 20 * (-rows[:, 1] - 0.5)  # level_fleet_3, steep against LINGER

    episodes, mean = replay.run(wh, replay.Judge(level, 0.0, ((2, 0.0),)))
    assert [(e.meter, e.kinds) for e in episodes] == [(3, ["consumption"])]
    assert 81 <= episodes[0].first <= 83
    assert episodes[0].last >= 98
    assert np.isfinite(mean[:, 60:]).all()
    assert replay.run(wh, replay.Judge(None))[0] == []


def test_what_lasts_may_be_less_striking() -> None:
    logits = np.full((3, 30), -3.0)
    logits[0, 10:12] = 4  # short and strong
    logits[1, 10:24] = 1.5  # weak and long
    logits[2, 10:13] = 1.5  # weak and short
    scores = replay.scores_of(logits, ((2, 0.0), (8, 1.0)))
    begins = replay.begins_of(scores, 2.2, np.zeros(scores.shape, bool))
    assert begins == [(0, 11), (1, 17)]
    np.testing.assert_allclose(scores[1, 17], 2.5)


def test_an_episode_lingers_below_the_threshold_and_does_not_begin_there() -> None:
    scores = np.full((2, 60), -5.0)
    scores[:, 20] = 3
    scores[0, 21:40] = 1  # within LINGER of the threshold
    scores[:, 45] = 3
    quiet = np.zeros(scores.shape, bool)
    assert replay.begins_of(scores, 2.0, quiet) == [(0, 20), (1, 20), (1, 45)]
    scores[0, 45] = 1
    scores[0, 50] = 3
    assert (0, 50) not in replay.begins_of(scores, 2.0, quiet)


def test_averages_bear_one_missing_day() -> None:
    logits = np.array([[1.0, 2.0, 3.0, np.nan, 5.0, np.nan, np.nan, 8.0]])
    mean = replay.averaged(logits, 3)
    np.testing.assert_allclose(mean, [[np.nan, 1.5, 2.0, np.nan, 4.0, np.nan, np.nan, np.nan]])


def test_baselines_find_what_is_plain() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(600, 12)).astype(np.float32)
    table[:20] += 6
    clean = np.ones(600, bool)
    clean[:20] = False
    for make in (baselines.isolation_forest, baselines.autoencoder):
        scores = make(table, clean)
        assert evaluate.auc(scores[:20], scores[20:]) > 0.97, make  # type: ignore[operator]
    wh = rng.integers(100, 300, (2, 90, 48)).astype(np.float32)
    wh[1, 75:] *= 0.2
    z = baselines.seasonal_z(wh)
    assert z[1, 85] > 5 * z[0, 85]
