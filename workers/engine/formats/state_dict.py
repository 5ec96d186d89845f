"""PyTorch in, as weights and a name: a state_dict in .safetensors and its timm architecture become ONNX, once.

.safetensors -> checked tensors -> timm's network with them -> torch.export -> ONNX -> compared with torch's answers
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from workers.engine.errors import BadModel, ExportMismatch, Unsupported
from workers.engine.formats import architectures, quiet, safetensors, torch_export
from workers.engine.formats.torch_export import Tell
from workers.engine.graph import Graph, execute

TOLERANCE = 1e-3
"""Largest difference to torch's answers, relative to the largest of them."""

_EXAMPLES, _TRIED = 2, 3
"""Images to export with, and to compare on: another number, so that a batch that is not free is seen."""


def convert(
    path: Path, architecture: str, work: Path, tell: Tell = lambda fraction, message: None
) -> tuple[Graph, tuple[str, ...]]:
    """The graph of a state_dict, in the form that every pass sees, and what a reader should know of it.

    Args:
        path: The .safetensors file.
        architecture: What timm calls the network.
        work: Directory for scratch.
        tell: Hears how far it is.

    Raises:
        BadModel: the file is damaged, timm has no such architecture, or the weights are those of another.
        Unsupported: timm is not installed, or the network has no ONNX form.
        ExportMismatch: the ONNX graph answers something else than torch.
    """
    tell(0.0, "reading the weights")
    weights = safetensors.read(path)
    tell(0.05, f"building {architecture}")
    built = architectures.build(architecture, weights)
    images = _images(built, _TRIED)
    wanted = _answers(built.network, images)
    tell(0.1, f"exporting {architecture}")
    graph = torch_export.graph_of(_program(built), work, tell)
    tell(0.9, "comparing with torch's answers")
    _compare(graph, images, wanted)
    return graph, (*built.notes, *torch_export.notes(graph))


def _program(built: architectures.Built) -> ExportedProgram:
    try:
        with quiet.quiet():
            return torch.export.export(
                built.network,
                (_images(built, _EXAMPLES),),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:
        raise Unsupported(
            f"torch {torch.__version__} can't export the network with a free batch: {quiet.cause(error)}",
            hint="export it to ONNX yourself",
        ) from error


def _images(built: architectures.Built, count: int) -> torch.Tensor:
    """Noise, [count, channels, height, width]."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *built.input_shape, generator=generator)


def _answers(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What torch answers; raises BadModel where that is no number."""
    with torch.no_grad():
        found = network(images)
    answers = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    if not all(bool(torch.isfinite(each).all()) for each in answers):
        raise BadModel("the network answers NaN or infinity: its weights are damaged")
    return answers


def _compare(graph: Graph, images: torch.Tensor, wanted: tuple[torch.Tensor, ...]) -> None:
    """Raises ExportMismatch where the graph answers something else than torch."""
    found = execute.run(graph, {graph.inputs[0].name or "": images.numpy()})
    for (name, ours), theirs in zip(found.items(), wanted, strict=True):
        off = float((torch.from_numpy(ours) - theirs).abs().max())
        if off > TOLERANCE * max(1.0, float(theirs.abs().max())):
            raise ExportMismatch(f"output '{name}' of the ONNX differs from torch by {off:.3g}")
