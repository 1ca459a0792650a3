"""Non-maximum suppression: plain, soft and grouping, and the overlaps of boxes.

Plain suppression is torchvision's; mmcv's ``offset`` (1 in its first versions, where a box of one pixel had
``x1 == x2``) adds to each width and height, which equals moving the lower right corner. Soft-NMS follows Bodla et al.,
Soft-NMS: improving object detection with one line of code, 2017 (https://arxiv.org/abs/1704.04503), in NumPy: it is
sequential by nature, and mmcv, too, has it for the CPU only.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from dense.compat.ops.common import without_autocast, working_dtype

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # how soft-NMS lowers the score of a box that overlaps a better one


def kept_indices(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Suppress boxes that overlap a higher-scoring one by more than the threshold.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4), any floating dtype.
        scores: Shape (N,).
        iou_threshold: In [0, 1]; a box with exactly this overlap is kept.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the kept boxes by descending score, shape (K,), int64.
    """
    dtype = working_dtype(boxes, scores)
    corners = boxes.detach().to(dtype)
    # torchvision compares in float64, where a float32 overlap of 0.3 exceeds a threshold of 0.3; mmcv does not.
    threshold = float(iou_threshold) if dtype == torch.float64 else float(np.float32(iou_threshold))
    if offset:
        corners = corners + corners.new_tensor([0, 0, offset, offset])
    with without_autocast(boxes):
        return torchvision.ops.nms(corners, scores.detach().to(dtype), threshold)


def filtered_kept_indices(
    bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, score_threshold: float, max_num: int
) -> Tensor:
    """Suppress as :func:`kept_indices` among the boxes above a score; replaces ``NMSop.apply`` of mmcv.

    Args:
        bboxes: Shape (N, 4).
        scores: Shape (N,).
        iou_threshold: In [0, 1].
        offset: 0 or 1.
        score_threshold: Boxes must score more; 0 or less keeps all.
        max_num: How many to return at most; 0 or less returns all.

    Returns:
        Indices into ``bboxes`` by descending score, int64.
    """
    if score_threshold > 0:
        candidates = (scores > score_threshold).nonzero().squeeze(1)
        kept = candidates[kept_indices(bboxes[candidates], scores[candidates], iou_threshold, offset)]
    else:
        kept = kept_indices(bboxes, scores, iou_threshold, offset)
    return kept[:max_num] if max_num > 0 else kept


def in_full_precision(batched_nms: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Wrap mmcv's ``batched_nms`` so that it computes in float32 or better.

    It separates classes by shifting each one's boxes by a multiple of the largest coordinate; in half precision the
    shifted coordinates lose the boxes' extent.

    Args:
        batched_nms: mmcv's function.
    """

    @functools.wraps(batched_nms)
    def wide_batched_nms(
        boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict | None, class_agnostic: bool = False
    ) -> tuple[Tensor, Tensor]:
        dtype = working_dtype(boxes, scores)
        dets, keep = batched_nms(boxes.to(dtype), scores.to(dtype), idxs, nms_cfg, class_agnostic)
        return dets.to(torch.promote_types(boxes.dtype, scores.dtype)), keep

    return wide_batched_nms


def soft_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap better ones; replaces ``SoftNMSop.apply`` of mmcv.

    The best of the remaining boxes is taken, and the others' scores are multiplied by a weight that depends on their
    overlap with it: 0 (naive) or ``1 - iou`` (linear) from the threshold on, ``exp(-iou ** 2 / sigma)`` (Gaussian)
    everywhere. A box that falls below ``min_score`` is dropped. Of equal scores, the first in the current order wins;
    as in mmcv, a box that is taken is swapped to the front, and the last box fills the place of a dropped one.

    Args:
        boxes: Corners, shape (N, 4).
        scores: Shape (N,).
        iou_threshold: In [0, 1]; a box with exactly this overlap is lowered.
        sigma: Width of the Gaussian.
        min_score: Least value that a lowered score must have.
        method: 0 naive, 1 linear, 2 Gaussian.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Boxes with their new scores, shape (K, 5), dtype of ``boxes``, and their indices, shape (K,), int64.
    """
    dtype = working_dtype(boxes, scores)
    table = torch.cat([boxes.detach().to(dtype), scores.detach().to(dtype)[:, None]], dim=1).cpu().numpy()
    order = np.arange(len(table))
    remaining, taken = len(table), 0
    while taken < remaining:
        best = taken + int(table[taken:remaining, 4].argmax())
        for array in (table, order):
            array[[taken, best]] = array[[best, taken]]
        rest = slice(taken + 1, remaining)
        table[rest, 4] *= _soft_weights(table[taken], table[rest], iou_threshold, sigma, method, offset)
        taken += 1
        remaining = _drop(table, order, taken, remaining, min_score)
    dets = torch.from_numpy(table[:remaining]).to(boxes)
    return dets, torch.from_numpy(order[:remaining]).to(boxes.device)


def _soft_weights(
    best: np.ndarray, others: np.ndarray, iou_threshold: float, sigma: float, method: int, offset: int
) -> np.ndarray:
    """Return the factors for the scores of the (K, 5) other boxes, given the (5,) best one; shape (K,)."""
    iou = _iou_with_one(best, others, offset)
    if method == GAUSSIAN:
        return np.exp(-(iou * iou) / others.dtype.type(sigma))
    lowered = 1 - iou if method == LINEAR else np.zeros_like(iou)
    return np.where(iou >= others.dtype.type(iou_threshold), lowered, 1)


def _iou_with_one(one: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of one box with (K, 4 or more) others; 0 without overlap, even if neither box has an area."""
    extent = np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2]) + offset
    intersection = np.maximum(extent, 0).prod(axis=1)
    areas = (others[:, 2:4] - others[:, :2] + offset).prod(axis=1)
    union = (one[2:4] - one[:2] + offset).prod() + areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def _drop(table: np.ndarray, order: np.ndarray, start: int, end: int, min_score: float) -> int:
    """Drop rows in [start, end) below the score, filling each gap with the last row, and return the new end."""
    below = table[:end, 4] < table.dtype.type(min_score)
    for gap in start + np.flatnonzero(below[start:]):
        while end > gap and below[end - 1]:
            end -= 1
        if end <= gap:
            break
        table[gap], order[gap] = table[end - 1], order[end - 1]
        end -= 1
    return end


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with the better-scoring box that suppresses them.

    Args:
        dets: Corners and score, shape (N, 5).
        iou_threshold: In [0, 1]; a box with exactly this overlap is suppressed.

    Returns:
        One list per kept box by descending score: its index, then those of the boxes that it suppresses.
    """
    table = dets.detach().to(working_dtype(dets)).cpu().numpy()
    order = np.argsort(-table[:, 4], kind='stable')
    groups = []
    while len(order):
        first, others = order[0], order[1:]
        suppressed = _iou_with_one(table[first], table[others], 0) >= table.dtype.type(iou_threshold)
        groups.append([int(first), *others[suppressed].tolist()])
        order = others[~suppressed]
    return groups


def box_overlaps(boxes1: Tensor, boxes2: Tensor, foreground: bool, aligned: bool, offset: int) -> Tensor:
    """Return intersection over union, or over the area of the first boxes.

    Args:
        boxes1: Corners, shape (M, 4).
        boxes2: Corners, shape (N, 4).
        foreground: Whether to divide by the area of ``boxes1`` instead of the union.
        aligned: Whether to pair the boxes row by row, with M equal to N.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Shape (M, N), or (M,) where aligned. Boxes without area overlap nothing: 0 rather than 0 / 0.
    """
    first = boxes1 if aligned else boxes1[:, None]
    extent = torch.minimum(first[..., 2:], boxes2[..., 2:]) - torch.maximum(first[..., :2], boxes2[..., :2]) + offset
    intersection = extent.clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if not foreground:
        area = area + (boxes2[..., 2:] - boxes2[..., :2] + offset).prod(-1) - intersection
    return torch.where(intersection > 0, intersection / area, torch.zeros_like(intersection))


# The calling convention of mmcv's compiled extension.


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return kept_indices(boxes, scores, iou_threshold, offset)


def _softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    kept, indices = soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset)
    dets[: len(kept)] = kept
    return indices


def _bbox_overlaps(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    ious.copy_(box_overlaps(boxes1, boxes2, mode == 1, aligned, offset))


KERNELS: dict[str, Callable] = {
    'nms': _nms,
    'softnms': _softnms,
    'nms_match': nms_match,
    'bbox_overlaps': _bbox_overlaps,
}
