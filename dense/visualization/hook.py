"""Saves pictures of input, truth and prediction while a model is tested."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from numpy.typing import NDArray

from dense.data.classes import class_palette
from dense.errors import UserError
from dense.visualization.draw import (
    IGNORED,
    Objects,
    Picture,
    compare_class,
    compare_labels,
    compare_objects,
    contact_sheet,
    save_picture,
)
from dense.visualization.names import picture_names


@HOOKS.register_module()
class PictureHook(Hook):
    """Save one picture per test image, and a sheet of the first ones as ``sheet.png``.

    Works for any model that puts instances or label maps (like mmdet's and mmseg's models) or classes (like our
    classifier) into its samples. A picture is named after its image, with the folder where two would have one name.

    Args:
        out_dir: Folder for the pictures; created if missing.
        max_pictures: Stop drawing after so many images of a process; None draws all.
        sheet_size: Pictures on the sheet.
        min_score: Predicted objects with a lower score are left out.
    """

    def __init__(
        self, out_dir: str, max_pictures: int | None = None, sheet_size: int = 8, min_score: float = 0.5
    ) -> None:
        self.out_dir = Path(out_dir)
        self.max_pictures = max_pictures
        self.sheet_size = sheet_size
        self.min_score = min_score
        self._number = 0
        self._sheet: list[Picture] = []
        self._classes: set[int] = set()
        self._names: dict[str, str] = {}

    def before_test_epoch(self, runner: Any) -> None:
        """Choose the names; every process of a distributed test chooses the same ones."""
        dataset = runner.test_dataloader.dataset
        self._names = picture_names(str(dataset.get_data_info(i)['img_path']) for i in range(len(dataset)))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Draw the images of a batch."""
        for sample in outputs or ():
            if self.max_pictures is not None and self._number >= self.max_pictures:
                return
            picture = compare_sample(sample, runner.test_dataloader.dataset.metainfo, min_score=self.min_score)
            save_picture(picture, self.out_dir / f'{self._names[str(sample.img_path)]}.png')
            self._number += 1
            if len(self._sheet) < self.sheet_size and self._is_worth_a_place(sample):
                self._sheet.append(picture)

    def _is_worth_a_place(self, sample: Any) -> bool:
        if 'pred_label' in sample:  # images in folders come class by class, so take one of each
            is_new = sample.gt_label not in self._classes
            self._classes.add(sample.gt_label)
            return is_new
        return len(getattr(sample, 'gt_instances', [0])) > 0  # images without an object say little

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Write the sheet; each process of a distributed test has its own."""
        if self._sheet:
            suffix = f'-{runner.rank}' if runner.rank else ''
            save_picture(contact_sheet(self._sheet), self.out_dir / f'sheet{suffix}.png')


def compare_sample(sample: Any, metainfo: dict[str, Any], *, min_score: float = 0.5) -> Picture:
    """Draw a tested sample of mmdet, mmseg or our classifier: input, truth, prediction.

    Args:
        sample: A data sample with ``pred_instances`` or ``pred_sem_seg`` and the truth in the image's own size, or
            with ``pred_label``.
        metainfo: That of the data set: ``classes``, and ``palette`` if it has one.
        min_score: Predicted objects with a lower score are left out.

    Raises:
        UserError: The image cannot be read.
    """
    image = cv2.imread(str(sample.img_path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f'cannot read the image {sample.img_path}', 'restore the file, or test without pictures')
    names, picture = metainfo.get('titles') or metainfo['classes'], np.asarray(image, dtype=np.uint8)
    colors = metainfo.get('palette') or class_palette(len(names))
    palette = [(int(red), int(green), int(blue)) for red, green, blue in colors]
    title = Path(sample.img_path).name
    if 'pred_label' in sample:
        score = float(sample.pred_scores.max())
        return compare_class(picture, sample.gt_label, sample.pred_label, score, names=names, title=title)
    if 'pred_sem_seg' in sample:
        truth, prediction = label_maps(sample)
        return compare_labels(picture, truth, prediction, names=names, palette=palette, title=title)
    return compare_objects(
        picture,
        objects_of(sample.gt_instances),
        objects_of(sample.pred_instances),
        names=names,
        palette=palette,
        title=title,
        min_score=min_score,
    )


def objects_of(instances: Any) -> Objects:
    """Turn mmdet's instances, true or predicted, into arrays."""
    masks = instances.get('masks')
    if masks is not None:
        masks = _array(masks) if isinstance(masks, torch.Tensor) else masks.to_ndarray()
        masks = np.asarray(masks, dtype=bool)
    boxes = instances.bboxes
    return Objects(
        boxes=_array(boxes.tensor if hasattr(boxes, 'tensor') else boxes),
        labels=_array(instances.labels),
        masks=masks,
        scores=_array(instances.scores) if 'scores' in instances else None,
    )


def label_maps(sample: Any) -> tuple[NDArray, NDArray]:
    """Return truth and prediction of mmseg's sample, each (H, W); the truth is all 255 where the sample has none."""
    prediction = _array(sample.pred_sem_seg.data)[0]
    truth = _array(sample.gt_sem_seg.data)[0] if 'gt_sem_seg' in sample else np.full_like(prediction, IGNORED)
    return truth, prediction


def _array(tensor: torch.Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()
