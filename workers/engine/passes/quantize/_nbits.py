"""Matrix products whose weight stays packed: MatMulNBits of ONNX Runtime, in the place of MatMul or Gemm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from workers.engine.graph import Graph, edit, match
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._packed import Codes, Packed

DOMAIN = "com.microsoft"
BLOCKS = (256, 128, 64, 32, 16)
"""Sizes of a group that the kernel knows."""
IN_FLOAT, IN_INT8 = 1, 4
"""Accuracy levels: inputs as they are, or rounded to 8 bits block by block."""
_WASTE = 1.02
"""How much longer rows may get for a larger block."""


def why_not(layer: match.Layer, packed: Packed) -> str:
    """Why the kernel can't take a layer; empty where it can."""
    if layer.kind not in ("MatMul", "Gemm"):
        return f"it is a {layer.kind}"
    if layer.node.attributes.get_int("transA", 0):
        return "its input is transposed"
    if packed.divisor is not None:
        return "its inputs have factors of their own"
    if not packed.per_channel and packed.group not in BLOCKS:
        return f"groups of {packed.group} are none of {', '.join(map(str, reversed(BLOCKS)))}"
    return ""


def replace(graph: Graph, layers: Sequence[match.Layer], packed: Packed, level: int) -> None:
    """Puts MatMulNBits in the place of every layer that multiplies by this weight."""
    builder, block = Builder(graph), _block(packed)
    constants = _constants(graph, layers[0].weight, packed, block)
    graph.model.graph.opset_imports[DOMAIN] = 1
    attributes = {
        "K": packed.matrix.columns,
        "N": packed.matrix.rows,
        "bits": packed.width,
        "block_size": block,
        "accuracy_level": level,
    }
    for layer in layers:
        name = f"{layer.name}_nbits"
        operands = _operands(layer.node, constants)
        made = edit.insert_before(
            graph,
            layer.node,
            "MatMulNBits",
            operands,
            attributes=attributes,
            domain=DOMAIN,
            name=name,
        )
        builder.take_place(layer.node.outputs[0], made.outputs[0])


def pack(codes: Codes, bits: int) -> Codes:
    """Codes [..., n] as bytes [..., n * bits / 8], the first in the lowest bits; n fills whole bytes."""
    each = 8 // bits
    places = codes.reshape(*codes.shape[:-1], -1, each)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: Codes = np.bitwise_or.reduce(places << shifts, axis=-1)
    return packed


def _operands(node: ir.Node, constants: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """A, B, scales, zero_points, g_idx, bias; without those at the end that are left out."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    operands = [node.inputs[0], *constants, None, bias]
    while operands[-1] is None:
        operands.pop()
    return operands


def _block(packed: Packed) -> int:
    """The group; where a row shares one scale, the largest block that hardly lengthens it."""
    if not packed.per_channel:
        return packed.group
    columns = packed.matrix.columns
    fits = (size for size in BLOCKS if -(-columns // size) * size <= columns * _WASTE)
    return next(fits, BLOCKS[-1])


def _constants(graph: Graph, name: str, packed: Packed, block: int) -> list[ir.Value | None]:
    """Weight, scales and zero points as the kernel reads them."""
    blocks = -(-packed.matrix.columns // block)
    stored = graph.add_weight(f"{name}_nbits", _rows(packed, blocks, block))
    scales = _scales(graph, name, packed, blocks)
    if packed.symmetric:
        return [stored, scales, None]
    zeros = np.broadcast_to(packed.zero, (packed.matrix.rows, blocks))
    whole = -(-blocks // (8 // packed.width)) * (8 // packed.width)
    filled = np.pad(zeros, ((0, 0), (0, whole - blocks)))
    return [stored, scales, graph.add_weight(f"{name}_zero", pack(filled, packed.width))]


def _rows(packed: Packed, blocks: int, block: int) -> Codes:
    """Codes [rows, blocks, bytes of a block]; where the grid is symmetric, the kernel's zero is the middle of its own width."""
    shift = 2 ** (packed.width - 1) - packed.middle if packed.symmetric else 0
    missing = blocks * block - packed.matrix.columns
    filled = np.pad(packed.codes + shift, ((0, 0), (0, missing)))
    return pack(filled.reshape(packed.matrix.rows, blocks, block), packed.width)


def _scales(graph: Graph, name: str, packed: Packed, blocks: int) -> ir.Value:
    """One scale for each block, flat; repeated from one for each row when the file is opened."""
    first, rows = graph.nodes[0], packed.matrix.rows
    value = graph.add_weight(f"{name}_scale", packed.scale)
    if packed.scale.dtype != np.float32:
        to = {"to": int(ir.DataType.FLOAT)}
        value = edit.insert_before(graph, first, "Cast", [value], attributes=to).outputs[0]
    if packed.scale.shape[1] != blocks:
        shape = graph.add_weight(f"{name}_blocks", np.array([rows, blocks], np.int64))
        value = edit.insert_before(graph, first, "Expand", [value, shape]).outputs[0]
    flat = graph.add_weight(f"{name}_flat", np.array([-1], np.int64))
    return edit.insert_before(graph, first, "Reshape", [value, flat]).outputs[0]
