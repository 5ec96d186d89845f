"""Fourier transforms and the windows before them."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from workers.engine.graph import tensors
from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


def _cosines(
    size: Tensor, coefficients: tuple[float, ...], periodic: int, output_datatype: int
) -> Tensor:
    """The sum of cosines of growing frequency over one period, or over one that ends symmetrically."""
    count = int(size)
    period = count if periodic else count - 1
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / period
    terms = (c * torch.cos(k * angle) for k, c in enumerate(coefficients))
    return sum(terms, torch.zeros(count, dtype=torch.float64)).to(tensors.dtype_of(output_datatype))


@operator(host=(0,))
def HannWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosines(size, (0.5, -0.5), periodic, output_datatype)


@operator(host=(0,))
def HammingWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosines(size, (25 / 46, -21 / 46), periodic, output_datatype)


@operator(host=(0,))
def BlackmanWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosines(size, (0.42, -0.5, 0.08), periodic, output_datatype)


@operator(host=(1, 2))
def DFT(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """x: [..., 1] real or [..., 2] complex, transformed along one axis before the last."""
    along = (-2 if axis is None else int(axis)) % x.dim()
    length = None if dft_length is None else int(dft_length)
    if inverse and onesided:
        half = torch.view_as_complex(x.contiguous())
        real: Tensor = torch.fft.irfft(half, length, along)
        return real.unsqueeze(-1)
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(values, length, along))
    if inverse:
        return torch.view_as_real(torch.fft.ifft(values, length, along))
    return torch.view_as_real(torch.fft.fft(values, length, along))


@operator(host=(1, 3))
def STFT(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """signal: [N, T, 1] or [N, T, 2]; answers [N, frames, frequencies, 2]."""
    if frame_length is not None:
        length = int(frame_length)
    else:
        assert window is not None
        length = window.shape[0]
    frames = signal.unfold(1, length, int(frame_step)).transpose(-1, -2)
    if window is not None:
        short = length - window.shape[0]
        frames = frames * functional.pad(window, [short // 2, short - short // 2]).unsqueeze(-1)
    transformed: Tensor = DFT(frames, axis=torch.tensor(2), onesided=onesided)
    return transformed


@operator(host=(0, 1, 2, 3, 4))
def MelWeightMatrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """[dft_length // 2 + 1, bins]: triangles equally wide on the mel scale."""
    bins, spectrum = int(num_mel_bins), int(dft_length) // 2 + 1
    low, high = (
        2595 * math.log10(1 + float(f) / 700) for f in (lower_edge_hertz, upper_edge_hertz)
    )
    mels = torch.arange(bins + 2, dtype=torch.float64) * ((high - low) / (bins + 2)) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = torch.floor((int(dft_length) + 1) * hertz / int(sample_rate)).unsqueeze(0)
    place = torch.arange(spectrum, dtype=torch.float64).unsqueeze(1)
    left, centre, right = edges[:, :-2], edges[:, 1:-1], edges[:, 2:]
    rising = torch.where(
        centre == left, (place == centre).double(), (place - left) / (centre - left)
    )
    falling = (right - place) / (right - centre)
    triangle = torch.where(place <= centre, rising, falling)
    inside = (place >= left) & (place < right) | (place == centre)
    return torch.where(inside, triangle, 0.0).to(tensors.dtype_of(output_datatype))
