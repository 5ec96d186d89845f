from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from modelpress.spec.prune import PruneChannels
from modelpress.spec.step import FineTune
from tests.engine import jobs, nets
from tests.engine.nets import Builder
from tests.engine.passes.channel_pruning import answers, load, prune
from workers.engine import passes
from workers.engine.errors import BadModel, NothingChanged, Unsupported
from workers.engine.graph import channels, execute, shapes
from workers.engine.passes.prune._clock import Clock

BRIEF = FineTune(epochs=1, batch_size=16)


def widths(graph, axis=0):
    """Output channels of each convolution and Gemm, by the name of its weight."""
    return {n: w.shape[axis] for n, w in graph.parameters().items() if n.startswith("weight")}


def lost(before, after):
    """The fraction of channels that each layer lost."""
    return {name: 1 - after[name] / before[name] for name in before if before[name] != nets.CLASSES}


def macs(graph, model):
    inputs = {name: array.shape for name, array in nets.feeds(model, 1).items()}
    return sum(shapes.macs(graph, inputs).values())


OPTIONS = {
    "taylor": {"fraction": 0.5, "criterion": "taylor"},
    "geometric_median": {"fraction": 0.5, "criterion": "geometric_median"},
    "activation": {"fraction": 0.5, "criterion": "activation"},
    "random": {"fraction": 0.5, "criterion": "random", "scope": "global"},
    "bn_scale": {"macs_ratio": 2, "round_to": 1, "criterion": "bn_scale"},
    "isomorphic": {"parameters_ratio": 2, "scope": "isomorphic"},
    "rounded": {"fraction": 0.5, "round_to": 4, "min_channels": 4},
}


@pytest.mark.parametrize("net", ["residual_cnn", "depthwise_cnn", "vision_transformer"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_whatever_is_asked_the_file_runs_and_agrees(net, options, tmp_path):
    model, graph = jobs.load(net, tmp_path)
    pruned, ctx = prune(net, tmp_path, **options)
    ours = execute.run(pruned, nets.feeds(model, 5, seed=3))["logits"]
    assert np.abs(answers(pruned, model, tmp_path) - ours).max() < 1e-4 * np.abs(ours).max()
    assert macs(pruned, model) < macs(graph, model)
    assert ctx.coverage.touched


DEAD = [1, 2, 5, 6]
"""Of the first layer's 8 channels."""


def dead_channels(graph):
    """Channels of the first layer that are always 0: no scale, and a shift below it."""
    for name, value in (("scale_3", 0.0), ("bias_6", -1.0)):
        array = graph.weight(name).copy()
        array[DEAD] = value
        graph.set_weight(name, array)


def small_channels(graph):
    """The same, and the weights on both sides of them small."""
    dead_channels(graph)
    for name, axis in (("weight_1", 0), ("weight_10", 1)):
        array = np.moveaxis(graph.weight(name).copy(), axis, 0)
        array[DEAD] *= 1e-3
        graph.set_weight(name, np.ascontiguousarray(np.moveaxis(array, 0, axis)))


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor", "activation"])
def test_channels_that_do_nothing_go_first_and_outputs_stay(criterion, tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    small_channels(graph)
    expected = answers(graph, model, tmp_path)
    only_first = [{"layers": "weight_1", "fraction": 0.5}, {"layers": "*", "fraction": 0}]
    step = PruneChannels(fraction=0.5, criterion=criterion, overrides=only_first)
    train = jobs.dataset_of(model) if step.needs_data else None
    ctx = jobs.context_of(graph.clone(), tmp_path, train)
    statistics = {n: graph.weight(n) for n in graph.initializers if n.startswith(("mean", "var"))}
    pruned = passes.apply(graph, step, ctx)
    for name, array in statistics.items():  # refreshed where there is data
        kept = np.delete(array, DEAD) if array.size == 8 else array
        pruned.set_weight(name, kept)
    assert widths(pruned)["weight_1"] == 4
    assert np.abs(answers(pruned, model, tmp_path) - expected).max() < 1e-4


def test_a_filter_in_the_midst_of_the_others_goes_first(tmp_path):
    def change(graph):
        w = graph.weight("weight_1").copy()
        w[3] = np.delete(w, 3, axis=0).mean(axis=0)
        graph.set_weight("weight_1", w)

    _, before = jobs.load("plain_cnn", tmp_path)
    change(before)
    overrides = [{"layers": "weight_1", "fraction": 0.125}, {"layers": "*", "fraction": 0}]
    options = {"fraction": 0.5, "criterion": "geometric_median", "overrides": overrides}
    pruned, _ = prune("plain_cnn", tmp_path, change=change, **options)
    assert (pruned.weight("weight_1") == np.delete(before.weight("weight_1"), 3, axis=0)).all()


def test_ties_are_broken_by_the_seed(tmp_path):
    def change(graph):
        for name, w in graph.parameters().items():
            if name in ("weight_1", "weight_10"):
                graph.set_weight(name, np.full_like(w, 0.1))
        graph.set_weight("bias_6", np.arange(8, dtype=np.float32))

    kept = [
        prune("plain_cnn", tmp_path, seed=seed, change=change, fraction=0.5)[0].weight("bias_6")
        for seed in (0, 0, 1)
    ]
    assert (kept[0] == kept[1]).all()
    assert (kept[0] != kept[2]).any()


def test_random_channels_differ_by_seed_only(tmp_path):
    options = {"fraction": 0.5, "criterion": "random"}
    weights = [
        prune("plain_cnn", tmp_path, seed=seed, **options)[0].weight("weight_1")
        for seed in (0, 0, 1)
    ]
    assert (weights[0] == weights[1]).all()
    assert (weights[0] != weights[2]).any()


@pytest.mark.parametrize("target", ["macs_ratio", "parameters_ratio"])
@pytest.mark.parametrize("scope", ["layer", "global", "isomorphic"])
def test_a_ratio_is_reached_and_hardly_exceeded(target, scope, tmp_path):
    model, graph = jobs.load("residual_cnn", tmp_path)
    whole = macs(graph, model), sum(w.size for w in graph.parameters().values())
    pruned, _ = prune("residual_cnn", tmp_path, **{target: 2}, scope=scope, round_to=1)
    left = macs(pruned, model), sum(w.size for w in pruned.parameters().values())
    reached = whole[target != "macs_ratio"] / left[target != "macs_ratio"]
    assert 2 <= reached < 2.2


def test_a_larger_ratio_takes_more_of_every_layer(tmp_path):
    found = [
        widths(prune("residual_cnn", tmp_path, macs_ratio=ratio, round_to=1)[0])
        for ratio in (1.5, 3, 6)
    ]
    for wide, narrow in itertools.pairwise(found):
        assert all(narrow[name] <= wide[name] for name in wide)


def test_a_ratio_out_of_reach_fails_with_the_best_and_what_is_in_the_way(tmp_path):
    with pytest.raises(Unsupported) as caught:
        prune("plain_cnn", tmp_path, macs_ratio=500, round_to=1)
    assert re.search(r"macs_ratio 500 can't be reached: at most \d+", caught.value.message)
    assert "'weight_24': it is output 'logits' of the network" in caught.value.message
    assert "best_effort" in caught.value.hint


def test_nothing_is_trained_for_a_ratio_out_of_reach(tmp_path):
    told = []
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    watched = ctx.for_step(0, lambda fraction, message: told.append(message))
    step = PruneChannels(macs_ratio=500, rounds=3, fine_tune=BRIEF)
    with pytest.raises(Unsupported):
        passes.apply(graph, step, watched)
    assert not told


def test_best_effort_goes_as_far_as_it_can_and_says_so(tmp_path):
    options = {"round_to": 1, "best_effort": True, "max_layer_fraction": 0.5}
    _, before = jobs.load("plain_cnn", tmp_path)
    pruned, ctx = prune("plain_cnn", tmp_path, macs_ratio=500, **options)
    assert all(part == 0.5 for part in lost(widths(before), widths(pruned)).values())
    assert ctx.coverage.notes[0].startswith("macs_ratio 500 can't be reached: at most 3.")


def test_the_same_fraction_of_each_layer_goes(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    pruned, _ = prune("plain_cnn", tmp_path, fraction=0.25)
    assert set(lost(widths(before), widths(pruned)).values()) == {0.25}


def test_in_global_scope_the_size_of_a_layer_s_weights_does_not_count(tmp_path):
    def change(graph):
        graph.set_weight("weight_1", graph.weight("weight_1") * np.float32(100))
        graph.set_weight("weight_10", graph.weight("weight_10") * np.float32(100))

    options = {"fraction": 0.4, "scope": "global", "criterion": "l1"}
    plain, _ = prune("plain_cnn", tmp_path, **options)
    scaled, _ = prune("plain_cnn", tmp_path, change=change, **options)
    assert widths(plain)["weight_1"] == widths(scaled)["weight_1"]
    assert len(set(lost(widths(load("plain_cnn", tmp_path)[1]), widths(plain)).values())) > 1


def two_kinds():
    """Two convolutions of one structure and two Gemm of another, the Gemm with a far wider spread of weights."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 1, 16))
    x = b.op("Relu", b.conv(x, 16, 16))
    x = b.op("Relu", b.gemm(b.op("Flatten", b.op("GlobalAveragePool", x), axis=1), 16, 16))
    x = b.op("Relu", b.gemm(x, 16, 16))
    model = b.model([("image", 1, ["batch", 1, 8, 8])], b.gemm(x, 16, nets.CLASSES))
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [16, 16]:
            array = nets.numpy_helper.to_array(tensor) * np.logspace(-3, 0, 16)[:, None]
            tensor.CopyFrom(nets.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return model


def test_in_isomorphic_scope_every_kind_of_structure_loses_its_fraction(tmp_path):
    def gone(scope):
        model, before = load(two_kinds(), tmp_path)
        pruned, _ = prune(model, tmp_path, fraction=0.5, scope=scope, criterion="l1")
        left = widths(pruned)
        first = [left[name] for name, w in before.parameters().items() if w.ndim == 4]
        return sum(16 - width for width in first)

    assert gone("global") < gone("isomorphic") <= 16


def test_what_is_left_is_a_multiple_and_narrow_layers_stay(tmp_path):
    pruned, ctx = prune("plain_cnn", tmp_path, fraction=0.4, round_to=12, scope="layer")
    assert list(widths(pruned).values()) == [8, 12, 24, nets.CLASSES]
    reason = next(s.reason for s in ctx.coverage.skipped if s.layer == "weight_1")
    assert "round_to" in reason


def test_no_layer_is_left_with_fewer_than_the_least(tmp_path):
    pruned, _ = prune("plain_cnn", tmp_path, fraction=0.9, min_channels=5)
    assert list(widths(pruned).values()) == [5, 5, 5, nets.CLASSES]


def test_the_cap_holds_over_all_rounds(tmp_path):
    def change(graph):
        for name in ("weight_10", "weight_20"):
            spread = np.logspace(-4, 0, len(graph.weight(name))).astype(np.float32)
            shape = (-1,) + (1,) * (graph.weight(name).ndim - 1)
            graph.set_weight(name, graph.weight(name) * spread.reshape(shape))

    options = {"fraction": 0.5, "scope": "global", "max_layer_fraction": 0.5, "fine_tune": BRIEF}
    _, before = jobs.load("plain_cnn", tmp_path)
    pruned, _ = prune("plain_cnn", tmp_path, change=change, rounds=3, **options)
    assert all(part <= 0.5 for part in lost(widths(before), widths(pruned)).values())


def test_rounds_end_where_one_round_ends(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    pruned, ctx = prune("plain_cnn", tmp_path, fraction=0.5, rounds=3, fine_tune=BRIEF)
    assert set(lost(widths(before), widths(pruned)).values()) == {0.5}
    trained = [note for note in ctx.coverage.notes if note.startswith("round ")]
    assert [note[:12] for note in trained] == [f"round {i} of 3" for i in (1, 2, 3)]


def test_layers_with_a_fraction_of_their_own_lose_just_that(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    overrides = [{"layers": "weight_10", "fraction": 0.75}, {"layers": "weight_*", "fraction": 0}]
    pruned, _ = prune("plain_cnn", tmp_path, fraction=0.5, overrides=overrides)
    assert lost(widths(before), widths(pruned)) == {
        "weight_1": 0,
        "weight_10": 0.75,
        "weight_20": 0,
    }


def test_own_fractions_are_named_by_node_too_and_grow_with_the_rounds(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    overrides = [{"layers": "Gemm_*", "fraction": 0.75}]
    options = {"fraction": 0.25, "overrides": overrides, "rounds": 2, "fine_tune": BRIEF}
    pruned, _ = prune("plain_cnn", tmp_path, **options)
    assert lost(widths(before), widths(pruned)) == {
        "weight_1": 0.25,
        "weight_10": 0.25,
        "weight_20": 0.75,
    }


def test_a_ratio_is_met_by_the_layers_without_a_fraction_of_their_own(tmp_path):
    model, before = jobs.load("plain_cnn", tmp_path)
    overrides = [{"layers": "weight_1", "fraction": 0}]
    pruned, _ = prune("plain_cnn", tmp_path, macs_ratio=2, round_to=1, overrides=overrides)
    assert widths(pruned)["weight_1"] == 8
    assert macs(before, model) / macs(pruned, model) >= 2


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["nothing"], "matches no layer that can lose"), (["weight_1", "weight_1"], "no effect")],
)
def test_an_override_that_changes_nothing_is_refused(patterns, message, tmp_path):
    overrides = [{"layers": pattern, "fraction": 0.1} for pattern in patterns]
    with pytest.raises(NothingChanged, match=message):
        prune("plain_cnn", tmp_path, fraction=0.5, overrides=overrides)


def test_excluded_weights_keep_their_shape_and_are_reported(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    pruned, ctx = prune("plain_cnn", tmp_path, fraction=0.5, exclude=("weight_10",))
    assert pruned.weight("weight_10").shape == before.weight("weight_10").shape
    reasons = {s.layer: s.reason for s in ctx.coverage.skipped}
    assert reasons["weight_10"] == "excluded by the recipe"


def test_every_layer_is_touched_or_skipped_with_a_reason(tmp_path):
    pruned, ctx = prune("text_transformer", tmp_path, fraction=0.5)
    told = {t.layer for t in ctx.coverage.touched} | {s.layer for s in ctx.coverage.skipped}
    large = {n for n, w in pruned.parameters().items() if sum(size > 1 for size in w.shape) > 1}
    assert told == large
    assert all(s.reason for s in ctx.coverage.skipped)
    table = next(t for t in ctx.coverage.touched if t.layer.startswith("embedding"))
    assert table.change == "[50, 16] -> [50, 8]"


def test_a_fraction_too_small_for_any_layer_is_no_silent_success(tmp_path):
    with pytest.raises(NothingChanged, match=r"fraction 0.02 removes no channel"):
        prune("plain_cnn", tmp_path, fraction=0.02)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    def change(graph):
        graph.set_weight("weight_1", graph.weight("weight_1") * np.float32(np.nan))

    with pytest.raises(BadModel, match="not finite"):
        prune("plain_cnn", tmp_path, change=change, fraction=0.5)


def wide():
    """A net whose time is that of its convolutions."""
    b = Builder(0)
    x = b.op("Relu", b.conv("image", 1, 64))
    x = b.op("Relu", b.conv(x, 64, 64))
    return b.model([("image", 1, ["batch", 1, 24, 24])], b.pooled_classifier(x, 64))


def test_a_ratio_of_times_is_met_by_the_clock_which_the_report_tells(tmp_path):
    pruned, ctx = prune(wide(), tmp_path, latency_ratio=1.5)
    told = re.compile(r"measured (\S+) times faster .* at (\S+) times fewer .* best of (\d+) ")
    [found] = [match for note in ctx.coverage.notes if (match := told.match(note))]
    assert float(found[1]) >= 1.5
    assert float(found[2]) > 1
    assert 1 <= int(found[3]) <= 8
    assert all(width % 8 == 0 for width in widths(pruned).values() if width != nets.CLASSES)
    assert not list(tmp_path.glob("clock-*"))


def test_a_ratio_of_times_out_of_reach_fails_with_the_best(tmp_path):
    with pytest.raises(Unsupported, match=r"latency_ratio 900 can't be reached: at most \S+"):
        prune(wide(), tmp_path, latency_ratio=900)
    assert not list(tmp_path.glob("clock-*"))


def test_the_clock_times_a_file_beside_the_network_as_it_was(tmp_path):
    model, graph = load(wide(), tmp_path)
    ctx = jobs.context_of(graph.clone(), tmp_path, None)
    inputs = {name: array.shape for name, array in nets.feeds(model, 1).items()}
    clock = Clock(graph, ctx, inputs)
    plan = channels.plan.make(graph, inputs)
    removed = np.zeros(plan.classes.count, dtype=bool)
    for family in plan.families:
        removed[family.classes[8:]] = True
    channels.surgery.remove(graph, plan, removed, inputs)
    timing = clock.time(graph, 1.0)
    assert 1 < timing.low <= timing.ratio <= timing.high
