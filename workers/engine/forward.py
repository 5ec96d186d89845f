"""Runs samples through a module, also where the model was exported for one fixed batch.

Exporters write the batch of their example into the graph unless told otherwise: Reshape to [1, -1]. Such a module runs
piece by piece; its loss and gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.engine import data, graph, losses
from workers.engine.errors import BadModel
from workers.engine.graph import shapes


def fixed_batch(of: graph.Graph, dataset: data.Dataset) -> int | None:
    """The only number of samples that the graph can run; null where it runs any.

    A graph whose inputs declare a fixed batch but whose operators take any is not fixed.
    """
    declared = [value.shape[0] for value in of.inputs if value.shape]
    sizes = [size for size in declared if isinstance(size, int)]
    if not sizes:
        return None
    more = sizes[0] + 1
    given = {name: array.shape[1:] for name, array in dataset.batch([0]).items()}
    try:
        found = shapes.infer(of, {name: (more, *shape) for name, shape in given.items()})
    except BadModel:
        return sizes[0]
    rows = [found.get(value.name or "", ())[:1] for value in of.outputs]
    return None if all(row == (more,) for row in rows) else sizes[0]


def run(
    module: nn.Module,
    dataset: data.Dataset,
    indices: NDArray[np.int64],
    device: torch.device,
    fixed: int | None = None,
) -> losses.Batch:
    """Runs samples `indices` through `module`, which takes the inputs in order and answers a tuple.

    With `fixed`, in pieces of that many samples, the last filled up with its last sample.
    """
    feeds = dataset.batch(indices)
    inputs = tuple(torch.from_numpy(feeds[name]).to(device) for name in dataset.input_names)
    labels = None
    if dataset.labels is not None:
        labels = torch.from_numpy(dataset.labels[indices]).to(device)
    if fixed is None:
        outputs = module(*inputs)
    else:
        answers = [module(*piece) for piece in _pieces(inputs, fixed)]
        outputs = tuple(torch.cat(rows)[: len(indices)] for rows in zip(*answers, strict=True))
    return losses.Batch(inputs=inputs, outputs=outputs, labels=labels)


def _pieces(inputs: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    samples = len(inputs[0])
    for start in range(0, samples, size):
        places = torch.arange(start, start + size).clamp_max(samples - 1)
        yield tuple(x[places.to(x.device)] for x in inputs)
