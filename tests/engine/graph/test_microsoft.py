"""Operators of com.microsoft, for which onnx has no cases, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from workers.engine import formats
from workers.engine.graph import execute, ops, shapes
from workers.engine.graph.ops import microsoft

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
W = RNG.normal(size=(8, 6)).astype(np.float32)
IMAGE = RNG.normal(size=(2, 3, 7, 7)).astype(np.float32)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
SCALE, BIAS = (RNG.normal(size=8).astype(np.float32) for _ in range(2))
BYTES = RNG.integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
MORE = RNG.integers(0, 256, (2, 3, 4, 4)).astype(np.uint8)
WHOLE = RNG.integers(-64, 64, (8, 6)).astype(np.int8)
"""Of 7 bits: with 8 the sums of two products overflow in ONNX Runtime on CPUs without VNNI."""
NIBBLES = RNG.integers(0, 256, (6, 2, 8)).astype(np.uint8)
BLOCK_SCALES = RNG.uniform(0.1, 1, 12).astype(np.float32)
LONG = RNG.normal(size=(2, 5, 24)).astype(np.float32)


def _scale(value):
    return np.float32(value)


def _zero(value):
    return np.uint8(value)


FIRST = (BYTES, _scale(0.02), _zero(120))
SECOND = (MORE, _scale(0.03), _zero(7))
RESULT = (_scale(0.05), _zero(100))
N_BITS = {"K": 24, "N": 6, "bits": 4, "block_size": 16}

CASES = {
    "gelu": ("Gelu", [X], {}),
    "quick_gelu": ("QuickGelu", [X], {"alpha": 1.5}),
    "bias_gelu": ("BiasGelu", [X, BIAS], {}),
    "fast_gelu": ("FastGelu", [X, BIAS], {}),
    "fast_gelu_without_bias": ("FastGelu", [X], {}),
    "fused_matmul": ("FusedMatMul", [X, W], {"alpha": 0.5}),
    "fused_matmul_transposed": ("FusedMatMul", [X, X], {"transB": 1}),
    "fused_conv": ("FusedConv", [IMAGE, KERNEL], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "fused_conv_leaky": (
        "FusedConv",
        [IMAGE, KERNEL, SCALE[:4]],
        {"activation": "LeakyRelu", "activation_params": [0.2], "strides": [2, 2]},
    ),
    "fused_conv_clip": (
        "FusedConv",
        [IMAGE, KERNEL],
        {"activation": "Clip", "activation_params": [0.0, 6.0]},
    ),
    "fused_gemm": ("FusedGemm", [X[0], W, SCALE[:6]], {"activation": "Relu", "alpha": 2.0}),
    "skip_layer": ("SkipLayerNormalization", [X, X[::-1], SCALE, BIAS, BIAS], {"epsilon": 1e-5}),
    "skip_layer_plain": ("SkipLayerNormalization", [X, X[::-1], SCALE], {}),
    "skip_simplified": ("SkipSimplifiedLayerNormalization", [X, X[::-1], SCALE, BIAS], {}),
    "simplified": ("SimplifiedLayerNormalization", [X, SCALE], {"epsilon": 1e-6}),
    "n_bits": ("MatMulNBits", [LONG, NIBBLES, BLOCK_SCALES], N_BITS),
    "n_bits_zero_points": ("MatMulNBits", [LONG, NIBBLES, BLOCK_SCALES, NIBBLES[:, 0, 0]], N_BITS),
    "n_bits_bias": ("MatMulNBits", [LONG, NIBBLES, BLOCK_SCALES, None, None, SCALE[:6]], N_BITS),
    "n_bits_8": (
        "MatMulNBits",
        [X, NIBBLES[:, :1].repeat(2, 2), BLOCK_SCALES[:6]],
        {"K": 8, "N": 6, "bits": 8, "block_size": 16},
    ),
    "n_bits_in_int8": (
        "MatMulNBits",
        [LONG, NIBBLES, BLOCK_SCALES],
        {**N_BITS, "accuracy_level": 4},
    ),
    "quantize": ("QuantizeLinear", [IMAGE, _scale(0.05), _zero(128)], {}),
    "dequantize": ("DequantizeLinear", [*FIRST], {}),
    "add": ("QLinearAdd", [*FIRST, *SECOND, *RESULT], {}),
    "mul": ("QLinearMul", [*FIRST, *SECOND, *RESULT], {}),
    "sigmoid": ("QLinearSigmoid", [*FIRST, _scale(1 / 256), _zero(0)], {}),
    "average": ("QLinearGlobalAveragePool", [*FIRST, *RESULT], {}),
    "concat": ("QLinearConcat", [*RESULT, *FIRST, *SECOND], {"axis": 1}),
    "to_float": (
        "MatMulIntegerToFloat",
        [BYTES[0, 0].reshape(2, 8), WHOLE, _scale(0.1), np.float32([0.2]), _zero(9), np.int8([3])],
        {},
    ),
    "dynamic": ("DynamicQuantizeMatMul", [X, WHOLE, np.float32([0.02]), None, SCALE[:6]], {}),
}


def _model(kind, operands, attributes):
    names = [f"v{at}" if operand is not None else "" for at, operand in enumerate(operands)]
    domain = "" if kind.startswith("Simplified") else microsoft.DOMAIN
    node = helper.make_node(kind, names, ["y"], name="node", domain=domain, **attributes)
    first = np.asarray(operands[0])
    x = helper.make_tensor_value_info(
        "v0", helper.np_dtype_to_tensor_dtype(first.dtype), ["batch", *first.shape[1:]]
    )
    weights = [
        numpy_helper.from_array(np.array(operand, order="C"), name)
        for name, operand in zip(names[1:], operands[1:], strict=True)
        if operand is not None
    ]
    if not first.ndim:  # the scale of a QLinearConcat
        x = helper.make_tensor_value_info("v0", 1, [])
    y = helper.make_empty_tensor_value_info("y")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(microsoft.DOMAIN, 1)]
    return helper.make_model(
        helper.make_graph([node], "g", [x], [y], weights), opset_imports=opsets, ir_version=8
    )


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnx_runtime_does(name, tmp_path):
    kind, operands, attributes = CASES[name]
    path, again = tmp_path / "net.onnx", tmp_path / "again.onnx"
    onnx.save(_model(kind, operands, attributes), path)
    graph, feeds = formats.load(path), {"v0": np.array(operands[0], order="C")}
    formats.save(graph, again)
    want = ort.InferenceSession(path).run(None, feeds)[0]
    saved = ort.InferenceSession(again).run(None, feeds)[0]
    ours = execute.run(graph, feeds)["y"]
    assert ours.dtype == want.dtype
    step = 1 if want.dtype.kind in "iu" else 0
    for got in (ours, saved):
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=max(step, 1e-5)
        )
    assert shapes.infer(graph, {"v0": np.shape(operands[0])})["y"] == want.shape
    module = execute.as_module(graph)
    if module.weights:
        (y,) = module(*(execute.tensors.borrow(x) for x in feeds.values()))
        y.sum().backward()
        assert all(weight.grad is not None for weight in module.weights.values())


def test_every_operator_has_a_case():
    tested = {kind for kind, _, _ in CASES.values()}
    known = {name.partition("::")[2] for name in ops.TABLE if name.startswith(microsoft.DOMAIN)}
    assert known <= tested
