"""Your own segmentation data in ADE20K's folder layout."""

from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from dense.data.classes import read_folder_classes
from dense.errors import UserError


@DATASETS.register_module()
class SegFolderDataset(BaseSegDataset):
    """Images and label maps in ADE20K layout, with the class names in ``classes.json``.

    ``data_root`` holds ``images/{training,validation}``, ``annotations/{training,validation}`` with 8-bit PNG files
    of the same names, and ``classes.json`` (see :func:`dense.data.classes.read_folder_classes`). Where the labels
    start at 1, the value 0 means unlabelled and does not count, in training or in the metric.

    Args:
        data_root: Folder of the data set.
        data_prefix: Folders of the images and of the label maps below it: ``img_path`` and ``seg_map_path``.
        pipeline: Transforms of a sample.
        img_suffix: File names of images end with it.
        test_mode: Whether a sample that cannot be loaded is an error instead of being replaced.
        lazy_init: Whether to read the list of files later, by ``full_init``.

    Raises:
        UserError: ``classes.json`` cannot be used, or there is no image.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: dict[str, str],
        pipeline: list[Any],
        *,
        img_suffix: str = '.jpg',
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        classes = read_folder_classes(data_root)
        super().__init__(
            data_root=data_root,
            data_prefix=data_prefix,
            pipeline=pipeline,
            img_suffix=img_suffix,
            metainfo=dict(classes=classes.names, palette=list(classes.palette)),
            reduce_zero_label=classes.first_value == 1,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    @classmethod
    def read_classes(cls, dataset: dict[str, Any]) -> tuple[str, ...]:
        """Return the class names of a data set's config without building it.

        Args:
            dataset: Config of the data set.
        """
        return read_folder_classes(dataset['data_root']).names

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the samples, sorted by file name.

        Raises:
            UserError: There is no image.
        """
        folder = Path(self.data_prefix['img_path'])
        samples = super().load_data_list() if folder.is_dir() else []
        if not samples:
            raise UserError(
                f'there is no file *{self.img_suffix} in {folder}',
                'put the images there, or give the folder with --data-root and the file extension with img_suffix',
            )
        return samples
