"""Weights in few bits on real MNIST (D7): rounding, GPTQ, AWQ and mixed bits, ours beside ONNX Runtime's own MatMulNBitsQuantizer.

A convolutional net, a depthwise net and a small transformer. Accuracy is that of exported files in ONNX Runtime on 1,000 test images, which no setting
was chosen by: those of GPTQ "in turn" were chosen on the validation images of the depthwise net. What is smaller is counted three times, with scales and
zero points: over all weights of convolutions and matrix products; over the whole file; and over the whole file as code.entropy packs it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import matmul_nbits_quantizer

from benchmarks import _quantized
from benchmarks._quantized import FLOAT, Trained
from modelpress.spec.quantize import QuantizeBits
from workers.engine import context
from workers.engine.formats import packing

IN_TURN = {"method": "gptq", "act_order": True, "sequential": True, "bias_correction": True}
OURS: Mapping[str, dict[str, Any]] = {
    "4 bits, to nearest, a scale per output": {"group_size": None},
    "4 bits, to nearest, biases, a scale per output": {
        "group_size": None,
        "bias_correction": True,
    },
    "4 bits, GPTQ, a scale per output": {"group_size": None, "method": "gptq"},
    "4 bits, GPTQ, biases, a scale per output": {
        "group_size": None,
        "method": "gptq",
        "bias_correction": True,
    },
    "4 bits, GPTQ in turn, biases, a scale per output": {"group_size": None, **IN_TURN},
    "4 bits, AWQ, a scale per output": {"group_size": None, "method": "awq"},
    "4 bits, to nearest, groups of 32": {},
    "4 bits, GPTQ in turn, biases, groups of 32": IN_TURN,
    "3 bits, GPTQ in turn, biases, groups of 32": {"bits": 3, **IN_TURN},
    "2 bits, to nearest, groups of 32": {"bits": 2},
    "2 bits, GPTQ, groups of 32": {"bits": 2, "method": "gptq"},
    "2 bits, GPTQ in turn, biases, groups of 32": {"bits": 2, **IN_TURN},
    "2, 4 or 8 bits by sensitivity, mean 4, GPTQ": {
        "mixed": {"average_bits": 4},
        "method": "gptq",
        "group_size": None,
    },
    "4 bits, packed at run time, groups of 32": {"unpack": "run"},
}
QUICK = (
    "4 bits, to nearest, a scale per output",
    "4 bits, GPTQ, a scale per output",
    "4 bits, GPTQ, biases, a scale per output",
    "4 bits, GPTQ in turn, biases, a scale per output",
)
PEER = "MatMulNBitsQuantizer, 4 bits, blocks of 32"


@dataclass(frozen=True, kw_only=True)
class Row(_quantized.Row):
    """One file of one seed."""

    weight_bytes: int = 0
    """Of convolutions and matrix products, with their scales and zero points."""
    coded_bytes: int = 0
    """Of the file as code.entropy packs it."""


def rows(trained: Trained, quick: bool) -> Iterator[Row]:
    """All files of one network."""
    logging.getLogger().setLevel(logging.WARNING)  # the quantizer's module asks for more
    yield _row(trained, FLOAT, trained.path, 0.0, _weight_bytes(trained.path))
    for number, method in enumerate(QUICK if quick else OURS):
        ctx = trained.surroundings(number)
        made = trained.apply(QuantizeBits(**OURS[method]), ctx)
        yield _row(trained, method, *made, _told(ctx))
    began, out = time.process_time(), trained.out("peer.onnx")
    changed = _peer(trained.path, out)
    if changed:
        yield _row(trained, PEER, out, time.process_time() - began, _peer_bytes(out))
    else:
        said = "found no MatMul, nothing changed"
        yield Row(net=trained.net, seed=trained.seed, method=PEER, failure=said)


def _row(trained: Trained, method: str, path: Path, seconds: float, weight_bytes: int) -> Row:
    coded = trained.out("coded.mpk")
    packing.pack(path, coded, "entropy")
    return Row(
        net=trained.net,
        seed=trained.seed,
        method=method,
        accuracy=trained.accuracy(path),
        file_bytes=path.stat().st_size,
        speedup=trained.speedup(path, trained.path),
        seconds=seconds,
        weight_bytes=weight_bytes,
        coded_bytes=coded.stat().st_size,
    )


def _weight_bytes(path: Path) -> int:
    """Of all weights of more than one axis."""
    arrays = (onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    return sum(a.nbytes for a in arrays if a.ndim > 1 and a.dtype == np.float32)


def _told(ctx: context.Context) -> int:
    """Bytes of codes, scales and zero points as the report has them."""
    changes = (touched.change for touched in ctx.coverage.touched)
    return sum(int(c.split(" -> ")[1].split(" bytes")[0].replace(",", "")) for c in changes)


def _peer(path: Path, out: Path) -> bool:
    """What MatMulNBitsQuantizer makes; answers whether it changed anything."""
    logging.disable(logging.WARNING)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(path), bits=4, block_size=32, is_symmetric=True, accuracy_level=1
    )
    quantizer.process()
    logging.disable(logging.NOTSET)
    onnx.save(quantizer.model.model, out)
    return any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node)


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


def _coded(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """Packed bytes, against the float file as it is."""
    return f"x{fmean(row.file_bytes for row in base) / fmean(row.coded_bytes for row in rows):.2f}"


BENCHMARK = _quantized.Benchmark(
    name="bits",
    about=__doc__,
    kind=Row,
    rows=rows,
    columns={
        "accuracy, %": _quantized.ACCURACY,
        "points lost": _quantized.points_lost,
        "weights smaller": _quantized.smaller(lambda row: row.weight_bytes),
        "file smaller": _quantized.FILE,
        "coded smaller": _coded,
        "times faster": _quantized.FASTER,
        "s": _quantized.SECONDS,
    },
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
