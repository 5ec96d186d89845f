"""Small model files and datasets whose measurements can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workers.engine import data
from workers.engine.data import dataset


def model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
) -> Path:
    """Writes float inputs, these nodes and float outputs."""

    def infos(shapes: dict[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(
        list(nodes),
        "net",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def linear(path: Path, weight: np.ndarray, *, batch: int | str = "batch", end: str = "") -> Path:
    """y = x @ weight, through one operator more where `end` names it."""
    rows, columns = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if end else "y"], name="MatMul_0")]
    if end:
        nodes.append(helper.make_node(end, ["m"], ["y"], name=f"{end}_1"))
    return model(
        path,
        nodes,
        {"w": weight.astype(np.float32)},
        inputs={"x": [batch, rows]},
        outputs={"y": [batch, columns]},
    )


def rows(x: np.ndarray, labels: Sequence[int] | None = None) -> data.Dataset:
    """A dataset that feeds these rows to the input 'x'."""
    array = np.asarray(x, np.float32)
    made = dataset.with_columns([("x", dataset.ArrayColumn(array, array.dtype))], len(array))
    return replace(made, labels=None if labels is None else np.array(labels, np.int64))
