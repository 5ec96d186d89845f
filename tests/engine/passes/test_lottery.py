from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from modelpress.spec.prune import PruneLottery
from tests.engine import jobs, nets
from workers.engine.data import dataset
from workers.engine.errors import BadData, BadModel, NothingChanged
from workers.engine.passes.prune import _masks, _runs, _tally, _tickets, lottery

STILL = {"epochs": 1, "batch_size": 48, "learning_rate": 1e-30}
"""A training that moves no weight by a bit."""
QUICK = {"epochs": 1, "batch_size": 24}
ALONE = {"random_reinit": False, "random_mask": False}
ALL = {"signed_permutation": True, "signed_constant": True}


@pytest.fixture
def net(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    return graph, jobs.context_of(graph, tmp_path, jobs.dataset_of(model))


@pytest.fixture
def with_initial(net, tmp_path):
    graph, ctx = net
    _, initial = jobs.load("mlp", tmp_path, seed=1)
    return graph, replace(ctx, models={"initial": initial})


LAYERS = ("weight_1", "weight_5", "weight_9")


def step(**options):
    return PruneLottery(**{"rounds": 2, "training": STILL, "controls": ALONE, **options})


def test_survivors_are_reset_to_the_initial_weights_bit_for_bit(with_initial):
    graph, ctx = with_initial
    initial = ctx.models["initial"]
    ticket = lottery.apply(graph.clone(), step(), ctx)
    for name in LAYERS:
        kept = ticket.weight(name) != 0
        assert 0.5 < kept.mean() < 0.9
        assert np.array_equal(ticket.weight(name)[kept], initial.weight(name)[kept])


def test_first_masks_are_of_the_uploaded_weights(with_initial):
    graph, ctx = with_initial
    ticket = lottery.apply(graph.clone(), step(rounds=1), ctx)
    for name in LAYERS:
        trained, gone = np.abs(graph.weight(name)), ticket.weight(name) == 0
        assert trained[gone].max() < trained[~gone].min()


def test_each_round_takes_a_fraction_of_the_survivors_and_half_of_it_from_the_output(net):
    graph, ctx = net
    ticket = lottery.apply(graph.clone(), step(rounds=3, rate=0.3), ctx)
    for name, rate in zip(LAYERS, (0.3, 0.3, 0.15), strict=True):
        weight = ticket.weight(name)
        assert (weight == 0).sum() == round((1 - (1 - rate) ** 3) * weight.size)


def test_convolutions_and_the_output_have_rates_of_their_own(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    asked = step(rounds=1, rate=0.5, conv_rate=0.1, output_rate=0.4)
    ticket = lottery.apply(graph.clone(), asked, ctx)
    found = [float((ticket.weight(t.layer) == 0).mean()) for t in ctx.coverage.touched]
    assert found == pytest.approx([0.1, 0.1, 0.5, 0.4], abs=0.02)


def test_biases_are_reset_and_never_pruned(with_initial):
    graph, ctx = with_initial
    ticket = lottery.apply(graph.clone(), step(), ctx)
    for name in graph.initializers:
        if name.startswith("bias"):
            initial = ctx.models["initial"].weight(name)
            np.testing.assert_allclose(ticket.weight(name), initial, atol=1e-29)


def test_without_an_initial_model_the_uploaded_weights_do_not_matter(net, tmp_path):
    graph, ctx = net
    _, other = jobs.load("mlp", tmp_path, seed=5)
    first = lottery.apply(graph.clone(), step(), ctx)
    second = lottery.apply(other, step(), replace(ctx, source=graph))
    for name in LAYERS:
        assert np.array_equal(first.weight(name), second.weight(name))
    assert any("only the architecture" in note for note in ctx.coverage.notes)


def test_initial_model_of_another_shape_is_refused(with_initial):
    graph, ctx = with_initial
    graph.set_weight("weight_5", graph.weight("weight_5")[:-1])
    with pytest.raises(BadModel, match="weight_5"):
        lottery.apply(graph, step(), ctx)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    return rng.normal(size=(20, 30)).astype(np.float32), rng


def test_signed_permutation_keeps_signs_and_magnitudes(drawn):
    weight, rng = drawn
    new = _tickets.signed_permutation(weight, rng)
    assert np.array_equal(np.sign(new), np.sign(weight))
    assert np.array_equal(np.sort(np.abs(new), axis=None), np.sort(np.abs(weight), axis=None))
    assert not np.array_equal(new, weight)


def test_signed_constant_has_one_magnitude(drawn):
    weight, rng = drawn
    new = _tickets.signed_constant(weight, rng)
    assert np.array_equal(np.sign(new), np.sign(weight))
    np.testing.assert_allclose(np.abs(new), weight.std(), rtol=1e-6)


@pytest.fixture
def started(net):
    graph, _ = net
    rng = np.random.default_rng(0)
    masks = {name: rng.random(graph.weight(name).shape) < 0.4 for name in LAYERS}
    return graph, masks


def test_random_reinit_permutes_each_layer_under_the_ticket_s_mask(started):
    start, masks = started
    begin, own = _tickets.begin("random_reinit", start, masks, np.random.default_rng(1))
    for name in LAYERS:
        weight = begin.weight(name)
        assert np.array_equal(own[name], masks[name])
        assert np.array_equal(weight == 0, masks[name])
        assert np.isin(weight[~masks[name]], start.weight(name)).all()
        assert not np.array_equal(weight, np.where(masks[name], 0, start.weight(name)))


def test_random_mask_keeps_as_many_weights_of_each_layer(started):
    start, masks = started
    begin, own = _tickets.begin("random_mask", start, masks, np.random.default_rng(1))
    for name in LAYERS:
        assert own[name].sum() == masks[name].sum()
        assert not np.array_equal(own[name], masks[name])
        assert np.array_equal(begin.weight(name), np.where(own[name], 0, start.weight(name)))


def test_curves_have_a_point_for_each_round_and_an_interval_over_the_seeds(net):
    graph, ctx = net
    asked = step(rounds=3, seeds=3, training=QUICK, controls=ALL)
    lottery.apply(graph.clone(), asked, ctx)
    names = ["ticket", "random_reinit", "signed_permutation", "signed_constant", "random_mask"]
    assert [curve.name for curve in ctx.coverage.curves] == names
    for curve in ctx.coverage.curves:
        xs = [point.x for point in curve.points]
        assert xs == sorted(xs)
        assert xs == pytest.approx([0.526, 0.651, 0.807, 1.0], abs=1e-3)
        assert [point.runs for point in curve.points] == [3] * 4
        assert all(p.low <= p.mean <= p.high for p in curve.points)
    assert [control.name for control in ctx.coverage.controls] == names[1:]


def test_interval_is_student_s():
    found = _tally.point(0.5, [1.0, 2.0, 3.0])
    assert (found.mean, found.runs) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert _tally.point(0.5, [0.7]).low is None


def test_uploaded_model_is_the_point_of_all_weights_once(with_initial):
    graph, ctx = with_initial
    lottery.apply(graph.clone(), step(seeds=2, training=QUICK), ctx)
    (curve,) = ctx.coverage.curves
    assert [point.runs for point in curve.points] == [2, 2, 1]
    assert any(note.startswith("4 networks were trained") for note in ctx.coverage.notes)


def test_messages_name_the_seed_the_round_and_the_control(net):
    graph, ctx = net
    told = []
    hearing = replace(ctx, report=lambda fraction, message: told.append((fraction, message)))
    asked = step(rounds=1, seeds=2, training=QUICK, controls={"random_mask": False})
    lottery.apply(graph.clone(), asked, hearing)
    labels = [message.partition(":")[0] for _, message in told]
    assert labels == [
        f"seed {seed} of 2, {name}"
        for seed in (1, 2)
        for name in ("dense network", "round 1 of 1, ticket", "round 1 of 1, random_reinit")
    ]
    assert [fraction for fraction, _ in told] == pytest.approx([n / 6 for n in range(1, 7)])


def test_tickets_are_rewound_to_a_moment_of_training(net):
    graph, ctx = net
    rates = {"weight_1": 0.5}
    moments = [_moment(steps, graph, ctx, rates) for steps in (None, 1, 2)]
    assert len({weight.tobytes() for weight in moments}) == 3


def _moment(steps, graph, ctx, rates):
    """What the survivors of the first layer begin with."""
    moment = None if steps is None else {"steps": steps}
    asked = step(rewind_to=moment, training={"epochs": 2, "batch_size": 24})
    start, trained = _runs.Run(_runs.plan(graph, asked, ctx, rates), 0)._dense()
    assert not np.array_equal(start.weight("weight_1"), trained.weight("weight_1"))
    return start.weight("weight_1")


def test_rewound_ticket_goes_on_from_where_it_is_put(net):
    graph, ctx = net
    training = {"epochs": 2, "batch_size": 24, "learning_rate": 1e-2}
    asked = step(rounds=1, rewind_to={"steps": 3}, training=training)
    start, _ = _runs.Run(_runs.plan(graph, asked, ctx, {"weight_1": 0.5}), 0)._dense()
    ticket = lottery.apply(graph.clone(), asked, ctx)
    kept = ticket.weight("weight_1") != 0
    moved = np.abs(ticket.weight("weight_1") - start.weight("weight_1"))[kept]
    assert moved.max() < 1e-2 / 4  # the last of four steps, at the end of the cosine


def test_rewinding_past_the_last_step_is_refused(net):
    graph, ctx = net
    with pytest.raises(BadData, match="after 4 steps, but 2 epochs on 48 samples are 4"):
        lottery.apply(graph, step(rewind_to={"steps": 4}, training={**QUICK, "epochs": 2}), ctx)


def test_control_that_diverges_is_noted_and_the_ticket_goes_on(net, tmp_path):
    """A weight that no input meets is huge: in another place it is met."""
    graph, ctx = net
    initial = graph.clone()
    huge = graph.weight("weight_1").copy()
    huge[:, 0] = 3e38
    initial.set_weight("weight_1", huge)
    unmet = jobs.dataset_of(nets.NETS["mlp"](0))
    name = unmet.input_names[0]
    pixels = unmet.batch(np.arange(unmet.samples))[name].copy()
    pixels.reshape(len(pixels), -1)[:, 0] = 0
    columns = [(name, dataset.ArrayColumn(pixels, pixels.dtype))]
    data = dataset.Dataset(
        dataset.with_columns(columns, len(pixels)).columns, unmet.rows, labels=unmet.labels
    )
    ctx = replace(ctx, train=data, eval=data, models={"initial": initial})
    asked = step(rounds=1, training=QUICK, controls={"random_mask": False})
    ticket = lottery.apply(graph.clone(), asked, ctx)
    assert np.isfinite(ticket.weight("weight_1")).all()
    assert any("random_reinit lacks a run in round 1" in note for note in ctx.coverage.notes)
    runs = {curve.name: len(curve.points) for curve in ctx.coverage.curves}
    assert runs == {"ticket": 2, "random_reinit": 1}


def test_excluded_layer_is_trained_and_not_pruned(net):
    graph, ctx = net
    ticket = lottery.apply(graph.clone(), step(exclude=("weight_5",)), ctx)
    assert (ticket.weight("weight_5") != 0).all()
    assert [s.layer for s in ctx.coverage.skipped] == ["weight_5"]


def test_nothing_to_prune_is_an_error(net):
    graph, ctx = net
    with pytest.raises(NothingChanged, match="no weight of a convolution"):
        lottery.apply(graph.clone(), step(exclude=("weight_*",)), ctx)
    with pytest.raises(NothingChanged, match="too small for its rates"):
        lottery.apply(graph.clone(), step(rounds=1, rate=1e-5), ctx)


def test_masks_grow_from_round_to_round(net):
    graph, ctx = net
    rates = dict.fromkeys(LAYERS, 0.2)
    run = _runs.Run(_runs.plan(graph, step(), ctx, rates), 0)
    masks = _masks.none_pruned({name: graph.weight(name) for name in LAYERS})
    for index, other in enumerate((graph, run._dense()[0]), start=1):
        grown = run._grow(other, masks, index)
        assert all((grown[name] >= masks[name]).all() for name in LAYERS)
        masks = grown


def test_ticket_wins_over_a_random_mask_on_real_digits(tmp_path, record_property):
    model, graph = jobs.load("mlp", tmp_path)
    found = load_digits()
    images = (found.images / 16).astype(np.float32)
    data, held = (
        _digits(model, images[rows], found.target[rows])
        for rows in (slice(0, 1200), slice(1200, None))
    )
    ctx = replace(jobs.context_of(graph, tmp_path, data), eval=held)
    training = {"epochs": 10, "batch_size": 60, "learning_rate": 3e-3}
    asked = PruneLottery(rounds=4, rate=0.5, training=training, controls={"random_reinit": False})
    lottery.apply(graph, asked, ctx)
    ticket, random = (curve.points[0] for curve in ctx.coverage.curves)
    record_property(
        "figure",
        f"ticket with {ticket.x:.1%} of the weights: {ticket.mean:.3f}, random mask {random.mean:.3f}",
    )
    assert ticket.mean > random.mean + 0.03


def _digits(model, images, labels):
    value = model.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    array = images.reshape(len(images), *shape)
    column = dataset.ArrayColumn(array, array.dtype)
    made = dataset.with_columns([(value.name, column)], len(array))
    return dataset.Dataset(made.columns, made.rows, labels=labels.astype(np.int64))
