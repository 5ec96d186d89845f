"""A part of one graph in the place of the same part of another."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest

from workers.engine import formats
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph, execute, shapes, splice, verify

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
BEFORE = "a = MatMul(x, w1)  r = Relu(a)  b = MatMul(r, w2)  y = Tanh(b)"
W1, W2, W3 = (np.random.default_rng(n).normal(size=(4, 4)).astype(np.float32) for n in (1, 2, 3))


def graph(folder: Path, body: str, **weights: np.ndarray) -> Graph:
    """Of nodes named after what they make."""
    source = (
        f'<ir_version: 8, opset_import: ["": 17]> g (float[3, 4] x) => (float[3, n] y) {{ {body} }}'
    )
    model = onnx.parser.parse_model(source)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    path = folder / "net.onnx"
    onnx.save(model, path)
    return formats.load(path)


def spliced(before: Graph, after: Graph, *names: str) -> np.ndarray:
    """What the network before gives with these nodes as they are after."""
    found = before.clone()
    given = {"x": X.shape}
    both = (shapes.infer(of, given) for of in (before, after))
    splice.splice(found, after, names, *both)
    verify.verify(found)
    [name] = [value.name or "" for value in found.outputs]
    assert name == "y"
    return execute.run(found, {"x": X})["y"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def test_a_layer_gets_the_weights_that_it_has_after(tmp_path: Path) -> None:
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    after = graph(tmp_path, BEFORE, w1=W3, w2=W3)
    first, second = (spliced(before, after, node) for node in ("node_a", "node_b"))
    assert np.allclose(first, np.tanh(relu(X @ W3) @ W2), atol=1e-6)
    assert np.allclose(second, np.tanh(relu(X @ W1) @ W3), atol=1e-6)
    both = spliced(before, after, "node_a", "node_b")
    assert np.allclose(both, np.tanh(relu(X @ W3) @ W3), atol=1e-6)


def test_what_decodes_a_weight_comes_along_also_where_it_is_called_alike(tmp_path: Path) -> None:
    coded = "w = Mul(codes, scale)  y = MatMul(x, w)"
    before = graph(tmp_path, coded, codes=W1, scale=np.float32(1).reshape(1))
    after = graph(tmp_path, coded, codes=W1, scale=np.float32(3).reshape(1))
    assert np.allclose(spliced(before, after, "node_y"), 3 * X @ W1, atol=1e-5)


def test_what_is_done_to_inputs_comes_along(tmp_path: Path) -> None:
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    body = "a = MatMul(x, w1)  r = Relu(a)  f = Floor(r)  b = MatMul(f, w2)  y = Tanh(b)"
    after = graph(tmp_path, body, w1=W3, w2=W2)
    wanted = np.tanh(np.floor(relu(X @ W1)) @ W2)
    assert np.allclose(spliced(before, after, "node_b"), wanted, atol=1e-6)


def test_a_node_whose_result_bears_the_name_of_a_later_value(tmp_path: Path) -> None:
    """As where a rectifier became the end of a range: its name is that of the layer's result."""
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    after = graph(tmp_path, "r = MatMul(x, w1)  b = MatMul(r, w2)  y = Tanh(b)", w1=W3, w2=W2)
    [layer] = [node for node in after.nodes if node.name == "node_r"]
    layer.name = "node_a"
    assert np.allclose(spliced(before, after, "node_a"), np.tanh(relu(X @ W3) @ W2), atol=1e-6)


def test_a_node_that_went_is_found_by_what_it_made(tmp_path: Path) -> None:
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    body = "h = MatMul(x, u)  a = MatMul(h, v)  r = Relu(a)  b = MatMul(r, w2)  y = Tanh(b)"
    after = graph(tmp_path, body, u=W3[:, :2], v=W3[:2], w2=W3)
    for node in after.nodes:
        node.name = f"new_{node.name}"
    wanted = np.tanh(relu(X @ W3[:, :2] @ W3[:2]) @ W2)
    assert np.allclose(spliced(before, after, "node_a"), wanted, atol=1e-6)


def test_a_layer_that_ends_the_network_keeps_the_name_of_the_output(tmp_path: Path) -> None:
    before = graph(tmp_path, "y = MatMul(x, w)", w=W1)
    after = graph(tmp_path, "y = MatMul(x, w)", w=W2)
    assert np.allclose(spliced(before, after, "node_y"), X @ W2, atol=1e-6)


def refused(before: Graph, after: Graph, names: Collection[str]) -> str:
    with pytest.raises(Unsupported) as caught:
        spliced(before, after, *names)
    return caught.value.message


def test_a_layer_of_another_shape_is_refused(tmp_path: Path) -> None:
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    after = graph(tmp_path, BEFORE, w1=W1[:, :2], w2=W2[:2])
    assert refused(before, after, ["node_a"]) == "its shape changed"
    assert refused(before, after, ["node_b"]) == "its shape changed"


def test_a_layer_that_went_with_its_result_is_refused(tmp_path: Path) -> None:
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    after = graph(tmp_path, "b = MatMul(x, w1)  y = Tanh(b)", w1=W1)
    assert "joined with others" in refused(before, after, ["node_a"])


def test_a_layer_that_can_only_be_had_with_another_is_refused(tmp_path: Path) -> None:
    """Nothing between the two layers bears the name that it had."""
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    body = "p = MatMul(x, w1)  q = Relu(p)  b = MatMul(q, w2)  y = Tanh(b)"
    after = graph(tmp_path, body, w1=W3, w2=W2)
    [first] = [node for node in after.nodes if node.name == "node_p"]
    first.name = "node_a"
    assert refused(before, after, ["node_b"]) == "it was joined with 'node_a'"


def test_what_depends_on_the_layer_itself_is_not_read(tmp_path: Path) -> None:
    """A value that bears the name of a later one is followed back, not taken: the network would run in a circle."""
    before = graph(tmp_path, BEFORE, w1=W1, w2=W2)
    body = "b = Neg(x)  a = MatMul(b, w1)  r = Relu(a)  c = MatMul(r, w2)  y = Tanh(c)"
    after = graph(tmp_path, body, w1=W1, w2=W2)
    after.nodes[0].name = "negation"
    assert np.allclose(spliced(before, after, "node_a"), np.tanh(relu(-X @ W1) @ W2), atol=1e-6)
