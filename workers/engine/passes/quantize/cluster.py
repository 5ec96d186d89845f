"""quantize.cluster: the weights of a layer share a few values (Han et al. 2016, arXiv 1510.00149, section 3).

    w [out, in] float                     ->  MatMul
    codes [out, in] uint8 -> Cast -> Gather(table, .)  ->  MatMul

The values are the centroids of k-means. Weights that are zero stay zero: then one value of the table is zero, and no training moves it.
Training through the lookup gives each value the sum of the gradients of its weights, which is the paper's eq. 3. Differs in: the paper's
codes leave zeros out and count the gaps between the others, which is the coder's part here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from modelpress.spec.quantize import QuantizeCluster
from workers.engine import teaching
from workers.engine.context import Context
from workers.engine.errors import NothingChanged
from workers.engine.graph import Graph, codes, edit, execute
from workers.engine.graph.match import Layer
from workers.engine.passes import _overrides, _weights
from workers.engine.passes.quantize import _chosen, _kmeans

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_NO_FASTER = (
    "ONNX Runtime looks all weights up once, when it opens the file, and then computes in float as before: the file is smaller, a run is "
    "no faster"
)


def apply(graph: Graph, step: QuantizeCluster, ctx: Context) -> Graph:
    """Replaces weights of convolutions and matrix products by a table of shared values and codes.

    Raises:
        NothingChanged: there is no layer whose weights would take fewer bytes, or an override names none.
        BadModel: a weight or a bias is not finite.
        Diverged: fine-tuning gave NaN or infinity.
    """
    _weights.turn(graph)
    layers = _chosen.layers(graph, step, ctx)
    groups = _groups(graph, _bits(layers, step), step) + _biases(graph, layers, step)
    tables = [_cluster(graph, names, width, step, ctx) for names, width in groups]
    tables = [table for table in tables if _is_smaller(graph, table, ctx)]
    if not tables:
        raise NothingChanged(
            "quantize.cluster found no layer whose weights take fewer bytes as a table and codes",
            hint="ask for fewer bits, or leave the step out",
        )
    stored = [_store(graph, table, ctx) for table in tables]
    edit.remove_dead(graph)
    if step.fine_tune is not None:
        _fine_tune(graph, step, stored, ctx)
    ctx.note(_NO_FASTER)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could share values. Raises as `apply`."""
    _weights.turn(graph)
    for name in _chosen.layers(graph, QuantizeCluster(), ctx):
        ctx.touched(name, "its weights can share a few values")


@dataclass(frozen=True)
class Table:
    """Values that weights share. The first is zero where zeros have to stay."""

    values: np.ndarray
    """In the type of the weights."""
    codes: Mapping[str, codes.Codes]
    """Of each weight by name, in its shape."""
    keeps_zero: bool
    errors: Mapping[str, float]
    """Of each weight: the norm of what changed over its norm."""


def _bits(layers: Mapping[str, Layer], step: QuantizeCluster) -> dict[str, int]:
    """Bits of a code of each weight."""
    own = _overrides.of(layers, ((o.layers, o.bits) for o in step.overrides))
    by_kind = {
        name: step.conv_bits if layer.kind in _CONVOLUTIONS else step.bits
        for name, layer in layers.items()
    }
    return {**by_kind, **own}


def _groups(
    graph: Graph, bits: Mapping[str, int], step: QuantizeCluster
) -> list[tuple[list[str], int]]:
    """Weights that share a table, and its bits."""
    if step.scope == "layer":
        return [([name], width) for name, width in bits.items()]
    keys = {name: (width, str(graph.weight(name).dtype)) for name, width in bits.items()}
    ordered = sorted(bits, key=lambda name: keys[name])
    return [(list(names), key[0]) for key, names in itertools.groupby(ordered, keys.__getitem__)]


def _biases(
    graph: Graph, layers: Mapping[str, Layer], step: QuantizeCluster
) -> list[tuple[list[str], int]]:
    """Those of the layers, each with a table of its own."""
    if step.bias_bits is None:
        return []
    of_layers = (layer.bias for layer in layers.values() if layer.bias is not None)
    names = [name for name in dict.fromkeys(of_layers) if graph.is_parameter(name)]
    for name in names:
        _chosen.check_finite(graph, name)
    return [([name], step.bias_bits) for name in names]


def _cluster(
    graph: Graph, names: list[str], bits: int, step: QuantizeCluster, ctx: Context
) -> Table:
    """k-means over the weights together; zeros have a value of their own."""
    weights = {name: graph.weight(name) for name in names}
    every = np.concatenate([w.reshape(-1) for w in weights.values()])
    keeps_zero = bool((every == 0).any())
    line = _kmeans.Line.of(every[every != 0])
    free = 2**bits - keeps_zero
    rng = ctx.random(f"centroids/{names[0]}")
    found = _kmeans.fit(line, free, step.initialization, rng).astype(every.dtype)
    values = np.unique(found)
    shift = int(keeps_zero)
    table = np.concatenate([np.zeros(shift, every.dtype), values])
    of_each = {name: _codes(weight, values, shift) for name, weight in weights.items()}
    errors = {name: _error(weights[name], table[code]) for name, code in of_each.items()}
    return Table(table, of_each, keeps_zero, errors)


def _codes(weight: np.ndarray, values: np.ndarray, shift: int) -> codes.Codes:
    if not values.size:
        return np.zeros(weight.shape, np.uint8)
    nearest = _kmeans.assign(weight, values.astype(np.float64)) + shift
    return np.where(weight == 0, 0, nearest).astype(np.uint8) if shift else nearest.astype(np.uint8)


def _error(before: np.ndarray, after: np.ndarray) -> float:
    was = before.astype(np.float64)
    return float(np.linalg.norm(after - was) / max(np.linalg.norm(was), np.finfo(np.float32).tiny))


def _bytes(table: Table) -> int:
    """Of the values and all codes, without the nodes that read them."""
    coded = (codes.file_bytes(code.size, len(table.values)) for code in table.codes.values())
    return table.values.nbytes + sum(coded)


def _is_smaller(graph: Graph, table: Table, ctx: Context) -> bool:
    """Whether it takes fewer bytes than the weights; those of a table that does not are reported."""
    before = sum(graph.weight(name).nbytes for name in table.codes)
    if _bytes(table) < before:
        return True
    for name in table.codes:
        ctx.skipped(
            name,
            f"a table of {len(table.values)} values and codes take {_bytes(table):,} bytes, the weights {before:,}",
        )
    return False


def _store(graph: Graph, table: Table, ctx: Context) -> tuple[ir.Value, Table]:
    """Puts a table and codes in the place of its weights. Answers the initializer of the table."""
    first = next(iter(table.codes))
    stored = graph.add_weight(f"{first}_table", table.values)
    for name, code in table.codes.items():
        ctx.touched(name, _change(graph.weight(name), table, name))
        _replace(graph, name, stored, code, len(table.values))
    return stored, table


def _replace(graph: Graph, name: str, table: ir.Value, code: codes.Codes, count: int) -> None:
    first = graph.nodes[0]
    places = codes.numbers(graph, first, name, code, max(count, 2), ir.DataType.INT32)
    looked_up = edit.insert_before(graph, first, "Gather", [table, places], name=f"{name}_lookup")
    edit.replace_uses(graph.initializers[name], looked_up.outputs[0])


def _change(weight: np.ndarray, table: Table, name: str) -> str:
    count, code = len(table.values), table.codes[name]
    stored = codes.file_bytes(code.size, count)
    zeros = (
        f", {np.count_nonzero(code == 0) / code.size:.1%} of them zero" if table.keeps_zero else ""
    )
    shared = f" (shared by {len(table.codes)} layers)" if len(table.codes) > 1 else ""
    return (
        f"{weight.size:,} weights{zeros} -> {count} values{shared}, relative error {table.errors[name]:.2%}; "
        f"{weight.nbytes:,} -> {stored:,} bytes of codes and {table.values.nbytes:,} of values"
    )


def _fine_tune(
    graph: Graph, step: QuantizeCluster, stored: list[tuple[ir.Value, Table]], ctx: Context
) -> None:
    """Trains the values, and whatever else the network has, with the zeros held."""
    assert step.fine_tune is not None, "asked by the caller"
    module = execute.as_module(graph)
    held = [value.name or "" for value, table in stored if table.keeps_zero]

    @torch.no_grad()
    def hold_zeros() -> None:
        for name in held:
            module.weights[name][0] = 0.0

    log = teaching.train_by(
        module,
        graph,
        step.fine_tune,
        ctx,
        step.recover,
        after_step=hold_zeros,
        label="shared values",
    )
    execute.write_back(module, graph)
    ctx.note(
        f"shared values were trained by {teaching.described(step.recover)}: loss {teaching.course(log)}"
    )
