"""The pruned network, trained from new weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from modelpress.spec import recipe
from modelpress.spec.prune import (
    Controls,
    PruneChannels,
    PruneLottery,
    PruneMagnitude,
    PruneSupermask,
    Pruning,
)
from modelpress.spec.step import FineTune
from tests.engine import jobs
from workers.engine import context, passes, train
from workers.engine.errors import Diverged
from workers.engine.graph import execute
from workers.engine.measure import trial
from workers.engine.passes.prune import _controls

BOTH = Controls(scratch_e=True, scratch_b=True)
BRIEF = FineTune(epochs=1, batch_size=16)
measure = trial.measure


class Watched:
    """What `train.fit` was asked for, and what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, FineTune] = {}
        self.before: dict[str, dict[str, np.ndarray]] = {}
        self.after: dict[str, dict[str, np.ndarray]] = {}
        self._fit = train.fit
        monkeypatch.setattr(train, "fit", self.fit)

    def fit(self, module, dataset, fine_tune, ctx, *, label, **options):
        self.runs[label] = fine_tune
        self.before[label] = weights(module)
        log = self._fit(module, dataset, fine_tune, ctx, label=label, **options)
        self.after[label] = weights(module)
        return log


def weights(module) -> dict[str, np.ndarray]:
    network = getattr(module, "network", module)
    return {n: w.detach().numpy().copy() for n, w in network.weights.items()}


def prune(step, tmp_path, net="plain_cnn", report=context.silent):
    model, graph = jobs.load(net, tmp_path)
    ctx = replace(jobs.context_of(graph, tmp_path, jobs.dataset_of(model)), report=report)
    return passes.apply(graph.clone(), step, ctx), ctx


def halved(**controls) -> PruneChannels:
    return PruneChannels(fraction=0.5, fine_tune=BRIEF, controls=Controls(**controls))


@pytest.mark.parametrize(
    ("epochs", "whole", "left", "wanted"),
    [(160, 313_201_664, 206_006_272, 243), (3, 100, 40, 7), (5, 100, 100, 5), (2, 90, 100, 2)],
)
def test_equal_computation_is_epochs_times_the_ratio_of_costs_rounded_down(
    epochs, whole, left, wanted
):
    assert _controls.equal_computation(epochs, whole, left) == wanted


def test_both_are_trained_and_measured(tmp_path):
    pruned, ctx = prune(halved(scratch_e=True, scratch_b=True, epochs=2), tmp_path)
    [e, b] = ctx.coverage.controls
    ratio = _controls.macs(ctx.source, {}, ctx) / _controls.macs(pruned, {}, ctx)
    assert (e.name, e.epochs) == ("scratch_e", 2)
    assert (b.name, b.epochs) == ("scratch_b", int(2 * ratio))
    assert ratio > 2
    assert {c.quality.samples for c in (e, b)} == {48}


def test_they_begin_with_weights_of_their_own(tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    pruned, _ = prune(halved(scratch_e=True, scratch_b=True), tmp_path)
    e, b = watched.before["scratch_e"], watched.before["scratch_b"]
    for name, w in pruned.parameters().items():
        assert e[name].shape == w.shape
        if name.startswith("weight"):
            assert not np.isclose(e[name], w).any()
            assert not np.array_equal(e[name], b[name])


def test_the_result_does_not_depend_on_them(tmp_path):
    with_controls, _ = prune(halved(scratch_e=True), tmp_path)
    without, _ = prune(PruneChannels(fraction=0.5, fine_tune=BRIEF), tmp_path)
    for name, w in without.parameters().items():
        assert np.array_equal(with_controls.weight(name), w)


def test_masks_hold_from_the_first_step_to_the_last(tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    step = PruneMagnitude(sparsity=0.75, fine_tune=BRIEF, controls=BOTH)
    pruned, ctx = prune(step, tmp_path)
    zeros = {name: pruned.weight(name) == 0 for name in watched.after["scratch_e"]}
    assert sum(int(z.sum()) for n, z in zeros.items() if n.startswith("weight"))
    for label in ("scratch_e", "scratch_b"):
        for when in (watched.before, watched.after):
            for name, zero in zeros.items():
                if name.startswith("weight"):
                    assert np.array_equal(when[label][name] == 0, zero)
    assert [c.epochs for c in ctx.coverage.controls] == [1, _kept_ratio(pruned, ctx, zeros)]


def _kept_ratio(pruned, ctx, zeros) -> int:
    masks = {name: zero for name, zero in zeros.items() if name.startswith("weight")}
    return int(_controls.macs(pruned, {}, ctx) / _controls.macs(pruned, masks, ctx))


def test_of_a_masked_layer_only_kept_weights_cost(tmp_path):
    model, graph = jobs.load("matmul_mlp", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    names = [name for name in graph.parameters() if name.startswith("weight")]
    masks = {name: np.ones(graph.weight(name).shape, dtype=np.bool_) for name in names}
    masks[names[0]].reshape(-1)[: masks[names[0]].size // 4] = False
    assert _controls.macs(graph, {}, ctx) == sum(masks[name].size for name in names)
    assert _controls.macs(graph, masks, ctx) == masks[names[0]].size // 4


STEPS = {
    "prune.magnitude": {"sparsity": 0.5, "fine_tune": BRIEF},
    "prune.channels": {"fraction": 0.5, "fine_tune": BRIEF},
    "prune.lottery": {"rounds": 1, "training": {"epochs": 1, "batch_size": 16}},
    "prune.supermask": {"training": {"epochs": 1, "batch_size": 16}, "draws": 1},
}


@pytest.mark.parametrize("kind", [kind for kind in recipe.STEPS if kind.startswith("prune.")])
def test_every_pruning_step_has_them(kind, tmp_path):
    cls = recipe.STEPS[kind]
    assert issubclass(cls, Pruning)
    step = cls.model_validate({**STEPS[kind], "controls": {"scratch_e": True, "scratch_b": True}})
    _, ctx = prune(step, tmp_path)
    found = {c.name: c for c in ctx.coverage.controls}
    assert found["scratch_e"].epochs == 1
    assert found["scratch_b"].epochs >= 1
    assert "multiply-accumulates" in found["scratch_b"].note


@pytest.mark.parametrize(
    "step",
    [
        PruneSupermask(training={"epochs": 2, "batch_size": 16}, draws=1, controls=BOTH),
        PruneLottery(rounds=1, rate=0.6, training=BRIEF.model_dump(), controls=BOTH.model_dump()),
    ],
    ids=lambda step: step.kind,
)
def test_of_learned_masks_controls_have_the_result_s(step, tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    result, ctx = prune(step, tmp_path, net="matmul_mlp")
    [e, b] = [c for c in ctx.coverage.controls if c.name.startswith("scratch")]
    masks = {n: result.weight(n) == 0 for n in watched.after["scratch_e"] if n.startswith("weight")}
    for name, mask in masks.items():
        assert mask.any()
        assert np.array_equal(watched.before["scratch_e"][name] == 0, mask)
        assert np.array_equal(watched.after["scratch_b"][name] == 0, mask)
    costs = _controls.macs(ctx.source, {}, ctx), _controls.macs(result, masks, ctx)
    assert (e.epochs, b.epochs) == (
        step.training.epochs,
        _controls.equal_computation(step.training.epochs, *costs),
    )
    assert b.epochs > e.epochs


def test_of_a_supermask_weights_are_trained_at_rates_of_weights(tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 50.0}
    step = PruneSupermask(training=training, draws=1, controls=Controls(scratch_e=True))
    with_controls, _ = prune(step, tmp_path)
    assert watched.runs["supermask"].learning_rate == 50.0
    assert watched.runs["scratch_e"] == FineTune(epochs=1, batch_size=16)
    without, _ = prune(step.model_copy(update={"controls": None}), tmp_path)
    for name, w in without.parameters().items():
        assert np.array_equal(with_controls.weight(name), w)


def test_e_counts_every_epoch_of_the_step_where_nothing_is_said():
    step = PruneMagnitude(sparsity=0.5, rounds=4, fine_tune=FineTune(epochs=3))
    assert step.trained_epochs == 12
    sparse = {"epochs": 5}
    step = PruneChannels(
        fraction=0.5,
        criterion="bn_scale",
        rounds=2,
        fine_tune=FineTune(epochs=3),
        sparse_training=sparse,
    )
    assert step.trained_epochs == 16


def test_the_note_says_how_long_and_why(tmp_path):
    step = PruneChannels(
        fraction=0.5,
        fine_tune=BRIEF,
        controls=Controls(scratch_b=True, epochs=2, max_epochs_ratio=1.5),
    )
    _, ctx = prune(step, tmp_path)
    [control] = ctx.coverage.controls
    assert control.epochs == 3
    assert control.note.startswith("E is 2, as controls.epochs says; multiply-accumulates ")
    assert control.note.endswith("epochs were cut to 1.5 times E")


def test_learning_rate_and_the_rest_of_the_schedule(tmp_path, monkeypatch):
    watched = Watched(monkeypatch)
    prune(halved(scratch_e=True, learning_rate=0.05), tmp_path)
    assert watched.runs["round 1 of 1"] == BRIEF
    assert watched.runs["scratch_e"] == BRIEF.model_copy(update={"learning_rate": 0.05})


def test_quality_is_that_of_the_trained_network(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        trial, "measure", lambda graph, ctx: measured.append(graph) or measure(graph, ctx)
    )
    _, ctx = prune(halved(scratch_e=True), tmp_path)
    [control], [scratch] = ctx.coverage.controls, measured
    everything = np.arange(ctx.eval.samples)
    logits = execute.run(scratch, ctx.eval.batch(everything))["logits"]
    right = logits.argmax(axis=1) == ctx.eval.labels
    assert control.quality.accuracy == pytest.approx(right.mean())


def test_the_same_seed_gives_the_same_controls(tmp_path):
    _, first = prune(halved(scratch_e=True, scratch_b=True), tmp_path)
    _, again = prune(halved(scratch_e=True, scratch_b=True), tmp_path)
    assert first.coverage.controls == again.coverage.controls


def test_progress_goes_on_through_them(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "REPORT_EVERY_S", 0.0)
    told: list[tuple[float, str]] = []
    step = halved(scratch_e=True, scratch_b=True)
    prune(step, tmp_path, report=lambda fraction, message: told.append((fraction, message)))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    ends = {m.split(":")[0]: f for f, m in told}
    assert ends == {
        "round 1 of 1": pytest.approx(1 / 3),
        "scratch_e": pytest.approx(2 / 3),
        "scratch_b": pytest.approx(1),
    }


def test_one_that_diverges_is_noted_and_the_result_stays(tmp_path, monkeypatch):
    fit = train.fit

    def diverging(*arguments, label, **options):
        if label == "scratch_e":
            raise Diverged("scratch_e: the loss is nan")
        return fit(*arguments, label=label, **options)

    monkeypatch.setattr(train, "fit", diverging)
    _, ctx = prune(halved(scratch_e=True, scratch_b=True), tmp_path)
    assert [c.name for c in ctx.coverage.controls] == ["scratch_b"]
    assert any(
        "scratch_e was not measured: scratch_e: the loss is nan" in n for n in ctx.coverage.notes
    )


@pytest.mark.parametrize("kind", [PruneMagnitude, PruneChannels])
def test_without_fine_tuning_they_are_refused(kind):
    target = {"sparsity": 0.5} if kind is PruneMagnitude else {"fraction": 0.5}
    with pytest.raises(ValidationError, match="fine_tune is null"):
        kind(**target, controls=BOTH)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "asks for none"),
        ({"epochs": 160}, "asks for none"),
        ({"scratch_e": True, "max_epochs_ratio": 2}, "limits scratch_b"),
    ],
)
def test_controls_without_effect_are_refused(options, reason):
    with pytest.raises(ValidationError, match=reason):
        Controls(**options)
