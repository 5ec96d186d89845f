"""Whole recipes on real MNIST (D13): the named recipes, each as a job, beside tools of their kind chained by hand.

The chain: Torch-Pruning to a quarter of the multiply-accumulates, fine-tuning by the trained network's softened scores (Hinton et al.) and
the labels, ONNX Runtime's quantize_static, and lzma over the file. Ours is the file that a job leaves, packed where the recipe packs; accuracy is
that of what comes out of it. The chain trains for as many epochs as the longest of our recipes. Latency is of one image on one thread in ONNX Runtime, in turn with the
original. Nothing is chosen by the 1,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import onnxruntime
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import _mnist, _nets, _quantized, _record, _seeds, channels, int8
from modelpress.spec.named import NAMED
from modelpress.spec.report import Report, Stage
from workers.engine import context
from workers.engine.measure import latency

RECIPES = ("fast", "balanced", "small", "tiny", "tiny-int8")
EPOCHS = 10
"""Of the original networks."""
PEER_EPOCHS = 32
"""Of fine-tuning after pruning: as many as 'tiny' has, all its steps together."""
MACS_RATIO = 4.0
TEMPERATURE, ALPHA = 4.0, 0.9
CHAIN = "chained by hand"


def resnet8() -> nn.Module:
    """ResNet-8 on images of half the side."""
    return nn.Sequential(
        nn.Unflatten(1, (1, _nets.SIDE, _nets.SIDE)), nn.AvgPool2d(2), channels.resnet8()
    )


NETS = {"LeNet-5": _nets.lenet5, "ResNet-8": resnet8}


@dataclass(frozen=True)
class Row:
    """One file of one seed."""

    net: str
    seed: int
    method: str
    stage: str
    """The step after which it was measured; the last is what is delivered."""
    accuracy: float
    size_bytes: int
    times_faster: float
    macs: int | None = None
    seconds: float | None = None


def main() -> None:
    """Measures, prints the tables, writes bench-output/joint.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(NAMED))
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    asked = parser.parse_args()
    work = partial(measure, nets=tuple(asked.nets), recipes=tuple(asked.recipes))
    rows = [
        row
        for found in _seeds.each(work, asked.seeds, asked.processes, first=asked.first)
        for row in found
    ]
    _print(rows)
    figures = {"seeds": asked.seeds, "rows": [asdict(row) for row in rows]}
    print(f"written to {_record.write('joint', figures)}")


def measure(seed: int, *, nets: tuple[str, ...], recipes: tuple[str, ...]) -> list[Row]:
    """All files of one seed, on one core: jobs take as many threads as there are cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[seed % len(cores)]})
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        return [_told(row) for net in nets for row in _rows(net, seed, recipes, Path(folder))]


def _rows(net: str, seed: int, recipes: tuple[str, ...], folder: Path) -> Iterator[Row]:
    found = _mnist.splits()
    _mnist.save(found, folder)
    torch.manual_seed(seed)
    network, path = NETS[net](), folder / f"{net}.onnx"
    _mnist.fit(network, found["train"], EPOCHS)
    _mnist.export(network.eval(), path, keep_norms=True)
    yield _file(Row(net, seed, _quantized.FLOAT, "", 0.0, 0, 1.0), path, path, found["test"])
    for recipe in recipes:
        yield from _job(net, seed, recipe, path, folder / recipe)
    yield from _chain(net, seed, network, path, found)


def _job(net: str, seed: int, recipe: str, model: Path, out: Path) -> Iterator[Row]:
    """What the report of a job says of each step."""
    data = [f"--data={model.with_name('train.npz')}", f"--eval-data={model.with_name('test.npz')}"]
    asked = ["compress", str(model), f"--recipe={recipe}", f"--seed={seed}", f"--out={out}"]
    subprocess.run(
        [sys.executable, "-m", "modelpress", *asked, *data, "--local"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    report = Report.model_validate_json((out / "report.json").read_bytes())
    assert report.verification is not None
    assert report.verification.ok, "what is delivered is what was measured"
    for stage in report.stages[1:]:
        yield _of_stage(Row(net, seed, recipe, stage.name, 0.0, 0, 1.0), stage)


def _of_stage(row: Row, stage: Stage) -> Row:
    assert stage.quality is not None
    assert stage.quality.accuracy is not None
    return Row(
        net=row.net,
        seed=row.seed,
        method=row.method,
        stage=row.stage,
        accuracy=stage.quality.accuracy,
        size_bytes=stage.size.coded_bytes or stage.size.file_bytes,
        times_faster=1 / stage.latency.ratio,
        macs=stage.cost.macs,
        seconds=stage.seconds,
    )


def _chain(
    net: str, seed: int, network: nn.Module, original: Path, found: dict[str, _mnist.Split]
) -> Iterator[Row]:
    """The tools one after another, as their documentation has them."""
    folder, images = original.parent, found["test"]
    look = partial(_file, original=original, images=images)
    began = time.process_time()
    pruned = _pruned(network, seed)
    _taught(pruned, network, found["train"])
    smaller = folder / "pruned.onnx"
    _mnist.export(pruned.eval(), smaller)
    seconds = time.process_time() - began
    yield look(Row(net, seed, CHAIN, "Torch-Pruning, distilled", 0, 0, 1, seconds=seconds), smaller)
    integers = folder / "chain.onnx"
    feeds = {"image": found["train"].images[: int8.SAMPLES]}
    int8.quantize_static(smaller, integers, feeds)
    row = look(Row(net, seed, CHAIN, "quantize_static", 0.0, 0, 1.0), integers)
    yield row
    packed = len(lzma.compress(integers.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    yield replace(row, stage="lzma", size_bytes=packed)


def _pruned(network: nn.Module, seed: int) -> nn.Module:
    """The least ratio of channels that reaches the target, the classifier left alone."""
    example = torch.zeros(1, _nets.SIDE**2)
    macs = partial(torch_pruning.utils.count_ops_and_params, example_inputs=example)
    whole, low, high = macs(network)[0], 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        torch.manual_seed(seed)
        enough = whole / macs(_cut(network, middle, example))[0] >= MACS_RATIO
        low, high = (low, middle) if enough else (middle, high)
    return _cut(network, high, example)


def _cut(network: nn.Module, ratio: float, example: Tensor) -> nn.Module:
    network = copy.deepcopy(network)
    classifier = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[classifier],
    ).step()
    return network


def _taught(student: nn.Module, teacher: nn.Module, split: _mnist.Split) -> None:
    """Hinton's loss, by Adam and a cosine, as our steps have it."""
    x, y = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    optimizer = torch.optim.Adam(student.parameters(), _mnist.RATE)
    steps = PEER_EPOCHS * -(-len(x) // _mnist.BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    teacher.eval()
    student.train()
    for _ in range(PEER_EPOCHS):
        for chosen in torch.randperm(len(x)).split(_mnist.BATCH):
            with torch.no_grad():
                soft = functional.log_softmax(teacher(x[chosen]) / TEMPERATURE, 1)
            scores = student(x[chosen])
            kl = functional.kl_div(
                functional.log_softmax(scores / TEMPERATURE, 1),
                soft,
                reduction="batchmean",
                log_target=True,
            )
            hard = functional.cross_entropy(scores, y[chosen])
            optimizer.zero_grad()
            (ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * hard).backward()
            optimizer.step()
            schedule.step()


def _file(row: Row, path: Path, original: Path, images: _mnist.Split) -> Row:
    """The row with what a file weighs, answers and takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": images.images})[0]
    one = {"image": images.images[:1]}
    timed = latency.speedups(path, original, one, threads=1, stretches=3, budget_s=0.5)
    return replace(
        row,
        accuracy=float((scores.argmax(1) == images.labels).mean()),
        size_bytes=path.stat().st_size,
        times_faster=median(timed),
    )


def _told(row: Row) -> Row:
    print(
        f"{row.net} seed {row.seed} {row.method} {row.stage}: {row.accuracy:.3f}, {row.size_bytes:,} bytes, "
        f"{row.times_faster:.2f} times as fast",
        file=sys.stderr,
        flush=True,
    )
    return row


def _print(rows: list[Row]) -> None:
    """A table as docs/benchmarks.md has it: means over the seeds, each step's row after those before it."""
    print("\n| net | recipe | after | accuracy, % | points lost | bytes | smaller | faster |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for net, method, stage in dict.fromkeys((r.net, r.method, r.stage) for r in rows):
        same = [r for r in rows if (r.net, r.method, r.stage) == (net, method, stage)]
        base = [r for r in rows if (r.net, r.method) == (net, _quantized.FLOAT)]
        accuracy, was = (100 * fmean(r.accuracy for r in of) for of in (same, base))
        size, full = (fmean(r.size_bytes for r in of) for of in (same, base))
        faster = fmean(r.times_faster for r in same)
        print(
            f"| {net} | {method} | {stage} | {accuracy:.2f} | {was - accuracy:.2f} | {size:,.0f} | x{full / size:.1f} | x{faster:.2f} |"
        )


if __name__ == "__main__":
    main()
