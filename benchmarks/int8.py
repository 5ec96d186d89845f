"""8-bit integers on real MNIST (D7): calibrations, refinements and training, ours beside ONNX Runtime's own quantize_static.

A convolutional net, a depthwise net and a small transformer; the same 512 calibration samples, and as many bits, for both. Accuracy is that of
exported files in ONNX Runtime on 1,000 test images; speeds are of one image on one thread, timed in turn with the float file and with the
peer's.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization

from benchmarks import _mnist, _nets, _record, _seeds
from modelpress.spec.recipe import STEPS
from workers.engine import context, formats, passes
from workers.engine.measure import environment, latency

EPOCHS = {"LeNet-5": 5, "depthwise": 6, "transformer": 15}
SAMPLES = 512
OURS: dict[str, dict[str, Any]] = {
    "min-max": {},
    "percentile": {"calibration": "percentile"},
    "entropy": {"calibration": "entropy"},
    "mse": {"calibration": "mse"},
    "min-max, bias correction": {"bias_correction": True},
    "min-max, AdaRound": {"adaround": {}},
    "min-max, SmoothQuant": {"smooth": 0.5},
    "one scale per tensor": {"per_channel": False},
    "one scale per tensor, equalised": {"per_channel": False, "equalize": True},
    "one scale per tensor, equalised, bias correction": {
        "per_channel": False,
        "equalize": True,
        "bias_correction": True,
    },
    "dynamic": {"mode": "dynamic"},
    "trained (quantize.qat)": {"kind": "quantize.qat"},
}
QUICK = ("min-max", "mse", "min-max, bias correction", "trained (quantize.qat)")
PEERS = {
    "ONNX Runtime, min-max": quantization.CalibrationMethod.MinMax,
    "ONNX Runtime, entropy": quantization.CalibrationMethod.Entropy,
    "ONNX Runtime, percentile": quantization.CalibrationMethod.Percentile,
}
FLOAT = "float32"


@dataclass(frozen=True)
class Row:
    """One file of one seed."""

    net: str
    method: str
    accuracy: float
    file_bytes: int
    speedup: float
    """Over the float file."""
    over_peer: float
    """Over the peer's min-max file."""
    seconds: float
    """Of processor time for quantizing."""
    bits: int
    """Of a weight that are used."""
    cpu_flags: tuple[str, ...]


def main() -> None:
    """Measures, prints the table, writes bench-output/int8.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--nets", nargs="*", default=list(_nets.NETS), choices=list(_nets.NETS))
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, few methods")
    asked = parser.parse_args()
    methods = QUICK if asked.quick else tuple(OURS)
    began, seeds = time.perf_counter(), 1 if asked.quick else asked.seeds
    work = partial(measure, nets=tuple(asked.nets), methods=methods)
    rows = [row for found in _seeds.each(work, seeds, asked.processes) for row in found]
    _print(rows)
    figures = {
        "seeds": seeds,
        "rows": [asdict(row) for row in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(f"written to {_record.write('int8', figures)}")


def measure(seed: int, *, nets: tuple[str, ...], methods: tuple[str, ...]) -> list[Row]:
    """All files of one seed."""
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        return [_shown(row) for net in nets for row in _rows(net, seed, Path(folder), methods)]


def _shown(row: Row) -> Row:
    """Tells of each row as it comes: the whole takes minutes."""
    print(
        f"{row.net}, {row.method}: {row.accuracy:.3f}, {row.file_bytes:,} bytes, {row.speedup:.2f} times as fast as float, "
        f"{row.over_peer:.2f} times as the peer, {row.seconds:.1f} s, {row.bits} bits, {' '.join(row.cpu_flags)}",
        file=sys.stderr,
        flush=True,
    )
    return row


def _rows(net: str, seed: int, folder: Path, methods: tuple[str, ...]) -> Iterator[Row]:
    found = _mnist.splits()
    _mnist.save(found, folder)
    torch.manual_seed(seed)
    network = _nets.NETS[net]()
    _mnist.fit(network, found["train"], EPOCHS[net])
    path, peers = folder / f"{net}.onnx", {}
    _mnist.export(network.eval(), path)
    ctx = _mnist.surroundings(path, seed=seed)
    assert ctx.train is not None
    samples = ctx.train.take(SAMPLES, seed)
    reduce = _saturates()
    for method, calibration in PEERS.items():
        began, out = time.process_time(), folder / f"{len(peers)}.onnx"
        feeds = samples.batch(np.arange(samples.samples))
        _peer(path, out, feeds, calibration, reduce)
        peers[method] = (out, time.process_time() - began)
    first = next(iter(peers.values()))[0]
    look = partial(_row, net, path, first, images=found["test"], reduce=reduce)
    yield look(FLOAT, path, 0.0)
    for number, method in enumerate(methods):
        began, out = time.process_time(), folder / "ours.onnx"
        options = {"kind": "quantize.int8", "samples": SAMPLES, **OURS[method]}
        result = passes.apply(
            formats.load(path),
            STEPS[options["kind"]](**options),
            _mnist.surroundings(path, seed=seed, step=number),
        )
        formats.save(result, out)
        yield look(f"ours, {method}", out, time.process_time() - began)
    for method, (out, seconds) in peers.items():
        yield look(method, out, seconds)


def _row(
    net: str,
    original: Path,
    peer: Path,
    method: str,
    path: Path,
    seconds: float,
    *,
    images: _mnist.Split,
    reduce: bool,
) -> Row:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": images.images})[0]
    right = float((scores.argmax(1) == images.labels).mean())
    one = {"image": images.images[:1]}
    over_float, over_peer = (
        float(np.median(latency.speedups(path, other, one, threads=1, stretches=3, budget_s=0.3)))
        for other in (original, peer)
    )
    return Row(
        net=net,
        method=method,
        accuracy=right,
        file_bytes=path.stat().st_size,
        speedup=over_float,
        over_peer=over_peer,
        seconds=seconds,
        bits=32 if method == FLOAT else 7 if reduce else 8,
        cpu_flags=environment.cpu_flags(),
    )


def _saturates() -> bool:
    """Whether this CPU wants 7-bit weights, which both then have."""
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(environment.cpu_flags())


class _Batches(quantization.CalibrationDataReader):
    """The calibration samples, 64 at a time."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self._feeds, self._at = feeds, 0

    def get_next(self) -> dict[str, Any] | None:
        rows = slice(self._at, self._at + 64)
        self._at += 64
        batch = {name: array[rows] for name, array in self._feeds.items()}
        return batch if len(next(iter(batch.values()))) else None


def _peer(
    path: Path,
    out: Path,
    feeds: dict[str, Any],
    calibration: quantization.CalibrationMethod,
    reduce: bool,
) -> None:
    """What quantize_static makes, after the preparation that its documentation asks for."""
    prepared = out.with_suffix(".prepared.onnx")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.shape_inference.quant_pre_process(
            str(path), str(prepared), skip_symbolic_shape=True
        )
        quantization.quantize_static(
            str(prepared),
            str(out),
            _Batches(feeds),
            per_channel=True,
            reduce_range=reduce,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=calibration,
        )
    logging.disable(logging.NOTSET)


def _print(rows: list[Row]) -> None:
    """A table as docs/benchmarks.md has it: means over the seeds."""
    flags = " ".join(rows[0].cpu_flags) or "none of those that matter"
    print(f"\nCPU flags: {flags}; {rows[-1].bits} bits of each weight are used")
    print(
        "\n| net | method | accuracy, % | points lost | file smaller | over float | over the peer | s |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for net, method in dict.fromkeys((row.net, row.method) for row in rows):
        same = [row for row in rows if (row.net, row.method) == (net, method)]
        base = [row for row in rows if (row.net, row.method) == (net, FLOAT)]
        accuracy, was = (100 * fmean(r.accuracy for r in of) for of in (same, base))
        smaller = base[0].file_bytes / fmean(r.file_bytes for r in same)
        faster, peer, seconds = (
            fmean(getattr(r, name) for r in same) for name in ("speedup", "over_peer", "seconds")
        )
        print(
            f"| {net} | {method} | {accuracy:.2f} | {was - accuracy:.2f} | x{smaller:.2f} | x{faster:.2f} | x{peer:.2f} | {seconds:.1f} |"
        )


if __name__ == "__main__":
    main()
