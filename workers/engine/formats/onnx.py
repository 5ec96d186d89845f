"""ONNX files."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from workers.engine.errors import BadModel
from workers.engine.formats import bounds, limits, normal
from workers.engine.graph import Graph, verify

INLINE_BYTES = 2**31 - 1
"""Protobuf's own limit: larger models keep their weights in a second file."""

ROOM_BYTES = 2**20
"""Left for everything but weights."""


def load(path: Path) -> Graph:
    """Read a model that keeps the limits, in the one form that every pass sees.

    Weights stay in the file's buffer, or mapped where they are in a second file.

    Raises:
        BadModel: the file is no ONNX model, or breaks a limit.
        Unsupported: it has operators or types we do not know; the message names them all.
    """
    limits.check(path)
    try:
        model = ir.load(path, format="protobuf")
    except Exception as error:
        raise BadModel(f"the file is no ONNX model: {error}") from error
    normal.normalise(model)
    graph = Graph(model)
    verify.verify(graph)
    bounds.check(graph)
    return graph


def weight_bytes(graph: Graph) -> int:
    """Bytes of all initializers."""
    tensors = (value.const_value for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save(graph: Graph, path: Path, *, inline_bytes: int = INLINE_BYTES) -> None:
    """Write a model; the same graph gives the same bytes. Weights go to PATH.data when they are too many.

    The file appears whole or not at all.

    Args:
        graph: What to write.
        path: Where.
        inline_bytes: Largest file that holds its own weights.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    if weight_bytes(graph) + ROOM_BYTES < inline_bytes:
        inside = ir.external_data.load_to_model(graph.model.clone())
        data = ir.to_proto(inside).SerializeToString(deterministic=True)
        unfinished.write_bytes(data)
    else:
        ir.save(graph.model.clone(), unfinished, external_data=f"{path.name}.data")
    os.replace(unfinished, path)
