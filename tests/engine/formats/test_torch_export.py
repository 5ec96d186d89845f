"""A .pt2 file becomes ONNX: the same network, or a refusal that says why. What it smuggles never runs."""

from __future__ import annotations

import dataclasses
import json
import pickle
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union

from tests.engine import exported
from workers.engine.errors import BadModel, EngineError, Unsupported
from workers.engine.formats import torch_export
from workers.engine.formats.pt2 import archive, fields, operators, texts
from workers.engine.graph import Graph, execute

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("exported")
    return {
        name: exported.save(
            exported.network(name), exported.sample(name, 2), folder / f"{name}.pt2"
        )
        for name in exported.NETS
    }


@pytest.fixture(scope="module")
def graphs(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    work = tmp_path_factory.mktemp("work")
    return {name: torch_export.convert(path, work) for name, path in files.items()}


@pytest.mark.parametrize("name", exported.NETS)
def test_converted_network_computes_the_same_for_any_batch(
    name: str, files: Files, graphs: dict[str, Graph]
) -> None:
    for batch in (1, 7):
        inputs = exported.sample(name, batch)
        wanted = exported.run_torch(files[name], inputs)
        feeds = {graphs[name].inputs[0].name or "": inputs.numpy()}
        for ours, theirs in zip(execute.run(graphs[name], feeds).values(), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_normalization_is_kept_and_parameters_keep_their_names(graphs: dict[str, Graph]) -> None:
    graph = graphs["convolutional"]
    assert "BatchNormalization" in {node.op_type for node in graph.nodes}
    wanted = set(exported.network("convolutional").state_dict()) - {"bn.num_batches_tracked"}
    assert wanted <= set(graph.initializers)


def test_convolution_without_bias_gets_none(graphs: dict[str, Graph]) -> None:
    [conv] = [node for node in graphs["convolutional"].nodes if node.op_type == "Conv"]
    assert len(conv.inputs) == 2
    assert "Expand" not in {node.op_type for node in graphs["convolutional"].nodes}


def test_tied_weights_stay_one(graphs: dict[str, Graph]) -> None:
    large = [name for name, v in graphs["tied"].initializers.items() if v.const_value.size == 160]
    assert len(large) == 1


def test_free_batch_has_a_name_and_a_fixed_one_a_note(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    graph = graphs["convolutional"]
    assert [str(value.shape[0]) for value in (*graph.inputs, *graph.outputs)] == ["batch", "batch"]
    assert torch_export.notes(graph) == ()
    path = exported.save(
        exported.network("convolutional"),
        exported.sample("convolutional", 1),
        tmp_path / "fixed.pt2",
        free=False,
    )
    heard: list[float] = []
    fixed = torch_export.convert(path, tmp_path, lambda fraction, message: heard.append(fraction))
    assert fixed.inputs[0].shape[0] == 1
    assert "dynamic_shapes" in torch_export.notes(fixed)[0]
    assert heard == sorted(heard)
    assert len(heard) > 2


# what can't be converted, or must not be


def program(path: Path) -> schema.ExportedProgram:
    return fields.program(archive.open(path).read_json(archive.PROGRAM))


def nodes(content: dict) -> list[dict]:
    return content["graph_module"]["graph"]["nodes"]


def set_target(target: str):
    return lambda content: nodes(content)[0].update(target=target)


def set_expression(text: str):
    def change(content: dict) -> None:
        values = content["graph_module"]["graph"]["tensor_values"]
        free = [size for meta in values.values() for size in meta["sizes"] if "as_expr" in size]
        free[0]["as_expr"]["expr_str"] = text

    return change


def rename_input(content: dict) -> None:
    graph = content["graph_module"]["graph"]
    graph["inputs"][-1]["as_tensor"]["name"] = "x):\n  import os\n  def f(y"


def set_weight(**about: object):
    return lambda content: content["config"]["conv.weight"].update(about)


def set_tensor(**about: object):
    return lambda content: content["config"]["conv.weight"]["tensor_meta"].update(about)


RUNS = "__import__('pathlib').Path('marker').touch()"

REFUSED_PROGRAMS = {
    "a function of python": (set_target("torch.os.system"), Unsupported),
    "an operator that opens a file": (set_target("torch.ops.aten.from_file.default"), Unsupported),
    "an operator that writes an argument": (set_target("torch.ops.aten.add.out"), Unsupported),
    "a custom operator": (set_target("torch.ops.mine.relu.default"), Unsupported),
    "a size that calls": (set_expression(RUNS), BadModel),
    "a size that never ends": (set_expression("9**9**9"), BadModel),
    "a size of powers of powers": (set_expression("((s0**4)**4)**4"), BadModel),
    "a size with attributes": (set_expression("s0.__class__"), BadModel),
    "a name that is code": (rename_input, BadModel),
    "another version": (lambda c: c["schema_version"].update(major=7), BadModel),
    "no version": (lambda c: c.pop("schema_version"), BadModel),
    "an object": (
        lambda c: nodes(c)[0]["inputs"][0].update(
            arg={"as_custom_obj": {"name": "a", "class_fqn": "b"}}
        ),
        Unsupported,
    ),
    "an unknown argument": (
        lambda c: nodes(c)[0]["inputs"][0].update(arg={"as_anything": 1}),
        BadModel,
    ),
    "a number as a name": (lambda c: nodes(c)[0].update(name=7), BadModel),
    "a huge number": (
        lambda c: nodes(c)[0]["inputs"][0].update(arg={"as_int": 2**70}),
        BadModel,
    ),
    "training": (
        lambda c: nodes(c)[0]["inputs"].append(
            {"name": "training", "arg": {"as_bool": True}, "kind": 1}
        ),
        Unsupported,
    ),
}


@pytest.mark.parametrize("case", REFUSED_PROGRAMS)
def test_hostile_program_is_refused_with_a_reason(case: str, files: Files, tmp_path: Path) -> None:
    change, error = REFUSED_PROGRAMS[case]
    path = exported.changed(files["convolutional"], tmp_path / "hostile.pt2", change)
    with pytest.raises(error) as raised:
        torch_export.convert(path, tmp_path)
    assert not raised.value.message.startswith("torch "), "it got as far as torch"
    assert not Path("marker").exists()


REFUSED_WEIGHTS = {
    "a pickled weight": (set_weight(use_pickle=True), Unsupported),
    "a weight from another place": (set_weight(path_name="../../etc/passwd"), Unsupported),
    "a weight that is missing": (set_weight(path_name="weight_99"), BadModel),
    "more than there is": (
        set_tensor(sizes=[{"as_int": 1 << 20}], strides=[{"as_int": 1}]),
        BadModel,
    ),
    "one element for ever": (
        set_tensor(sizes=[{"as_int": 1 << 30}], strides=[{"as_int": 0}]),
        BadModel,
    ),
    "a negative offset": (set_tensor(storage_offset={"as_int": -1}), BadModel),
    "a symbolic size": (
        set_tensor(sizes=[{"as_expr": {"expr_str": "s0"}}], strides=[{"as_int": 1}]),
        BadModel,
    ),
    "a sparse tensor": (set_tensor(layout=1), Unsupported),
    "complex numbers": (set_tensor(dtype=10), Unsupported),
}


@pytest.mark.parametrize("case", REFUSED_WEIGHTS)
def test_hostile_weight_is_refused_with_a_reason(case: str, files: Files, tmp_path: Path) -> None:
    change, error = REFUSED_WEIGHTS[case]
    path = exported.changed(
        files["convolutional"], tmp_path / "hostile.pt2", change, record=exported.WEIGHTS
    )
    with pytest.raises(error) as raised:
        torch_export.convert(path, tmp_path)
    assert not raised.value.message.startswith("torch "), "it got as far as torch"


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ("data/weights/model.pt", Unsupported),
        ("data/constants/model.pt", Unsupported),
        ("data/constants/custom_obj_0", Unsupported),
        ("data/constants/opaque_obj_0", Unsupported),
        ("data/aotinductor/model/x.so", Unsupported),
        ("../../escape", BadModel),
        ("models/other.json", BadModel),
    ],
)
def test_record_that_only_a_pickle_or_a_loader_reads_is_refused(
    record: str, error: type[EngineError], files: Files, tmp_path: Path
) -> None:
    path = exported.changed(files["convolutional"], tmp_path / "hostile.pt2", more={record: b"x"})
    with pytest.raises(error):
        torch_export.convert(path, tmp_path)


def test_compressed_or_doubled_records_are_refused(files: Files, tmp_path: Path) -> None:
    path = exported.changed(
        files["convolutional"], tmp_path / "bomb.pt2", compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(BadModel, match="compressed"):
        archive.open(path)
    with zipfile.ZipFile(files["convolutional"]) as opened:
        name = opened.namelist()[0]
    twice = tmp_path / "twice.pt2"
    twice.write_bytes(files["convolutional"].read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as opened:
        opened.writestr(name, b"")
    with pytest.raises(BadModel, match="two records"):
        archive.open(twice)


@pytest.mark.parametrize("limit", ["MAX_FILE_BYTES", "MAX_RECORDS", "MAX_JSON_BYTES"])
def test_more_than_a_limit_is_refused_with_both_numbers(
    limit: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, limit, 3)
    with pytest.raises(BadModel, match=r"has [\d,]+ (bytes|records); the limit is 3$"):
        torch_export.convert(files["convolutional"], tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"schema_version": {"major": 8, "major": 8}}',
        b"\xff",
        b"null",
        b'{"schema_version": {"major": 8, "minor": 0}}',
    ],
)
def test_malformed_json_is_refused(text: bytes) -> None:
    with pytest.raises(BadModel):
        fields.program(text)


def test_file_cut_anywhere_is_refused(files: Files, tmp_path: Path) -> None:
    content = files["tied"].read_bytes()
    path = tmp_path / "cut.pt2"
    for size in range(1, len(content), len(content) // 40):
        path.write_bytes(content[:size])
        with pytest.raises(EngineError):
            torch_export.convert(path, tmp_path)


class Smuggled:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_what_is_pickled_beside_the_weights_is_never_read(files: Files, tmp_path: Path) -> None:
    """torch itself reads it: the marker appears where its own reader is used."""
    marker = tmp_path / "marker"
    sample = pickle.dumps(Smuggled(marker))
    path = exported.changed(
        files["tied"], tmp_path / "hostile.pt2", more={"data/sample_inputs/model.pt": sample}
    )
    torch_export.convert(path, tmp_path)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011
        exported.run_torch(path)
    assert marker.exists()


def test_code_that_torch_would_run_is_left_out(files: Files, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def smuggle(content: dict) -> None:
        content["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch()"]
        content["verifiers"] = ["os.system"]
        for node in nodes(content):
            node["metadata"] = {"stack_trace": "a", "nn_module_stack": "b", "custom": "{"}
        [call] = [c for c in content["graph_module"]["module_call_graph"] if not c["fqn"]]
        leaf = {"type": None, "context": None, "children_spec": []}
        spec = {
            "type": "collections.defaultdict",
            "context": "antigravity",
            "children_spec": [leaf],
        }
        call["signature"]["out_spec"] = json.dumps([1, spec])

    path = exported.changed(files["tied"], tmp_path / "hostile.pt2", smuggle)
    graph = torch_export.convert(path, tmp_path)
    assert len(graph.outputs) == 1
    assert not marker.exists()


def test_unknown_operators_are_all_named() -> None:
    with pytest.raises(Unsupported, match=r"aten\.fft_fft2\.default, mine\.relu\.default"):
        operators.check(
            [
                "torch.ops.mine.relu.default",
                "torch.ops.aten.fft_fft2.default",
                "torch.ops.aten.add.Tensor",
            ]
        )


def test_every_text_of_the_schema_has_a_rule() -> None:
    """A field that a newer torch adds must be looked at before it gets through."""
    missing, seen = [], set()

    def look(kind: object, key: str) -> None:
        for inner in typing.get_args(kind):
            look(inner, key)
        if kind is str and key not in fields.TEXTS:
            missing.append(key)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or kind in seen:
            return
        seen.add(kind)
        for name, hint in typing.get_type_hints(kind, globalns=vars(schema)).items():
            key = f"{kind.__name__}.{name}"
            if (
                key not in fields.LEFT_OUT
                and key not in fields.REFUSED
                and not name.startswith("_")
            ):
                look(hint, key)

    look(schema.ExportedProgram, "")
    look(schema.PayloadConfig, "")
    assert missing == []
    assert issubclass(schema.Argument, _Union)


@pytest.mark.parametrize(
    "text",
    [
        "s77",
        "2*s77 + 1",
        "((s0 - 1)//2) + 1",
        "Symbol('s77', positive=True, integer=True)",
        "FloorDiv(Symbol('s0', integer=True), Integer(2))",
        "Max(1, s0)",
        "s0**2",
        "Eq",
    ][:-1],
)
def test_sizes_as_torch_writes_them_pass(text: str) -> None:
    assert texts.expression(text, "x") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "os",
        "eval('1')",
        "Symbol('os')",
        "Symbol('s0', real=1)",
        "lambda: 1",
        "s0 if s0 else 1",
        "[s0]",
        "s0[0]",
        "'s0'",
        "2**s0",
        "Max(*s0)",
        "-" * 1500 + "1",
        "1e9",
        "s0.real",
    ],
)
def test_sizes_that_are_more_than_arithmetic_do_not(text: str) -> None:
    with pytest.raises(BadModel):
        texts.expression(text, "x")


def test_operator_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    class Eigenvalues(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    path = exported.save(Eigenvalues(), torch.randn(2, 3, 3), tmp_path / "eigenvalues.pt2")
    with pytest.raises(Unsupported, match="eig") as raised:
        torch_export.convert(path, tmp_path)
    assert raised.value.hint
