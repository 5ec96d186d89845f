from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.step import FineTune
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import execute, match
from workers.engine.passes.prune._masked import Masked


def prune(graph, tmp_path, train=None, **options):
    ctx = jobs.context_of(graph, tmp_path, train)
    return passes.apply(graph, PruneMagnitude(**options), ctx), ctx


def zeros(graph):
    return {name: int((w == 0).sum()) for name, w in weights(graph).items()}


def weights(graph):
    return {name: w for name, w in graph.parameters().items() if name.startswith("weight")}


def test_the_exact_count_is_zero_over_all_layers(tmp_path):
    _, graph = jobs.load("residual_cnn", tmp_path)
    pruned, _ = prune(graph, tmp_path, sparsity=0.7)
    total = sum(w.size for w in weights(pruned).values())
    assert sum(zeros(pruned).values()) == round(0.7 * total)


def test_the_exact_count_is_zero_in_each_layer(tmp_path):
    _, graph = jobs.load("residual_cnn", tmp_path)
    pruned, _ = prune(graph, tmp_path, sparsity=0.7, scope="layer")
    for name, w in weights(pruned).items():
        assert zeros(pruned)[name] == round(0.7 * w.size)


def test_no_layer_loses_more_than_the_cap(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    name = min(weights(graph), key=lambda n: weights(graph)[n].size)
    graph.set_weight(name, graph.weight(name) * np.float32(1e-6))
    pruned, _ = prune(graph, tmp_path, sparsity=0.6, max_layer_sparsity=0.75)
    assert all(zeros(pruned)[n] <= int(0.75 * w.size) for n, w in weights(pruned).items())
    assert zeros(pruned)[name] == int(0.75 * weights(pruned)[name].size)


def test_biases_and_normalization_are_never_pruned(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    others = {n: w for n, w in graph.parameters().items() if not n.startswith("weight")}
    pruned, ctx = prune(graph, tmp_path, sparsity=0.9)
    assert all((pruned.weight(n) == w).all() for n, w in others.items())
    assert not {t.layer for t in ctx.coverage.touched} & set(others)


def test_what_the_recipe_excludes_stays_and_is_reported(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    kept = sorted(weights(graph))[0]
    before = graph.weight(kept).copy()
    pruned, ctx = prune(graph, tmp_path, sparsity=0.5, exclude=(kept,))
    assert (pruned.weight(kept) == before).all()
    assert [s.reason for s in ctx.coverage.skipped if s.layer == kept] == ["excluded by the recipe"]


def test_layers_with_a_sparsity_of_their_own_take_the_first_that_matches(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    first, second, *others = sorted(weights(graph))
    own = [{"layers": first, "sparsity": 0.25}, {"layers": second, "sparsity": 0}]
    everything = {"layers": "weight*", "sparsity": 0.75}
    pruned, _ = prune(graph, tmp_path, sparsity=0.5, overrides=[*own, everything])
    sizes = {name: w.size for name, w in weights(graph).items()}
    assert zeros(pruned)[first] == round(0.25 * sizes[first])
    assert zeros(pruned)[second] == 0
    assert all(zeros(pruned)[name] == round(0.75 * sizes[name]) for name in others)


def test_what_is_left_is_ranked_without_the_layers_that_have_their_own(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    first, *others = sorted(weights(graph))
    pruned, _ = prune(graph, tmp_path, sparsity=0.5, overrides=[{"layers": first, "sparsity": 0.9}])
    total = sum(weights(graph)[name].size for name in others)
    assert sum(zeros(pruned)[name] for name in others) == round(0.5 * total)


def test_an_override_that_names_no_layer_is_refused_with_the_layers_there_are(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    with pytest.raises(NothingChanged, match="'head' matches no layer") as refused:
        prune(graph, tmp_path, sparsity=0.5, overrides=[{"layers": "head", "sparsity": 0.9}])
    assert all(f"'{name}'" in refused.value.message for name in weights(graph))


def test_an_override_behind_one_that_takes_all_its_layers_is_refused(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    overrides = [{"layers": "*", "sparsity": 0.9}, {"layers": "weight*", "sparsity": 0.1}]
    with pytest.raises(NothingChanged, match="earlier overrides match all its layers"):
        prune(graph, tmp_path, sparsity=0.5, overrides=overrides)


@pytest.mark.parametrize("net", ["plain_cnn", "matmul_mlp", "vision_transformer"])
def test_pattern_keeps_n_of_each_m_along_the_inputs(net, tmp_path):
    _, graph = jobs.load(net, tmp_path)
    axes = {layer.weight: layer.in_axis for layer in match.layers(graph)}
    pruned, ctx = prune(graph, tmp_path, pattern="1:4")
    touched = {t.layer for t in ctx.coverage.touched}
    assert touched
    for name in touched:
        groups = np.moveaxis(pruned.weight(name), axes[name], -1).reshape(-1, 4)
        assert ((groups != 0).sum(axis=1) == 1).all()
        kept = np.moveaxis(graph_weight(net, name, tmp_path), axes[name], -1).reshape(-1, 4)
        assert (np.abs(groups).max(axis=1) == np.abs(kept).max(axis=1)).all()


def graph_weight(net, name, tmp_path):
    _, graph = jobs.load(net, tmp_path)
    return graph.weight(name)


def test_layers_that_a_pattern_does_not_fit_are_reported_with_their_inputs(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    first = next(layer.weight for layer in match.layers(graph))
    before = graph.weight(first).copy()
    pruned, ctx = prune(graph, tmp_path, pattern="2:4")
    assert (pruned.weight(first) == before).all()
    (reason,) = [s.reason for s in ctx.coverage.skipped if s.layer == first]
    assert reason == "its 1 inputs are no multiple of 4, as pattern 2:4 needs"


def test_a_pattern_that_fits_no_layer_is_refused(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    with pytest.raises(NothingChanged, match="no layer fits pattern 2:7"):
        prune(graph, tmp_path, pattern="2:7")


def test_a_layer_may_have_a_sparsity_where_the_others_have_a_pattern(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    first = next(layer.weight for layer in match.layers(graph))
    size = graph.weight(first).size
    own = {"layers": first, "sparsity": 0.25}
    pruned, _ = prune(graph, tmp_path, pattern="2:4", overrides=[own])
    assert zeros(pruned)[first] == round(0.25 * size)


def test_pattern_is_reached_in_rounds_of_growing_masks(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    fine_tune = FineTune(epochs=1, batch_size=16)
    data = jobs.dataset_of(model)
    pruned, ctx = prune(graph, tmp_path, data, pattern="1:4", rounds=3, fine_tune=fine_tune)
    touched = {t.layer for t in ctx.coverage.touched}
    sizes = {name: w.size for name, w in weights(pruned).items()}
    assert all(zeros(pruned)[name] == 3 * sizes[name] // 4 for name in touched)


def test_wanda_takes_the_same_count_of_each_output(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    axes = {layer.weight: layer.out_axis for layer in match.layers(graph)}
    pruned, _ = prune(graph, tmp_path, jobs.dataset_of(model), sparsity=0.5, criterion="wanda")
    for name, w in weights(pruned).items():
        rows = np.moveaxis(w, axes[name], 0).reshape(w.shape[axes[name]], -1)
        assert ((rows == 0).sum(axis=1) == round(0.5 * rows.shape[1])).all()


def test_small_final_keeps_what_large_final_drops(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    large, _ = prune(graph.clone(), tmp_path, sparsity=0.5, scope="layer")
    small, _ = prune(graph.clone(), tmp_path, sparsity=0.5, scope="layer", criterion="small_final")
    for name in weights(graph):
        assert ((large.weight(name) != 0) ^ (small.weight(name) != 0)).all()


def test_coverage_says_before_and_after_and_that_nothing_gets_faster(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    _, ctx = prune(graph, tmp_path, sparsity=0.5, scope="layer")
    assert ctx.coverage.touched[0].change == "0.0% -> 50.0% of 3,072 weights zero"
    assert any("dense kernels" in note for note in ctx.coverage.notes)


def test_a_net_that_is_that_sparse_already_is_no_silent_success(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    pruned, _ = prune(graph, tmp_path, sparsity=0.5)
    with pytest.raises(NothingChanged, match="zero already"):
        prune(pruned, tmp_path, sparsity=0.3)


def test_excluding_everything_is_refused(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    with pytest.raises(NothingChanged) as refused:
        prune(graph, tmp_path, sparsity=0.5, exclude=("*",))
    assert refused.value.hint == "shorten exclude"


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    name = sorted(weights(graph))[0]
    broken = graph.weight(name).copy()
    broken[0, 0] = np.nan
    graph.set_weight(name, broken)
    with pytest.raises(BadModel, match=name):
        prune(graph, tmp_path, sparsity=0.5)


def test_a_weight_that_is_transposed_at_each_run_is_found(tmp_path):
    model = jobs.text("""
        net (float[batch, 8] x) => (float[batch, 4] y) <float[4, 8] w>
        { t = Transpose(w)  y = MatMul(x, t) }
    """)
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    pruned, _ = prune(graph, tmp_path, sparsity=0.5)
    assert pruned.weight("w").shape == (8, 4)
    assert (pruned.weight("w") == 0).sum() == 16


def test_rounds_reach_the_target_with_masks_that_hold_through_training(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    train = jobs.dataset_of(model)
    fine_tune = FineTune(epochs=2, batch_size=16, weight_decay=0.1)
    pruned, ctx = prune(graph, tmp_path, train, sparsity=0.8, rounds=3, fine_tune=fine_tune)
    total = sum(w.size for w in weights(pruned).values())
    assert sum(zeros(pruned).values()) == round(0.8 * total)
    assert sum(note.startswith("round") for note in ctx.coverage.notes) == 3


def test_batch_norm_is_refreshed_where_there_is_data_but_no_training(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    before = {
        n: graph.weight(n).copy() for n in graph.initializers if n.startswith(("mean", "var"))
    }
    with_data, ctx = prune(graph.clone(), tmp_path, jobs.dataset_of(model), sparsity=0.9)
    assert any((with_data.weight(n) != w).any() for n, w in before.items())
    assert any("refreshed" in note for note in ctx.coverage.notes)
    without, ctx = prune(graph.clone(), tmp_path, None, sparsity=0.9)
    assert all((without.weight(n) == w).all() for n, w in before.items())
    assert any("without data" in note for note in ctx.coverage.notes)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    ],
    ids=["adamw", "momentum"],
)
def test_masked_weights_are_exactly_zero_after_a_thousand_steps(tmp_path, optimizer):
    _, graph = jobs.load("mlp", tmp_path)
    module = execute.as_module(graph).train()
    name = sorted(weights(graph))[0]
    mask = np.random.default_rng(0).random(graph.weight(name).shape) < 0.5
    masked = Masked(module, {name: mask})
    masked.apply()
    steps = optimizer(module.parameters())
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(1000):
        steps.zero_grad()
        module(x)[0].square().mean().backward()
        steps.step()
        masked.apply()
    weight = module.weights[name].detach().numpy()
    assert (weight[mask] == 0).all()
    assert not np.signbit(weight[mask]).any()
    assert np.count_nonzero(weight[~mask]) == (~mask).sum()
