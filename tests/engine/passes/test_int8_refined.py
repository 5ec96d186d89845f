"""What quantize.int8 does beside rounding to nearest: equalisation, SmoothQuant, AdaRound, bias correction, and other targets."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from modelpress.spec.quantize import AdaRound, QuantizeInt8
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.graph import edit, execute, shapes
from workers.engine.passes.quantize import (
    _adaround,
    _affine,
    _bias,
    _equalize,
    _smooth,
    _targets,
)
from workers.engine.passes.quantize._weights import Layer

CHAIN = """
net (float[batch, 3, 8, 8] x) => (float[batch, 5] y)
<float[6, 3, 3, 3] w1, float[6] b1, float[6] g, float[6] s, float[6] m, float[12, 1, 3, 3] w2, float[12] b2,
 float[8, 6, 1, 1] w3, float[8] b3, float[5, 128] w4, float[5] b4>
{ c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r1 = Relu(c1)
  c2 = Conv<pads = [1, 1, 1, 1], group = 6>(r1, w2, b2)  r2 = LeakyRelu<alpha = 0.1>(c2)
  c3 = Conv<group = 2>(r2, w3, b3)  r3 = Relu(c3)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r3)  f = Flatten(p)  y = Gemm<transB = 1>(f, w4, b4) }
""".replace("float[6] g, float[6] s, float[6] m, ", "")


def graph_of(model, tmp_path):
    onnx.save(model, tmp_path / "net.onnx")
    return formats.load(tmp_path / "net.onnx")


def uneven(graph):
    """The same function with channels of the first layers blown up and the next ones shrunk."""
    factors = np.logspace(-1, 1, 6).astype(np.float32)
    graph.set_weight("w1", graph.weight("w1") * factors[:, None, None, None])
    graph.set_weight("b1", graph.weight("b1") * factors)
    graph.set_weight("w2", graph.weight("w2") / np.repeat(factors, 2)[:, None, None, None])
    return graph


def targets_of(graph, tmp_path):
    return _targets.find(graph, QuantizeInt8(), jobs.context_of(graph, tmp_path, None))


def equalize(graph, tmp_path):
    ctx, deeds = jobs.context_of(graph, tmp_path, None), defaultdict(list)
    found = shapes.infer(graph, shapes.example_shapes(graph))
    pairs = _equalize.equalize(graph, targets_of(graph, tmp_path), found, ctx, deeds)
    return pairs, ctx, deeds


def output(graph, feeds):
    name = graph.outputs[0].name
    return execute.run(graph, feeds)[name]


def test_equalisation_keeps_the_function_through_depthwise_grouped_and_flattened_layers(tmp_path):
    model = jobs.text(CHAIN)
    graph = uneven(graph_of(model, tmp_path))
    feeds = nets.feeds(model, 8, seed=1)
    before = output(graph, feeds)
    pairs, _, deeds = equalize(graph, tmp_path)
    assert [(p.first.weight, p.second.weight) for p in pairs] == [
        ("w1", "w2"),
        ("w2", "w3"),
        ("w3", "w4"),
    ]
    assert np.abs(output(graph, feeds) - before).max() < 1e-5 * np.abs(before).max()
    assert all("ranges of channels" in deeds[name][0] for name in ("w1", "w2", "w3"))


def test_equalised_ranges_are_equal_on_both_sides(tmp_path):
    graph = uneven(graph_of(jobs.text(CHAIN), tmp_path))
    pairs, _, _ = equalize(graph, tmp_path)
    for pair in pairs:
        first, second = _equalize._ranges(graph, pair)
        assert first == pytest.approx(second, rel=0.02)


@pytest.mark.parametrize(
    "name", ["plain_cnn", "residual_cnn", "depthwise_cnn", "vision_transformer"]
)
def test_equalisation_keeps_the_function_of_whole_nets(name, tmp_path):
    model, graph = jobs.load(name, tmp_path)
    edit.fold_batch_norm(graph)
    feeds = nets.feeds(model, 4, seed=2)
    before = output(graph, feeds)
    pairs, ctx, _ = equalize(graph, tmp_path)
    assert np.abs(output(graph, feeds) - before).max() < 1e-5 * np.abs(before).max()
    assert pairs or "no two layers could be balanced" in ctx.coverage.notes[0]


def test_a_clip_and_a_second_reader_are_in_the_way_and_named(tmp_path):
    model = jobs.text("""
        net (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y)
        <float[4, 3, 1, 1] w1, float[4, 4, 1, 1] w2, float[4, 4, 1, 1] w3>
        { a = Conv(x, w1)  z = Constant<value_float = 0.0>()  s = Constant<value_float = 6.0>()
          c = Clip(a, z, s)  b = Conv(c, w2)  r = Relu(b)  d = Conv(r, w3)  y = Add(d, r) }
    """)
    _, ctx, _ = equalize(graph_of(model, tmp_path), tmp_path)
    assert "w1: Clip behind it" in ctx.coverage.notes[0]
    assert "w2: its result is read by several nodes" in ctx.coverage.notes[0]


def test_equalisation_lowers_the_error_of_uneven_channels(tmp_path):
    model = jobs.text(CHAIN)
    graph = uneven(graph_of(model, tmp_path))
    feeds = nets.feeds(model, 64, seed=3)
    before = output(graph, feeds)

    def error(**options):
        ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
        result = passes.apply(graph.clone(), QuantizeInt8(per_channel=False, **options), ctx)
        return np.linalg.norm(output(result, feeds) - before)

    assert error(equalize=True) < 0.5 * error()


def smooth(graph, model, tmp_path, exponent=0.5):
    ctx, deeds = jobs.context_of(graph, tmp_path, None), defaultdict(list)
    targets = targets_of(graph, tmp_path)
    samples = jobs.dataset_of(model)
    return _smooth.smooth(graph, targets, exponent, samples, ctx, deeds), ctx, deeds


def test_smoothing_keeps_the_function_and_flattens_the_channels(tmp_path):
    model, graph = jobs.load("vision_transformer", tmp_path)
    gain = next(n.inputs[1].name for n in graph.nodes if n.op_type == "LayerNormalization")
    loud = graph.weight(gain).copy()
    loud[3] *= 50
    graph.set_weight(gain, loud)
    feeds = nets.feeds(model, 8, seed=1)
    before = output(graph, feeds)
    groups, ctx, deeds = smooth(graph, model, tmp_path)
    assert [len(group.readers) for group in groups] == [3, 1, 3, 1]
    assert np.abs(output(graph, feeds) - before).max() < 1e-5 * np.abs(before).max()
    told = deeds[groups[0].readers[0].weight][0].replace(",", "").split()
    now, was = float(told[7]), float(told[-1])
    assert now < was / 3
    assert "does not read a normalization" in ctx.coverage.notes[0]


def test_smoothing_follows_the_formula_of_the_paper(tmp_path):
    model = jobs.text("""
        net (float[batch, 4, 8] x) => (float[batch, 4, 6] y) <float[8] g, float[8] b, float[8, 6] w>
        { n = LayerNormalization(x, g, b)  y = MatMul(n, w) }
    """)
    graph = graph_of(model, tmp_path)
    samples = jobs.dataset_of(model)
    w, g = graph.weight("w").copy(), graph.weight("g").copy()
    largest = np.abs(execute.observe(graph, samples.batch(np.arange(samples.samples)), ["n"])["n"])
    smooth(graph, model, tmp_path, exponent=0.75)
    s = largest.max(axis=(0, 1)) ** 0.75 / np.abs(w).max(axis=1) ** 0.25
    assert graph.weight("w") == pytest.approx(w * s[:, None], rel=1e-4)
    assert graph.weight("g_smoothed") == pytest.approx(g / s, rel=1e-4)


def test_smoothing_a_net_without_normalization_is_noted(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    _, ctx, _ = smooth(graph, model, tmp_path)
    assert "smooth changed nothing: no matrix product reads a normalization by itself" in (
        ctx.coverage.notes
    )


LAYERS = [
    "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)",
    "y = Conv<group = 2>(x, v, b)",
]


def layer_of(source, tmp_path, limit=_affine.REDUCED_RANGE):
    model = jobs.text(f"""
        net (float[batch, 4, 8, 8] x) => (float[batch, 6, n, m] y)
        <float[6, 4, 3, 3] w, float[6, 2, 3, 3] v, float[6] b> {{ {source} }}
    """)
    graph = graph_of(model, tmp_path)
    (target,) = targets_of(graph, tmp_path)
    x = np.abs(nets.feeds(model, 64, seed=4)["x"]) + 0.5
    codes = _affine.weight(np.array(graph.weight(target.weight)), 0, limit, None)
    return graph, x, Layer(target, codes, limit, _affine.activation(0, float(x.max())))


def multiplied(graph, name, weight, x):
    changed = graph.clone()
    changed.set_weight(name, weight)
    return execute.run(changed, {"x": x})["y"]


@pytest.mark.parametrize("source", LAYERS)
def test_a_corrected_bias_makes_the_mean_of_each_channel_exact(source, tmp_path):
    graph, x, layer = layer_of(source, tmp_path)
    mean = _bias.MeanInput(layer)
    for part in np.array_split(x, 5):
        mean.add(part)
    name = layer.target.weight
    by = _bias.shift(layer, mean, graph.weight(name))
    exact = execute.run(graph, {"x": x})["y"]
    coded = _affine.decode(_affine.encode(x, layer.input), layer.input)
    rounded = multiplied(graph, name, _affine.decode_weight(layer.codes), coded)
    off = (exact - rounded).mean(axis=(0, 2, 3))
    assert np.abs(off).max() > 1e-3
    assert by == pytest.approx(off, abs=1e-4 * float(np.abs(exact).max()))


@pytest.mark.parametrize("source", LAYERS)
def test_moments_give_the_error_of_the_layer_s_outputs(source, tmp_path):
    graph, x, layer = layer_of(source, tmp_path)
    name = layer.target.weight
    moments = _adaround.Moments(layer.target, graph.weight(name))
    for part in np.array_split(x, 3):
        moments.add(part)
    weight = np.array(graph.weight(name))
    exact, nearest = (
        torch.from_numpy(_adaround._layerwise.as_rows(layer.target, w).copy())
        for w in (weight, _affine.decode_weight(layer.codes))
    )
    rows = _adaround.Rows(exact, nearest, moments.mean, 64)
    off = execute.run(graph, {"x": x})["y"] - multiplied(graph, name, nearest_of(layer), x)
    wanted = (off.astype(np.float64) ** 2).mean(axis=(0, 2, 3))
    assert rows.errors(nearest).numpy().reshape(-1) == pytest.approx(wanted, rel=1e-3)


def nearest_of(layer):
    return _affine.decode_weight(layer.codes)


def test_learned_roundings_beat_the_nearest_and_stay_beside_the_weight():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 24, generator=generator) + 0.5
    exact = torch.randn(1, 8, 24, generator=generator) * 15
    exact[0, 0, :5] = 0
    nearest = exact.round().clamp(-64, 64)
    rows = _adaround.Rows(exact, nearest, (x.T @ x / 500)[None], 64)
    found = rows.learn(AdaRound(iterations=200))
    assert rows.errors(found).sum() < 0.7 * rows.errors(nearest).sum()
    assert (rows.errors(found) <= rows.errors(nearest)).all()
    assert ((found - exact).abs() < 1).all()
    assert (found[exact == 0] == 0).all()


def test_what_was_done_is_told_layer_by_layer(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    step = QuantizeInt8(equalize=True, bias_correction=True, adaround={"iterations": 10})
    result = passes.apply(graph, step, ctx)
    told = {t.layer: t.change for t in ctx.coverage.touched}
    assert all(
        "rounding learned" in change and "bias shifted" in change for change in told.values()
    )
    assert sum("equalised with" in change for change in told.values()) == 3
    feeds = nets.feeds(model, 64, seed=5)
    before = output(formats.load(tmp_path / "plain_cnn.onnx"), feeds)
    assert np.linalg.norm(output(result, feeds) - before) < 0.05 * np.linalg.norm(before)


def test_dynamic_mode_takes_data_for_what_needs_it():
    assert not QuantizeInt8(mode="dynamic", equalize=True).needs_data
    assert QuantizeInt8(mode="dynamic", bias_correction=True).needs_data
    assert QuantizeInt8(mode="dynamic", smooth=0.5).needs_data


def test_dynamic_mode_is_for_this_runtime_only():
    with pytest.raises(ValidationError, match="set mode to static"):
        QuantizeInt8(mode="dynamic", target="mobile")


def test_a_transposed_convolution_of_several_groups_is_stored_in_8_bits_only(tmp_path):
    model = jobs.text("""
        net (float[batch, 4, 4, 4] x) => (float[batch, 6, 5, 5] y)
        <float[4, 4, 1, 1] v, float[4, 3, 2, 2] w, float[6] b>
        { c = Conv(x, v)  y = ConvTranspose<group = 2>(c, w, b) }
    """)
    graph = graph_of(model, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    result = passes.apply(graph, QuantizeInt8(target="tensorrt"), ctx)
    node = next(n for n in result.nodes if n.op_type == "ConvTranspose")
    assert node.inputs[0].producer().op_type == "Conv"
    assert result.weight("w_int8").dtype == np.int8


def for_target(target, tmp_path):
    model, graph = jobs.load("residual_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    return passes.apply(graph, QuantizeInt8(target=target), ctx)


def test_tensorrt_gets_symmetric_int8_before_layers_and_float_biases(tmp_path):
    graph = for_target("tensorrt", tmp_path)
    zeros = [n.inputs[2].const_value.numpy() for n in graph.nodes if n.op_type == "QuantizeLinear"]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    layers = [n for n in graph.nodes if n.op_type in ("Conv", "Gemm")]
    assert all(node.inputs[0].producer().op_type == "DequantizeLinear" for node in layers)
    assert all(node.inputs[2].const_value.dtype.name == "FLOAT" for node in layers)
    assert Counter(n.op_type for n in graph.nodes)["Relu"] == 5
    assert graph.outputs[0].producer().op_type != "DequantizeLinear"


def test_mobile_gets_integers_from_end_to_end_and_one_scale_for_a_matrix(tmp_path):
    graph = for_target("mobile", tmp_path)
    assert not Counter(n.op_type for n in graph.nodes)["Relu"]
    floats = {"QuantizeLinear", "DequantizeLinear"}
    for node in graph.nodes:
        if node.op_type not in floats | {"Identity"}:
            readers = {user.op_type for user, _ in node.outputs[0].uses()}
            assert readers == {"QuantizeLinear"}, node
    (gemm,) = (n for n in graph.nodes if n.op_type == "Gemm")
    assert gemm.inputs[1].producer().inputs[1].const_value.numpy().shape == ()
    end = graph.outputs[0].producer()
    assert end.inputs[0].producer().op_type == "DequantizeLinear"
