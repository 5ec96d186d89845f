"""What an exported file weighs: as it is, zipped, at its entropy, and by its non-zero parameters alone."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from modelpress.spec.report import Size
from workers.engine import graph
from workers.engine.graph import codes, parameters, roles

_CHUNK_BYTES = 1 << 20
_ZIP_LEVEL = 6


@dataclass(frozen=True)
class Weight:
    """A weight as the file stores it."""

    symbols: NDArray[np.generic]  # any shape; floats as the integers of their bits
    nonzeros: int
    bits: float  # of one element

    @property
    def stored_bytes(self) -> int:
        return math.ceil(self.symbols.size * self.bits / 8)


def measure(path: Path, of: graph.Graph) -> Size:
    """Measures the file at `path`, and what it keeps outside, which holds graph `of`."""
    beside = path.with_name(f"{path.name}.data")
    files = [path, beside] if beside.exists() else [path]
    file_bytes = sum(file.stat().st_size for file in files)
    weights = list(_weights(of))
    stored = sum(weight.stored_bytes for weight in weights)
    coded = sum(entropy_bytes(weight) for weight in weights)
    elements = sum(weight.symbols.size for weight in weights)
    bits = sum(weight.symbols.size * weight.bits for weight in weights)
    return Size(
        file_bytes=file_bytes,
        zipped_bytes=sum(_zipped(file) for file in files),
        entropy_bytes=max(0, file_bytes - stored) + coded,
        theoretical_bytes=math.ceil(sum(w.nonzeros * w.bits for w in weights) / 8),
        parameters=elements,
        nonzero_parameters=sum(weight.nonzeros for weight in weights),
        bits_per_parameter=bits / elements if elements else 0.0,
    )


def entropy_bytes(weight: Weight) -> int:
    """Order-0 bound: symbols at their Shannon entropy, the codebook of those symbols beside them.

    A symbol that occurs once is cheaper left raw behind one shared escape symbol, so dense floats cost what they cost
    in the file. Never more than that.
    """
    _, counts = np.unique(weight.symbols, return_counts=True)
    once = int((counts == 1).sum())
    classes = np.append(counts[counts > 1], once) if once else counts
    shares = classes / weight.symbols.size
    coded_bits = float(-(classes * np.log2(shares)).sum())
    codebook_bits = len(counts) * weight.bits
    return min(weight.stored_bytes, math.ceil((coded_bits + codebook_bits) / 8))


def _weights(of: graph.Graph) -> Iterator[Weight]:
    for value in of.initializers.values():
        tensor = value.const_value
        if tensor is None or not tensor.size:
            continue
        if roles.role(value) is roles.Role.WEIGHT:
            bits = tensor.dtype.bitwidth
            elements = np.ascontiguousarray(tensor.numpy())
            yield Weight(_bits_of(elements), int(np.count_nonzero(elements)), bits)
        elif (use := parameters.integer_use(value)) is not None:
            yield _integer_weight(tensor, *use)
        elif (coded := codes.read(of, value)) is not None:
            yield Weight(coded.symbols, coded.nonzeros, coded.bits)


def _integer_weight(tensor: ir.TensorProtocol, node: ir.Node, slot: int) -> Weight:
    elements = _plain(tensor.numpy())
    zero: NDArray[np.generic] = np.zeros((), elements.dtype)
    operand = node.inputs[slot] if len(node.inputs) > slot else None
    if operand is not None and operand.const_value is not None:
        zero = _plain(operand.const_value.numpy())
    if zero.size == 1:
        zero = zero.reshape(())
    elif zero.ndim == 1:
        zero = _along(zero, elements.shape, node)
    else:
        zero = _by_block(zero, elements.shape, node)
    nonzeros = int(np.count_nonzero(elements != zero))
    return Weight(elements, nonzeros, tensor.dtype.bitwidth)


def _plain(elements: NDArray[np.generic]) -> NDArray[np.generic]:
    """4- and 2-bit integers, which numpy knows only as an extension, as int8."""
    return elements if elements.dtype.kind in "iu" else elements.astype(np.int8)


def _along(zero: NDArray[np.generic], shape: tuple[int, ...], node: ir.Node) -> NDArray[np.generic]:
    """Zero points of each channel, shaped to broadcast over the weight."""
    by_type = {"MatMulInteger": len(shape) - 1, "QLinearMatMul": len(shape) - 1}
    axis = by_type.get(node.op_type, 0)
    if node.op_type == "DequantizeLinear":
        axis = node.attributes.get_int("axis", 1) % len(shape)
    sizes = [1] * len(shape)
    sizes[axis] = len(zero)
    return zero.reshape(sizes)


def _by_block(
    zero: NDArray[np.generic], shape: tuple[int, ...], node: ir.Node
) -> NDArray[np.generic]:
    """Zero points of each block of an axis, repeated for its elements."""
    axis = node.attributes.get_int("axis", 1) % len(shape)
    repeated = np.repeat(zero, node.attributes.get_int("block_size", 0), axis)
    return repeated.take(range(shape[axis]), axis)


def _bits_of(elements: NDArray[np.generic]) -> NDArray[np.generic]:
    """Floats as unsigned integers of the same bits, -0.0 as 0."""
    positive = np.where(elements == 0, np.zeros((), elements.dtype), elements)
    return positive.view(f"u{elements.dtype.itemsize}")


def _zipped(path: Path) -> int:
    deflate = zlib.compressobj(_ZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total += len(deflate.compress(chunk))
    return total + len(deflate.flush())
