"""Writes the packed file that code steps leave beside the model, and says what it consists of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from modelpress.spec import order
from modelpress.spec.report import SizeParts
from modelpress.spec.step import Step
from workers.engine import formats
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.formats import packing
from workers.engine.formats.packing import Coded, Method, Packed, cuts
from workers.engine.graph import Graph
from workers.engine.measure import parts
from workers.engine.measure.parts import Part
from workers.engine.passes import _constants, _exclusions


def pack(graph: Graph, step: Step, ctx: Context, method: Method) -> Graph:
    """Exports the graph and packs the file; the graph only loses the signs of its zeros.

    Raises:
        NothingChanged: the packed file is no smaller than the model.
        Unsupported: the model is too large for a packed file.
        ExportMismatch: what comes out of the packed file is not the model.
    """
    _unsign_zeros(graph, ctx)
    model, target = ctx.work / "unpacked.onnx", ctx.work / order.PACKED
    formats.save(graph, model)
    left = _left(graph, step, ctx)
    found = packing.pack(model, target, method, leave=left.__contains__)
    size_bytes = model.stat().st_size
    if found.size_bytes >= size_bytes:
        raise NothingChanged(
            f"{step.kind} wrote {found.size_bytes:,} bytes for a model of {size_bytes:,}",
            hint="leave the step out, or prune or quantize before it",
        )
    _cover(found, size_bytes, left, ctx)
    ctx.coverage.coded = sizes(found, parts.of(graph))
    ctx.coverage.files.append(target)
    model.unlink()
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what would be coded. Raises NothingChanged where no tensor is large enough."""
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= cuts.SMALLEST:
            ctx.touched(name, "can be coded without loss")
    if not ctx.coverage.touched:
        raise NothingChanged(f"no tensor of the model has {cuts.SMALLEST} bytes or more")


def sizes(packed: Packed, roles: Mapping[str, Part]) -> SizeParts:
    """What the bytes of a packed file are for."""
    found = dict.fromkeys(Part, 0)
    for tensor in packed.tensors:
        codes = tensor.packed_bytes - tensor.codebook_bytes - tensor.table_bytes
        found[roles.get(tensor.name, Part.HEADERS)] += codes
        found[Part.CODEBOOKS] += tensor.codebook_bytes
        found[Part.TABLES] += tensor.table_bytes
    found[Part.HEADERS] += packed.header_bytes
    return SizeParts(**{part.value: size_bytes for part, size_bytes in found.items()})


def _unsign_zeros(graph: Graph, ctx: Context) -> None:
    """Writes -0.0 as 0.0: masks leave one for each negative weight, and telling the two apart costs a bit for every zero."""
    changed = 0
    for name, weight in graph.parameters().items():
        negative = (weight == 0) & np.signbit(weight.astype(np.float32))
        if count := int(np.count_nonzero(negative)):
            graph.set_weight(name, np.where(negative, np.zeros((), weight.dtype), weight))
            changed += count
    if changed:
        ctx.note(
            f"{changed:,} weights of -0.0 were written as 0.0; all others are bit for bit what they were"
        )


def _left(graph: Graph, step: Step, ctx: Context) -> set[str]:
    """Tensors that the recipe excludes, by their own name or that of a node that reads them, decoded or not.

    A pattern that matches none is told.
    """
    made = _constants.nodes(graph)
    names = {name: {name, *_readers(value, made)} for name, value in graph.initializers.items()}
    _exclusions.tell(step, set().union(*names.values()), ctx)
    return {name for name, known in names.items() if step.excludes(*known)}


def _readers(value: ir.Value, made: Collection[ir.Node]) -> Iterator[str]:
    """Nodes that read a value, or what is made of it and constants alone."""
    todo = [value]
    while todo:
        for node, _ in todo.pop().uses():
            yield node.name or ""
            todo += node.outputs if node in made else ()


def _cover(found: Packed, size_bytes: int, left: Collection[str], ctx: Context) -> None:
    for tensor in found.tensors:
        if tensor.name in left:
            ctx.skipped(tensor.name, "excluded by the recipe: stored as it is")
        elif _is_raw(tensor):
            ctx.skipped(tensor.name, "stored as it is: no code has fewer bytes")
        else:
            ctx.touched(tensor.name, _words(tensor))
    inside = sum(tensor.content_bytes for tensor in found.tensors)
    ctx.note(
        f"{order.PACKED} has {found.size_bytes:,} bytes, 1/{size_bytes / found.size_bytes:.1f} of model.onnx, which comes out of it byte for "
        f"byte: modelpress unpack {order.PACKED} -o model.onnx"
    )
    ctx.note(
        f"of {size_bytes:,} bytes, {size_bytes - inside:,} are no contents of large tensors: deflated and with the directory they take "
        f"{found.header_bytes:,}"
    )


def _is_raw(tensor: Coded) -> bool:
    return tensor.packed_bytes >= tensor.content_bytes


def _words(tensor: Coded) -> str:
    bits = 8 * tensor.packed_bytes / tensor.elements
    return f"{tensor.codec}: {tensor.packed_bytes:,} of {tensor.content_bytes:,} bytes, {bits:.3g} bit each"
