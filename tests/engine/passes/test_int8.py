from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from modelpress.spec.quantize import QuantizeInt8
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.errors import BadModel, NothingChanged
from workers.engine.graph import execute
from workers.engine.passes.quantize import _sweep, int8


def quantize(name_or_model, tmp_path, *, train=True, **options):
    if isinstance(name_or_model, str):
        model, graph = jobs.load(name_or_model, tmp_path)
    else:
        model = name_or_model
        onnx.save(model, tmp_path / "net.onnx")
        graph = formats.load(tmp_path / "net.onnx")
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model) if train else None)
    result = passes.apply(graph, QuantizeInt8(**options), ctx)
    formats.save(result, tmp_path / "int8.onnx")
    return model, result, ctx


def fused(tmp_path) -> Counter[str]:
    """Operators of the exported file after ONNX Runtime's own optimization."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    return Counter(node.op_type for node in optimized.graph.node)


KERNELS = {
    "plain_cnn": {"QLinearConv": 2, "QGemm": 2},
    "residual_cnn": {"QLinearConv": 6, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    "depthwise_cnn": {"QLinearConv": 6, "QGemm": 1},
    "grouped_cnn": {"QLinearConv": 3, "QLinearLeakyRelu": 1, "QLinearAveragePool": 1, "QGemm": 1},
    "concat_cnn": {"QLinearConv": 4, "QLinearConcat": 3, "QGemm": 1},
    "mlp": {"QGemm": 3},
    "matmul_mlp": {"QGemm": 2},
    "two_inputs": {"QLinearConv": 1, "QLinearConcat": 1, "QGemm": 2},
    "vision_transformer": {"QLinearConv": 1, "MatMulIntegerToFloat": 12, "QGemm": 1},
    "text_transformer": {"MatMulIntegerToFloat": 6, "QGemm": 1},
}


@pytest.mark.parametrize("name", KERNELS)
def test_onnx_runtime_fuses_every_layer_into_an_integer_kernel(name, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_saturates", lambda: True)
    quantize(name, tmp_path)
    found = fused(tmp_path)
    assert {kernel: found[kernel] for kernel in KERNELS[name]} == KERNELS[name]
    assert not found["Conv"] + found["FusedConv"] + found["Gemm"] + found["FusedGemm"]
    assert not found["Relu"] + found["Clip"]


def test_convolutional_nets_go_to_float_only_at_the_end(tmp_path):
    quantize("residual_cnn", tmp_path)
    assert fused(tmp_path)["QuantizeLinear"] == 1
    assert fused(tmp_path)["DequantizeLinear"] == 0


def test_products_of_activations_are_quantized_where_their_kernels_are_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_saturates", lambda: False)
    _, _, ctx = quantize("vision_transformer", tmp_path)
    products = [t.layer for t in ctx.coverage.touched if t.change == "both activations as codes"]
    assert len(products) == 4
    found = fused(tmp_path)
    assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 16
    assert found["MatMul"] + found["FusedMatMul"] == 0


@pytest.mark.parametrize("name", nets.CLASSIFIERS)
def test_the_exported_file_chooses_the_classes_of_the_simulated_graph(name, tmp_path):
    model, result, _ = quantize(name, tmp_path)
    feeds = nets.feeds(model, 64, seed=5)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    exported = session.run(None, feeds)[0].argmax(axis=1)
    simulated = execute.run(result, feeds)["logits"].argmax(axis=1)
    assert (exported == simulated).all()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("name", nets.CLASSIFIERS)
def test_outputs_stay_within_a_few_percent_of_float(name, mode, tmp_path):
    model, result, _ = quantize(name, tmp_path, mode=mode)
    feeds = nets.feeds(model, 64, seed=5)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    after = execute.run(result, feeds)["logits"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_dynamic_products_fuse_and_convolutions_are_only_stored_smaller(tmp_path):
    _, _, ctx = quantize("plain_cnn", tmp_path, train=False, mode="dynamic")
    assert fused(tmp_path)["DynamicQuantizeMatMul"] == 2
    changes = [t.change for t in ctx.coverage.touched]
    assert sum("stored so, computed with in float" in change for change in changes) == 2


def test_per_channel_is_closer_than_per_tensor(tmp_path):
    def error(**options):
        model, result, _ = quantize("plain_cnn", tmp_path, **options)
        feeds = nets.feeds(model, 64, seed=5)
        before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
        return np.linalg.norm(execute.run(result, feeds)["logits"] - before)

    assert error(per_channel=True) < error(per_channel=False)


@pytest.mark.parametrize(("reduce", "largest"), [(True, 64), (False, 127)])
def test_the_range_of_weights_follows_the_recipe(reduce, largest, tmp_path):
    _, result, _ = quantize("plain_cnn", tmp_path, reduce_range=reduce)
    codes = [result.weight(n) for n in result.initializers if n.endswith("_int8")]
    assert max(int(np.abs(c.astype(int)).max()) for c in codes) == largest


@pytest.mark.parametrize(("saturates", "bits"), [(True, "7"), (False, "all 8")])
def test_the_range_of_weights_follows_the_cpu_and_is_said(saturates, bits, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_saturates", lambda: saturates)
    _, _, ctx = quantize("mlp", tmp_path)
    assert any(f"weights use {bits}" in note for note in ctx.coverage.notes)


def test_x86_without_vnni_saturates_and_other_cpus_do_not(monkeypatch):
    for machine, flags, expected in [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512_vnni"), False),
        ("aarch64", (), False),
    ]:
        monkeypatch.setattr(int8.platform, "machine", lambda m=machine: m)
        monkeypatch.setattr(int8.environment, "cpu_flags", lambda f=flags: f)
        assert int8._saturates() is expected


def test_pruned_weights_stay_zero(tmp_path):
    model, graph = jobs.load("mlp", tmp_path)
    name = next(n for n in graph.parameters() if n.startswith("weight"))
    weight = graph.weight(name).copy()
    weight[np.abs(weight) < 0.1] = 0
    graph.set_weight(name, weight)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    result = passes.apply(graph, QuantizeInt8(), ctx)
    assert (result.weight(f"{name}_int8")[weight == 0] == 0).all()


def test_the_number_of_calibration_samples_is_respected(tmp_path, monkeypatch):
    seen = []
    original = int8._static._ranges.MinMax.add
    monkeypatch.setattr(
        int8._static._ranges.MinMax,
        "add",
        lambda self, v: (seen.append(len(v)), original(self, v))[1],
    )
    quantize("mlp", tmp_path, samples=10)
    assert set(seen) == {10}


def test_ranges_do_not_depend_on_the_memory_for_calibration(tmp_path, monkeypatch):
    quantize("residual_cnn", tmp_path)
    before = (tmp_path / "int8.onnx").read_bytes()
    monkeypatch.setattr(_sweep, "_BATCH_BYTES", 100_000)
    quantize("residual_cnn", tmp_path)
    model, result = onnx.load_from_string(before), onnx.load(tmp_path / "int8.onnx")
    for a, b in zip(model.graph.initializer, result.graph.initializer, strict=True):
        assert onnx.numpy_helper.to_array(a) == pytest.approx(
            onnx.numpy_helper.to_array(b), rel=1e-4
        )


def test_what_stays_in_float_is_named_with_a_reason(tmp_path):
    _, _, ctx = quantize("text_transformer", tmp_path)
    reasons = {s.layer: s.reason for s in ctx.coverage.skipped}
    assert "looked up" in reasons["embedding_1"]
    assert "no 8-bit kernel" in reasons["Softmax"]
    assert "LayerNormalization (3 nodes)" in reasons


def test_excluded_layers_stay_in_float(tmp_path):
    _, graph = jobs.load("plain_cnn", tmp_path)
    kept = next(n for n in graph.parameters() if n.startswith("weight"))
    _, result, ctx = quantize("plain_cnn", tmp_path, exclude=(kept,))
    assert result.weight(kept).dtype == np.float32
    assert ("excluded by the recipe") in [s.reason for s in ctx.coverage.skipped]
    assert fused(tmp_path)["QLinearConv"] == 1


def test_excluding_everything_is_refused(tmp_path):
    with pytest.raises(NothingChanged) as refused:
        quantize("plain_cnn", tmp_path, exclude=("*",))
    assert "excluded by the recipe" in refused.value.message


def test_a_net_without_layers_is_refused(tmp_path):
    model = jobs.text("net (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }")
    with pytest.raises(NothingChanged, match="no Conv, Gemm or MatMul"):
        quantize(model, tmp_path)


def test_activations_that_are_not_finite_are_refused_by_name(tmp_path):
    model = jobs.text("""
        net (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w>
        { l = Log(x)  y = MatMul(l, w) }
    """)
    with pytest.raises(BadModel, match="'l' is not finite"):
        quantize(model, tmp_path)


def test_a_relu_behind_the_pooling_is_still_absorbed(tmp_path):
    model = jobs.text("""
        net (float[batch, 1, 8, 8] x) => (float[batch, 64] y) <float[4, 1, 3, 3] w, float[4] b>
        { c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
          r = Relu(m)  y = Flatten(r) }
    """)
    model, result, _ = quantize(model, tmp_path)
    assert not {"Relu"} & set(fused(tmp_path))
    assert fused(tmp_path)["QLinearConv"] == 1
    feeds = nets.feeds(model, 8, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    after = execute.run(result, feeds)["y"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_quantized_output_keeps_its_name_and_a_shared_one_its_value(tmp_path):
    model = jobs.text("""
        net (float[batch, 1, 8, 8] x) => (float[batch, 4, 8, 8] y, float[batch, 4, 8, 8] z)
        <float[4, 1, 3, 3] w, float[4, 4, 1, 1] v>
        { c = Conv<pads = [1, 1, 1, 1]>(x, w)  y = Relu(c)  z = Conv(y, v) }
    """)
    model, result, _ = quantize(model, tmp_path)
    assert [v.name for v in result.outputs] == ["y", "z"]
    feeds = nets.feeds(model, 8, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    after = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, feeds)
    for a, b in zip(before, after, strict=True):
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


def test_gemm_factors_are_folded(tmp_path):
    model = jobs.text("""
        net (float[batch, 8] x) => (float[batch, 4] y) <float[8, 4] w, float[1, 4] b>
        { y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) }
    """)
    model, result, _ = quantize(model, tmp_path)
    assert fused(tmp_path)["QGemm"] == 1
    feeds = nets.feeds(model, 16, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    after = execute.run(result, feeds)["y"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_weight_shared_by_two_layers_is_stored_once(tmp_path):
    model = jobs.text("""
        net (float[batch, 8] x) => (float[batch, 8] y) <float[8, 8] w>
        { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }
    """)
    _, result, _ = quantize(model, tmp_path)
    assert [
        n
        for n in result.initializers
        if result.weight(n).dtype == np.int8 and result.weight(n).ndim == 2
    ] == ["w_int8"]


def test_a_float16_net_is_refused_with_the_reason(tmp_path):
    model = jobs.text(
        "net (float16[batch, 8] x) => (float16[batch, 8] y) <float16[8, 8] w> { y = MatMul(x, w) }"
    )
    with pytest.raises(NothingChanged, match="only float32 is quantized"):
        quantize(model, tmp_path)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize(
    "layers",
    [
        "y = MatMul(x, w)",
        "m = MatMul(x, w)  y = Add(m, b)",
        "y = Gemm(x, w, b)",
        "y = Gemm<transB = 1>(x, w, b)",
    ],
)
def test_a_layer_that_ends_the_graph_keeps_the_name_of_its_output(layers, mode, tmp_path):
    model = jobs.text(
        f"net (float[batch, 8] x) => (float[batch, 8] y) <float[8, 8] w, float[8] b> {{ {layers} }}"
    )
    model, result, _ = quantize(model, tmp_path, mode=mode)
    assert [v.name for v in result.outputs] == ["y"]
    kernel = {"static": ("QGemm", "MatMulIntegerToFloat"), "dynamic": ("DynamicQuantizeMatMul",)}
    assert sum(fused(tmp_path)[name] for name in kernel[mode]) == 1
    feeds = nets.feeds(model, 16, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    after = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(["y"], feeds)[0]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_space_runs_on_integers(keepdims, tmp_path):
    shape = "float[batch, 4, 1, 1]" if keepdims else "float[batch, 4]"
    tail = "d = Flatten(p)" if keepdims else "d = Identity(p)"
    model = jobs.text(f"""
        net (float[batch, 1, 8, 8] x) => ({shape} p, float[batch, 3] y) <float[4, 1, 3, 3] w, float[3, 4] v>
        {{ c = Conv(x, w)  p = ReduceMean<axes = [2, 3], keepdims = {keepdims}>(c)  {tail}  y = Gemm<transB = 1>(d, v) }}
    """)
    model, _, _ = quantize(model, tmp_path)
    found = fused(tmp_path)
    assert (found["QLinearConv"], found["QLinearGlobalAveragePool"], found["ReduceMean"]) == (
        1,
        1,
        0,
    )
    feeds = nets.feeds(model, 16, seed=1)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(["p", "y"], feeds)
    after = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(["p", "y"], feeds)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


def test_what_exporters_compute_at_each_run_is_stored_first(tmp_path):
    """A bias of zeros made from the weight's shape, as torch.onnx.export(dynamo=True) writes it."""
    model = jobs.text("""
        net (float[batch, 1, 8, 8] x) => (float[batch, 4, 6, 6] y) <float[4, 1, 3, 3] w>
        { s = Shape<end = 1>(w)  o = Constant<value_float = 0.0>()  l = CastLike(o, x)  b = Expand(l, s)
          c = Conv(x, w, b)  y = Relu(c) }
    """)
    _, result, _ = quantize(model, tmp_path)
    assert fused(tmp_path)["QLinearConv"] == 1
    assert not {"Shape", "Expand", "CastLike"} & {node.op_type for node in result.nodes}
