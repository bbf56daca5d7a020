"""What does a day of anomaly scoring cost for 5,000 meters: time of the model, of everything, and memory of the child?

5,000 meters of 58 real days each (simulators/loads) stand in a detector.db; the scoring child judges the last day as in a
gateway, once with no logits kept and then with those of the days before. Beside it the model alone: 5,000 rows in one batch, in batches of 64, and row by row, and numpy's own walk
through the same trees as the peer.

usage: detector_scoring.py [--quick]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import save, table

from edge_core.detector.features import NAMES
from edge_core.detector.history import GROUP, Store, encode
from edge_core.detector.model import BUILTIN, load, trusted_keys
from edge_core.detector.scorer import in_child
from edge_core.detector.session import session_of
from simulators.loads import Load

DAYS = 64
FIRST_DAY = 739_600


def fill(path: Path, meters: int) -> None:
    """A history of real load curves."""
    store = Store(path)
    begin = (FIRST_DAY - 719_163) * 86_400
    stamps = begin + 1800 * np.arange(DAYS * 48 + 1)
    wh = np.zeros((meters, DAYS, 48), np.float32)
    for number in range(meters):
        store.number(f"M{number:05}")
        wh[number] = np.diff(Load(number, 1, 0).cumulative(stamps)[:, 0]).reshape(DAYS, 48)
    store.begin()
    store.save_meters()
    for part in range(store.parts()):
        group = np.full((GROUP, DAYS, 48), np.nan, np.float32)
        some = wh[part * GROUP : (part + 1) * GROUP]
        group[: len(some)] = some
        for day in range(DAYS):
            store.put_history(FIRST_DAY + day, part, encode(group[:, day]))
    store.commit()
    store.close()


def keep(path: Path, answer: dict[str, Any]) -> None:
    """Write down the logits, as the gateway does."""
    store = Store(path)
    store.begin()
    for day, part, version, logits in answer["logits"]:
        store.put_logits(day, part, version, logits)
    store.commit()
    store.close()


def timed(work: object, runs: int) -> list[float]:
    out = []
    for _ in range(runs):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        out.append((time.perf_counter() - began) * 1000)
    return sorted(out)


def main() -> None:
    meters = 640 if "--quick" in sys.argv else 5000
    card, onnx = load(BUILTIN, trusted_keys())
    rng = np.random.default_rng(0)
    spread = np.array([card.typical[name] for name in NAMES])
    rows = (spread[:, 0] + spread[:, 1] * rng.normal(size=(meters, len(NAMES)))).astype(np.float32)
    session = session_of(onnx)
    batch = timed(lambda: session(rows), 15)
    used = time.process_time()
    for _ in range(15):
        session(rows)
    batch_cpu = (time.process_time() - used) / 15 * 1000
    by_64 = timed(lambda: [session(rows[k : k + 64]) for k in range(0, meters, 64)], 7)
    single = timed(lambda: [session(rows[k : k + 1]) for k in range(meters)], 3)
    importance = card.data["importance"]
    request = {
        "model": {
            "onnx": str(BUILTIN / "model.onnx"), "sha256": card.onnx_sha256, "version": card.version,
            "threshold": card.threshold(0.03), "scales": card.scales, "shadow": False, "weights": importance,
            "typical": {k: v for k, v in card.typical.items() if k in importance},
        }
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.db"
        fill(path, meters)
        size = path.stat().st_size
        parts = list(range(-(-meters // GROUP)))
        request |= {"file": str(path), "days": [[FIRST_DAY + DAYS - 1, parts]]}
        first = asyncio.run(in_child(request))  # a new model: ten days of features
        keep(path, first)
        walls, answers = [], []
        for _ in range(3):  # any other day: the logits of the days before are kept
            began = time.perf_counter()
            answers.append(asyncio.run(in_child(request)))
            walls.append((time.perf_counter() - began) * 1000)
        bare = asyncio.run(in_child(request | {"model": {}}))
    answer = answers[-1]
    figures = {
        "meters": meters,
        "model_batch_ms": {"min": batch[0], "median": statistics.median(batch), "max": batch[-1]},
        "model_batch_cpu_ms": batch_cpu,
        "model_batches_of_64_ms": statistics.median(by_64),
        "model_row_by_row_ms": statistics.median(single),
        "child_wall_ms": {"min": min(walls), "median": statistics.median(walls), "max": max(walls)},
        "child_cpu_s": min(a["cpu_s"] for a in answers),
        "child_cpu_of_a_new_model_s": first["cpu_s"],
        "child_features_s": answer["features_s"],
        "child_model_with_import_s": answer["model_s"],
        "child_pss_mb": max(a["memory_mb"] for a in answers),
        "child_pss_without_model_mb": bare["memory_mb"],
        "findings": len(answer["fired"]),
        "history_octets_per_meter_day": size / meters / DAYS,
    }
    print(table([[k, str(v)] for k, v in figures.items()]))
    save("detector_scoring", figures, "numpy", "onnxruntime")


if __name__ == "__main__":
    main()
