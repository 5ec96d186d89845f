"""distill.logits and distill.features: students, places that learn from each other, and what the report says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modelpress.spec.distill import DistillFeatures, DistillLogits
from tests.engine import jobs, nets
from workers.engine import formats, initialize, passes, pipeline
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import execute, shapes, verify
from workers.engine.passes.distill import _agreement, _blocks, _pairs

BRIEF = {"epochs": 1, "batch_size": 24}


def opened(tmp_path, net: str = "residual_cnn", **options):
    model, graph = jobs.load(net, tmp_path)
    return graph, jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model, **options))


def notes(ctx) -> str:
    return "\n".join(ctx.coverage.notes)


def shape_of(graph, ctx) -> dict[str, tuple[int, ...]]:
    return shapes.infer(graph, shapes.example_shapes(graph))


def test_blocks_of_one_shape_are_found_whatever_is_inside(tmp_path):
    graph, ctx = opened(tmp_path)
    found = _blocks.removable(graph, shape_of(graph, ctx))
    assert len(found) == 1
    (block,) = found
    assert len(block.layers) == 2
    assert block.start.name != block.end.name


def test_the_network_fits_together_without_its_blocks(tmp_path):
    for net in ("residual_cnn", "vision_transformer"):
        graph, ctx = opened(tmp_path, net)
        found = _blocks.removable(graph, shape_of(graph, ctx))
        assert found, net
        before = len(graph.nodes)
        _blocks.remove(graph, found)
        verify.verify(graph)
        assert len(graph.nodes) < before
        assert execute.run(graph, ctx.train.batch([0, 1]))["logits"].shape == (2, nets.CLASSES)


def test_a_shorter_copy_learns(tmp_path):
    graph, ctx = opened(tmp_path)
    student = passes.apply(graph, DistillLogits(student={"depth": 0.4}, training=BRIEF), ctx)
    assert len(student.nodes) < len(ctx.source.nodes)
    assert "without 1 of 1 blocks whose input and output have one shape" in notes(ctx)


def test_a_copy_that_nothing_can_leave_is_refused(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    with pytest.raises(NothingChanged, match=r"of 0 blocks .* depth 0.5 takes out none"):
        passes.apply(graph, DistillLogits(student={"depth": 0.5}), ctx)


def test_a_narrower_copy_is_of_the_source_not_of_what_earlier_steps_left(tmp_path):
    graph, ctx = opened(tmp_path)
    for name, weight in graph.parameters().items():
        graph.set_weight(name, np.zeros_like(weight))
    step = DistillLogits(student={"width": 0.5}, training=BRIEF)
    student = passes.apply(graph, step, ctx)
    sizes = [sum(w.size for w in g.parameters().values()) for g in (ctx.source, student)]
    assert sizes[1] < 0.5 * sizes[0]
    assert any(np.abs(weight).max() > 0.1 for weight in student.parameters().values())
    assert "a copy of the source with 50% of the channels" in notes(ctx)


def test_an_uploaded_student_takes_the_place_and_the_names_of_the_model(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    path = tmp_path / "own.onnx"
    path.write_bytes(small(10).SerializeToString())
    ctx = replace(ctx, models={"own": formats.load(path)})
    student = passes.apply(graph, DistillLogits(student={"role": "own"}, training=BRIEF), ctx)
    assert [v.name for v in (*student.inputs, *student.outputs)] == ["image", "logits"]
    assert len(student.nodes) == 3
    assert "the student is the model in the role 'own'" in notes(ctx)
    verify.verify(student)


def test_a_student_of_other_outputs_can_not_take_the_place(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    path = tmp_path / "own.onnx"
    path.write_bytes(small(7).SerializeToString())
    ctx = replace(ctx, models={"own": formats.load(path)})
    with pytest.raises(Unsupported, match="it can't take its place"):
        passes.apply(graph, DistillLogits(student={"role": "own"}, training=BRIEF), ctx)


def test_a_student_with_inputs_in_another_order_can_not_take_the_place(tmp_path):
    found = {order: jobs.text(summed(order)) for order in ("ab", "ba")}
    graphs = {order: saved(model, tmp_path) for order, model in found.items()}
    train = jobs.dataset_of(found["ab"])
    ctx = replace(jobs.context_of(graphs["ab"], tmp_path, train), models={"own": graphs["ba"]})
    reason = r"inputs \['b', 'a'\], but the model has them in another order, \['a', 'b'\]"
    with pytest.raises(Unsupported, match=reason):
        passes.apply(graphs["ab"].clone(), DistillLogits(student={"role": "own"}), ctx)


def summed(order: str) -> str:
    inputs = ", ".join(f"float[batch, 6] {name}" for name in order)
    return (
        f"net ({inputs}) => (float[batch, 10] logits) <float[6, 10] w, float[6, 10] v> "
        "{ x = MatMul(a, w) y = MatMul(b, v) logits = Add(x, y) }"
    )


def saved(model, tmp_path):
    path = tmp_path / "saved.onnx"
    path.write_bytes(model.SerializeToString())
    return formats.load(path)


@pytest.mark.parametrize("ends", ["Identity", "Softmax", "LogSoftmax", "Sigmoid"])
def test_a_student_of_the_zoo_answers_as_the_source_does(ends, tmp_path):
    model = nets.NETS["plain_cnn"](0)
    model.graph.node[-1].op_type = ends
    path = tmp_path / "source.onnx"
    path.write_bytes(model.SerializeToString())
    source = formats.load(path)
    ctx = jobs.context_of(source, tmp_path, jobs.dataset_of(model))
    asked = {"architecture": {"name": "squeezenet_1_1", "width": 0.125}}
    student = passes.apply(source.clone(), DistillLogits(student=asked, training=BRIEF), ctx)
    verify.verify(student)
    assert [v.name for v in (*student.inputs, *student.outputs)] == ["image", "logits"]
    feeds = ctx.train.batch(np.arange(6))
    scores = execute.run(student, feeds)["logits"]
    assert scores.shape == (6, nets.CLASSES)
    sums = {"Softmax": scores, "LogSoftmax": np.exp(scores)}.get(ends)
    assert sums is None or np.allclose(sums.sum(1), 1, atol=1e-5)
    assert ends != "Sigmoid" or (0 <= scores.min() <= scores.max() <= 1)
    assert "the student is squeezenet_1_1 of width 0.125" in notes(ctx)


def test_the_zoo_needs_one_image_and_classes(tmp_path):
    graph, ctx = opened(tmp_path, "two_inputs")
    asked = {"architecture": {"name": "mobilenet_v2"}}
    with pytest.raises(Unsupported, match="mobilenet_v2 takes one image"):
        passes.apply(graph, DistillLogits(student=asked, training=BRIEF), ctx)


def small(classes: int):
    """Its inner value has the name of the model's output."""
    return jobs.text(
        f"net (float[batch, 1, 8, 8] picture) => (float[batch, {classes}] scores) <float[64, {classes}] w> "
        "{ logits = Flatten(picture) y = MatMul(logits, w) scores = Identity(y) }"
    )


def test_excluded_weights_stay_and_are_listed(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    step = DistillLogits(exclude=("weight_*",), training=BRIEF)
    student = passes.apply(graph, step, ctx)
    kept = [name for name in ctx.source.parameters() if name.startswith("weight_")]
    assert all(np.array_equal(student.weight(n), ctx.source.weight(n)) for n in kept)
    assert {s.layer for s in ctx.coverage.skipped} >= set(kept)
    with pytest.raises(NothingChanged, match="found no weight to train"):
        passes.apply(ctx.source.clone(), DistillLogits(exclude=("*",)), ctx)


def test_a_student_that_answers_as_its_teacher_does_changes_nothing(tmp_path):
    graph, ctx = opened(tmp_path, "upsampling_cnn", labels=False)
    with pytest.raises(NothingChanged, match="answers as its teachers do already"):
        passes.apply(graph, DistillLogits(training=BRIEF), ctx)


def test_the_report_says_who_taught_and_that_no_label_was_read(tmp_path):
    graph, ctx = opened(tmp_path, labels=False)
    ctx = replace(ctx, models={"large": initialize.fresh(graph, np.random.default_rng(3))})
    step = DistillLogits(teachers=[{"role": "source"}, {"role": "large"}], training=BRIEF)
    passes.apply(graph, step, ctx)
    assert "the answers of the uploaded model, 'large' at temperature 4" in notes(ctx)
    assert "where its teachers are wrong, the student learns that" in notes(ctx)


def test_weights_that_began_at_zero_are_told_so(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    passes.apply(graph, DistillLogits(student={"weights": "fresh"}, training=BRIEF), ctx)
    told = {t.layer: t.change for t in ctx.coverage.touched}
    assert "from zero to" in told["bias_21"]
    assert "% of their size" in told["weight_20"]


@pytest.mark.parametrize("method", ["hint", "attention", "relational"])
def test_inner_values_come_nearer(method, tmp_path):
    """Of a narrower student; of hints, which then need an adapter, of one with new weights."""
    student = {"weights": "fresh"} if method == "hint" else {"width": 0.5}
    apart = []
    for rate in (1e-9, 5e-3):
        graph, ctx = opened(tmp_path, "plain_cnn", samples=96, labels=False)
        training = {"epochs": 6, "batch_size": 16, "learning_rate": rate}
        step = DistillFeatures(method=method, student=student, training=training, weight=50)
        result = passes.apply(graph, step, ctx)
        apart.append(inner_distance(result, ctx, method, step))
    assert apart[1] < 0.8 * apart[0]


def inner_distance(student, ctx, method: str, step) -> float:
    """The mean over matched places."""
    sides = [(g, shape_of(g, ctx)) for g in (student, ctx.source)]
    (a, own), (b, theirs) = sides
    pairs = _pairs.find(a, b, step, own, theirs)
    feeds = ctx.train.batch(np.arange(ctx.train.samples))
    ours = execute.observe(a, feeds, [pair.student for pair in pairs])
    others = execute.observe(b, feeds, [pair.teacher for pair in pairs])
    total = 0.0
    for pair in pairs:
        x, y = (torch.from_numpy(v) for v in (ours[pair.student], others[pair.teacher]))
        if method == "attention":
            total += _agreement.attention(x, y, pair.axis).item()
        elif method == "relational":
            total += _agreement.relational(x, y).item()
        else:
            total += _agreement.hint(x, y).item()
    return total / len(pairs)


def test_places_can_be_named_by_node_or_value(tmp_path):
    graph, ctx = opened(tmp_path, "plain_cnn")
    convs = [node for node in graph.nodes if node.op_type == "Conv"]
    pairs = [{"student": convs[1].name, "teacher": convs[1].outputs[0].name}]
    options = {"student": {"width": 0.5}, "training": BRIEF}
    student = passes.apply(graph, DistillFeatures(pairs=pairs, **options), ctx)
    assert "1 place learned by method 'hint' at weight 1, named" in notes(ctx)
    assert "by layers that are not part of the result: 1" in notes(ctx)
    assert set(student.initializers) <= set(ctx.source.initializers)
    wrong = [{"student": convs[0].name, "teacher": convs[1].name}]
    with pytest.raises(Unsupported, match="they may differ in one axis at most"):
        passes.apply(ctx.source.clone(), DistillFeatures(pairs=wrong, **options), ctx)
    wrong = [{"student": "nowhere", "teacher": convs[1].name}]
    with pytest.raises(Unsupported, match="no node and no value is called 'nowhere'"):
        passes.apply(ctx.source.clone(), DistillFeatures(pairs=wrong, **options), ctx)


@pytest.mark.parametrize("method", ["hint", "attention"])
def test_the_last_place_of_each_resolution_is_matched(method, tmp_path):
    """Also where a pool follows before the next layer; scores are no place, nor are vectors one of attention."""
    (student, ctx), (teacher, _) = opened(tmp_path, "plain_cnn"), opened(tmp_path)
    sides = [(g, shape_of(g, ctx)) for g in (student, teacher)]
    (a, own), (b, theirs) = sides
    pairs = _pairs.find(a, b, DistillFeatures(method=method), own, theirs)
    found = [(pair.own[1:], pair.theirs[1:]) for pair in pairs]
    maps = [((8, 8, 8), (8, 8, 8)), ((16, 4, 4), (16, 4, 4))]
    assert found == (maps if method == "attention" else [*maps, ((32,), (16,))])


def test_where_inputs_meet_is_a_place(tmp_path):
    graph, ctx = opened(tmp_path, "two_inputs")
    own = shape_of(graph, ctx)
    pairs = _pairs.find(graph, graph, DistillFeatures(), own, own)
    assert [pair.own for pair in pairs] == [(1, 16)]


SIGNAL = """
    net (float[batch, 2, 12] x) => (float[batch, 4] y)
    <float[{c}, 2, 3] v, float[6, {c}, 3] w, float[6, 4] u>
    {{
        [first] a = Conv<pads = [1, 1]>(x, v) b = Relu(a)
        [pool] p = MaxPool<kernel_shape = [2], strides = [2]>(b)
        [second] q = Conv<pads = [1, 1]>(p, w) [end] r = Relu(q)
        m = GlobalAveragePool(r) f = Flatten(m) y = MatMul(f, u)
    }}
"""


def test_channels_of_signals_are_their_second_axis(tmp_path):
    """Not the last, as of tokens: a map of 12 or 6 positions is paired with one of as many."""
    student, teacher = (saved(jobs.text(SIGNAL.format(c=c)), tmp_path) for c in (3, 5))
    ctx = jobs.context_of(teacher, tmp_path, None)
    pairs = _pairs.find(
        student,
        teacher,
        DistillFeatures(method="attention"),
        shape_of(student, ctx),
        shape_of(teacher, ctx),
    )
    found = [(pair.own[1:], pair.theirs[1:], pair.axis) for pair in pairs]
    assert found == [((3, 12), (5, 12), 1), ((6, 6), (6, 6), 1)]


TIME_FIRST = """
    net (float[batch, 5, 3] x) => (float[batch, 4] y)
    <float[1, 24, 3] w, float[1, 24, 6] r, int64[1] one, float[6, 4] u>
    {
        t = Transpose<perm = [1, 0, 2]>(x)
        s, h = LSTM<hidden_size = 6>(t, w, r)
        q = ReduceMean<axes = [0, 1], keepdims = 0>(s) y = MatMul(q, u)
    }
"""


def test_what_has_samples_on_another_axis_is_not_matched(tmp_path):
    graph = saved(jobs.text(TIME_FIRST), tmp_path)
    own = shape_of(graph, None)
    pairs = _pairs.find(graph, graph, DistillFeatures(method="relational"), own, own)
    assert [pair.own for pair in pairs] == [(1, 6)]


def test_agreement_is_perfect_where_values_are_equal_and_else_is_not():
    x, y = torch.randn(2, 12, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    for loss in (
        _agreement.hint,
        lambda a, b: _agreement.attention(a, b, 1),
        _agreement.relational,
    ):
        assert loss(x, x).item() == pytest.approx(0, abs=1e-10)
        assert loss(x, y).item() > 1e-3


def test_attention_and_relations_ignore_the_size_of_values():
    x, y = torch.randn(2, 12, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    for loss in (lambda a: _agreement.attention(a, y, 1), lambda a: _agreement.relational(a, y)):
        assert loss(3 * x).item() == pytest.approx(loss(x).item(), rel=1e-4)
        assert torch.isfinite(loss(x[:, :2]))


def test_relations_equal_the_papers_formulas():
    """Equations 8, 9, 11 and 12 of arXiv 1904.05068, pair by pair."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 4))

    def distances(z):
        found = np.array([[np.linalg.norm(a - b) for b in z] for a in z])
        return found / found[found > 0].mean()

    def angles(z):
        def unit(a, b):
            size = np.linalg.norm(a - b)
            return (a - b) / size if size else np.zeros_like(a)

        return np.array([[[unit(i, j) @ unit(k, j) for k in z] for i in z] for j in z])

    def huber(a, b):
        d = np.abs(a - b)
        return np.where(d <= 1, 0.5 * d**2, d - 0.5).mean()

    wanted = huber(distances(x), distances(y)) + 2 * huber(angles(x), angles(y))
    ours = _agreement.relational(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert ours == pytest.approx(wanted, abs=1e-5)


def test_prune_then_distil_is_a_job(tmp_path):
    model = nets.NETS["plain_cnn"](0)
    steps = [
        {
            "kind": "prune.channels",
            "fraction": 0.5,
            "fine_tune": BRIEF,
            "recover": {"distill": {"temperature": 2}},
        },
        {"kind": "distill.logits", "training": BRIEF, "augment": {"shift": 1}},
        {"kind": "distill.features", "method": "attention", "training": BRIEF},
    ]
    train = jobs.arrays_of(model, 60, labels=False)
    report = pipeline.compress(jobs.make(tmp_path / "job", model, steps, train=train))
    assert [stage.name for stage in report.stages[1:]] == [step["kind"] for step in steps]
    assert report.stages[-1].size.parameters < 0.6 * report.stages[0].size.parameters
