"""Weights in few bits on real MNIST (D7): rounding, GPTQ, AWQ and mixed bits, ours beside ONNX Runtime's own MatMulNBitsQuantizer.

A convolutional net, a depthwise net and a small transformer. Accuracy is that of exported files in ONNX Runtime on 1,000 test images. What is smaller
is counted over all weights of convolutions and matrix products with their scales and zero points, and over the whole file.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import matmul_nbits_quantizer

from benchmarks import _mnist, _nets, _record, _seeds
from modelpress.spec.quantize import QuantizeBits
from workers.engine import context, formats, passes
from workers.engine.measure import latency

EPOCHS = {"LeNet-5": 5, "depthwise": 6, "transformer": 15}
STEPS: dict[str, dict[str, Any]] = {
    "4 bits, to nearest, a scale per output": {"group_size": None},
    "4 bits, GPTQ, a scale per output": {"group_size": None, "method": "gptq"},
    "4 bits, AWQ, a scale per output": {"group_size": None, "method": "awq"},
    "4 bits, to nearest, groups of 32": {},
    "4 bits, GPTQ, groups of 32": {"method": "gptq"},
    "3 bits, GPTQ, groups of 32": {"bits": 3, "method": "gptq"},
    "2 bits, to nearest, groups of 32": {"bits": 2},
    "2 bits, GPTQ, groups of 32": {"bits": 2, "method": "gptq"},
    "2, 4 or 8 bits by sensitivity, mean 4, GPTQ": {
        "mixed": {"average_bits": 4},
        "method": "gptq",
        "group_size": None,
    },
    "4 bits, packed at run time, groups of 32": {"unpack": "run"},
}
PEER = "ONNX Runtime, 4 bits, blocks of 32"
FLOAT = "float32"


@dataclass(frozen=True)
class Row:
    """One file of one seed."""

    net: str
    method: str
    accuracy: float
    weight_bytes: int
    """Of convolutions and matrix products, with their scales and zero points."""
    file_bytes: int
    speedup: float
    seconds: float
    """Of processor time for quantizing."""


def main() -> None:
    """Measures, prints the table, writes bench-output/bits.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bits", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--nets", nargs="*", default=list(_nets.NETS), choices=list(_nets.NETS))
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    asked = parser.parse_args()
    began = time.perf_counter()
    work = partial(measure, nets=tuple(asked.nets))
    rows = [row for found in _seeds.each(work, asked.seeds, asked.processes) for row in found]
    _print(rows)
    figures = {
        "seeds": asked.seeds,
        "rows": [asdict(row) for row in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(f"written to {_record.write('bits', figures)}")


def measure(seed: int, *, nets: tuple[str, ...]) -> list[Row]:
    """All files of one seed."""
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        return [_shown(row) for net in nets for row in _rows(net, seed, Path(folder))]


def _shown(row: Row) -> Row:
    """Tells of each row as it comes: the whole takes minutes."""
    print(
        f"{row.net}, {row.method}: {row.accuracy:.3f}, {row.weight_bytes:,} bytes of weights, {row.file_bytes:,} of the file, "
        f"{row.speedup:.2f} times as fast, {row.seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    return row


def _rows(net: str, seed: int, folder: Path) -> Iterator[Row]:
    found = _mnist.splits()
    _mnist.save(found, folder)
    torch.manual_seed(seed)
    network = _nets.NETS[net]()
    _mnist.fit(network, found["train"], EPOCHS[net])
    path = folder / f"{net}.onnx"
    _mnist.export(network.eval(), path)
    look = partial(_row, net, path, images=found["test"])
    yield look(FLOAT, path, _weight_bytes(path), 0.0)
    for number, (method, options) in enumerate(STEPS.items()):
        began, out = time.process_time(), folder / "ours.onnx"
        ctx = _mnist.surroundings(path, seed=seed, step=number)
        result = passes.apply(formats.load(path), QuantizeBits(**options), ctx)
        formats.save(result, out)
        yield look(method, out, _told(ctx), time.process_time() - began)
    began, out = time.process_time(), folder / "peer.onnx"
    changed = _peer(path, out)
    yield look(PEER + changed, out, _peer_bytes(out), time.process_time() - began)


def _row(
    net: str,
    original: Path,
    method: str,
    path: Path,
    weight_bytes: int,
    seconds: float,
    *,
    images: _mnist.Split,
) -> Row:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": images.images})[0]
    right = float((scores.argmax(1) == images.labels).mean())
    one = {"image": images.images[:1]}
    faster = latency.speedups(path, original, one, threads=1, stretches=3, budget_s=0.3)
    size = path.stat().st_size
    return Row(net, method, right, weight_bytes, size, float(np.median(faster)), seconds)


def _weight_bytes(path: Path) -> int:
    """Of all weights of more than one axis."""
    arrays = (onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    return sum(a.nbytes for a in arrays if a.ndim > 1 and a.dtype == np.float32)


def _told(ctx: context.Context) -> int:
    """Bytes of codes, scales and zero points as the report has them."""
    changes = (touched.change for touched in ctx.coverage.touched)
    return sum(int(c.split(" -> ")[1].split(" bytes")[0].replace(",", "")) for c in changes)


def _peer(path: Path, out: Path) -> str:
    """What MatMulNBitsQuantizer makes; answers what is to be said of it."""
    logging.disable(logging.WARNING)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(path), bits=4, block_size=32, is_symmetric=True, accuracy_level=1
    )
    quantizer.process()
    logging.disable(logging.NOTSET)
    onnx.save(quantizer.model.model, out)
    kinds = [node.op_type for node in quantizer.model.model.graph.node]
    return "" if "MatMulNBits" in kinds else " (found no MatMul: nothing changed)"


def _peer_bytes(path: Path) -> int:
    """Of all weights of more than one axis, and of what MatMulNBits reads in their place."""
    graph = onnx.load(path).graph
    read = {name for n in graph.node if n.op_type == "MatMulNBits" for name in n.input[1:4]}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return sum(
        a.nbytes
        for name, a in arrays.items()
        if name in read or (a.ndim > 1 and a.dtype == np.float32)
    )


def _print(rows: list[Row]) -> None:
    """A table as docs/benchmarks.md has it: means over the seeds."""
    print(
        "\n| net | method | accuracy, % | points lost | weights smaller | file smaller | times faster | s |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for net, method in dict.fromkeys((row.net, row.method) for row in rows):
        same = [row for row in rows if (row.net, row.method) == (net, method)]
        base = [row for row in rows if (row.net, row.method) == (net, FLOAT)]
        accuracy, was = (100 * fmean(r.accuracy for r in of) for of in (same, base))
        weights = base[0].weight_bytes / fmean(r.weight_bytes for r in same)
        files = base[0].file_bytes / fmean(r.file_bytes for r in same)
        faster, seconds = fmean(r.speedup for r in same), fmean(r.seconds for r in same)
        print(
            f"| {net} | {method} | {accuracy:.2f} | {was - accuracy:.2f} | x{weights:.2f} | x{files:.2f} | {faster:.2f} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
