from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.engine import nets
from tests.engine.measure import files
from workers.engine import formats
from workers.engine.measure import size


def test_a_dense_float_model_weighs_what_it_is(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 32))
    path = files.linear(tmp_path / "a.onnx", weight)
    got = size.measure(path, formats.load(path))
    assert got.file_bytes == got.entropy_bytes == path.stat().st_size
    assert got.parameters == got.nonzero_parameters == 64 * 32
    assert (got.theoretical_bytes, got.bits_per_parameter) == (4 * 64 * 32, 32.0)


def test_zipped_is_deflate_at_level_6(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", np.random.default_rng(0).normal(size=(64, 32)))
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    wanted = len(deflate.compress(path.read_bytes()) + deflate.flush())
    assert size.measure(path, formats.load(path)).zipped_bytes == wanted


def test_zeros_are_counted_and_nearly_free_by_entropy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(100, 100)).astype(np.float32)
    weight.flat[rng.permutation(10_000)[:9_000]] = 0
    weight[0, 0] = -0.0
    path = files.linear(tmp_path / "a.onnx", weight)
    got = size.measure(path, formats.load(path))
    nonzeros = np.count_nonzero(weight)
    share = nonzeros / 10_000
    mask_bits = -10_000 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    around = path.stat().st_size - 40_000
    assert got.nonzero_parameters == nonzeros
    assert got.theoretical_bytes == 4 * nonzeros
    assert got.entropy_bytes == pytest.approx(around + mask_bits / 8 + 4 * nonzeros, abs=8)


def test_shared_values_cost_their_entropy_and_a_codebook() -> None:
    symbols = np.repeat(np.arange(4, dtype=np.uint32), 250)
    got = size.entropy_bytes(size.Weight(symbols, nonzeros=750, bits=32))
    assert got == 1000 * 2 / 8 + 4 * 4


def test_a_weight_of_one_value_costs_that_value() -> None:
    symbols = np.full(1000, 7, np.uint32)
    assert size.entropy_bytes(size.Weight(symbols, nonzeros=1000, bits=32)) == 4


def test_entropy_is_never_above_what_is_stored() -> None:
    symbols = np.repeat(np.arange(5000, dtype=np.uint32), 2)
    weight = size.Weight(symbols, nonzeros=9998, bits=32)
    assert size.entropy_bytes(weight) <= weight.stored_bytes


def quantized(path: Path, weight: np.ndarray, zero_point: np.ndarray) -> Path:
    """x @ DequantizeLinear(weight), one scale for each column."""
    scale = np.full(weight.shape[1], 0.01, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], name="dq", axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"),
    ]
    return files.model(
        path,
        nodes,
        {"q": weight, "s": scale, "z": zero_point},
        inputs={"x": ["n", weight.shape[0]]},
        outputs={"y": ["n", weight.shape[1]]},
    )


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128)])
def test_int8_weights_are_parameters_of_8_bits(tmp_path: Path, dtype: type, zero: int) -> None:
    weight = np.random.default_rng(0).integers(1, 100, (32, 16)).astype(dtype)
    weight[:8] = zero
    path = quantized(tmp_path / "a.onnx", weight, np.full(16, zero, dtype))
    got = size.measure(path, formats.load(path))
    assert (got.parameters, got.bits_per_parameter) == (512, 8.0)
    assert got.nonzero_parameters == got.theoretical_bytes == 24 * 16
    assert got.entropy_bytes < got.file_bytes


def test_integer_operators_hold_parameters_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dql"),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"], name="mmi"),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    weight = np.arange(12, dtype=np.int8).reshape(4, 3)
    weights = {"w": weight, "wz": np.array([0, 1, 2], np.int8)}
    path = files.model(
        tmp_path / "a.onnx", nodes, weights, inputs={"x": ["n", 4]}, outputs={"y": ["n", 3]}
    )
    got = size.measure(path, formats.load(path))
    assert (got.parameters, got.nonzero_parameters) == (12, 9)
    assert formats.inspect(path).parameters == 12


@pytest.mark.parametrize("net", sorted(nets.NETS))
def test_parameters_are_those_that_train(tmp_path: Path, net: str) -> None:
    model = nets.NETS[net](0)
    onnx.save(model, tmp_path / "a.onnx")
    graph = formats.load(tmp_path / "a.onnx")
    got = size.measure(tmp_path / "a.onnx", graph)
    assert got.parameters == sum(array.size for array in graph.parameters().values())
    assert got.parameters == formats.inspect(tmp_path / "a.onnx").parameters
    assert got.theoretical_bytes <= got.entropy_bytes <= got.file_bytes
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    assert got.parameters <= sum(numpy_helper.to_array(i).size for i in floats)


def test_weights_in_a_second_file_are_counted(tmp_path: Path) -> None:
    path = files.linear(tmp_path / "a.onnx", np.random.default_rng(0).normal(size=(64, 32)))
    graph = formats.load(path)
    onnx.save(
        onnx.load(path),
        tmp_path / "b.onnx",
        save_as_external_data=True,
        location="b.onnx.data",
        size_threshold=0,
    )
    got = size.measure(tmp_path / "b.onnx", graph)
    assert got.file_bytes == sum((tmp_path / n).stat().st_size for n in ("b.onnx", "b.onnx.data"))
    assert got.file_bytes > 4 * 64 * 32


def test_int4_weights_are_parameters_of_4_bits(tmp_path: Path) -> None:
    weight = helper.make_tensor("q", TensorProto.INT4, [4, 2], [0, 1, 2, 3, -8, 7, 0, 0])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq", axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"),
    ]
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k])
        for n, k in (("x", 4), ("y", 2))
    ]
    scale = numpy_helper.from_array(np.ones(2, np.float32), "s")
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], [weight, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "a.onnx")
    got = size.measure(tmp_path / "a.onnx", formats.load(tmp_path / "a.onnx"))
    assert (got.parameters, got.nonzero_parameters, got.bits_per_parameter) == (8, 5, 4.0)
    assert got.theoretical_bytes == 3
