"""What the benchmarks of quantization share: networks trained on MNIST, rows about files, arguments and tables."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Generic, TypeVar

import numpy as np
import onnxruntime
import torch

from benchmarks import _mnist, _nets, _record, _seeds
from modelpress.spec.step import Step
from workers.engine import context, formats, passes
from workers.engine.context import Context
from workers.engine.measure import environment, latency

EPOCHS = {"LeNet-5": 5, "depthwise": 6, "transformer": 15}
FLOAT = "float32"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file of one seed."""

    net: str
    seed: int
    method: str
    accuracy: float = 0.0
    """On the test images."""
    file_bytes: int = 0
    speedup: float = 0.0
    """Over the float file."""
    seconds: float = 0.0
    """Of processor time for quantizing."""
    failure: str = ""
    """Empty, or what a method said that made no file."""
    cpu_flags: Sequence[str] = field(default_factory=environment.cpu_flags)


R = TypeVar("R", bound=Row)
Column = Callable[[Sequence[R], Sequence[R]], str]
"""What a table says of rows of one method, beside those of the float network."""


@dataclass(frozen=True)
class Trained:
    """A network that was trained with a seed, in a folder with the data."""

    net: str
    seed: int
    path: Path
    images: _mnist.Split
    """Those that accuracy is measured on, and nothing is chosen by."""
    timed: bool = True
    """Whether files are timed; else nothing is known of their speed."""

    def out(self, name: str) -> Path:
        """Where another file goes."""
        return self.path.with_name(name)

    def surroundings(self, step: int = 0) -> Context:
        """Those of a step of a job."""
        return _mnist.surroundings(self.path, seed=self.seed, step=step)

    def apply(self, step: Step, ctx: Context) -> tuple[Path, float]:
        """The file that the step makes of the network, and the seconds of processor time it took."""
        began, out = time.process_time(), self.out("ours.onnx")
        formats.save(passes.apply(formats.load(self.path), step, ctx), out)
        return out, time.process_time() - began

    def accuracy(self, path: Path) -> float:
        """Of a file, in ONNX Runtime."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        scores = session.run(None, {"image": self.images.images})[0]
        return float((scores.argmax(1) == self.images.labels).mean())

    def speedup(self, path: Path, over: Path) -> float:
        """How many times as fast as another a file runs, one image on one thread, in turn."""
        if not self.timed:
            return math.nan
        one = {"image": self.images.images[:1]}
        found = latency.speedups(path, over, one, threads=1, stretches=3, budget_s=0.3)
        return float(np.median(found))


@dataclass(frozen=True)
class Benchmark(Generic[R]):
    """A benchmark of one step."""

    name: str
    about: str
    kind: type[R]
    rows: Callable[[Trained, bool], Iterator[R]]
    """Those of a network; the flag asks for few methods. A function of a module."""
    columns: Mapping[str, Column[R]]

    def main(self) -> None:
        """Measures, prints the table, writes bench-output/NAME.json."""
        asked = _arguments(self.name, self.about)
        began, seeds = time.perf_counter(), 1 if asked.quick else asked.seeds
        work = partial(
            _measured,
            rows=self.rows,
            nets=tuple(asked.nets),
            quick=asked.quick,
            timed=not asked.untimed,
        )
        each = _seeds.each(work, seeds, asked.processes, first=asked.first)
        rows = [row for found in each for row in found]
        if asked.add:
            rows = [*self._others(rows), *rows]
        figures = {
            "rows": [asdict(row) for row in rows],
            "seconds": round(time.perf_counter() - began, 1),
        }
        written = _record.write(self.name, figures)
        print(f"\nCPU flags: {' '.join(rows[0].cpu_flags) or 'none of those that matter'}")
        for line in table(rows, self.columns):
            print(line)
        print(f"written to {written}")

    def _others(self, rows: Sequence[R]) -> list[R]:
        """Rows of earlier runs, of networks and seeds that are not among these."""
        path = _record.OUTPUT / f"{self.name}.json"
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        measured = {(row.net, row.seed) for row in rows}
        return [self.kind(**row) for row in before if (row["net"], row["seed"]) not in measured]


def _arguments(name: str, about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    nets = list(_nets.NETS)
    parser.add_argument("--seeds", type=int, default=3, help="runs (default: 3)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first (default: 0)")
    parser.add_argument("--nets", nargs="*", default=nets, choices=nets)
    parser.add_argument("--add", action="store_true", help="to the rows of earlier runs")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed, few methods")
    parser.add_argument("--untimed", action="store_true", help="no latencies")
    return parser.parse_args()


def _measured(
    seed: int,
    *,
    rows: Callable[[Trained, bool], Iterator[R]],
    nets: Sequence[str],
    quick: bool,
    timed: bool,
) -> list[R]:
    """All rows of one seed, told as they come: the whole takes minutes."""
    context.prepare_torch("cpu", 1)
    found = []
    for net in nets:
        with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
            for row in rows(replace(trained(net, seed, Path(folder)), timed=timed), quick):
                print(_told(row), file=sys.stderr, flush=True)
                found.append(row)
    return found


def _told(row: Row) -> str:
    if row.failure:
        return f"{row.net}, {row.method}: FAIL: {row.failure}"
    return (
        f"{row.net}, {row.method}: {row.accuracy:.3f}, {row.file_bytes:,} bytes, {row.speedup:.2f} times as fast as float, "
        f"{row.seconds:.1f} s"
    )


def trained(net: str, seed: int, folder: Path) -> Trained:
    """Trains and exports a network."""
    found, path = _mnist.splits(), folder / f"{net}.onnx"
    _mnist.save(found, folder)
    torch.manual_seed(seed)
    network = _nets.NETS[net]()
    _mnist.fit(network, found["train"], EPOCHS[net])
    _mnist.export(network.eval(), path)
    return Trained(net, seed, path, found["test"])


def table(rows: Sequence[R], columns: Mapping[str, Column[R]]) -> Iterator[str]:
    """Lines of a table as docs/benchmarks.md has it, one for each network and method."""
    yield f"| network | method | {' | '.join(columns)} |"
    yield f"|---|---|{'---:|' * len(columns)}"
    for net, method in dict.fromkeys((row.net, row.method) for row in rows):
        same = [row for row in rows if (row.net, row.method) == (net, method)]
        base = [row for row in rows if (row.net, row.method) == (net, FLOAT)]
        failures = [row.failure for row in same if row.failure]
        if failures:
            cells = [f"FAIL: {failures[0]}", *[""] * (len(columns) - 1)]
        else:
            cells = [column(same, base) for column in columns.values()]
        yield f"| {net} | {method} | {' | '.join(cells)} |"


def mean(of: Callable[[R], float], form: str = "{:.2f}") -> Column[R]:
    """A column of means over the seeds; of times that were not taken, a dash."""

    def cell(rows: Sequence[R], base: Sequence[R]) -> str:
        value = fmean(of(row) for row in rows)
        return "-" if math.isnan(value) else form.format(value)

    return cell


def smaller(of: Callable[[R], float]) -> Column[R]:
    """A column of how many times smaller than the float network's."""
    return lambda rows, base: f"x{fmean(map(of, base)) / fmean(map(of, rows)):.2f}"


def points_lost(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """Mean over the seeds, and the most that one lost."""
    was = {row.seed: row.accuracy for row in base}
    lost = [100 * (was[row.seed] - row.accuracy) for row in rows]
    return f"{fmean(lost):.2f}" + (f" (at most {max(lost):.1f})" if len(lost) > 1 else "")


ACCURACY: Column[Row] = mean(lambda row: 100 * row.accuracy)
FILE: Column[Row] = smaller(lambda row: row.file_bytes)
SECONDS: Column[Row] = mean(lambda row: row.seconds, "{:.1f}")
FASTER: Column[Row] = mean(lambda row: row.speedup, "x{:.2f}")
