"""Training under masks: pruned weights stay at zero, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from workers.engine.graph.execute import GraphModule
from workers.engine.passes.prune._masks import Mask


class Masked:
    """Keeps pruned weights of a module at zero. Masks become buffers beside the weights, on their device."""

    def __init__(self, module: GraphModule, masks: Mapping[str, Mask]) -> None:
        self._module = module
        self._buffers = {name: f"mask_{i}" for i, name in enumerate(masks)}
        for name, buffer in self._buffers.items():
            module.register_buffer(buffer, torch.from_numpy(masks[name]), persistent=False)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets every pruned weight to 0, exactly."""
        weights = self._module.weights
        for name, buffer in self._buffers.items():
            weights[name].masked_fill_(self._module.get_buffer(buffer), 0.0)
