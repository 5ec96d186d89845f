"""Networks of which one layer is changed, against what can be computed directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelpress.spec.recipe import parse
from modelpress.spec.report import Effect, LayerError
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.context import Context
from workers.engine.graph import Graph, execute
from workers.engine.measure import alone
from workers.engine.measure.alone import Bounds, Changed

EVERY = Bounds(layers=24, samples=48)

STEPS: dict[str, dict[str, Any]] = {
    "magnitude": {"kind": "prune.magnitude", "sparsity": 0.5},
    "int8": {"kind": "quantize.int8"},
    "equalized": {"kind": "quantize.int8", "equalize": True},
    "dynamic": {"kind": "quantize.int8", "mode": "dynamic"},
    "loaded": {"kind": "quantize.bits"},
    "run": {"kind": "quantize.bits", "unpack": "run"},
    "cluster": {"kind": "quantize.cluster"},
    "float16": {"kind": "quantize.float16"},
    "xnor": {"kind": "quantize.binary", "method": "xnor", "training": {"epochs": 1}},
    "qat": {"kind": "quantize.qat", "training": {"epochs": 1}},
    "low_rank": {"kind": "rewrite.low_rank", "ratio": 1.5},
    "block": {"kind": "rewrite.blocks", "block": "separable"},
}
HARD = ("int8", "dynamic", "run", "xnor")
"""Those that put other nodes around a layer, or in its place."""


def performed(step: dict[str, Any], net: str, work: Path) -> tuple[Changed, Context]:
    _, graph = jobs.load(net, work)
    ctx = jobs.context_of(graph, work, jobs.dataset_of(jobs.nets.NETS[net](0)))
    after = passes.apply(graph.clone(), parse({"steps": [step]}).steps[0], ctx)
    exported = work / "after.onnx"
    formats.save(after, exported)
    touched = [touched.layer for touched in ctx.coverage.touched]
    made = ctx.coverage.networks
    return Changed(ctx.coverage.prepared or graph, after, exported, touched, made), ctx


def measured(
    changed: Changed, ctx: Context, bounds: Bounds = EVERY
) -> tuple[Effect, dict[str, LayerError]]:
    assert ctx.eval is not None
    effect, layers = alone.measure(changed, ctx.eval, ctx.work, bounds=bounds, threads=1)
    return effect, {layer.layer: layer for layer in layers}


def error_with(graph: Graph, weights: dict[str, np.ndarray], ctx: Context) -> float:
    """Relative error of the outputs of a network with other weights."""
    assert ctx.eval is not None
    feeds, changed = ctx.eval.batch(np.arange(ctx.eval.samples)), graph.clone()
    for name, array in weights.items():
        changed.set_weight(name, array)
    [was] = execute.run(graph, feeds).values()
    [now] = execute.run(changed, feeds).values()
    return float(np.linalg.norm(now - was) / np.linalg.norm(was))


@pytest.mark.parametrize(
    ("step", "net"),
    [*((step, "plain_cnn") for step in STEPS), *((s, "vision_transformer") for s in HARD)],
)
def test_every_changed_layer_is_measured_and_costs_something(step, net, tmp_path):
    changed, ctx = performed(STEPS[step], net, tmp_path)
    effect, layers = measured(changed, ctx)
    assert effect.relative_l2_difference > 0
    assert effect.samples == 48
    assert set(layers) <= set(changed.touched)
    assert all(layer.relative_l2_difference for layer in layers.values()), layers
    assert sum(layer.share or 0 for layer in layers.values()) == pytest.approx(1)
    assert max(layer.relative_l2_difference or 0 for layer in layers.values()) < 1.5


def norm_of(graph: Graph, weight: str) -> list[str]:
    """Statistics of the normalization behind a layer."""
    [layer] = graph.initializers[weight].consumers()
    [norm] = layer.outputs[0].consumers()
    is_norm = norm.op_type == "BatchNormalization"
    return [value.name or "" for value in norm.inputs[3:] if value is not None and is_norm]


def test_error_of_a_layer_is_that_of_its_weights_and_of_the_statistics_behind_it(tmp_path):
    changed, ctx = performed(STEPS["magnitude"], "plain_cnn", tmp_path)
    _, layers = measured(changed, ctx)
    conv, head = "weight_10", "weight_20"
    assert norm_of(changed.before, conv)
    assert not norm_of(changed.before, head)
    for weight in (conv, head):
        names = [weight, *norm_of(changed.before, weight)]
        assert not any(
            np.array_equal(changed.before.weight(n), changed.after.weight(n)) for n in names
        )
        wanted = error_with(changed.before, {n: changed.after.weight(n) for n in names}, ctx)
        assert layers[weight].relative_l2_difference == pytest.approx(wanted, rel=1e-4)


def test_layers_beyond_the_bound_are_named_with_the_reason(tmp_path):
    changed, ctx = performed(STEPS["magnitude"], "plain_cnn", tmp_path)
    _, layers = measured(changed, ctx, Bounds(layers=1, samples=8))
    first, *rest = layers.values()
    assert first.share == pytest.approx(1)
    assert first.elements == max(layer.elements for layer in layers.values())
    assert rest
    assert all(layer.relative_l2_difference is None for layer in rest)
    assert all("others are larger" in layer.reason for layer in rest)


CHANNELS = {"kind": "prune.channels", "fraction": 0.5}


def made_by(graph: Graph, weight: str) -> list[str]:
    """Vectors that make a layer's outputs what they are: scale and bias of its normalization, or its own bias behind its weight."""
    [layer] = graph.initializers[weight].consumers()
    [norm] = layer.outputs[0].consumers()
    last = norm if norm.op_type == "BatchNormalization" else layer
    return [value.name or "" for value in last.inputs[1:3] if value is not None]


def zeroed(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[rows] = 0
    return changed


STILL = {"epochs": 1, "batch_size": 48, "learning_rate": 1e-12}
"""Training that moves nothing."""


@pytest.mark.parametrize("more", [{}, {"rounds": 3, "fine_tune": STILL}])
def test_channels_alone_cost_what_zeros_in_their_place_do(more, tmp_path):
    changed, ctx = performed({**CHANNELS, **more}, "plain_cnn", tmp_path)
    effect, layers = measured(changed, ctx)
    assert effect.relative_l2_difference > 0
    before, after = changed.before, changed.after
    for weight in ("weight_1", "weight_10", "weight_20"):
        names = made_by(before, weight)
        rows = ~np.isin(before.weight(names[1]), after.weight(names[1]))
        assert rows.mean() == 0.5
        wanted = error_with(before, {n: zeroed(before.weight(n), rows) for n in names}, ctx)
        assert layers[weight].relative_l2_difference == pytest.approx(wanted, rel=1e-4), weight
    assert "what it lost are inputs" in layers["weight_24"].reason


def test_channels_of_joined_layers_are_measured_once(tmp_path):
    changed, ctx = performed(CHANNELS, "residual_cnn", tmp_path)
    _, layers = measured(changed, ctx)
    assert set(layers) == set(changed.touched)
    found = {name for name, layer in layers.items() if layer.relative_l2_difference}
    joined = {name for name, layer in layers.items() if "go with those of" in layer.reason}
    assert {name for name, layer in layers.items() if "are inputs" in layer.reason} == {"weight_58"}
    assert found | joined | {"weight_58"} == set(layers)
    assert sum(layers[name].share or 0 for name in found) == pytest.approx(1)


def test_a_block_and_the_normalization_in_it_take_the_place_of_both(tmp_path):
    """A separable block begins with the best fit of rank one, as rewrite.depthwise makes it in front of the same normalization."""
    found = []
    for step in (STEPS["block"], {"kind": "rewrite.depthwise", "min_inputs": 1}):
        changed, ctx = performed(step, "residual_cnn", tmp_path)
        _, layers = measured(changed, ctx)
        found.append({name: layer.relative_l2_difference for name, layer in layers.items()})
    assert len(found[0]) == 5
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_equalized_layers_compare_with_the_equalized_network(tmp_path):
    """Compared with the network as it came, sizes that were moved from layer to layer would be taken for errors."""
    changed, ctx = performed(STEPS["equalized"], "plain_cnn", tmp_path)
    _, layers = measured(changed, ctx)
    raw = Changed(ctx.source, changed.after, changed.exported, changed.touched)
    _, wrong = measured(raw, ctx)
    largest = [max(e.relative_l2_difference or 0 for e in x.values()) for x in (layers, wrong)]
    assert largest[0] < 0.1 < largest[1]


def test_few_samples_before_few_layers():
    assert Bounds.of(10_000, 10_000, 1000) == Bounds(24, 256)
    assert Bounds.of(10_000, 10_000, 100) == Bounds(24, 100)
    assert Bounds.of(200_000_000, 10_000, 1000) == Bounds(24, 83)
    assert Bounds.of(1_000_000_000, 10_000, 1000) == Bounds(12, 32)
    assert Bounds.of(10_000, 1_000_000_000, 1000) == Bounds(4, 256)
