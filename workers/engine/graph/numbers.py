"""Host values whose elements may be symbols, so that a free batch stays free while torch.export looks on.

A shape that the network reads (Shape, Gather, Concat, ...) is a tensor to ONNX. torch.export would take it for data, and
what is reshaped by it for data-dependent. Here it is an array of Python numbers and torch.SymInt instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils._python_dispatch import _disable_current_modes

from workers.engine.graph import program, tensors
from workers.engine.graph.ops import Call

_SLICE: Any = torch.ops.aten.slice.Tensor
_CHOOSE: Any = torch.sym_ite


class Numbers:
    """A small host value: `array` holds Python numbers or torch.SymInt, `dtype` is the tensor's it stands for."""

    def __init__(self, array: np.ndarray, dtype: torch.dtype) -> None:
        self.array, self.dtype = array, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def is_symbolic(self) -> bool:
        """Whether an element depends on a free size."""
        return any(
            isinstance(e, torch.SymInt | torch.SymFloat | torch.SymBool) for e in self.array.flat
        )

    def dim(self) -> int:
        return self.array.ndim

    def numel(self) -> int:
        return self.array.size

    def reshape(self, *shape: int) -> Numbers:
        return Numbers(self.array.reshape(*shape), self.dtype)

    def tolist(self) -> Any:
        return self.array.tolist()

    def item(self) -> Any:
        return self.array.item()

    def __getitem__(self, index: Any) -> Numbers:
        return Numbers(_array(self.array[index]), self.dtype)

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def tensor(self) -> torch.Tensor:
        """The same as a tensor; the free sizes stay free."""
        if self.is_symbolic:
            return torch.tensor(self.tolist(), dtype=self.dtype)
        with _disable_current_modes():  # so that torch.export sees a constant, not how it is made
            return torch.tensor(self.tolist(), dtype=self.dtype).reshape(self.shape)

    @staticmethod
    def of(tensor: torch.Tensor) -> Numbers:
        """The elements of a tensor with memory."""
        return Numbers(_array(tensor.tolist(), tuple(tensor.shape)), tensor.dtype)


class Machine(program.Machine):
    """A machine that computes host values as numbers, and gives tensors to all other operators."""

    def apply(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        """Run one operator: as numbers where all its operands are numbers."""
        name, given = step.operator.name, [x for x in operands if x is not None]
        if name in ("Shape", "Size") and isinstance(operands[0], torch.Tensor | Numbers):
            return _measured(name, operands[0], step.attributes)
        if given and all(isinstance(x, Numbers) for x in given):
            if not any(x.is_symbolic for x in given):
                return self._concrete(step, operands, call)
            if name in SYMBOLIC:
                return SYMBOLIC[name](*operands, **step.attributes)
        host = step.operator.host
        ready = [x if slot in host else _as_tensor(x) for slot, x in enumerate(operands)]
        if name in OF_FREE_SIZE:
            return OF_FREE_SIZE[name](*ready)
        return super().apply(step, ready, call)

    def _concrete(self, step: program.Step, operands: list[Any], call: Call) -> Any:
        """Computed at once, unseen by torch.export."""
        with _disable_current_modes():
            results = super().apply(step, [_as_tensor(x) for x in operands], call)
            return (
                tuple(map(_as_numbers, results))
                if isinstance(results, tuple)
                else _as_numbers(results)
            )


def _as_tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Numbers) else value


def _as_numbers(value: Any) -> Any:
    return Numbers.of(value) if isinstance(value, torch.Tensor) else value


def _array(elements: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array of objects; numpy would take symbols apart or for sequences."""
    if isinstance(elements, np.ndarray):
        return elements
    flat = list(_flat(elements))
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape if shape is not None else ())


def _flat(elements: Any) -> Any:
    if not isinstance(elements, list | tuple):
        yield elements
        return
    for element in elements:
        yield from _flat(element)


def _measured(name: str, x: Any, attributes: Mapping[str, Any]) -> Numbers:
    if name == "Size":
        return Numbers(_array(math.prod(x.shape), ()), torch.int64)
    sizes = list(x.shape)[attributes.get("start", 0) : attributes.get("end")]
    return Numbers(_array(sizes, (len(sizes),)), torch.int64)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Numbers]:
    def apply(*operands: Numbers, **_: Any) -> Numbers:
        arrays = np.broadcast_arrays(*(x.array for x in operands))
        made = [function(*elements) for elements in zip(*(a.flat for a in arrays), strict=True)]
        return Numbers(_array(made, arrays[0].shape), operands[-1].dtype)

    return apply


def _divide(a: Any, b: Any) -> Any:
    """Sizes are not negative, so that rounding down is rounding to zero."""
    return a / b if isinstance(a, float | torch.SymFloat) else a // b


def _cast(x: Numbers, *, to: int, **_: Any) -> Numbers:
    dtype = tensors.dtype_of(ir.DataType(to))
    if dtype.is_floating_point == x.dtype.is_floating_point:
        return Numbers(x.array, dtype)
    turn: Any = torch.sym_float if dtype.is_floating_point else torch.sym_int
    return Numbers(_array([turn(e) for e in x.array.flat], x.shape), dtype)


def _gather(x: Numbers, indices: Numbers, *, axis: int = 0) -> Numbers:
    return Numbers(_array(np.take(x.array, indices.array.astype(np.int64), axis), None), x.dtype)


def _slice(
    x: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:
    count = starts.numel()
    along = range(count) if axes is None else tensors.ints(axes)
    strides = [1] * count if steps is None else tensors.ints(steps)
    array = x.array
    for begin, end, axis, stride in zip(
        starts.tolist(), ends.tolist(), along, strides, strict=True
    ):
        index = [slice(None)] * array.ndim
        index[axis] = slice(begin, end, stride)
        array = array[tuple(index)]
    return Numbers(array, x.dtype)


def _unsqueeze(x: Numbers, axes: Numbers) -> Numbers:
    return Numbers(np.expand_dims(x.array, tuple(tensors.ints(axes))), x.dtype)


def _squeeze(x: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = None if axes is None else tuple(tensors.ints(axes))
    return Numbers(_array(np.squeeze(x.array, chosen)), x.dtype)


def _reshape(x: Numbers, shape: Numbers, *, allowzero: int = 0) -> Numbers:
    sizes = tensors.ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(*sizes)


def _concat(*xs: Numbers, axis: int) -> Numbers:
    return Numbers(np.concatenate([x.array for x in xs], axis), xs[0].dtype)


def _product(x: Numbers, axes: Numbers | None = None, *, keepdims: int = 1, **_: Any) -> Numbers:
    if axes is not None and x.dim() != 1:
        raise NotImplementedError("a product of sizes over some axes")
    return Numbers(_array(math.prod(x.array.flat), (1,) * x.dim() if keepdims else ()), x.dtype)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return (
        _CHOOSE(condition, a, b)
        if isinstance(condition, torch.SymBool)
        else (a if condition else b)
    )


SYMBOLIC: dict[str, Callable[..., Numbers]] = {
    "Add": _elementwise(lambda a, b: a + b),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(lambda a, b: a == b),
    "Gather": _gather,
    "Identity": lambda x: x,
    "Max": _elementwise(lambda a, *rest: _fold(torch.sym_max, a, rest)),
    "Min": _elementwise(lambda a, *rest: _fold(torch.sym_min, a, rest)),
    "Mod": _elementwise(lambda a, b: a % b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Neg": _elementwise(lambda a: -a),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(_where),
}
"""What is computed on sizes before they are used."""


def _fold(function: Callable[[Any, Any], Any], first: Any, rest: tuple[Any, ...]) -> Any:
    for other in rest:
        first = function(first, other)
    return first


def _slice_tensor(
    x: torch.Tensor,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> torch.Tensor:
    count = starts.numel()
    along = range(count) if axes is None else tensors.ints(axes)
    strides = [1] * count if steps is None else tensors.ints(steps)
    for begin, end, axis, stride in zip(
        tensors.ints(starts), tensors.ints(ends), along, strides, strict=True
    ):
        x = _slice_axis(x, begin, end, axis, stride)
    return x


def _slice_axis(x: torch.Tensor, begin: int, end: int, axis: int, stride: int) -> torch.Tensor:
    """Backwards, an axis of fixed size becomes a list of places."""
    if stride > 0:
        sliced: torch.Tensor = _SLICE(x, axis, begin, end, stride)
        return sliced
    places = list(range(*slice(begin, end, stride).indices(x.shape[axis])))
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64))


def _expand(x: torch.Tensor, shape: Numbers) -> torch.Tensor:
    wanted = tensors.ints(shape)
    sizes = [*[1] * (len(wanted) - x.dim()), *x.shape]
    wanted = [*[1] * (len(sizes) - len(wanted)), *wanted]
    return x.expand([size if want == 1 else want for size, want in zip(sizes, wanted, strict=True)])


OF_FREE_SIZE: dict[str, Callable[..., torch.Tensor]] = {"Expand": _expand, "Slice": _slice_tensor}
"""The same on tensors with a free axis, where the operator itself would ask for its size."""
