"""Checks a built data set before the first step: files, sizes of images, objects to train on."""

import os
from dataclasses import dataclass, field
from typing import Any

from dense.console.output import notice
from dense.data.annotation_masks import has_mask
from dense.data.findings import named
from dense.data.readable import image_size
from dense.data.wrapper import innermost
from dense.errors import UserError

MAX_OPENED = 1000  # images whose size is compared with the annotation's; a second, or ten on a slow drive


@dataclass
class _Objects:
    """What training finds in a data set of objects."""

    number: int = 0
    ignored: int = 0
    without_mask: list[str] = field(default_factory=list)

    def add(self, info: dict[str, Any]) -> None:
        for item in info['instances']:
            self.number += 1
            self.ignored += bool(item.get('ignore_flag'))
            if not has_mask(item.get('mask')):
                self.without_mask.append(os.path.basename(str(info.get('img_path'))))


def check_samples(dataset: Any, *, is_training: bool = False) -> None:
    """Check the files that a data set lists, by listing folders, and what it says about its images and objects.

    Args:
        dataset: The data set, or a wrapper that passes on ``get_data_info``.
        is_training: Whether it is trained on, so that it needs objects.

    Raises:
        UserError: Files are missing, sizes are wrong, or there is no object to train on.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    missing: dict[str, list[str]] = {'image': [], 'label map': []}
    listings: dict[str, set[str]] = {}
    sizes: list[tuple[str, int, int]] = []
    objects: _Objects | None = None
    every = max(1, -(-len(dataset) // MAX_OPENED))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for kind, key in (('image', 'img_path'), ('label map', 'seg_map_path')):
            path = info.get(key)
            if isinstance(path, str) and '://' not in path and not _is_listed(path, listings):
                missing[kind].append(path)
        if index % every == 0 and isinstance(info.get('img_path'), str) and 'height' in info and 'width' in info:
            sizes.append((info['img_path'], info['height'], info['width']))
        if 'instances' in info:
            objects = objects or _Objects()
            objects.add(info)
    _check_missing(missing, len(dataset))
    _check_sizes(sizes, len(dataset))
    if is_training:
        _check_objects(dataset, objects)


def _is_listed(path: str, listings: dict[str, set[str]]) -> bool:
    folder, name = os.path.split(path)
    if folder not in listings:
        listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return name in listings[folder]


def _check_missing(missing: dict[str, list[str]], total: int) -> None:
    for kind, paths in missing.items():
        if paths:
            raise UserError(
                f'{len(paths)} of {total} {kind}s that the annotation lists are missing: {named(paths)}',
                'restore the files, or correct data_root and data_prefix of the data set (--data-root FOLDER)',
            )


def _check_sizes(sizes: list[tuple[str, int, int]], total: int) -> None:
    wrong, turned = [], False
    for path, height, width in sizes:
        found = image_size(path)
        if found is not None and found[:2] != (height, width):
            wrong.append(f'{path}, {found[1]} x {found[0]} instead of {width} x {height}')
            turned |= found[2] and found[:2] == (width, height)
    if not wrong:
        return
    looked = f'the {len(sizes)} images' if len(sizes) == total else f'{len(sizes)} images looked at'
    remedy = 'correct "width" and "height" in the annotation: its boxes may belong to other copies of the images'
    if turned:
        remedy = (
            'boxes belong to the image as it is displayed, turned by its EXIF orientation: annotate the turned images, '
            'or remove the orientation from the files'
        )
    raise UserError(
        f'{len(wrong)} of {looked} have another width x height than the annotation says: {named(wrong)}', remedy
    )


def _check_objects(dataset: Any, objects: _Objects | None) -> None:
    if len(dataset) == 0 or (objects is not None and objects.number == objects.ignored):
        crowds = f': all {objects.ignored} are crowds' if objects is not None and objects.ignored else ''
        raise UserError(
            f'the training data holds no object to learn from{crowds}',
            'check the annotation file, the names of the classes, and filter_cfg of the data set',
        )
    if objects is None or not objects.without_mask or not any(_trains_masks(part) for part in innermost(dataset)):
        return
    if len(objects.without_mask) == objects.number:
        raise UserError(
            f'none of the {objects.number} objects of the training data has a mask, which this model needs',
            'export the annotation with its masks ("segmentation"), or train a detector of boxes such as RetinaNet',
        )
    notice(
        f'{len(objects.without_mask)} of {objects.number} objects have no mask and are ignored in training: in '
        f'{named(dict.fromkeys(objects.without_mask))}'
    )


def _trains_masks(dataset: Any) -> bool:
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    return any(getattr(transform, 'with_mask', False) for transform in transforms)
