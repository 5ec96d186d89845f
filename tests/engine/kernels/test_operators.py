"""The kernels as operators of ONNX Runtime, against float arithmetic: equal to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.engine.kernels.operands import noise
from workers.engine.errors import BadModel
from workers.engine.kernels import xnor
from workers.engine.measure import session


def opened(folder: Path, kind: str, constants: dict[str, np.ndarray], **attributes: int):
    """A session of one operator that reads x and constants."""
    node = helper.make_node(kind, ["x", *constants], ["y"], domain="modelpress", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("modelpress", 1)]
    path = folder / f"{kind}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), path)
    return session.open(path, threads=1, kernels=True)


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, np.float32(1), np.float32(-1))


def constants(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Operands for filters [k, ..., n]."""
    scale, bias = (noise(len(weight), seed=seed) for seed in (2, 3))
    return {"weight": xnor.pack(weight).words, "scale": scale, "bias": bias}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300, 4100])
@pytest.mark.parametrize("lead", [(), (3,), (2, 5)])
def test_matrix_products_are_those_of_floats(tmp_path, n, lead):
    x, weight = noise(*lead, n, seed=1) if lead else noise(n), noise(7, n, seed=4)
    given = constants(weight)
    wanted = (signs(x) @ signs(weight).T) * given["scale"] + given["bias"]
    (got,) = opened(tmp_path, "SignMatMul", given, channels=n).run({"x": x})
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("channels", [1, 64, 70])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1)),
        ((3, 3), (2, 2), (1, 0, 1, 0)),
        ((5, 4), (2, 1), (2, 0, 1, 3)),
        ((1, 1), (1, 1), (0, 0, 0, 0)),
    ],
)
def test_convolutions_are_those_of_floats_padded_with_ones(
    tmp_path, channels, kernel, strides, pads
):
    x, weight = noise(2, channels, 7, 6), noise(5, channels, *kernel, seed=4)
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(
        torch.from_numpy(signs(x)), (left, right, top, bottom), value=1.0
    )
    sums = torch.nn.functional.conv2d(padded, torch.from_numpy(signs(weight)), stride=strides)
    given = constants(weight.transpose(0, 2, 3, 1))
    shape = (1, -1, 1, 1)
    wanted = sums.numpy() * given["scale"].reshape(shape) + given["bias"].reshape(shape)
    geometry = dict(
        zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), map(int, pads), strict=True)
    )
    made = opened(
        tmp_path,
        "SignConv",
        given,
        channels=channels,
        stride_height=strides[0],
        stride_width=strides[1],
        **geometry,
    )
    (got,) = made.run({"x": x})
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [((2, 65), 64, "last axis of x"), ((2, 64), 130, "don't fit together")],
)
def test_operands_that_do_not_fit_are_refused(tmp_path, shape, channels, message):
    made = opened(tmp_path, "SignMatMul", constants(noise(3, 64)), channels=channels)
    with pytest.raises(BadModel, match=message):
        made.run({"x": noise(*shape)})


def test_filters_larger_than_the_image_are_refused(tmp_path):
    geometry = {"stride_height": 1, "stride_width": 1, "channels": 8}
    pads = dict.fromkeys(("pad_top", "pad_left", "pad_bottom", "pad_right"), 0)
    made = opened(tmp_path, "SignConv", constants(noise(3, 3, 3, 8)), **geometry, **pads)
    with pytest.raises(BadModel, match="don't fit into the padded image"):
        made.run({"x": noise(1, 8, 2, 2)})


def test_a_node_without_its_attributes_is_refused_when_the_file_is_opened(tmp_path):
    with pytest.raises(BadModel, match="channels"):
        opened(tmp_path, "SignMatMul", constants(noise(3, 64)))


def test_several_sessions_share_the_operators(tmp_path):
    given, x = constants(noise(3, 64)), noise(2, 64, seed=9)
    first, second = (opened(tmp_path, "SignMatMul", given, channels=64) for _ in range(2))
    assert np.array_equal(first.run({"x": x})[0], second.run({"x": x})[0])
