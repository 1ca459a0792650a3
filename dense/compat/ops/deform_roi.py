"""Deformable pooling of regions of interest: RoIAlign with displaced bins.

Dai et al., Deformable Convolutional Networks, 2017, section 2.2 (https://arxiv.org/abs/1703.06211).

Legend of shapes: N images, C channels, H and W of the feature map, R regions of PH x PW bins, GH x GW sampling points
of a bin.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dense.compat.ops import roi_rows
from dense.compat.ops.common import check_rois, pair, vector_jacobian, without_autocast, working_dtype

SAMPLES_AT_ONCE = 1 << 22  # of all channels; bounds the memory, since a region may have hundreds of points per bin


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Average bilinear samples of bins that are moved; replaces ``mmcv.ops.deform_roi_pool``.

    Args:
        input: Feature map, shape (N, C, H, W).
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)`` in pixels of the image, shape (R, 5).
        offset: Displacements ``(dx, dy)`` of the bins, shape (R, 2, PH, PW), in units of the region's width and height
            before ``gamma`` is applied. None or an empty tensor moves nothing.
        output_size: Bins of a region, ``(PH, PW)`` or one number for both.
        spatial_scale: Size of the feature map over that of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin covers pixels, rounded up.
        gamma: Factor of the displacements.

    Returns:
        Shape (R, C, PH, PW), dtype of ``input``. The arithmetic is in float32 or better. The gradient of the
        displacements is mmcv's: beyond the centres of the outermost pixels it continues with the slopes of the cell
        that begins at the border, and is 0 along the last row or column.

    Raises:
        ValueError: ``rois`` does not have five columns, names no image of the batch or no finite box (on a CPU), or the
            offset does not fit.
    """
    size = pair(output_size)
    check_rois(rois, len(input), float(spatial_scale))
    _check_offset(rois, offset, size)
    dtype = working_dtype(input, rois)
    features, regions = input.to(dtype), rois.detach().to(dtype)
    shifts = features.new_zeros(len(rois), 2, *size) if offset is None or not offset.numel() else offset.to(dtype)
    with without_autocast(input):
        start, bin_size, counts = roi_rows.sample_grids(regions, size, float(spatial_scale), int(sampling_ratio), True)
        extent = bin_size * bin_size.new_tensor(size)  # height and width
        moved = start[:, :, None, None] + gamma * extent[:, :, None, None] * shifts.flip(1)  # y, x of each bin
        # Without any region the inputs must still be part of the graph, hence the empty sums.
        indices, parts = [], [features.new_zeros(0, features.shape[1], *size) + features[:0].sum() + shifts[:0].sum()]
        for index, grid in _chunks(counts, features.shape[1] * size[0] * size[1]):
            indices.append(index)
            arguments = features, regions[index, 0].long(), moved[index], bin_size[index], grid
            parts.append(checkpoint(_pool, *arguments, use_reentrant=False, preserve_rng_state=False))
        order = torch.cat(indices).argsort() if indices else slice(None)
        return torch.cat(parts)[order].to(input.dtype)


def _check_offset(rois: Tensor, offset: Tensor | None, size: tuple[int, int]) -> None:
    expected = len(rois), 2, *size
    if offset is not None and offset.numel() and offset.shape != expected:
        raise ValueError(
            f'offset has shape {tuple(offset.shape)}, allowed is {expected}\ngive one (dx, dy) per bin of each region'
        )


def _chunks(counts: Tensor, numbers: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """Return indices of regions with the same number of points per bin, a limited number at a time, and this number."""
    kinds, kind_of = torch.unique(counts, dim=0, return_inverse=True)
    chunks = []
    for kind, grid in enumerate(kinds.tolist()):
        at_once = max(SAMPLES_AT_ONCE // max(numbers * grid[0] * grid[1], 1), 1)
        chunks += [(part, tuple(grid)) for part in (kind_of == kind).nonzero().squeeze(1).split(at_once)]
    return chunks


def _pool(features: Tensor, images: Tensor, moved: Tensor, bin_size: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pool regions whose bins begin at ``moved`` (R, 2, PH, PW) plus their place in the region; (R, C, PH, PW)."""
    height, width = moved.shape[2:]
    y = moved[:, 0, :, :, None] + _steps(bin_size[:, 0], height, grid[0])[:, :, None]  # R, PH, PW, GH
    x = moved[:, 1, :, :, None] + _steps(bin_size[:, 1], width, grid[1])[:, None]  # R, PH, PW, GW
    samples = _sample(features, images, y[..., :, None], x[..., None, :])
    return samples.sum((-2, -1)) / max(grid[0] * grid[1], 1)


def _steps(bin_size: Tensor, num_bins: int, num_points: int) -> Tensor:
    """Return the centres of equal parts of each bin along one axis, from the region's start; (R, bins, points)."""
    bins = torch.arange(num_bins, device=bin_size.device, dtype=bin_size.dtype)[:, None]
    parts = (torch.arange(num_points, device=bin_size.device, dtype=bin_size.dtype) + 0.5) / max(num_points, 1)
    return bin_size[:, None, None] * (bins + parts)


def _sample(features: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate maps (N, C, H, W) at points (R, ...), up to a pixel outside at the border; (R, C, ...)."""
    y, x = torch.broadcast_tensors(y, x)
    at_y, at_x = y.detach(), x.detach()
    limits = features.shape[2], features.shape[3]
    inside = (at_y >= -1) & (at_y <= limits[0]) & (at_x >= -1) & (at_x <= limits[1])
    (top, bottom, down), (left, right, across) = _cell(at_y, limits[0]), _cell(at_x, limits[1])
    image = images.view(-1, *[1] * y.dim())
    channel = torch.arange(features.shape[1], device=features.device).view(-1, *[1] * (y.dim() - 1))

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        return features[image, channel, row[:, None], column[:, None]] * inside[:, None]

    a, b, c, d = pixels(top, left), pixels(top, right), pixels(bottom, left), pixels(bottom, right)
    down, across = down[:, None], across[:, None]
    value = (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)
    # The value has no gradient for the points. The term added here is 0 and carries mmcv's slopes.
    with torch.no_grad():
        from_top, to_bottom = (at_y - top)[:, None], (bottom - at_y)[:, None]
        from_left, to_right = (at_x - left)[:, None], (right - at_x)[:, None]
        slope_x = (d - c) * from_top + (b - a) * to_bottom
        slope_y = (d - b) * from_left + (c - a) * to_right
    return value + slope_y * (y - at_y)[:, None] + slope_x * (x - at_x)[:, None]


def _cell(at: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels around each coordinate of one axis, and the weight of the second."""
    clamped = at.clamp(0, limit - 1)
    low = clamped.floor().long()
    return low, (low + 1).clamp(max=limit - 1), clamped - low


# The calling convention of mmcv's compiled extension; an empty offset means none.


def _forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    size = pooled_height, pooled_width
    output.copy_(deform_roi_pool(input, rois, offset, size, spatial_scale, sampling_ratio, gamma))


def _backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    size = pooled_height, pooled_width

    def pool(x: Tensor, o: Tensor) -> Tensor:
        return deform_roi_pool(x, rois, o, size, spatial_scale, sampling_ratio, gamma)

    grads = vector_jacobian(pool, [input, offset], grad_output)
    grad_input += grads[0]
    grad_offset += grads[1]


KERNELS: dict[str, Callable] = {
    'deform_roi_pool_forward': _forward,
    'deform_roi_pool_backward': _backward,
}
