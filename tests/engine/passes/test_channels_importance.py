"""What channels are worth, against the definition of each criterion."""

from __future__ import annotations

import numpy as np
import pytest

from modelpress.spec.prune import PruneChannels, SparseTraining
from modelpress.spec.step import FineTune
from tests.engine import jobs, nets
from workers.engine import passes
from workers.engine.errors import NothingChanged
from workers.engine.graph import channels, execute
from workers.engine.passes.prune import _importance

NETS = ("residual_cnn", "grouped_cnn", "vision_transformer")


def worth(net, tmp_path, *, samples=32, change=None, **options):
    """A graph, its plan, the scores of its classes, and the context."""
    model, graph = jobs.load(net, tmp_path)
    if change is not None:
        change(graph)
    step = PruneChannels(fraction=0.5, **options)
    train = jobs.dataset_of(model, samples) if step.needs_data else None
    ctx = jobs.context_of(graph.clone(), tmp_path, train)
    inputs = {name: array.shape for name, array in nets.feeds(model, 1).items()}
    plan = channels.plan.make(graph, inputs)
    return graph, plan, _importance.scores(graph, plan, step, ctx), ctx


def parts(graph, plan, found):
    """For each weight the elements that a class touches: True. A weight of one axis is left out."""
    for name, array in graph.parameters().items():
        touched = np.zeros(array.shape, dtype=int)
        for axis in range(array.ndim):
            if (name, axis) in plan.axes:
                along = np.isin(plan.axes[name, axis], found).astype(int)
                touched += along.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        if sum(size > 1 for size in array.shape) > 1:
            yield array, touched


@pytest.mark.parametrize("net", NETS)
def test_norms_are_of_all_weights_that_go_together(net, tmp_path):
    graph, plan, l1, _ = worth(net, tmp_path, criterion="l1")
    _, _, l2, _ = worth(net, tmp_path, criterion="l2")
    for family in plan.families:
        for one in family.classes[:3]:
            theirs = list(parts(graph, plan, [one]))
            assert len([1 for _, touched in theirs if touched.any()]) >= 2
            assert l1[one] == pytest.approx(sum((abs(w) * t).sum() for w, t in theirs), rel=1e-5)
            squares = sum((np.square(w) * t).sum() for w, t in theirs)
            assert l2[one] == pytest.approx(np.sqrt(squares), rel=1e-5)


@pytest.mark.parametrize("criterion", ["l2", "geometric_median"])
def test_a_weight_whose_square_is_beyond_float32_is_ranked(criterion, tmp_path):
    def enlarge(graph):
        name = next(name for name in graph.parameters() if name.startswith("weight"))
        weight = graph.weight(name).copy()
        weight.flat[0] = 1e38
        graph.set_weight(name, weight)

    _, _, scores, _ = worth("plain_cnn", tmp_path, criterion=criterion, change=enlarge)
    assert scores.max() >= 0.9e38


def test_taylor_is_the_square_of_what_the_loss_changes_by(tmp_path):
    graph, plan, scores, ctx = worth("plain_cnn", tmp_path, criterion="taylor")

    def loss(scaled):
        given = ctx.train.batch(np.arange(32))
        logits = execute.run(scaled, given)["logits"].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -chances[np.arange(32), ctx.train.labels].mean()

    step = 2e-3
    for one in plan.families[0].classes:
        losses = []
        for factor in (1 - step, 1 + step):
            scaled = graph.clone()
            for (name, axis), touched in plan.axes.items():
                shape = [-1 if a == axis else 1 for a in range(graph.weight(name).ndim)]
                along = np.where(touched == one, factor, 1).reshape(shape).astype(np.float32)
                if graph.is_parameter(name):
                    scaled.set_weight(name, scaled.weight(name) * along)
            losses.append(loss(scaled))
        slope = (losses[1] - losses[0]) / (2 * step)
        assert scores[one] == pytest.approx(slope**2, rel=0.05, abs=1e-3)


def test_activity_is_the_share_of_values_that_are_not_zero(tmp_path):
    graph, plan, scores, ctx = worth("plain_cnn", tmp_path, criterion="activation")
    rectified = [node.outputs[0].name for node in graph.nodes if node.op_type == "Relu"]
    values = execute.observe(graph, ctx.train.batch(np.arange(32)), rectified)
    expected = [(v != 0).reshape(32, v.shape[1], -1).mean(axis=(0, 2)) for v in values.values()]
    for family, alive in zip(plan.families, expected, strict=True):
        assert scores[family.classes] == pytest.approx(alive, abs=1e-6)


def test_where_no_rectifier_follows_what_layers_read_counts_and_a_note_says_so(tmp_path):
    graph, plan, scores, ctx = worth("mlp", tmp_path, criterion="activation")
    tanh = next(node.outputs[0].name for node in graph.nodes if node.op_type == "Tanh")
    [value] = execute.observe(graph, ctx.train.batch(np.arange(32)), [tanh]).values()
    assert scores[plan.families[1].classes] == pytest.approx(np.abs(value).mean(0), abs=1e-6)
    [note] = [note for note in ctx.coverage.notes if note.startswith("no rectifier follows")]
    assert note.count("'") == 2


def test_scales_of_normalization_are_summed_over_the_class(tmp_path):
    graph, plan, scores, _ = worth("residual_cnn", tmp_path, criterion="bn_scale")
    scales = {n: np.abs(graph.weight(n)) for n in graph.parameters() if n.startswith("scale")}
    for family in plan.families:
        theirs = [scales[name] for name, _ in family.axes if name in scales]
        assert theirs
        assert scores[family.classes] == pytest.approx(np.sum(theirs, axis=0), rel=1e-6)


def test_layers_without_a_scale_are_ranked_by_l2_and_a_note_says_so(tmp_path):
    _, plan, scores, ctx = worth("plain_cnn", tmp_path, criterion="bn_scale")
    _, _, norms, _ = worth("plain_cnn", tmp_path, criterion="l2")
    gemm = plan.families[2].classes
    assert (scores[gemm] == norms[gemm]).all()
    [note] = [note for note in ctx.coverage.notes if "ranked by l2" in note]
    assert note.startswith("nothing for criterion 'bn_scale' in 'weight_20'")


def slim(net, tmp_path, *, exclude=(), **options):
    """Pruned after sparse training, without any other training."""
    model, graph = jobs.load(net, tmp_path)
    training = SparseTraining(epochs=2, batch_size=16, **options)
    step = PruneChannels(
        fraction=0.5, criterion="bn_scale", sparse_training=training, exclude=exclude
    )
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    return passes.apply(graph, step, ctx), ctx


def scales(graph):
    return np.concatenate(
        [np.abs(w) for n, w in graph.parameters().items() if n.startswith("scale")]
    )


def test_sparse_training_shrinks_scales_by_its_strength(tmp_path):
    _, before = jobs.load("plain_cnn", tmp_path)
    weak, _ = slim("plain_cnn", tmp_path, strength=1e-6)
    strong, ctx = slim("plain_cnn", tmp_path, strength=1.0)
    assert (scales(strong) < scales(weak) - 0.02).all()
    assert ctx.coverage.notes[0].startswith("sparse training at strength 1: loss with its penalty ")
    assert len(scales(strong)) == len(scales(before)) / 2


def test_the_penalty_adds_strength_times_sign_to_the_gradient(tmp_path):
    """One step of SGD: both runs have the same gradient of the loss, so the difference is that of the penalty."""

    def after(strength):
        model, graph = jobs.load("plain_cnn", tmp_path)
        training = SparseTraining(epochs=1, batch_size=48, learning_rate=0.5, strength=strength)
        step = PruneChannels(
            fraction=0.5,
            criterion="bn_scale",
            sparse_training=training,
            overrides=[{"layers": "Conv*", "fraction": 0}],
        )
        ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
        return passes.apply(graph, step, ctx).weight("scale_3")

    _, before = jobs.load("plain_cnn", tmp_path)
    sign = np.sign(before.weight("scale_3"))
    assert after(0.01) - after(0.11) == pytest.approx(0.5 * 0.1 * sign, abs=1e-5)


def test_nothing_to_train_sparse_is_no_silent_success(tmp_path):
    with pytest.raises(NothingChanged, match="none of the model's 0 scales"):
        slim("mlp", tmp_path)


def test_excluded_scales_are_not_penalized(tmp_path):
    with pytest.raises(NothingChanged, match="none of the model's 2 scales") as caught:
        slim("plain_cnn", tmp_path, exclude=("scale*",))
    assert caught.value.hint == "shorten exclude"


def test_sparse_training_and_fine_tuning_share_the_progress_of_a_round(tmp_path):
    told = []
    model, graph = jobs.load("plain_cnn", tmp_path)
    made = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    ctx = made.for_step(0, lambda fraction, message: told.append(fraction))
    step = PruneChannels(
        fraction=0.5,
        criterion="bn_scale",
        rounds=2,
        sparse_training=SparseTraining(epochs=1),
        fine_tune=FineTune(epochs=1),
    )
    passes.apply(graph, step, ctx)
    ends = {0.25, 0.5, 0.75, 1.0}  # slow epochs tell of themselves in between too
    assert told == sorted(told)
    assert ends == ends.intersection(told)
    assert told[-1] == 1
