"""The scoring child's work in this process: one day at a time must say what many days at once say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_core.detector import balance, features, inject, replay, scorer
from edge_core.detector.history import GROUP, NO_LOGIT, Store, decode, encode, encode_logits
from edge_core.detector.model import BUILTIN, load, trusted_keys
from edge_core.detector.session import session_of

FIRST, DAYS, METERS = 739_600, 76, 70


@pytest.fixture(scope="module")
def wh() -> np.ndarray:
    """Lively meters with habits, some of them altered for the last twenty days."""
    rng = np.random.default_rng(11)
    habit = rng.gamma(2.0, 120, (METERS, 1, 48))
    wh = np.rint(habit * rng.gamma(6.0, 1 / 6, (METERS, DAYS, 48))).astype(np.float32)
    for meter, kind in ((3, "h3"), (20, "h4"), (66, "night")):
        wh[meter, -20:], _ = inject.apply(kind, wh[meter, -20:], rng)
    wh[9, 50:53] = np.nan
    return wh


@pytest.fixture
def path(wh: np.ndarray, tmp_path: Path) -> Path:
    store = Store(tmp_path / "detector.db")
    for number in range(METERS):
        store.number(f"M{number}")
    store.begin()
    store.save_meters()
    for part in range(store.parts()):
        group = np.full((GROUP, DAYS, 48), np.nan, np.float32)
        some = wh[part * GROUP : (part + 1) * GROUP]
        group[: len(some)] = some
        for day in range(DAYS):
            store.put_history(FIRST + day, part, encode(group[:, day]))
    store.commit()
    store.close()
    return tmp_path / "detector.db"


def request(path: Path, days: list[int], **more: Any) -> dict[str, Any]:
    card, _ = load(BUILTIN, trusted_keys())
    importance = card.data["importance"]
    model = {
        "onnx": str(BUILTIN / "model.onnx"),
        "sha256": card.onnx_sha256,
        "version": card.version,
        "threshold": card.threshold(0.02),
        "scales": card.scales,
        "typical": {k: v for k, v in card.typical.items() if k in importance},
        "weights": importance,
        "shadow": False,
    }
    return {"file": str(path), "days": [[d, [0, 1]] for d in days], "model": model} | more


def keep(path: Path, answer: dict[str, Any]) -> None:
    """As the gateway does with an answer."""
    store = Store(path)
    store.begin()
    for day, part, version, logits in answer["logits"]:
        store.put_logits(day, part, version, logits)
    store.commit()
    store.close()


def test_day_by_day_says_what_all_at_once_says(path: Path, wh: np.ndarray) -> None:
    last = [FIRST + DAYS - k for k in (3, 2, 1)]
    together = scorer.answer(request(path, last))
    alone: dict[str, list[Any]] = {"fired": [], "scores": []}
    computed = []
    for day in last:
        answer = scorer.answer(request(path, [day]))
        keep(path, answer)
        computed.append(len({d for d, *_ in answer["logits"]}))
        for key, rows in alone.items():
            rows += answer[key]
    assert computed == [10, 1, 1], "what is kept is not computed again"
    order = lambda rows: sorted(map(repr, rows))  # noqa: E731
    assert order(together["scores"]) == order(alone["scores"])
    assert order(together["fired"]) == order(alone["fired"])
    assert any(kind == replay.CONSUMPTION for _, _, kind, _ in together["fired"])
    # and both say what the replay of an evaluation says
    card, onnx = load(BUILTIN, trusted_keys())
    judge = replay.Judge(session_of(onnx), card.threshold(0.02), card.scales)
    stored = decode(encode(wh))
    days = features.daily(stored)
    table = features.windows(days, range(DAYS))
    logits = replay.logits_of(features.against_fleet(table, features.fleet_levels(table)), judge)
    expected = replay.scores_of(logits, card.scales)[:, -1]
    got = np.concatenate([row for day, _, row in together["scores"] if day == last[-1]])[:METERS]
    np.testing.assert_allclose(
        got, [scorer.thousandths(v) if v == v else -1 for v in expected], atol=1
    )


@pytest.mark.parametrize("cells", [1, 10_000])
def test_memory_bounds_do_not_change_the_answer(
    path: Path, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scorer.answer(request(path, [FIRST + DAYS - 2, FIRST + DAYS - 1]))
    monkeypatch.setattr(scorer, "CELLS", cells)
    other = scorer.answer(request(path, [FIRST + DAYS - 2, FIRST + DAYS - 1]))
    for key in ("fired", "scores"):
        assert sorted(map(repr, plain[key])) == sorted(map(repr, other[key]))


def test_logits_of_another_model_are_not_taken(path: Path) -> None:
    answer = scorer.answer(request(path, [FIRST + DAYS - 2]))
    keep(path, answer)
    other = request(path, [FIRST + DAYS - 1])
    other["model"]["version"] = "trees-x"
    assert len({d for d, *_ in scorer.answer(other)["logits"]}) == 10


def test_a_changed_onnx_file_is_told_and_the_rules_go_on(path: Path) -> None:
    asked = request(path, [FIRST + DAYS - 1])
    asked["model"]["sha256"] = "00" * 32
    answer = scorer.answer(asked)
    assert "not the file that was verified" in answer["errors"][asked["model"]["onnx"]]
    assert answer["scores"] == []


def test_a_transformer_that_gives_more_than_its_meters_count(path: Path, wh: np.ndarray) -> None:
    store = Store(path)
    total = wh[1:65, :].sum(axis=0) * 1.04
    for meter in range(1, 40):
        wh_of = decode(store.window(0, FIRST, FIRST + DAYS - 1))[meter]
        assert np.isfinite(wh_of).any()
    store.begin()
    for day in range(DAYS):
        codes = np.full((GROUP, 48), 0xFFFF, np.uint16)
        own = np.nan_to_num(total[day]) * (1.2 if day >= DAYS - 7 else 1.0) / 40
        codes[0] = encode(own[None])[0]
        store.put_history(FIRST + day, 0, codes)
    store.commit()
    store.close()
    topology = {"transformers": [[0, list(range(1, 65))]], "multipliers": {"0": 40}}
    answer = scorer.answer(request(path, [FIRST + DAYS - 1], **topology))
    (found,) = (f for f in answer["fired"] if f[2] in (balance.LOSS, balance.GAIN))
    day, meter, kind, body = found
    assert (day, meter, kind) == (FIRST + DAYS - 1, 0, balance.LOSS)
    assert body["loss_share"] == pytest.approx(1 - 1 / 1.2 / 1.04, abs=0.03)
    assert body["usual_share"] == pytest.approx(1 - 1 / 1.04, abs=0.02)


def test_logits_are_kept_in_thousandths() -> None:
    codes = encode_logits(np.array([1.23456, -40.0, np.nan, 5e4], np.float32))
    assert codes.tolist() == [1235, -32767, NO_LOGIT, 32767]
