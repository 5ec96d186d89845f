"""Bias correction: rounding shifts the mean of each output channel, the bias shifts it back (Nagel et al. 2019, arXiv 1906.04721, 4.2).

y = W x + b,  ~y = ~W ~x + b    becomes    ~y = ~W ~x + b + E[W x] - E[~W ~x]

~W and ~x are what codes stand for. The layer is linear, so that its mean output is its output of the mean input, which is gathered
in the memory of one sample. Differs in: means come from data, where the paper derives them from BatchNormalization; inputs are those of
the float network, each layer is corrected for its own errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.context import Context
from workers.engine.data import Dataset
from workers.engine.graph import Graph
from workers.engine.passes.quantize import _affine, _layerwise, _plan, _prepare, _sweep
from workers.engine.passes.quantize._builder import Builder
from workers.engine.passes.quantize._targets import Target
from workers.engine.passes.quantize._weights import Layer

Means = npt.NDArray[np.float64]


def correct(
    graph: Graph,
    layers: Sequence[Layer],
    samples: Dataset,
    ctx: Context,
    deeds: Mapping[str, list[str]],
) -> list[Layer]:
    """Changes the biases; answers the layers with theirs. A matrix product without bias is left alone and noted."""
    means = [MeanInput(layer) for layer in layers]
    names = [layer.target.input.name or "" for layer in layers]
    _sweep.run(graph, list(zip(names, means, strict=True)), samples, ctx, "taking means")
    builder = Builder(graph)
    corrected, without = [], []
    for layer, mean in zip(layers, means, strict=True):
        by = shift(layer, mean, np.asarray(graph.weight(layer.target.weight)))
        target = add(builder, layer.target, by)
        if target is None:
            without.append(layer.target.weight)
        else:
            deeds[layer.target.weight].append(f"bias shifted by {np.abs(by).max():.3g} at most")
        corrected.append(layer if target is None else replace(layer, target=target))
    if without:
        ctx.note(f"bias_correction: {len(without)} layers have no bias: {', '.join(without[:5])}")
    return corrected


class MeanInput:
    """Mean over samples of what a layer reads, as it is and as its codes give it."""

    def __init__(self, layer: Layer) -> None:
        self._matrix, self._codes = _layerwise.is_matrix(layer.target), layer.input
        self._count, self._exact, self._coded = 0, np.zeros(()), np.zeros(())

    def add(self, values: _sweep.Values) -> None:
        rows = values.reshape(-1, values.shape[-1]) if self._matrix else values
        coded = rows
        if self._codes is not None:
            coded = _affine.decode(_affine.encode(rows, self._codes), self._codes)
        self._count += len(rows)
        self._exact = self._exact + rows.sum(axis=0, dtype=np.float64)
        self._coded = self._coded + coded.sum(axis=0, dtype=np.float64)

    @property
    def exact(self) -> Means:
        """[inputs] of a matrix product, [C, ...] of a convolution."""
        return self._exact / self._count

    @property
    def coded(self) -> Means:
        """The same of what the codes stand for."""
        return self._coded / self._count


def shift(layer: Layer, mean: MeanInput, weight: np.ndarray) -> Means:
    """What the bias lacks: [output channels]."""
    coded = _affine.decode_weight(layer.codes)
    return _mean_output(layer.target, mean.exact, weight) - _mean_output(
        layer.target, mean.coded, coded
    )


def _mean_output(target: Target, mean: Means, weight: np.ndarray) -> Means:
    x = torch.from_numpy(mean)[None]
    y = _layerwise.multiply(target, x, torch.from_numpy(weight.astype(np.float64)))[0]
    if not _layerwise.is_matrix(target):
        y = y.mean(dim=tuple(range(1, y.ndim)))
    found: Means = y.numpy()
    return found


def has_place(target: Target) -> bool:
    """Whether `add` can change the layer's bias."""
    if target.kind == "MatMul":
        add = _plan.only_use(target.node.outputs[0])
        return _prepare.bias_operand(target.node, add) is not None
    return target.bias is None or _plan.is_constant(target.bias)


def add(builder: Builder, target: Target, by: Means) -> Target | None:
    """The target with a shift [output channels] in its bias; None where it has none and can't get one."""
    if target.kind == "MatMul":
        return target if _add_behind(builder, target, by) else None
    old = np.zeros(()) if target.bias is None else np.asarray(_prepare.array(target.bias))
    name = f"{target.weight}_bias" if target.bias is None else f"{target.bias.name}_corrected"
    value = builder.constant(name, (old + by).astype(np.float32))
    target.node.resize_inputs(3)
    target.node.replace_input_with(2, value)
    return replace(target, bias=value)


def _add_behind(builder: Builder, target: Target, by: Means) -> bool:
    """Shifts the constant that an Add behind a MatMul adds; whether there is one."""
    add = _plan.only_use(target.node.outputs[0])
    bias = _prepare.bias_operand(target.node, add)
    if add is None or bias is None:
        return False
    old = np.asarray(_prepare.array(bias))
    value = builder.constant(f"{bias.name}_corrected", (old + by).astype(np.float32))
    add.replace_input_with(0 if add.inputs[0] is bias else 1, value)
    return True
