"""Job directories and datasets for tests of the engine, made from the tiny nets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from modelpress.spec import order
from modelpress.spec.recipe import parse
from tests.engine import nets
from workers.engine import context, data, formats
from workers.engine.context import Context
from workers.engine.data import dataset
from workers.engine.graph import Graph

CPU = torch.device("cpu")


def dataset_of(model: onnx.ModelProto, samples: int = 48, *, labels: bool = True) -> data.Dataset:
    """Noise for the model's inputs; labels are random classes."""
    feeds = nets.feeds(model, samples, seed=7)
    columns = [(name, dataset.ArrayColumn(array, array.dtype)) for name, array in feeds.items()]
    made = dataset.with_columns(columns, samples)
    drawn = np.random.default_rng(7).integers(0, nets.CLASSES, samples)
    return dataset.Dataset(made.columns, made.rows, labels=drawn if labels else None)


def context_of(graph: Graph, work: Path, train: data.Dataset | None, *, seed: int = 0) -> Context:
    """Surroundings of the first step of a job."""
    made = Context(
        device=CPU, threads=1, seed=seed, source=graph, work=work, train=train, eval=train
    )
    return made.for_step(0, context.silent)


def load(name: str, folder: Path, seed: int = 0) -> tuple[onnx.ModelProto, Graph]:
    """A tiny net, as a model and as the graph that a file of it gives."""
    model = nets.NETS[name](seed)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return model, formats.load(path)


def text(source: str) -> onnx.ModelProto:
    """A model from text; what it declares between < and > becomes weights of noise."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {source}')
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.normal(size=shape).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return model


def arrays_of(
    model: onnx.ModelProto, samples: int, *, labels: bool = True
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file for a classifier: the labels are what the model itself answers, mostly."""
    feeds = nets.feeds(model, samples, seed=11)
    if not labels:
        return feeds
    session = onnxruntime.InferenceSession(model.SerializeToString())
    scores = session.run(None, feeds)[0]
    return {**feeds, "labels": scores.argmax(axis=1).astype(np.int64)}


def make(
    jobdir: Path,
    model: onnx.ModelProto,
    steps: list[dict[str, Any]],
    *,
    train: Mapping[str, np.ndarray] | None = None,
    held: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> Path:
    """A job directory as a worker makes it."""
    for name in (order.INPUT, order.WORK, order.OUTPUT):
        (jobdir / name).mkdir(parents=True)
    onnx.save(model, jobdir / "input/model.onnx")
    files = {}
    for name, arrays in (("train", train), ("eval", held)):
        if arrays is not None:
            np.savez(jobdir / f"input/{name}.npz", **arrays)
            files[name] = order.FileRef(path=f"input/{name}.npz")
    asked = order.CompressOrder(
        model=order.FileRef(path="input/model.onnx", name="net.onnx"),
        data=order.OrderData(**files),
        recipe=parse({"steps": steps}),
        threads=1,
        **options,
    )
    (jobdir / order.ORDER).write_text(asked.model_dump_json())
    return jobdir
