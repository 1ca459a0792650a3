"""The mean IoU, from one count of the pairs of labels in place of three histograms.

Needs mmseg; configs of segmentors import it by name.
"""

import torch
from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric
from torch import Tensor


@METRICS.register_module()
class DenseIoUMetric(IoUMetric):
    """MMSegmentation's ``IoUMetric`` with the same arguments, names and numbers, many times faster on a CPU.

    Areas are added in double precision: a validation set has more pixels than single precision tells apart (2 ** 24).
    """

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count the pixels of each class in one image.

        A value outside of 0 to ``num_classes`` - 1 is a class of its own that nobody asks for: its pixels count in the
        area of what the other map says there, and in no intersection.

        Args:
            pred_label: Predicted labels, shape (H, W).
            label: True labels, shape (H, W).
            num_classes: Number of classes.
            ignore_index: True label of the pixels that do not count; it may be that of a class.

        Returns:
            Areas of intersection, union, prediction and truth, in pixels: float64 on the CPU, shape (num_classes,).
        """
        # Values -1 and `num_classes` stand for all that are no class, `num_classes` + 1 for ignored ones.
        width, height = num_classes + 2, num_classes + 3
        rows = label.to(torch.int32, copy=True).clamp_(-1, num_classes)
        rows.masked_fill_(label == ignore_index, num_classes + 1)
        columns = pred_label.to(torch.int32, copy=True).clamp_(-1, num_classes)
        pairs = rows.mul_(width).add_(columns).add_(width + 1)  # 1 more for either, so that -1 is at 0
        table = torch.bincount(pairs.flatten(), minlength=height * width).view(height, width)[:-1].cpu().double()
        classes = slice(1, num_classes + 1)
        area_intersect = table.diagonal()[classes]
        area_pred_label, area_label = table.sum(0)[classes], table.sum(1)[classes]
        return area_intersect, area_pred_label + area_label - area_intersect, area_pred_label, area_label
