"""Lottery tickets on real MNIST (D3): LeNet-300-100 pruned in rounds and reset, beside the controls that lack one thing each.

The networks begin with the initial weights that prune.lottery draws. Every point is the accuracy of an exported file in ONNX Runtime on
1,000 test images, after the last epoch; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _curves, _mnist, _record, _seeds
from modelpress.spec.prune import PruneLottery
from modelpress.spec.report import Curve
from workers.engine import context, formats, passes

MARKS = (1.0, 0.8**7, 0.8**12, 0.8**15)
"""Fractions of the weights kept that the papers speak of: 21 %, 7 % and 3.6 %."""


def main() -> None:
    """Measures, prints the table, writes bench-output/lottery.json and, where asked, a picture."""
    asked = _arguments()
    began = time.perf_counter()
    run = partial(tickets, epochs=asked.epochs, rounds=asked.rounds)
    curves = _curves.joined(_seeds.each(run, asked.seeds, asked.processes))
    figures = {
        **{name: getattr(asked, name) for name in ("seeds", "epochs", "rounds")},
        "curves": [curve.model_dump() for curve in curves],
        "seconds": round(time.perf_counter() - began, 1),
    }
    _show(figures, curves)
    print(f"written to {_record.write('lottery', figures)}")
    if asked.plots is not None:
        title = f"Lottery tickets of LeNet-300-100, {asked.seeds} seeds, {asked.epochs} epochs"
        print(f"drawn in {_curves.draw(curves, title, asked.plots / 'lottery.svg')}")


def tickets(seed: int, *, epochs: int, rounds: int) -> list[Curve]:
    """The curves of tickets and of all their controls, as a job with this seed has them."""
    context.prepare_torch("cpu", 1)
    step = PruneLottery(
        rounds=rounds,
        training={"epochs": epochs, "learning_rate": _mnist.RATE, "batch_size": _mnist.BATCH},
        controls={"signed_permutation": True, "signed_constant": True},
    )
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        _mnist.save(_mnist.splits(), Path(folder))
        path = Path(folder) / "lenet.onnx"
        _mnist.export(_mnist.lenet(seed), path)
        ctx = _mnist.surroundings(path, seed=seed)
        passes.apply(formats.load(path), step, ctx)
    return ctx.coverage.curves


def _show(figures: Mapping[str, Any], curves: Sequence[Curve]) -> None:
    print(f"\naccuracy on 1,000 test images, {figures['seeds']} seeds, mean ± 95 %")
    print(f"{'weights kept':20}" + "".join(f"{mark:>18.1%}" for mark in MARKS))
    for curve in curves:
        print(f"{curve.name:20}" + "".join(f"{_curves.near(curve, mark):>18}" for mark in MARKS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lottery", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="of each network (default: 5)")
    parser.add_argument("--rounds", type=int, default=15, help="of pruning (default: 15)")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, 2 epochs")
    parser.add_argument("--plots", type=Path, help="directory of the picture")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.epochs = 1, 2
    return asked


if __name__ == "__main__":
    main()
