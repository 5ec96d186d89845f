"""8-bit integers on real MNIST (D7): calibrations, refinements and training, ours beside ONNX Runtime's quantize_static and nncf.quantize.

A convolutional net, a depthwise net and a small transformer; the same 512 calibration samples, and as many bits of each weight, for ours and for
quantize_static. Accuracy is that of exported files in ONNX Runtime on 1,000 test images; speeds are of one image on one thread, timed in turn with
the float file and with quantize_static's. nncf is no dependency: where it can't be imported its row says so.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization

from benchmarks import _quantized
from benchmarks._quantized import FLOAT, Trained
from modelpress.spec.recipe import STEPS
from workers.engine.measure import environment

SAMPLES = 512
OURS: Mapping[str, dict[str, Any]] = {
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
STATIC = {
    "quantize_static, min-max": quantization.CalibrationMethod.MinMax,
    "quantize_static, entropy": quantization.CalibrationMethod.Entropy,
    "quantize_static, percentile": quantization.CalibrationMethod.Percentile,
}
NNCF = "nncf.quantize"
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row(_quantized.Row):
    """One file of one seed."""

    over_peer: float = 0.0
    """Times as fast as quantize_static's min-max file."""
    bits: int = 8
    """Of a weight that are used."""


def rows(trained: Trained, quick: bool) -> Iterator[Row]:
    """All files of one network."""
    ctx = trained.surroundings()
    assert ctx.train is not None
    taken = ctx.train.take(SAMPLES, trained.seed)
    samples = taken.batch(np.arange(taken.samples))
    peers = {name: _static(trained, samples, by) for name, by in STATIC.items()}
    against = next(iter(peers.values()))[0]
    yield _row(trained, against, FLOAT, trained.path, 0.0)
    for number, method in enumerate(QUICK if quick else OURS):
        options = {"kind": "quantize.int8", "samples": SAMPLES, **OURS[method]}
        step = STEPS[options["kind"]](**options)
        made = trained.apply(step, trained.surroundings(number))
        yield _row(trained, against, f"ours, {method}", *made)
    for name, made in peers.items():
        yield _row(trained, against, name, *made)
    yield _nncf_row(trained, against, samples)


def _row(trained: Trained, against: Path, method: str, path: Path, seconds: float) -> Row:
    return Row(
        net=trained.net,
        seed=trained.seed,
        method=method,
        accuracy=trained.accuracy(path),
        file_bytes=path.stat().st_size,
        speedup=trained.speedup(path, trained.path),
        over_peer=trained.speedup(path, against),
        seconds=seconds,
        bits=32 if method == FLOAT else 7 if _saturates() else 8,
    )


def _nncf_row(trained: Trained, against: Path, samples: Feeds) -> Row:
    try:
        made = _nncf(trained, samples)
    except Exception as exc:  # whatever a peer does wrong is a row
        said = f"{type(exc).__name__}: {exc}".splitlines()[0][:120]
        return Row(net=trained.net, seed=trained.seed, method=NNCF, failure=said)
    return _row(trained, against, NNCF, *made)


def _saturates() -> bool:
    """Whether this CPU wants 7-bit weights, which both then have."""
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(environment.cpu_flags())


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Batches(quantization.CalibrationDataReader):
    """The calibration samples, 64 at a time."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds, self._at = feeds, 0

    def get_next(self) -> dict[str, Any] | None:
        rows = slice(self._at, self._at + 64)
        self._at += 64
        batch = {name: array[rows] for name, array in self._feeds.items()}
        return batch if len(next(iter(batch.values()))) else None


def _static(
    trained: Trained, samples: Feeds, by: quantization.CalibrationMethod
) -> tuple[Path, float]:
    began, out = time.process_time(), trained.out(f"{by.name}.onnx")
    quantize_static(trained.path, out, samples, by)
    return out, time.process_time() - began


def quantize_static(
    path: Path,
    out: Path,
    samples: Feeds,
    by: quantization.CalibrationMethod = quantization.CalibrationMethod.MinMax,
) -> None:
    """What ONNX Runtime makes, after the preparation that its documentation asks for."""
    prepared = out.with_suffix(".prepared.onnx")
    with _quiet():
        quantization.shape_inference.quant_pre_process(
            str(path), str(prepared), skip_symbolic_shape=True
        )
        quantization.quantize_static(
            str(prepared),
            str(out),
            _Batches(samples),
            per_channel=True,
            reduce_range=_saturates(),
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=by,
        )


def _nncf(trained: Trained, samples: Feeds) -> tuple[Path, float]:
    """What nncf.quantize makes as its documentation has it: sample by sample, its own choice of bits."""
    import nncf  # type: ignore[import-not-found, unused-ignore]  # no dependency

    began, out = time.process_time(), trained.out("nncf.onnx")
    count = len(next(iter(samples.values())))
    feeds = [{name: array[i : i + 1] for name, array in samples.items()} for i in range(count)]
    with _quiet():
        made = nncf.quantize(onnx.load(trained.path), nncf.Dataset(feeds), subset_size=count)
    onnx.save(made, out)
    return out, time.process_time() - began


BENCHMARK = _quantized.Benchmark(
    name="int8",
    about=__doc__,
    kind=Row,
    rows=rows,
    columns={
        "accuracy, %": _quantized.ACCURACY,
        "points lost": _quantized.points_lost,
        "file smaller": _quantized.FILE,
        "over float": _quantized.FASTER,
        "over quantize_static": _quantized.mean(lambda row: row.over_peer, "x{:.2f}"),
        "s": _quantized.SECONDS,
    },
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
