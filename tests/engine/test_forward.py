from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from modelpress.spec.step import FineTune
from tests.engine import nets
from workers.engine import context, data, formats, forward, losses, train
from workers.engine.data import dataset
from workers.engine.graph import Graph, execute

CPU = torch.device("cpu")


def samples(count: int = 20) -> data.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
    made = dataset.with_columns([("image", dataset.ArrayColumn(x, x.dtype))], count)
    return replace(made, labels=np.arange(count) % nets.CLASSES)


def loaded(model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(model, folder / "net.onnx")
    return formats.load(folder / "net.onnx")


def declared(batch: int) -> onnx.ModelProto:
    """A net whose input and output declare a fixed batch, which no operator needs."""
    model = nets.plain_cnn()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def baked(batch: int) -> onnx.ModelProto:
    """The same with the batch written into a Reshape, as exporters do."""
    model = declared(batch)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    shape = numpy_helper.from_array(np.array([batch, 256]), "shape")
    model.graph.initializer.append(shape)
    flatten.op_type = "Reshape"
    flatten.input.append("shape")
    del flatten.attribute[:]
    onnx.checker.check_model(model)
    return model


def test_a_free_batch_is_found_by_running_another(tmp_path: Path) -> None:
    assert forward.fixed_batch(loaded(nets.plain_cnn(), tmp_path), samples()) is None
    assert forward.fixed_batch(loaded(declared(1), tmp_path), samples()) is None
    assert forward.fixed_batch(loaded(baked(1), tmp_path), samples()) == 1
    assert forward.fixed_batch(loaded(baked(4), tmp_path), samples()) == 4


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_pieces_give_the_loss_and_gradients_of_the_whole(tmp_path: Path, batch: int) -> None:
    indices = np.arange(10)
    gradients = []
    for model, fixed in ((nets.plain_cnn(), None), (baked(batch), batch)):
        module = execute.as_module(loaded(model, tmp_path)).eval()
        loss = losses.cross_entropy(forward.run(module, samples(), indices, CPU, fixed))
        loss.backward()
        gradients.append([loss, *(weight.grad for weight in module.weights.values())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_model_of_fixed_batch_is_trained_and_says_so(tmp_path: Path) -> None:
    graph = loaded(baked(1), tmp_path)
    ctx = context.Context(device=CPU, threads=1, seed=0, source=graph, work=tmp_path)
    module = execute.as_module(graph)
    before = {name: value.clone() for name, value in module.statistics.items()}
    log = train.fit(module, samples(), FineTune(epochs=10, learning_rate=0.01), ctx)
    assert log.losses[-1] < 0.8 * log.losses[0]
    assert all(torch.equal(before[name], value) for name, value in module.statistics.items())
    assert "batches of 1 and no other" in ctx.coverage.notes[0]
    assert train.refresh_batch_norm(module, samples(), ctx) == 0
