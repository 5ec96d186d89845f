"""How a model's input holds an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelpress.spec.inspection import TensorInfo
from modelpress.spec.job import Images
from workers.engine.errors import BadData

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Layout:
    """Axes, size and element type of an image input; a null size is open."""

    order: Literal["NCHW", "NHWC", "NHW"]
    channels: int
    height: int | None
    width: int | None
    dtype: np.dtype[np.generic]

    @property
    def mode(self) -> str:
        """The same as PIL names it."""
        return MODES[self.channels]

    def arrange(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Brings pixels [N, H, W, C] into this order, contiguous."""
        if self.order == "NCHW":
            return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return pixels if self.order == "NHWC" else pixels[..., 0]

    def rule(self, images: Images) -> str:
        """In words, how images become arrays."""
        size = f"{self.width or 'own'}x{self.height or 'own'}"
        steps = f"{self.mode}, resized to {size} (bilinear, aspect not kept)"
        if self.dtype.kind == "f":
            steps += f", divided by 255, minus {list(images.mean)}, over {list(images.std)}"
        else:
            steps += ", pixels 0 to 255 as they are, for the input is uint8"
        return f"{steps}, {self.order} {self.dtype}"


def of(inputs: Sequence[TensorInfo]) -> Layout:
    """Reads the layout off a model's only input: channels are the axis of size 1, 3 or 4.

    Raises:
        BadData: the model does not take one batch of images.
    """
    if len(inputs) != 1:
        raise _refused(f"it has {len(inputs)} inputs: {[info.name for info in inputs][:16]}")
    info = inputs[0]
    if info.dtype not in ("float16", "float32", "float64", "uint8"):
        raise _refused(f"its input {info.name!r} is {info.dtype}")
    dtype, shape = np.dtype(info.dtype), info.shape
    if len(shape) == 3:
        return Layout("NHW", 1, _known(shape[1]), _known(shape[2]), dtype)
    if len(shape) == 4 and shape[1] in MODES:
        return Layout("NCHW", _channels(shape[1]), _known(shape[2]), _known(shape[3]), dtype)
    if len(shape) == 4 and shape[3] in MODES:
        return Layout("NHWC", _channels(shape[3]), _known(shape[1]), _known(shape[2]), dtype)
    raise _refused(f"its input {info.name!r} has shape {list(shape)}")


def _known(size: int | str | None) -> int | None:
    return size if isinstance(size, int) else None


def _channels(size: int | str | None) -> int:
    assert isinstance(size, int)
    return size


def _refused(reason: str) -> BadData:
    return BadData(
        f"the dataset is a zip of images, but the model takes none: {reason}",
        hint="images feed one input [N, C, H, W], [N, H, W, C] or [N, H, W] with 1, 3 or 4 channels; "
        "save other data as .npz",
    )
