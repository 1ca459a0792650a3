"""Pooling of regions of interest: RoIAlign (average and maximum) and RoIPool.

RoIAlign: He et al., Mask R-CNN, 2017, section 3 (https://arxiv.org/abs/1703.06870). The average is torchvision's
kernel; the maximum, and the average under deterministic algorithms on a GPU, sample here with tensor indexing.
RoIPool: Girshick, Fast R-CNN, 2015, section 2.1 (https://arxiv.org/abs/1504.08083), with mmcv's borders: a region
ends at ``(x2 + 1) * spatial_scale`` and nothing is rounded before the bins are cut, unlike torchvision's.

Legend of shapes: N images, C channels, H and W of the feature map, R regions, P = PH x PW bins of a region,
G = GH x GW sampling points of a bin.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from dense.compat.ops.common import vector_jacobian, without_autocast, working_dtype


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = 'avg',
    aligned: bool = True,
) -> Tensor:
    """Pool each region into a grid of bins by bilinear samples; stands in for ``mmcv.ops.roi_align``.

    Args:
        input: Feature map, shape (N, C, H, W).
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)`` in pixels of the image, shape (R, 5).
        output_size: Bins of a region, ``(PH, PW)`` or one number for both.
        spatial_scale: Size of the feature map over that of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin covers pixels, rounded up.
        pool_mode: ``'avg'`` or ``'max'`` of a bin's samples.
        aligned: Whether pixel centres lie at half coordinates.

    Returns:
        Shape (R, C, PH, PW), dtype of ``input``. The arithmetic is in float32 or better.

    Raises:
        ValueError: ``rois`` has not five columns, or ``pool_mode`` is unknown.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    dtype = working_dtype(input, rois)
    with without_autocast(input):
        pooled = torchvision.ops.roi_align(
            input.to(dtype), rois.to(dtype), size, float(spatial_scale), int(sampling_ratio), bool(aligned)
        )
    return pooled.to(input.dtype)


KERNELS: dict[str, Callable] = {}
