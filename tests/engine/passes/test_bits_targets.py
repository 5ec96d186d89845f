"""quantize.bits: what layers see behind rounded ones, what biases make good, transposed convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from modelpress.spec.quantize import QuantizeBits
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.graph import execute, match, ops
from workers.engine.passes import _matrix, _moments
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.quantize import _error, _target


def quantize(model, tmp_path, **options):
    """The step on a model; answers the graph before, after, and the context with 48 training samples."""
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    return graph.clone(), passes.apply(graph, QuantizeBits(**options), ctx), ctx


def outputs(graph, ctx):
    """The first output for all training samples."""
    feeds = ctx.train.batch(np.arange(ctx.train.samples))
    return next(iter(execute.run(graph, feeds).values()))


def seen(columns, seed=0):
    """x' and x [columns, places]: x as rounded layers might give it."""
    rng = np.random.default_rng(seed)
    exact = np.maximum(rng.normal(0.5, 1, (columns, 8 * columns)), 0)
    return torch.from_numpy(exact), torch.from_numpy(exact + rng.normal(0.1, 0.3, exact.shape))


def test_the_target_gives_the_float_outputs_as_well_as_least_squares_can():
    exact, x = seen(12)
    w = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 12)))
    found = _target.fitted(w, x @ x.T, exact @ x.T, 1e-9)
    best = torch.linalg.lstsq(x.T, (w @ exact).T).solution.T
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_target.fitted(w, x @ x.T, x @ x.T, 0.01), w)


def test_the_target_keeps_zeros_and_never_takes_outputs_further_away():
    exact, x = seen(24)
    w = torch.from_numpy(np.random.default_rng(1).normal(size=(40, 24)))
    w[torch.from_numpy(np.random.default_rng(2).random(w.shape) < 0.8)] = 0
    found = _target.fitted(w, x @ x.T, exact @ x.T, 0.01)
    assert (found[w == 0] == 0).all()
    off, was = ((t @ x - w @ exact).square().sum(1) for t in (found, w))
    assert (off <= was + 1e-9).all()
    assert (off < was).any()


def test_a_row_whose_zeros_are_in_the_way_keeps_its_weights():
    rng = np.random.default_rng(0)
    signal, noise = torch.from_numpy(rng.normal(size=(2, 500)))
    exact, x = torch.stack([signal, noise]), torch.stack([signal + 0.3 * noise, signal])
    w = torch.tensor([[1.0, 0.0], [1.0, 0.1]]).double()
    found = _target.fitted(w, x @ x.T, exact @ x.T, 1e-6)
    assert torch.equal(found[0], w[0])
    torch.testing.assert_close(found[1], torch.tensor([0.333, 0.667]).double(), atol=0.03, rtol=0)


def test_moments_of_twins_tell_how_far_outputs_are(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    running, layers = graph.clone(), match.layers(graph)
    first, layer = layers[0].weight, layers[1]
    running.set_weight(first, np.round(graph.weight(first), 1))
    matrix = Matrix.of(graph, layer)
    found = _moments.gather(running, [layer], {layer.weight: matrix}, 48, ctx, beside=graph)
    samples = ctx.train.take(48, ctx.seed).batch(np.arange(48))
    name = layer.node.inputs[0].name
    x, exact = (
        torch.from_numpy(of.values(samples, name)).double()
        for of in (Watched(running), Watched(graph))
    )
    moments, (w, after) = (
        found[layer.weight],
        (torch.randn(7, matrix.columns).double() for _ in "ab"),
    )
    wanted = float((x @ after.T - exact @ w.T).square().sum())
    assert _error.of_outputs(w, after, moments, 0) == pytest.approx(wanted, rel=1e-5)
    about = _error.of_outputs(w, after, moments.centred(), 0)
    gap = x @ after.T - exact @ w.T
    assert about == pytest.approx(float((gap - gap.mean(0)).square().sum()), rel=1e-5)


class Watched:
    """A graph whose inner values can be seen."""

    def __init__(self, graph):
        self._graph, self._module = graph, execute.as_module(graph).eval()

    def values(self, feeds, name):
        given = [torch.from_numpy(feeds[v.name]) for v in self._graph.inputs]
        with torch.no_grad():
            return self._module.values(given, [name])[name].numpy()


TRANSPOSED = [
    "ConvTranspose<strides = [2, 2]>(x, w)",
    "ConvTranspose<strides = [2, 1], pads = [1, 0, 0, 1], dilations = [1, 2]>(x, w)",
    "ConvTranspose<strides = [2, 3], output_padding = [1, 2]>(x, w)",
    'ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)',
]


@pytest.mark.parametrize("text", TRANSPOSED)
def test_rows_times_what_is_spread_are_the_transposed_convolution(text, tmp_path):
    model = jobs.text(f"""
        net (float[batch, 4, 5, 6] x) => (float[batch, a, b, c] y) <float[4, 3, 3, 2] w> {{ y = {text} }}
    """)
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    (layer,) = match.layers(graph)
    matrix, weight = Matrix.of(graph, layer), graph.weight(layer.weight)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32))
    columns = _matrix.inputs(layer, x, weight.shape)
    attributes = {name: a.value for name, a in layer.node.attributes.items()}
    wanted = ops.TABLE["ConvTranspose"].compute(x, torch.from_numpy(weight.copy()), **attributes)
    found = torch.from_numpy(matrix.to_rows(weight).copy()) @ columns[0].T
    torch.testing.assert_close(found.reshape(3, 3, -1).transpose(0, 1), wanted.flatten(2))


def test_transposed_convolutions_gain_by_gptq_unless_they_have_groups(tmp_path):
    text = """
        net (float[batch, 3, 6, 6] x) => (float[batch, a, b, c] y)
        <float[12, 12, 3, 3] w, float[12, 4, 2, 2] v> {{
            like = Concat<axis = 1>(x, x, x, x)
            h = ConvTranspose<strides = [2, 2]>(like, w)
            y = ConvTranspose<strides = [2, 2], group = {groups}>(h, v)
        }}
    """
    options = {"bits": 3, "group_size": None}
    model = jobs.text(text.format(groups=1))
    original, plain, ctx = quantize(model, tmp_path, **options)
    _, better, told = quantize(model, tmp_path, method="gptq", **options)
    wanted = outputs(original, ctx)
    off, was = (np.square(outputs(graph, ctx) - wanted).sum() for graph in (better, plain))
    assert off < 0.7 * was
    assert not any("rounded to nearest" in note for note in told.coverage.notes)
    _, _, told = quantize(jobs.text(text.format(groups=4)), tmp_path, method="gptq", **options)
    assert sum("ConvTranspose of several groups" in note for note in told.coverage.notes) == 1


BIASED = """
    net (float[batch, 3, 8, 8] x) => (float[batch, n] y)
    <float[6, 3, 3, 3] w, float[6] b, float[6, 1, 3, 3] d, float[6, 10] m, float[10] c, float[10, 5] last> {
        h = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        r = Relu(h)
        e = Conv<group = 6>(r, d)
        g = GlobalAveragePool(e)
        f = Flatten(g)
        k = MatMul(f, m)
        s = Add(k, c)
        t = Relu(s)
        y = MatMul(t, last)
    }
"""


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_biases_make_good_the_mean_of_every_output(method, tmp_path):
    model = jobs.text(BIASED)
    options = {"bits": 3, "group_size": None, "bias_correction": True, "samples": 48}
    if method != "rtn":
        options["sequential"] = True
    original, result, ctx = quantize(model, tmp_path, method=method, **options)
    feeds = ctx.train.batch(np.arange(48))
    for name in ("h", "e", "s") if method != "rtn" else ("h",):
        was, now = (Watched(graph).values(feeds, name) for graph in (original, result))
        axes = tuple(axis for axis in range(was.ndim) if axis != 1)
        assert np.abs(now - was).max() > 1e-2
        np.testing.assert_allclose(now.mean(axes), was.mean(axes), atol=1e-5)
    assert any("1 weights have no bias of their own: last" in n for n in ctx.coverage.notes)
    shifted = {t.layer for t in ctx.coverage.touched if "its bias shifted" in t.change}
    assert shifted == {"w", "d", "m"}


def test_layers_in_turn_with_biases_stay_nearest_to_the_float_network(tmp_path):
    model, _ = jobs.load("depthwise_cnn", tmp_path)
    off = []
    for more in ({}, {"bias_correction": True}, {"bias_correction": True, "sequential": True}):
        original, result, ctx = quantize(
            model, tmp_path, method="gptq", bits=3, group_size=None, act_order=True, **more
        )
        off.append(float(np.square(outputs(result, ctx) - outputs(original, ctx)).sum()))
    assert off[2] < 0.7 * off[1] < 0.7 * off[0]
