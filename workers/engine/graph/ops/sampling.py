"""Reading images at computed places, and choosing among boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph import tensors
from workers.engine.graph.ops import convolution
from workers.engine.graph.ops._operator import Call, operator

Tensor = torch.Tensor


@operator()
def GridSample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    if mode == "cubic" and x.dim() == 5:
        raise Unsupported("GridSample with mode 'cubic' over three spatial axes")
    return functional.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))


@operator(host=(1,))
def AffineGrid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    return functional.affine_grid(theta, tensors.ints(size), bool(align_corners))


@operator(host=(1,))
def CenterCropPad(x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    along = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    edges = [0] * 2 * x.dim()
    for axis, wanted in zip(along, tensors.ints(shape), strict=True):
        total = wanted - x.shape[axis]
        before = total // 2 if total >= 0 else -(-total // 2)
        edges[axis], edges[axis + x.dim()] = before, total - before
    return functional.pad(x, convolution.torch_pads(edges))


@operator(host=(1, 2))
def Col2Im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """As the gradient of cutting blocks: each column is added where its block was."""
    size, block = tensors.ints(image_shape), tensors.ints(block_shape)
    rank = len(size)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    edges = list(pads or [0] * 2 * rank)
    padded = [n + edges[a] + edges[a + rank] for a, n in enumerate(size)]
    channels = x.shape[1] // math.prod(block)
    place = torch.arange(math.prod(padded), device=x.device).reshape(padded)
    for axis in range(rank):
        span = (block[axis] - 1) * dilations[axis] + 1
        place = place.unfold(axis, span, strides[axis])[..., :: dilations[axis]]
    order = [*range(rank, 2 * rank), *range(rank)]
    index = place.permute(order).reshape(-1)
    columns = x.reshape(x.shape[0], channels, -1)
    image = x.new_zeros(x.shape[0], channels, math.prod(padded))
    image = image.index_add(2, index, columns).reshape(x.shape[0], channels, *padded)
    return functional.pad(image, convolution.torch_pads([-edge for edge in edges]))


@operator(host=(2,))
def MaxUnpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = x.dim() - 2
    edges, strides = pads or [0] * 2 * rank, strides or [1] * rank
    size = [
        (n - 1) * strides[a] - edges[a] - edges[a + rank] + kernel_shape[a]
        for a, n in enumerate(x.shape[2:])
    ]
    flat = x.new_zeros(math.prod((*x.shape[:2], *size)))
    image = flat.index_copy(0, indices.reshape(-1), x.reshape(-1))
    image = image.reshape(*x.shape[:2], *size)
    if output_shape is None:
        return image
    grown = [n - m for n, m in zip(tensors.ints(output_shape), image.shape, strict=True)]
    return functional.pad(image, convolution.torch_pads([0] * len(grown) + grown))


@operator()
def RoiAlign(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """He et al.: Mask R-CNN (arXiv 1703.06870). Bins are sampled by bilinear interpolation."""
    if x.device.type == "meta":
        return x.new_empty(len(rois), x.shape[1], output_height, output_width)
    half = coordinate_transformation_mode == "half_pixel"
    pooled = [
        _pool_region(
            x[int(index)],
            (box * spatial_scale - (0.5 if half else 0.0)).tolist(),
            (output_height, output_width),
            sampling_ratio,
            mode,
            1e-9 if half else 1.0,
        )
        for box, index in zip(rois, batch_indices, strict=True)
    ]
    empty = x.new_zeros(0, x.shape[1], output_height, output_width)
    return torch.stack(pooled) if pooled else empty


def _pool_region(
    image: Tensor,
    box: list[float],
    bins: tuple[int, int],
    ratio: int,
    mode: str,
    smallest: float,
) -> Tensor:
    x1, y1, x2, y2 = box
    high, wide = max(y2 - y1, smallest), max(x2 - x1, smallest)
    rows = _samples(y1, high, bins[0], ratio, image)
    columns = _samples(x1, wide, bins[1], ratio, image)
    low_y, up_y, share_y = _neighbours(rows, image.shape[1])
    low_x, up_x, share_x = _neighbours(columns, image.shape[2])
    corners = [
        image[:, ys][:, :, xs] * (wy[:, None] * wx[None, :])
        for ys, wy in ((low_y, 1 - share_y), (up_y, share_y))
        for xs, wx in ((low_x, 1 - share_x), (up_x, share_x))
    ]
    inside_y = (rows >= -1) & (rows <= image.shape[1])
    inside_x = (columns >= -1) & (columns <= image.shape[2])
    inside = inside_y[:, None] & inside_x[None, :]
    if mode == "max":
        sampled = torch.stack(corners).amax(0) * inside
    else:
        sampled = torch.stack(corners).sum(0) * inside
    each = (len(rows) // bins[0], len(columns) // bins[1])
    split = sampled.reshape(image.shape[0], bins[0], each[0], bins[1], each[1])
    return split.amax((2, 4)) if mode == "max" else split.mean((2, 4))


def _samples(start: float, length: float, bins: int, ratio: int, image: Tensor) -> Tensor:
    count = ratio or max(1, math.ceil(length / bins))
    place = torch.arange(bins * count, device=image.device, dtype=image.dtype)
    return start + (place + 0.5) * (length / bins / count)


def _neighbours(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    clamped = place.clamp(0, size - 1)
    low = clamped.floor().long()
    return low, (low + 1).clamp(max=size - 1), clamped - low


@operator(takes_call=True, host=(2, 3, 4))
def NonMaxSuppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows of [batch, class, box], by falling score within a class."""
    most = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class)
    overlap = 0.0 if iou_threshold is None else float(iou_threshold)
    least = -math.inf if score_threshold is None else float(score_threshold)
    host_boxes, host_scores = boxes.detach().cpu(), scores.detach().cpu()
    chosen = [
        [batch, class_, box]
        for batch, classes in enumerate(host_scores)
        for class_, ratings in enumerate(classes)
        for box in _suppress(
            _corners(host_boxes[batch], center_point_box), ratings, most, overlap, least
        )
    ]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centred: int) -> Tensor:
    """As [y1, x1, y2, x2] with the smaller first."""
    if centred:
        x, y, w, h = boxes.unbind(-1)
        return torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _suppress(boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float) -> list[int]:
    order = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    for box in (int(b) for b in order if scores[b] > least):
        if len(kept) >= most:
            break
        if not kept or bool((_overlaps(boxes[box], boxes[kept]) <= overlap).all()):
            kept.append(box)
    return kept


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(-1)
    return common / (area + areas - common)
