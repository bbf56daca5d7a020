"""Rules on days and evidence of rows: each fires on what it is for, and not on what merely looks like it."""

from __future__ import annotations

import numpy as np
import pytest

from edge_core.detector import balance, evidence, rules


@pytest.fixture
def wh() -> np.ndarray:
    """Three meters, NEEDED_DAYS lively days."""
    return np.random.default_rng(2).integers(60, 900, (3, rules.NEEDED_DAYS, 48)).astype(np.float32)


def fired(wh: np.ndarray, trusted: np.ndarray | None = None) -> dict[str, list[int]]:
    verdicts = rules.judge(wh, trusted)
    assert set(verdicts) | {balance.LOSS, balance.GAIN} == set(rules.EXPLANATIONS)
    return {k: np.flatnonzero(mask).tolist() for k, (mask, _, _) in verdicts.items() if mask.any()}


def test_ordinary_days_are_quiet(wh: np.ndarray) -> None:
    assert fired(wh) == {}


def test_a_register_that_stands_still(wh: np.ndarray) -> None:
    wh[1, -rules.RECENT_DAYS :] = 0
    assert fired(wh) == {"stopped": [1]}
    wh[1, :20, 10:14] = 0  # a home that read zero before
    assert "stopped" not in fired(wh)


def test_an_empty_home_that_reads_zero_for_weeks_is_quiet(wh: np.ndarray) -> None:
    wh[0, 5:] = 0
    wh[0, ::4, 20:30] = 25
    assert fired(wh) == {}


def test_a_flat_day(wh: np.ndarray) -> None:
    wh[2, -1] = 412
    wh[2, -1, 5] = 413
    assert fired(wh)["flat"] == [2]
    wh[2, 3] = 412  # flat days are usual there
    assert "flat" not in fired(wh)


def test_a_copied_day(wh: np.ndarray) -> None:
    wh[0, -1] = wh[0, -4]
    assert fired(wh) == {"repeated-day": [0]}
    wh[0, -1], wh[0, -4] = 70, 70  # constant days are no copies
    assert "repeated-day" not in fired(wh)


def test_a_spike(wh: np.ndarray) -> None:
    wh[1, -1, 7] = 9_000
    assert fired(wh) == {"spike": [1]}
    wh[1, 10, 7] = 6_000
    assert fired(wh) == {}
    trusted = np.ones(wh.shape[:2], bool)
    trusted[1, 10] = False  # that day is itself under suspicion
    assert fired(wh, trusted) == {"spike": [1]}


def test_a_fall_and_a_rise_that_last(wh: np.ndarray) -> None:
    wh[0, -5:] = wh[0, -5:] * 0.03
    wh[2, -5:] *= 5
    found = fired(wh)
    assert found["sudden-drop"] == [0]
    assert found["sudden-rise"] == [2]
    wh[0, -2] = 500
    assert "sudden-drop" not in fired(wh)


def test_a_home_that_falls_to_exact_zeros_as_before_is_empty(wh: np.ndarray) -> None:
    wh[0, :26, 10:20] = 0
    wh[0, -5:] = 0
    assert fired(wh) == {}
    wh[0, -5:, 5] = 40
    assert fired(wh) == {"sudden-drop": [0]}


def test_a_home_in_which_nobody_lives_may_stop(wh: np.ndarray) -> None:
    wh[1] = 5
    wh[1, :, ::7] = 8
    wh[1, -5:] = 0
    assert "stopped" not in fired(wh)


def test_days_that_are_missing_are_not_judged(wh: np.ndarray) -> None:
    wh[1, -rules.RECENT_DAYS :] = 0
    wh[1, -1, :10] = np.nan
    assert fired(wh) == {}


def rows(count: int = 8, **more: object) -> evidence.Rows:
    plain = {
        "seconds": np.full(count, 900.0),
        "wh": np.full(count, 500.0),
        "export_wh": None,
        "vah": None,
        "volts": [np.full(count, 230.0)] * 3,
        "amps": [np.full(count, 3.0)] * 3,
        "neutral": None,
        "hour": np.linspace(8, 10, count),
        "fell": np.zeros(count, bool),
        "scaled": False,
    }
    return evidence.Rows(**(plain | more))  # type: ignore[arg-type]


def test_sound_rows_show_nothing() -> None:
    assert evidence.look(rows()) == {}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("voltage-low", {"volts": [np.full(8, 200.0)] * 3}),
        ("voltage-high", {"volts": [np.full(8, 258.0)] * 3}),
        ("neutral-loss", {"volts": [np.full(8, 265.0), np.full(8, 190.0), np.full(8, 230.0)]}),
        (
            "current-without-voltage",
            {"volts": [np.full(8, 20.0), np.full(8, 230.0), np.full(8, 231.0)]},
        ),
        ("current-without-energy", {"wh": np.zeros(8)}),
        ("current-without-energy", {"wh": np.zeros(8), "scaled": True}),
        (
            "current-reversed",
            {"wh": np.zeros(8), "export_wh": np.full(8, 520.0), "hour": np.full(8, 23.5)},
        ),
        ("voltage-imbalance", {"volts": [np.full(8, 246.0), np.full(8, 228.0), np.full(8, 224.0)]}),
        ("neutral-current", {"neutral": np.full(8, 11.0)}),
        ("power-factor", {"vah": np.full(8, 1500.0)}),
        ("register-fell", {"fell": np.ones(8, bool)}),
    ],
)
def test_evidence(kind: str, more: dict[str, object]) -> None:
    found = evidence.look(rows(**more))
    assert list(found) == [kind]
    mask, extreme = found[kind]
    assert mask.all()
    assert np.isfinite(extreme)
    assert kind in evidence.LASTING_S
    assert kind in evidence.EXPECTED


def test_a_single_phase_leak_shows_in_the_neutral() -> None:
    single = {
        "volts": [np.full(8, 231.0), None, None],
        "amps": [np.full(8, 9.0), None, None],
    }
    assert evidence.look(rows(**single, neutral=np.full(8, 9.3))) == {}
    assert list(evidence.look(rows(**single, neutral=np.full(8, 6.0)))) == ["neutral-current"]


def test_three_phases_may_have_a_neutral_current_up_to_their_sum() -> None:
    assert evidence.look(rows(neutral=np.full(8, 9.0))) == {}


def test_uneven_voltages_within_five_per_cent_are_usual() -> None:
    volts = [np.full(8, 238.0), np.full(8, 229.0), np.full(8, 224.0)]
    assert evidence.look(rows(volts=volts)) == {}


def test_export_by_day_is_a_solar_roof() -> None:
    assert (
        evidence.look(rows(wh=np.zeros(8), export_wh=np.full(8, 2000.0), hour=np.full(8, 12.0)))
        == {}
    )


def test_instrument_transformers_need_exact_zero() -> None:
    assert evidence.look(rows(wh=np.full(8, 12.0), scaled=True)) == {}
    assert list(evidence.look(rows(wh=np.full(8, 12.0)))) == ["current-without-energy"]


def test_voltages_of_no_known_nominal_are_left_alone() -> None:
    assert evidence.look(rows(volts=[np.full(8, 11_000.0)] * 3)) == {}
    assert evidence.nominal([np.full(4, 118.0), None, None]) == 120.0
