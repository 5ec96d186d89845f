"""quantize.float16: what is stored in 16 bits, and what is not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from modelpress.spec.quantize import QuantizeFloat16
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import NothingChanged
from workers.engine.graph import execute, match


def cast(graph, tmp_path, **options):
    ctx = jobs.context_of(graph.clone(), tmp_path, None)
    result = passes.apply(graph, QuantizeFloat16(**options), ctx)
    formats.save(result, tmp_path / "half.onnx")
    return formats.load(tmp_path / "half.onnx"), ctx


@pytest.mark.parametrize(("kind", "digits"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_every_weight_is_rounded_once_and_onnx_runtime_agrees(kind, digits, tmp_path):
    model, graph = jobs.load("text_transformer", tmp_path)
    source = graph.clone()
    again, ctx = cast(graph, tmp_path, type=kind)
    assert {t.layer for t in ctx.coverage.touched} == set(source.parameters())
    for name, before in source.parameters().items():
        after = again.weight(f"{name}_{kind}").astype(np.float32)
        assert (np.abs(after - before) <= digits * np.abs(before) + 1e-7).all()
    feeds = nets.feeds(model, 4)
    theirs = onnxruntime.InferenceSession(tmp_path / "half.onnx").run(None, feeds)[0]
    np.testing.assert_allclose(execute.run(again, feeds)["logits"], theirs, rtol=1e-4, atol=1e-5)
    stored = [w.nbytes for name, w in again.parameters().items() if name.endswith(kind)]
    assert sum(stored) == sum(w.nbytes for w in source.parameters().values()) // 2


def test_numbers_too_large_for_float16_stay_and_bfloat16_takes_them(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    name = next(iter(graph.parameters()))
    graph.set_weight(name, graph.weight(name) * np.float32(1e6))
    _, ctx = cast(graph.clone(), tmp_path)
    (skipped,) = ctx.coverage.skipped
    assert skipped.layer == name
    assert "float16 ends at 65,504" in skipped.reason
    _, ctx = cast(graph, tmp_path, type="bfloat16")
    assert not ctx.coverage.skipped


def test_numbers_that_vanish_are_counted(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    name = next(iter(graph.parameters()))
    weight = graph.weight(name).copy()
    weight.flat[:3] = 1e-9
    graph.set_weight(name, weight)
    _, ctx = cast(graph, tmp_path)
    told = next(t.change for t in ctx.coverage.touched if t.layer == name)
    assert "3 too small for it became zero" in told


def test_excluding_everything_is_refused(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    with pytest.raises(NothingChanged, match="excluded by the recipe"):
        cast(graph, tmp_path, exclude=("*",))


@pytest.mark.parametrize("name", ["plain_cnn", "upsampling_cnn", "vision_transformer"])
def test_layers_compute_in_float16_and_everything_else_in_float32(name, tmp_path):
    model, graph = jobs.load(name, tmp_path)
    source = graph.clone()
    again, ctx = cast(graph, tmp_path, compute="float16")
    layers = [node for node in again.nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert layers
    for node in layers:
        assert all(again.initializers[v.name].dtype.name == "FLOAT16" for v in node.inputs[1:])
    assert any(f"{len(match.layers(source))} layers compute" in n for n in ctx.coverage.notes)
    feeds = nets.feeds(model, 4)
    theirs = onnxruntime.InferenceSession(tmp_path / "half.onnx").run(None, feeds)[0]
    (ours,), (exact,) = (execute.run(of, feeds).values() for of in (again, source))
    largest = np.abs(exact).max()
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() < 3e-3 * largest
    assert 0 < np.abs(theirs - exact).max() < 1e-2 * largest


def test_layers_behind_one_another_pass_float16_on(tmp_path):
    model = jobs.text("""
        net (float[batch, 3, 8, 8] x) => (float[batch, 10] y)
        <float[8, 3, 3, 3] w, float[8] b, float[8, 8, 1, 1] v, float[72, 10] m> {
            c = Conv(x, w, b)
            r = Relu(c)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            d = Conv(p, v)
            f = Flatten(d)
            y = MatMul(f, m)
        }
    """)
    onnx.save(model, tmp_path / "net.onnx")
    again, _ = cast(formats.load(tmp_path / "net.onnx"), tmp_path, compute="float16")
    kinds = [node.op_type for node in again.nodes]
    assert kinds == ["Cast", "Conv", "Relu", "MaxPool", "Conv", "Flatten", "MatMul", "Cast"]
    assert [v.name for v in again.outputs] == ["y"]
    assert off_runtime(again, model, tmp_path) < 3e-3


def off_runtime(graph, model, tmp_path) -> float:
    """How far ONNX Runtime is from the executor, of the largest output."""
    feeds = nets.feeds(model, 4)
    (ours,) = execute.run(graph, feeds).values()
    theirs = onnxruntime.InferenceSession(tmp_path / "half.onnx").run(None, feeds)[0]
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def test_arithmetic_in_float16_needs_numbers_in_float16():
    with pytest.raises(ValidationError, match="needs type 'float16'"):
        QuantizeFloat16(type="bfloat16", compute="float16")
