"""Products of signs: XNOR and popcount in place of multiply and add (Rastegari et al. 2016, arXiv 1603.05279, section 3.2).

Exactly what float arithmetic gives, as sums of signs are whole numbers. Signs are packed 64 to a word; sign(0) is 1. Convolutions are
padded with 1, never with 0, which is no sign.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.engine.errors import Unsupported

LIBRARY = Path(__file__).with_name("libxnor.so")
WAYS = ("plain", "popcnt", "avx2")
"""How words are counted: by arithmetic, by the instruction for it, by table lookups of 32 bytes at once."""

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int32]
_WORD = 64


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("height", "width", "words")),
        *((name, ctypes.c_size_t) for name in ("kernel_height", "kernel_width")),
        *((name, ctypes.c_size_t) for name in ("stride_height", "stride_width")),
        *((name, ctypes.c_size_t) for name in ("pad_top", "pad_left")),
        *((name, ctypes.c_size_t) for name in ("out_height", "out_width", "filters")),
        ("channels", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Packed:
    """Signs of [..., n], packed along the last axis."""

    words: Words
    """[..., ceil(n / 64)]."""
    n: int


def is_available() -> bool:
    """Whether the kernels were built when the package was installed."""
    return LIBRARY.exists()


def best() -> str:
    """The way that this CPU counts fastest."""
    return WAYS[_library().xnor_best()]


def pack(x: npt.ArrayLike, way: str = "") -> Packed:
    """The signs of x [..., n]."""
    floats = np.ascontiguousarray(x, np.float32)
    *lead, n = floats.shape
    words = np.empty((*lead, -(-n // _WORD)), np.uint64)
    rows = floats.size // max(n, 1)
    _library().xnor_pack(_way(way), _at(floats), rows, n, words.shape[-1], _at(words))
    return Packed(words, n)


def matmul(a: Packed, b: Packed, way: str = "") -> Integers:
    """Multiplies a [m, n] by the transpose of b [k, n]: [m, k]."""
    if a.n != b.n or a.words.ndim != 2 or b.words.ndim != 2:
        raise ValueError(f"rows of {a.n} and {b.n} signs: both operands are [rows, n] of one n")
    out = np.empty((len(a.words), len(b.words)), np.int32)
    words = a.words.shape[1]
    _library().xnor_matmul(
        _way(way), _at(a.words), _at(b.words), len(a.words), len(b.words), words, a.n, _at(out)
    )
    return out


def convolve(
    images: Packed,
    filters: Packed,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    way: str = "",
) -> Integers:
    """Images [N, H, W, C] and filters [K, h, w, C], both packed along C: [N, H', W', K].

    `pads` are top, left, bottom and right, as ONNX has them, of ones.
    """
    if images.n != filters.n or images.words.ndim != 4 or filters.words.ndim != 4:
        raise ValueError(
            f"images of {images.n} channels, filters of {filters.n}: both have 4 axes and as many channels"
        )
    count, height, width, words = images.words.shape
    number, kernel_height, kernel_width, _ = filters.words.shape
    high = (height + pads[0] + pads[2] - kernel_height) // strides[0] + 1
    wide = (width + pads[1] + pads[3] - kernel_width) // strides[1] + 1
    if high < 1 or wide < 1:
        raise ValueError(
            f"filters of {kernel_height}x{kernel_width} do not fit into {height}x{width} with pads {list(pads)}"
        )
    out = np.empty((count, high, wide, number), np.int32)
    asked = _Convolution(
        height, width, words, kernel_height, kernel_width, *strides, *pads[:2], high, wide, number,
        images.n,
    )  # fmt: skip
    ones, scratch = (
        pack(np.ones(images.n)).words,
        np.empty(kernel_height * kernel_width * words, np.uint64),
    )
    _library().xnor_convolve(
        _way(way),
        ctypes.byref(asked),
        _at(images.words),
        count,
        _at(filters.words),
        _at(ones),
        _at(scratch),
        _at(out),
    )
    return out


@dataclass(frozen=True)
class Thresholds:
    """What sign(f(s)) is of a sum s of n signs, for each channel: (s >= bound) xor flipped."""

    bounds: Integers
    flipped: npt.NDArray[np.bool_]

    def signs(self, sums: Integers) -> npt.NDArray[np.float32]:
        """1 or -1 for each sum [..., channels]."""
        above = (sums >= self.bounds) != self.flipped
        return np.where(above, np.float32(1), np.float32(-1))


def thresholds(
    f: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]], n: int
) -> Thresholds:
    """Folds what follows a product of n signs, such as normalization and a sign, into whole numbers.

    Exact for every f that is monotone in each channel, as it is asked for every sum there can be.

    Args:
        f: Of sums [sums, 1] as floats: values [sums, channels], whose sign is wanted.
        n: How many signs were multiplied and added.
    """
    sums = np.arange(-n, n + 1, 2, dtype=np.int64)
    above = np.asarray(f(sums.astype(np.float32)[:, None])) >= 0
    flipped = above[0] & ~above[-1]
    rising = above != flipped
    first = np.where(rising.any(axis=0), rising.argmax(axis=0), len(sums))
    bounds = np.append(sums, n + 1)[first].astype(np.int32)
    return Thresholds(bounds, flipped)


@cache
def _library() -> ctypes.CDLL:
    """Raises Unsupported where the kernels were not built."""
    if not is_available():
        raise Unsupported(
            "the kernels for signs were not built, as there was no C compiler",
            hint="install a C compiler and run python workers/engine/kernels/build.py, or install the package again",
        )
    library = ctypes.CDLL(str(LIBRARY))
    size, pointer, way, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int32
    library.xnor_pack.argtypes = (way, pointer, size, size, size, pointer)
    library.xnor_matmul.argtypes = (way, pointer, pointer, size, size, size, number, pointer)
    library.xnor_convolve.argtypes = (way, pointer, pointer, size, *(pointer,) * 4)
    return library


def _way(name: str) -> int:
    """The number of a way; of the best one where none is named.

    Raises:
        Unsupported: this CPU knows none of that name.
    """
    number = WAYS.index(name) if name else _library().xnor_best()
    if number > _library().xnor_best():
        raise Unsupported(
            f"this CPU can't count by {name}; it can by {', '.join(WAYS[: _library().xnor_best() + 1])}"
        )
    return int(number)


def _at(array: np.ndarray) -> int:
    """The address of contiguous elements."""
    assert array.flags.c_contiguous, "made by pack or here"
    return array.ctypes.data
