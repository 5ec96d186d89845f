"""Learned step sizes, and networks trained with simulated integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.quantize import QuantizeInt8, QuantizeQat
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.data import dataset
from workers.engine.errors import Unsupported
from workers.engine.graph import execute
from workers.engine.passes.quantize import qat
from workers.engine.passes.quantize._steps import StepSize


def step_size(scale, low, high, **options):
    given = {"axis": None, "of_samples": False, "relative": False, **options}
    return StepSize(np.asarray(scale, np.float32), low, high, **given)


def test_gradients_of_a_step_are_those_of_the_paper():
    """Equation 3 inside, at both ends, and 2.2: divided by sqrt(n * high)."""
    step = step_size(0.5, -4, 3)
    x = torch.tensor([0.6, -0.1, 9.0, -9.0], requires_grad=True)
    step(x).sum().backward()
    inside = (1 - 1.2) + (0 + 0.2)
    assert float(step.factor.grad) == pytest.approx((inside + 3 - 4) / np.sqrt(4 * 3), abs=1e-6)
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_a_network_that_answers_class_numbers_alone_is_refused(tmp_path):
    model = jobs.text("""
        net (float[batch, 8] x) => (int64[batch] y) <float[8, 8] w, float[8, 4] v>
        { h = MatMul(x, w) g = Relu(h) z = MatMul(g, v) y = ArgMax<axis = 1, keepdims = 0>(z) }
    """)
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model))
    with pytest.raises(Unsupported, match="holds floats, they are int64"):
        passes.apply(graph, QuantizeQat(samples=24), ctx)


def test_a_channel_of_a_weight_counts_its_own_weights_and_an_activation_one_sample():
    w, x = torch.full((2, 10), 0.7), torch.full((5, 8), 0.7)
    by_channel = step_size([0.5, 0.5], -4, 4, axis=0)
    by_channel(w).sum().backward()
    off = 1 - 1.4
    assert by_channel.factor.grad.tolist() == pytest.approx([10 * off / np.sqrt(10 * 4)] * 2)
    of_samples = step_size(0.5, 0, 7, of_samples=True)
    of_samples(x).sum().backward()
    assert float(of_samples.factor.grad) == pytest.approx(40 * off / np.sqrt(8 * 7))


def test_values_are_rounded_as_quantize_linear_rounds_them():
    x = torch.linspace(-3, 3, 1001)
    rounded = step_size(0.02, -100, 155)(x)
    wanted = np.clip(np.rint(x.numpy() / np.float32(0.02)), -100, 155) * np.float32(0.02)
    assert (rounded.detach().numpy() == wanted).all()


def test_a_relative_step_moves_by_a_part_of_itself():
    step = step_size([1e-3, 10.0], -4, 4, axis=0, relative=True)
    optimizer = torch.optim.Adam(step.parameters(), lr=0.01)
    step(torch.full((2, 3), 100.0)).sum().backward()
    optimizer.step()
    assert step.learned() == pytest.approx([0.99e-3, 9.9], rel=1e-4)


def trained(name, tmp_path, *, labels=True, graph=None, **options):
    model, loaded = jobs.load(name, tmp_path)
    ctx = jobs.context_of(loaded, tmp_path, jobs.dataset_of(model, labels=labels))
    options = {"training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}, **options}
    result = passes.apply((graph or loaded).clone(), QuantizeQat(samples=32, **options), ctx)
    formats.save(result, tmp_path / "qat.onnx")
    return model, result, ctx


@pytest.mark.parametrize("name", ["depthwise_cnn", "vision_transformer"])
def test_the_file_computes_what_was_trained(name, tmp_path, monkeypatch):
    kept = []
    original = qat.Simulated
    monkeypatch.setattr(
        qat, "Simulated", lambda *a, **k: (kept.append(original(*a, **k)), kept[-1])[1]
    )
    model, _, _ = trained(name, tmp_path)
    feeds = nets.feeds(model, 64, seed=5)
    with torch.no_grad():
        simulated = kept[0](*(torch.from_numpy(array) for array in feeds.values()))[0].numpy()
    session = onnxruntime.InferenceSession(tmp_path / "qat.onnx")
    exported = session.run(None, feeds)[0]
    off = np.abs(exported - simulated) > 1e-4 * np.abs(simulated).max()
    assert off.mean() < 0.05
    assert (exported.argmax(1) == simulated.argmax(1)).all()


def test_the_file_has_the_form_of_quantize_int8(tmp_path):
    _, result, _ = trained("plain_cnn", tmp_path)
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    int8 = passes.apply(graph, QuantizeInt8(samples=32), ctx)
    assert Counter(n.op_type for n in result.nodes) == Counter(n.op_type for n in int8.nodes)
    assert set(result.initializers) == set(int8.initializers)


def teacher_labels(model, samples=192):
    feeds = nets.feeds(model, samples, seed=7)
    scores = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    columns = [(name, dataset.ArrayColumn(array, array.dtype)) for name, array in feeds.items()]
    made = dataset.with_columns(columns, samples)
    return dataset.Dataset(made.columns, made.rows, labels=scores.argmax(axis=1))


def test_training_recovers_what_rounding_lost(tmp_path):
    """Uneven channels behind one step for each matrix: the mobile target without equalisation."""
    model, graph = jobs.load("mlp", tmp_path)
    first, second = [n for n in graph.parameters() if n.startswith("weight")][:2]
    factors = np.ones(48, np.float32)
    factors[::2] = 30
    graph.set_weight(first, graph.weight(first) * factors[:, None])
    bias = next(n for n in graph.parameters() if n.startswith("bias"))
    graph.set_weight(bias, graph.weight(bias) * factors)
    graph.set_weight(second, graph.weight(second) / factors[None, :])
    data = teacher_labels(model, 512)
    ctx = jobs.context_of(graph, tmp_path, data)
    feeds = nets.feeds(model, 512, seed=9)
    wanted = execute.run(graph, feeds)["logits"]

    def error(step):
        result = passes.apply(graph.clone(), step, ctx.for_step(0, ctx.report))
        return np.linalg.norm(execute.run(result, feeds)["logits"] - wanted)

    training = {"epochs": 20, "batch_size": 32, "learning_rate": 1e-3}
    rounded = error(QuantizeInt8(target="mobile"))
    assert error(QuantizeQat(target="mobile", distill=True, training=training)) < 0.85 * rounded


def test_zeros_of_an_earlier_step_stay_zero(tmp_path):
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    pruned = passes.apply(graph, PruneMagnitude(sparsity=0.6), ctx)
    names = [n for n in pruned.parameters() if n.startswith("weight")]
    zeros = {name: pruned.weight(name) == 0 for name in names}
    _, result, ctx = trained("plain_cnn", tmp_path, graph=pruned)
    for name, mask in zeros.items():
        assert (result.weight(f"{name}_int8")[mask] == 0).all()
    assert sum("zeros kept" in t.change for t in ctx.coverage.touched) == len(names)


def test_a_weight_that_is_zero_everywhere_stays_so(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    graph.set_weight("weight_9", np.zeros_like(graph.weight("weight_9")))
    _, result, _ = trained("mlp", tmp_path, graph=graph)
    assert not result.weight("weight_9_int8").any()


def test_without_labels_the_uploaded_model_teaches(tmp_path):
    _, _, ctx = trained("mlp", tmp_path, labels=False)
    assert any("towards the uploaded model's outputs" in note for note in ctx.coverage.notes)
    assert not QuantizeQat().needs_labels
    assert QuantizeQat(distill=False).needs_labels


def test_a_net_that_is_no_classifier_learns_its_own_outputs(tmp_path):
    model, result, ctx = trained("upsampling_cnn", tmp_path)
    assert any("towards the uploaded model's outputs" in note for note in ctx.coverage.notes)
    feeds = nets.feeds(model, 8, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    assert np.abs(execute.run(result, feeds)["logits"] - before).mean() < 0.05


def test_what_was_learned_is_told(tmp_path):
    _, _, ctx = trained("mlp", tmp_path)
    assert all("step sizes became" in t.change for t in ctx.coverage.touched)
    assert any("step sizes of activations were learned" in note for note in ctx.coverage.notes)


def test_a_fixed_batch_is_trained_in_pieces(tmp_path):
    model = nets.NETS["mlp"](0)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    graph = formats.load(tmp_path / "fixed.onnx")
    data = jobs.dataset_of(nets.NETS["mlp"](0))
    ctx = jobs.context_of(graph.clone(), tmp_path, data)
    step = QuantizeQat(samples=16, training={"epochs": 1}, distill=True)
    result = passes.apply(graph, step, ctx)
    assert "QuantizeLinear" in {node.op_type for node in result.nodes}
