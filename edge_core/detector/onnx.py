"""Writes a forest as an ONNX file: one TreeEnsembleRegressor, encoded by hand, for want of any other need of `onnx`.

Protobuf fields are those of onnx.proto (IR version 8); operator ai.onnx.ml 3. The graph takes `x`, float32 of shape
(n, features), and gives `logit`, float32 of shape (n, 1). tests/unit/detector compare it with `Forest.logit` row by row.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.detector.trees import Forest

INPUT, OUTPUT = "x", "logit"
_IR_VERSION, _ML_VERSION, _OPSET = 8, 3, 15
_FLOAT_TENSOR = 1
_INT, _STRING, _FLOATS, _INTS, _STRINGS = 2, 3, 6, 7, 8


def encode(forest: Forest, features: int) -> bytes:
    """The model file."""
    of_nodes: list[list[int]] = [[], [], [], [], []]  # tree, node, feature, true, false
    modes: list[bytes] = []
    values: list[float] = []
    of_leaves: list[list[int]] = [[], []]
    weights: list[float] = []
    for number, tree in enumerate(forest.trees):
        for node in range(len(tree.feature)):
            inner = bool(tree.feature[node] >= 0)
            row = (
                number,
                node,
                max(0, int(tree.feature[node])),
                int(tree.left[node]),
                int(tree.right[node]),
            )
            for column, value in zip(of_nodes, row, strict=True):
                column.append(value if inner or column in (of_nodes[0], of_nodes[1]) else 0)
            modes.append(b"BRANCH_LEQ" if inner else b"LEAF")
            values.append(float(tree.threshold[node]) if inner else 0.0)
            if not inner:
                of_leaves[0].append(number)
                of_leaves[1].append(node)
                weights.append(float(tree.value[node]))
    attributes = [
        _attribute("aggregate_function", _STRING, _field(4, b"SUM")),
        _attribute("base_values", _FLOATS, _floats(7, [forest.base])),
        _attribute("n_targets", _INT, _varint_field(3, 1)),
        _attribute("nodes_falsenodeids", _INTS, _ints(8, of_nodes[4])),
        _attribute("nodes_featureids", _INTS, _ints(8, of_nodes[2])),
        _attribute("nodes_modes", _STRINGS, b"".join(_field(9, m) for m in modes)),
        _attribute("nodes_nodeids", _INTS, _ints(8, of_nodes[1])),
        _attribute("nodes_treeids", _INTS, _ints(8, of_nodes[0])),
        _attribute("nodes_truenodeids", _INTS, _ints(8, of_nodes[3])),
        _attribute("nodes_values", _FLOATS, _floats(7, values)),
        _attribute("post_transform", _STRING, _field(4, b"NONE")),
        _attribute("target_ids", _INTS, _ints(8, [0] * len(weights))),
        _attribute("target_nodeids", _INTS, _ints(8, of_leaves[1])),
        _attribute("target_treeids", _INTS, _ints(8, of_leaves[0])),
        _attribute("target_weights", _FLOATS, _floats(7, weights)),
    ]
    node_proto = b"".join(
        (
            _field(1, INPUT.encode()),
            _field(2, OUTPUT.encode()),
            _field(4, b"TreeEnsembleRegressor"),
            *(_field(5, a) for a in attributes),
            _field(7, b"ai.onnx.ml"),
        )
    )
    graph = b"".join(
        (
            _field(1, node_proto),
            _field(2, b"opendcu-anomalies"),
            _field(11, _value(INPUT, features)),
            _field(12, _value(OUTPUT, 1)),
        )
    )
    return b"".join(
        (
            _varint_field(1, _IR_VERSION),
            _field(2, b"opendcu"),
            _field(7, graph),
            _field(8, _field(1, b"") + _varint_field(2, _OPSET)),
            _field(8, _field(1, b"ai.onnx.ml") + _varint_field(2, _ML_VERSION)),
        )
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _ints(number: int, values: Sequence[int]) -> bytes:
    return _field(number, b"".join(_varint(v) for v in values))


def _floats(number: int, values: Sequence[float]) -> bytes:
    return _field(number, struct.pack(f"<{len(values)}f", *values))


def _attribute(name: str, kind: int, body: bytes) -> bytes:
    return _field(1, name.encode()) + body + _varint_field(20, kind)


def _value(name: str, width: int) -> bytes:
    """A float tensor of shape (n, width)."""
    shape = _field(1, _field(2, b"n")) + _field(1, _varint_field(1, width))
    tensor = _varint_field(1, _FLOAT_TENSOR) + _field(2, shape)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))
