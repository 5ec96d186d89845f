"""Operators of old opsets mean what they meant: old model in ONNX Runtime against ours, before and after saving."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.engine import errors, formats
from workers.engine.graph import execute

IMAGE = np.random.default_rng(0).normal(0, 2, (2, 4, 6, 6)).astype(np.float32)


def _initializer(value):
    name, array = value
    return numpy_helper.from_array(np.asarray(array), name)


def _model(opset, kind, inputs=("x",), *, weights=(), x=IMAGE, domain="", **attributes):
    node = helper.make_node(kind, list(inputs), ["y"], name="node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [_initializer(value) for value in weights],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 4
    return model


CASES = {
    "clip": _model(7, "Clip", min=-0.5, max=1.0),
    "clip_open": _model(7, "Clip", max=1.0),
    "pad": _model(7, "Pad", pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5),
    "pad_reflect": _model(7, "Pad", pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect"),
    "slice": _model(7, "Slice", axes=[1, 3], starts=[1, -4], ends=[3, 100]),
    "squeeze": _model(11, "Squeeze", x=IMAGE[:, :1], axes=[1]),
    "unsqueeze": _model(11, "Unsqueeze", axes=[0, 5]),
    "reduce_sum": _model(11, "ReduceSum", axes=[2, -1], keepdims=0),
    "reduce_mean": _model(13, "ReduceMean", axes=[2, 3]),
    "reduce_max_all": _model(11, "ReduceMax", keepdims=0),
    "softmax_flattens": _model(11, "Softmax", axis=1),
    "softmax_default": _model(7, "Softmax"),
    "softmax_last": _model(11, "Softmax", axis=3),
    "log_softmax": _model(11, "LogSoftmax", axis=2),
    "hardmax": _model(11, "Hardmax", axis=1),
    "dropout": _model(7, "Dropout", ratio=0.3),
    "upsample_7": _model(7, "Upsample", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    "upsample_9": _model(
        9, "Upsample", ["x", "s"], weights=[("s", np.float32([1, 1, 2, 2]))], mode="linear"
    ),
    "resize_10": _model(
        10, "Resize", ["x", "s"], weights=[("s", np.float32([1, 1, 0.5, 2]))], mode="nearest"
    ),
    "resize_11": _model(
        11,
        "Resize",
        ["x", "r", "s"],
        weights=[("r", np.float32([])), ("s", np.float32([1, 1, 2, 2]))],
        mode="cubic",
        coordinate_transformation_mode="half_pixel",
    ),
    "batch_norm": _model(
        7,
        "BatchNormalization",
        ["x", "scale", "b", "mean", "var"],
        weights=[
            (n, np.linspace(0.5, 1.5, 4, dtype=np.float32)) for n in ("scale", "b", "mean", "var")
        ],
        epsilon=1e-3,
    ),
    "average_pool": _model(
        10, "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "max_pool_same": _model(
        8, "MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"
    ),
    "gemm_7": _model(
        7,
        "Gemm",
        ["x", "w", "b"],
        x=IMAGE[0, 0],
        weights=[("w", np.ones((3, 6), np.float32)), ("b", np.float32([1.0]))],
        transB=1,
        alpha=0.5,
        beta=2.0,
    ),
    "lstm_7": _model(
        7,
        "LSTM",
        ["x", "w", "r"],
        x=IMAGE[0],
        weights=[
            ("w", np.linspace(-1, 1, 72, dtype=np.float32).reshape(1, 12, 6)),
            ("r", np.linspace(1, -1, 36, dtype=np.float32).reshape(1, 12, 3)),
        ],
        hidden_size=3,
    ),
    "pad_edge": _model(7, "Pad", pads=[0, 0, 2, 0, 0, 0, 0, 1], mode="edge"),
    "slice_without_axes": _model(7, "Slice", starts=[0, 1, -3, 0], ends=[2, 4, -1, 9]),
    "slice_10": _model(
        10,
        "Slice",
        ["x", "s", "e", "a", "t"],
        weights=[(n, np.int64([v])) for n, v in (("s", 5), ("e", 0), ("a", 2), ("t", -2))],
    ),
    "squeeze_all": _model(7, "Squeeze", x=IMAGE[:, :1]),
    "reduce_log_sum_exp": _model(7, "ReduceLogSumExp", axes=[1], keepdims=0),
    "reduce_l2": _model(11, "ReduceL2", axes=[-1]),
    "reduce_sum_square_all": _model(11, "ReduceSumSquare"),
    "reduce_sum_all": _model(7, "ReduceSum", keepdims=0),
    "arg_max": _model(7, "ArgMax", axis=2, keepdims=0),
    "upsample_7_linear": _model(7, "Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
    "resize_10_linear": _model(
        10, "Resize", ["x", "s"], weights=[("s", np.float32([1, 1, 2, 0.5]))], mode="linear"
    ),
    "resize_11_sizes": _model(
        11,
        "Resize",
        ["x", "r", "s", "n"],
        weights=[
            ("r", np.float32([])),
            ("s", np.float32([])),
            ("n", np.int64([2, 4, 9, 4])),
        ],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "resize_13_tf": _model(
        13,
        "Resize",
        ["x", "", "s"],
        weights=[("s", np.float32([1, 1, 2, 2]))],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "scatter": _model(
        9,
        "Scatter",
        ["x", "i", "u"],
        x=IMAGE[0, 0],
        weights=[("i", np.int64([[1, 2]])), ("u", np.float32([[5, 6]]))],
        axis=1,
    ),
    "gru_7": _model(
        7,
        "GRU",
        ["x", "w", "r", "b"],
        x=IMAGE[0],
        weights=[
            ("w", np.linspace(-1, 1, 108, dtype=np.float32).reshape(2, 9, 6)),
            ("r", np.linspace(1, -1, 54, dtype=np.float32).reshape(2, 9, 3)),
            ("b", np.linspace(-1, 1, 36, dtype=np.float32).reshape(2, 18)),
        ],
        hidden_size=3,
        direction="bidirectional",
        linear_before_reset=1,
    ),
    "rnn_7": _model(
        7,
        "RNN",
        ["x", "w", "r"],
        x=IMAGE[0],
        weights=[
            ("w", np.linspace(-1, 1, 18, dtype=np.float32).reshape(1, 3, 6)),
            ("r", np.linspace(1, -1, 9, dtype=np.float32).reshape(1, 3, 3)),
        ],
        hidden_size=3,
        direction="reverse",
    ),
    "prelu_7": _model(7, "PRelu", ["x", "s"], weights=[("s", np.full((4, 1, 1), 0.2, np.float32))]),
    "lrn": _model(7, "LRN", size=3, alpha=0.01),
    "instance_norm": _model(
        7,
        "InstanceNormalization",
        ["x", "s", "b"],
        weights=[(n, np.linspace(0.5, 1.5, 4, dtype=np.float32)) for n in ("s", "b")],
    ),
    "conv_transpose": _model(
        7,
        "ConvTranspose",
        ["x", "w"],
        weights=[("w", IMAGE[:1, :, :3, :3].reshape(4, 1, 3, 3))],
        strides=[2, 2],
        output_padding=[1, 1],
    ),
    "max_pool_ceil": _model(
        10, "MaxPool", kernel_shape=[2, 2], strides=[3, 3], dilations=[2, 2], ceil_mode=1
    ),
    "depth_to_space_7": _model(7, "DepthToSpace", blocksize=2),
    "one_hot_9": _model(
        9,
        "OneHot",
        ["x", "d", "v"],
        x=IMAGE[0, 0],
        weights=[("d", np.float32([4])), ("v", np.float32([-1, 2]))],
    ),
    "grid_sample_16": _model(
        16,
        "GridSample",
        ["x", "g"],
        weights=[
            (
                "g",
                np.linspace(-1.2, 1.2, 72, dtype=np.float32)
                .reshape(2, 6, 6)[:, :3, :, None]
                .repeat(2, 3),
            )
        ],
        mode="bicubic",
    ),
    "group_norm_18": _model(
        18,
        "GroupNormalization",
        ["x", "s", "b"],
        weights=[(n, np.float32([0.5, 1.5])) for n in ("s", "b")],
        num_groups=2,
    ),
    "dft_17": _model(17, "DFT", x=IMAGE[:, :, :, :1], axis=2, onesided=1),
    "cum_sum_11": _model(11, "CumSum", ["x", "a"], weights=[("a", np.int64(1))], reverse=1),
    "log_softmax_default": _model(11, "LogSoftmax"),
    "gather_7": _model(7, "Gather", ["x", "i"], weights=[("i", np.int64([2, 0]))], axis=1),
    "tile_7": _model(7, "Tile", ["x", "n"], weights=[("n", np.int64([1, 2, 1, 3]))]),
    "cast_7": _model(7, "Cast", to=7),
    "einsum_12": _model(
        12, "Einsum", ["x", "w"], weights=[("w", IMAGE[0, 0])], equation="nchw,wk->nchk"
    ),
    "mean_variance": _model(9, "MeanVarianceNormalization"),
    "quantize_10": _model(
        10,
        "QuantizeLinear",
        ["x", "s", "z"],
        weights=[("s", np.float32(0.05)), ("z", np.uint8(120))],
    ),
    "scaler": _model(
        15, "Scaler", x=IMAGE[0, 0], domain="ai.onnx.ml", offset=[0.5] * 6, scale=[2.0] * 6
    ),
    "columns": _model(
        15,
        "ArrayFeatureExtractor",
        ["x", "at"],
        x=IMAGE[0, 0],
        weights=[("at", np.int64([4, 0]))],
        domain="ai.onnx.ml",
    ),
}


INPUTS = (IMAGE, IMAGE[:, :1], IMAGE[0], IMAGE[0, 0], IMAGE[..., :1])


@pytest.mark.parametrize("name", CASES)
def test_an_old_operator_keeps_its_meaning(name, tmp_path):
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(CASES[name], old)
    graph = formats.load(old)
    formats.save(graph, new)
    dims = CASES[name].graph.input[0].type.tensor_type.shape.dim
    shape = tuple(dim.dim_value for dim in dims)
    x = next(a for a in INPUTS if a.shape == shape)
    want = ort.InferenceSession(old).run(None, {"x": x})[0]
    (ours,) = execute.run(graph, {"x": x}).values()
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)
    again = ort.InferenceSession(new).run(None, {"x": x})[0]
    np.testing.assert_allclose(again, want, rtol=1e-4, atol=1e-5)
    assert graph.opset == 21


@pytest.mark.parametrize("sizes", [{"split": [1, 3]}, {}])
def test_a_split_of_an_old_opset(tmp_path, sizes):
    node = helper.make_node("Split", ["x"], ["a", "b"], name="node", axis=1, **sizes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("a", "b")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), path)
    loaded = formats.load(path)
    values = execute.run(loaded, {"x": IMAGE})
    np.testing.assert_array_equal(values["b"], IMAGE[:, 1 if sizes else 2 :])
    formats.save(loaded, path)
    got = ort.InferenceSession(path).run(None, {"x": IMAGE})[1]
    np.testing.assert_array_equal(got, values["b"])


def test_weights_listed_as_inputs_are_no_inputs(tmp_path):
    model = _model(7, "Add", ["x", "w"], weights=[("w", IMAGE)])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, IMAGE.shape))
    path = tmp_path / "net.onnx"
    model.ir_version = 3
    onnx.save(model, path)
    assert [value.name for value in formats.load(path).inputs] == ["x"]


@pytest.mark.parametrize(
    "model", [_model(8, "BatchNormalization", ["x"] * 5, spatial=0), _model(8, "Scan", ["", "x"])]
)
def test_what_has_no_new_form_is_refused(model, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    with pytest.raises(errors.Unsupported):
        formats.load(path)


def test_a_zip_map_is_refused_with_the_exporters_option(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(_model(15, "ZipMap", domain="ai.onnx.ml", classlabels_int64s=[0, 1]), path)
    with pytest.raises(errors.Unsupported, match="ZipMap") as caught:
        formats.load(path)
    assert "zipmap" in caught.value.hint
