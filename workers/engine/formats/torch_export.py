"""PyTorch in: a .pt2 file (torch.export.save) becomes ONNX, once.

    .pt2 -> typed fields and tensors (pt2/) -> ExportedProgram -> torch.onnx.export -> ONNX, held to its own limits

BatchNormalization is kept, for fine-tuning needs it; tied weights stay one; parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch._export.serde import serialize
from torch.export import ExportedProgram

from workers.engine.errors import BadModel, EngineError, Unsupported
from workers.engine.formats import onnx, quiet
from workers.engine.formats.pt2 import archive, fields, weights
from workers.engine.graph import Graph

BATCH = "batch"
"""What the first axis is called where it is free; torch.export forgets the name that it was given."""

STATIC = (
    "the batch size is fixed: torch.export.export was given no dynamic_shapes; with "
    "dynamic_shapes=({0: torch.export.Dim.AUTO},) jobs may choose their own"
)

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_SHAPING = frozenset({"Cast", "CastLike", "Expand", "Reshape"})

Tell = Callable[[float, str], None]


def convert(path: Path, work: Path, tell: Tell = lambda fraction, message: None) -> Graph:
    """The graph of a .pt2 file, in the form that every pass sees.

    Args:
        path: The file.
        work: Directory for scratch.
        tell: Hears how far it is.

    Raises:
        BadModel: the file is damaged, breaks a limit, or torch can't read it.
        Unsupported: it holds what is no plain tensor, or operators that have no ONNX form; the message names them.
    """
    tell(0.0, "reading the exported program")
    return graph_of(_program(path), work, tell)


def graph_of(program: ExportedProgram, work: Path, tell: Tell) -> Graph:
    """The graph of a program that torch made of what was checked.

    Raises:
        BadModel: what it becomes breaks a limit.
        Unsupported: it has operators without an ONNX form; the message names them.
    """
    tell(0.2, "converting the program to ONNX")
    model = _model(program)
    tell(0.8, "checking the converted model")
    _tie(model.graph)
    _drop_zero_biases(model.graph)
    common.RemoveUnusedNodesPass()(model)
    _name_batch(model.graph)
    scratch = work / "converted.onnx"
    ir.save(model, scratch)
    return onnx.load(scratch)


def notes(graph: Graph) -> tuple[str, ...]:
    """What a reader should know of a converted model."""
    shapes = [value.shape for value in graph.inputs if value.shape is not None and len(value.shape)]
    fixed = bool(shapes) and all(isinstance(shape[0], int) for shape in shapes)
    return (STATIC,) if fixed else ()


def _program(path: Path) -> ExportedProgram:
    """The program as torch understands it, made of what was checked, not of the file."""
    opened = archive.open(path)
    described = fields.program(opened.read_json(archive.PROGRAM))
    tensors, constants = (
        weights.read(opened, name) for name in (archive.WEIGHTS, archive.CONSTANTS)
    )
    try:
        with quiet.quiet():
            return serialize.ExportedProgramDeserializer().deserialize(
                described, tensors, constants
            )
    except Exception as error:
        raise BadModel(
            f"torch {torch.__version__} can't read the program: {quiet.cause(error)}",
            hint="does torch.export.load read it? Export and save it again",
        ) from error


def _model(program: ExportedProgram) -> ir.Model:
    try:
        with quiet.quiet():
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except EngineError:
        raise
    except Exception as error:
        raise Unsupported(
            f"torch {torch.__version__} can't convert the program to ONNX: {quiet.cause(error)}",
            hint="export the model to ONNX yourself, or replace what the message names",
        ) from error
    assert exported is not None
    model: ir.Model = exported.model
    common.ClearMetadataAndDocStringPass()(model)
    return model


def _tie(graph: ir.Graph) -> None:
    """Makes one initializer of those that are one tensor in torch; in place."""
    firsts: dict[object, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        identity = _identity(value)
        first = firsts.setdefault(identity, value) if identity is not None else value
        if first is not value and not value.is_graph_output():
            value.replace_all_uses_with(first)
            del graph.initializers[name]


def _identity(value: ir.Value) -> object:
    raw = getattr(value.const_value, "raw", None)
    if not isinstance(raw, torch.Tensor) or raw.numel() == 0:
        return None
    return raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride()


def _drop_zero_biases(graph: ir.Graph) -> None:
    """Leaves out the zeros that the exporter computes for a convolution without bias; in place.

    Conv(x, w, Expand(CastLike(0, x), Shape(w))) -> Conv(x, w)
    """
    for node in graph:
        if node.op_type in _CONVOLUTIONS and len(node.inputs) > 2 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)


def _is_zero(value: ir.Value | None) -> bool:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _SHAPING:
            break
        value = node.inputs[0]
    known = None if value is None else ir.convenience.get_const_tensor(value)
    return known is not None and not known.numpy().any()


def _name_batch(graph: ir.Graph) -> None:
    """Calls the free first axis of the first input `batch` wherever it occurs in inputs and outputs; in place."""
    shapes = [value.shape for value in (*graph.inputs, *graph.outputs) if value.shape is not None]
    first = shapes[0] if shapes else None
    if not first or isinstance(first[0], int) or first[0].value is None:
        return
    named = first[0].value
    for shape in shapes:
        for axis, dim in enumerate(shape):
            if not isinstance(dim, int) and dim.value == named:
                shape[axis] = ir.SymbolicDim(BATCH)
