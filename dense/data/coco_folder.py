"""Your own detection data in COCO's folder layout."""

from pathlib import Path
from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from dense.data.classes import class_palette, read_coco_classes
from dense.data.coco_file import CheckedCoco


@DATASETS.register_module()
class CocoFolderDataset(CocoDataset):
    """Images and a COCO annotation file, whose categories are the classes.

    The order of the classes is the order of the categories in the file, which must be the same in all files of a data
    set.

    Args:
        data_root: Folder of the data set.
        ann_file: Annotation file below it.
        data_prefix: Folder of the images below it, under the key ``img``.
        pipeline: Transforms of a sample.
        filter_cfg: Images to leave out while training; see ``mmdet.datasets.CocoDataset``.
        test_mode: Keep all images, and raise an error for one that cannot be loaded.
        lazy_init: Read the annotations later, by ``full_init``.

    Raises:
        UserError: The annotation file is missing or names no classes.
    """

    METAINFO: ClassVar[dict[str, Any]] = {}
    COCOAPI = CheckedCoco

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        data_prefix: dict[str, str],
        pipeline: list[Any],
        *,
        filter_cfg: dict[str, Any] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        classes = read_coco_classes(Path(data_root) / ann_file)
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=data_prefix,
            pipeline=pipeline,
            metainfo=dict(classes=classes, palette=class_palette(len(classes))),
            filter_cfg=filter_cfg,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    @classmethod
    def read_classes(cls, dataset: dict[str, Any]) -> tuple[str, ...]:
        """Return the class names of a data set's config without building it.

        Args:
            dataset: Config of the data set.
        """
        return read_coco_classes(Path(dataset['data_root']) / dataset['ann_file'])
