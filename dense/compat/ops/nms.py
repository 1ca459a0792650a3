"""Non-maximum suppression: plain, soft, and grouping.

Plain suppression is torchvision's; mmcv's ``offset`` (1 in its first versions, where a box of one pixel had
``x1 == x2``) adds to each width and height, which equals moving the lower right corner. Soft-NMS follows Bodla et al.,
Soft-NMS: improving object detection with one line of code, 2017 (https://arxiv.org/abs/1704.04503), in NumPy: it is
sequential by nature, and mmcv too has it for the CPU alone.
"""

from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from dense.compat.ops.common import without_autocast, working_dtype

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def kept_indices(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Suppress boxes that overlap a higher-scoring one by more than the threshold.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4), any floating dtype.
        scores: Shape (N,).
        iou_threshold: In [0, 1]; a box with exactly this overlap is kept.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the kept boxes by falling score, shape (K,), int64.
    """
    dtype = working_dtype(boxes, scores)
    corners = boxes.detach().to(dtype)
    if offset:
        corners = corners + corners.new_tensor([0, 0, offset, offset])
    with without_autocast(boxes):
        return torchvision.ops.nms(corners, scores.detach().to(dtype), float(iou_threshold))


def filtered_kept_indices(
    bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, score_threshold: float, max_num: int
) -> Tensor:
    """Suppress as :func:`kept_indices` among the boxes above a score; stands in for ``NMSop.apply`` of mmcv.

    Args:
        bboxes: Shape (N, 4).
        scores: Shape (N,).
        iou_threshold: In [0, 1].
        offset: 0 or 1.
        score_threshold: Boxes must score more; 0 or less keeps all.
        max_num: How many to return at most; 0 or less returns all.

    Returns:
        Indices into ``bboxes`` by falling score, int64.
    """
    if score_threshold > 0:
        candidates = (scores > score_threshold).nonzero().squeeze(1)
        kept = candidates[kept_indices(bboxes[candidates], scores[candidates], iou_threshold, offset)]
    else:
        kept = kept_indices(bboxes, scores, iou_threshold, offset)
    return kept[:max_num] if max_num > 0 else kept


KERNELS: dict[str, Callable] = {
    'nms': lambda boxes, scores, iou_threshold, offset: kept_indices(boxes, scores, iou_threshold, offset),
}
