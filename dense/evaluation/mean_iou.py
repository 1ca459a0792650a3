"""The mean IoU, from one count of the pairs of labels instead of three histograms.

Needs mmseg; configs of segmentors import it by name.
"""

import torch
from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric
from torch import Tensor

from dense.evaluation.results import check_results


@METRICS.register_module()
class DenseIoUMetric(IoUMetric):
    """MMSegmentation's ``IoUMetric`` with the same arguments, names and numbers, many times faster on a CPU.

    Areas are added in double precision: a validation set has more pixels than single precision can count (2 ** 24).
    """

    def compute_metrics(self, results: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: Areas of each image, as :meth:`intersect_and_union` made them.

        Returns:
            Name -> value in percent; empty with ``format_only``, which keeps no areas.

        Raises:
            UserError: There are no images.
        """
        if not self.format_only:
            check_results(results, self)
        return super().compute_metrics(results)

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count the pixels of each class in one image.

        A value outside 0 to ``num_classes`` - 1 is an extra class that is not reported: its pixels count in the area of
        the class that the other map has there, and in no intersection.

        Args:
            pred_label: Predicted labels, shape (H, W).
            label: True labels, shape (H, W).
            num_classes: Number of classes.
            ignore_index: True label of the pixels that do not count; it may be that of a class. The memory needed grows
                with it: a row of counts for each value.

        Returns:
            Areas of intersection, union, prediction and truth, in pixels: float64 on the CPU, shape (num_classes,).
        """
        # One row for each value of the truth up to the ignored one, so that its row can be left out; the first and the
        # last row, and the first and the last column, hold all values beyond. 32 bits halve the memory traffic.
        low, high = min(-1, ignore_index - 1), max(num_classes, ignore_index + 1)
        height, width = high - low + 1, num_classes + 2
        rows = label.to(torch.int32, copy=True).clamp_(low, high)
        columns = pred_label.to(torch.int32, copy=True).clamp_(-1, num_classes)
        pairs = rows.mul_(width).add_(columns).add_(1 - low * width)
        table = torch.bincount(pairs.flatten(), minlength=height * width).view(height, width).cpu()
        table[ignore_index - low] = 0
        rows_of_classes, columns_of_classes = slice(-low, num_classes - low), slice(1, num_classes + 1)
        area_intersect = table[rows_of_classes, columns_of_classes].diagonal().double()
        area_pred_label = table.sum(0)[columns_of_classes].double()
        area_label = table.sum(1)[rows_of_classes].double()
        return area_intersect, area_pred_label + area_label - area_intersect, area_pred_label, area_label
