"""quantize.cluster: weights share the values of k-means, in a table; training moves the table."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.quantize import QuantizeCluster
from tests.engine import jobs, nets
from workers.engine import formats
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import Graph, execute, match, verify
from workers.engine.measure import parts, size
from workers.engine.passes.prune import magnitude
from workers.engine.passes.quantize import _kmeans, cluster

BITS = 3


def clustered(
    tmp_path: Path, net: str = "mlp", *, sparsity: float = 0.0, **options
) -> tuple[Graph, Graph, jobs.Context]:
    """A net before and after, and what was reported."""
    model, graph = jobs.load(net, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    before = graph.clone()
    if sparsity:
        step = PruneMagnitude(sparsity=sparsity, scope="layer")
        before = magnitude.apply(before, step, jobs.context_of(graph, tmp_path, None))
    after = cluster.apply(before.clone(), QuantizeCluster(**{"bits": BITS, **options}), ctx)
    verify.verify(after)
    return before, after, ctx


def weights(graph: Graph) -> list[np.ndarray]:
    """What the layers multiply by, in order, looked up where it is coded."""
    return operands(graph, 1)


def biases(graph: Graph) -> list[np.ndarray]:
    """What they add."""
    return operands(graph, 2)


def operands(graph: Graph, slot: int) -> list[np.ndarray]:
    nodes = [node for node in graph.nodes if node.op_type in match.KINDS]
    names = [node.inputs[slot].name or "" for node in nodes]
    module = execute.as_module(graph).eval()
    feeds = [torch.zeros(1, *(int(d) for d in v.shape[1:])) for v in graph.inputs]
    with torch.no_grad():
        found = module.values(feeds, names)
    return [found[name].detach().numpy() for name in names]


def test_a_layer_has_at_most_as_many_values_as_its_bits_allow(tmp_path):
    _, after, _ = clustered(tmp_path)
    assert [np.unique(w).size for w in weights(after)] == [2**BITS] * 3


def test_bits_of_convolutions_and_of_chosen_layers_are_their_own(tmp_path):
    _, after, _ = clustered(
        tmp_path, "plain_cnn", bits=2, conv_bits=3, overrides=[{"layers": "Gemm_22", "bits": 1}]
    )
    assert [np.unique(w).size for w in weights(after)] == [8, 8, 2, 4]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_stay_zero_and_nothing_else_becomes_zero(tmp_path, scope):
    before, after, _ = clustered(tmp_path, sparsity=0.7, scope=scope)
    for was, now in zip(weights(before), weights(after), strict=True):
        assert np.array_equal(was == 0, now == 0)


def test_zeros_stay_zero_while_the_other_values_are_trained(tmp_path):
    plain = clustered(tmp_path, sparsity=0.7)[1]
    tuning = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "weight_decay": 0.1}
    before, after, ctx = clustered(tmp_path, sparsity=0.7, fine_tune=tuning)
    for was, untrained, now in zip(*map(weights, (before, plain, after)), strict=True):
        assert np.array_equal(was == 0, now == 0)
        assert not np.array_equal(untrained, now)
        assert np.unique(now).size <= 2**BITS
    assert any("shared values were trained" in note for note in ctx.coverage.notes)


def test_a_shared_value_gets_the_sum_of_the_gradients_of_its_weights(tmp_path):
    """Han et al. 2016, eq. 3, against autograd on the weights themselves."""
    model, _ = jobs.load("mlp", tmp_path)
    _, after, _ = clustered(tmp_path)
    feeds = [torch.from_numpy(x) for x in nets.feeds(model, 8).values()]
    module = execute.as_module(after)
    gemms = [node for node in after.nodes if node.op_type == "Gemm"]
    names = [node.inputs[1].name or "" for node in gemms]
    dense = {n: v.detach().requires_grad_() for n, v in module.values(feeds, names).items()}
    module(*feeds)[0].square().sum().backward()
    plain = after.clone()
    for node, name in zip((n for n in plain.nodes if n.op_type == "Gemm"), names, strict=True):
        node.replace_input_with(1, plain.add_weight(f"{name}_dense", dense[name].detach().numpy()))
    reference = execute.as_module(plain)
    reference(*feeds)[0].square().sum().backward()
    for name in names:
        original = name.removesuffix("_lookup_output")
        gradient = reference.weights[f"{name}_dense"].grad
        code = after.initializers[f"{original}_codes"].const_value.numpy()
        digits = decoded(after, original, code, gradient.shape)
        table = module.weights[f"{original}_table"].grad
        sums = [gradient[torch.from_numpy(digits == i)].sum() for i in range(len(table))]
        assert torch.allclose(table, torch.stack(sums), rtol=1e-4, atol=1e-4)


def decoded(graph: Graph, name: str, code: np.ndarray, shape) -> np.ndarray:
    assert code.dtype.name == "uint4"
    return code.astype(np.int64).reshape(shape)


def test_biases_share_values_where_asked_and_are_trained_with_them(tmp_path):
    training = {"epochs": 2, "batch_size": 16}
    before, after, ctx = clustered(tmp_path, bias_bits=2, fine_tune=training)
    assert [np.unique(b).size for b in biases(before)[:2]] > [4, 4]
    assert [np.unique(b).size for b in biases(after)[:2]] == [4, 4]
    touched = {t.layer for t in ctx.coverage.touched}
    assert {n.inputs[2].name for n in before.nodes if n.op_type == "Gemm"} <= touched
    kept = clustered(tmp_path, fine_tune=training)[1]
    assert [np.unique(b).size for b in biases(kept)] == [np.unique(b).size for b in biases(before)]


def test_codes_of_biases_count_as_biases(tmp_path):
    before, after, _ = clustered(tmp_path, bias_bits=4)
    formats.save(after, path := tmp_path / "saved.onnx")
    found = parts.measure(after, path.stat().st_size)
    *coded, last = biases(before)  # the last would grow
    assert found.biases_bytes == sum(b.size // 2 for b in coded) + last.nbytes


def test_a_bias_that_is_not_finite_is_refused(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    name = next(n.inputs[2].name for n in graph.nodes if n.op_type == "Gemm")
    graph.set_weight(name, np.full_like(graph.weight(name), np.nan))
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    with pytest.raises(BadModel, match=f"'{name}' has values that are not finite"):
        cluster.apply(graph, QuantizeCluster(bias_bits=4), ctx)


def test_one_table_for_all_layers_is_stored_once(tmp_path):
    _, after, ctx = clustered(tmp_path, scope="global")
    tables = [name for name in after.initializers if name.endswith("_table")]
    assert len(tables) == 1
    assert np.unique(np.concatenate([w.reshape(-1) for w in weights(after)])).size == 2**BITS
    assert all("shared by 3 layers" in touched.change for touched in ctx.coverage.touched)


@pytest.mark.parametrize(("bits", "share"), [(1, 1 / 32), (2, 1 / 16), (4, 1 / 8), (8, 1 / 4)])
def test_the_file_has_as_few_bits_as_standard_operators_read(tmp_path, bits, share):
    before, after, _ = clustered(tmp_path, bits=bits)
    path = tmp_path / "after.onnx"
    formats.save(after, path)
    stored = sum(
        t.const_value.nbytes for n, t in after.initializers.items() if n.endswith("_codes")
    )
    floats = sum(before.weight(layer.weight).nbytes for layer in match.layers(before)[:stored])
    assert stored == pytest.approx(
        share * floats, rel=0.11
    )  # a layer of 320 weights stays at 8 bits


def test_the_exported_file_computes_what_the_executor_computes_bit_by_bit_in_its_weights(tmp_path):
    """ONNX Runtime writes the looked-up weights out: they are those of the executor."""
    _, after, _ = clustered(tmp_path)
    path, written = tmp_path / "after.onnx", tmp_path / "written.onnx"
    formats.save(after, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(written)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    optimized = onnx.load(written)
    assert "Gather" not in {node.op_type for node in optimized.graph.node}
    floats = [onnx.numpy_helper.to_array(w) for w in optimized.graph.initializer]
    for weight in weights(after):
        assert any(f.shape == weight.shape and np.array_equal(f, weight) for f in floats)


def test_a_loaded_result_is_clustered_already(tmp_path):
    """Nothing is left to share: the weights are codes, which no later step can change."""
    _, after, _ = clustered(tmp_path)
    formats.save(after, tmp_path / "after.onnx")
    again = formats.load(tmp_path / "after.onnx")
    ctx = jobs.context_of(again, tmp_path, None)
    with pytest.raises(NothingChanged, match="no weight of a convolution or matrix product"):
        cluster.apply(again, QuantizeCluster(), ctx)
    assert not QuantizeCluster.leaves_trainable


def test_few_distinct_values_are_kept_as_they_are(tmp_path):
    _, graph = jobs.load("mlp", tmp_path)
    wanted = [np.sign(graph.weight(layer.weight)) * 0.5 for layer in match.layers(graph)]
    for layer, weight in zip(match.layers(graph), wanted, strict=True):
        graph.set_weight(layer.weight, weight)
    after = cluster.apply(graph, QuantizeCluster(), jobs.context_of(graph, tmp_path, None))
    assert all(np.array_equal(w, now) for w, now in zip(wanted, weights(after), strict=True))


def test_layers_that_would_grow_are_left_alone_with_the_reason(tmp_path):
    _, _, ctx = clustered(tmp_path, "plain_cnn", conv_bits=8)
    (small,) = [s for s in ctx.coverage.skipped if "bytes" in s.reason]
    assert small.reason == "a table of 72 values and codes take 360 bytes, the weights 288"


def test_nothing_to_share_is_an_error(tmp_path):
    with pytest.raises(NothingChanged, match="override 'nothing' matches no layer"):
        clustered(tmp_path, overrides=[{"layers": "nothing", "bits": 2}])
    with pytest.raises(NothingChanged, match="no weight of a convolution or matrix product"):
        clustered(tmp_path, exclude=["*"])


def test_size_knows_codes_as_weights_and_zero_among_them(tmp_path):
    before, after, _ = clustered(tmp_path, sparsity=0.7)
    path = tmp_path / "after.onnx"
    formats.save(after, path)
    got = size.measure(path, after)
    tables = sum(t.const_value.size for n, t in after.initializers.items() if "_table" in n)
    assert got.parameters == sum(a.size for a in before.parameters().values()) + tables
    kept = sum(np.count_nonzero(a) for a in before.parameters().values())
    assert got.nonzero_parameters == kept + tables - 3  # a zero in each of three tables
    assert got.entropy_bytes < got.file_bytes


LINES = st.lists(st.floats(-10, 10, allow_nan=False, width=16), min_size=1, max_size=60).map(
    np.array
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(LINES, st.integers(1, 9), st.sampled_from(["linear", "density", "random"]))
def test_no_iteration_raises_the_cost(values, count, initialization):
    line, rng = _kmeans.Line.of(values), np.random.default_rng(0)
    if np.unique(values).size <= count:
        assert _kmeans.fit(line, count, initialization, rng).tolist() == sorted(set(values))
        return
    centroids = _kmeans.begin(line, count, initialization, rng)
    costs = [direct(values, centroids)]
    for _ in range(20):
        centroids = _kmeans.step(line, centroids)
        costs.append(direct(values, centroids))
        assert line.cost(centroids) == pytest.approx(costs[-1], abs=1e-6)
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))
    found = _kmeans.fit(line, count, initialization, rng)
    assert found.size <= count
    assert np.all(np.diff(found) >= 0)


def direct(values: np.ndarray, centroids: np.ndarray) -> float:
    return float(((values[:, None] - centroids) ** 2).min(axis=1).sum())


def optimum(values: np.ndarray, count: int) -> float:
    """The least cost of all ways to cut sorted values into `count` runs, by dynamic programming."""
    x = np.sort(values)
    n = x.size
    sums, squares = (np.concatenate([[0], np.cumsum(a)]) for a in (x, x * x))
    start, end = np.arange(n + 1)[:, None], np.arange(n + 1)[None]
    length = np.maximum(end - start, 1)
    run = squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / length
    run = np.where(end > start, run, np.where(end == start, 0.0, np.inf))
    best = run[0]
    for _ in range(count - 1):
        best = (best[:, None] + run).min(axis=0)
    return float(best[n])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("initialization", "at_most"), [("linear", 1.1), ("density", 1.1), ("optimal", 1.0)]
)
def test_k_means_is_near_the_optimum_on_a_line(seed, initialization, at_most):
    values = np.random.default_rng(seed).normal(size=500)
    line = _kmeans.Line.of(values)
    found = _kmeans.fit(line, 8, initialization, np.random.default_rng(seed))
    assert line.cost(found) <= at_most * optimum(values, 8) + 1e-9


def test_more_values_than_cuts_are_near_their_optimum_too():
    """Panter and Dite 1951: the least error of k values for a normal density tends to sqrt(3) pi / 2 / k^2."""
    values = np.random.default_rng(0).normal(size=100_000)
    line = _kmeans.Line.of(values)
    found = _kmeans.fit(line, 64, "optimal", np.random.default_rng(0))
    assert line.cost(found) / values.size == pytest.approx(np.sqrt(3) * np.pi / 2 / 64**2, rel=0.05)
