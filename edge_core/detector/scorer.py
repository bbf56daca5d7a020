"""Scoring, in a child process that lives for a second a day: onnxruntime (37 MB) and the windows go with it.

`python -m edge_core.detector.scorer` reads one JSON request from standard input and writes one JSON answer to standard
output. It opens detector.db read-only and imports nothing of the gateway. The request names days and groups of meters;
groups are taken one after the other, so memory does not grow with the fleet.

    request  {"file", "days": [[day, [part, ...]], ...], "model": M, "shadow": M}, M = {} or {"onnx", "sha256", "version",
              "threshold", "smooth_days", "typical", "weights", "shadow"}: the parent has verified the signature
    answer   {"fired": [[day, meter number, kind, {...}], ...], "scores": [[day, part, [thousandths, ...]], ...],
              "rules": version, "errors": {path of a model: why}, "scored", "quantiles", "memory_mb", "seconds", ...}

Bounds: MEMORY_BYTES of address space, CPU_S of processor time, TIMEOUT_S of wall time set by the parent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_core.detector.history import GROUP, decode
from edge_core.errors import OpenDCUError

if TYPE_CHECKING:
    from edge_core.detector.history import Store

TIMEOUT_S = 3600.0
MEMORY_BYTES = 1 << 30
CPU_S = 1800
DAYS_AT_ONCE = 7
FREEZE_DAYS = 28
ENERGY_KINDS = frozenset(
    ("consumption", "stopped", "flat", "repeated-day", "spike", "sudden-drop", "sudden-rise")
)
"""Findings whose days are kept out of the baseline."""


async def in_child(request: dict[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Have a child answer a request.

    Raises:
        ChildFailed: it ended with an error, said nonsense, or took too long; holds the end of its standard error.
    """
    import asyncio  # not for the child: it costs 5 MB

    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    # one thread: its own pool would cost memory, and the gateway's other work comes first
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # arrays go back to the system when they are freed
    environment |= {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_core.detector.scorer",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(json.dumps(request).encode())
    except TimeoutError:
        raise ChildFailed(f"it did not answer within {timeout_s:g} s") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or [""]
        raise ChildFailed(f"exit {child.returncode}: {last[0][:300]}")
    try:
        answer = json.loads(out)
    except ValueError:
        raise ChildFailed("its answer is no JSON") from None
    if not isinstance(answer, dict):
        raise ChildFailed("its answer is no object")
    return answer


class ChildFailed(Exception):
    """The scoring child gave no answer."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks for, in this process."""
    import numpy as np

    from edge_core.detector.history import Store

    store = Store(Path(request["file"]), reader=True)
    try:
        work = _Work(store, request)
        for first in range(0, len(work.days), DAYS_AT_ONCE):
            work.judge(work.days[first : first + DAYS_AT_ONCE])
    finally:
        store.close()
    scored = np.array([s for _, _, row in work.scores for s in row if s >= 0] or [0])
    return {
        "fired": work.fired,
        "scores": work.scores,
        "rules": work.rules,
        "errors": work.errors,
        "scored": int(sum(s >= 0 for _, _, row in work.scores for s in row)),
        "quantiles": {q: int(np.quantile(scored, float(q))) for q in ("0.5", "0.9", "0.99")},
        "features_s": round(work.features_s, 3),
        "model_s": round(work.model_s, 3),
    }


class _Work:
    """One request, day by day."""

    def __init__(self, store: Store, request: dict[str, Any]) -> None:
        from edge_core.detector import rules

        self.rules = rules.VERSION
        self.days: list[tuple[int, set[int]]] = [
            (day, set(parts)) for day, parts in request["days"]
        ]
        self.fired: list[Any] = []
        self.scores: list[Any] = []
        self.errors: dict[str, str] = {}
        self.features_s = self.model_s = 0.0
        self._store = store
        self._models = [m for m in (request.get("model"), request.get("shadow")) if m]
        self._sessions: dict[str, Any] = {}
        self._frozen = [
            (row["meter"], row["first"], min(row["last"], row["first"] + FREEZE_DAYS - 1))
            for row in store.findings()
            if row["kind"] in ENERGY_KINDS
        ]

    def judge(self, days: list[tuple[int, set[int]]]) -> None:
        """Judge some days in a row: how the fleet's level changed, then group by group rules and model."""
        import numpy as np

        from edge_core.detector import features, rules

        smooth = max((m["smooth_days"] for m in self._models), default=1)
        wanted = sorted({day - back for day, _ in days for back in range(smooth)})
        first, last = wanted[0] - features.NEEDED_DAYS + 1, wanted[-1]
        at = [day - first for day in wanted]
        began = time.monotonic()
        fleet = None
        if self._models:
            every = [
                features.levels(self._wh(part, first, last), at, self._trusted(part, first, last))
                for part in range(self._store.parts())
            ]
            fleet = features.fleet_of(np.concatenate(every)) if every else None
        for part in sorted({part for _, parts in days for part in parts}):
            wh, trusted = self._wh(part, first, last), self._trusted(part, first, last)
            mine = [day for day, parts in days if part in parts]
            for day in mine:
                window = slice(day - first + 1 - rules.NEEDED_DAYS, day - first + 1)
                self._rules(day, part, rules.judge(wh[:, window], trusted[:, window]))
            if fleet is None:
                continue
            daily = features.daily(wh)
            table = features.against_fleet(features.windows(daily, at, trusted), fleet)
            for model in self._models:
                self._model(model, part, table, _levels(daily, trusted), wanted, first, mine)
        self.features_s += time.monotonic() - began

    def _wh(self, part: int, first: int, last: int) -> Any:
        return decode(self._store.window(part, first, last))

    def _trusted(self, part: int, first: int, last: int) -> Any:
        """Days that may stand in a baseline: those that no finding holds."""
        import numpy as np

        out = np.ones((GROUP, last - first + 1), np.bool_)
        for meter, begin, end in self._frozen:
            if meter // GROUP == part:
                out[meter % GROUP, max(0, begin - first) : max(0, end + 1 - first)] = False
        return out

    def _rules(self, day: int, part: int, verdicts: Any) -> None:
        for kind, (mask, seen, expected) in verdicts.items():
            for row in mask.nonzero()[0].tolist():
                body = {"seen_wh": _whole(seen[row]), "expected_wh": _whole(expected[row])}
                self.fired.append([day, part * GROUP + row, kind, body])

    def _model(
        self,
        model: dict[str, Any],
        part: int,
        table: Any,
        level: Any,
        wanted: list[int],
        first: int,
        days: list[int],
    ) -> None:
        """Score a group with one model; one that cannot be used is told once, the rules go on.

        Args:
            table: features of the days in `wanted`, shape (64, len(wanted), features).
            level: see `_levels`, from day `first`.
            days: those to be judged.
        """
        import numpy as np

        from edge_core.detector import replay

        if model["onnx"] in self.errors:
            return
        began = time.monotonic()
        try:
            session = self._sessions.get(model["onnx"]) or _session(model)
        except (OpenDCUError, OSError, ValueError) as error:
            self.errors[model["onnx"]] = str(error)
            return
        self._sessions[model["onnx"]] = session
        judge = replay.Judge(session, model["threshold"], model["smooth_days"])
        logits = np.full((GROUP, wanted[-1] - wanted[0] + 1), np.nan)
        logits[:, [day - wanted[0] for day in wanted]] = replay.logits_of(table, judge)
        mean = replay.averaged(logits, judge)
        self.model_s += time.monotonic() - began
        for day in days:
            own = mean[:, day - wanted[0]]
            if not model["shadow"]:
                row_scores = [thousandths(v) if v == v else -1 for v in own.tolist()]
                self.scores.append([day, part, row_scores])
            for row in (own > judge.threshold).nonzero()[0].tolist():
                values = table[row, wanted.index(day)]
                body = {
                    "score": thousandths(float(own[row])),
                    "threshold": thousandths(model["threshold"]),
                    "model": model["version"],
                    "shadow": model["shadow"],
                    "smooth_days": model["smooth_days"],
                    "features": _reasons(values, model["typical"], model["weights"]),
                    **_energies(level[row], day - first),
                }
                self.fired.append([day, part * GROUP + row, replay.CONSUMPTION, body])


def thousandths(logit: float) -> int:
    """A logit as a chance in thousandths."""
    return round(1000 / (1 + math.exp(-max(-30.0, min(30.0, logit)))))


def _session(model: dict[str, Any]) -> Any:
    """The session of the very file that was verified."""
    import hashlib

    from edge_core.detector.session import session_of

    content = Path(model["onnx"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != model["sha256"]:
        raise ValueError(f"{model['onnx']} is not the file that was verified")
    return session_of(content)


def _levels(daily: Any, trusted: Any) -> Any:
    """Wh of each day (not-a-number where it is not good), and which may stand in a baseline; shape (meters, 2, days)."""
    import numpy as np

    from edge_core.detector.days import SLOTS
    from edge_core.detector.features import FLOOR_WH

    total = (np.exp(daily.figures[:, :, 0]) - FLOOR_WH) * SLOTS
    total = np.where(daily.good, total, np.nan)
    return np.stack([total, np.where(trusted, total, np.nan)], axis=1).astype(np.float32)


def _energies(level: Any, at: int) -> dict[str, int]:
    """Wh of a day: in the last week, and before."""
    import numpy as np

    from edge_core.detector.features import GAP_DAYS

    week, before = level[0, max(0, at - 6) : at + 1], level[1, : max(1, at - GAP_DAYS + 1)]
    return {
        "seen_wh": _whole(np.nanmean(week)) if np.isfinite(week).any() else 0,
        "expected_wh": _whole(np.nanmean(before)) if np.isfinite(before).any() else 0,
    }


def _reasons(
    row: Any, typical: dict[str, list[float]], weights: dict[str, float]
) -> list[dict[str, Any]]:
    """The features that stand out most among those that the model looks at: name, value, what is usual."""
    from edge_core.detector.features import NAMES

    ranked = []
    for name, weight in weights.items():
        value = float(row[NAMES.index(name)])
        middle, spread = typical[name]
        ranked.append((abs(value - middle) / spread * math.sqrt(weight), name, value, middle))
    ranked.sort(reverse=True)
    return [
        {"name": name, "seen": f"{value:.2f}", "usual": f"{middle:.2f}"}
        for _, name, value, middle in ranked[:3]
    ]


def _whole(value: Any) -> int:
    return round(float(value)) if value == value and abs(float(value)) < 1e15 else 0


def main() -> None:
    """The child: one request, one answer."""
    import resource

    began = time.monotonic()
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    result = answer(json.loads(sys.stdin.buffer.read()))
    result |= {"memory_mb": memory_mb(), "seconds": round(time.monotonic() - began, 3)}
    sys.stdout.write(json.dumps(result))


def memory_mb() -> float:
    """Proportional set size of this process, MB; 0.0 where the kernel does not tell."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    return 0.0


if __name__ == "__main__":
    main()
