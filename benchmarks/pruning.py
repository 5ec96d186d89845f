"""The pruning curve on real MNIST (D3): weights of LeNet-300-100 pruned at once and in rounds, ours beside torch.nn.utils.prune.

Both rank the magnitudes of all layers together and train as many epochs after each pruning, with the same optimizer and rates. Ours are
exported files in ONNX Runtime. Figures are of 1,000 test images; 1,000 others choose how far a network may be pruned.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks import _curves, _mnist, _record, _seeds
from benchmarks._mnist import BATCH, RATE, WEIGHTS
from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.report import Curve, CurvePoint
from modelpress.spec.step import FineTune
from workers.engine import context, formats, passes
from workers.engine.graph import Graph

KEPT = tuple(0.8**index for index in (3, 5, 7, 9, 12, 15, 18, 20))
"""Fractions of the weights kept; the seventh, twelfth and fifteenth power are the 21 %, 7 % and 3.6 % of the papers."""
MARKS = (1.0, KEPT[2], KEPT[4], KEPT[5], KEPT[7])
PUBLISHED = {"Han et al. 2015": 12, "Dynamic Network Surgery 2016": 56, "Sparse VD 2017": 68}
"""Weights over kept weights of LeNet-300-100 without loss, trained on all 60,000 images."""

Scores = dict[str, dict[float, float]]
"""Accuracies by method and by fraction kept."""
Predict = Callable[[np.ndarray], np.ndarray]
"""Class scores [N, 10] of images [N, 784]."""


def main() -> None:
    """Measures, prints the tables, writes bench-output/pruning.json and, where asked, a picture."""
    asked = _arguments()
    began = time.perf_counter()
    runs = _seeds.each(partial(measure, epochs=asked.epochs), asked.seeds, asked.processes)
    curves, chosen = (_curves.joined(of_split) for of_split in zip(*runs, strict=True))
    fewest = {t.name: _fewest(v, t) for t, v in zip(curves, chosen, strict=True)}
    _show(curves, fewest, asked.seeds)
    figures = {
        **{name: getattr(asked, name) for name in ("seeds", "epochs")},
        "curves": [curve.model_dump() for curve in curves],
        "fewest": fewest,
        "published": PUBLISHED,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(f"written to {_record.write('pruning', figures)}")
    if asked.plots is not None:
        title = (
            f"Pruning LeNet-300-100, {asked.seeds} seeds, {asked.epochs} epochs after each pruning"
        )
        print(f"drawn in {_curves.draw(curves, title, asked.plots / 'pruning.svg')}")


def measure(seed: int, *, epochs: int) -> tuple[list[Curve], list[Curve]]:
    """The curves of each method, on the test images and on those that choose."""
    context.prepare_torch("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        bench = Bench(Path(folder), epochs)
        bench.run(seed)
    return bench.curves("test"), bench.curves("validation")


class Bench:
    """Accuracies of one seed, by split and method."""

    def __init__(self, work: Path, epochs: int) -> None:
        self._work, self._epochs = work, epochs
        self._splits = _mnist.splits()
        _mnist.save(self._splits, work)
        self._scores: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))

    def run(self, seed: int) -> None:
        """A dense network, pruned at once and in rounds, by us and by torch."""
        network = _mnist.lenet(seed)
        _mnist.fit(network, self._splits["train"], self._epochs)
        path = self._work / "lenet.onnx"
        _mnist.export(network, path)
        for method in ("ours, in rounds", "torch, in rounds", "ours, at once", "torch, at once"):
            self._record(method, 1.0, _in_runtime(path))
        self._ours(path, seed)
        self._torch(network)

    def curves(self, split: str) -> list[Curve]:
        """One for each method."""
        return [
            Curve(
                name=method,
                x="fraction of weights kept",
                y="accuracy",
                points=tuple(CurvePoint(x=kept, mean=points[kept]) for kept in sorted(points)),
            )
            for method, points in self._scores[split].items()
        ]

    def _ours(self, path: Path, seed: int) -> None:
        rounds = dense = formats.load(path)
        for index, kept in enumerate(KEPT):
            rounds = self._pruned(rounds, kept, path, seed, index)
            self._record("ours, in rounds", kept, self._exported(rounds))
            once = self._pruned(dense, kept, path, seed, index)
            self._record("ours, at once", kept, self._exported(once))

    def _pruned(self, graph: Graph, kept: float, path: Path, seed: int, index: int) -> Graph:
        tune = FineTune(epochs=self._epochs, learning_rate=RATE, batch_size=BATCH)
        step = PruneMagnitude(sparsity=1 - kept, max_layer_sparsity=0.999, fine_tune=tune)
        ctx = _mnist.surroundings(path, seed=seed, step=index)
        return passes.apply(graph.clone(), step, ctx)

    def _torch(self, network: nn.Sequential) -> None:
        rounds, left = copy.deepcopy(network), 1.0
        for kept in KEPT:
            self._torch_pruned(rounds, 1 - kept / left)
            self._record("torch, in rounds", kept, _in_torch(rounds))
            once, left = copy.deepcopy(network), kept
            self._torch_pruned(once, 1 - kept)
            self._record("torch, at once", kept, _in_torch(once))

    def _torch_pruned(self, network: nn.Sequential, amount: float) -> None:
        """Prunes a fraction of what is left; the masks stay while it trains."""
        layers = [(layer, "weight") for layer in network if isinstance(layer, nn.Linear)]
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=amount)
        _mnist.fit(network, self._splits["train"], self._epochs)

    def _exported(self, graph: Graph) -> Predict:
        path = self._work / "pruned.onnx"
        formats.save(graph, path)
        return _in_runtime(path)

    def _record(self, method: str, kept: float, predict: Predict) -> None:
        for name in ("test", "validation"):
            split = self._splits[name]
            right = predict(split.images).argmax(1) == split.labels
            self._scores[name][method][kept] = float(right.mean())


def _in_runtime(path: Path) -> Predict:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> np.ndarray:
        scores: np.ndarray = session.run(None, {"image": images})[0]
        return scores

    return predict


def _in_torch(network: nn.Module) -> Predict:
    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores: np.ndarray = network(torch.from_numpy(images)).numpy()
        return scores

    return predict


def _fewest(validation: Curve, test: Curve) -> dict[str, float]:
    """The sparsest networks that are as accurate as the dense ones on the images that choose, and what they are on the test images."""
    base = validation.points[-1].mean
    chosen = next(i for i, point in enumerate(validation.points) if point.mean >= base)
    kept, accuracy = test.points[chosen].x, test.points[chosen].mean
    return {
        "ratio": round(1 / kept, 1),
        "weights": round(kept * WEIGHTS),
        "accuracy": round(accuracy, 4),
        "dense": round(test.points[-1].mean, 4),
    }


def _show(curves: list[Curve], fewest: Mapping[str, Mapping[str, float]], seeds: int) -> None:
    print(f"\naccuracy on 1,000 test images, {seeds} seeds, mean ± 95 %")
    print(f"{'weights kept':20}" + "".join(f"{mark:>18.1%}" for mark in MARKS))
    for curve in curves:
        print(f"{curve.name:20}" + "".join(f"{_curves.near(curve, mark):>18}" for mark in MARKS))
    print("\nfewest weights at the dense network's accuracy")
    for method, found in fewest.items():
        print(
            f"{method:20}{found['ratio']:6.1f}x {found['weights']:8,} weights, {found['accuracy']:.3f} on the test images, "
            f"dense {found['dense']:.3f}"
        )
    print("published: " + ", ".join(f"{name} {ratio}x" for name, ratio in PUBLISHED.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="of each training (default: 5)")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, 2 epochs")
    parser.add_argument("--plots", type=Path, help="directory of the picture")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.epochs = 1, 2
    return asked


if __name__ == "__main__":
    main()
