"""Networks of one bit on real MNIST (D8): LeNet-300-100 by each method of quantize.binary, beside the float network it came from.

Accuracy is that of the exported file in ONNX Runtime on 1,000 test images; nothing is chosen by them. Bytes of weights are codes, scales and
layers that stay in float, without biases. Times are those of the file and of the float network in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import _mnist, _record, _seeds
from modelpress.spec.quantize import QuantizeBinary
from workers.engine import context, formats, passes
from workers.engine.graph import Graph, match
from workers.engine.measure import latency, trial
from workers.engine.passes.prune import _tally

EPOCHS = 10
"""Of the float network."""
METHODS: dict[str, dict[str, Any]] = {
    "bwn": {"method": "bwn", "float_ends": False},
    "bwn, ends in float": {"method": "bwn"},
    "binary_connect": {"method": "binary_connect"},
    "binary_connect, random signs": {"method": "binary_connect", "stochastic": True},
    "bwn, distilled": {"method": "bwn", "float_ends": False, "distill": 0.5},
    "ternary": {"method": "ternary"},
    "bnn": {"method": "bnn"},
    "xnor": {"method": "xnor", "float_ends": False},
}
_BUDGET_S = 1.0

Row = dict[str, float]


def main() -> None:
    """Measures, prints the table and writes bench-output/binary.json."""
    asked = _arguments()
    began = time.perf_counter()
    runs = _seeds.each(partial(measure, epochs=asked.epochs), asked.seeds, asked.processes)
    rows = {name: _joined([run[name] for run in runs]) for name in runs[0]}
    figures = {
        **{name: getattr(asked, name) for name in ("seeds", "epochs")},
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    _show(rows, asked.seeds)
    print(f"written to {_record.write('binary', figures)}")


def measure(seed: int, *, epochs: int) -> dict[str, Row]:
    """A float network and what each method makes of it."""
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        splits = _mnist.splits()
        _mnist.save(splits, Path(folder))
        network = _mnist.lenet(seed)
        _mnist.fit(network, splits["train"], EPOCHS)
        path = Path(folder) / "lenet.onnx"
        _mnist.export(network, path)
        rows = {"float": _row(formats.load(path), path, seed)}
        for name, options in METHODS.items():
            rows[name] = _binary(path, options, seed, epochs)
    return rows


def _binary(path: Path, options: Mapping[str, Any], seed: int, epochs: int) -> Row:
    step = QuantizeBinary(**options, training={"epochs": epochs, "batch_size": _mnist.BATCH})
    began = time.process_time()
    result = passes.apply(formats.load(path), step, _mnist.surroundings(path, seed=seed))
    return {**_row(result, path, seed), "seconds": time.process_time() - began}


def _row(graph: Graph, original: Path, seed: int) -> Row:
    """Accuracy, bytes and times of a network beside the original."""
    ctx = _mnist.surroundings(original, seed=seed)
    accuracy = trial.measure(graph, ctx).accuracy
    assert accuracy is not None, "the test images have labels"
    path = original.with_name("row.onnx")
    formats.save(graph, path)
    assert ctx.eval is not None
    feeds = latency.sample_feeds(ctx.eval, 1)
    faster = latency.speedups(path, original, feeds, threads=1, stretches=5, budget_s=_BUDGET_S)
    return {
        "accuracy": accuracy,
        "weight_bytes": _weight_bytes(graph),
        "file_bytes": path.stat().st_size,
        "times_faster": median(faster),
        "seconds": 0.0,
    }


def _weight_bytes(graph: Graph) -> int:
    """Of codes, scales, and the weights of layers in float."""
    coded = [n for n in graph.initializers if n.endswith(("_codes", "_scale"))]
    names = {*coded, *(layer.weight for layer in match.layers(graph))}
    return sum(graph.weight(name).nbytes for name in names)


def _joined(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means over the seeds, and half the interval of the accuracy."""
    point = _tally.point(0.0, [row["accuracy"] for row in rows])
    means = {name: fmean(row[name] for row in rows) for name in rows[0]}
    return {**means, "half": None if point.low is None else point.mean - point.low}


def _show(rows: Mapping[str, Mapping[str, Any]], seeds: int) -> None:
    print(f"\naccuracy on 1,000 test images, {seeds} seeds, mean ± 95 %")
    heads = ("accuracy, %", "weights, bytes", "fewer", "file, bytes", "times faster", "CPU s")
    print(f"{'network':30}" + "".join(f"{head:>16}" for head in heads))
    dense = rows["float"]
    for name, row in rows.items():
        half = "" if row["half"] is None else f" ± {100 * row['half']:.1f}"
        cells = (
            f"{100 * row['accuracy']:.1f}{half}",
            f"{row['weight_bytes']:,.0f}",
            f"{dense['weight_bytes'] / row['weight_bytes']:.1f}",
            f"{row['file_bytes']:,.0f}",
            f"{row['times_faster']:.2f}",
            f"{row['seconds']:.1f}",
        )
        print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="of each method (default: 20)")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, 5 epochs")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.epochs = 1, 5
    return asked


if __name__ == "__main__":
    main()
