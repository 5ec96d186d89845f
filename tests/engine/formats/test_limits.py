"""Files that must be refused: each with its class, and a reason that says what was wrong."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.engine import nets
from workers.engine import errors, formats
from workers.engine.formats import limits, tensor_limits


def _value(name, shape=("N", 4), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


def _model(nodes, *, weights=(), functions=(), opset=17, imports=()):
    graph = helper.make_graph(list(nodes), "g", [_value("x")], [_value("y")], list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in imports)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions))
    model.ir_version = 8
    return model


def _node(kind, inputs, output, name="", **attributes):
    return helper.make_node(kind, inputs, [output], name=name or f"{kind}_{output}", **attributes)


def _relu():
    return _node("Relu", ["x"], "y")


def _added(tensor):
    return _model([_node("Add", ["x", tensor.name], "y")], weights=[tensor])


def _refused(tmp_path, model, error=errors.BadModel, match=None):
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(error, match=match) as caught:
        formats.load(path)
    return caught.value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is no model at all, just some text", "not a protobuf|no ONNX model|truncated"),
        (b"PK" + bytes([3, 4]) + bytes(100), "not a protobuf|truncated"),
        (np.random.default_rng(0).bytes(4096), "not a protobuf|truncated|no ONNX model"),
        (bytes([8, 8]), "no graph"),
    ],
    ids=["empty", "text", "zip", "noise", "no_graph"],
)
def test_a_file_that_is_not_onnx_is_refused(tmp_path, content, reason):
    _refused(tmp_path, content, match=reason)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(tmp_path, share):
    whole = nets.plain_cnn().SerializeToString()
    _refused(tmp_path, whole[: int(len(whole) * share)], match="truncated|no ONNX model|no graph")


def test_mutants_end_in_an_engine_error_or_a_graph(tmp_path):
    whole = bytearray(nets.mlp().SerializeToString())
    rng, path = np.random.default_rng(0), tmp_path / "model.onnx"
    refused = 0
    for attempt in range(300):
        mutant = bytearray(whole)
        if attempt % 2:
            del mutant[int(rng.integers(len(mutant))) :]
        else:
            for at in rng.integers(0, len(mutant), 40):
                mutant[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutant)
        try:
            formats.load(path)
        except errors.EngineError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(("ir_version", "opset"), [(2, 17), (99, 17), (8, 6), (8, 99)])
def test_versions_out_of_range_are_refused(tmp_path, ir_version, opset):
    model = _model([_relu()], opset=opset)
    model.ir_version = ir_version
    _refused(tmp_path, model, match="IR version|opset")


def test_all_unknown_operators_are_named(tmp_path):
    nodes = [
        _node("Zorp", ["x"], "a"),
        _node("PyOp", ["a"], "b", domain="com.microsoft"),
        _node("Anything", ["b"], "y", domain="evil.corp"),
    ]
    model = _model(nodes, imports=["com.microsoft", "evil.corp"])
    error = _refused(tmp_path, model, errors.Unsupported)
    for name in ("Zorp", "com.microsoft::PyOp", "evil.corp::Anything"):
        assert name in error.message
    assert error.hint


def test_an_unknown_attribute_is_refused(tmp_path):
    model = _model([_node("Relu", ["x"], "y", telepathy=1)])
    _refused(tmp_path, model, errors.Unsupported, match="telepathy")


def test_a_cycle_is_refused(tmp_path):
    nodes = [
        _node("Add", ["x", "b"], "a"),
        _node("Relu", ["a"], "b"),
        _node("Relu", ["b"], "y"),
    ]
    _refused(tmp_path, _model(nodes), match="cycle")


def test_a_value_that_nothing_makes_is_refused(tmp_path):
    _refused(tmp_path, _model([_node("Add", ["x", "ghost"], "y")]), match="ghost")


def test_a_value_made_twice_is_refused(tmp_path):
    _refused(tmp_path, _model([_relu(), _node("Abs", ["x"], "y")]), match="'y' is made twice")
    weight = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    nodes = [_node("Relu", ["x"], "w"), _node("Add", ["x", "w"], "y")]
    _refused(tmp_path, _model(nodes, weights=[weight]), match="'w' is made twice")
    _refused(tmp_path, _model([_relu()], weights=[weight, weight]), match="'w' is made twice")


@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ([2**32, 2**32], "axis of size"),
        ([2**62, 4], "axis of size"),
        ([-1, 4], "axis of size -1"),
        ([0, 2**62], "axis of size"),
        ([2**20, 2**20], "elements"),
        ([1] * 9, "9 axes"),
        ([5], "20 bytes for its shape and has 16"),
        ([3], "12 bytes for its shape and has 16"),
    ],
)
def test_an_initializer_that_claims_more_than_it_has_is_refused(tmp_path, dims, reason):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
    _refused(tmp_path, _added(tensor), match=reason)


def test_typed_elements_are_counted(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], float_data=[1.0, 2.0])
    _refused(tmp_path, _added(tensor), match="claims 4 elements and has 2")
    tensor = TensorProto(name="w", data_type=TensorProto.INT64, dims=[3], int64_data=[1, -1])
    _refused(tmp_path, _added(tensor), match="claims 3 elements and has 2")


def test_absurd_sizes_inside_a_constant_node_are_refused(tmp_path):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**31, 8], raw_data=b"")
    nodes = [_node("Constant", [], "c", value=tensor), _node("Add", ["x", "c"], "y")]
    _refused(tmp_path, _model(nodes), match="elements")


def test_strings_are_unsupported(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.STRING, [1], [b"text"])
    _refused(tmp_path, _added(tensor), errors.Unsupported, match="STRING")


def _external(location, **entries):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return _added(tensor)


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/hostname", "a/b", "..", ".", "", "/dev/zero", "missing.data", "x" * 5000],
)
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path.parent / "secret").write_bytes(bytes(16))
    _refused(tmp_path, _external(location), match="data")


def test_external_data_through_a_link_is_refused(tmp_path):
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "file").write_bytes(bytes(16))
    (tmp_path / "model.onnx.data").symlink_to(secret / "file")
    _refused(tmp_path, _external("model.onnx.data"), match="no regular file")


@pytest.mark.parametrize(
    "entries", [{"offset": -4}, {"offset": 8}, {"length": 2**40}, {"length": 4}, {"offset": "0x0"}]
)
def test_external_data_beyond_its_file_is_refused(tmp_path, entries):
    (tmp_path / "model.onnx.data").write_bytes(bytes(16))
    model = _external("model.onnx.data", **entries)
    _refused(tmp_path, model, match="bytes for its shape|whole number")


def test_external_data_next_to_the_model_is_read(tmp_path):
    (tmp_path / "model.onnx.data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(_external("model.onnx.data", offset=0, length=16).SerializeToString())
    assert formats.load(path).weight("w").tolist() == [0, 1, 2, 3]


def _nested_ifs(depth):
    yes = numpy_helper.from_array(np.array(True), "yes")
    body = helper.make_graph([_node("Identity", ["x"], "leaf")], "leaf", [], [_value("leaf")])
    for level in range(depth):
        out, other = f"out{level}", f"other{level}"
        alternative = helper.make_graph(
            [_node("Identity", ["x"], other)], other, [], [_value(other)]
        )
        node = _node("If", ["yes"], out, then_branch=body, else_branch=alternative)
        body = helper.make_graph([node], f"graph{level}", [], [_value(out)])
    return _model([*body.node, _node("Identity", [f"out{depth - 1}"], "y")], weights=[yes])


@pytest.mark.parametrize("depth", [5, 20])
def test_deeply_nested_graphs_are_refused(tmp_path, depth):
    _refused(tmp_path, _nested_ifs(depth), match="nested")


def _function(name, calls):
    nodes = [
        helper.make_node(called, ["a" if i == 0 else f"t{i}"], [f"t{i + 1}"], domain="f")
        for i, called in enumerate(calls)
    ]
    nodes.append(helper.make_node("Relu", [f"t{len(calls)}" if calls else "a"], ["b"]))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], nodes, opsets)


def _calling(name, functions):
    call = _node(name, ["x"], "y", domain="f")
    return _model([call], functions=functions, imports=["f"])


def test_functions_that_double_at_each_level_are_refused_at_once(tmp_path):
    functions = [_function("f0", [])]
    functions += [_function(f"f{i}", [f"f{i - 1}"] * 2) for i in range(1, 16)]
    started = time.monotonic()
    _refused(tmp_path, _calling("f15", functions), match="inlining")
    assert time.monotonic() - started < 2


def test_a_function_that_calls_itself_is_refused(tmp_path):
    functions = [_function("f0", ["f1"]), _function("f1", ["f0"])]
    _refused(tmp_path, _calling("f0", functions), match="calls itself")


def test_a_long_chain_of_functions_is_refused(tmp_path):
    functions = [_function("f0", [])] + [_function(f"f{i}", [f"f{i - 1}"]) for i in range(1, 100)]
    _refused(tmp_path, _calling("f99", functions), match="deep")


def test_too_many_functions_are_refused(tmp_path):
    functions = [_function(f"f{i}", []) for i in range(limits.MAX_FUNCTIONS + 1)]
    _refused(tmp_path, _calling("f0", functions), match="functions")


def test_functions_within_the_limits_are_inlined(tmp_path):
    functions = [_function("f0", []), _function("f1", ["f0", "f0"])]
    path = tmp_path / "model.onnx"
    onnx.save(_calling("f1", functions), path)
    graph = formats.load(path)
    assert [node.op_type for node in graph.nodes] == ["Relu"] * 3
    assert not graph.model.functions


def test_too_many_nodes_are_refused_quickly(tmp_path):
    nodes = [_node("Relu", ["x"], f"y{i}") for i in range(limits.MAX_NODES)]
    started = time.monotonic()
    _refused(tmp_path, _model([*nodes, _relu()]), match="nodes")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["a\nb", "<b>" * 100, "x" * 100_000, "bell" + chr(7)])
def test_names_are_short_and_printable(tmp_path, name):
    error = _refused(tmp_path, _model([_node("Relu", ["x"], "y", name=name)]), match="name")
    assert len(error.message) < 300
    assert error.message.isprintable()


def test_metadata_of_the_model_is_kept_that_of_graph_and_nodes_dropped_and_large_refused(tmp_path):
    model = _model([_relu()])
    model.metadata_props.add(key="classes", value="cat,dog")
    model.graph.node[0].metadata_props.add(key="trace", value="file.py line 1")
    model.graph.metadata_props.add(key="signature", value="v" * 2**17)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    formats.save(formats.load(path), path)
    assert onnx.load(path).metadata_props[0].value == "cat,dog"
    assert not onnx.load(path).graph.node[0].metadata_props
    assert not onnx.load(path).graph.metadata_props
    model.metadata_props.add(key="large", value="v" * 2**17)
    _refused(tmp_path, model, match="metadata")


def test_two_graphs_that_a_parser_would_merge_are_refused(tmp_path):
    whole = _model([_relu()]).SerializeToString()
    _refused(tmp_path, whole + whole, match="occurs 2 times")


_BOMBS = {
    "ConstantOfShape": ["shape"],
    "Expand": ["one", "shape"],
    "Tile": ["one", "shape"],
    "Range": ["from", "to", "by"],
}


@pytest.mark.parametrize("kind", _BOMBS)
def test_a_bomb_that_grows_when_it_runs_is_refused(tmp_path, kind):
    weights = {
        "shape": np.array([2**20, 2**20], np.int64),
        "one": np.ones((1, 1), np.float32),
        "from": np.array(0, np.float32),
        "to": np.array(1e12, np.float32),
        "by": np.array(1, np.float32),
    }
    nodes = [
        _node(kind, _BOMBS[kind], "big"),
        _node("ReduceMax", ["big"], "small", keepdims=0),
        _node("Add", ["x", "small"], "y"),
    ]
    used = [numpy_helper.from_array(weights[name], name) for name in _BOMBS[kind]]
    _refused(tmp_path, _model(nodes, weights=used), match="bytes for activations")


def test_an_endless_loop_is_refused(tmp_path):
    flag = ((), TensorProto.BOOL)
    body = helper.make_graph(
        [_node("Identity", ["going"], "still"), _node("Identity", ["v"], "w")],
        "body",
        [_value("i", (), TensorProto.INT64), _value("going", *flag), _value("v")],
        [_value("still", *flag), _value("w")],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    loop = _node("Loop", ["", "yes", "x"], "y", body=body)
    _refused(tmp_path, _model([loop], weights=[yes]), errors.Unsupported, match="trip count")


def test_shapes_that_do_not_fit_are_refused_with_the_nodes_name(tmp_path):
    weight = numpy_helper.from_array(np.zeros((5, 3), np.float32), "w")
    model = _model([_node("MatMul", ["x", "w"], "y", name="misfit")], weights=[weight])
    _refused(tmp_path, model, match="misfit")


def test_the_limits_are_those_of_the_design():
    assert limits.MAX_NODES == 50_000
    assert tensor_limits.MAX_RANK == 8
    assert limits.MAX_FILE_BYTES == 2**31 - 1
