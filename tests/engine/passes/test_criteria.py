"""Scores of weights against what the papers' formulas give, computed here another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from modelpress.spec.prune import PruneMagnitude
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.data import dataset
from workers.engine.errors import BadModel
from workers.engine.graph import execute, match
from workers.engine.passes.prune import _criteria

SOFTMAX_REGRESSION = """
    net (float[batch, 6] x) => (float[batch, 3] logits) <float[3, 6] w, float[3] b>
    { logits = Gemm <transB = 1> (x, w, b) }
"""
CONVOLUTIONS = {
    "plain": ("float[6, 4, 3, 3] w", "Conv <pads = [1, 1, 1, 1]> (x, w)"),
    "strided": ("float[6, 4, 3, 2] w", "Conv <strides = [2, 3], pads = [0, 1, 2, 1]> (x, w)"),
    "dilated": ("float[6, 4, 2, 2] w", "Conv <dilations = [2, 3]> (x, w)"),
    "grouped": ("float[6, 2, 3, 3] w", "Conv <group = 2> (x, w)"),
    "depthwise": ("float[4, 1, 3, 3] w", "Conv <group = 4, pads = [1, 1, 1, 1]> (x, w)"),
    "transposed": ("float[4, 5, 3, 3] w", "ConvTranspose <strides = [2, 2]> (x, w)"),
    "cropped": ("float[4, 5, 3, 3] w", "ConvTranspose <pads = [1, 0, 2, 1]> (x, w)"),
}


def load(text, tmp_path):
    onnx.save(jobs.text(text), tmp_path / "net.onnx")
    return formats.load(tmp_path / "net.onnx")


def data_of(array, labels=None):
    made = dataset.with_columns([("x", dataset.ArrayColumn(array, array.dtype))], len(array))
    return dataset.Dataset(made.columns, made.rows, labels=labels)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scores(graph, tmp_path, data=None, name="w", initial=None, **options):
    ctx = jobs.context_of(graph, tmp_path, data)
    if initial is not None:
        ctx = replace(ctx, models={"initial": initial})
    step = PruneMagnitude(sparsity=0.5, **options)
    return _criteria.scores(graph, [name], step, ctx)[name]


def regression(tmp_path, samples=40):
    graph = load(SOFTMAX_REGRESSION, tmp_path)
    labels = np.random.default_rng(1).integers(0, 3, samples)
    return graph, data_of(noise(samples, 6), labels)


def gradients(graph, data, indices):
    """Of the mean cross-entropy, in closed form: (softmax - onehot)^T x / n."""
    x, labels = data.batch(indices)["x"].astype(np.float64), data.labels[indices]
    z = x @ graph.weight("w").astype(np.float64).T + graph.weight("b")
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p - np.eye(3)[labels]).T @ x / len(x)


def test_final_weights_rank_by_their_size_one_way_or_the_other(tmp_path):
    graph = load(SOFTMAX_REGRESSION, tmp_path)
    w = graph.weight("w")
    assert (scores(graph, tmp_path) == np.abs(w)).all()
    assert (scores(graph, tmp_path, criterion="small_final") == -np.abs(w)).all()


def test_criteria_of_initial_weights_compare_with_those(tmp_path):
    graph = load(SOFTMAX_REGRESSION, tmp_path)
    before = graph.clone()
    w, w0 = graph.weight("w"), noise(3, 6, seed=5)
    before.set_weight("w", w0)
    for criterion, wanted in {
        "large_init": np.abs(w0),
        "magnitude_increase": np.abs(w) - np.abs(w0),
        "movement": np.abs(w - w0),
    }.items():
        found = scores(graph, tmp_path, initial=before, criterion=criterion)
        np.testing.assert_array_equal(found, wanted)


def test_initial_weights_are_turned_as_the_trained_ones_were(tmp_path):
    text = "net (float[batch, 8] x) => (float[batch, 4] y) <float[4, 8] w> { t = Transpose(w)  y = MatMul(x, t) }"
    before = load(text, tmp_path)
    graph = before.clone()
    graph.set_weight("w", graph.weight("w") + noise(4, 8, seed=5))
    ctx = replace(jobs.context_of(graph, tmp_path, None), models={"initial": before})
    step = PruneMagnitude(sparsity=0.5, criterion="movement")
    moved = np.abs(graph.weight("w") - before.weight("w")).T
    pruned = passes.apply(graph, step, ctx).weight("w")
    assert moved[pruned == 0].max() <= moved[pruned != 0].min()
    assert before.weight("w").shape == (4, 8)


def test_initial_weights_of_another_shape_are_refused_with_the_way_out(tmp_path):
    graph = load(SOFTMAX_REGRESSION, tmp_path)
    before = graph.clone()
    before.set_weight("w", noise(4, 6))
    with pytest.raises(BadModel, match=r"is \[3, 6\], but the initial model has it as \[4, 6\]"):
        scores(graph, tmp_path, initial=before, criterion="movement")


def test_snip_is_the_weight_times_the_gradient_of_the_mean_loss(tmp_path):
    graph, data = regression(tmp_path)
    wanted = np.abs(graph.weight("w") * gradients(graph, data, np.arange(40)))
    found = scores(graph, tmp_path, data, criterion="snip")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_snip_does_not_depend_on_how_samples_fall_into_batches(tmp_path):
    graph, data = regression(tmp_path, 33)
    wanted = np.abs(graph.weight("w") * gradients(graph, data, np.arange(33)))
    np.testing.assert_allclose(
        scores(graph, tmp_path, data, criterion="snip"), wanted, rtol=1e-4, atol=1e-7
    )


def test_taylor_squares_before_it_takes_the_mean_over_batches(tmp_path):
    graph, data = regression(tmp_path, 64)
    ctx = jobs.context_of(graph, tmp_path, data)
    halves = np.array_split(ctx.random("criterion").permutation(64), 2)
    w = graph.weight("w")
    wanted = np.mean([(w * gradients(graph, data, half)) ** 2 for half in halves], axis=0)
    found = scores(graph, tmp_path, data, criterion="taylor")
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9)


def test_only_as_many_samples_are_run_as_asked_for(tmp_path):
    graph, data = regression(tmp_path)
    few = scores(graph, tmp_path, data, criterion="snip", samples=8)
    drawn = jobs.context_of(graph, tmp_path, data).random("criterion").permutation(40)[:8]
    wanted = np.abs(graph.weight("w") * gradients(graph, data, drawn))
    np.testing.assert_allclose(few, wanted, rtol=1e-4, atol=1e-7)


def test_wanda_multiplies_by_the_norm_of_each_input_of_a_matrix_product(tmp_path):
    graph, data = regression(tmp_path)
    norms = np.linalg.norm(data.batch(np.arange(40))["x"].astype(np.float64), axis=0)
    found = scores(graph, tmp_path, data, criterion="wanda")
    np.testing.assert_allclose(found, np.abs(graph.weight("w")) * norms, rtol=1e-5)


def test_wanda_counts_every_position_of_a_sequence(tmp_path):
    graph = load(
        "net (float[batch, 5, 6] x) => (float[batch, 5, 3] y) <float[6, 3] w> { y = MatMul(x, w) }",
        tmp_path,
    )
    data = data_of(noise(20, 5, 6))
    norms = np.linalg.norm(data.batch(np.arange(20))["x"].reshape(-1, 6), axis=0)
    found = scores(graph, tmp_path, data, criterion="wanda")
    np.testing.assert_allclose(found, np.abs(graph.weight("w")) * norms[:, None], rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(CONVOLUTIONS))
def test_wanda_of_a_convolution_sums_what_each_weight_meets(kind, tmp_path):
    """Asked of the layer itself: with one weight at 1 and the others at 0 its outputs are what that weight meets."""
    weight, node = CONVOLUTIONS[kind]
    graph = load(
        f"net (float[batch, 4, 7, 8] x) => (float[batch, C, H, W] y) <{weight}> {{ y = {node} }}",
        tmp_path,
    )
    data = data_of(noise(6, 4, 7, 8))
    w, x = graph.weight("w"), data.batch(np.arange(6))["x"]
    met = np.zeros(w.shape)
    for index in np.ndindex(*w.shape):
        alone = np.zeros(w.shape, np.float32)
        alone[index] = 1.0
        graph.set_weight("w", alone)
        met[index] = np.square(execute.run(graph, {"x": x})["y"].astype(np.float64)).sum()
    graph.set_weight("w", w)
    found = scores(graph, tmp_path, data, criterion="wanda")
    np.testing.assert_allclose(found, np.abs(w) * np.sqrt(met), rtol=1e-5)


def test_wanda_sums_over_all_layers_that_share_a_weight(tmp_path):
    graph = load(
        "net (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w> { h = MatMul(x, w)  y = MatMul(h, w) }",
        tmp_path,
    )
    data = data_of(noise(20, 4))
    x = data.batch(np.arange(20))["x"]
    both = np.concatenate([x, x @ graph.weight("w")])
    wanted = np.abs(graph.weight("w")) * np.linalg.norm(both, axis=0)[:, None]
    np.testing.assert_allclose(scores(graph, tmp_path, data, criterion="wanda"), wanted, rtol=1e-5)


def test_wanda_runs_a_model_of_a_fixed_batch_in_its_batches(tmp_path):
    graph = load(
        "net (float[2, 6] x) => (float[2, 3] y) <float[6, 3] w> { s = Constant <value_ints = [2, 6]> ()  r = Reshape(x, s)  y = MatMul(r, w) }",
        tmp_path,
    )
    data = data_of(noise(6, 6))
    norms = np.linalg.norm(data.batch(np.arange(6))["x"], axis=0)
    found = scores(graph, tmp_path, data, criterion="wanda")
    np.testing.assert_allclose(found, np.abs(graph.weight("w")) * norms[:, None], rtol=1e-5)


def test_random_scores_are_drawn_from_the_job_seed(tmp_path):
    graph = load(SOFTMAX_REGRESSION, tmp_path)
    step = PruneMagnitude(sparsity=0.5, criterion="random")
    drawn = [
        _criteria.scores(graph, ["w"], step, jobs.context_of(graph, tmp_path, None, seed=seed))["w"]
        for seed in (0, 0, 1)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).all()


@pytest.mark.parametrize("criterion", ["snip", "taylor", "wanda"])
def test_inputs_that_are_not_finite_are_refused(criterion, tmp_path):
    graph, data = regression(tmp_path)
    array = data.batch(np.arange(40))["x"].copy()
    array[3, 2] = np.inf
    with pytest.raises(BadModel, match="'w' can't be ranked"):
        scores(graph, tmp_path, data_of(array, data.labels), criterion=criterion)


def test_criteria_run_on_a_real_network_as_torch_computes_it(tmp_path):
    """The CNN of the tiny nets: gradients of every layer against autograd over the same module in one batch."""
    model, graph = jobs.load("plain_cnn", tmp_path)
    data = jobs.dataset_of(model, 30)
    names = [layer.weight for layer in match.layers(graph)]
    ctx = jobs.context_of(graph, tmp_path, data)
    found = _criteria.scores(graph, names, PruneMagnitude(sparsity=0.5, criterion="snip"), ctx)
    module = execute.as_module(graph).eval()
    logits = module(torch.from_numpy(data.batch(np.arange(30))["image"]))[0]
    functional.cross_entropy(logits, torch.from_numpy(data.labels)).backward()
    for name in names:
        weight = module.weights[name]
        wanted = (weight * weight.grad).abs().detach().numpy()
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-7)
