"""Top-1 and top-5 accuracy, exact for any number of images, batches and processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from dense.evaluation.results import check_results


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Share of the images whose true class is among the k with the highest scores, in percent, as ``top1``, ``top5``.

    The rank of the true class is kept for each image; nothing is averaged over batches.

    Args:
        topk: Values of k. One that is not below the number of classes is left out: it would always be 100.
        collect_device: Where the results of several processes are gathered: ``'cpu'`` or ``'gpu'``.
        prefix: Prefix of the names, followed by a slash.
    """

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collect the results of a batch.

        Args:
            data_batch: Not used.
            data_samples: With ``gt_label`` and ``pred_scores`` ``(K,)``.
        """
        for sample in data_samples:
            scores = torch.as_tensor(sample['pred_scores'])
            # Ties count against the prediction: equal scores must not look right. NaN is never above anything.
            rank = int((scores >= scores[sample['gt_label']]).sum()) - 1
            self.results.append((rank if bool(scores.isfinite().all()) else len(scores), len(scores)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Return ``top1`` and so on, in percent.

        Args:
            results: Rank of the true class, 0 is first, and K, for every image.

        Raises:
            UserError: There are no images.
        """
        check_results(results, self)
        ranks = np.array([rank for rank, _ in results])
        num_classes = max(number for _, number in results)
        return {f'top{k}': 100 * float((ranks < k).mean()) for k in self.topk if k < num_classes}
