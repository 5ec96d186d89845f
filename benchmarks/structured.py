"""Half of each layer's channels removed from small networks of one pattern each and from torchvision's, by ours and by Torch-Pruning (methods.md, D5).

Random weights, both tools with their defaults, the peer's classifier ignored. What comes out passes if it is smaller, runs on another
batch than the example, trains a step, and answers to 1e-5 what the whole network answers as if the removed channels had never been
(docs/adr/0009). Ours is the exported file in ONNX Runtime and must agree with our executor too. Something that ends without an error
and without a removed channel is a silent no-op; something that runs and answers otherwise is wrong.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch_pruning
from torch import Tensor, nn

from benchmarks import _record
from benchmarks.coverage import ours as checks
from benchmarks.patterns import absent, images, tokens, vision
from benchmarks.patterns.pattern import Pattern
from modelpress.spec.prune import PruneChannels
from workers.engine import context, formats, passes
from workers.engine.context import Context
from workers.engine.formats import quiet

GROUPS: Mapping[str, Mapping[str, Pattern]] = {
    "patterns": {**images.PATTERNS, **tokens.PATTERNS},
    "torchvision": vision.PATTERNS,
}
BATCH = 3
"""Not the one of the example."""
EXACT = 1e-5
"""Of the largest answer."""
PASS, NO_OP, WRONG, FAILED = "pass", "silent no-op", "wrong", "failed"


@dataclass(frozen=True)
class Found:
    """What a tool made of one network."""

    verdict: str
    left: float | None = None
    """Parameters, as a part of those that were."""
    difference: float | None = None
    """From the whole network without the channels, the largest there is."""
    seconds: float | None = None
    """Of pruning, in processor time."""
    why: str = ""


Row = Mapping[str, Found]
"""What each tool made of a network."""
Tool = Callable[[nn.Module, Pattern, Path], Found]


def main() -> None:
    """Measures, prints the tables, writes bench-output/structured.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="networks, by name")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    asked = parser.parse_args()
    context.prepare_torch("cpu", 1)
    torch.backends.mha.set_fastpath_enabled(False)
    warnings.simplefilter("ignore")
    began = time.process_time()
    rows = {
        group: {
            name: tried(name, pattern)
            for name, pattern in GROUPS[group].items()
            if not asked.only or name in asked.only
        }
        for group in asked.groups
    }
    seconds = time.process_time() - began
    _print(rows, seconds)
    figures = {
        title: {name: {tool: asdict(f) for tool, f in row.items()} for name, row in group.items()}
        for title, group in rows.items()
    }
    print(f"written to {_record.write('structured', {'seconds': seconds, **figures})}")


def tried(name: str, pattern: Pattern) -> Row:
    """The same network and the same weights for both."""
    torch.manual_seed(0)
    network = pattern.build().eval()
    absent.fill(network, seed=0)
    row = {}
    for tool, prune in TOOLS.items():
        with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as work:
            try:
                row[tool] = prune(network, pattern, Path(work))
            except Exception as error:
                row[tool] = Found(FAILED, why=f"{type(error).__name__}: {error}"[:300])
        print(f"{name:28} {tool:14} {_told(row[tool])} {row[tool].why[:120]}", flush=True)
    return row


def ours(network: nn.Module, pattern: Pattern, work: Path) -> Found:
    """The step prune.channels on the exported file."""
    export(network, pattern.example(2), work / "model.onnx")
    graph = formats.load(work / "model.onnx")
    ctx = Context(device=torch.device("cpu"), threads=1, seed=0, source=graph.clone(), work=work)
    began = time.process_time()
    graph = passes.apply(graph, PruneChannels(fraction=0.5), ctx)
    seconds = time.process_time() - began
    formats.save(graph, work / "pruned.onnx")
    x = pattern.example(BATCH)
    feeds = {graph.inputs[0].name or "": x.numpy()}
    checks.agreement(work / "pruned.onnx", feeds)
    checks.train(formats.load(work / "pruned.onnx"), feeds)
    session = onnxruntime.InferenceSession(work / "pruned.onnx", providers=["CPUExecutionProvider"])
    left = {name: graph.weight(name) for name in graph.initializers}
    return _judged(network, left, x, session.run(None, feeds)[0], seconds)


def theirs(network: nn.Module, pattern: Pattern, work: Path) -> Found:
    """Torch-Pruning on the module."""
    pruned = copy.deepcopy(network)
    began = time.process_time()
    torch_pruning.pruner.BasePruner(
        pruned,
        pattern.example(2),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[classifier(pruned)],
    ).step()
    seconds = time.process_time() - began
    x, left = pattern.example(BATCH), {n: w.numpy() for n, w in pruned.state_dict().items()}
    with torch.no_grad():
        answered: Tensor = pruned(x)
    _train(copy.deepcopy(pruned), x)
    return _judged(network, left, x, answered.numpy(), seconds)


TOOLS: Mapping[str, Tool] = {"ModelPress": ours, "Torch-Pruning": theirs}


def export(network: nn.Module, x: Tensor, path: Path) -> None:
    """Writes ONNX for any batch; nothing is folded or fused."""
    with quiet.quiet():
        program = torch.onnx.export(
            network,
            (x,),
            dynamo=True,
            optimize=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["x"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def classifier(network: nn.Module) -> nn.Module:
    """`head`, or the last layer."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    head: nn.Module = getattr(network, "head", layers[-1])
    return head


def _train(network: nn.Module, x: Tensor) -> None:
    """One step. Raises ValueError where no weight has a finite gradient."""
    network.train()(x).square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if not gradients or not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise ValueError("it can't be trained: no finite gradients")
    torch.optim.SGD(network.parameters(), 1e-3).step()


def _judged(
    network: nn.Module, left: absent.Arrays, x: Tensor, found: np.ndarray, seconds: float
) -> Found:
    """Compares an answer with that of the whole network. Raises ValueError where it has another shape."""
    kept = absent.kept(network, left)
    share, wanted = absent.share(network, kept), absent.answer(network, kept, x)
    if found.shape != wanted.shape:
        raise ValueError(f"answers {found.shape}, not {wanted.shape}")
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    verdict = NO_OP if share == 1 else PASS if difference <= EXACT else WRONG
    return Found(verdict, share, difference, seconds)


def _print(rows: Mapping[str, Mapping[str, Row]], seconds: float) -> None:
    """The tables as docs/benchmarks.md has them."""
    print(f"\n{seconds:.0f} s of processor time")
    for title, group in rows.items():
        print(f"\n| {len(group)} {title} | {' | '.join(TOOLS)} |\n|---|{'---:|' * len(TOOLS)}")
        for label, summary in SUMMARIES.items():
            print(
                f"| {label} | {' | '.join(summary([row[t] for row in group.values()]) for t in TOOLS)} |"
            )
    for title, group in rows.items():
        print(f"\n| {title} | {' | '.join(TOOLS)} |\n|---|{'---|' * len(TOOLS)}")
        for name, row in group.items():
            print(f"| {name} | {' | '.join(_told(row[t]) for t in TOOLS)} |")


def _counted(verdict: str) -> Callable[[list[Found]], str]:
    return lambda found: str(sum(f.verdict == verdict for f in found))


def _largest(found: list[Found]) -> str:
    return f"{max((f.difference or 0 for f in found if f.verdict == PASS), default=0):.1e}"


def _mean_left(found: list[Found]) -> str:
    left = [f.left for f in found if f.verdict == PASS and f.left is not None]
    return f"{sum(left) / len(left):.2f}" if left else ""


SUMMARIES: Mapping[str, Callable[[list[Found]], str]] = {
    "pass": _counted(PASS),
    "raises, or what comes out does not run or train": _counted(FAILED),
    "wrong: runs, and answers otherwise": _counted(WRONG),
    "silent no-op": _counted(NO_OP),
    "largest difference of what passes": _largest,
    "parameters left of what passes, mean": _mean_left,
}


def _told(found: Found) -> str:
    """'pass, 0.31 left, 2e-7'."""
    left = f", {found.left:.2f} left" if found.left is not None else ""
    difference = f", {found.difference:.0e}" if found.difference is not None else ""
    return f"{found.verdict}{left}{difference}"


if __name__ == "__main__":
    main()
