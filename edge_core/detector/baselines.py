"""Simple detectors to compare with: seasonal z-score, isolation forest, autoencoder. Each gives a score a meter-day.

The isolation forest is that of Liu, Ting, Zhou, ICDM 2008 (100 trees of 256 rows): scikit-learn's where that is installed
(extra `evaluate`), else our own, so that a box needs no library to evaluate. The autoencoder is a small ReLU net trained
with Adam, in numpy. Both see standardised features of clean days only. Higher = stranger.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
WEEKS = 6


def seasonal_z(wh: Floats) -> Floats:
    """Mean over the last 7 days of |energy - mean of the same weekday in 6 weeks| / its deviation; shape (meters, days)."""
    known = np.isfinite(wh).sum(axis=2) >= 44
    total = np.where(known, np.where(np.isfinite(wh), wh, 0).sum(axis=2), np.nan)
    out = np.full(total.shape, np.nan)
    z = np.full(total.shape, np.nan)
    for day in range(7 * WEEKS, total.shape[1]):
        before = total[:, [day - 7 * k for k in range(1, WEEKS + 1)]]
        enough = np.isfinite(before).sum(axis=1) >= 3
        filled = np.where(enough[:, None], before, 0)
        mean, spread = np.nanmean(filled, axis=1), np.nanstd(filled, axis=1)
        z[:, day] = np.where(enough, (total[:, day] - mean) / (spread + 0.05 * mean + 100), np.nan)
    for day in range(7 * WEEKS + 6, total.shape[1]):
        week = z[:, day - 6 : day + 1]
        some = np.isfinite(week).sum(axis=1) >= 4
        out[:, day] = np.where(
            some, np.abs(np.nanmean(np.where(some[:, None], week, 0), axis=1)), np.nan
        )
    return np.asarray(out)


def _standardised(table: Floats, clean: Mask) -> Floats:
    middle = np.median(table[clean], axis=0)
    low, high = np.quantile(table[clean], (0.05, 0.95), axis=0)
    scaled = (table - middle) / np.maximum((high - low) / 2, 1e-3)
    return np.asarray(np.clip(scaled, -6, 6), np.float32)


def forest() -> tuple[Callable[[Floats, Mask], Floats], str]:
    """The isolation forest to compare with, and whose it is."""
    try:
        ensemble = importlib.import_module("sklearn.ensemble")
        version = importlib.import_module("sklearn").__version__
    except ImportError:
        return isolation_forest, "numpy"

    def theirs(table: Floats, clean: Mask) -> Floats:
        x = _standardised(table, clean)
        trained = ensemble.IsolationForest(n_estimators=100, max_samples="auto", random_state=0)
        trained.fit(x[clean])
        return np.asarray(-trained.score_samples(x))

    return theirs, f"scikit-learn {version}"


def isolation_forest(table: Floats, clean: Mask, seed: int = 0, trees: int = 100) -> Floats:
    """Anomaly scores of rows of features, trained on the clean ones; shapes (n, features), (n,)."""
    rng = np.random.default_rng(seed)
    x = _standardised(table, clean)
    source = x[clean]
    size = min(256, len(source))
    depths = np.zeros(len(x))
    for _ in range(trees):
        sample = source[rng.choice(len(source), size, replace=False)]
        _isolate(
            sample,
            np.arange(size),
            x,
            np.arange(len(x)),
            0,
            int(np.ceil(np.log2(size))),
            depths,
            rng,
        )
    return np.asarray(2.0 ** (-depths / trees / _path(size)))


def _path(size: int) -> float:
    """Mean depth of an unsuccessful search in a tree of `size` rows."""
    if size <= 1:
        return 0.0
    return (
        float(2 * (np.log(size - 1) + np.euler_gamma) - 2 * (size - 1) / size) if size > 2 else 1.0
    )


def _isolate(
    sample: Floats,
    own: Any,
    x: Floats,
    rows: Any,
    depth: int,
    most: int,
    depths: Floats,
    rng: np.random.Generator,
) -> None:
    """Grow a branch and drop the rows through it."""
    if not len(rows):
        return
    if depth >= most or len(own) <= 1:
        depths[rows] += depth + _path(len(own))
        return
    feature = int(rng.integers(sample.shape[1]))
    low, high = sample[own, feature].min(), sample[own, feature].max()
    if low == high:
        depths[rows] += depth + _path(len(own))
        return
    cut = rng.uniform(low, high)
    mine, theirs = sample[own, feature] < cut, x[rows, feature] < cut
    _isolate(sample, own[mine], x, rows[theirs], depth + 1, most, depths, rng)
    _isolate(sample, own[~mine], x, rows[~theirs], depth + 1, most, depths, rng)


def autoencoder(table: Floats, clean: Mask, seed: int = 0, epochs: int = 12) -> Floats:
    """Squared errors of reconstruction through a bottleneck of 8, trained on clean rows; shape (n,)."""
    rng = np.random.default_rng(seed)
    x = _standardised(table, clean)
    source = x[clean]
    sizes = (x.shape[1], 32, 8, 32, x.shape[1])
    weights: list[Floats] = [
        rng.normal(0, np.sqrt(2 / a), (a, b)).astype(np.float32)
        for a, b in itertools.pairwise(sizes)
    ]
    biases: list[Floats] = [np.zeros(b, np.float32) for b in sizes[1:]]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in (*weights, *biases)]
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(source))
        for first in range(0, len(order), 256):
            batch = source[order[first : first + 256]]
            layers = _forward(batch, weights, biases)
            delta = 2 * (layers[-1] - batch) / batch.size
            gradients_w: list[Floats] = []
            gradients_b: list[Floats] = []
            for k in reversed(range(len(weights))):
                gradients_w.insert(0, layers[k].T @ delta)
                gradients_b.insert(0, delta.sum(axis=0))
                if k:
                    delta = (delta @ weights[k].T) * (layers[k] > 0)
            step += 1
            everything = [*weights, *biases]
            for p, g, m in zip(everything, (*gradients_w, *gradients_b), moments, strict=True):
                m[0] = 0.9 * m[0] + 0.1 * g
                m[1] = 0.999 * m[1] + 0.001 * g * g
                p -= 0.003 * (m[0] / (1 - 0.9**step)) / (np.sqrt(m[1] / (1 - 0.999**step)) + 1e-8)
    return np.asarray(((_forward(x, weights, biases)[-1] - x) ** 2).mean(axis=1))


def _forward(x: Floats, weights: list[Floats], biases: list[Floats]) -> list[Floats]:
    layers = [x]
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        y = layers[-1] @ w + b
        layers.append(np.maximum(y, 0) if k < len(weights) - 1 else y)
    return layers
