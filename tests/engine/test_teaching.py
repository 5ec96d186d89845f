"""Training beside teachers: who teaches, what is refused, what is remembered, what is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from modelpress.spec.distill import Distill, Recover
from modelpress.spec.step import FineTune
from tests.engine import jobs, nets
from workers.engine import formats, initialize, layerwise, teachers, teaching
from workers.engine.errors import BadData, Unsupported
from workers.engine.graph import execute

TRAINING = FineTune(epochs=2, batch_size=16)


def opened(tmp_path, net: str = "plain_cnn", **options):
    """A student of new weights, its teacher, and surroundings."""
    model, teacher = jobs.load(net, tmp_path)
    ctx = jobs.context_of(teacher, tmp_path, jobs.dataset_of(model, **options))
    student = initialize.fresh(teacher, np.random.default_rng(99))
    return student, teacher, ctx


def loaded(tmp_path, model: onnx.ModelProto):
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    return formats.load(path)


def apart(a, b, ctx) -> float:
    feeds = ctx.train.batch(np.arange(ctx.train.samples))
    x, y = (execute.run(graph, feeds)["logits"] for graph in (a, b))
    shifted = [z - z.mean(1, keepdims=True) for z in (x, y)]
    return float(np.square(shifted[0] - shifted[1]).mean())


def test_a_student_comes_near_its_teacher_without_labels(tmp_path):
    student, teacher, ctx = opened(tmp_path, samples=128, labels=False)
    before, weights = apart(student, teacher, ctx), teacher.parameters()
    training = FineTune(epochs=8, batch_size=16, learning_rate=5e-3)
    log = teaching.fit(student, training, ctx, teachers=[teacher], distill=Distill())
    assert log.losses[-1] < 0.3 * log.losses[0]
    assert apart(student, teacher, ctx) < 0.5 * before
    assert all(np.array_equal(teacher.weight(name), was) for name, was in weights.items())


def test_teachers_are_never_in_training_and_have_no_gradients(tmp_path):
    _, teacher, _ = opened(tmp_path)
    group = teachers.Teachers([teacher], Distill(), scores=True)
    taught = teaching.Taught(nn.Identity(), [group], None).train()
    assert not any(module.training for module in group.modules())
    assert not any(p.requires_grad for p in taught.parameters())


def test_inner_values_of_teachers_are_those_in_use(tmp_path):
    """A teacher with BatchNormalization and Dropout: the statistics of the batch are not its own, and nothing is dropped."""
    model = jobs.text("""
        net (float[batch, 6] x) => (float[batch, 6] y)
        <float[6] s, float[6] b, float[6] m, float[6] v, float half = {0.5}, bool yes = {1}>
        { n = BatchNormalization(x, s, b, m, v) d = Dropout(n, half, yes) y = Relu(d) }
    """)
    for weight in model.graph.initializer:  # variances among them
        weight.CopyFrom(
            onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(weight)), weight.name)
        )
    teacher = loaded(tmp_path, model)
    beside = layerwise.Probed(teacher, ["d"], outputs=False)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))
    (wanted,) = beside.eval()(x)
    taught = teaching.Taught(nn.Identity(), [beside], None).train()
    assert taught.student.training
    assert torch.equal(taught(x)[-1], wanted)
    assert torch.equal(taught(x)[-1], wanted)


def test_answers_that_stay_the_same_are_asked_once(tmp_path, monkeypatch):
    asked = []
    forward = teachers.Teachers.forward
    monkeypatch.setattr(
        teachers.Teachers, "forward", lambda self, *x: asked.append(len(x[0])) or forward(self, *x)
    )
    student, teacher, ctx = opened(tmp_path, samples=48)
    teaching.fit(student.clone(), TRAINING, ctx, teachers=[teacher], distill=Distill())
    assert sum(asked) == 48
    asked.clear()
    varied = Distill(augment={"mixup": 0.2})
    teaching.fit(student.clone(), TRAINING, ctx, teachers=[teacher], distill=varied)
    assert sum(asked) == 2 * 48


def test_remembered_answers_train_the_same_student(tmp_path, monkeypatch):
    """In memory, mapped from a file, or asked anew for each batch."""
    results = []
    for limit in (teachers.IN_MEMORY_BYTES, 0):
        monkeypatch.setattr(teachers, "IN_MEMORY_BYTES", limit)
        student, teacher, ctx = opened(tmp_path)
        teaching.fit(student, TRAINING, ctx, teachers=[teacher], distill=Distill())
        results.append(student)
    assert list(tmp_path.glob("*.answers"))
    monkeypatch.setattr(teachers, "remember", lambda group, dataset, *rest: dataset)
    monkeypatch.setattr(
        teaching.Taught, "forward", lambda self, *x: (*self.student(*x), *self.group(*x))
    )
    student, teacher, ctx = opened(tmp_path)
    monkeypatch.setattr(
        teaching.Taught,
        "group",
        teachers.Teachers([teacher], Distill(), scores=True),
        raising=False,
    )
    teaching.fit(student, TRAINING, ctx, teachers=[teacher], distill=Distill())
    for name, weight in student.parameters().items():
        assert np.array_equal(results[0].weight(name), results[1].weight(name))
        assert np.allclose(results[0].weight(name), weight, atol=1e-4)


def test_answers_go_with_their_samples_in_a_subset(tmp_path):
    model, teacher = jobs.load("plain_cnn", tmp_path)
    dataset = jobs.dataset_of(model, 48).subset([40, 3, 17])
    ctx = jobs.context_of(teacher, tmp_path, dataset)
    group = teachers.Teachers([teacher], Distill(), scores=True)
    answered = teachers.remember(group, dataset, ctx, None, "answers")
    wanted = execute.run(teacher, dataset.batch([2, 0]))["logits"]
    assert np.allclose(answered.batch([2, 0])["teachers"], wanted, atol=1e-5)


def test_labels_have_the_share_that_is_asked(tmp_path):
    student, _, ctx = opened(tmp_path)
    assert teaching.Lesson(student, TRAINING, ctx, distill=Distill()).share == 0.9
    assert teaching.Lesson(student, TRAINING, ctx, distill=Distill(alpha=0.3)).share == 0.3
    bare = replace(ctx, train=replace(ctx.train, labels=None))
    assert teaching.Lesson(student, TRAINING, bare, distill=Distill()).share == 1.0
    with pytest.raises(BadData, match=r"alpha 0.3 leaves 0.7 of the loss to labels"):
        teaching.Lesson(student, TRAINING, bare, distill=Distill(alpha=0.3))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: classes(7), "it knows 7 classes, the student 10"),
        (lambda: nets.NETS["two_inputs"](0), "it has 2 inputs, the student 1"),
        (lambda: sized(6), r"its input 0 is FLOAT \[1, 6, 6\] for each sample"),
        (lambda: rules("Bgr8"), "made for images with Image.BitmapPixelFormat 'Bgr8'"),
    ],
    ids=["classes", "inputs", "shapes", "preprocessing"],
)
def test_a_teacher_that_does_not_fit_is_refused_with_the_reason(build, reason, tmp_path):
    _, _, ctx = opened(tmp_path)
    student = loaded(tmp_path, rules("Rgb8"))
    with pytest.raises(Unsupported, match=reason):
        teaching.fit(
            student, TRAINING, ctx, teachers=[loaded(tmp_path, build())], distill=Distill()
        )


def classes(count: int) -> onnx.ModelProto:
    return jobs.text(
        f"net (float[batch, 1, 8, 8] image) => (float[batch, {count}] logits) "
        f"<float[64, {count}] w> {{ x = Flatten(image) logits = MatMul(x, w) }}"
    )


def sized(side: int) -> onnx.ModelProto:
    return jobs.text(
        f"net (float[batch, 1, {side}, {side}] image) => (float[batch, 10] logits) "
        f"<float[{side * side}, 10] w> {{ x = Flatten(image) logits = MatMul(x, w) }}"
    )


def rules(pixels: str) -> onnx.ModelProto:
    model = classes(10)
    model.metadata_props.add(key="Image.BitmapPixelFormat", value=pixels)
    return model


def test_a_teacher_that_takes_its_inputs_in_another_order_is_refused(tmp_path):
    """Inputs go by place: a network would be fed what is for another input, where shapes happen to be equal."""
    student, teacher = (loaded(tmp_path, pair(order)) for order in ("ab", "ba"))
    ctx = jobs.context_of(student, tmp_path, jobs.dataset_of(pair("ab"), labels=False))
    reason = r"has the inputs \['b', 'a'\], the student \['a', 'b'\], in another order"
    with pytest.raises(Unsupported, match=reason):
        teaching.fit(student, TRAINING, ctx, teachers=[teacher], distill=Distill())


def pair(order: str) -> onnx.ModelProto:
    inputs = ", ".join(f"float[batch, 6] {name}" for name in order)
    return jobs.text(
        f"net ({inputs}) => (float[batch, 10] logits) <float[6, 10] w, float[6, 10] v> "
        "{ x = MatMul(a, w) y = MatMul(b, v) logits = Add(x, y) }"
    )


def test_two_classes_can_not_be_standardised(tmp_path):
    model, _ = jobs.load("plain_cnn", tmp_path)
    two = loaded(tmp_path, classes(2))
    ctx = jobs.context_of(two, tmp_path, jobs.dataset_of(model, labels=False))
    with pytest.raises(Unsupported, match="standardised scores of two classes are all alike"):
        teaching.fit(two.clone(), TRAINING, ctx, teachers=[two], distill=Distill(standardize=True))


def test_a_teacher_of_probabilities_teaches_a_student_of_logits(tmp_path):
    student, teacher, ctx = opened(tmp_path)
    softened = loaded(tmp_path, with_softmax("plain_cnn"))
    results = []
    for given in (teacher, softened):
        own = student.clone()
        teaching.fit(own, TRAINING, ctx, teachers=[given], distill=Distill())
        results.append(own)
    assert apart(*results, ctx) < 1e-3 * apart(results[0], student, ctx)


def with_softmax(net: str) -> onnx.ModelProto:
    model = nets.NETS[net](0)
    model.graph.node[-1].op_type = "Softmax"
    return model


@pytest.mark.parametrize("options", [{"variant": "dkd", "alpha": 0.5}, {"standardize": True}])
def test_variants_train(options, tmp_path):
    student, teacher, ctx = opened(tmp_path)
    training = FineTune(epochs=8, batch_size=16, learning_rate=3e-3)
    log = teaching.fit(student, training, ctx, teachers=[teacher], distill=Distill(**options))
    assert log.losses[-1] < log.losses[1]


def test_dkd_warms_up(tmp_path):
    """With all of the loss the teachers', the first step has the share of it that the warm-up gives."""
    student, teacher, ctx = opened(tmp_path)
    found = []
    for warm_up in (0.0, 1.0):
        asked = Distill(variant="dkd", alpha=1.0, warm_up=warm_up)
        training = FineTune(epochs=1, batch_size=12, learning_rate=1e-9)
        log = teaching.fit(
            student.clone(), training, ctx, teachers=[teacher], distill=asked, label="same"
        )
        found.append(log.losses[0])
    assert found[1] == pytest.approx(found[0] * (1 + 2 + 3 + 4) / 16, rel=0.15)


def test_the_mean_of_two_teachers_is_learned(tmp_path):
    student, teacher, ctx = opened(tmp_path, labels=False)
    other = initialize.fresh(teacher, np.random.default_rng(5))
    both = Distill(teachers=[{"role": "source", "weight": 3}, {"role": "other"}], mean="geometric")
    ctx = replace(ctx, models={"other": other})
    group = teachers.Teachers(teachers.find(both, ctx), both, scores=True)
    feeds = ctx.train.batch(np.arange(8))
    (found,) = group(*map(torch.from_numpy, feeds.values()))
    answers = [execute.run(graph, feeds)["logits"] for graph in (teacher, other)]
    assert np.allclose(found.numpy(), 0.75 * answers[0] + 0.25 * answers[1], atol=1e-4)
    log = teaching.fit_module(execute.as_module(student), student, TRAINING, ctx, distill=both)
    assert np.isfinite(log.losses).all()


def test_a_fixed_batch_of_the_teacher_is_kept(tmp_path):
    student, _, ctx = opened(tmp_path)
    fixed = loaded(tmp_path, of_batch(4))
    log = teaching.fit(student, TRAINING, ctx, teachers=[fixed], distill=Distill())
    assert np.isfinite(log.losses).all()
    varied = Distill(augment={"shift": 1})
    with pytest.raises(Unsupported, match="samples are varied a batch at a time"):
        teaching.fit(student, TRAINING, ctx, teachers=[fixed], distill=varied)


def of_batch(size: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"net (float[{size}, 1, 8, 8] picture) => (float[{size}, 10] scores) "
        f"<int64[2] s = {{{size}, 64}}> "
        "{ x = Reshape(picture, s) scores = MatMul(x, w) }"
    )
    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


def test_a_model_that_is_no_classifier_learns_all_outputs(tmp_path):
    student, teacher, ctx = opened(tmp_path, "upsampling_cnn", labels=False)
    training = FineTune(epochs=10, batch_size=16, learning_rate=3e-3)
    log = teaching.fit(student, training, ctx, teachers=[teacher], distill=Distill())
    assert log.losses[-1] < 0.7 * log.losses[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"alpha": 0.3}, "alpha 0.3 is for class scores"),
        ({"variant": "dkd"}, "variant 'dkd' is for class scores"),
        ({"standardize": True}, "standardize is for class scores"),
        ({"mean": "geometric"}, "mean 'geometric' is for class scores"),
    ],
)
def test_what_is_for_class_scores_is_refused_where_there_are_none(options, reason, tmp_path):
    student, teacher, ctx = opened(tmp_path, "upsampling_cnn")
    with pytest.raises(Unsupported, match=reason):
        teaching.fit(student, TRAINING, ctx, teachers=[teacher], distill=Distill(**options))


def test_what_training_goes_by_is_told_whole():
    asked = Distill(
        teachers=[{"role": "source"}, {"role": "large", "weight": 2}],
        mean="geometric",
        variant="dkd",
        standardize=True,
        augment={"mixup": 0.2},
    )
    assert teaching.described(Recover(distill=asked)) == (
        "the answers of the uploaded model, 'large' (weight 2) (geometric mean) at temperature 4, the right class and the others apart "
        "(dkd), standardised, on varied samples"
    )


def test_layerwise_trains_the_named_weights_alone(tmp_path):
    """A layer of new weights learns to give what the teacher's gives, through layers that stay."""
    student, teacher, ctx = opened(tmp_path, labels=False)
    first, second = (node for node in student.nodes if node.op_type == "Conv")
    own, inner = first.inputs[1].name, second.outputs[0].name
    mixed = teacher.clone()
    mixed.set_weight(own, student.weight(own))
    training = FineTune(epochs=25, batch_size=16, learning_rate=0.1)
    log = layerwise.fit(mixed, teacher, [(inner, inner)], training, ctx, train={own})
    assert log.losses[-1] < 0.5 * log.losses[0]
    changed = {
        name for name, was in teacher.parameters().items() if np.any(mixed.weight(name) != was)
    }
    assert changed == {own}
