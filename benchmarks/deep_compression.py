"""Deep Compression from end to end (D2): the named recipe on LeNet-300-100 and LeNet-5, beside nncodec where it is installed.

Every byte counts: the packed file as it lies on disk, with graph, tables, biases and checksums, against the ONNX file that was uploaded. Accuracy
is that of the model that comes out of the packed file, in ONNX Runtime, on 1,000 real MNIST images that nothing was chosen by.

The recipe has one sparsity for every network. Beside it stands the sparsest of some for which it loses at most 0.2 points on the validation
images.

nncodec builds from source and wants torchvision: give the python of an environment that has it with --nncodec. It gets the weights of the
trained network, and those that the recipe's pruning leaves, each with the coarsest step of its quantizer that loses as little on the validation
images. Its bytes are the stream's alone, without a graph.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks import _mnist, _nets, _record
from modelpress.packed import container
from modelpress.spec.named import NAMED
from modelpress.spec.step import Step
from workers.engine import context, formats, passes
from workers.engine.formats import packing

NETS: Mapping[str, Callable[[int], nn.Module]] = {
    "LeNet-300-100": _mnist.lenet,
    "LeNet-5": lambda seed: _seeded(seed, _nets.lenet5),
}
EPOCHS = 10
LOSS = 0.002
"""The most that may be lost, as a share of all images."""
PAPER = {"LeNet-300-100": 40, "LeNet-5": 39}
"""How many times smaller they are in the paper, on all 60,000 images (Han et al., table 1)."""
NNCODEC = """
import sys, numpy as np, nncodec.nn
weights = dict(np.load(sys.argv[1]))
sizes = []
for qp in sys.argv[3:]:
    stream = nncodec.nn.encode(weights, {"qp": int(qp), "verbose": False})
    np.savez(f"{sys.argv[2]}/decoded{qp}.npz", **nncodec.nn.decode(stream))
    sizes.append(len(stream))
print(*sizes)
"""
SPARSER = (0.97, 0.98, 0.985, 0.99)
STEPS = range(-32, -7)
"""Of nncodec's quantizer, from fine to coarse: 4 of them double the step."""

Row = dict[str, Any]


def main() -> None:
    """Measures, prints the table and writes bench-output/deep_compression.json."""
    asked = _arguments()
    context.prepare_torch("cpu", 1)
    rows: list[Row] = []
    for net in asked.nets:
        for seed in range(asked.seeds):
            for row in compressed(net, seed, asked.nncodec):
                rows.append(row)
                _show(row)
    for net in asked.nets:
        _summarise(net, [row for row in rows if row["net"] == net])
    print(f"\nwritten to {_record.write('deep_compression', {'rows': rows})}")


def compressed(net: str, seed: int, nncodec: str | None) -> Iterator[Row]:
    """The network as it was trained, after each step, and packed; then the peer's."""
    found = _mnist.splits()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as name:
        folder = Path(name)
        _mnist.save(found, folder)
        network, model = NETS[net](seed), folder / "net.onnx"
        _mnist.fit(network, found["train"], EPOCHS)
        _mnist.export(network.eval(), model)
        whole = _row(net, seed, "trained", model, model, found)
        yield whole
        began = time.process_time()
        last, packed = _made(model, seed, _steps())
        seconds = time.process_time() - began
        unpacked = folder / "unpacked.onnx"
        yield _row(net, seed, "pruned and clustered, ONNX", unpacked, last, found)
        recipe = _row(net, seed, "packed", unpacked, packed, found) | {"seconds": seconds}
        yield recipe
        pruned = last.with_name("step0.onnx").rename(folder / "pruned.onnx")
        yield _sparsest(whole, recipe, model, found)
        if nncodec is not None:
            for start in (model, pruned):
                yield _peer(whole, start, found, nncodec)


def _sparsest(whole: Row, recipe: Row, model: Path, found: Mapping[str, _mnist.Split]) -> Row:
    """The smallest packed file of more weights pruned than in the recipe that loses little enough on the validation images; else the recipe's."""
    net, seed, best = whole["net"], whole["seed"], recipe
    prune, *others = _steps()
    for sparsity in SPARSER:
        cap = (1 + sparsity) / 2
        sparser = prune.model_copy(update={"sparsity": sparsity, "max_layer_sparsity": cap})
        _, packed = _made(model, seed, [sparser, *others])
        row = _row(net, seed, "", packed.with_name("unpacked.onnx"), packed, found)
        if row["validation"] < whole["validation"] - LOSS:
            break
        best = row | {"sparsity": sparsity}
    return best | {"what": "packed, sparsity by validation"}


def _made(model: Path, seed: int, steps: Sequence[Step]) -> tuple[Path, Path]:
    """The file that the steps lead to and the packed one, which is unpacked beside it; what each step leaves is in stepN.onnx."""
    graph, last = formats.load(model), model
    for index, step in enumerate(steps):
        graph = passes.apply(graph, step, _mnist.surroundings(model, seed=seed, step=index))
        last = model.with_name(f"step{index}.onnx")
        formats.save(graph, last)
    packed = model.with_name("model.mpk")
    packing.pack(last, packed, "entropy")
    container.unpack(packed, model.with_name("unpacked.onnx"))
    return last, packed


def _steps() -> list[Step]:
    return [step for step in NAMED["deep-compression"].steps if step.changes_model]


def _row(
    net: str, seed: int, what: str, model: Path, file: Path, found: Mapping[str, _mnist.Split]
) -> Row:
    """What `file` weighs, and what the model in it answers."""
    accuracies = {name: _accuracy(model, found[name]) for name in ("validation", "test")}
    return {"net": net, "seed": seed, "what": what, "bytes": file.stat().st_size, **accuracies}


def _accuracy(model: Path, split: _mnist.Split) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": split.images})
    return float((scores.argmax(1) == split.labels).mean())


def _peer(whole: Row, start: Path, found: Mapping[str, _mnist.Split], python: str) -> Row:
    """The smallest stream of nncodec, for the weights in `start`, whose loss on the validation images is small enough."""
    what = f"nncodec, {'trained' if start.stem == 'net' else start.stem}"
    decoded = start.with_name("decoded.onnx")
    best: Row | None = None
    for qp, size_bytes in zip(STEPS, _encoded(start, python), strict=True):
        graph = formats.load(start)
        with np.load(start.with_name(f"decoded{qp}.npz")) as arrays:
            for name in arrays:
                graph.set_weight(name, arrays[name].astype(np.float32))
        formats.save(graph, decoded)
        row = _row(whole["net"], whole["seed"], what, decoded, decoded, found)
        row |= {"bytes": size_bytes, "qp": qp}
        good = row["validation"] >= whole["validation"] - LOSS
        if good and (best is None or size_bytes < best["bytes"]):
            best = row
    return best or {**whole, "what": f"{what}: FAIL, no step of its quantizer loses so little"}


def _encoded(start: Path, python: str) -> list[int]:
    """Bytes of the stream with each of STEPS; what it gives back lies beside `start`."""
    weights = start.with_name("weights.npz")
    np.savez(weights, **formats.load(start).parameters())
    argv = [python, "-c", NNCODEC, str(weights), str(start.parent), *map(str, STEPS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=start.parent)
    return [int(size) for size in done.stdout.split()[-len(STEPS) :]]


def _summarise(net: str, rows: list[Row]) -> None:
    """Means over the seeds."""
    print(
        f"\n{net}, mean of {1 + max(row['seed'] for row in rows)} seeds (the paper: {PAPER[net]} times smaller)"
    )
    whole = fmean(row["bytes"] for row in rows if row["what"] == "trained")
    for what in dict.fromkeys(row["what"] for row in rows):
        of = [row for row in rows if row["what"] == what]
        size = fmean(row["bytes"] for row in of)
        test = 100 * fmean(row["test"] for row in of)
        print(f"{what:32}{size:>12,.0f} bytes{whole / size:>8.1f}x{test:>8.2f} %")


def _show(row: Row) -> None:
    print(
        f"{row['net']:14} seed {row['seed']} {row['what']:32}{row['bytes']:>10,} bytes  "
        f"validation {100 * row['validation']:.1f} %  test {100 * row['test']:.1f} %",
        flush=True,
    )


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deep_compression", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of everything (default: 3)")
    parser.add_argument("--nets", nargs="*", choices=list(NETS), default=list(NETS))
    parser.add_argument("--nncodec", help="python of an environment that has nncodec")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
