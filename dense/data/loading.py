"""Loads samples and names the file at fault: an unreadable image, a label that the model does not know."""

import copy
from multiprocessing import SimpleQueue
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS

from dense.data.readable import why_unusable
from dense.data.wrapper import DatasetView
from dense.errors import UserError

IGNORED_LABEL = 255
MAX_REDRAWS = 20


@FUNCTIONS.register_module()
def limit_threads(worker_id: int) -> None:
    """Keep a loading process to one thread: the processes together already use the cores."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@DATASETS.register_module()
class CheckedDataset(DatasetView):
    """A data set that names the file when a sample cannot be used.

    In training an unreadable file is reported (:meth:`take_reports`) and replaced by another sample; in testing
    it is an error, because a metric over fewer images would be a different metric.

    Args:
        dataset: The data set's config, or the data set.
        num_classes: Classes of the model; labels must be below. Not checked if None.
        test_mode: Whether the samples are for evaluation.
    """

    def __init__(self, dataset: Any, num_classes: int | None = None, test_mode: bool = False) -> None:
        super().__init__(dataset)
        self.num_classes = num_classes
        self.test_mode = test_mode
        self._reports: SimpleQueue = SimpleQueue()

    @property
    def metainfo(self) -> dict[str, Any]:
        """The data set's metainfo with COCO's category ids: checkpoints store it, and predictions use the ids."""
        ids = getattr(self.dataset, 'cat_ids', None)
        return dict(self.dataset.metainfo, **({} if ids is None else {'category_ids': list(ids)}))

    def __deepcopy__(self, memo: dict[int, Any]) -> 'CheckedDataset':
        # The queue connects this process with its loading processes; a copy has its own.
        return type(self)(copy.deepcopy(self.dataset, memo), self.num_classes, self.test_mode)

    def __getitem__(self, index: int) -> Any:
        for _ in range(MAX_REDRAWS):
            try:
                sample = self.dataset[index]
            except Exception as error:
                found = why_unusable(self.dataset, index)
                if found is None:
                    raise
                path, reason = found
                self._report(path, reason, error)
                index = int(np.random.randint(len(self.dataset)))
                continue
            self._check_labels(sample)
            return sample
        raise UserError(
            f'{MAX_REDRAWS} samples in a row cannot be read, the last of them {path}',
            'check the disk and the files of the data set',
        )

    def take_reports(self) -> list[str]:
        """Return the unreadable files met since the last call, in this process and in the loading processes."""
        paths = []
        while not self._reports.empty():
            paths.append(self._reports.get())
        return paths

    def _report(self, path: str, reason: str, error: Exception) -> None:
        if self.test_mode:
            raise UserError(
                f'cannot read {path}: {reason}',
                'restore the file, or take its image out of the annotation',
            ) from error
        self._reports.put(path)

    def _check_labels(self, sample: Any) -> None:
        truth = sample.get('data_samples') if isinstance(sample, dict) else None
        if self.num_classes is None or truth is None:
            return
        for one in truth if isinstance(truth, list) else [truth]:
            if 'gt_sem_seg' in one:
                check_label_map(one, self.num_classes)
            elif 'gt_instances' in one and 'labels' in one.gt_instances:
                check_labels(one, self.num_classes)


def check_label_map(truth: Any, num_classes: int) -> None:
    """Raise a UserError if a label map holds a value that is neither a class nor ignored.

    Args:
        truth: Data sample whose ``gt_sem_seg.data`` is an integer tensor (1, H, W).
        num_classes: Values 0 ... ``num_classes`` - 1 are classes; 255 is ignored.
    """
    labels = truth.gt_sem_seg.data
    outside = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORED_LABEL)]
    if outside.numel() == 0:
        return
    meta = truth.metainfo
    # With `reduce_zero_label` the file's 0 is ignored and every other value counts from 1.
    shift = 1 if meta.get('reduce_zero_label') else 0
    values = ', '.join(str(value + shift) for value in outside.unique().tolist()[:5])
    raise UserError(
        f'label map {meta.get("seg_map_path") or meta.get("img_path")} holds the value {values}; the model has '
        f'{num_classes} classes, so {shift} to {num_classes - 1 + shift} are allowed, and {IGNORED_LABEL} is ignored',
        'correct the label map, or set num_classes of every head and the class names for more classes',
    )


def check_labels(truth: Any, num_classes: int) -> None:
    """Raise a UserError if an instance's label is not below the number of classes."""
    labels = torch.as_tensor(truth.gt_instances.labels)
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.numel():
        raise UserError(
            f'the annotation of {truth.metainfo.get("img_path")} has the label {int(outside[0])}; '
            f'the model has {num_classes} classes, so 0 to {num_classes - 1} are allowed',
            'set num_classes of every head to the number of classes of the data set',
        )
