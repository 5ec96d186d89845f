"""Whether a dataset fits a model, as far as their inspections tell: what would fail in the engine is refused here.

The engine judges again, on the values themselves; what is unknown here passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from modelpress.spec.inspection import DatasetInspection, ModelInspection, TensorInfo
from modelpress.spec.job import Images
from modelpress.spec.problem import Problem

_CHANNELS = (1, 3, 4)
_IMAGE_DTYPES = ("float16", "float32", "float64", "uint8")
_FED_FROM = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}
"""Kinds of element that each kind of input may be fed from, by the first letter of numpy's name."""


def problems(
    model: ModelInspection, dataset: DatasetInspection, images: Images, *, pointer: str
) -> list[Problem]:
    """Every reason why the model can't be fed from the dataset; `pointer` leads to the dataset's id."""
    if dataset.format == "images":
        return [*_image_problems(model, images, pointer), *_label_problems(model, dataset, pointer)]
    found = _array_problems(model.inputs, dataset.arrays, pointer)
    return [*found, *_label_problems(model, dataset, pointer)]


def _array_problems(
    inputs: Sequence[TensorInfo], arrays: Sequence[TensorInfo], pointer: str
) -> list[Problem]:
    chosen = _by_name(inputs, arrays)
    found = []
    for wanted in inputs:
        seen = chosen.get(wanted.name)
        if seen is None:
            found.append(_missing(wanted, arrays, pointer))
        elif not _shape_fits(wanted, seen):
            found.append(_wrong_shape(wanted, seen, pointer))
        elif not _kind_fits(wanted.dtype, seen.dtype):
            found.append(_wrong_dtype(wanted, seen, pointer))
    return found


def _by_name(
    inputs: Sequence[TensorInfo], arrays: Sequence[TensorInfo]
) -> Mapping[str, TensorInfo]:
    """The array of each input; a lone array feeds a lone input whatever their names."""
    if len(inputs) == len(arrays) == 1:
        return {inputs[0].name: arrays[0]}
    return {array.name: array for array in arrays}


def _shape_fits(wanted: TensorInfo, seen: TensorInfo) -> bool:
    """The first dimension counts samples; a name or null stands for any size."""
    return len(wanted.shape) == len(seen.shape) and all(
        not isinstance(size, int) or not isinstance(is_, int) or size == is_
        for size, is_ in zip(wanted.shape[1:], seen.shape[1:], strict=True)
    )


def _kind_fits(wanted: str, seen: str) -> bool:
    return seen[:1] in _FED_FROM.get(wanted[:1], seen[:1])


def _image_problems(model: ModelInspection, images: Images, pointer: str) -> list[Problem]:
    channels = _image_channels(model.inputs)
    if channels is None:
        return [
            Problem(
                pointer=pointer,
                code="no_image_input",
                reason=f"the dataset is a zip of images, but the model takes none: its inputs are {_texts(model.inputs)}",
                hint="images feed one input [N, C, H, W], [N, H, W, C] or [N, H, W] with 1, 3 or 4 channels; "
                "save other data as .npz",
            )
        ]
    return [
        Problem(
            pointer=f"/data/images/{name}",
            code="wrong_channels",
            reason=f"{len(values)} values, but the model's images have {channels} channels",
            hint="give one value for all channels, or one for each",
        )
        for name, values in (("mean", images.mean), ("std", images.std))
        if len(values) not in (1, channels)
    ]


def _image_channels(inputs: Sequence[TensorInfo]) -> int | None:
    """The channels of a model's only input; None where that holds no images."""
    if len(inputs) != 1 or inputs[0].dtype not in _IMAGE_DTYPES:
        return None
    shape = inputs[0].shape
    if len(shape) == 3:
        return 1
    axes = (shape[1], shape[3]) if len(shape) == 4 else ()
    return next((size for size in axes if isinstance(size, int) and size in _CHANNELS), None)


def _label_problems(
    model: ModelInspection, dataset: DatasetInspection, pointer: str
) -> list[Problem]:
    classes, labels = _classes(model), len(dataset.histogram)
    if dataset.labels is None or classes is None or labels <= classes:
        return []
    return [
        Problem(
            pointer=pointer,
            code="labels_out_of_range",
            reason=f"the dataset's labels go up to {labels - 1}, but the model's output {model.outputs[0].name!r} "
            f"has {classes} classes, labels 0 to {classes - 1}",
            hint="number the classes from 0 in the order of the model's outputs",
        )
    ]


def _classes(model: ModelInspection) -> int | None:
    """How many classes a model tells apart; None where its output is no vector of classes."""
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        return None
    size = model.outputs[0].shape[1]
    return size if isinstance(size, int) and size > 1 else None


def _missing(wanted: TensorInfo, arrays: Sequence[TensorInfo], pointer: str) -> Problem:
    return Problem(
        pointer=pointer,
        code="missing_array",
        reason=f"the dataset has no array for the model's input {_text(wanted)}; its arrays are {_texts(arrays)}",
        hint=f"name each array as the model's input: np.savez('data.npz', **{{{wanted.name[:80]!r}: x}}, labels=y)",
    )


def _wrong_shape(wanted: TensorInfo, seen: TensorInfo, pointer: str) -> Problem:
    return Problem(
        pointer=pointer,
        code="wrong_shape",
        reason=f"the dataset's array {_text(seen)} does not fit the model's input {_text(wanted)}",
        hint=_shape_hint(wanted.shape[1:], seen.shape[1:]),
    )


def _shape_hint(wanted: Sequence[int | str | None], seen: Sequence[int | str | None]) -> str:
    known, is_ = ([s for s in shape if isinstance(s, int)] for shape in (wanted, seen))
    if len(known) == len(wanted) and len(is_) == len(seen):
        if len(is_) == 3 and [is_[2], *is_[:2]] == known:
            return "the channels come last; use x.transpose(0, 3, 1, 2)"
        if prod(is_) == prod(known):
            return f"use x.reshape({', '.join(map(str, [-1, *known]))})"
    return "save the array in the shape that the model was trained on, samples first"


def _wrong_dtype(wanted: TensorInfo, seen: TensorInfo, pointer: str) -> Problem:
    return Problem(
        pointer=pointer,
        code="wrong_dtype",
        reason=f"the dataset's array {_text(seen)} can't be cast to the model's input {_text(wanted)} without loss",
        hint=f"use .astype({wanted.dtype!r}) if the values are whole and in range",
    )


def _texts(tensors: Sequence[TensorInfo]) -> str:
    shown = ", ".join(_text(tensor) for tensor in tensors[:8])
    return f"{shown}, ..." if len(tensors) > 8 else shown


def _text(tensor: TensorInfo) -> str:
    sizes = ", ".join("any" if size is None else str(size)[:32] for size in tensor.shape)
    return f"{tensor.name[:80]!r} {tensor.dtype} [{sizes}]"
