"""The energy balance of a transformer: losses that rise, gaps that are none, meters under the wrong transformer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_core.cli.check import summary
from edge_core.config.load import load
from edge_core.config.schema import Meter
from edge_core.detector import balance, rules
from edge_core.detector.topology import measured

DAYS, METERS = 50, 20


@pytest.fixture
def wh() -> np.ndarray:
    """Row 0: the transformer's meter, 5 % above the sum of the others, a little more when loads are high."""
    rng = np.random.default_rng(3)
    below = rng.gamma(2.0, 150, (METERS, DAYS, 48)) * rng.uniform(0.7, 1.3, (1, DAYS, 1))
    total = below.sum(axis=0)
    own = total * 1.04 + total**2 / total.mean() * 0.01
    return np.concatenate([own[None], below]).astype(np.float32)


def judged(
    wh: np.ndarray, at: int = DAYS - 1, multipliers: dict[int, int] | None = None, **more: object
) -> tuple[str, dict] | None:
    each = balance.Balance(0, range(1, len(wh)), multipliers or {}, wh.shape[1])
    for first in range(0, len(wh), 8):  # as groups come
        each.add(wh[first : first + 8], first)
    return each.judge(at, **more)  # type: ignore[arg-type]


def test_technical_losses_are_usual(wh: np.ndarray) -> None:
    assert all(judged(wh, at) is None for at in range(DAYS))


def test_a_meter_that_counts_a_third_is_a_loss(wh: np.ndarray) -> None:
    wh[3, -6:] *= 0.05
    wh[4, -6:] *= 0.05
    kind, body = judged(wh)  # type: ignore[misc]
    assert kind == balance.LOSS
    assert body["loss_share"] > body["usual_share"] + balance.MARGIN
    stolen = float(wh[3:5, -30:-6].sum(axis=(0, 2)).mean())
    assert body["seen_wh"] - body["expected_wh"] == pytest.approx(stolen, rel=0.25)
    assert (body["meters"], body["days"]) == (METERS, balance.RECENT_DAYS)
    assert judged(wh, DAYS - 4) is None, "three days are not enough"


def test_a_high_loss_needs_no_history(wh: np.ndarray) -> None:
    wh[1:] *= 0.8
    kind, body = judged(wh[:, :6], 5)  # type: ignore[misc]
    assert (kind, body["usual_share"]) == (balance.LOSS, None)
    assert body["threshold_share"] == balance.HIGH_LOSS


def test_missing_meters_are_estimated_and_many_of_them_leave_the_day_out(wh: np.ndarray) -> None:
    wh[5, -8:] = np.nan  # silent for days
    wh[7, :, 30:34] = np.nan  # never there in the afternoon
    assert judged(wh) is None
    wh[3:5, -6:] *= 0.05
    assert judged(wh) is not None
    wh[10:14, -2:] = np.nan
    assert judged(wh) is None


def test_days_of_a_loss_do_not_become_usual(wh: np.ndarray) -> None:
    wh[3:5, -32:] *= 0.05
    assert judged(wh) is None, "a month of it: by itself it is the usual loss"
    trusted = np.ones(DAYS, bool)
    trusted[-32:] = False
    kind, _ = judged(wh, trusted=trusted)  # type: ignore[misc]
    assert kind == balance.LOSS


def test_multipliers_stand_between_registers_and_energies(wh: np.ndarray) -> None:
    wh[0] /= 40
    assert judged(wh, multipliers={0: 40}) is None
    kind, body = judged(wh)  # type: ignore[misc]
    assert kind == balance.GAIN, "without it the meters count far more than the transformer"
    assert body["loss_share"] < 0
    assert {balance.GAIN, balance.LOSS} <= set(rules.EXPLANATIONS)


def test_the_meter_that_has_the_name_of_the_transformer_measures_it() -> None:
    plain = Meter(id="T1", line="l", model="m", address="a")
    meters = [
        plain,
        *(
            msgspec.structs.replace(plain, id=name, transformer=at)
            for name, at in (("A", "T1"), ("B", "T1"), ("C", "T2"), ("D", ""))
        ),
    ]
    assert measured({m.id: m for m in meters}) == {"T1": ["A", "B"]}
    sum_meter = msgspec.structs.replace(plain, transformer="T1")
    assert measured({m.id: m for m in [sum_meter, *meters[1:]]}) == {"T1": ["A", "B"]}


def test_check_shows_which_transformers_are_balanced(tmp_path: Path) -> None:
    table = '[[meters]]\nid = "{}"\nline = "l"\nmodel = "is15959-3ph"\naddress = "10.0.0.{}:4059"\ntransformer = "{}"\n'
    meters = [("DT-7", 1, ""), ("A", 2, "DT-7"), ("B", 3, "DT-7"), ("C", 4, "DT-8")]
    (tmp_path / "gateway.toml").write_text(
        '[gateway]\nid = "dcu-1"\n[uplink]\nurl = "mqtt://127.0.0.1"\n'
        '[[lines]]\nid = "l"\ntransport = "tcp"\nframing = "wrapper"\n'
        + "".join(table.format(*meter) for meter in meters)
    )
    document = summary(load(str(tmp_path / "gateway.toml")))
    assert document["transformers"] == {"DT-7": 2}
