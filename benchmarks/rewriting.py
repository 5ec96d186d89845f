"""Layers rewritten to 2 and 4 times fewer multiply-accumulates, with and without training (methods.md, D10).

LeNet-5 and a small VGG on the real MNIST images of `_mnist`. Each rewrite gets the same target and is measured three times: as it is, fine-tuned by
labels for three epochs, and taught by the original for as many, the first of which trains the new layers alone. Accuracy is that of the
exported file in ONNX Runtime on 1,000 images; speed is that of the same file beside its original, in turn, on one image. Beside it the error of
the decompositions themselves, ours and that of scipy and TensorLy at the same ranks.

Seeds can be measured apart: each leaves its rows in bench-output, and --join prints the table of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import scipy.linalg
import tensorly
import torch
from tensorly import decomposition
from torch import nn

from benchmarks import _mnist, _nets, _record
from modelpress.spec.rewrite import RewriteBlocks, RewriteDepthwise, RewriteLowRank
from modelpress.spec.step import Step
from workers.engine import context, formats, passes
from workers.engine.context import Context
from workers.engine.errors import EngineError
from workers.engine.graph import Graph, match
from workers.engine.measure import cost, latency, trial
from workers.engine.passes.rewrite._decomposition import Spatial, Svd
from workers.engine.passes.rewrite._tensors import Cp, Tucker

RATIOS = (2, 4)
BATCH = 60
_BY_LABELS: dict[str, Any] = {"fine_tune": {"epochs": 3, "batch_size": BATCH}}
_TAUGHT: dict[str, Any] = {
    "layerwise": {"epochs": 1, "batch_size": BATCH},
    "fine_tune": {"epochs": 2, "batch_size": BATCH},
    "recover": {"distill": {}},
}
TRAININGS: Mapping[str, dict[str, Any]] = {"none": {}, "labels": _BY_LABELS, "teacher": _TAUGHT}
Rewrite = Callable[[float, dict[str, Any]], Step]
"""The step for a fraction of the multiply-accumulates, trained so."""


def _low_rank(convolution: Any) -> Rewrite:
    return lambda macs, training: RewriteLowRank(
        convolution=convolution, target={"macs": macs}, samples=256, **training
    )


def _depthwise(macs: float, training: dict[str, Any]) -> Step:
    return RewriteDepthwise(
        multiplier=8, min_inputs=1, target={"macs": macs}, samples=256, **training
    )


def _blocks(block: Any, **options: Any) -> Rewrite:
    """The block and its options are the same at both targets, which choose how many layers are replaced."""
    return lambda macs, training: RewriteBlocks(
        block=block, target={"macs": macs}, samples=256, **options, **training
    )


REWRITES: dict[str, Rewrite] = {
    "spatial": _low_rank("spatial"),
    "channel": _low_rank("channel"),
    "Tucker-2": _low_rank("tucker"),
    "depthwise": _depthwise,
    "separable block": _blocks("separable"),
    "Fire": _blocks("fire"),
    "inverted residual": _blocks("inverted_residual", expansion=0.5),
    "shuffle unit": _blocks("shuffle"),
    "Ghost module": _blocks("ghost", ratio=8),
    "CP": _low_rank("cp"),
}


@dataclass(frozen=True)
class Row:
    """One network of one seed."""

    net: str
    asked: float
    """The ratio of multiply-accumulates; 1 for the original."""
    rewrite: str
    training: str
    seed: int
    accuracy: float | None = None
    macs_ratio: float | None = None
    speedup: float | None = None
    why: str = ""
    """It was refused."""


@dataclass(frozen=True)
class Error:
    """Relative error of a layer's weight at one rank."""

    net: str
    layer: str
    form: str
    rank: tuple[int, ...]
    ours: float
    theirs: float
    predicted: float | None = None
    """From the singular values that were dropped."""


def main() -> None:
    """Measures, prints the tables, writes bench-output/rewriting-SEED.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewriting", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument(
        "--rewrites",
        nargs="+",
        choices=list(REWRITES),
        help="those alone, in the place of earlier rows of the same (default: all, anew)",
    )
    parser.add_argument("--join", action="store_true", help="print what earlier runs have measured")
    parser.add_argument("--quick", action="store_true", help="one seed, LeNet-5")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.nets = [0], ["LeNet-5"]
    if not asked.join:
        _measure(asked)
    files = [
        json.loads((_record.OUTPUT / f"{_name(net, seed)}.json").read_text())
        for net in asked.nets
        for seed in asked.seeds
    ]
    _print([Row(**row) for file in files for row in file["rows"]])
    _print_errors([Error(**error) for file in files for error in file["errors"]])


def _name(net: str, seed: int) -> str:
    return f"rewriting-{net.lower()}-{seed}"


def _measure(asked: argparse.Namespace) -> None:
    """Writes what is known after each row, so that a run that is cut off has not been for nothing."""
    context.prepare_torch("cpu", 1)
    for net in asked.nets:
        for seed in asked.seeds:
            began, rows = time.perf_counter(), _kept(_name(net, seed), asked.rewrites)
            with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
                path = _trained(net, seed, Path(folder))
                errors = [asdict(error) for error in _errors(net, path, seed)]
                for row in _rows(net, seed, path, asked.rewrites):
                    rows.append(asdict(row))
                    seconds = time.perf_counter() - began
                    figures = {"seconds": seconds, "rows": rows, "errors": errors}
                    _record.write(_name(net, seed), figures)


def _kept(name: str, rewrites: list[str] | None) -> list[dict[str, Any]]:
    """Earlier rows, but for those that are measured now."""
    if rewrites is None:
        return []
    rows = json.loads((_record.OUTPUT / f"{name}.json").read_text())["rows"]
    return [row for row in rows if row["rewrite"] not in {"original", *rewrites}]


def _trained(net: str, seed: int, folder: Path) -> Path:
    """A network that has learnt the digits, beside the images."""
    splits = _mnist.splits()
    _mnist.save(splits, folder)
    torch.manual_seed(seed)
    network, path = NETS[net](), folder / "original.onnx"
    _mnist.fit(network, splits["train"], EPOCHS)
    _mnist.export(network.eval(), path)
    return path


def _rows(net: str, seed: int, path: Path, rewrites: list[str] | None) -> Iterator[Row]:
    graph, ctx = formats.load(path), _mnist.surroundings(path, seed=seed)
    first = Row(net, 1, "original", "none", seed)
    yield _told(_measured(first, graph, path, ctx))
    for ratio in RATIOS:
        for name in rewrites or REWRITES:
            for training, options in TRAININGS.items():
                row = Row(net, ratio, name, training, seed)
                try:
                    result = passes.apply(graph.clone(), REWRITES[name](1 / ratio, options), ctx)
                except EngineError as error:
                    yield _told(replace(row, why=error.message))
                    break
                yield _told(_measured(row, result, path, ctx))


def _measured(row: Row, graph: Graph, original: Path, ctx: Context) -> Row:
    path = ctx.work / "rewritten.onnx"
    formats.save(graph, path)
    shapes = {"image": (1, _mnist.WIDTHS[0])}
    image = np.random.default_rng(0).random(shapes["image"]).astype(np.float32)
    times = latency.speedups(path, original, {"image": image}, threads=1, stretches=5, budget_s=0.6)
    macs = [cost.measure(g, shapes).macs for g in (formats.load(original), graph)]
    return replace(
        row,
        accuracy=trial.measure(graph, ctx).accuracy,
        macs_ratio=macs[0] / macs[1],
        speedup=median(times),
    )


def _errors(net: str, path: Path, seed: int) -> Iterator[Error]:
    """Of the largest convolution and the largest matrix, at half their weights; with the first seed."""
    graph = formats.load(path)
    weights = {layer.weight: graph.weight(layer.weight) for layer in match.layers(graph)}
    for rank in (4, 2) if seed == 0 else ():
        name = max((n for n in weights if weights[n].ndim == rank), key=lambda n: weights[n].size)
        yield from _compared(net, name, weights[name].astype(np.float64))


def _compared(net: str, name: str, weight: np.ndarray) -> Iterator[Error]:
    norm = float(np.linalg.norm(weight))
    forms = {"channel": Svd, "spatial": Spatial} if weight.ndim == 4 else {"matrix": Svd}
    for form, cls in forms.items():
        made = cls(weight)
        rank = made.at_ratio(2)
        ours = float(np.linalg.norm(weight - made.factors(rank).product)) / norm
        sigma = scipy.linalg.svdvals(made.matrix(), check_finite=False)
        theirs = float(np.sqrt(np.square(sigma[rank[0] :]).sum())) / norm
        yield Error(net, name, form, rank, ours, theirs, made.dropped(rank[0]) / norm)
    if weight.ndim == 4:
        yield from _tensors(net, name, weight, norm)


def _tensors(net: str, name: str, weight: np.ndarray, norm: float) -> Iterator[Error]:
    tucker = Tucker(weight)
    rank = tucker.at_ratio(2)
    ours = float(np.linalg.norm(weight - tucker.factors(rank).product)) / norm
    (core, sides), _ = decomposition.partial_tucker(
        weight, rank=list(rank), modes=[0, 1], n_iter_max=100, tol=1e-6
    )
    back = tensorly.tenalg.multi_mode_dot(core, sides, modes=[0, 1])
    yield Error(net, name, "Tucker-2", rank, ours, float(np.linalg.norm(weight - back)) / norm)
    cp = Cp(weight, torch.Generator().manual_seed(0))
    rank = cp.at_ratio(4)
    ours = float(np.linalg.norm(weight - cp.factors(rank).product)) / norm
    found = decomposition.parafac(weight, rank=rank[0], n_iter_max=100, tol=1e-4, random_state=0)
    back = tensorly.cp_to_tensor(found)
    yield Error(net, name, "CP", rank, ours, float(np.linalg.norm(weight - back)) / norm)


def vgg_small() -> nn.Module:
    """Five convolutions with normalization; the first has stride 2, two poolings follow."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, _nets.SIDE, _nets.SIDE))]
    for inputs, outputs, stride, is_pooled in (
        (1, 32, 2, False),
        (32, 32, 1, True),
        (32, 64, 1, False),
        (64, 64, 1, True),
        (64, 128, 1, False),
    ):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if is_pooled else []
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, _nets.DIGITS)
    )


EPOCHS = 6
"""Of the original networks."""
NETS: dict[str, Callable[[], nn.Module]] = {"LeNet-5": _nets.lenet5, "VGG-small": vgg_small}


def _told(row: Row) -> Row:
    found = row.why or f"{row.accuracy:.1%} x{row.macs_ratio:.2f} MACs x{row.speedup:.2f} faster"
    print(
        f"{row.net:10} {row.asked:g}x seed {row.seed} {row.rewrite:17} {row.training:8} {found}",
        flush=True,
    )
    return row


def _print(rows: list[Row]) -> None:
    """A table as docs/benchmarks.md has it: means over the seeds."""
    print(
        "\n| net, MACs | rewrite | as it is | by labels | by its teacher | MAC ratio | times faster |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for net, asked, rewrite in dict.fromkeys((r.net, r.asked, r.rewrite) for r in rows):
        same = [r for r in rows if (r.net, r.asked, r.rewrite) == (net, asked, rewrite)]
        done = [r for r in same if not r.why]
        accuracies = " | ".join(_accuracy([r for r in done if r.training == t]) for t in TRAININGS)
        if not done:
            print(f"| {net}, {asked:g}x | {rewrite} | can't | | | | |")
            continue
        macs, speed = (fmean(ratios) for ratios in zip(*map(_ratios, done), strict=True))
        print(f"| {net}, {asked:g}x | {rewrite} | {accuracies} | {macs:.2f} | {speed:.2f} |")


def _ratios(row: Row) -> tuple[float, float]:
    return row.macs_ratio or 0.0, row.speedup or 0.0


def _accuracy(rows: list[Row]) -> str:
    """'96.1 ± 0.4': mean and standard deviation over the seeds, in percent."""
    values = [100 * (row.accuracy or 0) for row in rows]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def _print_errors(errors: list[Error]) -> None:
    print("\n| net, layer | form | rank | error, ours | of a peer | from dropped singular values |")
    print("|---|---|---:|---:|---:|---:|")
    for e in errors:
        rank = " x ".join(map(str, e.rank))
        predicted = "" if e.predicted is None else f"{e.predicted:.7f}"
        print(
            f"| {e.net}, {e.layer} | {e.form} | {rank} | {e.ours:.7f} | {e.theirs:.7f} | {predicted} |"
        )


if __name__ == "__main__":
    main()
