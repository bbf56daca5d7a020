"""The ONNX session: onnxruntime is imported here and nowhere else, when a session is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector.onnx import INPUT, OUTPUT
from edge_core.errors import OpenDCUError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.floating[Any]]


class RuntimeMissing(OpenDCUError):
    """onnxruntime is not installed."""


def session_of(model: bytes) -> Callable[[Floats], Floats]:
    """Logits of rows of features: float32 of shape (n, features) to (n,).

    Raises:
        RuntimeMissing: onnxruntime is not installed; everything but the model works without.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeMissing(
            "onnxruntime is not installed: pip install 'opendcu[detector]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def logits(rows: Floats) -> Floats:
        out: Floats = session.run([OUTPUT], {INPUT: np.ascontiguousarray(rows, np.float32)})[0]
        return out[:, 0]

    return logits
