"""What is known of an operator, and the table of all of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import onnx_ir as ir
import torch

Operand: TypeAlias = torch.Tensor | None
Result: TypeAlias = Any
"""A tensor, a sequence of tensors (a list) or a tuple with one of these for each output."""


@dataclass(frozen=True)
class Call:
    """What an operator may ask about the call it is in."""

    device: torch.device
    """Where large results of host operands are made; 'meta' while shapes are inferred."""
    training: bool = False
    outputs: int = 1
    """How many outputs the node declares."""
    subgraph: Callable[[Any, Sequence[Any]], list[Any]] = field(default=lambda graph, feeds: [])
    """Runs a graph attribute with positional inputs and answers its outputs."""
    types: Mapping[int, ir.DataType] = field(default_factory=dict)
    """Element types in the file, where known, of the operands that the operator is `typed` by."""


@dataclass(frozen=True)
class Operator:
    """An ONNX operator: how it computes, what it costs and which operands are what."""

    name: str
    compute: Callable[..., Result]
    takes_call: bool = False
    """Whether `compute` wants the Call before its operands."""
    host: frozenset[int] = frozenset()
    """Operands read as host numbers: shapes, axes, bounds."""
    weights: frozenset[int] = frozenset()
    """Operands that training changes where they are float initializers."""
    statistics: frozenset[int] = frozenset()
    """Operands that are running statistics: the operator updates them in place in training."""
    moves_data: bool = False
    """Whether the result is the first operand's elements in another place, shape or type."""
    typed: frozenset[int] = frozenset()
    """Operands whose element type in the file decides the result; torch has none of 4 bits."""
    unread: frozenset[int] = frozenset()
    """Operands that are there for their element type alone."""
    macs: Callable[[Sequence[Operand], Sequence[torch.Tensor]], int] | None = None
    """Multiply-accumulates from operands and results; None where it has none."""
    attributes: frozenset[str] = frozenset()
    """Names of the attributes it understands."""
    required: frozenset[str] = frozenset()
    """Those of them without a default."""
    operands: range = range(1)
    """How many operands it takes."""


Compute = TypeVar("Compute", bound=Callable[..., Result])

TABLE: dict[str, Operator] = {}
"""Operators by name; those of com.microsoft as 'com.microsoft::Name'."""


def operator(
    *,
    domain: str = "",
    name: str = "",
    takes_call: bool = False,
    host: Sequence[int] = (),
    weights: Sequence[int] = (),
    statistics: Sequence[int] = (),
    moves_data: bool = False,
    typed: Sequence[int] = (),
    unread: Sequence[int] = (),
    macs: Callable[[Sequence[Operand], Sequence[torch.Tensor]], int] | None = None,
) -> Callable[[Compute], Compute]:
    """Enter a function into the table: operands are its positional, attributes its keyword-only arguments."""

    def enter(compute: Compute) -> Compute:
        known = key(domain, name or compute.__name__)
        TABLE[known] = Operator(
            name=known,
            compute=compute,
            takes_call=takes_call,
            host=frozenset(host),
            weights=frozenset(weights),
            statistics=frozenset(statistics),
            moves_data=moves_data,
            typed=frozenset(typed),
            unread=frozenset(unread),
            macs=macs,
            attributes=_keywords(compute),
            required=_required(compute),
            operands=_operands(compute, 1 if takes_call else 0),
        )
        return compute

    return enter


def key(domain: str, op_type: str) -> str:
    """The operator's name in the table."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def _keywords(compute: Callable[..., Result]) -> frozenset[str]:
    parameters = inspect.signature(compute).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _required(compute: Callable[..., Result]) -> frozenset[str]:
    parameters = inspect.signature(compute).parameters
    return frozenset(
        a for a in _keywords(compute) if parameters[a].default is inspect.Parameter.empty
    )


def _operands(compute: Callable[..., Result], others: int) -> range:
    parameters = inspect.signature(compute).parameters.values()
    fixed = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    least = sum(p.default is inspect.Parameter.empty for p in fixed)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return range(least - others, sys.maxsize)
    return range(least - others, len(fixed) - others + 1)
