"""Networks of one bit on real MNIST (D8): LeNet-300-100 and LeNet-5 by each method of quantize.binary, beside the float network each came from.

Accuracy is that of the exported file in ONNX Runtime on 1,000 test images; nothing is chosen by them. Bytes of weights are codes, scales and
layers that stay in float, without biases. Times are those of the file and of the float network in turn, on one thread and one sample; "by kernel"
is the file whose products of signs run through XNOR and popcount. `--first` and `--add` measure a table seed by seed. `--brevitas PYTHON` trains the
same network with one-bit weights, and with one-bit activations, in Brevitas, whose venv has that Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import _mnist, _nets, _record
from modelpress.spec.quantize import QuantizeBinary
from workers.engine import context, formats, passes
from workers.engine.graph import Graph, match
from workers.engine.measure import latency, session, trial
from workers.engine.passes.prune import _tally

EPOCHS, RATE = 10, 5e-3
"""Of the float network; of the binary ones, whose real weights have far to go until a sign turns."""
PEER_RATE = 2e-3
"""Of Brevitas, which has weights in units of 1 instead of ten times their mean size: about the same steps."""
NETS = ("LeNet-300-100", "LeNet-5")
METHODS: dict[str, dict[str, Any]] = {
    "binary_connect": {"method": "binary_connect"},
    "binary_connect, random signs": {"method": "binary_connect", "stochastic": True},
    "bwn": {"method": "bwn", "float_ends": False},
    "bwn, ends in float": {"method": "bwn"},
    "ternary": {"method": "ternary"},
    "bnn": {"method": "bnn"},
    "xnor": {"method": "xnor", "float_ends": False},
    "xnor, input scales": {"method": "xnor", "float_ends": False, "input_scales": True},
    "xnor, ends in float": {"method": "xnor"},
}
PEERS = {"Brevitas, signs of weights": "w", "Brevitas, signs of both": "wa"}
_BUDGET_S = 0.5
_HEADS = (
    *("seeds", "accuracy, %", "weights, bytes", "fewer", "file, bytes"),
    *("times faster", "by kernel", "CPU s"),
)

Row = dict[str, float | str | None]


def main() -> None:
    """Measures, prints the tables and writes bench-output/binary.json after each seed."""
    asked = _arguments()
    began = time.perf_counter()
    kept = _kept() if asked.add else {}
    path: Path | None = None
    for net in asked.nets:
        for seed in range(asked.first, asked.first + asked.seeds):
            rows = measure(seed, net=net, asked=asked)
            kept.setdefault(net, {}).setdefault(str(seed), {}).update(rows)
            seconds = round(time.perf_counter() - began, 1)
            path = _record.write("binary", {"runs": kept, "seconds": seconds})
    for net, runs in kept.items():
        _show(net, _joined(list(runs.values())))
    print(f"written to {path}")


def measure(seed: int, *, net: str, asked: argparse.Namespace) -> dict[str, Row]:
    """A float network and what each method makes of it."""
    context.prepare_torch("cpu", 1)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        for name, row in _rows(seed, net, asked, Path(folder)):
            print(f"{net}, seed {seed}, {name}: {row}", flush=True)
            rows[name] = row
    return rows


def _rows(
    seed: int, net: str, asked: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Row]]:
    splits = _mnist.splits()
    _mnist.save(splits, folder)
    network = _network(net, seed)
    _mnist.fit(network, splits["train"], EPOCHS)
    path = folder / "float.onnx"
    _mnist.export(network, path)
    yield "float", _row(formats.load(path), path, seed)
    for name in asked.methods:
        yield name, _binary(path, METHODS[name], seed, asked.epochs)
    if asked.brevitas:
        torch.save(network, folder / "float.pt")
        for name, signs in PEERS.items():
            yield name, _peer(asked.brevitas, signs, asked.epochs, seed, folder)


def _peer(python: str, signs: str, epochs: int, seed: int, folder: Path) -> Row:
    """The accuracy of the same network, trained from the same float weights for as long by Brevitas, or what it died of."""
    script = Path(__file__).with_name("_brevitas.py")
    arguments = (signs, str(epochs), str(PEER_RATE), str(_mnist.BATCH), str(seed))
    done = subprocess.run(
        [python, str(script), *arguments, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"failure": f"FAIL: {last[:200]}"}
    accuracy, seconds = map(float, done.stdout.split()[-2:])
    return {"accuracy": accuracy, "seconds": seconds}


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


def _joined(runs: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Of each method: means over the seeds, and half the interval of the accuracy."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    return {name: _mean([run[name] for run in runs if name in run]) for name in names}


def _mean(rows: Sequence[Row]) -> Row:
    failed = [row["failure"] for row in rows if "failure" in row]
    if failed:
        return {"failure": failed[0]}
    point = _tally.point(0.0, [float(row["accuracy"] or 0.0) for row in rows])
    half = None if point.low is None else point.mean - point.low
    means: Row = {"half": half, "seeds": len(rows)}
    for name in rows[0]:
        there = [float(row[name] or 0.0) for row in rows if row[name] is not None]
        means[name] = fmean(there) if there else None
    return means


def _show(net: str, rows: Mapping[str, Row]) -> None:
    print(f"\n{net}: accuracy on 1,000 test images, mean ± 95 %")
    print(f"{'network':30}" + "".join(f"{head:>16}" for head in _HEADS))
    for name, row in rows.items():
        cells = [row["failure"]] if "failure" in row else _cells(row, rows["float"])
        print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells))


def _cells(row: Mapping[str, Any], dense: Mapping[str, Any]) -> tuple[str, ...]:
    half = "" if row["half"] is None else f" ± {100 * row['half']:.1f}"
    start = f"{row['seeds']}", f"{100 * row['accuracy']:.1f}{half}"
    if "weight_bytes" not in row:
        return *start, *["-"] * 5, f"{row['seconds']:.1f}"
    return (
        *start,
        f"{row['weight_bytes']:,.0f}",
        f"{dense['weight_bytes'] / row['weight_bytes']:.1f}",
        f"{row['file_bytes']:,.0f}",
        f"{row['times_faster']:.2f}",
        "-" if row["by_kernel"] is None else f"{row['by_kernel']:.2f}",
        f"{row['seconds']:.1f}",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, default=10, help="of each method (default: 10)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="which nets")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods"
    )
    parser.add_argument("--add", action="store_true", help="to the rows of earlier runs")
    parser.add_argument("--brevitas", metavar="PYTHON", help="of a venv with Brevitas 0.13.4")
    parser.add_argument("--quick", action="store_true", help="one seed, 5 epochs")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.epochs = 1, 5
    return asked


if __name__ == "__main__":
    main()
