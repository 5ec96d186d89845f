"""The kernel of binary networks (D8): products of signs by XNOR and popcount beside the same products of float32 in torch, one thread.

Both run on operands that lie ready; packing the activations is timed apart. The estimate is of one core: 16 float32 multiply-adds in a
cycle (two units of 8), against the bits that three instructions of 256 (xor, lookups, sums: about 9 in 3 cycles) compare.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import _record
from workers.engine.kernels import xnor

PRODUCTS = ((1, 784, 300), (64, 1024, 1024), (64, 4096, 1024))
"""Rows, inputs and outputs."""
CONVOLUTIONS = ((64, 28), (128, 14), (256, 14), (512, 7))
"""Channels, in and out, and the size of the image, of 3x3 filters."""
ESTIMATE = 256 / 3 / 16

Row = dict[str, float | str]


def main() -> None:
    """Measures, prints the table and writes bench-output/xnor.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xnor", description=__doc__)
    parser.add_argument("--budget-s", type=float, default=1.0, help="for each row (default: 1)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [product(*sizes, budget_s=asked.budget_s) for sizes in PRODUCTS]
    rows += [convolution(*sizes, budget_s=asked.budget_s) for sizes in CONVOLUTIONS]
    _show(rows)
    print(f"written to {_record.write('xnor', {'rows': rows, 'estimate': ESTIMATE})}")


def product(rows: int, inputs: int, outputs: int, *, budget_s: float) -> Row:
    """A matrix product by each way."""
    a, b = _signs(rows, inputs), _signs(outputs, inputs)
    x, w = torch.from_numpy(a), torch.from_numpy(b)
    packed = xnor.pack(a), xnor.pack(b)
    assert np.array_equal(xnor.matmul(*packed), (x @ w.T).numpy())
    ours = {way: partial(xnor.matmul, *packed, way) for way in _ways()}
    name, macs = f"{rows}x{inputs} @ {inputs}x{outputs}", rows * inputs * outputs
    return _row(name, macs, ours, lambda: x @ w.T, partial(xnor.pack, a), budget_s)


def convolution(channels: int, size: int, *, budget_s: float) -> Row:
    """A convolution of one image, padded with ones, by each way."""
    a, b = _signs(1, channels, size, size), _signs(channels, channels, 3, 3)
    x = torch.nn.functional.pad(torch.from_numpy(a), (1, 1, 1, 1), value=1.0)
    w, last = torch.from_numpy(b), np.ascontiguousarray(a.transpose(0, 2, 3, 1))
    packed = xnor.pack(last), xnor.pack(b.transpose(0, 2, 3, 1))
    ours = {way: partial(xnor.convolve, *packed, pads=(1, 1, 1, 1), way=way) for way in _ways()}
    wanted = torch.nn.functional.conv2d(x, w).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(ours[xnor.best()](), wanted)
    name, macs = f"3x3, {channels} channels, {size}x{size}", channels * channels * 9 * size * size
    other = partial(torch.nn.functional.conv2d, x, w)
    return _row(name, macs, ours, other, partial(xnor.pack, last), budget_s)


def _row(
    name: str,
    macs: int,
    ours: dict[str, Callable[[], object]],
    other: Callable[[], object],
    pack: Callable[[], object],
    budget_s: float,
) -> Row:
    """Shortest times, taken in turn."""
    runs = [*ours.values(), other, pack]
    *times, of_float, of_packing = _shortest(runs, budget_s)
    best = min(times)
    return {
        "name": name,
        **{f"{way}_us": 1e6 * t for way, t in zip(ours, times, strict=True)},
        "float_us": 1e6 * of_float,
        "pack_us": 1e6 * of_packing,
        "times_faster": of_float / best,
        "packing_included": of_float / (best + of_packing),
        "gmacs_per_s": macs / best / 1e9,
    }


def _shortest(runs: Sequence[Callable[[], object]], budget_s: float) -> list[float]:
    """The shortest time of each, in seconds of this thread's CPU: where others want the cores, a clock would say how long a run waited."""
    best, ends = [float("inf")] * len(runs), time.thread_time() + budget_s
    for turn in itertools.count():
        for index, run in enumerate(runs):
            began = time.thread_time()
            run()
            best[index] = min(best[index], time.thread_time() - began)
        if time.thread_time() > ends and turn >= 5:
            return best
    raise AssertionError("the loop has no end of its own")


def _signs(*shape: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=shape)
    return np.where(drawn >= 0, 1, -1).astype(np.float32)


def _ways() -> tuple[str, ...]:
    return xnor.WAYS[: xnor.WAYS.index(xnor.best()) + 1]


def _show(rows: Sequence[Row]) -> None:
    columns = [key for key in rows[0] if key != "name"]
    print(f"\n{'':28}" + "".join(f"{column:>18}" for column in columns))
    for row in rows:
        print(f"{row['name']:28}" + "".join(f"{row[column]:>18.2f}" for column in columns))
    print(f"estimate of the limit: {ESTIMATE:.1f} times faster than float32 at its peak")


if __name__ == "__main__":
    main()
