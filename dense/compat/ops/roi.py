"""Pooling of regions of interest: RoIAlign (average and maximum) and RoIPool.

RoIAlign: He et al., Mask R-CNN, 2017, section 3 (https://arxiv.org/abs/1703.06870). The average is torchvision's
kernel or, on a CPU, that of :mod:`dense.compat.ops.roi_rows`; the maximum, and the average under deterministic
algorithms on a GPU, sample here by tensor indexing.
RoIPool: Girshick, Fast R-CNN, 2015, section 2.1 (https://arxiv.org/abs/1504.08083), with mmcv's borders: a region
ends at ``(x2 + 1) * spatial_scale`` and nothing is rounded before the bins are cut, unlike torchvision's.

Legend of shapes: N images, C channels, H and W of the feature map, R regions of PH x PW bins, GH x GW sampling points
of a bin.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor

from dense.compat.ops import roi_rows
from dense.compat.ops.common import (
    check_rois,
    needs_determinism,
    pair,
    vector_jacobian,
    without_autocast,
    working_dtype,
)

OUTSIDE = -2.0  # a coordinate that samples nothing: everything beyond -1 is outside the map
SAMPLES_AT_ONCE = 1 << 24  # of all channels; bounds the memory of the search for the maximum


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = 'avg',
    aligned: bool = True,
) -> Tensor:
    """Pool each region into a grid of bins by bilinear samples; replaces ``mmcv.ops.roi_align``.

    Args:
        input: Feature map, shape (N, C, H, W).
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)`` in pixels of the image, shape (R, 5).
        output_size: Bins of a region, ``(PH, PW)`` or one number for both.
        spatial_scale: Size of the feature map over that of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin covers pixels, rounded up.
        pool_mode: ``'avg'`` or ``'max'`` of a bin's samples. A bin without samples (a region without extent, where
            ``aligned`` and ``sampling_ratio`` 0) gives 0 in both.
        aligned: Whether pixel centres lie at half coordinates.

    Returns:
        Shape (R, C, PH, PW), dtype of ``input``. The arithmetic is in float32 or better.

    Raises:
        ValueError: ``rois`` does not have five columns, names no image of the batch or no finite box (on a CPU), or
            ``pool_mode`` is unknown.
    """
    check_rois(rois, len(input), float(spatial_scale))
    if pool_mode not in ('avg', 'max'):
        raise ValueError(f"pool_mode is {pool_mode!r}, allowed are 'avg' and 'max'\nuse one of these")
    dtype = working_dtype(input, rois)
    features, regions, size = input.to(dtype), rois.detach().to(dtype), pair(output_size)
    with without_autocast(input):
        if pool_mode == 'max':
            y, x = _max_points(features, regions, size, float(spatial_scale), int(sampling_ratio), aligned)
            pooled = _sample(features, regions[:, 0].long(), y, x)
        elif needs_determinism(input):
            pooled = _average(features, regions, size, float(spatial_scale), int(sampling_ratio), aligned)
        elif roi_rows.is_faster(features, regions, size):
            pooled = roi_rows.average(
                features,
                regions,
                size,
                spatial_scale=float(spatial_scale),
                sampling_ratio=int(sampling_ratio),
                aligned=bool(aligned),
            )
        else:
            pooled = torchvision.ops.roi_align(
                features, regions, size, float(spatial_scale), int(sampling_ratio), bool(aligned)
            )
    return pooled.to(input.dtype)


def roi_pool(input: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """Take the maximum of the feature map in each bin of each region; replaces ``mmcv.ops.roi_pool``.

    Args:
        input: Feature map, shape (N, C, H, W).
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)`` in pixels of the image, shape (R, 5).
        output_size: Bins of a region, ``(PH, PW)`` or one number for both.
        spatial_scale: Size of the feature map over that of the image.

    Returns:
        Shape (R, C, PH, PW), dtype of ``input``; 0 in bins outside the map and in regions without extent.

    Raises:
        ValueError: ``rois`` does not have five columns, or names no image of the batch or no finite box (on a CPU).
    """
    check_rois(rois, len(input), float(spatial_scale))
    with without_autocast(input):
        argmax = _pool_argmax(input.detach(), rois.detach(), pair(output_size), float(spatial_scale))
        images = rois[:, 0].long()[:, None, None, None]
        channels = torch.arange(input.shape[1], device=input.device)[:, None, None]
        pooled = input.flatten(2)[images, channels, argmax.clamp(min=0)]
        return torch.where(argmax >= 0, pooled, torch.zeros_like(pooled))


def with_exact_regions(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the ``forward`` of mmdet's ``SingleRoIExtractor`` so that half precision pools with exact coordinates.

    Args:
        forward: Takes the extractor, feature maps (N, C, H, W), regions (R, 5) and a factor of the regions' size.
    """

    @functools.wraps(forward)
    def wide_forward(
        self: object, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        dtype = feats[0].dtype
        wide = working_dtype(*feats)
        with without_autocast(feats[0]):
            pooled = forward(self, tuple(feature.to(wide) for feature in feats), rois.to(wide), roi_scale_factor)
        return pooled.to(dtype)

    return wide_forward


def _sample_grids(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield sampling coordinates of regions that have equally many samples per bin.

    Yields:
        Indices of the regions (R',), ordinates (R', PH, GH) and abscissae (R', PW, GW) on the feature map. GH and GW
        are 0 for regions without extent.
    """
    start, bin_size, counts = roi_rows.sample_grids(rois, size, spatial_scale, sampling_ratio, aligned)
    kinds, kind_of = torch.unique(counts, dim=0, return_inverse=True)
    for kind, (num_y, num_x) in enumerate(kinds.tolist()):
        index = (kind_of == kind).nonzero().squeeze(1)
        y = _bin_points(start[index, 0], bin_size[index, 0], size[0], num_y)
        x = _bin_points(start[index, 1], bin_size[index, 1], size[1], num_x)
        yield index, y, x


def _bin_points(start: Tensor, bin_size: Tensor, num_bins: int, num_points: int) -> Tensor:
    """Return the centres of equal parts of each bin along one axis, shape (R, num_bins, num_points)."""
    bins = torch.arange(num_bins, device=start.device, dtype=start.dtype)[:, None]
    parts = (torch.arange(num_points, device=start.device, dtype=start.dtype) + 0.5) / max(num_points, 1)
    return start[:, None, None] + (bins + parts) * bin_size[:, None, None]


def _sample(features: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate bilinearly as RoIAlign defines it: up to one pixel outside the map the border counts, beyond that 0.

    Args:
        features: Shape (N, C, H, W).
        images: Index of the image, shape (R,).
        y: Ordinates, shape (R, C or 1, ...).
        x: Abscissae, of a shape that broadcasts with that of ``y``.

    Returns:
        Shape (R, C, ...), differentiable with respect to ``features``.
    """
    height, width = features.shape[2:]
    y, x = torch.broadcast_tensors(y, x)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    weight_y, weight_x = y - top, x - left
    ones = [1] * (y.dim() - 2)
    image = images.view(-1, 1, *ones)
    channel = torch.arange(features.shape[1], device=features.device).view(1, -1, *ones)

    def corner(row: Tensor, column: Tensor) -> Tensor:
        return features[image, channel, row.long().clamp(max=height - 1), column.long().clamp(max=width - 1)]

    upper = corner(top, left) * (1 - weight_x) + corner(top, left + 1) * weight_x
    lower = corner(top + 1, left) * (1 - weight_x) + corner(top + 1, left + 1) * weight_x
    return (upper * (1 - weight_y) + lower * weight_y) * inside


def _average(
    features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Pool by averaging, (R, C, PH, PW), with a backward pass that adds in a fixed order."""
    indices, parts = [rois.new_zeros(0, dtype=torch.long)], [features.new_zeros(0, features.shape[1], *size)]
    for index, y, x in _sample_grids(rois, size, spatial_scale, sampling_ratio, aligned):
        points = y[:, None, :, None, :, None], x[:, None, None, :, None, :]
        samples = _sample(features, rois[index, 0].long(), *points)  # R', C, PH, PW, GH, GW
        parts.append(samples.sum((-2, -1)) / max(samples.shape[-2] * samples.shape[-1], 1))
        indices.append(index)
    # Without any region the features must still be part of the graph, hence the empty sum.
    return torch.cat(parts)[torch.cat(indices).argsort()] + features[:0].sum()


@torch.no_grad()
def _max_points(
    features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return where each channel of each bin has its largest sample: ordinates and abscissae, (R, C, PH, PW)."""
    best = [features.new_full((len(rois), features.shape[1], *size), OUTSIDE) for _ in range(2)]
    for index, y, x in _sample_grids(rois, size, spatial_scale, sampling_ratio, aligned):
        num_y, num_x = y.shape[2], x.shape[2]
        if num_y * num_x == 0:
            continue
        per_region = features.shape[1] * size[0] * size[1] * num_y * num_x
        for part in torch.arange(len(index), device=index.device).split(max(SAMPLES_AT_ONCE // per_region, 1)):
            points = y[part, None, :, None, :, None], x[part, None, None, :, None, :]
            samples = _sample(features, rois[index[part], 0].long(), *points)
            at = samples.flatten(-2).argmax(-1)  # R', C, PH, PW; the first of equal ones
            best[0][index[part]] = _take(y[part, None, :, None], at // num_x)
            best[1][index[part]] = _take(x[part, None, None], at % num_x)
    return best[0], best[1]


def _take(coordinates: Tensor, at: Tensor) -> Tensor:
    """Pick from coordinates (R, 1, PH or 1, PW or 1, G) by an index (R, C, PH, PW)."""
    return coordinates.expand(*at.shape, -1).gather(-1, at[..., None])[..., 0]


@torch.no_grad()
def _pool_argmax(features: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float) -> Tensor:
    """Return where each bin has its maximum, as ``row * W + column``, (R, C, PH, PW); -1 where it holds no pixel.

    Of equal values, the first one in reading order counts. The maximum is searched along the rows of each column of
    bins, then among these rows' maxima.
    """
    height, width = features.shape[2:]
    argmax = rois.new_full((len(rois), features.shape[1], *size), -1, dtype=torch.long)
    bounds = rois[:, 1:].to(working_dtype(rois))
    rows = _bin_bounds(bounds[:, 1], bounds[:, 3], size[0], height, spatial_scale)
    columns = _bin_bounds(bounds[:, 0], bounds[:, 2], size[1], width, spatial_scale)
    for region, image in enumerate(rois[:, 0].tolist()):
        for j, (left, right) in enumerate(columns[region]):
            if right <= left:
                continue
            values, at = features[int(image), :, :, left:right].max(-1)  # C, H
            for i, (top, bottom) in enumerate(rows[region]):
                if bottom > top:
                    row = values[:, top:bottom].argmax(-1, keepdim=True) + top
                    argmax[region, :, i, j] = (row * width + at.gather(1, row) + left)[:, 0]
    return argmax


def _bin_bounds(start: Tensor, end: Tensor, num_bins: int, limit: int, spatial_scale: float) -> list:
    """Return the first pixel and one past the last pixel of each bin along one axis, nested lists (R, num_bins, 2)."""
    first, last = start * spatial_scale, (end + 1) * spatial_scale
    extent = last - first
    edges = torch.arange(num_bins + 1, device=start.device) * (extent / num_bins)[:, None] + first[:, None]
    bounds = torch.stack([edges[:, :-1].floor(), edges[:, 1:].ceil()], dim=-1).clamp(0, limit)
    return (bounds * (extent > 0)[:, None, None]).long().tolist()


# The calling convention of mmcv's compiled extension.


def _roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    size = aligned_height, aligned_width
    check_rois(rois, len(input), spatial_scale)
    if pool_mode == 1:
        output.copy_(roi_align(input, rois, size, spatial_scale, sampling_ratio, 'avg', aligned))
        return
    dtype = working_dtype(input, rois)
    features = input.to(dtype)
    y, x = _max_points(features, rois.to(dtype), size, spatial_scale, sampling_ratio, aligned)
    output.copy_(_sample(features, rois[:, 0].long(), y, x))
    argmax_y.copy_(y)
    argmax_x.copy_(x)


def _roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    size = aligned_height, aligned_width
    check_rois(rois, len(grad_input), spatial_scale)
    if pool_mode == 1:
        pool = functools.partial(
            roi_align,
            rois=rois,
            output_size=size,
            spatial_scale=spatial_scale,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
    else:
        pool = functools.partial(_sample, images=rois[:, 0].long(), y=argmax_y, x=argmax_x)
    # Pooling is linear once the sampled points are known, so the features' values do not matter.
    grad_input += vector_jacobian(pool, [torch.zeros_like(grad_input)], grad_output)[0]


def _roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    size = pooled_height, pooled_width
    check_rois(rois, len(input), spatial_scale)
    argmax.copy_(_pool_argmax(input, rois, size, spatial_scale))
    output.copy_(roi_pool(input, rois, size, spatial_scale))


def _roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    check_rois(rois, len(grad_input), spatial_scale)
    images = rois[:, 0].long()[:, None, None, None].expand(argmax.shape)
    channels = torch.arange(argmax.shape[1], device=argmax.device)[:, None, None].expand(argmax.shape)
    full = argmax >= 0
    at = images[full], channels[full], argmax[full].long()
    grad_input.flatten(2).index_put_(at, grad_output[full], accumulate=True)


KERNELS: dict[str, Callable] = {
    'roi_align_forward': _roi_align_forward,
    'roi_align_backward': _roi_align_backward,
    'roi_pool_forward': _roi_pool_forward,
    'roi_pool_backward': _roi_pool_backward,
}
