"""Gradient-boosted trees for two classes, by histograms, in numpy: small, exact in its randomness, no library.

Log-loss, Newton steps with an L2 term, depth-limited trees grown level by level on features cut into at most BINS
quantile bins, rows and features sampled per tree. Splits are `x <= threshold`, as in ONNX BRANCH_LEQ, with thresholds in
float32, so that the exported model takes the same branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int32]
BINS = 64


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree as arrays over its nodes; node 0 is the root.

    Attributes:
        feature: -1 at leaves. threshold: go left when x <= threshold. left, right: children.
        value: what a leaf adds to the logit. gain: what a split gained.
    """

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    value: Floats
    gain: Floats


@dataclass(frozen=True, slots=True)
class Forest:
    """A trained model: the logit is `base` plus the trees."""

    base: float
    trees: tuple[Tree, ...]

    def logit(self, x: Floats) -> Floats:
        """Logits of rows of shape (n, features)."""
        out = np.full(len(x), self.base, np.float64)
        for tree in self.trees:
            node = np.zeros(len(x), np.int32)
            while True:
                feature = tree.feature[node]
                inner = feature >= 0
                if not inner.any():
                    break
                value = x[np.arange(len(x)), np.maximum(feature, 0)]
                step = np.where(value <= tree.threshold[node], tree.left[node], tree.right[node])
                node = np.where(inner, step, node)
            out += tree.value[node]
        return out.astype(np.float32)

    def importance(self, features: int) -> Floats:
        """Share of the gain by feature, shape (features,)."""
        out = np.zeros(features, np.float64)
        for tree in self.trees:
            inner = tree.feature >= 0
            np.add.at(out, tree.feature[inner], tree.gain[inner])
        return np.asarray(out / max(out.sum(), 1e-12))


def train(
    x: Floats,
    y: npt.NDArray[np.bool_],
    weight: Floats,
    *,
    seed: int,
    rounds: int = 200,
    depth: int = 4,
    rate: float = 0.08,
    rows: float = 0.6,
    columns: float = 0.5,
    smooth: float = 20.0,
    least: float = 30.0,
) -> Forest:
    """Train.

    Args:
        x: finite features, shape (n, features).
        y: True = anomalous.
        weight: of each row.
        rows, columns: share sampled for each tree.
        smooth: L2 term of the leaves, in units of hessian.
        least: smallest sum of weights in a child.
    """
    rng = np.random.default_rng(seed)
    edges = [_edges(x[:, f]) for f in range(x.shape[1])]
    binned = np.stack([np.searchsorted(e, x[:, f]) for f, e in enumerate(edges)]).astype(np.uint8)
    share = float((weight * y).sum() / weight.sum())
    base = float(np.log(share / (1 - share)))
    logit = np.full(len(x), base, np.float64)
    trees = []
    for _ in range(rounds):
        probability = 1 / (1 + np.exp(-logit))
        gradient = weight * (y - probability)
        hessian = weight * probability * (1 - probability)
        picked = np.flatnonzero(rng.random(len(x)) < rows)
        chosen = rng.permutation(x.shape[1])[: max(1, round(columns * x.shape[1]))]
        tree, leaf = _grow(
            binned, edges, gradient, hessian, weight, picked, np.sort(chosen), depth, rate, smooth, least
        )  # fmt: skip
        logit += tree.value[leaf]
        trees.append(tree)
    return Forest(float(np.float32(base)), tuple(trees))


def _edges(values: Floats) -> Floats:
    """Upper ends of the bins: quantiles in float32, each once."""
    cut = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]).astype(np.float32)
    return np.unique(cut)


def _grow(
    binned: npt.NDArray[np.uint8],
    edges: list[Floats],
    gradient: npt.NDArray[np.float64],
    hessian: npt.NDArray[np.float64],
    weight: Floats,
    picked: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    depth: int,
    rate: float,
    smooth: float,
    least: float,
) -> tuple[Tree, npt.NDArray[np.int64]]:
    """One tree, and the leaf that each row (picked or not) falls into."""
    feature, threshold, left, right, value, gains = [-1], [0.0], [0], [0], [0.0], [0.0]
    cut = [0]
    g, h, w = gradient[picked], hessian[picked], weight[picked]
    place = np.zeros(len(picked), np.int64)
    some = binned[:, picked]
    value[0] = rate * g.sum() / (h.sum() + smooth)
    level = [0]
    for _ in range(depth):
        slot = np.full(len(feature), -1)
        slot[level] = np.arange(len(level))
        row_slot = slot[place]
        inside = row_slot >= 0
        size = len(level) * BINS
        best = np.zeros(len(level))
        split: list[tuple[int, int, float, float, float, float]] = [(-1, 0, 0, 0, 0, 0)] * len(
            level
        )
        key_base = row_slot[inside] * BINS
        gi, hi, wi = g[inside], h[inside], w[inside]
        for f in chosen:
            key = key_base + some[f, inside]
            gs = np.bincount(key, gi, size).reshape(-1, BINS).cumsum(axis=1)
            hs = np.bincount(key, hi, size).reshape(-1, BINS).cumsum(axis=1)
            ws = np.bincount(key, wi, size).reshape(-1, BINS).cumsum(axis=1)
            gt, ht, wt = gs[:, -1:], hs[:, -1:], ws[:, -1:]
            gain = (
                gs**2 / (hs + smooth) + (gt - gs) ** 2 / (ht - hs + smooth) - gt**2 / (ht + smooth)
            )
            gain[(ws < least) | (wt - ws < least)] = 0
            gain[:, len(edges[f]) :] = 0
            top = gain.argmax(axis=1)
            better = np.flatnonzero(gain[np.arange(len(level)), top] > best + 1e-9)
            for k in better.tolist():
                at = int(top[k])
                best[k] = gain[k, at]
                split[k] = (int(f), at, gs[k, at], hs[k, at], gt[k, 0], ht[k, 0])
        fresh = []
        for k, node in enumerate(level):
            f, at, gl, hl, gt_, ht_ = split[k]
            if f < 0:
                continue
            feature[node], threshold[node], cut[node] = f, float(edges[f][at]), at
            gains[node] = best[k]
            left[node], right[node] = len(feature), len(feature) + 1
            for gs_, hs_ in ((gl, hl), (gt_ - gl, ht_ - hl)):
                fresh.append(len(feature))
                feature.append(-1)
                threshold.append(0.0)
                cut.append(0)
                left.append(0)
                right.append(0)
                gains.append(0.0)
                value.append(rate * gs_ / (hs_ + smooth))
        place = _step(place, some, feature, cut, left, right)
        level = fresh
        if not level:
            break
    leaf = np.zeros(binned.shape[1], np.int64)
    for _ in range(depth):
        leaf = _step(leaf, binned, feature, cut, left, right)
    tree = Tree(
        np.array(feature, np.int32),
        np.array(threshold, np.float32),
        np.array(left, np.int32),
        np.array(right, np.int32),
        np.where(np.array(feature) < 0, value, 0).astype(np.float32),
        np.array(gains, np.float32),
    )
    return tree, leaf


def _step(
    place: npt.NDArray[np.int64],
    binned: npt.NDArray[np.uint8],
    feature: list[int],
    cut: list[int],
    left: list[int],
    right: list[int],
) -> npt.NDArray[np.int64]:
    """One level down."""
    f = np.array(feature)[place]
    inner = f >= 0
    below = binned[np.maximum(f, 0), np.arange(binned.shape[1])] <= np.array(cut)[place]
    return np.where(inner, np.where(below, np.array(left)[place], np.array(right)[place]), place)
