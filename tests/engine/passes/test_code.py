"""The steps that write packed files: what they leave, what they leave alone, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from modelpress import packed
from modelpress.spec import order
from modelpress.spec.recipe import parse
from tests.engine import jobs
from workers.engine import formats, passes
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph

KINDS = ("code.huffman", "code.entropy")
BITS = {"kind": "quantize.bits", "bits": 4, "group_size": None}
PRUNE = {"kind": "prune.magnitude", "sparsity": 0.8}


def packed_by(
    folder: Path, steps: list[dict[str, Any]], net: str = "plain_cnn"
) -> tuple[Graph, Context]:
    """A tiny net after all steps, and the surroundings of the last."""
    model, graph = jobs.load(net, folder)
    for step in parse({"steps": steps}).steps:
        ctx = jobs.context_of(graph, folder, jobs.dataset_of(model))
        graph = passes.apply(graph, step, ctx)
    return graph, ctx


def skipped(ctx: Context) -> dict[str, str]:
    return {skipped.layer: skipped.reason for skipped in ctx.coverage.skipped}


def touched(ctx: Context) -> set[str]:
    return {touched.layer for touched in ctx.coverage.touched}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_file_gives_the_model_and_every_byte_has_a_part(kind: str, tmp_path: Path) -> None:
    graph, ctx = packed_by(tmp_path, [PRUNE, {"kind": kind}])
    [file] = ctx.coverage.files
    assert file.name == order.PACKED
    formats.save(graph, tmp_path / "model.onnx")
    packed.unpack(file, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert ctx.coverage.coded is not None
    assert sum(ctx.coverage.coded.model_dump().values()) == file.stat().st_size
    assert any(f"{file.stat().st_size:,} bytes" in note for note in ctx.coverage.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_excluded_tensor_is_stored_as_it_is(kind: str, tmp_path: Path) -> None:
    _, ctx = packed_by(tmp_path, [PRUNE, {"kind": kind, "exclude": ["weight_20"]}])
    assert skipped(ctx)["weight_20"] == "excluded by the recipe: stored as it is"
    assert {"weight_1", "weight_10"} <= touched(ctx)
    assert not any("exclude" in note for note in ctx.coverage.notes)
    [file] = ctx.coverage.files
    plain = onnx.load(tmp_path / "plain_cnn.onnx")
    [size] = [4 * t_size(t) for t in plain.graph.initializer if t.name == "weight_20"]
    assert file.stat().st_size > size


def t_size(tensor: onnx.TensorProto) -> int:
    found = 1
    for size in tensor.dims:
        found *= size
    return found


def test_a_tensor_is_excluded_by_the_node_that_reads_it(tmp_path: Path) -> None:
    """Also where its codes are decoded first: nobody knows how they are called."""
    graph, _ = packed_by(tmp_path, [BITS])
    [layer] = [node for node in graph.nodes if node.op_type == "Conv"][-1:]
    (tmp_path / "again").mkdir()
    step = {"kind": "code.entropy", "exclude": [layer.name]}
    _, ctx = packed_by(tmp_path / "again", [BITS, step])
    excluded = {name for name, reason in skipped(ctx).items() if "excluded" in reason}
    assert any(name.endswith("_codes") for name in excluded)
    assert any(name.endswith("_codes") for name in touched(ctx))
    assert not any(name.startswith("exclude") for name in ctx.coverage.notes)


def test_a_pattern_that_matches_nothing_is_told(tmp_path: Path) -> None:
    step = {"kind": "code.entropy", "exclude": ["weight_20", "nothing_*"]}
    _, ctx = packed_by(tmp_path, [PRUNE, step])
    [note] = [note for note in ctx.coverage.notes if note.startswith("exclude")]
    assert "'nothing_*'" in note


def test_everything_excluded_leaves_the_header_to_win(tmp_path: Path) -> None:
    _, ctx = packed_by(tmp_path, [PRUNE, {"kind": "code.entropy", "exclude": ["*"]}])
    assert touched(ctx) == set()
    assert ctx.coverage.coded is not None
    elements = sum(t_size(t) for t in onnx.load(tmp_path / "plain_cnn.onnx").graph.initializer)
    assert sum(ctx.coverage.coded.model_dump().values()) > 4 * elements


def test_a_model_that_no_code_makes_smaller_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(
        jobs.text(
            "g (float[n, 4] x) => (float[n, 4] y) <float[1, 4] w> { y = Add(x, w) }"
        ).SerializeToString()
    )
    graph = formats.load(path)
    ctx = jobs.context_of(graph, tmp_path, None)
    with pytest.raises(NothingChanged, match=r"wrote [\d,]+ bytes for a model of"):
        passes.apply(graph, parse({"steps": [{"kind": "code.entropy"}]}).steps[0], ctx)
    assert ctx.coverage.files == []
