"""Which operators a program may call: those that the exporter translates, or takes apart into such."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch._ops import OpOverload
from torch.onnx._internal.exporter import _registration

from workers.engine.errors import Unsupported

_NAMED = 20

_ARITHMETIC = (
    "add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pos", "pow",
    "eq", "ne", "le", "ge", "lt", "gt", "and_", "or_", "getitem",
)  # fmt: skip
_SYMBOLIC = ("int", "float", "max", "min", "not", "ite", "sqrt")
_SIZES = frozenset(
    {f"_operator.{name}" for name in _ARITHMETIC}
    | {f"torch.sym_{name}" for name in _SYMBOLIC}
    | {"math.trunc", "math.ceil", "math.floor"}
)
_BLOCKS = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond")
)
_CHECKS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_scalar.default",
        "_assert_tensor_metadata.default",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
        "sym_size.int",
    )
)
_WITH_TEXT = frozenset(
    {
        "_convolution_mode", "argsort", "bucketize", "conv1d", "conv2d", "conv3d", "div", "div_", "divide", "einsum",
        "gelu", "gelu_", "index_reduce", "linalg_matrix_norm", "linalg_norm", "meshgrid", "pad", "scatter", "scatter_",
        "scatter_reduce", "searchsorted",
    }
)  # fmt: skip
"""Operators that take a string, and only to choose a variant: of the others one opens the file that it names."""


def check(targets: Iterable[str]) -> None:
    """Holds every operator of a program to the list.

    Raises:
        Unsupported: some are not on it; all are named.
    """
    unknown = sorted({target for target in targets if not _is_known(target)})
    if unknown:
        named = [
            f"{target.removeprefix('torch.ops.')[:100]!a}"[1:-1] for target in unknown[:_NAMED]
        ]
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise Unsupported(
            f"operators that have no ONNX form: {', '.join(named)}{more}",
            layer=named[0],
            hint="replace them in the model, or export it to ONNX yourself with a translation of your own",
        )


@functools.cache
def _is_known(target: str) -> bool:
    return target in _SIZES | _BLOCKS | _CHECKS or _is_translatable(target)


def _is_translatable(target: str) -> bool:
    """Whether an operator of aten, or the one it is the in-place form of, can become ONNX."""
    overload = _overload(target)
    if overload is None or not _is_harmless(overload):
        return False
    name, variant = overload._schema.name.removeprefix("aten::"), overload._overloadname
    forms = [overload]
    if name.endswith("_") and not name.endswith("__"):
        forms += [twin for twin in [_overload(f"torch.ops.aten.{name[:-1]}.{variant}")] if twin]
    return any(map(_becomes_onnx, forms))


def _becomes_onnx(overload: OpOverload) -> bool:
    """By a translation of its own, or taken apart: by torch's tables, or because it is composed of others."""
    variant = overload._schema.overload_name
    name = f"{overload._schema.name}.{variant}" if variant else overload._schema.name
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return bool(composed) or name in _translated() or overload in _taken_apart()


def _overload(target: str) -> OpOverload | None:
    prefix, _, rest = target.partition("torch.ops.aten.")
    parts = rest.split(".")
    if prefix or len(parts) != 2 or not all(part.isidentifier() for part in parts):
        return None
    packet = getattr(torch.ops.aten, parts[0], None)
    found = getattr(packet, parts[1], None)
    return found if isinstance(found, OpOverload) else None


def _is_harmless(overload: OpOverload) -> bool:
    """It answers tensors or sizes, writes to no `out`, and takes no string that could name a file."""
    schema = overload._schema
    takes_text = any("str" in str(argument.type) for argument in schema.arguments)
    writes_out = any(argument.is_out for argument in schema.arguments)
    name = schema.name.removeprefix("aten::")
    return not writes_out and (not takes_text or name in _WITH_TEXT)


@functools.cache
def _translated() -> frozenset[object]:
    return frozenset(_registration.ONNXRegistry.from_torchlib().functions)


@functools.cache
def _taken_apart() -> frozenset[object]:
    return frozenset({*torch.export.default_decompositions(), *torch._decomp.decomposition_table})
