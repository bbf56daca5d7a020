"""What looks for theft, tamper and faults in the box's own readings. It meets the rest of the gateway in the journal only.

    journal ─blocks─> collect.py ─half hours─> history.py (detector.db) ─days─> scorer.py (a short-lived child)
                         └ evidence of rows ──> rules.py                         features.py, rules.py, model.py (ONNX)
    findings ──> journal.note("anomalies")

`Detector` is imported on first use: the scoring child, which imports this package too, does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_core.detector.detector import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from edge_core.detector.detector import Detector

        return Detector
    raise AttributeError(name)
