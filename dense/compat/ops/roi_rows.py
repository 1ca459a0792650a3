"""Average RoIAlign on a CPU as weighted sums of rows.

A bin's average of bilinear samples (He et al., Mask R-CNN, 2017, section 3, https://arxiv.org/abs/1703.06870) is a
weighted sum of feature vectors, with the same weights for every channel. With the channels last, a feature map is a
table with one row per pixel, and ``embedding_bag`` sums its rows for many bins at once, over all channels at vector
speed, whereas torchvision's kernel fetches four neighbours for one channel of one sample after another. The gradient of
the table is the transposed sum: for each row, the weighted gradients of the bins that read it, in the order of the
bins. Both directions add in a fixed order.

A weight is the product of one for the row and one for the column of a pixel. Samples at most one pixel apart share
neighbours: ``g`` of them in a line read ``g + 1`` pixels, each of which is read once, with its summed weight.

A weight of 0 still multiplies: where the map holds infinities or NaN, bins next to them may become NaN too.

Legend of shapes: N images, C channels, H and W of the feature map, R regions of PH x PW bins, GH x GW samples in a bin,
which read KH x KW pixels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbones.fast.recording import is_recorded

# Fewer channels are left to torchvision. For 300 regions on a map of 100 x 152, value and gradient took 0.6 and 0.3 of
# its time with 32 channels, 1.0 and 0.6 with 16, 1.5 and 1.1 with 8 (Xeon, one thread).
MIN_CHANNELS = 32
# Maps whose channels are not last must be copied, which pays off unless bins are far fewer than pixels: with 256
# channels, bins of one or two samples and 3 pixels of the map per bin, the value took as long as torchvision's, and the
# gradient 0.3 of its time; with 15 pixels per bin they took 1.6 and 0.5.
MOST_PIXELS_PER_BIN = 4
# How many pixels read by bins are held at a time: few in the forward pass, so that they stay in a cache until they
# are used; many in the backward pass, because each turn adds to the gradient of the whole map.
FORWARD_READS, BACKWARD_READS = 1 << 19, 1 << 22
_MOST_SAMPLES = 1 << 31  # beyond, as for regions that are not finite, torchvision's kernel takes no sample at all


def _is_channels_last(features: Tensor) -> bool:
    return features.permute(0, 2, 3, 1).is_contiguous()


class Grids(NamedTuple):
    """Where regions are on a map; ``[:, 0]`` of each field is along the height, ``[:, 1]`` along the width.

    Attributes:
        start: First corner, in pixels of the map, shape (R, 2).
        bin_size: In pixels of the map, shape (R, 2).
        count: Samples per bin, whole numbers from 0, shape (R, 2).
    """

    start: Tensor
    bin_size: Tensor
    count: Tensor


def sample_grids(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Grids:
    """Cut regions (R, 5) into bins and count the samples of each bin; arguments as for ``roi_align``."""
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)  # y1, x1, y2, x2
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)  # the first version of RoIAlign had no region below one pixel
    bin_size = extent / extent.new_tensor(size)
    if sampling_ratio > 0:
        return Grids(start, bin_size, torch.full_like(bin_size, sampling_ratio, dtype=torch.long))
    count = bin_size.ceil().clamp(min=0)
    return Grids(start, bin_size, torch.where(count < _MOST_SAMPLES, count, 0).long())


def is_faster(features: Tensor, rois: Tensor, size: tuple[int, int]) -> bool:
    """Tell whether :func:`average` can replace torchvision's kernel and is faster.

    Args:
        features: Shape (N, C, H, W), float32 or float64.
        rois: Shape (R, 5).
        size: ``(PH, PW)``.
    """
    if features.device.type != 'cpu' or rois.device.type != 'cpu' or is_recorded():
        return False
    # Subclasses, such as tensors without values, may behave differently.
    if type(features.data) is not Tensor or type(rois.data) is not Tensor:
        return False
    num_bins, num_pixels = len(rois) * size[0] * size[1], features[:, 0].numel()
    if not num_bins or not num_pixels or features.shape[1] < MIN_CHANNELS:
        return False
    return num_bins * MOST_PIXELS_PER_BIN >= num_pixels or _is_channels_last(features)


def average(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    *,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average the bilinear samples of each bin of each region.

    Args:
        features: Shape (N, C, H, W), float32 or float64, on a CPU; channels-last maps are read in place.
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)``, shape (R, 5), of the dtype of ``features``.
        size: Bins of a region, ``(PH, PW)``.
        spatial_scale: Size of the feature map over that of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin covers pixels, rounded up.
        aligned: Whether pixel centres lie at half coordinates.

    Returns:
        Shape (R, C, PH, PW), in the memory format of ``features``, differentiable once with respect to ``features``.

    Raises:
        RuntimeError: A region's index of the image is not in [0, N).
    """
    grids = sample_grids(rois, size, spatial_scale, sampling_ratio, aligned)
    plan = _Plan(features.shape, rois[:, 0].long(), grids, size, merge=sampling_ratio <= 0)
    return _Average.apply(features, plan)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, plan: '_Plan') -> Tensor:
        ctx.plan = plan
        ctx.channels_last = _is_channels_last(features)
        table = features.detach().permute(0, 2, 3, 1).contiguous().flatten(0, 2)  # N * H * W, C
        layout = torch.channels_last if ctx.channels_last else torch.contiguous_format
        shape = plan.num_regions, table.shape[1], *plan.size
        pooled = torch.empty(shape, dtype=table.dtype, device=table.device, memory_format=layout).zero_()
        for reads in plan.reads(FORWARD_READS):
            sums = F.embedding_bag(reads.pixels, table, reads.offsets, mode='sum', per_sample_weights=reads.weights)
            sums = sums.view(len(reads.regions), -1, plan.size[1], table.shape[1])
            pooled[reads.regions, :, reads.strips] = sums.permute(0, 3, 1, 2)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor, None]:
        plan = ctx.plan
        num_images, num_channels, height, width = plan.shape
        grad_bins = grad_pooled.permute(0, 2, 3, 1).contiguous()
        grad = None
        for reads in plan.reads(BACKWARD_READS):
            part = _transposed(reads, grad_bins, num_images * height * width)
            grad = part if grad is None else grad.add_(part)
        if grad is None:  # no region has a sample
            grad = grad_bins.new_zeros(num_images * height * width, num_channels)
        if ctx.channels_last:
            return grad.view(num_images, height, width, num_channels).permute(0, 3, 1, 2), None
        # Matrix by matrix, which takes a quarter of the time of `contiguous` in this direction.
        planes = grad.new_empty(num_images, num_channels, height * width)
        for plane, rows in zip(planes, grad.view(num_images, -1, num_channels), strict=True):
            plane.copy_(rows.t())
        return planes.view(plan.shape), None


class _Reads(NamedTuple):
    """Which pixels some strips read; a strip is the PW bins in one row of a region's bins.

    Attributes:
        regions: Their indices, shape (R',).
        strips: Which PH' strips of each region.
        offsets: Where the reads of each bin begin, shape (R' * PH' * PW,).
        pixels: Rows of the table that are read, shape (E,).
        weights: Shape (E,).
    """

    regions: Tensor
    strips: slice
    offsets: Tensor
    pixels: Tensor
    weights: Tensor


class _Plan:
    """Knows what to read for regions from maps of one shape; the reads themselves are built again each time.

    Args:
        shape: Of the maps, ``(N, C, H, W)``.
        images: Index of each region's image, shape (R,).
        grids: Where the regions are.
        size: ``(PH, PW)``.
        merge: Whether samples of a bin lie at most one pixel apart, so that shared pixels are read once.
    """

    def __init__(self, shape: torch.Size, images: Tensor, grids: Grids, size: tuple[int, int], *, merge: bool) -> None:
        self.shape, self.size, self.merge = tuple(shape), size, merge
        self.num_regions = len(images)
        height, width = shape[2:]
        merged = (grids.count + 1).minimum(grids.count.new_tensor([height, width]))
        spans = merged if merge else 2 * grids.count  # KH, KW
        # Regions with equally many reads per bin follow each other; those without samples are left out and stay 0.
        kinds = (spans[:, 0] << 32) + spans[:, 1]
        order = kinds.argsort(stable=True)
        self.regions = order[grids.count[order].amin(1) > 0]
        self.images, self.spans, self.kinds = images[self.regions], spans[self.regions], kinds[self.regions]
        self.grids = Grids(*(values[self.regions] for values in grids))
        self.dtype = torch.int32 if shape[0] * height * width < 1 << 31 else torch.int64

    def reads(self, limit: int) -> Iterator[_Reads]:
        """Yield all reads, about ``limit`` at a time (more only where one strip has more)."""
        costs = (self.spans.prod(1) + self.grids.count.sum(1)) * (self.size[0] * self.size[1])
        turns = costs.cumsum(0).sub(costs).div(limit, rounding_mode='floor')
        first = 0
        for num in turns.unique_consecutive(return_counts=True)[1].tolist():
            part = slice(first, first + num)
            strips = max(limit * self.size[0] // int(costs[part].sum()), 1)
            yield from self._reads_of(part, min(strips, self.size[0]))
            first += num

    def _reads_of(self, part: slice, num_strips: int) -> Iterator[_Reads]:
        """Yield the reads of some regions, at most ``num_strips`` strips of each at a time."""
        height, width = self.shape[2:]
        grids = Grids(*(values[part] for values in self.grids))
        y, weight_y = _axis(grids, 0, self.size[0], height, merge=self.merge)
        x, weight_x = _axis(grids, 1, self.size[1], width, merge=self.merge)
        rows = ((y + self.images[part, None, None] * height) * width).to(self.dtype)
        columns = x.to(self.dtype)
        kinds = self.kinds[part].unique_consecutive(return_counts=True)[1]
        spans = self.spans[part][kinds.cumsum(0) - 1]
        groups = list(zip(kinds.tolist(), spans.tolist(), strict=True))
        for begin in range(0, self.size[0], num_strips):
            strips = slice(begin, min(begin + num_strips, self.size[0]))
            per_bin = spans.prod(1).repeat_interleave(kinds * (strips.stop - begin) * self.size[1])
            ends = per_bin.cumsum(0)
            yield _Reads(
                self.regions[part],
                strips,
                (ends - per_bin).to(self.dtype),
                _combine(rows[:, strips], columns, groups, int(ends[-1]), torch.add),
                _combine(weight_y[:, strips], weight_x, groups, int(ends[-1]), torch.mul),
            )


def _axis(grids: Grids, axis: int, num_bins: int, length: int, *, merge: bool) -> tuple[Tensor, Tensor]:
    """Return the pixels that bins read along one axis of a map.

    Args:
        grids: Of R regions.
        axis: 0 for the height, 1 for the width.
        num_bins: Along the axis, P.
        length: Of the map along the axis.
        merge: Whether samples lie at most one pixel apart.

    Returns:
        Indices and weights, both of shape (R, P, K). Those of a region with fewer reads than K come first.
    """
    start, bin_size, count = (values[:, axis, None, None] for values in grids)
    steps = torch.arange(int(count.max()), device=start.device)
    bins = torch.arange(num_bins, device=start.device)[:, None]
    # The order of the arithmetic is that of the kernels, so that a sample near the border falls on the same side.
    points = start + bins * bin_size + (steps + 0.5) * bin_size / count
    inside = (points >= -1) & (points <= length) & (steps < count)
    if not merge:
        points = torch.where(inside, points, 0)
    points = points.clamp(0, length - 1)
    low = points.floor()
    share = inside / count.to(points.dtype)
    above = (points - low) * share
    low, weights = low.long(), torch.stack((share - above, above), -1).flatten(2)
    if not merge:
        return torch.stack((low, low + 1), -1).flatten(2).clamp(max=length - 1), weights
    first, most = low[..., :1], min(len(steps) + 1, length)
    pixels = torch.stack((low, low + 1), -1).flatten(2)
    # Rounding alone can move the last sample beyond the last pixel, with an equally small weight.
    slots = (pixels - first).clamp(max=most - 1)
    merged = weights.new_zeros(*weights.shape[:2], most).scatter_add_(2, slots, weights)
    return (first + torch.arange(most, device=start.device)).clamp(max=length - 1), merged


def _combine(y: Tensor, x: Tensor, groups: list[tuple[int, list[int]]], total: int, operation: Any) -> Tensor:
    """Combine values of rows (R, PH, K) and of columns (R, PW, K) for each pixel of each bin.

    Args:
        y: Values of the rows that bins read.
        x: Values of the columns.
        groups: Number of regions and ``(KH, KW)`` of groups of regions.
        total: Number of reads.
        operation: ``torch.add`` or ``torch.mul``.

    Returns:
        Shape (total,): region by region, within it bin by bin, within that KH x KW values.
    """
    combined = y.new_empty(total)
    region, begin = 0, 0
    for num, (height, width) in groups:
        part = slice(region, region + num)
        shape = num, y.shape[1], x.shape[1], height * width
        end = begin + shape[0] * shape[1] * shape[2] * shape[3]
        # Both operands with all of a bin's pixels in the last axis, which is long enough for vector instructions.
        of_rows = y[part, :, :height, None].expand(-1, -1, -1, width).reshape(num, -1, 1, height * width)
        of_columns = x[part, :, None, :width].expand(-1, -1, height, -1).reshape(num, 1, -1, height * width)
        operation(of_rows, of_columns, out=combined[begin:end].view(shape))
        region, begin = region + num, end
    return combined


def _transposed(reads: _Reads, grad_bins: Tensor, num_pixels: int) -> Tensor:
    """Sum the gradients of bins (R, PH, PW, C) for each pixel that they read; shape (num_pixels, C)."""
    dtype, device = reads.pixels.dtype, reads.pixels.device
    bins = torch.arange(grad_bins[..., 0].numel(), dtype=dtype, device=device).view(grad_bins.shape[:3])
    ends = torch.cat((reads.offsets[1:], reads.offsets.new_tensor([len(reads.pixels)])))
    readers = bins[reads.regions, reads.strips].flatten().repeat_interleave(ends - reads.offsets)
    pixels, order = reads.pixels.sort(stable=True)
    every_pixel = torch.arange(num_pixels, dtype=dtype, device=device)
    offsets = torch.searchsorted(pixels, every_pixel, out_int32=dtype == torch.int32)
    weights = reads.weights[order]
    return F.embedding_bag(readers[order], grad_bins.flatten(0, 2), offsets, mode='sum', per_sample_weights=weights)
