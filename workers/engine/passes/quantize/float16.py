"""quantize.float16: weights as 16-bit floats (Micikevicius et al. 2018, arXiv 1710.03740; bfloat16: arXiv 1905.12322).

    w float32 -> Conv        becomes        w float16 -> Cast -> Conv                      compute 'float32'
    x, w float32 -> Conv -> y               x -> Cast, w float16 -> Conv -> Cast -> y      compute 'float16'

Every float32 weight, tables and biases too; running statistics and constants stay. ONNX Runtime casts once, when it opens the file, and computes in
float32: on CPUs it has few kernels for float16 and next to none for bfloat16. With compute 'float16' layers read and give float16 (_halves.py).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from modelpress.spec.quantize import QuantizeFloat16
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, edit
from workers.engine.passes import _nothing
from workers.engine.passes.quantize import _halves

_KINDS = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_LARGEST = 65504.0
_NO_FASTER = (
    "ONNX Runtime casts the weights to float32 once, when it opens the file: the file is half as large, a run is no faster and "
    "needs no less memory"
)
_IN_HALF = (
    "{layers} layers compute in float16: faster where hardware has such arithmetic; a CPU without it computes in float32 and casts at each run. Outputs "
    "of a layer beyond 65,504 become infinite"
)


def apply(graph: Graph, step: QuantizeFloat16, ctx: Context) -> Graph:
    """Stores every float32 weight that the recipe does not exclude in 16 bits.

    Raises:
        NothingChanged: there is none, or the numbers of each are too large for float16.
    """
    first, kind = graph.nodes[0], _KINDS[step.type]
    for name in _chosen(graph, step, ctx):
        before = graph.weight(name)
        after = before.astype(kind.numpy())
        ctx.touched(name, _change(before, after, step.type))
        stored = graph.add_weight(f"{name}_{step.type}", after)
        to = {"to": int(ir.DataType.FLOAT)}
        cast = edit.insert_before(
            graph, first, "Cast", [stored], attributes=to, name=f"{name}_cast"
        )
        edit.replace_uses(graph.initializers[name], cast.outputs[0])
    edit.remove_dead(graph)
    if step.compute == "float16":
        ctx.note(_IN_HALF.format(layers=_halves.compute(graph)))
    else:
        ctx.note(_NO_FASTER)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be stored in 16 bits. Raises as `apply`."""
    for name in _chosen(graph, QuantizeFloat16(), ctx):
        ctx.touched(name, "can be stored in 16 bits")


def _chosen(graph: Graph, step: QuantizeFloat16, ctx: Context) -> list[str]:
    found = []
    for name, weight in graph.parameters().items():
        reason = _why_not(graph, name, weight, step)
        if reason:
            ctx.skipped(name, reason)
        else:
            found.append(name)
    if not found:
        raise NothingChanged(
            f"quantize.float16 found no weight to store in 16 bits ({_nothing.reasons(ctx) or 'the model has none'})",
            hint="shorten exclude, or take type 'bfloat16' where numbers are too large",
        )
    return found


def _why_not(graph: Graph, name: str, weight: np.ndarray, step: QuantizeFloat16) -> str:
    readers = [node.name or "" for node, _ in graph.initializers[name].uses()]
    if step.excludes(name, *readers):
        return "excluded by the recipe"
    if weight.dtype != np.float32:
        return f"its numbers are {weight.dtype}, only float32 is cast"
    if graph.initializers[name].is_graph_output():
        return "it is an output of the network"
    if step.type == "float16" and np.abs(weight).max(initial=0) > _LARGEST:
        return f"its largest number is {np.abs(weight).max():.3g}, float16 ends at 65,504: take type 'bfloat16'"
    return ""


def _change(before: np.ndarray, after: np.ndarray, kind: str) -> str:
    back = after.astype(np.float32)
    lost = int(np.count_nonzero((back == 0) & (before != 0)))
    norm = float(np.linalg.norm(before.astype(np.float64)))
    error = float(np.linalg.norm(back.astype(np.float64) - before)) / max(norm, 1e-30)
    gone = f", {lost:,} too small for it became zero" if lost else ""
    return f"{before.size:,} numbers in {kind}{gone}; relative error {error:.1e}"
