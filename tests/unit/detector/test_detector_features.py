"""Features: what they are, that they see no future, and that level, season and shape are kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from edge_core.detector import features, inject

COLUMN = {name: k for k, name in enumerate(features.NAMES)}


@pytest.fixture
def wh() -> np.ndarray:
    """Twelve meters, 90 days, each with an evening peak of its own and some noise."""
    rng = np.random.default_rng(1)
    shape = (
        60
        + 700 * np.exp(-(((np.arange(48) - 38) / 4) ** 2))
        + 300 * np.exp(-(((np.arange(48) - 15) / 3) ** 2))
    )
    level = rng.uniform(0.5, 2, (12, 1, 1))
    return (shape * level * rng.lognormal(0, 0.3, (12, 90, 48))).astype(np.float32)


def table(wh: np.ndarray, days: list[int]) -> np.ndarray:
    raw = features.windows(features.daily(wh), days)
    return features.against_fleet(raw, features.fleet_levels(raw))


def test_names_and_columns_agree(wh: np.ndarray) -> None:
    assert len(set(features.NAMES)) == len(features.NAMES)
    assert table(wh, [89]).shape == (12, 1, len(features.NAMES))


def test_many_days_at_once_are_the_days_one_by_one(wh: np.ndarray) -> None:
    wh[3, 50:54] = np.nan
    together = features.windows(features.daily(wh), range(90))
    for day in (30, 57, 60, 89):
        low = max(0, day - features.NEEDED_DAYS + 1)
        alone = features.windows(features.daily(wh[:, low : day + 1]), [day - low])
        np.testing.assert_allclose(alone[:, 0], together[:, day], atol=2e-3, equal_nan=True)


def test_levels_alone_are_those_of_all_features(wh: np.ndarray) -> None:
    wh[3, 50:54] = np.nan
    wh[4, 70:] = np.nan
    trusted = np.random.default_rng(0).random((12, 90)) > 0.2
    whole = features.windows(features.daily(wh), range(90), trusted)
    alone = features.levels(wh, range(90), trusted)
    places = [COLUMN[f"level_{w}"] for w in features.WINDOWS]
    np.testing.assert_allclose(alone, whole[:, :, places], atol=1e-4, equal_nan=True)
    np.testing.assert_allclose(features.fleet_of(alone), features.fleet_levels(whole), atol=1e-4)


def test_nothing_looks_into_the_future(wh: np.ndarray) -> None:
    before = features.windows(features.daily(wh), range(70))
    wh[:, 70:] = 1e6
    np.testing.assert_array_equal(features.windows(features.daily(wh), range(70)), before)


def test_without_a_history_there_are_no_features(wh: np.ndarray) -> None:
    out = table(wh, [26, 27, 28])
    assert np.isnan(out[:, 0]).all()
    assert np.isfinite(out[:, 2]).all()
    wh[4, 60:] = np.nan
    assert np.isnan(table(wh, [89])[4]).all()


def test_a_cold_week_of_the_whole_fleet_is_taken_off(wh: np.ndarray) -> None:
    wh[:, -7:] *= 2
    wh[5, -7:] /= 2  # did not take part
    out = table(wh, [89])[:, 0]
    assert (out[:5, COLUMN["level_7"]] > 0.5).all()
    assert (np.abs(out[:5, COLUMN["level_fleet_7"]]) < 0.35).all()
    assert out[5, COLUMN["level_fleet_7"]] < -0.3


@pytest.mark.parametrize(
    ("kind", "column", "sign"),
    [("h1", "level_fleet_14", -1), ("h5", "variation_7", -1), ("h6", "reversed_z_14", 1), ("h4", "echo_7", -1),
     ("shift", "shifted_14", 1), ("h2", "zero_run_7", 1), ("rise", "level_z_7", 1)],
)  # fmt: skip
def test_each_pattern_moves_its_feature(wh: np.ndarray, kind: str, column: str, sign: int) -> None:
    normal = table(wh, [89])[:, 0, COLUMN[column]]
    rng = np.random.default_rng(5)
    altered = wh.copy()
    altered[0, -20:], _ = inject.apply(kind, wh[0, -20:], rng)
    moved = table(altered, [89])[0, 0, COLUMN[column]]
    others = normal[1:] * sign
    assert moved * sign > others.max(), f"{moved} against {normal}"


def test_days_that_are_not_trusted_stand_in_no_baseline(wh: np.ndarray) -> None:
    wh[2, 40:60] *= 0.2
    trusted = np.ones((12, 90), bool)
    plain = features.windows(features.daily(wh), [89], trusted)[2, 0, COLUMN["level_7"]]
    trusted[2, 40:60] = False
    kept = features.windows(features.daily(wh), [89], trusted)[2, 0, COLUMN["level_7"]]
    assert plain > 0.3
    assert abs(kept) < 0.15


def test_small_fleets_are_believed_less(wh: np.ndarray) -> None:
    wh[:, -7:] *= 2
    raw = features.windows(features.daily(wh), [89])
    many, few = features.fleet_levels(raw), features.fleet_levels(raw[:2])
    assert many[0, 1] > 2 * few[0, 1] > 0


def test_injected_patterns_keep_what_they_promise(wh: np.ndarray) -> None:
    rng = np.random.default_rng(8)
    days = wh[0, :20]
    for kind in (*inject.ATTACKS, *inject.FAULTS):
        altered, _ = inject.apply(kind, days, rng)
        assert altered.shape == days.shape
        assert (altered == np.rint(altered)).all()
    h1, share = inject.apply("h1", days, rng)
    assert 0.1 <= share <= 0.8
    np.testing.assert_allclose(h1.sum() / days.sum(), share, rtol=0.01)
    h5, _ = inject.apply("h5", days, rng)
    np.testing.assert_allclose(h5.sum(axis=1), days.sum(axis=1), atol=24)
    h6, _ = inject.apply("h6", days, rng)
    np.testing.assert_array_equal(h6, np.rint(days[:, ::-1]))
    h2, _ = inject.apply("h2", days, rng)
    assert ((h2 == 0).sum(axis=1) >= 8).all()
    zero, _ = inject.apply("zero", days, rng)
    assert not zero.any()
    with pytest.raises(KeyError):
        inject.apply("h7", days, rng)


def test_scattered_anomalies_are_where_their_labels_say(wh: np.ndarray) -> None:
    long = np.concatenate([wh] * 4, axis=1)
    altered, labels = inject.scatter(
        long, np.random.default_rng(3), kinds=("h1", "zero"), share=0.5
    )
    assert labels
    changed = (altered != long).any(axis=2)
    inside = np.zeros_like(changed)
    for label in labels:
        inside[label.meter, label.first : label.end] = True
    assert not (changed & ~inside).any()
    assert (changed & inside).sum() >= 0.95 * inside.sum()
