"""rewrite.depthwise: the best fit of each input channel, the closed form of its size, and recovery by a teacher."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from modelpress.spec.recipe import parse
from modelpress.spec.rewrite import RewriteDepthwise
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import NothingChanged
from workers.engine.graph import execute, match
from workers.engine.passes.rewrite._decomposition import Depthwise

CONVOLUTION = """
    net (float[batch, 6, 9, 8] x) => (float[batch, c, h, w2] y)
    <float[16, 6, 3, 3] w, float[16] b> { y = Conv<pads = [1, 2, 0, 1], strides = [2, 1], dilations = [1, 2]>(x, w, b) }
"""


def load(text, tmp_path):
    model = jobs.text(text)
    onnx.save(model, tmp_path / "net.onnx")
    return model, formats.load(tmp_path / "net.onnx")


def rewritten(graph, tmp_path, train=None, **options):
    ctx = jobs.context_of(graph.clone(), tmp_path, train)
    return passes.apply(graph.clone(), RewriteDepthwise(**options), ctx), ctx


@pytest.mark.parametrize("multiplier", [1, 3])
def test_two_layers_are_the_convolution_of_the_fit(multiplier, tmp_path):
    model, graph = load(CONVOLUTION, tmp_path)
    result, _ = rewritten(graph, tmp_path, multiplier=multiplier)
    fit = Depthwise(graph.weight("w")).factors((multiplier,)).product
    graph.set_weight("w", fit.astype(np.float32))
    feeds = nets.feeds(model, 3)
    wanted = execute.run(graph, feeds)["y"]
    found = execute.run(result, feeds)["y"]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_fit_is_the_best_of_rank_one_for_each_input_channel():
    weight = np.random.default_rng(0).normal(size=(16, 6, 3, 3))
    fit = Depthwise(weight).factors((1,)).product
    for channel in range(6):
        sigma = np.linalg.svd(weight[:, channel].reshape(16, 9), compute_uv=False)
        lost = np.linalg.norm(weight[:, channel] - fit[:, channel])
        assert lost == pytest.approx(np.sqrt(np.square(sigma[1:]).sum()), rel=1e-6)


@pytest.mark.parametrize(("outputs", "kernel", "multiplier"), [(16, 3, 1), (256, 3, 1), (32, 5, 4)])
def test_size_is_the_closed_form(outputs, kernel, multiplier):
    made = Depthwise(np.zeros((outputs, 6, kernel, kernel)))
    ratio = made.size((multiplier,)) / made.weight.size
    assert ratio == pytest.approx(multiplier * (1 / outputs + 1 / kernel**2), rel=1e-12)


def test_ratio_is_noted_beside_the_formula(tmp_path):
    _, graph = load(CONVOLUTION, tmp_path)
    _, ctx = rewritten(graph, tmp_path)
    assert any("0.1736 of the weights; 1 * (1/O + 1/k^2) = 0.1736" in n for n in ctx.coverage.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_inputs": 7}, "6 input channels, min_inputs is 7"),
        ({"multiplier": 6}, r"not below Ok\^2/\(O\+k\^2\) = 5.8"),
        ({"exclude": ["w"]}, "excluded by the recipe"),
    ],
)
def test_what_can_not_be_rewritten_says_why(options, reason, tmp_path):
    _, graph = load(CONVOLUTION, tmp_path)
    with pytest.raises(NothingChanged, match=reason):
        rewritten(graph, tmp_path, **options)


def test_teacher_brings_outputs_back(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    train = jobs.dataset_of(model, samples=192, labels=False)
    bare, _ = rewritten(graph, tmp_path, train, min_inputs=1)
    layerwise, _ = rewritten(graph, tmp_path, train, min_inputs=1, layerwise=training(12))
    whole, ctx = rewritten(
        graph,
        tmp_path,
        train,
        min_inputs=1,
        layerwise=training(12),
        fine_tune=training(12),
        recover={"distill": {}},
    )
    feeds = nets.feeds(model, 64, seed=5)
    wanted = execute.run(graph, feeds)["logits"]
    off = [
        np.linalg.norm(execute.run(g, feeds)["logits"] - wanted) for g in (bare, layerwise, whole)
    ]
    assert off[2] < off[1] < off[0]
    assert any(note.startswith("fine-tuning by the answers") for note in ctx.coverage.notes)


def training(epochs):
    return {"epochs": epochs, "batch_size": 48, "learning_rate": 5e-3}


def test_layerwise_training_changes_the_new_layers_alone(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    train = jobs.dataset_of(model, labels=False)
    result, _ = rewritten(graph, tmp_path, train, min_inputs=1, layerwise=training(1))
    for name in set(graph.parameters()) & set(result.parameters()):
        np.testing.assert_array_equal(graph.weight(name), result.weight(name))


def test_rewrites_go_with_pruning_and_quantization_in_one_recipe(tmp_path):
    model, graph = jobs.load("residual_cnn", tmp_path)
    steps = [
        {"kind": "rewrite.low_rank", "ratio": 1.3, "exclude": ["weight_2*"]},
        {"kind": "rewrite.depthwise", "min_inputs": 8, "multiplier": 2},
        {"kind": "rewrite.clean"},
        {"kind": "prune.channels", "fraction": 0.2},
        {"kind": "quantize.int8", "samples": 32},
    ]
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    for step in parse({"steps": steps}).steps:
        graph = passes.apply(graph, step, ctx.for_step(0, lambda *_: None))
    formats.save(graph, tmp_path / "all.onnx")
    feeds = nets.feeds(model, 4)
    answers = execute.run(formats.load(tmp_path / "all.onnx"), feeds)["logits"]
    assert np.isfinite(answers).all()
    assert len(match.layers(graph)) == 0
