"""Files of real exporters load, agree with ONNX Runtime, train and go out again."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime as ort
import pytest
import skl2onnx
import torch
from sklearn import datasets, neural_network

from workers.engine import formats
from workers.engine.graph import execute


def _by_scikit_learn(path):
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.astype(np.float32)
    model = neural_network.MLPClassifier((16,), max_iter=2, random_state=0).fit(images, labels)
    options = {id(model): {"zipmap": False}}
    path.write_bytes(skl2onnx.to_onnx(model, images[:1], options=options).SerializeToString())
    return images[:5]


def _by_torch(path):
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), layer, torch.nn.Linear(16, 3)).eval()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    return x.numpy()


@pytest.mark.parametrize("export", [_by_scikit_learn, _by_torch])
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
    module = execute.as_module(graph)
    module(torch.from_numpy(x))[-1].square().sum().backward()
    assert all(weight.grad is not None for weight in module.weights.values())
