"""Uniform 8-bit codes: q = clamp(round(x / scale) + zero). Pure arithmetic, no graph.

Activations: uint8, one scale, any zero point; or int8 around 0. Weights: int8, symmetric, one scale per output channel or one for all; zero stays zero,
so pruned weights stay pruned. Biases: int32 in units of (activation scale * weight scale), which integer kernels add as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

FULL_RANGE = 127
REDUCED_RANGE = 64
"""Largest magnitude of a 7-bit weight: two products 255 * 64 fit into the int16 sums of AVX2's vpmaddubsw."""

BIAS_LIMIT = 2**30
"""Largest magnitude of an int32 bias; leaves as much room again for the sum of products."""

_SMALLEST = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Activation:
    """Codes of an activation: x ~ scale * (q - zero); q has the type of `zero`."""

    scale: np.float32
    zero: np.uint8 | np.int8

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        info = np.iinfo(self.zero.dtype)
        return info.min, info.max


@dataclass(frozen=True)
class Weight:
    """Codes of a weight: w ~ scale * q. `scale` is [channels] along `axis`, or () where `axis` is None."""

    codes: npt.NDArray[np.int8]
    scale: FloatArray
    axis: int | None


def activation(low: float, high: float, *, symmetric: bool = False) -> Activation:
    """Codes for values in low..high; the range is widened to hold 0, which then has an exact code (padding, ReLU).

    `symmetric`: int8 with 0 as zero point, as far on both sides as the larger bound.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        most = max(-low, high)
        return Activation(np.float32(max(most / 127, float(_SMALLEST)) if most else 1), np.int8(0))
    scale = np.float32(max((high - low) / 255, float(_SMALLEST))) if high > low else np.float32(1)
    return Activation(scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255)))


def weight(values: FloatArray, axis: int | None, limit: int, floor: FloatArray | None) -> Weight:
    """Symmetric codes in -limit..limit.

    `floor`: smallest scale allowed for each channel, so that the layer's bias fits into its integers; None where there is no bias.
    """
    scale = np.maximum(_largest(values, axis) / np.float32(limit), _SMALLEST)
    if floor is not None:
        scale = np.maximum(scale, floor if axis is not None else floor.max())
    return coded(values, scale.astype(np.float32), axis, limit)


def coded(values: FloatArray, scale: FloatArray, axis: int | None, limit: int) -> Weight:
    """Codes in -limit..limit in units of a given scale."""
    codes = np.clip(np.rint(values / along(scale, axis, values.ndim)), -limit, limit)
    return Weight(codes.astype(np.int8), scale, axis)


def scale_floor(bias: FloatArray, input_scale: np.float32) -> FloatArray:
    """The weight scale of each channel from which on its bias fits into int32."""
    return np.asarray(np.abs(bias) / (np.float64(input_scale) * BIAS_LIMIT), dtype=np.float32)


def bias_codes(
    bias: FloatArray, input_scale: np.float32, weight_scale: FloatArray
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """The bias in units of input_scale * weight_scale, and these units as float32 [channels]."""
    units = np.broadcast_to(np.float32(input_scale) * weight_scale, bias.shape).astype(np.float32)
    units = np.maximum(units, _SMALLEST)
    codes = np.rint(bias.astype(np.float64) / units)
    return np.clip(codes, -(2**31) + 1, 2**31 - 1).astype(np.int32), units


def encode(values: FloatArray, codes: Activation) -> npt.NDArray[np.integer]:
    """Activation values as QuantizeLinear rounds them (half to even)."""
    q = np.rint(values / codes.scale) + np.float32(codes.zero)
    return np.asarray(np.clip(q, *codes.limits), dtype=codes.zero.dtype)


def decode(q: npt.NDArray[np.integer], codes: Activation) -> FloatArray:
    """What the codes stand for."""
    return (q.astype(np.float32) - np.float32(codes.zero)) * codes.scale


def decode_weight(codes: Weight) -> FloatArray:
    """What the codes stand for."""
    scale = along(codes.scale, codes.axis, codes.codes.ndim)
    return np.asarray(codes.codes.astype(np.float32) * scale, dtype=np.float32)


def along(scale: FloatArray, axis: int | None, rank: int) -> FloatArray:
    """A scale per channel of `axis`, shaped to broadcast on an array of `rank` axes."""
    if axis is None:
        return scale
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _largest(values: FloatArray, axis: int | None) -> FloatArray:
    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    return np.asarray(np.abs(values).max(axis=others, initial=0), dtype=np.float32)
