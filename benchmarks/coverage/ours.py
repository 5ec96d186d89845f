"""Prunes one ONNX file with the step prune.channels, half of each layer, and checks what comes out.

python -m benchmarks.coverage.ours MODEL FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from modelpress.spec.prune import PruneChannels
from workers.engine import formats, passes
from workers.engine.context import Context
from workers.engine.graph import Graph, execute

BATCH = 3
"""Not the batch that was exported, so that a batch that became fixed is seen."""


def main(model: str, path: str) -> None:
    """Writes what happened as JSON."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as work:
            found = checked(Path(model), Path(work))
    except Exception as error:
        found = {"valid": False, "why": f"{type(error).__name__}: {error}"[:300]}
    Path(path).write_text(json.dumps(found))


def checked(model: Path, work: Path) -> dict[str, Any]:
    """Half of each layer goes; the rest must run in ONNX Runtime, agree with our executor, and train a step."""
    graph = formats.load(model)
    before = size(graph)
    ctx = Context(device=torch.device("cpu"), threads=1, seed=0, source=graph.clone(), work=work)
    start = time.process_time()
    graph = passes.apply(graph, PruneChannels(fraction=0.5), ctx)
    seconds = time.process_time() - start
    formats.save(graph, work / "pruned.onnx")
    difference = agreement(work / "pruned.onnx", example(graph))
    train(formats.load(work / "pruned.onnx"), example(graph))
    if size(graph) >= before:
        raise ValueError("nothing was removed")
    return {
        "valid": True,
        "ratio": size(graph) / before,
        "seconds": seconds,
        "difference": difference,
    }


def size(graph: Graph) -> int:
    """Parameters."""
    return sum(weight.size for weight in graph.parameters().values())


def example(graph: Graph) -> dict[str, np.ndarray]:
    """A batch of random images."""
    value = graph.inputs[0]
    sizes = [int(s) for s in list(value.shape or ())[1:] if isinstance(s, int)]
    images = np.random.default_rng(0).standard_normal((BATCH, *sizes)).astype(np.float32)
    return {value.name or "": images}


def agreement(path: Path, feeds: Mapping[str, np.ndarray]) -> float:
    """The largest difference to ONNX Runtime, of the largest output where that is above 1.

    Raises:
        ValueError: it is above 1e-4, or the batch is no longer open.
    """
    graph = formats.load(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, feeds)[0]
    ours = execute.run(graph, feeds)[graph.outputs[0].name or ""]
    difference = float(np.abs(ours - theirs).max()) / max(1.0, float(np.abs(theirs).max()))
    (batch,) = {len(array) for array in feeds.values()}
    if len(theirs) != batch:
        raise ValueError(f"{batch} samples give {len(theirs)} answers")
    if not difference <= 1e-4:
        raise ValueError(f"ONNX Runtime differs by {difference:.2g}")
    return difference


def train(graph: Graph, feeds: Mapping[str, np.ndarray]) -> None:
    """One step of gradient descent.

    Raises:
        ValueError: no weight has a gradient, or one is not finite.
    """
    module = execute.as_module(graph).train()
    (samples,) = feeds.values()
    sum(y.square().mean() for y in module(torch.from_numpy(samples))).backward()  # type: ignore[union-attr]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients or not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise ValueError("it can't be trained: no finite gradients")
    torch.optim.SGD(module.parameters(), 1e-3).step()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
