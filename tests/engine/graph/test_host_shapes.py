"""Chains that compute shapes stay numbers on the host: without gradient, without weights, whatever the batch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from modelpress.spec import order
from tests.engine import jobs
from workers.engine import formats, gauge, pipeline, verification
from workers.engine.graph import execute, roles, shapes

CHAINS = {
    "reshape": """
        s = Shape(h)  n = Gather(s, zero)  shape = Concat<axis = 0>(n, minus)  r = Reshape(h, shape)
    """,
    "expand": """
        s = Shape(h)  n = Gather(s, zero)  shape = Concat<axis = 0>(n, ones)  e = Expand(token, shape)
        a = Add(h, e)  r = Flatten(a)
    """,
    "resize": """
        s = Shape(h)  size = Slice(s, two, four)  f = Cast<to = 1>(size)  g = Mul(f, factors)
        i = Cast<to = 7>(g)  first = Slice(s, zero, two)  target = Concat<axis = 0>(first, i)
        big = Resize<mode = "linear">(h, , , target)  r = GlobalAveragePool(big)
    """,
    "slice": """
        s = Shape(h)  size = Slice(s, two, four)  half = Div(size, two)  cut = Slice(h, start, half, two_three)
        r = GlobalAveragePool(cut)
    """,
    "pad": """
        s = Shape(h)  size = Slice(s, three, four)  rest = Mod(size, seven)  pads = Concat<axis = 0>(none, rest)
        p = Pad(h, pads)  r = GlobalAveragePool(p)
    """,
    "where": """
        s = Shape(h)  wild = Equal(asked, minus)  same = ConstantOfShape<value = int64[1] {1}>(four)
        shape = Where(wild, same, asked)  e = Expand(h, shape)  r = GlobalAveragePool(e)
    """,
}
LITERALS = """
    int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] seven = {7},
    int64[1] minus = {-1}, int64[3] ones = {4, 1, 1}, float[2] factors = {2.0, 3.0}, int64[2] start = {0, 0},
    int64[2] two_three = {2, 3}, int64[7] none = {0, 0, 0, 0, 0, 0, 0}, int64[4] asked = {-1, 4, 6, 6}
"""


def _model(name):
    width = 144 if name in ("reshape", "expand") else 4
    text = f"""
        net (float[batch, 3, 6, 6] x) => (float[batch, 5] y)
        <float[4, 3, 3, 3] w, float[1, 4, 1, 1] token, float[{width}, 5] b, {LITERALS}>
        {{
            h = Conv<pads = [1, 1, 1, 1]>(x, w)
            {CHAINS[name]}
            v = Flatten(r)  y = MatMul(v, b)
        }}
    """
    return jobs.text(text)


@pytest.fixture(params=CHAINS)
def chain(request, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(_model(request.param), path)
    return request.param, path


def test_a_chain_agrees_with_onnx_runtime_at_each_batch_and_on_the_meta_device(chain):
    _, path = chain
    graph = formats.load(path)
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 6, 6)).astype(np.float32)
        want = ort.InferenceSession(path).run(None, {"x": x})[0]
        np.testing.assert_allclose(execute.run(graph, {"x": x})["y"], want, rtol=1e-4, atol=1e-5)
        assert shapes.infer(graph, {"x": x.shape})["y"] == (batch, 5)


def test_no_value_of_a_chain_has_a_gradient_and_no_literal_is_a_weight(chain):
    name, path = chain
    graph = formats.load(path)
    module = execute.as_module(graph)
    assert set(module.weights) == ({"w", "b", "token"} if name == "expand" else {"w", "b"})
    described = {
        value.name
        for node in graph.nodes
        for value in node.outputs
        if node.op_type in ("Shape", "Gather", "Concat", "Cast", "Mul", "Div", "Mod", "Where")
    }
    x = torch.zeros(2, 3, 6, 6, requires_grad=True)
    values = module.values([x], {*described, "y"})
    assert values["y"].requires_grad
    assert not any(values[value].requires_grad for value in described)
    values["y"].sum().backward()
    assert all(weight.grad is not None for weight in module.weights.values())


def test_a_vector_that_scales_an_activation_too_is_a_weight(tmp_path):
    model = jobs.text("""
        net (float[batch, 2] x) => (float[batch, 2] y) <float[2] k = {1.0, 1.0}>
        { s = Shape(x) f = Cast<to = 1>(s) g = Mul(f, k) i = Cast<to = 7>(g) m = Mul(x, k) y = Expand(m, i) }
    """)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert roles.role(formats.load(path).initializers["k"]) is roles.Role.WEIGHT


@pytest.mark.parametrize(
    "steps",
    [
        [{"kind": "prune.magnitude", "sparsity": 0.5}, {"kind": "quantize.int8"}],
        [{"kind": "prune.channels", "fraction": 0.5}],
    ],
    ids=["weights", "channels"],
)
def test_a_dynamic_batch_stays_dynamic_from_upload_to_artifact(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(gauge, "LATENCY_BUDGET_S", 0.02)
    model = _model("resize")
    images = np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype(np.float32)
    data = {"x": images, "labels": np.arange(64) % 5}
    jobdir = jobs.make(tmp_path / "job", model, steps, train=data)
    pipeline.compress(jobdir)
    verification.verify_export(jobdir)
    artifact = jobdir / order.ARTIFACTS / "model.onnx"
    dims = [
        value.type.tensor_type.shape.dim[0].dim_param
        for value in (*onnx.load(artifact).graph.input, *onnx.load(artifact).graph.output)
    ]
    assert dims == ["batch", "batch"]
    session = ort.InferenceSession(artifact)
    for batch in (1, 7):
        assert session.run(None, {"x": images[:batch]})[0].shape == (batch, 5)
