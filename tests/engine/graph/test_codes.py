from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from tests.engine import jobs
from workers.engine import formats
from workers.engine.graph import Graph, codes, edit, execute, parameters, verify
from workers.engine.measure import size

SHAPE = (7, 9)


def coded(tmp_path: Path, base: int, shape: tuple[int, ...] = SHAPE) -> tuple[Graph, np.ndarray]:
    """y = x + numbers of random codes, saved and loaded again; and the codes."""
    rng = np.random.default_rng(base)
    found = rng.integers(0, base, shape).astype(np.uint8)
    found.flat[:2] = base - 1, 0
    path = tmp_path / "net.onnx"
    model = jobs.text(
        f"g (float[{', '.join(map(str, shape))}] x) => (float[a, b] y) {{ y = Neg(x) }}"
    )
    path.write_bytes(model.SerializeToString())
    graph = formats.load(path)
    (neg,) = graph.nodes
    numbers = codes.numbers(graph, neg, "w", found, base, ir.DataType.FLOAT)
    total = edit.insert_before(graph, neg, "Add", [graph.inputs[0], numbers])
    neg.replace_input_with(0, total.outputs[0])
    formats.save(graph, path)
    return formats.load(path), found


@pytest.mark.parametrize("base", [2, 3, 4, 5, 6, 7, 16, 17, 256])
@pytest.mark.parametrize("shape", [(7, 9), (4, 10), (1, 1)])
def test_codes_come_back_in_the_executor_and_in_onnx_runtime(base, shape, tmp_path) -> None:
    graph, found = coded(tmp_path, base, shape)
    verify.verify(graph)
    feeds = {"x": np.zeros(shape, np.float32)}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert np.array_equal(-session.run(None, feeds)[0], found)
    assert np.array_equal(-execute.run(graph, feeds)["y"], found)


@pytest.mark.parametrize("base", [2, 3, 4, 5, 6])
def test_digits_of_every_base_fill_bytes_and_come_back(base: int) -> None:
    found = np.random.default_rng(0).integers(0, base, 41).astype(np.uint8)
    packed = codes.pack(found, base)
    assert packed.nbytes == codes.file_bytes(41, base) == -(-41 // codes.digits_in_byte(base))
    assert np.array_equal(codes.unpack(packed, base, 41), found)


def test_a_byte_holds_as_many_digits_as_fit() -> None:
    assert [codes.digits_in_byte(base) for base in (2, 3, 4, 5, 6, 7)] == [8, 5, 4, 3, 3, 2]


def shifted(tmp_path: Path, base: int, shift: float) -> tuple[Graph, np.ndarray]:
    """y = x @ (codes - shift)."""
    graph, found = coded(tmp_path, base, (9, 9))
    add = next(node for node in graph.nodes if node.op_type == "Add")
    constant = graph.add_weight("shift", np.array(shift, np.float32))
    numbers = edit.insert_before(graph, add, "Sub", [add.inputs[1], constant])
    add.replace_input_with(1, numbers.outputs[0])
    return graph, found


@pytest.mark.parametrize(("base", "bits"), [(2, 1.0), (3, 1.6), (16, 4.0), (200, 8.0)])
def test_codes_are_read_back_from_a_graph(base: int, bits: float, tmp_path: Path) -> None:
    graph, found = shifted(tmp_path, base, 1.0)
    stored = codes.read(graph, graph.initializers["w_codes"])
    assert stored is not None
    assert np.array_equal(stored.symbols, found.reshape(-1))
    assert (stored.bits, stored.zero) == (bits, 1)
    assert stored.nonzeros == np.count_nonzero(found != 1)


def test_no_code_is_zero_where_the_shift_is_between_two(tmp_path: Path) -> None:
    graph, found = shifted(tmp_path, 2, 0.5)
    stored = codes.read(graph, graph.initializers["w_codes"])
    assert stored is not None
    assert (stored.zero, stored.nonzeros) == (None, found.size)


def test_numbers_that_are_no_codes_are_not_taken_for_such(tmp_path: Path) -> None:
    graph, _ = coded(tmp_path, 2)
    assert codes.read(graph, graph.initializers["w_codes"]) is None
    graph, _ = coded(tmp_path, 16)
    assert codes.read(graph, graph.initializers["w_codes"]) is None


def test_foreign_integer_arithmetic_is_no_code(tmp_path: Path) -> None:
    """A graph divides bytes by something else."""
    graph, _ = shifted(tmp_path, 3, 1.0)
    powers = graph.initializers["digits_3"]
    graph.set_weight("digits_3", graph.weight("digits_3")[::-1].copy())
    assert codes.read(graph, graph.initializers["w_codes"]) is None
    divide = next(node for node in graph.nodes if node.op_type == "Div")
    divide.replace_input_with(1, graph.inputs[0])
    assert not powers.uses()
    assert codes.read(graph, graph.initializers["w_codes"]) is None


def test_size_counts_codes_as_weights_of_their_bits(tmp_path: Path) -> None:
    graph, found = shifted(tmp_path, 3, 1.0)
    formats.save(graph, tmp_path / "net.onnx")
    got = size.measure(tmp_path / "net.onnx", graph)
    assert got.parameters == parameters.count(graph) == found.size
    assert got.nonzero_parameters == np.count_nonzero(found != 1)
    assert got.bits_per_parameter == pytest.approx(1.6)
