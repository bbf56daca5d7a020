"""Counters and gauges of this process, and their Prometheus text.

Names are `opendcu_<room>_<noun>_<unit>[_total]`; labels have few values (driver, line, error class; never a meter).
The counters reconcile: journalled = acknowledged + waiting + expired, and due = captured + missing. Thread-safe; a
metric has at most MAX_SERIES label sets, later ones are counted together under the label value "other".
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SERIES = 200
NAME = re.compile(r"opendcu_[a-z]+(_[a-z0-9]+)+")

Labels = tuple[str, ...]


class Metric:
    """One name with its label sets; see Counter and Gauge."""

    kind: Literal["counter", "gauge"]

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no opendcu_<room>_<noun>_<unit>")
        self.name = name
        self.help = help_text
        self.labels = labels
        self._series: dict[Labels, float] = {}
        self._guard = threading.Lock()

    def _key(self, values: Labels) -> Labels:
        """The label set to count under; called with the lock held."""
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, got {values}")
        if values in self._series or len(self._series) < MAX_SERIES:
            return values
        return ("other",) * len(self.labels)

    def value(self, *labels: str) -> float:
        """What it stands at; 0 for a label set never seen."""
        return self.series().get(labels, 0.0)

    def series(self) -> dict[Labels, float]:
        """All label sets."""
        with self._guard:
            return dict(self._series)


class Counter(Metric):
    """Only rises, from 0 at the start of the process."""

    kind = "counter"

    def inc(self, *labels: str, by: float = 1) -> None:
        """Count `by` (not negative) more."""
        if by < 0:
            raise ValueError(f"{self.name} only rises")
        with self._guard:
            key = self._key(labels)
            self._series[key] = self._series.get(key, 0) + by


class Gauge(Metric):
    """What is so now: set, or asked for when somebody looks."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, labels: Labels = ()) -> None:
        super().__init__(name, help_text, labels)
        self._ask: Callable[[], float | dict[Labels, float]] | None = None

    def set(self, value: float, *labels: str) -> None:
        """It is `value` now."""
        with self._guard:
            self._series[self._key(labels)] = value

    def watch(self, ask: Callable[[], float | dict[Labels, float]]) -> None:
        """Ask this function (one value, or a value a label set) whenever the gauge is read."""
        self._ask = ask

    def series(self) -> dict[Labels, float]:
        """All label sets."""
        if self._ask is not None:
            answer = self._ask()
            return answer if isinstance(answer, dict) else {(): answer}
        return super().series()


M = TypeVar("M", Counter, Gauge)


class Registry:
    """The metrics of a process, by name."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge] = {}
        self._guard = threading.Lock()

    def counter(self, name: str, help_text: str, labels: Labels = ()) -> Counter:
        """The counter of that name, made at the first call; its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"{name}: the name of a counter ends in _total")
        return self._one(Counter, name, help_text, labels)

    def gauge(self, name: str, help_text: str, labels: Labels = ()) -> Gauge:
        """The gauge of that name, made at the first call."""
        return self._one(Gauge, name, help_text, labels)

    def _one(self, cls: type[M], name: str, help_text: str, labels: Labels) -> M:
        with self._guard:
            metric = self._metrics.get(name)
            if metric is None:
                metric = self._metrics[name] = cls(name, help_text, labels)
            if not isinstance(metric, cls) or metric.labels != labels:
                raise ValueError(f"{name} is already there as another metric")
            return metric

    def metrics(self) -> list[Counter | Gauge]:
        """All of them, by name."""
        with self._guard:
            return [self._metrics[name] for name in sorted(self._metrics)]

    def snapshot(self) -> dict[str, float]:
        """`name{label="value"}` to value, for `top` and bundles."""
        return {
            metric.name + _labels(metric.labels, values): value
            for metric in self.metrics()
            for values, value in sorted(metric.series().items())
        }

    def text(self) -> str:
        """Prometheus text exposition format 0.0.4."""
        lines: list[str] = []
        for metric in self.metrics():
            help_text = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
            lines += (f"# HELP {metric.name} {help_text}", f"# TYPE {metric.name} {metric.kind}")
            lines += (
                f"{metric.name}{_labels(metric.labels, values)} {_number(value)}"
                for values, value in sorted(metric.series().items())
            )
        return "\n".join(lines) + "\n"


def _labels(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    escaped = (
        value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values
    )
    return (
        "{"
        + ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))
        + "}"
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


REGISTRY = Registry()
"""What this process counts."""

counter = REGISTRY.counter
gauge = REGISTRY.gauge


def memory_mb(process: str | int = "self") -> float:
    """Proportional set size of a process in MB (RSS where the kernel does not tell it); 0.0 where it cannot be read."""
    folder = Path("/proc") / str(process)
    for file, key in ((folder / "smaps_rollup", "Pss:"), (folder / "status", "VmRSS:")):
        try:
            for line in file.read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) * 1024 / 1e6
        except OSError:
            continue
    return 0.0


gauge("opendcu_process_memory_bytes", "Proportional set size of this process.").watch(
    lambda: memory_mb() * 1e6
)
