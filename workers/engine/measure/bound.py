"""Why a network is not as much faster as it computes less: what a run takes time for beside multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from modelpress.spec.report import Stage
from workers.engine.graph import Graph, match, shapes

LEAST_SHARE = 0.8
"""Of the ratio of multiply-accumulates; a ratio of times below it is explained."""
BLOCK = 8
"""Channels that a convolution of ONNX Runtime takes together."""
_FEWER = 1.1
_BYTES = 4


def explain(
    before: Stage, after: Stage, graph: Graph, input_shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """One note where a step saved less time than computation, with what bounds the rest; none otherwise.

    Args:
        before: The stage before the step.
        after: The stage after it.
        graph: The network after it.
        input_shapes: Of the batch that latency is measured with.
    """
    fewer = before.cost.macs / max(after.cost.macs, 1)
    faster = before.latency.ratio / after.latency.ratio
    if fewer < _FEWER or faster >= LEAST_SHARE * fewer:
        return
    moved = _bytes(graph, input_shapes)
    batch = after.latency.batch
    reasons = [
        f"a run of {after.latency.p50_ms:.3g} ms starts {len(graph.nodes)} operators, which takes time whatever they compute",
        f"it moves {moved / 1e6:.3g} MB of weights and values, {after.cost.macs * batch / max(moved, 1):.2g} "
        "multiply-accumulates for each byte: the fewer, the more it waits for memory",
        *_beside_blocks(graph),
    ]
    yield (
        f"this step left x{fewer:.2f} fewer multiply-accumulates, but the model is x{faster:.2f} faster: "
        + "; ".join(reasons)
    )


def _bytes(graph: Graph, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of all weights and all values, each counted once, in 32 bits."""
    return _BYTES * sum(math.prod(shape) for shape in shapes.infer(graph, input_shapes).values())


def _beside_blocks(graph: Graph) -> Iterator[str]:
    layers = [layer for layer in match.layers(graph) if layer.kind == "Conv"]
    odd = [layer for layer in layers if graph.weight(layer.weight).shape[0] % BLOCK]
    if odd:
        yield (
            f"{len(odd)} of {len(layers)} convolutions have channels that are no multiple of {BLOCK}, "
            "for which ONNX Runtime takes slower code: round_to 8 avoids that"
        )
