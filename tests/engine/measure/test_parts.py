"""What the bytes of a file are for: every byte once, in the part that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelpress.spec.recipe import parse
from modelpress.spec.report import SizeParts
from tests.engine import jobs, nets
from workers.engine import formats, passes
from workers.engine.graph import Graph
from workers.engine.measure import parts
from workers.engine.measure.parts import Part

WEIGHTS, CODEBOOKS, BIASES, NORMS, HEADERS = (
    Part.WEIGHTS,
    Part.CODEBOOKS,
    Part.BIASES,
    Part.NORMS,
    Part.HEADERS,
)


def graph_of(source: str, folder: Path) -> Graph:
    path = folder / "net.onnx"
    path.write_bytes(jobs.text(source).SerializeToString())
    return formats.load(path)


def stepped(net: str, step: dict[str, Any], folder: Path) -> Graph:
    """A tiny net after a step."""
    model, graph = jobs.load(net, folder)
    ctx = jobs.context_of(graph, folder, jobs.dataset_of(model))
    return passes.apply(graph, parse({"steps": [step]}).steps[0], ctx)


def told(graph: Graph, folder: Path) -> SizeParts:
    path = folder / "saved.onnx"
    formats.save(graph, path)
    size_bytes = path.stat().st_size
    found = parts.measure(graph, size_bytes)
    assert sum(found.model_dump().values()) == size_bytes
    return found


def bytes_in(graph: Graph, part: Part) -> int:
    tensors = (graph.initializers[n].const_value for n, p in parts.of(graph).items() if p is part)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def test_weights_biases_and_norms_are_told_apart(tmp_path: Path) -> None:
    graph = graph_of(
        """g (float[n, 3, 6, 6] x) => (float[n, 8] y)
        <float[4, 3, 3, 3] w, float[4] b, float[4] gain, float[4] offset, float[4] mean, float[4] var, float[64, 8] v, float[8] c> {
          a = Conv(x, w, b)
          m = BatchNormalization(a, gain, offset, mean, var)
          f = Flatten(m)
          p = MatMul(f, v)
          y = Add(p, c)
        }""",
        tmp_path,
    )
    assert parts.of(graph) == {
        "w": WEIGHTS,
        "b": BIASES,
        **dict.fromkeys(("gain", "offset", "mean", "var"), NORMS),
        "v": WEIGHTS,
        "c": BIASES,
    }
    found = told(graph, tmp_path)
    assert found.weights_bytes == 4 * (4 * 27 + 64 * 8)
    assert found.biases_bytes == 4 * (4 + 8)
    assert found.norms_bytes == 4 * 4 * 4
    assert found.codebooks_bytes == found.tables_bytes == 0
    assert 0 < found.headers_bytes < 2000


def test_a_mask_and_a_shape_are_headers(tmp_path: Path) -> None:
    graph = graph_of(
        """g (float[n, 4] x) => (float[n, 2, 2] y)
        <float[4, 4] w> {
          shape = Constant <value = int64[3] {-1, 2, 2}> ()
          half = Constant <value = float {0.5}> ()
          p = MatMul(x, w)
          h = Mul(p, half)
          y = Reshape(h, shape)
        }""",
        tmp_path,
    )
    found = parts.of(graph)
    assert found.pop("w") is WEIGHTS
    assert set(found.values()) == {HEADERS}


def test_a_vector_of_one_channel_axis_is_a_bias_whatever_its_rank(tmp_path: Path) -> None:
    graph = graph_of(
        """g (float[n, 4] x) => (float[n, 4] y) <float[4, 4] w, float[1, 4] c> {
          p = MatMul(x, w)
          y = Add(p, c)
        }""",
        tmp_path,
    )
    assert parts.of(graph) == {"w": WEIGHTS, "c": BIASES}


def test_int8_has_codes_scales_and_integer_biases(tmp_path: Path) -> None:
    graph = stepped("plain_cnn", {"kind": "quantize.int8"}, tmp_path)
    found = parts.of(graph)
    for name, part in found.items():
        if name.endswith("_int8"):
            assert part is WEIGHTS, name
        elif name.endswith("_int32"):
            assert part is BIASES, name
        elif name.endswith(("_scale", "_zero")) or name.startswith("zeros_"):
            assert part is CODEBOOKS, name
    weights = sum(w.size for w in (graph.weight(n) for n in found if n.endswith("_int8")))
    assert told(graph, tmp_path).weights_bytes == weights


@pytest.mark.parametrize("unpack", ["load", "run"])
def test_few_bits_have_packed_codes_and_scales(unpack: str, tmp_path: Path) -> None:
    step = {"kind": "quantize.bits", "bits": 4, "unpack": unpack}
    graph = stepped("matmul_mlp", step, tmp_path)
    _, plain = jobs.load("matmul_mlp", tmp_path)
    elements = sum(plain.weight(n).size for n, p in parts.of(plain).items() if p is WEIGHTS)
    found = told(graph, tmp_path)
    whole_blocks = 1.5  # MatMulNBits fills up the last block of each row
    assert elements / 2 <= found.weights_bytes <= whole_blocks * elements / 2
    assert 0 < found.codebooks_bytes < found.weights_bytes
    assert found.biases_bytes == bytes_in(plain, BIASES)


def test_a_table_of_shared_values_is_a_codebook(tmp_path: Path) -> None:
    graph = stepped("plain_cnn", {"kind": "quantize.cluster", "conv_bits": 4, "bits": 4}, tmp_path)
    found = parts.of(graph)
    assert {p for n, p in found.items() if n.endswith("_table")} == {CODEBOOKS}
    assert {p for n, p in found.items() if n.endswith("_codes")} == {WEIGHTS}


def test_signs_are_weights_and_what_reads_them_is_little(tmp_path: Path) -> None:
    step = {"kind": "quantize.binary", "float_ends": False, "training": {"epochs": 1}}
    graph = stepped("plain_cnn", step, tmp_path)
    found = parts.of(graph)
    codes = [name for name in found if name.endswith("_codes")]
    assert codes
    assert {found[name] for name in codes} == {WEIGHTS}
    beside = {part for name, part in found.items() if name.endswith(("_shift", "_scale"))}
    assert beside == {CODEBOOKS}
    _, plain = jobs.load("plain_cnn", tmp_path)
    elements = sum(plain.weight(n).size for n, p in parts.of(plain).items() if p is WEIGHTS)
    assert bytes_in(graph, WEIGHTS) <= elements / 8 + len(codes)


@pytest.mark.parametrize("net", sorted(nets.NETS))
def test_every_byte_of_every_net_is_in_one_part(net: str, tmp_path: Path) -> None:
    _, graph = jobs.load(net, tmp_path)
    found = told(graph, tmp_path)
    assert found.weights_bytes > 0
    assert found.weights_bytes == bytes_in(graph, WEIGHTS)
    assert found.codebooks_bytes == found.tables_bytes == 0
