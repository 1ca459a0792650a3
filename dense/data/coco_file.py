"""Reads COCO annotation files through the checks of :mod:`dense.data.annotations`. Needs mmdet."""

import json
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO

from dense.console.output import notice
from dense.data.annotations import check_annotations
from dense.errors import UserError


class CheckedCoco(COCO):
    """MMDetection's index of an annotation file, whose content is checked and repaired first.

    Args:
        annotation_file: The file.
        as_truth: For a metric: boxes stay as they are in the file, and repairs are not announced.

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(self, annotation_file: str | Path | None = None, *, as_truth: bool = False) -> None:
        super().__init__()
        if annotation_file is None:
            return
        self.dataset, repairs = check_annotations(read_json(annotation_file), annotation_file, as_truth=as_truth)
        for line in () if as_truth else repairs:
            notice(line)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}', 'repair the file or export it again') from error


# MMDetection's own place for another reader. Data sets with a reader of their own (LVIS, panoptic) keep theirs.
CocoDataset.COCOAPI = CheckedCoco
