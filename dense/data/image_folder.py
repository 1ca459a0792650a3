"""Images in one folder per class, as ImageNet is usually unpacked."""

import json
import os
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS

from dense.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm')
MAX_NAMED = 3
TITLES_FILE = 'classes.json'


def read_class_folders(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the folders below a folder, sorted: the classes 0, 1, and so on.

    Args:
        folder: For example ``data/imagenet/train``. Hidden folders do not count.

    Raises:
        UserError: It does not exist, or holds fewer than two folders.
    """
    path = Path(folder)
    remedy = 'unpack the data as train/<class>/*.jpg and val/<class>/*.jpg, and name their folder with --data-root'
    if not path.is_dir():
        raise UserError(f'data folder not found: {path}', remedy)
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith('.'))
    if len(names) < 2:
        raise UserError(f'{path} holds {len(names)} folders of classes; at least 2 are needed', remedy)
    return tuple(names)


@DATASETS.register_module()
class ImageFolderDataset(BaseDataset):
    """Images below ``data_root``: ``train/<class>/...`` and ``val/<class>/...``, at any depth.

    Where folders have short names, ``classes.json`` may give longer ones for pictures: ``{"n02123045": "tabby cat"}``.

    Args:
        data_root: Folder of the data set.
        data_prefix: The split's folder below it, as ``img_path``.
        transform: Config of a transform in :mod:`dense.classify.transforms`.
        test_mode: Whether the samples are for evaluation.
        lazy_init: Whether to read the list of files later, by ``full_init``.

    Raises:
        UserError: A folder is missing or has no images, or ``classes.json`` cannot be used.
    """

    def __init__(
        self,
        data_root: str,
        data_prefix: dict[str, str],
        transform: dict[str, Any],
        *,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        self.transform_cfg = dict(transform)
        classes = read_class_folders(Path(data_root) / data_prefix['img_path'])
        super().__init__(
            data_root=data_root,
            data_prefix=dict(data_prefix),
            metainfo=dict(classes=classes, titles=_read_titles(Path(data_root) / TITLES_FILE, classes)),
            pipeline=[self.transform_cfg],
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    @classmethod
    def read_classes(cls, dataset: dict[str, Any]) -> tuple[str, ...]:
        """Return the class names of a data set's config without building it.

        Args:
            dataset: Config of the data set.
        """
        return read_class_folders(Path(dataset['data_root']) / dataset['data_prefix']['img_path'])

    def set_size(self, size: int) -> None:
        """Change the side of the images, in pixels."""
        self.transform_cfg['size'] = size
        self.pipeline = Compose([self.transform_cfg])

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images, sorted by class and path.

        Raises:
            UserError: A class has none.
        """
        folder = Path(self.data_prefix['img_path'])
        by_class = {name: _images(folder / name) for name in self.metainfo['classes']}
        empty = [name for name, paths in by_class.items() if not paths]
        if empty:
            raise UserError(
                f'{len(empty)} of {len(by_class)} class folders in {folder} hold no image: '
                f'{", ".join(empty[:MAX_NAMED])}{", ..." if len(empty) > MAX_NAMED else ""}',
                f'put images ({", ".join(suffix[1:] for suffix in SUFFIXES)}) there, or remove these folders',
            )
        return [dict(img_path=path, gt_label=label) for label, paths in enumerate(by_class.values()) for path in paths]


def _read_titles(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    if not path.is_file():
        return classes
    try:
        titles = json.loads(path.read_text(encoding='utf-8'))
        # ImageNet's names are lists of synonyms.
        return tuple(str(titles.get(name, name)).split(',')[0] for name in classes)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a JSON object from folder to name',
            'write for example {"n02123045": "tabby cat"}, or remove it',
        ) from error


def _images(folder: Path) -> list[str]:
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith('.')
    )
