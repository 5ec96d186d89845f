"""The kernel of binary networks (D8): products of signs by XNOR and popcount beside the same products of float32, one thread.

Called directly, beside torch: both run on operands that lie ready; packing the activations is timed apart. And as the operator of ONNX
Runtime, which packs its input, beside the runtime's own float32 operator.

Two limits, of one core that does 16 float32 multiply-adds in a cycle (two units of 8). If counting were all: 3 to 4 counts of 64 bits in a
cycle. With what AVX2 has to do besides: three instructions of 256 bits (xor, lookups, sums: about 9 in 3 cycles).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from benchmarks import _record
from workers.engine.kernels import xnor
from workers.engine.measure import session

PRODUCTS = ((1, 784, 300), (64, 1024, 1024), (64, 4096, 1024))
"""Rows, inputs and outputs."""
CONVOLUTIONS = ((64, 28), (128, 14), (256, 14), (512, 7))
"""Channels, in and out, and the size of the image, of 3x3 filters."""
ESTIMATE = 256 / 3 / 16
OF_COUNTING = (3 * 64 / 16, 4 * 64 / 16)

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
    operators = (
        _operator("SignMatMul", a, _constants(packed[1].words), channels=inputs),
        _operator("MatMul", a, {"weight": np.ascontiguousarray(b.T)}),
    )
    return _row(name, macs, ours, lambda: x @ w.T, partial(xnor.pack, a), operators, budget_s)


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
    pads = dict.fromkeys(("pad_top", "pad_left", "pad_bottom", "pad_right"), 1)
    strides = {"stride_height": 1, "stride_width": 1}
    operators = (
        _operator("SignConv", a, _constants(packed[1].words), channels=channels, **strides, **pads),
        _operator("Conv", a, {"weight": b}, pads=[1, 1, 1, 1]),
    )
    return _row(name, macs, ours, other, partial(xnor.pack, last), operators, budget_s)


def _constants(words: np.ndarray) -> dict[str, np.ndarray]:
    filters = len(words)
    return {
        "weight": words,
        "scale": np.ones(filters, np.float32),
        "bias": np.zeros(filters, np.float32),
    }


def _operator(
    kind: str, x: np.ndarray, constants: Mapping[str, np.ndarray], **attributes: Any
) -> Callable[[], object]:
    """Runs a network of one operator in ONNX Runtime on x."""
    domain = "modelpress" if kind.startswith("Sign") else ""
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *constants], ["y"], domain=domain, **attributes)],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("modelpress", 1)]
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        path = Path(folder) / "operator.onnx"
        onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), path)
        opened = session.open(path, threads=1, kernels=True)
    return partial(opened.run, {"x": x})


def _row(
    name: str,
    macs: int,
    ours: Mapping[str, Callable[[], object]],
    other: Callable[[], object],
    pack: Callable[[], object],
    operators: tuple[Callable[[], object], Callable[[], object]],
    budget_s: float,
) -> Row:
    """Shortest times, taken in turn."""
    runs = [*ours.values(), other, pack, *operators]
    *times, of_float, of_packing, operator, of_runtime = _shortest(runs, budget_s)
    best = min(times)
    return {
        "name": name,
        **{f"{way}_us": 1e6 * t for way, t in zip(ours, times, strict=True)},
        "float_us": 1e6 * of_float,
        "pack_us": 1e6 * of_packing,
        "times_faster": of_float / best,
        "packing_included": of_float / (best + of_packing),
        "gmacs_per_s": macs / best / 1e9,
        "operator_us": 1e6 * operator,
        "runtime_float_us": 1e6 * of_runtime,
        "operator_times_faster": of_runtime / operator,
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
    print(f"\n{'':28}" + "".join(f"{column:>22}" for column in columns))
    for row in rows:
        print(f"{row['name']:28}" + "".join(f"{row[column]:>22.2f}" for column in columns))
    least, most = OF_COUNTING
    print(
        f"estimates of the limit, over float32 at its peak: {ESTIMATE:.1f} with AVX2's instructions, {least:g} to {most:g} if counting were all"
    )


if __name__ == "__main__":
    main()
