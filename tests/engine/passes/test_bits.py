"""quantize.bits: grids, GPTQ and AWQ against direct computations, the forms in a file, bits by sensitivity."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from modelpress.spec.quantize import QuantizeBits
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import BadModel, NothingChanged, Unsupported
from workers.engine.graph import execute, match, ops
from workers.engine.measure import size
from workers.engine.passes import _knapsack, _matrix, _moments
from workers.engine.passes._matrix import Matrix
from workers.engine.passes.quantize import _nbits


def quantize(name_or_model, tmp_path, *, train=True, **options):
    """The step on a net; answers the model, the result as its file gives it back, and the context."""
    if isinstance(name_or_model, str):
        model, graph = jobs.load(name_or_model, tmp_path)
    else:
        model = name_or_model
        onnx.save(model, tmp_path / "net.onnx")
        graph = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(graph.clone(), tmp_path, jobs.dataset_of(model) if train else None)
    result = passes.apply(graph, QuantizeBits(**options), ctx)
    formats.save(result, tmp_path / "bits.onnx")
    return model, formats.load(tmp_path / "bits.onnx"), ctx


def off(graph, path, model) -> float:
    """How far ONNX Runtime is from the executor, of the largest output."""
    feeds = nets.feeds(model, 6, seed=3)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    theirs = onnxruntime.InferenceSession(path, options).run(None, feeds)[0]
    (ours,) = execute.run(graph, feeds).values()
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


CONVOLUTIONS = [
    "Conv<pads = [1, 2, 0, 1], strides = [2, 1]>(x, w)",
    "Conv<dilations = [2, 1]>(x, w)",
    'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
    "Conv<group = 2>(x, v)",
    "Conv<group = 4>(x, u)",
]


@pytest.mark.parametrize("text", CONVOLUTIONS)
def test_rows_times_patches_are_the_convolution(text, tmp_path):
    model = jobs.text(f"""
        net (float[batch, 4, 7, 8] x) => (float[batch, a, b, c] y)
        <float[6, 4, 3, 2] w, float[6, 2, 3, 2] v, float[8, 1, 3, 2] u> {{ y = {text} }}
    """)
    onnx.save(model, tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    (layer,) = match.layers(graph)
    matrix = Matrix.of(graph, layer)
    x = torch.from_numpy(nets.feeds(model, 3)["x"])
    weight = graph.weight(layer.weight)
    rows = torch.from_numpy(matrix.to_rows(weight).copy()).reshape(
        matrix.groups, -1, matrix.columns
    )
    patches = _matrix.inputs(layer, x, weight.shape)
    attributes = {name: a.value for name, a in layer.node.attributes.items()}
    wanted = ops.TABLE["Conv"].compute(x, torch.from_numpy(weight.copy()), **attributes)
    found = (rows @ patches.mT).reshape(matrix.rows, 3, -1).permute(1, 0, 2)
    torch.testing.assert_close(found, wanted.flatten(2))
    assert np.array_equal(matrix.from_rows(matrix.to_rows(weight)), weight)


@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("text", ["MatMul(x, w)", "Gemm(x, w)", "Gemm<transA = 1>(t, w)"])
def test_rows_times_inputs_are_the_product(text, batch, tmp_path):
    """Also where a Gemm transposes its input, and where that is square."""
    onnx.save(turned(text), tmp_path / "net.onnx")
    graph = formats.load(tmp_path / "net.onnx")
    (layer,) = match.layers(graph)
    matrix, weight = Matrix.of(graph, layer), graph.weight(layer.weight)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(batch, 8)).astype(np.float32))
    given = x.T if "transA" in text else x
    seen = _matrix.inputs(layer, given, weight.shape)
    rows = torch.from_numpy(matrix.to_rows(weight).copy())
    torch.testing.assert_close(seen[0] @ rows.T, x @ torch.from_numpy(weight.copy()))


@pytest.mark.parametrize("bias_correction", [False, True])
def test_gptq_of_a_transposed_input_is_that_of_the_plain_one(bias_correction, tmp_path):
    """Also with 8 samples in the last batch of 40, as many as there are inputs."""
    found = []
    for text in ("Gemm(x, w, b)", "Gemm<transA = 1>(t, w, b)"):
        options = {"method": "gptq", "bits": 3, "bias_correction": bias_correction}
        _, again, ctx = quantize(turned(text), tmp_path, group_size=None, samples=40, **options)
        found.append(execute.run(again, ctx.train.batch(np.arange(48)))["y"])
    np.testing.assert_allclose(*found, atol=1e-5)


def turned(text):
    """A product of x [batch, 8], or of t, which is x transposed, and w."""
    return jobs.text(f"""
        net (float[batch, 8] x) => (float[batch, 64] y) <float[8, 64] w, float[64] b>
        {{ t = Transpose<perm = [1, 0]>(x) y = {text} }}
    """)


def test_networks_that_run_in_turn_leave_gradients_as_they_were(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    dataset = jobs.dataset_of(model, 8)
    ctx = jobs.context_of(graph, tmp_path, dataset)
    first, second = (_moments.run(graph, dataset, ["logits"], ctx) for _ in range(2))
    next(first), next(second)
    assert torch.is_grad_enabled()
    first.close(), second.close()
    assert torch.is_grad_enabled()


def test_moments_are_those_of_what_the_layer_multiplies(tmp_path):
    model, graph = jobs.load("matmul_mlp", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    layer = match.layers(graph)[0]
    found = _moments.gather(graph, [layer], {layer.weight: Matrix.of(graph, layer)}, 48, ctx)
    x = ctx.train.batch(np.arange(48))["x"] - graph.weight("offset_1")
    wanted = torch.from_numpy(x.T.astype(np.float64) @ x)
    torch.testing.assert_close(found[layer.weight].h[0], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found[layer.weight].size[0],
        torch.from_numpy(np.abs(x).mean(0)).double(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_convolutions_look_at_no_more_places_than_they_need(tmp_path, monkeypatch):
    monkeypatch.setattr(_moments, "MAX_PLACES", 96)
    model, graph = jobs.load("plain_cnn", tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    layer = match.layers(graph)[0]
    found = _moments.gather(graph, [layer], {layer.weight: Matrix.of(graph, layer)}, 48, ctx)
    assert found[layer.weight].places == 96


FORMS = [
    {"unpack": "load", "bits": bits, "symmetric": symmetric, "group_size": group}
    for bits, symmetric, group in [
        (2, True, None),
        (3, True, 16),
        (4, False, 24),
        (6, False, None),
        (8, True, 32),
    ]
] + [
    {"unpack": "run", "bits": bits, "symmetric": symmetric, "group_size": group, **more}
    for bits, symmetric, group, more in [
        (2, True, None, {}),
        (3, True, 16, {}),
        (4, False, 32, {}),
        (4, True, 16, {"activations": "int8"}),
        (8, False, None, {"activations": "int8"}),
    ]
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_file_is_read_back_and_runs_as_onnx_runtime_runs_it(options, tmp_path):
    for net in ("plain_cnn", "depthwise_cnn", "vision_transformer"):
        model, again, _ctx = quantize(net, tmp_path, train=False, **options)
        tolerance = 2e-2 if options.get("activations") == "int8" else 1e-5
        assert off(again, tmp_path / "bits.onnx", model) < tolerance
        kinds = {node.op_type for node in again.nodes}
        taken = options["group_size"] in (None, *_nbits.BLOCKS)
        assert ("MatMulNBits" in kinds) == (options["unpack"] == "run" and taken)
        assert ("DequantizeLinear" in kinds) == (options["unpack"] == "run")


def test_inputs_in_int8_are_rounded_by_the_executor_as_onnx_runtime_does(tmp_path):
    model, again, _ = quantize(
        "mlp", tmp_path, train=False, unpack="run", group_size=16, activations="int8"
    )
    assert off(again, tmp_path / "bits.onnx", model) < 1e-5
    in_float = again.clone()
    for node in in_float.nodes:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = onnx_int("accuracy_level", 1)
    assert off(in_float, tmp_path / "bits.onnx", model) > 1e-4


def onnx_int(name, value):
    return execute.ir.AttrInt64(name, value)


def test_codes_of_two_bits_behind_dequantize_linear_raise_the_opset(tmp_path):
    _, again, _ = quantize("plain_cnn", tmp_path, train=False, unpack="run", bits=2)
    assert again.opset == 25
    _, again, _ = quantize("plain_cnn", tmp_path, train=False, bits=2)
    assert again.opset == 21


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"group_size": None}, 4),
        ({"group_size": None, "bits": 2}, 2),
        ({"unpack": "run", "group_size": 16}, 4),
        ({"unpack": "run", "group_size": 16, "symmetric": False}, 4),
    ],
)
def test_the_size_counts_weights_and_not_bytes(options, bits, tmp_path):
    _model, again, ctx = quantize("mlp", tmp_path, train=False, **options)
    weights = 64 * 48 + 48 * 32 + 32 * 10
    measured = list(size._weights(again))
    codes = [w for w in measured if w.bits == bits]
    assert sum(w.symbols.size for w in codes) == weights
    assert all(w.nonzeros <= w.symbols.size for w in codes)
    told = sum(
        int(t.change.split(" bytes (")[1].split(" codes")[0].replace(",", ""))
        for t in ctx.coverage.touched
    )
    assert told == weights * bits // 8


def test_every_byte_of_scales_is_told(tmp_path):
    _, _, ctx = quantize("mlp", tmp_path, train=False, group_size=32)
    first = ctx.coverage.touched[0].change
    assert "3,072 weights in 4 bits, a scale for each 32 inputs; 12,288 -> 1,728 bytes" in first
    assert "(1,536 codes, 192 scales), x7.11" in first


def test_equal_groups_are_no_larger_than_asked_for(tmp_path):
    _, _, ctx = quantize("plain_cnn", tmp_path, train=False, group_size=32)
    assert any("a scale for each 24 inputs" in t.change for t in ctx.coverage.touched)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_with_data_move_the_outputs_less(method, tmp_path):
    def moved(**options):
        model, again, _ = quantize("residual_cnn", tmp_path, bits=3, group_size=None, **options)
        feeds = jobs.dataset_of(model).batch(np.arange(48))
        before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
        return np.linalg.norm(execute.run(again, feeds)["logits"] - before)

    assert moved(method=method) < moved(method="rtn", range="minmax")


def test_sequential_rounds_each_layer_by_the_inputs_that_rounded_layers_give(tmp_path, monkeypatch):
    gathered = []
    original = _moments.gather

    def gather(graph, layers, *rest, beside):
        gathered.append(
            (len(layers), {name: graph.weight(name).copy() for name in graph.parameters()})
        )
        assert (beside is None) == (len(layers) > 1)
        return original(graph, layers, *rest, beside=beside)

    monkeypatch.setattr(_moments, "gather", gather)
    quantize("mlp", tmp_path, method="gptq", sequential=True, bits=2)
    assert [layers for layers, _ in gathered] == [1, 1, 1]
    first = next(name for name in gathered[0][1] if name.startswith("weight"))
    assert not np.array_equal(gathered[0][1][first], gathered[1][1][first])
    gathered.clear()
    quantize("mlp", tmp_path, method="gptq", bits=2)
    assert [layers for layers, _ in gathered] == [3]


def test_what_data_can_not_help_is_rounded_to_nearest_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(_moments, "MAX_COLUMNS", 50)
    _, _, ctx = quantize("mlp", tmp_path, method="gptq")
    assert sum("was rounded to nearest" in note for note in ctx.coverage.notes) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_knapsack_keeps_its_budget_and_is_near_the_best(seed, share):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 1000, 5)
    cost = {f"l{i}": {b: float(b * n) for b in (2, 4, 8)} for i, n in enumerate(sizes)}
    harm = {
        name: {b: float(rng.uniform(0.5, 2) * 4.0**-b) for b in of} for name, of in cost.items()
    }
    budget = 2 * sizes.sum() + share * 6 * sizes.sum()
    found = _knapsack.least_harm(harm, cost, budget)
    assert sum(cost[n][b] for n, b in found.items()) <= budget + 1e-6
    fits = (
        sum(harm[n][b] for n, b in zip(cost, bits, strict=True))
        for bits in itertools.product((2, 4, 8), repeat=5)
        if sum(cost[n][b] for n, b in zip(cost, bits, strict=True)) <= budget * 0.999
    )
    best = min(fits, default=float("inf"))
    assert sum(harm[n][b] for n, b in found.items()) <= best + 1e-12
    assert _knapsack.least_harm(harm, cost, 2 * sizes.sum() - 1) is None


def test_mixed_bits_keep_the_average_and_spare_the_layers_that_matter(tmp_path):
    _, _again, ctx = quantize("residual_cnn", tmp_path, mixed={"average_bits": 5}, group_size=None)
    told = next(note for note in ctx.coverage.notes if "bits for each weight" in note)
    assert float(told.split(": ")[1].split(" bits")[0]) <= 5
    widths = {t.change.split(" bits")[0].split()[-1] for t in ctx.coverage.touched}
    assert len(widths) > 1
    curves = ctx.coverage.curves
    assert len(curves) == len(ctx.coverage.touched)
    assert all(c.points[0].mean > c.points[-1].mean for c in curves)


def test_bits_are_chosen_by_outputs_of_floats_for_each_sample_alone(tmp_path):
    """A class is no distance, and a sum over the batch is not for a sample."""
    harms = []
    for more in (False, True):
        beside = """
            top = ArgMax<axis = 1, keepdims = 0>(y)
            whole = ReduceSum<keepdims = 0>(y)
        """
        model = onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 20]>
            net (float[N, 16] x) => (float[N, 4] y{", int64[N] top, float whole" if more else ""})
            {{ h = MatMul(x, a)  y = MatMul(h, b) {beside if more else ""} }}
        """)
        rng = np.random.default_rng(0)
        for name, shape in {"a": (16, 16), "b": (16, 4)}.items():
            weight = rng.normal(size=shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        _, _, ctx = quantize(model, tmp_path, mixed={"average_bits": 6})
        harms.append([point.mean for curve in ctx.coverage.curves for point in curve.points])
    assert harms[0] == harms[1]


def test_an_average_that_no_choice_reaches_is_refused_with_the_least_there_is(tmp_path):
    with pytest.raises(Unsupported, match=r"average_bits 2 can't be reached.*2\.\d\d bits each"):
        quantize("mlp", tmp_path, mixed={"average_bits": 2})


def test_an_accuracy_target_takes_the_fewest_bits_that_keep_it(tmp_path):
    _, _, strict = quantize("mlp", tmp_path, mixed={"max_accuracy_drop": 0.0})
    _, _, loose = quantize("mlp", tmp_path, mixed={"max_accuracy_drop": 0.9})

    def bits(ctx):
        note = next(n for n in ctx.coverage.notes if "bits for each weight" in n)
        return float(note.split(": ")[1].split(" bits")[0])

    assert bits(loose) < bits(strict)
    assert bits(loose) < 3
    assert any("training samples was" in note for note in strict.coverage.notes)


def test_excluded_layers_and_tables_stay_in_float(tmp_path):
    _, graph = jobs.load("text_transformer", tmp_path)
    kept = next(name for name in graph.parameters() if name.startswith("weight"))
    _, again, ctx = quantize("text_transformer", tmp_path, train=False, exclude=(kept,))
    reasons = {s.layer: s.reason for s in ctx.coverage.skipped}
    assert reasons[kept] == "excluded by the recipe"
    assert "looked up" in reasons["embedding_1"]
    assert again.weight(kept).dtype == np.float32


def test_excluding_everything_is_refused(tmp_path):
    with pytest.raises(NothingChanged, match="excluded by the recipe"):
        quantize("mlp", tmp_path, train=False, exclude=("*",))


def test_a_layer_that_gets_no_smaller_is_left_alone(tmp_path):
    model = jobs.text(
        "net (float[batch, 1, 4, 4] x) => (float[batch, 3, 4, 4] y) <float[3, 1, 1, 1] w> { y = Conv(x, w) }"
    )
    with pytest.raises(NothingChanged, match="take fewer bytes"):
        quantize(model, tmp_path, train=False, bits=8, symmetric=False, scales="float32")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    model = jobs.text(
        "net (float[batch, 8] x) => (float[batch, 8] y) <float[8, 8] w> { y = MatMul(x, w) }"
    )
    w = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    w[0, 0] = np.inf
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w, "w"))
    with pytest.raises(BadModel, match="weight 'w' has values that are not finite"):
        quantize(model, tmp_path, train=False)


@pytest.mark.parametrize("unpack", ["load", "run"])
def test_a_weight_shared_by_two_layers_is_stored_once(unpack, tmp_path):
    model = jobs.text("""
        net (float[batch, 32] x) => (float[batch, 32] y) <float[32, 32] w>
        { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }
    """)
    model, again, _ = quantize(model, tmp_path, method="gptq", unpack=unpack)
    large = [n for n, v in again.initializers.items() if v.const_value.size >= 512]
    assert len(large) == 1
    assert off(again, tmp_path / "bits.onnx", model) < 1e-5


@pytest.mark.parametrize("unpack", ["load", "run"])
@pytest.mark.parametrize(
    "layer",
    [
        "Gemm<alpha = 0.5, beta = 2.0>(x, w, b)",
        "Gemm<transB = 1>(x, w, b)",
        "Gemm<transA = 1>(x, w, b)",
    ],
)
def test_every_form_of_gemm(layer, unpack, tmp_path):
    model = jobs.text(
        f"net (float[32, 32] x) => (float[32, 32] y) <float[32, 32] w, float[32] b> {{ y = {layer} }}"
    )
    model, again, _ = quantize(model, tmp_path, train=False, unpack=unpack, symmetric=False)
    assert off(again, tmp_path / "bits.onnx", model) < 1e-5
    assert [value.name for value in again.outputs] == ["y"]
