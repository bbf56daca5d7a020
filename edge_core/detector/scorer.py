"""Scoring, in a child process that lives for a second a day: onnxruntime (37 MB) and the windows go with it.

`python -m edge_core.detector.scorer` reads one JSON request from standard input and writes one JSON answer to standard
output. It opens detector.db read-only and imports nothing of the gateway. The request names days and groups of meters;
groups are taken one after the other, so memory does not grow with the fleet.

    request  {"file", "days": [[day, [part, ...]], ...], "transformers": [[meter, [meter, ...]], ...],
              "multipliers": {meter: n}, "model": M, "shadow": M}, meters as their numbers, M = {} or {"onnx", "sha256", "version",
              "threshold", "scales", "typical", "weights", "shadow"}: the parent has verified the signature
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

from edge_core.detector.history import GROUP, decode, encode_logits
from edge_core.errors import OpenDCUError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_core.detector.balance import Balance
    from edge_core.detector.history import Store

TIMEOUT_S = 3600.0
MEMORY_BYTES = 1 << 30
CPU_S = 1800
CELLS = 8192
"""Meters times days whose features are held at once (157 x 4 octets each): 7 days of a thousand meters, one day of 5,000."""
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
        work.all()
    finally:
        store.close()
    scored = np.array([s for _, _, row in work.scores for s in row if s >= 0] or [0])
    return {
        "fired": work.fired,
        "scores": work.scores,
        "logits": work.logits,
        "rules": work.rules,
        "errors": work.errors,
        "scored": int(sum(s >= 0 for _, _, row in work.scores for s in row)),
        "quantiles": {q: int(np.quantile(scored, float(q))) for q in ("0.5", "0.9", "0.99")},
        "features_s": round(work.features_s, 3),
        "model_s": round(work.model_s, 3),
        "memory_mb": work.memory_mb,
    }


class _Model:
    """A model of a request: its session when there is one, and the logits of days, kept ones and new ones."""

    def __init__(
        self, card: dict[str, Any], store: Store, parts: int, first: int, last: int
    ) -> None:
        import numpy as np

        self.card = card
        self.session: Any = None
        self.scales: tuple[tuple[int, float], ...] = tuple(
            (int(days), float(allowance)) for days, allowance in card["scales"]
        )
        self.first = first - max(days for days, _ in self.scales) + 1
        self.logits = np.full((parts * GROUP, last - self.first + 1), np.nan, np.float32)
        self.kept = np.zeros((parts, last - self.first + 1), np.bool_)
        for day, part, values in store.logits(card["version"], self.first, last):
            if part < parts:
                self.logits[part * GROUP : (part + 1) * GROUP, day - self.first] = values
                self.kept[part, day - self.first] = True

    def lacking(self, day: int, parts: set[int]) -> set[int]:
        """Days that the judgement of a day needs and that some of its groups have no logits of; always the day itself."""
        mine = sorted(parts)
        before = range(day - max(days for days, _ in self.scales) + 1, day)
        return {day} | {d for d in before if not self.kept[mine, d - self.first].all()}


class _Work:
    """One request: rules and features group by group, then how the whole fleet changed, then the models."""

    def __init__(self, store: Store, request: dict[str, Any]) -> None:
        from edge_core.detector import balance, rules

        self.rules = rules.VERSION
        self.days: list[tuple[int, set[int]]] = [
            (day, set(parts)) for day, parts in request["days"]
        ]
        self.fired: list[Any] = []
        self.scores: list[Any] = []
        self.logits: list[Any] = []
        self.errors: dict[str, str] = {}
        self.features_s = self.model_s = self.memory_mb = 0.0
        self._store = store
        self._parts = max([store.parts(), *(part + 1 for _, parts in self.days for part in parts)])
        span = (self.days[0][0], self.days[-1][0]) if self.days else (0, 0)
        self._models = [
            _Model(m, store, self._parts, *span)
            for m in (request.get("model"), request.get("shadow"))
            if m
        ]
        self._transformers: list[tuple[int, list[int]]] = request.get("transformers", [])
        self._multipliers = {int(k): int(v) for k, v in request.get("multipliers", {}).items()}
        found = store.findings()
        self._losses = [
            (row["meter"], row["first"], min(row["last"], row["first"] + 2 * FREEZE_DAYS - 1))
            for row in found
            if row["kind"] in (balance.LOSS, balance.GAIN)
        ]
        self._frozen = [
            (row["meter"], row["first"], min(row["last"], row["first"] + FREEZE_DAYS - 1))
            for row in found
            if row["kind"] in ENERGY_KINDS
        ]

    def all(self) -> None:
        """Judge every day, oldest first, as many at once as there is room for."""
        for model in self._models:
            self._load(model)
        self._models = [m for m in self._models if m.session is not None]
        at_once = max(1, CELLS // max(1, self._parts * GROUP))
        left = self.days
        while left:
            few = left[:1]
            wanted = self._lacking(few)
            for more in left[1:]:
                if len(wanted | self._lacking([more])) > at_once:
                    break
                few = [*few, more]
                wanted = self._lacking(few)
            left = left[len(few) :]
            due = dict(few)
            for first in range(0, len(wanted), at_once):
                at = sorted(wanted)[first : first + at_once]
                self._pass(at, {day: due[day] for day in at if day in due})

    def _lacking(self, days: list[tuple[int, set[int]]]) -> set[int]:
        """Days that need features."""
        return {day for day, _ in days}.union(*(m.lacking(*d) for m in self._models for d in days))

    def _load(self, model: _Model) -> None:
        """Make the session of a model; one that cannot be used is told, the rules go on."""
        began = time.monotonic()
        try:
            model.session = _session(model.card)
        except (OpenDCUError, OSError, ValueError) as error:
            self.errors[model.card["onnx"]] = str(error)
        self.model_s += time.monotonic() - began

    def _pass(self, at: list[int], due: dict[int, set[int]]) -> None:
        """Once over all groups: features at the end of some days, rules and scores of those that are due.

        Args:
            at: days, rising, all those in `due` among them.
        """
        import numpy as np

        from edge_core.detector import balance, features, rules

        began = time.monotonic()
        first, last = at[0] - features.NEEDED_DAYS, at[-1]
        index = [day - first for day in at]
        # in one piece each, so that all of it goes back to the system
        rows = self._parts * GROUP if self._models else 0
        raw = np.empty((rows, len(at), len(features.NAMES)), np.float32)
        levels = np.full((rows, len(at), len(features.WINDOWS)), np.nan, np.float32)
        tables: list[int] = []
        seen: dict[int, Any] = {}
        balances = [
            balance.Balance(total, below, self._multipliers, last - first + 1)
            for total, below in (self._transformers if due else [])
        ]
        scored = set().union(*due.values()) if len(at) == len(due) else set(range(self._parts))
        for part in range(self._parts):
            wh, trusted = self._wh(part, first, last), self._trusted(part, first, last)
            for each in balances:
                each.add(wh, part * GROUP)
            for day in (d for d, parts in due.items() if part in parts):
                window = slice(day - first + 1 - rules.NEEDED_DAYS, day - first + 1)
                self._rules(day, part, rules.judge(wh[:, window], trusted[:, window]))
            if not self._models:
                continue
            group = slice(part * GROUP, (part + 1) * GROUP)
            if part not in scored:
                levels[group] = features.levels(wh, index, trusted)
                continue
            daily = features.daily(wh)
            raw[group] = features.windows(daily, index, trusted)
            levels[group] = features.levels_of(raw[group])
            tables.append(part)
            seen[part] = _energies(daily, trusted, [day - first for day in due])
        for each in balances:
            self._balance(each, due, first, last)
        fleet = features.fleet_of(levels)
        self.features_s += time.monotonic() - began
        # group by group: a batch of all costs the same time and three copies more
        for part in tables:
            table = features.against_fleet(raw[part * GROUP : (part + 1) * GROUP], fleet)
            for model in self._models:
                self._model(model, part, table, at, due, seen[part])
        self.memory_mb = max(self.memory_mb, memory_mb())  # while everything is there

    def _balance(self, each: Balance, due: Iterable[int], first: int, last: int) -> None:
        """Judge a transformer on the days that are due."""
        import numpy as np

        trusted = np.ones(last - first + 1, np.bool_)
        for meter, begin, end in self._losses:
            if meter == each.total:
                trusted[max(0, begin - first) : max(0, end + 1 - first)] = False
        for day in sorted(due):
            verdict = each.judge(day - first, trusted)
            if verdict is not None:
                self.fired.append([day, each.total, *verdict])

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
        model: _Model,
        part: int,
        table: Any,
        at: list[int],
        due: dict[int, set[int]],
        seen: Any,
    ) -> None:
        """Logits of a group, and what fires on the days that are due.

        Args:
            table: features of the days in `at`, shape (64, len(at), features).
            seen: see `_energies`, of the days in `due`.
        """
        import numpy as np

        from edge_core.detector import replay

        began = time.monotonic()
        card, threshold = model.card, model.card["threshold"]
        group = slice(part * GROUP, (part + 1) * GROUP)
        columns = [day - model.first for day in at]
        fresh = replay.logits_of(table, replay.Judge(model.session))
        model.logits[group, columns] = fresh
        model.kept[part, columns] = True
        self.logits += [
            [day, part, card["version"], encode_logits(fresh[:, k]).tolist()]
            for k, day in enumerate(at)
        ]
        score = replay.scores_of(model.logits[group], model.scales)
        for day in (d for d, parts in due.items() if part in parts):
            own = score[:, day - model.first]
            if not card["shadow"]:
                row_scores = [thousandths(v) if v == v else -1 for v in own.tolist()]
                self.scores.append([day, part, row_scores])
            for row in np.flatnonzero(own > threshold - replay.LINGER).tolist():
                body = {
                    "score": thousandths(float(own[row])),
                    "threshold": thousandths(threshold),
                    "lingers": bool(own[row] <= threshold),
                    "model": card["version"],
                    "shadow": card["shadow"],
                    "days": _days_of(model, part * GROUP + row, day, float(own[row])),
                    "features": _reasons(table[row, at.index(day)], card["typical"], card["weights"]),
                    "seen_wh": _whole(seen[0, row, list(due).index(day)]),
                    "expected_wh": _whole(seen[1, row, list(due).index(day)]),
                }  # fmt: skip
                self.fired.append([day, part * GROUP + row, replay.CONSUMPTION, body])
        self.model_s += time.monotonic() - began


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


def _energies(daily: Any, trusted: Any, at: list[int]) -> Any:
    """Mean Wh of a day in the last week and in the baseline, at the end of some days; shape (2, meters, len(at))."""
    import numpy as np

    from edge_core.detector.days import SLOTS
    from edge_core.detector.features import FLOOR_WH, GAP_DAYS, NEEDED_DAYS

    total = (np.exp(daily.figures[:, :, 0]) - FLOOR_WH) * SLOTS
    out = np.zeros((2, len(total), len(at)), np.float32)
    for k, day in enumerate(at):
        week = slice(max(0, day - 6), day + 1)
        base = slice(max(0, day - NEEDED_DAYS + 1), max(1, day - GAP_DAYS + 1))
        for place, span, good in ((0, week, daily.good), (1, base, daily.good & trusted)):
            there = good[:, span]
            out[place, :, k] = (total[:, span] * there).sum(axis=1) / np.maximum(
                there.sum(axis=1), 1
            )
    return out


def _days_of(model: _Model, meter: int, day: int, score: float) -> int:
    """Days of the scale that a score comes from: since when it seems to last."""
    from edge_core.detector import replay

    own = model.logits[meter : meter + 1]
    for days, allowance in model.scales:
        if replay.averaged(own, days)[0, day - model.first] + allowance >= score - 1e-6:
            return days
    return model.scales[0][0]


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
    used = resource.getrusage(resource.RUSAGE_SELF)
    result |= {
        "seconds": round(time.monotonic() - began, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
    }
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
