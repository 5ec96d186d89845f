"""What a network must answer without some of its channels, found with the whole network, whichever tool removed them.

Every weight is filled with numbers of which no two are equal, so the numbers that are left in a pruned file or module say which channels
are gone. The whole network then answers with all other numbers at zero and, as docs/adr/0009 defines it, no mean or variance that counts
a channel of zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Arrays = Mapping[str, np.ndarray]


def fill(network: nn.Module, seed: int) -> None:
    """Gives every weight new random numbers, about as large as those it had and no two the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if weight.is_floating_point():
                weight.copy_(_numbers(name, weight, generator))


def _numbers(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, weight.shape, generator=generator) * 2 - 1
    if name.endswith("running_var"):
        return _distinct(weight, 0.5, 1.5, generator)
    if weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
        return weight + signs * _distinct(weight, 0.1, 0.4, generator)
    largest = float(weight.abs().max())
    return signs * _distinct(weight, largest / 2**5, largest, generator)


def _distinct(weight: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Positive numbers in the shape of the weight: as evenly spread as their bit patterns, and in random order."""
    first, last = torch.tensor([low, high]).view(torch.int32).tolist()
    count, start = weight.numel(), float(torch.rand((), generator=generator))
    assert count < last - first, "there are more weights than numbers"
    order = torch.randperm(count, generator=generator).double()
    places = (order + start) * ((last - first) / count)
    return (places.to(torch.int32) + first).view(torch.float32).reshape(weight.shape)


def kept(network: nn.Module, left: Arrays) -> dict[str, Tensor]:
    """Which numbers of each weight are among those that are left.

    left: the weights of the pruned network, in any shape. One of another name than in the whole network is looked for in all.
    """
    renamed = np.concatenate([a.ravel() for a in left.values() if a.dtype == np.float32])
    return {
        name: torch.from_numpy(np.isin(_bits(weight.numpy()), _bits(left.get(name, renamed))))
        for name, weight in network.state_dict().items()
        if weight.is_floating_point()
    }


def share(network: nn.Module, kept: Mapping[str, Tensor]) -> float:
    """The part of the parameters that is left."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return sum(int(kept[name].sum()) for name in sizes) / sum(sizes.values())


def answer(network: nn.Module, kept: Mapping[str, Tensor], x: Tensor) -> np.ndarray:
    """The answer of the network as if numbers that are not kept had never been, in double precision."""
    network = copy.deepcopy(network).double()
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if name in kept:
                weight.mul_(kept[name])
        with _Absent():
            answered: Tensor = network(x.double() if x.is_floating_point() else x)
    return answered.numpy()


def _bits(numbers: np.ndarray) -> np.ndarray:
    return np.abs(np.asarray(numbers, np.float32, order="C")).view(np.int32)


class _Absent(TorchFunctionMode):
    """Normalizations over channels do not count those whose scale is zero."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = _NORMALIZATIONS.get(function, function)
        return found(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    kept = weight != 0
    found = x[..., kept]
    shift = None if bias is None else bias[kept]
    normed = functional.layer_norm(found, found.shape[-1:], weight[kept], shift, eps)
    return _put(x, normed.movedim(-1, 0), kept, -1)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    kept = weight != 0
    found = x[..., kept]
    normed = functional.rms_norm(found, found.shape[-1:], weight[kept], eps)
    return _put(x, normed.movedim(-1, 0), kept, -1)


def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    normed, members = torch.zeros_like(x), torch.arange(len(weight)).chunk(groups)
    for channels in members:
        chosen = channels[weight[channels] != 0]
        if len(chosen):
            normed[:, chosen] = functional.group_norm(
                x[:, chosen], 1, weight[chosen], bias[chosen], eps
            )
    return normed


def _put(x: Tensor, rows: Tensor, kept: Tensor, axis: int) -> Tensor:
    whole = torch.zeros_like(x)
    whole.movedim(axis, 0)[kept] = rows
    return whole


_NORMALIZATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.group_norm: _group_norm,
}
