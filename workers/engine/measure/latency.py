"""How fast an exported file runs in ONNX Runtime, interleaved with the uploaded model.

A shared machine speeds up and slows down by tens of percent within seconds. Both models therefore run in turn in one
process, in the order A B, B A, A B, ..., so that the ratio of their medians holds where neither median does.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelpress.spec.report import Latency
from workers.engine import data
from workers.engine.errors import BadModel, EngineError, ExportMismatch
from workers.engine.measure import session

Feeds = Mapping[str, NDArray[np.generic]]

BUDGET_S = 3.0
"""Time for one model's share of the timed runs, twice that for both."""
MIN_RUNS, MAX_RUNS = 7, 2000
_WARMUP_S = 0.3
_MIN_WARMUP, _MAX_WARMUP = 2, 200


def measure(
    path: Path,
    original: Path,
    feeds: Feeds,
    *,
    threads: int,
    budget_s: float = BUDGET_S,
) -> Latency:
    """Times `path` beside `original` on the same feeds, whose first dimension is the batch.

    `ratio` is the ratio of the two medians. Where both are one file, it is timed once and the ratio is 1.

    Raises:
        BadModel: ONNX Runtime can't run `original`.
        ExportMismatch: it can't run `path`.
    """
    first = _runner(original, feeds, threads, BadModel)
    if os.path.samefile(path, original):
        warmup = _warm_up(first)
        times = alternate((first,), budget_s)
        return _latency(times[0], times[0], warmup, feeds, threads)
    second = _runner(path, feeds, threads, ExportMismatch)
    warmup = max(_warm_up(first), _warm_up(second))
    originals, times_ms = alternate((first, second), 2 * budget_s)
    return _latency(times_ms, originals, warmup, feeds, threads)


def speedups(
    path: Path,
    original: Path,
    feeds: Feeds,
    *,
    threads: int,
    stretches: int,
    budget_s: float = BUDGET_S,
) -> list[float]:
    """How many times faster `path` is than `original`, in each of several stretches of interleaved runs.

    Of the time that a tenth of the runs does not exceed: where others want the cores, medians say how long a run waits, the more
    the longer it is. How far the stretches differ tells how far the ratio can be trusted.

    Raises:
        BadModel: ONNX Runtime can't run `original`.
        ExportMismatch: it can't run `path`.
    """
    runners = (
        _runner(original, feeds, threads, BadModel),
        _runner(path, feeds, threads, ExportMismatch),
    )
    for runner in runners:
        _warm_up(runner)
    found = [alternate(runners, 2 * budget_s / stretches) for _ in range(stretches)]
    return [float(np.percentile(a, 10) / np.percentile(b, 10)) for a, b in found]


def sample_feeds(dataset: data.Dataset, batch: int) -> dict[str, NDArray[np.generic]]:
    """The first `batch` samples, repeated where there are fewer."""
    return dataset.batch(np.arange(batch) % dataset.samples)


def random_feeds(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], seed: int
) -> dict[str, NDArray[np.generic]]:
    """Seeded inputs where there is no data: normal floats; integers 0 or 1, which index any embedding and mask."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, NDArray[np.generic]] = {}
    for name, shape in shapes.items():
        dtype = np.dtype(dtypes[name])
        if dtype.kind == "f":
            feeds[name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


def _runner(
    path: Path, feeds: Feeds, threads: int, raising: type[EngineError]
) -> Callable[[], None]:
    opened = session.open(path, threads=threads, raising=raising, spin=False)
    given = {name: feeds[name] for name in opened.inputs}
    opened.run(given)
    return lambda: opened.run_untimed(given)


def _warm_up(run: Callable[[], None]) -> int:
    """Runs until caches and clocks have settled; answers the number of runs."""
    runs, started = 0, time.perf_counter()
    while runs < _MIN_WARMUP or (runs < _MAX_WARMUP and time.perf_counter() - started < _WARMUP_S):
        run()
        runs += 1
    return runs


def alternate(
    runners: tuple[Callable[[], None], ...], budget_s: float
) -> tuple[NDArray[np.float64], ...]:
    """Milliseconds of each run, [runs] for each runner; as many rounds as fit the budget."""
    times: tuple[list[float], ...] = tuple([] for _ in runners)
    order = list(range(len(runners)))
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        while len(times[0]) < MIN_RUNS or (
            len(times[0]) < MAX_RUNS and time.perf_counter() - started < budget_s
        ):
            for index in order:
                times[index].append(_time_ms(runners[index]))
            order.reverse()
    finally:
        if was_enabled:
            gc.enable()
    return tuple(np.array(values) for values in times)


def _time_ms(run: Callable[[], None]) -> float:
    started = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - started) / 1e6


def _latency(
    times_ms: NDArray[np.float64],
    originals_ms: NDArray[np.float64],
    warmup: int,
    feeds: Feeds,
    threads: int,
) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, (50, 90, 99)))
    original_p50 = float(np.median(originals_ms))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(times_ms.mean()),
        std_ms=float(times_ms.std()),
        min_ms=float(times_ms.min()),
        runs=len(times_ms),
        warmup=warmup,
        batch=len(next(iter(feeds.values()))),
        threads=threads,
        device="cpu",
        original_p50_ms=original_p50,
        ratio=p50 / original_p50,
    )
