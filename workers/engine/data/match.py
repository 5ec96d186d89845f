"""Brings the arrays of a dataset together with the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelpress.spec.inspection import TensorInfo
from workers.engine.data import values
from workers.engine.data.dataset import ArrayColumn
from workers.engine.errors import BadData, Unsupported

_CASTS = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}
"""Kinds of element that each kind of input may be fed from: no silent rounding, no silent rescale."""


def columns(
    arrays: Mapping[str, NDArray[np.generic]], inputs: Sequence[TensorInfo]
) -> tuple[list[tuple[str, ArrayColumn]], list[str]]:
    """A column for each input, in order, and notes on casts and on arrays left aside.

    A lone array feeds a lone input whatever their names.

    Raises:
        BadData: an input without array, or an array whose samples, shape, type or values don't fit.
        Unsupported: an input that no array can feed.
    """
    chosen = _by_name(arrays, inputs)
    _check_samples(chosen)
    _check_shapes(chosen, inputs)
    matched, notes = [], []
    for info in inputs:
        array, dtype = chosen[info.name], _dtype(info)
        _check_kind(array, dtype, info.name)
        values.check_cast(array, dtype, info.name)
        if array.dtype != dtype:
            notes.append(f"array {info.name!r} is cast from {array.dtype} to {dtype}, values kept")
        matched.append((info.name, ArrayColumn(array, dtype)))
    return matched, notes + _left_aside(arrays, chosen)


def _by_name(
    arrays: Mapping[str, NDArray[np.generic]], inputs: Sequence[TensorInfo]
) -> dict[str, NDArray[np.generic]]:
    wanted = [info.name for info in inputs]
    if len(wanted) == len(arrays) == 1:
        return {wanted[0]: next(iter(arrays.values()))}
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise BadData(
            f"the dataset has no array for the model's inputs {missing[:16]}; its arrays are {sorted(arrays)[:16]}",
            layer=missing[0],
            hint=_naming_hint(arrays, wanted),
        )
    return {name: arrays[name] for name in wanted}


def _naming_hint(arrays: Mapping[str, NDArray[np.generic]], wanted: Sequence[str]) -> str:
    hint = "name each array as the model's input: np.savez('data.npz', " + (
        f"**{{{wanted[0]!r}: x}}, labels=y)"
    )
    vectors = [name for name, a in arrays.items() if a.ndim == 1 and a.dtype.kind in "iu"]
    if len(arrays) > len(wanted) and vectors:
        hint += f"; if {vectors[0]!r} holds the class numbers, name it 'labels'"
    return hint


def _left_aside(
    arrays: Mapping[str, NDArray[np.generic]], chosen: Mapping[str, NDArray[np.generic]]
) -> list[str]:
    used = {id(array) for array in chosen.values()}
    aside = sorted(name for name, array in arrays.items() if id(array) not in used)
    return [f"arrays that feed no input are left aside: {', '.join(aside)}"] if aside else []


def _check_samples(arrays: Mapping[str, NDArray[np.generic]]) -> None:
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BadData(
            f"the arrays differ in their number of samples: {counts}",
            hint="samples are the first dimension of every array",
        )


def _check_shapes(arrays: Mapping[str, NDArray[np.generic]], inputs: Sequence[TensorInfo]) -> None:
    """Checks each shape beyond the first dimension; a symbol stands for one size throughout."""
    sizes: dict[str, int] = {}
    for info in inputs:
        shape = arrays[info.name].shape
        if not info.shape:
            raise Unsupported(
                f"the model's input {info.name!r} declares no dimensions, so that samples can't feed it",
                layer=info.name,
                hint="declare its shape with the batch first, or make it an initializer if it is one number",
            )
        wanted = [
            sizes.get(size, size) if isinstance(size, str) else size for size in info.shape[1:]
        ]
        fits = len(shape) == len(info.shape) and all(
            not isinstance(size, int) or size == seen
            for size, seen in zip(wanted, shape[1:], strict=True)
        )
        if not fits:
            raise _wrong_shape(info.name, shape, wanted)
        sizes |= {
            size: seen
            for size, seen in zip(info.shape[1:], shape[1:], strict=True)
            if isinstance(size, str)
        }


def _wrong_shape(name: str, shape: tuple[int, ...], wanted: Sequence[int | str | None]) -> BadData:
    sizes = ["samples", *("any" if size is None else size for size in wanted)]
    return BadData(
        f"array {name!r} has shape {list(shape)}, but the model's input wants [{', '.join(map(str, sizes))}]",
        layer=name,
        hint=_shape_hint(shape, wanted),
    )


def _shape_hint(shape: tuple[int, ...], wanted: Sequence[int | str | None]) -> str:
    known = [size for size in wanted if isinstance(size, int)]
    if len(known) == len(wanted):
        if len(shape) == 4 and (shape[3], *shape[1:3]) == tuple(known):
            return "the channels come last; use x.transpose(0, 3, 1, 2)"
        if len(shape) == 4 and (*shape[2:4], shape[1]) == tuple(known):
            return "the channels come first; use x.transpose(0, 2, 3, 1)"
        if np.prod(shape[1:]) == np.prod(known):
            return f"use x.reshape({', '.join(map(str, [-1, *known]))})"
    return "save the array in the shape that the model was trained on, samples first"


def _dtype(info: TensorInfo) -> np.dtype[np.generic]:
    try:
        dtype = np.dtype(info.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in _CASTS:
        raise Unsupported(
            f"the model's input {info.name!r} is {info.dtype}, which an .npz file can't hold",
            layer=info.name,
            hint="export the model with float32, integer or boolean inputs",
        )
    return dtype


def _check_kind(array: NDArray[np.generic], dtype: np.dtype[np.generic], name: str) -> None:
    if array.dtype.kind not in _CASTS[dtype.kind]:
        raise BadData(
            f"array {name!r} is {array.dtype}, but the model's input wants {dtype}",
            layer=name,
            hint=f"use .astype({dtype.name!r}) if the values are whole and in range",
        )
