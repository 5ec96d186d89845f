"""Is what ONNX Runtime computes what the engine computes? Asked of the upload at once, of the artifact by another process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workers.engine import probes
from workers.engine.errors import Unsupported
from workers.engine.gauge import Gauge
from workers.engine.graph import Graph, execute
from workers.engine.measure import session
from workers.engine.probes import Arrays, Probe, Probes

SAMPLES = 16
FLOAT_TOLERANCE = 1e-3
"""Of the largest output: two orders of summation of float32 over deep networks stay below it."""
HALF_TOLERANCE = 2e-2
"""The same where tensors are float16."""
CODE_TOLERANCE = 5e-2
"""The same for an upload that is quantized already: values at the border of two codes may go either way."""

_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_IN_INT8 = 4
"""Accuracy level of a MatMulNBits that rounds its input."""


def check_reproduces(original: Path, source: Graph, gauge: Gauge) -> None:
    """Compares the engine's answers with ONNX Runtime's on the uploaded file, before anything is built on them.

    Raises:
        BadModel: ONNX Runtime can't run the file.
        Unsupported: the answers differ.
    """
    inputs = _batch(gauge, _batch_sizes(gauge)[0])
    ours = execute.run(source, inputs)
    opened = session.open(original, threads=gauge.threads)
    theirs = dict(zip(opened.outputs, opened.run(inputs), strict=True))
    tolerance = _float_tolerance(source, theirs)
    if _has_codes(source):
        tolerance *= CODE_TOLERANCE / FLOAT_TOLERANCE
    difference = _largest_difference(ours, theirs)
    if difference > tolerance:
        raise Unsupported(
            f"the engine computes this model differently from ONNX Runtime: outputs differ by {difference:.3g}, "
            f"{tolerance:.3g} is allowed",
            hint="a model with random operators can't be compressed; otherwise please report it with the model",
        )


def example(gauge: Gauge) -> Arrays:
    """Inputs of a few samples, of the fixed batch where there is one."""
    return _batch(gauge, _batch_sizes(gauge)[0])


def write(jobdir: Path, graph: Graph, before: Graph, gauge: Gauge) -> None:
    """Leaves probes of the final graph for the verification.

    ONNX Runtime's integer kernels may round a value at the border of two codes to the other side, and what follows with
    it. Where the graph has codes, the tolerance is therefore the difference that the last step itself made (from
    `before`): the artifact must not be further from the engine than int8 from float.
    """
    runs = [_probe(graph, _batch(gauge, size)) for size in _batch_sizes(gauge)]
    tolerance = max(_float_tolerance(graph, run.outputs) for run in runs)
    if _has_codes(graph):
        floats = [_probe(before, run.inputs) for run in runs]
        moved = [
            _largest_difference(a.outputs, b.outputs) for a, b in zip(runs, floats, strict=True)
        ]
        tolerance = max(tolerance, *moved)
    probes.write(jobdir, Probes(runs, tolerance))


def _has_codes(graph: Graph) -> bool:
    return any(
        node.op_type in _ROUNDING or node.attributes.get_int("accuracy_level", 0) == _IN_INT8
        for node in graph.nodes
    )


def _probe(graph: Graph, inputs: Arrays) -> Probe:
    return Probe(inputs, execute.run(graph, inputs))


def _batch_sizes(gauge: Gauge) -> Sequence[int]:
    """Two sizes where the batch is free, the fixed one otherwise."""
    if gauge.fixed_batch is not None:
        return (gauge.fixed_batch,)
    return (min(SAMPLES, gauge.samples.samples), 1)


def _batch(gauge: Gauge, size: int) -> Arrays:
    """The first samples, repeated where there are fewer."""
    return gauge.samples.batch(np.arange(size) % gauge.samples.samples)


def _float_tolerance(graph: Graph, outputs: Arrays) -> float:
    half = any(v.dtype is not None and v.dtype.bitwidth == 16 for v in graph.initializers.values())
    share = HALF_TOLERANCE if half else FLOAT_TOLERANCE
    arrays = [array for array in outputs.values() if isinstance(array, np.ndarray)]
    largest = max(map(_magnitude, arrays), default=0.0)
    return share * max(largest, 1e-3)


def _magnitude(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else np.zeros(0)
    return float(np.abs(finite).max(initial=0.0))


def _largest_difference(ours: Arrays, theirs: Arrays) -> float:
    """Over all float outputs; infinite where shapes differ."""
    largest = 0.0
    for name, array in theirs.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
            continue
        if ours[name].shape != array.shape:
            return float("inf")
        gap = np.abs(ours[name].astype(np.float64) - array.astype(np.float64))
        largest = max(largest, float(np.nan_to_num(gap, nan=0.0, posinf=0.0).max()))
    return largest
