"""Control flow over subgraphs, and sequences of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import Call, Result, operator

Tensor = torch.Tensor


@operator(takes_call=True)
def If(call: Call, condition: Tensor, *, then_branch: Any, else_branch: Any) -> Result:
    """While shapes are inferred and the condition is unknown, a branch whose shapes fit speaks for both."""
    if condition.device.type != "meta":
        return tuple(call.subgraph(then_branch if bool(condition) else else_branch, []))
    try:
        return tuple(call.subgraph(then_branch, []))
    except RuntimeError:
        return tuple(call.subgraph(else_branch, []))


@operator(takes_call=True)
def Loop(
    call: Call, trips: Tensor | None, condition: Tensor | None, *state: Any, body: Any
) -> Result:
    """Outputs: the carried values, then what each trip adds, stacked."""
    carried: list[Any] = list(state)
    added: list[list[Tensor]] = [[] for _ in range(call.outputs - len(state))]
    trip, goes_on = 0, _holds(condition)
    while goes_on and (trips is None or trip < int(trips)):
        going = torch.tensor(True) if condition is None else condition
        results = call.subgraph(body, [torch.tensor(trip), going, *carried])
        condition, carried = results[0], results[1 : 1 + len(state)]
        for collected, result in zip(added, results[1 + len(state) :], strict=True):
            collected.append(result)
        trip, goes_on = trip + 1, _holds(condition)
    return (*carried, *(torch.stack(collected) for collected in added))


def _holds(condition: Tensor | None) -> bool:
    return condition is None or condition.device.type == "meta" or bool(condition)


@operator(takes_call=True)
def Scan(
    call: Call,
    *operands: Tensor,
    num_scan_inputs: int,
    body: Any,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> Result:
    states = len(operands) - num_scan_inputs
    state: list[Tensor] = list(operands[:states])
    slices = [
        _unrolled(x, axis, backwards)
        for x, axis, backwards in zip(
            operands[states:],
            scan_input_axes or [0] * num_scan_inputs,
            scan_input_directions or [0] * num_scan_inputs,
            strict=True,
        )
    ]
    outputs = call.outputs - states
    collected: list[list[Tensor]] = [[] for _ in range(outputs)]
    for step in zip(*slices, strict=True):
        results = call.subgraph(body, [*state, *step])
        state = results[:states]
        for into, result in zip(collected, results[states:], strict=True):
            into.append(result)
    axes = scan_output_axes or [0] * outputs
    directions = scan_output_directions or [0] * outputs
    rolled = zip(collected, axes, directions, strict=True)
    return (*state, *(torch.stack(parts[::-1] if d else parts, a) for parts, a, d in rolled))


def _unrolled(x: Tensor, axis: int, backwards: int) -> list[Tensor]:
    parts = list(x.unbind(axis))
    return parts[::-1] if backwards else parts


@operator()
def SequenceEmpty(*, dtype: int = 1) -> list[Tensor]:
    return []


@operator()
def SequenceConstruct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


@operator(host=(2,))
def SequenceInsert(
    sequence: list[Tensor], x: Tensor, position: Tensor | None = None
) -> list[Tensor]:
    at = len(sequence) if position is None else int(position)
    at = at + len(sequence) if at < 0 else at
    return [*sequence[:at], x, *sequence[at:]]


@operator(host=(1,))
def SequenceErase(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    at = (-1 if position is None else int(position)) % len(sequence)
    return [*sequence[:at], *sequence[at + 1 :]]


@operator(host=(1,))
def SequenceAt(sequence: list[Tensor], position: Tensor) -> Tensor:
    return sequence[int(position)]


@operator()
def SequenceLength(sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence))


@operator(host=(1,))
def SplitToSequence(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    if split is None:
        parts = list(torch.split(x, 1, axis))
        return parts if keepdims else [part.squeeze(axis) for part in parts]
    sizes: int | list[int] = int(split) if split.dim() == 0 else tensors.ints(split)
    return list(torch.split(x, sizes, axis))


@operator()
def ConcatFromSequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator(takes_call=True)
def SequenceMap(call: Call, sequence: list[Tensor], *others: Any, body: Any) -> Result:
    collected: list[list[Tensor]] = [[] for _ in range(call.outputs)]
    for at, x in enumerate(sequence):
        given = [other[at] if isinstance(other, list) else other for other in others]
        for into, result in zip(collected, call.subgraph(body, [x, *given]), strict=True):
            into.append(result)
    return tuple(collected)


@operator()
def Optional(x: Any = None, *, type: Any = None) -> Any:
    return x


@operator()
def OptionalHasElement(x: Any = None) -> Tensor:
    return torch.tensor(x is not None)


@operator()
def OptionalGetElement(x: Any) -> Any:
    return x
