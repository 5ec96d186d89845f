"""Files of real exporters load, agree with ONNX Runtime, train and go out again."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skl2onnx
import torch
from sklearn import datasets, neural_network
from torch.nn import functional

from workers.engine import formats
from workers.engine.graph import execute


def _by_scikit_learn(path):
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.astype(np.float32)
    model = neural_network.MLPClassifier((16,), max_iter=2, random_state=0).fit(images, labels)
    options = {id(model): {"zipmap": False}}
    path.write_bytes(skl2onnx.to_onnx(model, images[:1], options=options).SerializeToString())
    return images[:5]


@functools.cache
def _transformer():
    """A file of the newer exporter, once, and samples for it."""
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), layer, torch.nn.Linear(16, 3)).eval()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=True, dynamic_shapes=batch, verbose=False)
    return file.getvalue(), x.numpy()


def _by_torch(path):
    data, x = _transformer()
    path.write_bytes(data)
    return x


class _Squeezed(torch.nn.Module):
    """An axis of unknown size is squeezed: the older exporter writes an If."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.squeeze(1))


class _Resized(torch.nn.Module):
    """Sizes are computed from the image's own: chains of Shape, Gather, Mul, Concat and Cast."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.token = torch.nn.Parameter(torch.ones(1, 1, 8))
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        size = (x.shape[2] * 3, x.shape[3] * 2)
        y = functional.interpolate(y, size=size, mode="bilinear", align_corners=False)
        y = functional.pad(y[:, :, : x.shape[2] // 2], (0, x.shape[3] % 5, 1, x.shape[2]))
        tokens = y.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        return self.head(tokens.reshape(x.shape[0], -1, 8)).mean(1)


def _by_torch_script(path, model, shape, axes, **options):
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(
        model.eval(),
        (x,),
        path,
        dynamo=False,
        dynamic_axes={"x": axes},
        input_names=["x"],
        **options,
    )
    return x.numpy()


def _if_around_squeeze(path):
    x = _by_torch_script(path, _Squeezed(), (1, 6), {0: "batch", 1: "channels"}, opset_version=17)
    assert "If" in {node.op_type for node in onnx.load(path).graph.node}
    return x


def _shapes_opset_11(path):
    axes = {0: "batch", 2: "height", 3: "width"}
    return _by_torch_script(path, _Resized(), (3, 6, 8), axes, opset_version=11)


def _constants_unfolded(path):
    options = {"do_constant_folding": False, "opset_version": 14}
    return _by_torch_script(path, _Resized(), (3, 6, 8), {0: "batch"}, **options)


def _opset_7(path):
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU6())
    pooled = (torch.nn.MaxPool2d(2), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(24, 3))
    model = torch.nn.Sequential(*layers, *pooled, torch.nn.Softmax(1))
    return _by_torch_script(path, model, (3, 6, 8), {0: "batch"}, opset_version=7)


def _weights_in_nodes(path):
    """As tf2onnx and others write: each weight is the value of a Constant node."""
    x = _by_torch(path)
    model = onnx.load(path)
    for tensor in reversed(model.graph.initializer):
        model.graph.node.insert(
            0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        )
    del model.graph.initializer[:]
    onnx.save(model, path)
    return x


def _external(path, **options):
    x = _by_torch(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=256, **options)
    return x


def _a_file_beside(path):
    return _external(path, location="weights.bin")


def _a_file_for_each_weight(path):
    return _external(path, all_tensors_to_one_file=False)


def _optimized_by_onnx_runtime(path):
    """It fuses nodes into operators of its own domain."""
    x = _by_torch(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(path.read_bytes(), options)
    assert "com.microsoft" in {node.domain for node in onnx.load(path).graph.node}
    return x


EXPORTS = (
    _by_scikit_learn,
    _by_torch,
    _if_around_squeeze,
    _shapes_opset_11,
    _constants_unfolded,
    _opset_7,
    _weights_in_nodes,
    _a_file_beside,
    _a_file_for_each_weight,
    _optimized_by_onnx_runtime,
)


@pytest.mark.parametrize("export", EXPORTS)
def test_an_exporters_file_goes_in_and_out(export, tmp_path):
    path, again = tmp_path / "net.onnx", tmp_path / "again.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = export(path)
    graph = formats.load(path)
    formats.save(graph, again)
    feeds = {graph.inputs[0].name: x}
    want = ort.InferenceSession(path).run(None, feeds)
    ours = execute.run(graph, feeds).values()
    saved = ort.InferenceSession(again).run(None, feeds)
    for reference, mine, theirs in zip(want, ours, saved, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(theirs, reference, rtol=1e-4, atol=1e-5)
    first = graph.inputs[0].shape[0]
    assert not isinstance(first, int)
    module = execute.as_module(graph)
    module(torch.from_numpy(x))[-1].square().sum().backward()
    assert all(weight.grad is not None for weight in module.weights.values())
