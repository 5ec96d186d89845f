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
    return Changed(ctx.coverage.prepared or graph, after, exported, touched), ctx


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


def test_a_layer_of_another_shape_is_not_measured_alone(tmp_path):
    changed, ctx = performed({"kind": "prune.channels", "fraction": 0.5}, "plain_cnn", tmp_path)
    effect, layers = measured(changed, ctx)
    assert effect.relative_l2_difference > 0
    assert any("shape" in layer.reason for layer in layers.values())


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
