"""Symbol maps, tensors in ONNX files, and packed files of them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from scipy import special

from modelpress import packed
from modelpress.packed import container
from modelpress.packed.reading import Reader
from workers.engine.formats.packing import choice, cuts
from workers.engine.formats.packing import container as packing

METHODS = ("huffman", "entropy")
PRUNED = (0.9, *[0.1 / 16] * 16)
"""Shares of a pruned layer's symbols: nine of ten are zero, sixteen values share the rest."""


def pruned_map(size: int, seed: int = 0) -> np.ndarray:
    """Symbols of a layer that is pruned and clustered: normal values on either side of the zero."""
    rng = np.random.default_rng(seed)
    away = np.clip(np.rint(rng.normal(0, 3, size)), -8, 8)
    return np.where(rng.random(size) < 0.1, away, 0).astype(np.int64) + 8


def entropy_bits(symbols: np.ndarray) -> float:
    """n H0: what no code of single symbols can go below."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def regret_bits(alphabet: int, size: int) -> float:
    """What every code of `size` symbols needs beyond n H0 for the worst of them (Shtarkov 1987): log2 of the sum over all maps of their
    likelihoods at their own frequencies, by the recurrence of Kontkanen and Myllymäki (2007).
    """
    if alphabet == 1:
        return 0.0
    ones = np.arange(size + 1)
    others = size - ones
    logs = special.gammaln(size + 1) - special.gammaln(ones + 1) - special.gammaln(others + 1)
    logs += special.xlogy(ones, ones / size) + special.xlogy(others, others / size)
    growth = float(np.exp(logs).sum())
    bits = math.log2(growth)
    for symbols in range(1, alphabet - 1):
        growth = 1 + size / symbols / growth
        bits += math.log2(growth)
    return bits


def section(array: np.ndarray, method: str, type_: ir.DataType | None = None) -> bytes:
    """A tensor as it is packed."""
    content = array.tobytes()
    known = type_ or ir.DataType.from_numpy(array.dtype)
    plan, columns = choice.plan(content, known, array.shape, method)
    return packing.section(content, plan, columns)


def contents(code: bytes, size_bytes: int) -> bytes:
    """What a decoder makes of it."""
    reader = Reader(io.BytesIO(code), len(code))
    found = b"".join(container.tensor(reader, size_bytes))
    assert not reader.left
    return found


def model(**arrays: np.ndarray) -> onnx.ModelProto:
    """A model that holds these tensors."""
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [onnx.helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{t.name}_out", t.data_type, list(t.dims))
        for t in tensors
    ]
    graph = onnx.helper.make_graph(nodes, "held", [], outputs, initializer=tensors)
    return onnx.helper.make_model(graph)


def packed_file(folder: Path, method: str = "entropy", **arrays: np.ndarray) -> tuple[Path, Path]:
    """A model file with these tensors, and the packed one."""
    path = folder / "model.onnx"
    onnx.save(model(**arrays), path)
    packing.pack(path, folder / "model.mpk", method)
    return path, folder / "model.mpk"


def unpacked(path: Path) -> bytes:
    """The model that a packed file gives."""
    target = path.with_suffix(".again")
    packed.unpack(path, target)
    return target.read_bytes()


def found_cuts(path: Path) -> list[cuts.Cut]:
    """The tensors of a model file that get sections."""
    return cuts.find(path.read_bytes())
