"""Every step that trains can learn from teachers instead of labels."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from modelpress.spec import recipe
from modelpress.spec.recipe import STEPS
from modelpress.spec.step import FineTune
from tests.engine import jobs
from workers.engine import passes, train
from workers.engine.graph import execute

BRIEF = {"epochs": 1, "batch_size": 24}
TAUGHT = {"distill": {"temperature": 2.0}}
OPTIONS = {
    "prune.magnitude": {"sparsity": 0.5, "fine_tune": BRIEF},
    "prune.channels": {"fraction": 0.5, "fine_tune": BRIEF},
    "prune.lottery": {"rounds": 1, "training": BRIEF, "controls": {"random_reinit": False}},
    "prune.supermask": {"draws": 1, "training": BRIEF},
    "quantize.cluster": {"bits": 3, "conv_bits": 3, "fine_tune": BRIEF},
    "quantize.qat": {"samples": 16, "training": BRIEF},
    "quantize.binary": {"float_ends": False, "training": BRIEF},
    "rewrite.low_rank": {"ratio": 2, "fine_tune": BRIEF},
    "rewrite.depthwise": {"min_inputs": 1, "fine_tune": BRIEF},
    "rewrite.blocks": {"block": "separable", "fine_tune": BRIEF},
}
READ_LABELS = ("prune.lottery", "prune.supermask")
"""For more than training."""

RECOVERING = sorted(kind for kind, step in STEPS.items() if "recover" in step.model_fields)


def trains(kind: str) -> bool:
    fields = STEPS[kind].model_fields
    return "fine_tune" in fields or ("training" in fields and not kind.startswith("distill."))


def test_every_step_that_trains_can_recover():
    assert sorted(kind for kind in STEPS if trains(kind)) == RECOVERING


@pytest.mark.parametrize("kind", RECOVERING)
def test_training_goes_by_the_teacher(kind, tmp_path, monkeypatch):
    """The loss is that of teachers, of the uploaded model's answers; without labels where only training reads them."""
    step = STEPS[kind](**OPTIONS[kind], recover=TAUGHT)
    assert step.needs_data
    assert step.needs_labels is (kind in READ_LABELS)
    losses, fit = [], train.fit

    def seen(*args, loss=None, **options):
        losses.append(loss)
        return fit(*args, loss=loss, **options)

    monkeypatch.setattr(train, "fit", seen)
    model, graph = jobs.load("plain_cnn", tmp_path)
    dataset = jobs.dataset_of(model, labels=kind in READ_LABELS)
    ctx = jobs.context_of(graph.clone(), tmp_path, dataset)
    passes.apply(graph, step, ctx)
    assert losses
    assert all(loss is not None for loss in losses)
    assert any("the uploaded model at temperature 2" in note for note in ctx.coverage.notes)


@pytest.mark.parametrize("kind", RECOVERING)
def test_teachers_are_models_that_the_job_must_have(kind):
    asked = {"distill": {"teachers": [{"role": "large"}], "alpha": 0.5}}
    step = STEPS[kind](**OPTIONS[kind], recover=asked)
    assert step.needs_models == ("large",)
    assert "large" in step.uses_models
    assert step.needs_labels
    found = recipe.Recipe(steps=[step]).problems(has_data=True, has_labels=True)
    assert [problem.code for problem in found] == ["missing_model"]


def test_a_teacher_needs_training_to_teach_in():
    with pytest.raises(ValidationError, match="recover says what training goes by"):
        STEPS["prune.channels"](fraction=0.5, recover=TAUGHT)
    with pytest.raises(ValidationError, match="both say what is learned"):
        STEPS["quantize.binary"](distill=0.5, recover=TAUGHT)
    with pytest.raises(ValidationError, match="both say what is learned"):
        STEPS["quantize.qat"](distill=True, recover=TAUGHT)


def test_controls_are_trained_by_labels():
    options = {**OPTIONS["prune.channels"], "recover": TAUGHT, "controls": {"scratch_e": True}}
    assert STEPS["prune.channels"](**options).needs_labels


def test_recovery_brings_the_answers_back_to_the_teachers(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    dataset, source = jobs.dataset_of(model, 192, labels=False), graph.clone()
    training = FineTune(epochs=12, batch_size=24, learning_rate=3e-3)
    apart = {}
    for name, options in {
        "alone": {},
        "taught": {"fine_tune": training, "recover": {"distill": {}}},
    }.items():
        step = STEPS["prune.channels"](fraction=0.5, **options)
        result = passes.apply(source.clone(), step, jobs.context_of(source, tmp_path, dataset))
        apart[name] = _difference(source, result, dataset)
    assert apart["taught"] < 0.5 * apart["alone"]


def _difference(source, result, dataset) -> float:
    feeds = dataset.batch(np.arange(dataset.samples))
    a, b = (execute.run(graph, feeds)["logits"] for graph in (source, result))
    shifted = [x - x.mean(1, keepdims=True) for x in (a, b)]
    return float(np.square(shifted[0] - shifted[1]).mean())
