"""Sensitivities of three networks trained on real MNIST: what they take to measure, and whether what layers cost alone adds up.

Predicted for all layers together is the root of the sum of squares of their errors alone; beside it the error of a network whose layers
were all compressed so by the step itself. Then prune.channels to half the multiply-accumulates, with fractions of layers chosen in
several ways. Draws docs/images/sensitivity.svg.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from benchmarks import _nets, _quantized, _record
from benchmarks._quantized import Trained
from modelpress import _chart
from modelpress.spec import curves
from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.prune import PruneChannels, PruneMagnitude
from modelpress.spec.quantize import QuantizeBits
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.step import FineTune, Step
from workers.engine import context, formats, passes

PICTURE = Path(__file__).parent.parent / "docs/images/sensitivity.svg"
DRAWN = "depthwise"
TOGETHER: Mapping[tuple[str, float], Step] = {
    ("bits", 2): QuantizeBits(bits=2),
    ("bits", 3): QuantizeBits(bits=3),
    ("bits", 4): QuantizeBits(bits=4),
    ("magnitude", 0.5): PruneMagnitude(sparsity=0.5, scope="layer"),
    ("magnitude", 0.8): PruneMagnitude(sparsity=0.8, scope="layer"),
}
"""The steps that compress every layer as one row has it."""
SCOPES: tuple[Literal["layer", "global", "sensitivity"], ...] = ("layer", "global", "sensitivity")
TUNING = FineTune(epochs=2)


@dataclass(frozen=True)
class Row:
    """A network with every layer compressed alike."""

    net: str
    method: str
    amount: float
    worst: str
    """The layer whose error alone is largest."""
    largest: float
    """That error."""
    predicted: float
    measured: float
    drop: float
    """Of accuracy on the test images, in points."""


@dataclass(frozen=True)
class Pruned:
    """A network with half the multiply-accumulates."""

    net: str
    scope: str
    untuned: float
    """Accuracy on the test images without training."""
    tuned: float
    """After two epochs of it."""


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__)
    parser.add_argument("--nets", nargs="*", default=list(_nets.NETS), choices=list(_nets.NETS))
    asked = parser.parse_args()
    context.prepare_torch("cpu", 1)
    rows: list[Row] = []
    halved: list[Pruned] = []
    measuring: dict[str, str] = {}
    for net in asked.nets:
        with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
            of = _quantized.trained(net, 0, Path(folder))
            found, seconds = analyzed(of)
            measuring[net] = f"{len(found.layers)} layers, {len(found.rows)} rows, {seconds:.1f} s"
            rows += together(of, found)
            halved += pruned(of, found)
            if net == DRAWN:
                draw(found)
    for line in table(rows):
        print(line)
    for line in scopes(halved):
        print(line)
    for net, told in measuring.items():
        print(f"{net}: {told}")
    figures = {
        "rows": [asdict(row) for row in rows],
        "pruned": [asdict(row) for row in halved],
        "measuring": measuring,
    }
    print(f"written to {_record.write('sensitivity', figures)}")


def analyzed(of: Trained) -> tuple[Sensitivity, float]:
    """The table, and the seconds of processor time it took."""
    began, ctx = time.process_time(), of.surroundings()
    passes.apply(formats.load(of.path), AnalyzeSensitivity(), ctx)
    assert ctx.coverage.sensitivity is not None
    return ctx.coverage.sensitivity, time.process_time() - began


def together(of: Trained, found: Sensitivity) -> Iterator[Row]:
    """Each method and amount on all layers, beside what the table says of them alone."""
    before = of.accuracy(of.path)
    for (method, amount), step in TOGETHER.items():
        alone = {r.layer: r.error for r in found.rows if (r.method, r.amount) == (method, amount)}
        worst = max(alone, key=lambda layer: alone[layer])
        path, _ = of.apply(step, of.surroundings())
        yield Row(
            net=of.net,
            method=method,
            amount=amount,
            worst=worst,
            largest=alone[worst],
            predicted=float(np.sqrt(np.square([*alone.values()]).sum())),
            measured=error(of, path),
            drop=100 * (before - of.accuracy(path)),
        )


def pruned(of: Trained, found: Sensitivity) -> Iterator[Pruned]:
    """Half the multiply-accumulates by each scope; what layers cost is known."""
    for scope in SCOPES:
        steps = (
            PruneChannels(macs_ratio=2, round_to=1, scope=scope, fine_tune=tuning)
            for tuning in (None, TUNING)
        )
        known = replace(of.surroundings(), sensitivity=found)
        untuned, tuned = (of.accuracy(of.apply(step, known)[0]) for step in steps)
        yield Pruned(of.net, scope, untuned, tuned)


def error(of: Trained, path: Path) -> float:
    """Relative, of the outputs of a file on the test images."""
    wanted, found = (
        onnxruntime.InferenceSession(each).run(None, {"image": of.images.images})[0]
        for each in (of.path, path)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def draw(found: Sensitivity) -> None:
    """The picture of the documentation."""
    PICTURE.write_text(
        _chart.svg(
            [c for c in curves.of_sensitivity(found) if not c.y.endswith("int8")],
            "One layer alone compressed: separable convolutions on MNIST",
        )
    )


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of the table as docs/sensitivity.md has it."""
    yield "| network | method | amount | most sensitive | alone | together, predicted | together, measured | points lost |"
    yield "|---|---|---:|---|---:|---:|---:|---:|"
    for r in rows:
        figures = " | ".join(f"{f:.3f}" for f in (r.largest, r.predicted, r.measured))
        yield f"| {r.net} | `{r.method}` | {r.amount:g} | `{r.worst}` | {figures} | {r.drop:.1f} |"


def scopes(rows: list[Pruned]) -> Iterator[str]:
    """The same of what was pruned."""
    yield "| network | scope | accuracy, untrained | after 2 epochs |"
    yield "|---|---|---:|---:|"
    for r in rows:
        yield f"| {r.net} | `{r.scope}` | {r.untuned:.3f} | {r.tuned:.3f} |"


if __name__ == "__main__":
    main()
