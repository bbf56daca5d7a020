"""How good a detector is on labelled readings, counted as an operator would count.

A finding is *right* when it begins on a day of an anomaly; an anomaly is found when one does. A finding that begins
within ECHO_DAYS after an anomaly still sees it in its windows: it is neither right nor false, and counted apart. Every
other finding is false. Findings of all kinds of one meter that overlap are one. False alarms are per meter-month of
30.4 days with readings, days of anomalies and their echo left out. AUC is over meter-days with a score.

Intervals: Wilson for shares, exact Poisson (by its chi-square approximation) for rates, both 95 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector import baselines, features, replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.detector.readings import Label

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
ECHO_DAYS = 14
MONTH_DAYS = 30.4


def evaluate(
    wh: Floats, labels: Sequence[Label], judge: replay.Judge, *, compare: bool = True
) -> dict[str, Any]:
    """The document of `opendcu model evaluate --json`.

    Args:
        wh: half hours, shape (meters, days, 48).
        compare: with the baselines, which are given what ours is not: a threshold taken from these very readings, so that
            they give no more false alarms than ours, and training on the clean days among them.
    """
    episodes, scores = replay.run(wh, judge)
    begins = [(e.meter, e.first) for e in episodes]
    known = np.isfinite(wh).sum(axis=2) >= features.KNOWN_SLOTS
    result = count(begins, scores, labels, known)
    result["curve"] = _curve(scores, replay.rule_fires(wh), labels, known)
    if compare:
        result["baselines"] = _compare(wh, labels, known, result["false_alarms"])
    return result


def count(
    begins: Sequence[tuple[int, int]], scores: Floats, labels: Sequence[Label], known: Mask
) -> dict[str, Any]:
    """Figures of findings that begin on (meter, day)."""
    clean = known.copy()
    active = np.zeros(known.shape, np.bool_)
    for label in labels:
        active[label.meter, label.first : label.end] = True
        clean[label.meter, label.first : label.end + ECHO_DAYS] = False
    hits = [
        [d - label.first for m, d in begins if m == label.meter and label.first <= d < label.end]
        for label in labels
    ]
    false = sum(1 for m, d in begins if not _near(m, d, labels))
    late = sum(1 for m, d in begins if _near(m, d, labels) and not active[m, d])
    months = float(clean.sum()) / MONTH_DAYS
    found = sum(bool(h) for h in hits)
    delays = [h[0] for h in hits if h]
    by_kind: dict[str, dict[str, Any]] = {}
    for kind in sorted({label.kind for label in labels}):
        own = [h for h, label in zip(hits, labels, strict=True) if label.kind == kind]
        some = sum(bool(h) for h in own)
        by_kind[kind] = {
            "anomalies": len(own),
            "found": some,
            "found_rate": _round(some / len(own)),
            "median_delay_days": _median([h[0] for h in own if h]),
            "interval": wilson(some, len(own)),
        }
    scored = np.isfinite(scores)
    return {
        "meters": len(known),
        "meter_months": _round(months, 1),
        "anomalies": len(labels),
        "found": found,
        "found_rate": _round(found / len(labels)) if labels else None,
        "found_rate_interval": wilson(found, len(labels)),
        "false_alarms": false,
        "false_alarms_per_meter_month": _round(false / months, 4) if months else None,
        "false_alarms_interval": [_round(v / months, 4) for v in poisson(false)]
        if months
        else None,
        "late": late,
        "delays_days": sorted(delays),
        "median_delay_days": _median(delays),
        "auc": auc(scores[active & scored], scores[clean & scored]),
        "by_kind": by_kind,
    }


def _near(meter: int, day: int, labels: Sequence[Label]) -> bool:
    """Does the day belong to an anomaly of the meter, or to its echo?"""
    return any(m.meter == meter and m.first <= day < m.end + ECHO_DAYS for m in labels)


def _compare(wh: Floats, labels: Sequence[Label], known: Mask, allowed: int) -> dict[str, Any]:
    """The baselines at the threshold that gives them no more false alarms than allowed."""
    days = features.daily(wh)
    table = features.windows(days, range(wh.shape[1]))
    table = features.against_fleet(table, features.fleet_levels(table))
    usable = np.isfinite(table[:, :, 0])
    clean = usable.copy()
    for label in labels:
        clean[label.meter, label.first : label.end + features.NEEDED_DAYS] = False
    out: dict[str, Any] = {}
    forest, by = baselines.forest()
    for name, make in (("isolation_forest", forest), ("autoencoder", baselines.autoencoder)):
        scores = np.full(usable.shape, np.nan)
        if clean.any():
            scores[usable] = make(table[usable], clean[usable])
        out[name] = _matched(replay.averaged(scores, 3), labels, known, allowed)
    out["isolation_forest"]["by"] = by
    out["seasonal_z"] = _matched(baselines.seasonal_z(wh), labels, known, allowed)
    return out


def _curve(
    scores: Floats, fires: Mask, labels: Sequence[Label], known: Mask
) -> list[tuple[float, float]]:
    """(false alarms per meter-month, share found) over thresholds, strictest first; nothing frozen, so an estimate."""
    finite = scores[np.isfinite(scores)]
    out = []
    for share in np.geomspace(1e-4, 0.1, 40) if len(finite) and labels else ():
        begins = replay.begins_of(scores, float(np.quantile(finite, 1 - share)), fires)
        figures = count(begins, scores, labels, known)
        out.append((figures["false_alarms_per_meter_month"] or 0.0, figures["found_rate"]))
    return out


def _matched(scores: Floats, labels: Sequence[Label], known: Mask, allowed: int) -> dict[str, Any]:
    """Figures at the lowest threshold with no more than `allowed` false alarms."""
    finite = scores[np.isfinite(scores)]
    best = count([], scores, labels, known)
    curve: list[tuple[float, float]] = []
    fits = True
    for share in np.geomspace(1e-4, 0.2, 60) if len(finite) else ():
        with np.errstate(invalid="ignore"):
            begins = replay.episodes_of(scores > np.quantile(finite, 1 - share))
        figures = count(begins, scores, labels, known)
        fits = fits and figures["false_alarms"] <= allowed
        best = figures if fits else best
        curve.append((figures["false_alarms_per_meter_month"] or 0.0, figures["found_rate"] or 0.0))
    return best | {"curve": curve}


def auc(positive: Floats, negative: Floats) -> float | None:
    """Chance that an anomalous day scores above a clean one; ties count half."""
    if not len(positive) or not len(negative):
        return None
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return _round(float(above) / (len(positive) * len(negative)))


def wilson(hits: int, total: int) -> list[float] | None:
    """95 % interval of a share."""
    if not total:
        return None
    z = 1.96
    p, d = hits / total, 1 + z * z / total
    middle = p + z * z / (2 * total)
    half = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return [_round(float(max(0, middle - half) / d)), _round(float(min(d, middle + half) / d))]


def poisson(events: int) -> tuple[float, float]:
    """95 % interval of a count, by Wilson and Hilferty's approximation of chi-square."""
    z = 1.96

    def bound(k: float, sign: float) -> float:
        return k * float(1 - 1 / (9 * k) + sign * z / (3 * np.sqrt(k))) ** 3

    return (bound(events, -1) if events else 0.0), bound(events + 1, 1)


def _median(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None


def _round(value: float, digits: int = 3) -> float:
    return round(float(value), digits)
