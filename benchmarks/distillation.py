"""Distillation on real MNIST (D9), after section 3 of Hinton, Vinyals, Dean (arXiv 1503.02531).

A teacher of two hidden layers of 1,200 units, trained with dropout and images that move by up to 2 pixels, teaches students of 2 x 800 and of
2 x 30 units, which see neither. 3,000 images to learn from, 1,000 to choose the temperature by, 1,000 to count errors on. Beside ours the
loss of torchdistill trains the same students in a plain loop, where it can be imported:

    PYTHONPATH=<its site-packages> python -m benchmarks.distillation
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks import _mnist, _record
from benchmarks._mnist import Split
from modelpress.spec.distill import Augment, DistillLogits
from workers.engine import context, formats, passes, views
from workers.engine.context import Context
from workers.engine.graph import Graph

STUDENTS = {"2x30": 30, "2x800": 800}
TEACHER, TEACHERS = 1200, 10
SWEEP = (1.0, 2.0, 4.0, 8.0, 20.0)
MAIN = 4.0
"""The default temperature: that of rows where it is not what is compared."""
BATCH, RATE, ALPHA = 100, 1e-3, 0.9
EPOCHS = {"2x30": 40, "2x800": 12}
TEACHER_EPOCHS = 12
MISSING = 3
HINTON = (146 - 74) / (146 - 67)
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 % and so many seeds."""


def main() -> None:
    """Measures the seeds asked for and prints the table of all that were measured in the folder."""
    asked = _arguments()
    context.prepare_torch("cpu", 1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = _mnist.splits()
    _mnist.save(found, asked.folder)
    _teach(asked.folder, found["train"])
    for seed, name in itertools.product(range(asked.first, asked.first + asked.seeds), STUDENTS):
        path = asked.folder / f"seed-{seed}-{name}.json"
        if not path.exists():
            began = time.perf_counter()
            path.write_text(json.dumps(list(_rows(asked.folder, seed, name, found))))
            print(f"seed {seed}, {name}: {time.perf_counter() - began:.0f} s", flush=True)
    if any(asked.folder.glob("seed-*.json")):
        _show(asked.folder, _teachers_errors(asked.folder, found["test"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "modelpress-distillation",
        help="keeps teachers and what was measured, so that a run can go on where another ended",
    )
    asked: argparse.Namespace = parser.parse_args()
    return asked


def network(width: int, seed: int, *, dropout: bool = False) -> nn.Sequential:
    """784 - width - width - 10, initialized as LeNet-300-100 is; with dropout of 20 % of the pixels and half of the units."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Dropout(0.2)] if dropout else []
    for fan_in, fan_out in itertools.pairwise((784, width, width, 10)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
    return nn.Sequential(*layers[: -2 if dropout else -1])


def _teach(folder: Path, train: Split) -> None:
    """Trains the teachers that the folder lacks."""
    for index in range(TEACHERS):
        path = folder / f"teacher-{index}.onnx"
        if path.exists():
            continue
        teacher = network(TEACHER, 1000 + index, dropout=True)
        view = views.Views(Augment(shift=2), np.random.default_rng(index))
        for x, y, optimizer in _batches(teacher, train, TEACHER_EPOCHS):
            (moved,) = view.take((x.reshape(-1, 1, 28, 28),))
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(moved.flatten(1)), y).backward()
            optimizer.step()
        _mnist.export(teacher.eval(), path)
        print(f"teacher {index} trained", flush=True)


def _batches(
    net: nn.Module, train: Split, epochs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.optim.Optimizer]]:
    """Shuffled batches, at the rate and the schedule of our training."""
    x, y = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.0)
    steps = epochs * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(BATCH):
            yield x[chosen], y[chosen], optimizer
            schedule.step()


def _rows(folder: Path, seed: int, name: str, found: dict[str, Split]) -> Iterator[dict[str, Any]]:
    """Everything measured of one student of one seed."""
    start, width = folder / f"student-{name}.onnx", STUDENTS[name]
    training = {"epochs": EPOCHS[name], "learning_rate": RATE, "batch_size": BATCH}
    how = {"student": {"role": "student"}, "training": training}
    _mnist.export(network(width, seed), start)
    for row, options in _asked():
        yield {"student": name, "row": row, **_ours(folder, start, seed, found, {**how, **options})}
    yield {"student": name, "row": "no 3", **_without(folder, start, seed, found, how)}
    yield {"student": name, "row": "torchdistill", **_peer(folder, name, seed, found)}


def _asked() -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows, and the options of the step."""
    yield "hard labels", {"alpha": 0.0}
    for temperature in SWEEP:
        yield f"T={temperature:g}", {"temperature": temperature, "alpha": ALPHA}
    for count in (5, TEACHERS):
        yield f"{count} teachers", {"temperature": MAIN, "alpha": ALPHA, "teachers": _roles(count)}
    yield "no labels", {"temperature": MAIN, "alpha": 1.0}


def _roles(count: int) -> list[dict[str, str]]:
    return [{"role": f"teacher{index}" if index else "source"} for index in range(count)]


def _ours(
    folder: Path, start: Path, seed: int, found: dict[str, Split], options: dict[str, Any]
) -> dict[str, Any]:
    network = _distilled(_surroundings(folder, start, seed), options)
    return {name: _errors(_scores(network, folder, found[name]), found[name]) for name in _SEEN}


_SEEN = ("validation", "test")


def _surroundings(folder: Path, start: Path, seed: int) -> Context:
    models = {f"teacher{i}": folder / f"teacher-{i}.onnx" for i in range(1, TEACHERS)}
    opened = {role: formats.load(path) for role, path in models.items()}
    ctx = _mnist.surroundings(folder / "teacher-0.onnx", seed=seed)
    return replace(ctx, models={**opened, "student": formats.load(start)})


def _distilled(ctx: Context, options: dict[str, Any]) -> Graph:
    return passes.apply(ctx.source.clone(), DistillLogits(**options), ctx)


def _scores(graph: Graph, folder: Path, split: Split) -> np.ndarray:
    """Class scores of the exported file in ONNX Runtime."""
    path = folder / "measured.onnx"
    formats.save(graph, path)
    scores: np.ndarray = onnxruntime.InferenceSession(path).run(None, {"image": split.images})[0]
    return scores


def _errors(scores: np.ndarray, split: Split) -> int:
    return int((scores.argmax(1) != split.labels).sum())


def _without(
    folder: Path, start: Path, seed: int, found: dict[str, Split], how: dict[str, Any]
) -> dict[str, Any]:
    """A student that never saw a 3, only what its teacher thinks of other digits; its bias for 3 is then raised by the validation split."""
    ctx = _surroundings(folder, start, seed)
    assert ctx.train is not None
    seen = np.flatnonzero(found["train"].labels != MISSING)
    ctx = replace(ctx, train=ctx.train.subset(seen))
    graph = _distilled(ctx, {**how, "temperature": MAIN, "alpha": 1.0})
    scores = {name: _scores(graph, folder, found[name]) for name in _SEEN}
    shifts = np.linspace(0, 20, 81)
    raised = min(
        shifts, key=lambda s: _errors(_raise(scores["validation"], s), found["validation"])
    )
    after = _raise(scores["test"], raised)
    threes = found["test"].labels == MISSING
    return {
        "test": _errors(scores["test"], found["test"]),
        "test_raised": _errors(after, found["test"]),
        "raised_by": float(raised),
        "threes_right": float((after[threes].argmax(1) == MISSING).mean()),
        "threes_right_before": float((scores["test"][threes].argmax(1) == MISSING).mean()),
    }


def _raise(scores: np.ndarray, by: float) -> np.ndarray:
    return scores + by * (np.arange(scores.shape[1]) == MISSING)


def _peer(folder: Path, name: str, seed: int, found: dict[str, Split]) -> dict[str, Any]:
    """The same student trained by torchdistill's loss, at the same share of labels."""
    try:
        peer = importlib.import_module("torchdistill.losses.mid_level")
    except Exception as e:
        return {"failed": f"{type(e).__name__}: {e}"}
    loss = peer.KDLoss("s", "output", "t", "output", temperature=MAIN, alpha=1 - ALPHA)
    teacher = onnxruntime.InferenceSession(folder / "teacher-0.onnx")
    net = network(STUDENTS[name], seed)
    for x, y, optimizer in _batches(net, found["train"], EPOCHS[name]):
        soft = torch.from_numpy(teacher.run(None, {"image": x.numpy()})[0])
        optimizer.zero_grad()
        loss({"s": {"output": net(x)}}, {"t": {"output": soft}}, y).backward()
        optimizer.step()
    with torch.no_grad():
        scores = {part: net(torch.from_numpy(found[part].images)).numpy() for part in _SEEN}
    return {part: _errors(scores[part], found[part]) for part in _SEEN}


def _teachers_errors(folder: Path, test: Split) -> dict[str, int]:
    """Of the first teacher, and of the mean of several."""
    paths = [folder / f"teacher-{index}.onnx" for index in range(TEACHERS)]
    each = [
        onnxruntime.InferenceSession(path).run(None, {"image": test.images})[0] for path in paths
    ]
    softened = [np.exp(s / MAIN) / np.exp(s / MAIN).sum(1, keepdims=True) for s in each]
    return {str(n): _errors(np.mean(softened[:n], axis=0), test) for n in (1, 5, TEACHERS)}


def _show(folder: Path, teachers: dict[str, int]) -> None:
    """The table, and bench-output/distillation.json."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in itertools.chain.from_iterable(runs):
        rows[row["student"], row["row"]].append(row)
    seeds = len({path.name.split("-")[1] for path in folder.glob("seed-*.json")})
    print(f"\nerrors of 1,000; {seeds} seeds, mean +- 95 %; teachers {teachers}")
    print(f"{'student':8} {'row':14} {'test':>13} {'validation':>11} {'gap closed':>11}")
    for (student, name), found in rows.items():
        print(_line(student, name, found, rows[student, "hard labels"], teachers))
    for student in {student for student, _ in rows}:
        best = min(SWEEP, key=lambda t: _mean(rows[student, f"T={t:g}"], "validation"))
        print(f"{student}: T={best:g} has the fewest errors on the validation split")
    print(f"Hinton closes {HINTON:.0%}: 146 errors of 10,000 by labels, 74 by T=20, the teacher 67")
    figures = {"teachers": teachers, "hinton": HINTON, "runs": runs}
    print(f"written to {_record.write('distillation', figures)}")


def _line(
    student: str,
    name: str,
    found: list[dict[str, Any]],
    hard: list[dict[str, Any]],
    teachers: dict[str, int],
) -> str:
    failed = [row["failed"] for row in found if "failed" in row]
    if failed:
        return f"{student:8} {name:14} FAIL {failed[0]}"
    key = "test_raised" if "test_raised" in found[0] else "test"
    seen = f"{_mean(found, 'validation'):11.1f}" if "validation" in found[0] else f"{'':11}"
    teacher = teachers[name.partition(" ")[0] if name.endswith("teachers") else "1"]
    gap = _mean(hard, "test") - teacher
    closed = f"{(_mean(hard, 'test') - _mean(found, key)) / gap:11.0%}" if gap > 0 else f"{'-':>11}"
    more = ""
    if key == "test_raised":
        right = [fmean(row[k] for row in found) for k in ("threes_right_before", "threes_right")]
        more = f"  3s right {right[0]:.1%} -> {right[1]:.1%} by the bias; {_mean(found, 'test'):.1f} errors before"
    return (
        f"{student:8} {name:14} {_interval([row[key] for row in found]):>13} {seen} {closed}{more}"
    )


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return fmean(row[key] for row in rows)


def _interval(values: list[float]) -> str:
    if len(values) not in T_95:
        return f"{fmean(values):.1f}"
    half = T_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.1f} +- {half:.1f}"


if __name__ == "__main__":
    main()
