"""Networks of one bit on real MNIST (D8): LeNet-300-100 and LeNet-5 by each method of quantize.binary, beside the float network each came from.

Accuracy is that of the exported file in ONNX Runtime on 1,000 test images; nothing is chosen by them. Bytes of weights are codes, scales and
layers that stay in float, without biases. Times are those of the file and of the float network in turn, on one thread and one sample; "by kernel"
is the file whose products of signs run through XNOR and popcount. `--first` and `--add` measure a table seed by seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import _mnist, _nets, _record, _seeds
from modelpress.spec.quantize import QuantizeBinary
from workers.engine import context, formats, passes
from workers.engine.graph import Graph, match
from workers.engine.measure import latency, session, trial
from workers.engine.passes.prune import _tally

EPOCHS, RATE = 10, 5e-3
"""Of the float network; of the binary ones, whose real weights have far to go until a sign turns."""
NETS = ("LeNet-300-100", "LeNet-5")
METHODS: dict[str, dict[str, Any]] = {
    "bwn": {"method": "bwn", "float_ends": False},
    "bwn, ends in float": {"method": "bwn"},
    "binary_connect": {"method": "binary_connect"},
    "binary_connect, random signs": {"method": "binary_connect", "stochastic": True},
    "ternary": {"method": "ternary"},
    "bnn": {"method": "bnn"},
    "bnn, distilled": {"method": "bnn", "distill": 0.5},
    "xnor": {"method": "xnor", "float_ends": False},
    "xnor, distilled": {"method": "xnor", "float_ends": False, "distill": 0.5},
    "xnor, input scales": {"method": "xnor", "float_ends": False, "input_scales": True},
}
_BUDGET_S = 0.5
_HEADS = (
    *("seeds", "accuracy, %", "weights, bytes", "fewer", "file, bytes"),
    *("times faster", "by kernel", "CPU s"),
)

Row = dict[str, float | None]


def main() -> None:
    """Measures, prints the tables and writes bench-output/binary.json."""
    asked = _arguments()
    began = time.perf_counter()
    kept = _kept() if asked.add else {}
    for net in asked.nets:
        work = partial(measure, net=net, epochs=asked.epochs, methods=tuple(asked.methods))
        found = _seeds.each(work, asked.seeds, asked.processes, first=asked.first)
        for seed, rows in enumerate(found, start=asked.first):
            kept.setdefault(net, {}).setdefault(str(seed), {}).update(rows)
    for net, runs in kept.items():
        _show(net, _joined(list(runs.values())))
    figures = {
        "epochs": asked.epochs,
        "runs": kept,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(f"written to {_record.write('binary', figures)}")


def measure(seed: int, *, net: str, epochs: int, methods: Sequence[str]) -> dict[str, Row]:
    """A float network and what each method makes of it."""
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        splits = _mnist.splits()
        _mnist.save(splits, Path(folder))
        network = _network(net, seed)
        _mnist.fit(network, splits["train"], EPOCHS)
        path = Path(folder) / "float.onnx"
        _mnist.export(network, path)
        rows = {"float": _row(formats.load(path), path, seed)}
        for name in methods:
            rows[name] = _binary(path, METHODS[name], seed, epochs)
            print(f"{net}, seed {seed}, {name}: {rows[name]}", flush=True)
    return rows


def _network(net: str, seed: int) -> nn.Module:
    if net == "LeNet-300-100":
        return _mnist.lenet(seed)
    torch.manual_seed(seed)
    return _nets.lenet5()


def _binary(path: Path, options: Mapping[str, Any], seed: int, epochs: int) -> Row:
    training = {"epochs": epochs, "batch_size": _mnist.BATCH, "learning_rate": RATE}
    step = QuantizeBinary(**options, training=training)
    began = time.process_time()
    ctx = _mnist.surroundings(path, seed=seed)
    result = passes.apply(formats.load(path), step, ctx)
    seconds = time.process_time() - began
    row = {**_row(result, path, seed), "seconds": seconds}
    for packed in ctx.coverage.files:
        row["by_kernel"] = _by_kernel(packed, path, ctx)
    return row


def _by_kernel(packed: Path, original: Path, ctx: context.Context) -> float:
    """How many times faster than the float network the file is that runs through the kernels."""
    assert ctx.eval is not None
    feeds = latency.sample_feeds(ctx.eval, 1)
    opened = [
        session.open(path, threads=1, spin=False, kernels=path == packed)
        for path in (original, packed)
    ]
    runs = [partial(one.run_untimed, feeds) for one in opened]
    before, after = latency.alternate((runs[0], runs[1]), 2 * _BUDGET_S)
    return float(np.percentile(before, 10) / np.percentile(after, 10))


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
        "by_kernel": None,
        "seconds": 0.0,
    }


def _weight_bytes(graph: Graph) -> int:
    """Of codes, scales, and the weights of layers in float."""
    coded = [n for n in graph.initializers if n.endswith(("_codes", "_scale"))]
    names = {*coded, *(layer.weight for layer in match.layers(graph))}
    return sum(graph.weight(name).nbytes for name in names)


def _kept() -> dict[str, dict[str, dict[str, Row]]]:
    """Rows of earlier runs, by net, seed and method."""
    path = _record.OUTPUT / "binary.json"
    return dict(json.loads(path.read_text()).get("runs", {})) if path.exists() else {}


def _joined(runs: Sequence[Mapping[str, Row]]) -> dict[str, dict[str, float | None]]:
    """Of each method: means over the seeds, and half the interval of the accuracy."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    return {name: _mean([run[name] for run in runs if name in run]) for name in names}


def _mean(rows: Sequence[Row]) -> dict[str, float | None]:
    point = _tally.point(0.0, [row["accuracy"] or 0.0 for row in rows])
    half = None if point.low is None else point.mean - point.low
    means: dict[str, float | None] = {"half": half, "seeds": len(rows)}
    for name in rows[0]:
        values = [row[name] for row in rows]
        there = [value for value in values if value is not None]
        means[name] = fmean(there) if there else None
    return means


def _show(net: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"\n{net}: accuracy on 1,000 test images, mean ± 95 %")
    print(f"{'network':30}" + "".join(f"{head:>16}" for head in _HEADS))
    dense = rows["float"]
    for name, row in rows.items():
        half = "" if row["half"] is None else f" ± {100 * row['half']:.1f}"
        cells = (
            f"{row['seeds']}",
            f"{100 * row['accuracy']:.1f}{half}",
            f"{row['weight_bytes']:,.0f}",
            f"{dense['weight_bytes'] / row['weight_bytes']:.1f}",
            f"{row['file_bytes']:,.0f}",
            f"{row['times_faster']:.2f}",
            "storage only" if row["by_kernel"] is None else f"{row['by_kernel']:.2f}",
            f"{row['seconds']:.1f}",
        )
        print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="of each method (default: 20)")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="which nets")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods"
    )
    parser.add_argument("--add", action="store_true", help="to the rows of earlier runs")
    parser.add_argument("--quick", action="store_true", help="one seed, 5 epochs")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.epochs = 1, 5
    return asked


if __name__ == "__main__":
    main()
