"""Networks by their names in timm, given weights of the user's. The only place that imports timm: the extra `timm`.

Nothing is fetched: a name is one of timm's own list, and `pretrained` is off.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.engine.errors import BadModel, Unsupported
from workers.engine.formats import quiet

Weights = Mapping[str, torch.Tensor]

INSTALL = "on the worker: pip install 'modelpress[worker,timm]'"
_COUNTER = ".num_batches_tracked"
"""Of BatchNormalization: without effect on what a network answers, and often left out."""

_NAMED = 5
"""How many tensors an error names of each kind before it says 'and more'."""

_NEAR = 5
_UNUSED_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []


@dataclass(frozen=True)
class Built:
    """A network in eval() with its weights; `input_shape` is (channels, height, width) of a sample."""

    network: nn.Module
    input_shape: tuple[int, ...]
    notes: tuple[str, ...]


def build(name: str, weights: Weights) -> Built:
    """The network of an architecture that these weights are of.

    Classes and input channels are those of the weights, the size of an image is the architecture's own.

    Raises:
        Unsupported: timm is not installed, or its network takes no images.
        BadModel: there is no such architecture, or the weights are those of another.
    """
    timm = load_timm()
    _require_known(timm, name)
    options = _options(_outline(timm, name), weights)
    network = _create(timm, name, device="cpu", **options)
    _require_same(name, timm.__version__, network.state_dict(), weights)
    network.load_state_dict(dict(weights), strict=True)
    config: Mapping[str, Any] = network.pretrained_cfg
    channels, height, width = config["input_size"]
    shape = (options.get("in_chans", channels), height, width)
    return Built(network.eval(), shape, _notes(config, options, weights))


def load_timm() -> Any:
    """The package, which needs the Python half of torchvision only.

    A torchvision that was built for another torch (CUDA beside CPU) can't load its compiled operators and then asks in
    vain for two of them. No network of timm calls these, so it is enough that they are declared.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with quiet.quiet():
            try:
                importlib.import_module("torchvision")
            except RuntimeError:
                _declare_operators()
            return importlib.import_module("timm")
    except ImportError as error:
        raise Unsupported(
            f"a state_dict needs the extra 'timm', which this worker lacks: {error}", hint=INSTALL
        ) from error


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in _UNUSED_OPERATORS:
        library.define(f"{operator}{_SCHEMA}")  # type: ignore[no-untyped-call]
    _kept.append(library)


def _require_known(timm: Any, name: str) -> None:
    known: list[str] = timm.list_models()
    if name in known or name in timm.list_models(pretrained=True):
        return
    near = difflib.get_close_matches(name.lower().partition(".")[0], known, _NEAR)
    raise BadModel(
        f"timm {timm.__version__} has no architecture {name[:64]!a}",
        hint=f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all",
    )


def _outline(timm: Any, name: str) -> Any:
    """The default network for its shapes: without weights, unless it computes with them while it is made."""
    try:
        return _create(timm, name, device="meta")
    except Unsupported:
        return _create(timm, name, device="cpu")


def _create(timm: Any, name: str, device: str, **options: int) -> Any:
    """The network as timm makes it, with random weights."""
    torch.manual_seed(0)
    try:
        with quiet.quiet(), torch.device(device):
            return timm.create_model(name, pretrained=False, exportable=True, **options)
    except Exception as error:
        raise Unsupported(
            f"timm {timm.__version__} can't make '{name}' {options or ''}: {quiet.cause(error)}",
            hint="export the network with torch.export, or to ONNX",
        ) from error


def _options(network: Any, weights: Weights) -> dict[str, int]:
    """What the weights' last and first layer say about classes and channels, where it is not the default.

    Without any tensor of a classifier the network ends before it: classes are 0.
    """
    config, expected, options = network.pretrained_cfg, network.state_dict(), {}
    if last := _first_of(config.get("classifier")):
        given = weights.get(f"{last}.weight")
        if given is not None and given.dim() and len(given) != network.num_classes:
            options["num_classes"] = len(given)
        elif not any(key.startswith(f"{last}.") for key in weights):
            options["num_classes"] = 0
    first = f"{_first_of(config.get('first_conv'))}.weight"
    if first in weights and first in expected:
        options |= _channels(config["input_size"][0], expected[first], weights[first])
    return options


def _first_of(layers: str | Iterable[str] | None) -> str:
    """Layers in the words of timm, which names one or several."""
    return layers if isinstance(layers, str) else next(iter(layers or ()), "")


def _channels(default: int, expected: torch.Tensor, given: torch.Tensor) -> dict[str, int]:
    """A first layer may see each channel more than once: as the four quarters of an image."""
    if given.dim() != expected.dim() or given.shape[1] == expected.shape[1]:
        return {}
    channels, rest = divmod(given.shape[1] * default, expected.shape[1])
    return {} if rest else {"in_chans": channels}


def _require_same(name: str, version: str, expected: Weights, given: Weights) -> None:
    """Raises BadModel, with names, where tensors are missing, left over, or of another shape or kind."""
    missing = [key for key in expected if key not in given and not key.endswith(_COUNTER)]
    unexpected = [key for key in given if key not in expected]
    shapes = [_unlike(key, expected[key], given[key]) for key in given if key in expected]
    groups = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape or type", [shape for shape in shapes if shape]),
    )
    found = "; ".join(f"{len(keys):,} {what}: {_list(keys)}" for what, keys in groups if keys)
    if found:
        raise BadModel(
            f"the weights are not those of '{name}' in timm {version}: {found}",
            layer=(missing or unexpected or [""])[0],
            hint=_way_out(name, expected, given),
        )


def _unlike(key: str, expected: torch.Tensor, given: torch.Tensor) -> str:
    if given.shape != expected.shape:
        return f"{key[:128]} {list(given.shape)}, not {list(expected.shape)}"
    if given.is_floating_point() != expected.is_floating_point():
        return f"{key[:128]} {given.dtype}, not {expected.dtype}"
    return ""


def _list(keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
    return ", ".join(key[:160] for key in keys[:_NAMED]) + more


def _way_out(name: str, expected: Weights, given: Weights) -> str:
    """What people do: they save a wrapper, whose names have one part more."""
    prefix, dot, _ = next(iter(given)).partition(".")
    prefix += dot
    inside = [key.removeprefix(prefix) for key in given if key.startswith(prefix)]
    if len(inside) == len(given) and any(key in expected for key in inside):
        return f"all names begin with '{prefix[:64]}': save the state_dict of the network inside"
    return (
        f"save network.state_dict() of timm.create_model('{name}', num_classes=...), all of it and "
        "unchanged, and name the architecture that it was made with"
    )


def _notes(
    config: Mapping[str, Any], options: Mapping[str, int], weights: Weights
) -> tuple[str, ...]:
    """What a reader should know of the network."""
    notes = [f"timm trains it on images with mean {config['mean']} and std {config['std']}"]
    if options.get("num_classes") == 0:
        notes.append("the weights have no classifier: the network answers its features")
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in weights.values()):
        notes.append("weights in half precision were widened to float32")
    return tuple(notes)
