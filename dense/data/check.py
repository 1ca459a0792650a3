"""Whether a config and its data fit, found out in seconds and before anything is built or trained."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dense.data.classes import read_coco_classes, read_folder_classes
from dense.data.config_queries import SPLITS, dataset_class, datasets_of, heads_of
from dense.errors import UserError

MAX_NAMED = 3


def check_paths(cfg: Config, splits: tuple[str, ...] = SPLITS) -> None:
    """Check that the data sets' roots, annotation files and folders exist.

    Args:
        cfg: Config of a run.
        splits: Which data sets to look at.

    Raises:
        UserError: One does not exist.
    """
    for split in splits:
        for dataset in datasets_of(cfg, split):
            root = dataset.get('data_root') or ''
            if root and not Path(root).is_dir():
                raise UserError(f'data root not found: {root}', 'give the folder of your copy with --data-root FOLDER')
            ann_file = dataset.get('ann_file')
            if ann_file and not _below(root, ann_file).exists():
                raise UserError(
                    f'annotation file not found: {_below(root, ann_file)}',
                    f'put it there, or correct {split}_dataloader.dataset.ann_file',
                )
            _check_folders(dataset, root, split)


def _check_folders(dataset: dict[str, Any], root: str, split: str) -> None:
    prefixes = dataset.get('data_prefix') or {}
    for key, prefix in prefixes.items():
        if prefix and not _below(root, prefix).is_dir():
            raise UserError(
                f'data folder not found: {_below(root, prefix)}',
                f'put the data there, or correct {split}_dataloader.dataset.data_prefix.{key}',
            )


def _below(root: str, path: str) -> Path:
    return Path(root) / path


def fit_classes(cfg: Config, splits: tuple[str, ...] = SPLITS) -> None:
    """Give every head the number of classes of one's own data; check it where the config states the classes.

    Data sets whose class has ``read_classes`` say their classes themselves. For the others the classes are those of
    ``metainfo`` in the config or of the data set's class.

    Args:
        cfg: Config of a run; the heads' ``num_classes`` are set in place.
        splits: Which data sets to look at; the first of them fills the heads.

    Raises:
        UserError: The data sets, or a data set and a head, disagree.
    """
    seen: list[tuple[str, tuple[str, ...]]] = []
    for split in splits:
        for dataset in datasets_of(cfg, split):
            kind = dataset_class(dataset, cfg.get('default_scope'))
            if hasattr(kind, 'read_classes'):
                names = tuple(kind.read_classes(dataset))
                if not seen:
                    _fill_heads(cfg, len(names))
            else:
                names = _stated_classes(dataset, kind)
                _check_annotation(dataset, names)
            if names:
                seen.append((split, names))
    for split, names in seen:
        if names != seen[0][1]:
            raise UserError(
                f'the {split} data has the classes {_listed(names)}; the {seen[0][0]} data has {_listed(seen[0][1])}',
                'let both list the same classes in the same order',
            )
        _check_heads(cfg, split, names)


def _fill_heads(cfg: Config, num_classes: int) -> None:
    for _, head in heads_of(cfg.get('model')):
        head['num_classes'] = num_classes


def _check_heads(cfg: Config, split: str, names: tuple[str, ...]) -> None:
    for path, head in heads_of(cfg.get('model')):
        if head['num_classes'] != len(names):
            raise UserError(
                f'{path}.num_classes is {head["num_classes"]}, but the {split} data has {len(names)} classes '
                f'({_listed(names)})',
                f'set {path}.num_classes={len(names)}, or list the classes of the model in metainfo.classes',
            )


def _stated_classes(dataset: dict[str, Any], kind: Any) -> tuple[str, ...]:
    for meta in (dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        classes = (meta or {}).get('classes') or (meta or {}).get('CLASSES')
        if isinstance(classes, str):
            raise UserError(
                f'metainfo.classes is the text {classes!r}, not a list of names',
                f'a single class needs a comma or brackets: classes=[{classes!r}]',
            )
        if classes:
            return tuple(classes)
    return ()


def _check_annotation(dataset: dict[str, Any], names: tuple[str, ...]) -> None:
    root, ann_file = dataset.get('data_root') or '', str(dataset.get('ann_file') or '')
    if not names:
        return
    if ann_file.endswith('.json'):
        source, found = _below(root, ann_file), coco_categories(_below(root, ann_file))
        # COCO numbers labels in the order of the file, whatever the order of the names in the config.
        fits = not found or tuple(name for name in found if name in set(names)) == names
    elif not ann_file and root and (Path(root) / 'classes.json').is_file():
        source, found = Path(root) / 'classes.json', read_folder_classes(root).names
        fits = len(found) == len(names)
    else:
        return
    if not fits:
        raise UserError(
            f'{source} names {len(found)} classes ({_listed(found)}); the config expects {len(names)} '
            f'({_listed(names)}), in this order',
            'use a config for own data (its name ends in own-...), or list the classes in metainfo and num_classes',
        )


def _listed(names: tuple[str, ...]) -> str:
    return ', '.join(names[:MAX_NAMED]) + (', ...' if len(names) > MAX_NAMED else '')


def coco_categories(path: Path) -> tuple[str, ...]:
    """Return the category names of a COCO annotation file, in their order, reading only their part of a large file.

    Args:
        path: The file.

    Raises:
        UserError: The file is no COCO annotation.
    """
    with path.open('rb') as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise UserError(f'{path} is empty', 'export the annotation again')
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            key = content.rfind(b'"categories"')
            start = content.find(b'[', key) if key >= 0 else -1
            end = content.find(b']', start) if start >= 0 else -1
            part = content[start : end + 1] if end >= 0 else b''
    try:
        categories = json.loads(part)
        return tuple(str(category['name']) for category in categories)
    except (ValueError, TypeError, KeyError):
        # Nested lists (keypoint categories) or an unusual order: the whole file tells.
        return read_coco_classes(path)


def check_files(dataset: Any) -> None:
    """Check that the files that a built data set lists exist, by listing folders instead of opening files.

    Args:
        dataset: The data set, or a wrapper that passes on ``get_data_info``.

    Raises:
        UserError: Files are missing; names the first ones and their number.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    missing: dict[str, list[str]] = {'image': [], 'label map': []}
    listings: dict[str, set[str]] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        for kind, key in (('image', 'img_path'), ('label map', 'seg_map_path')):
            path = info.get(key)
            if isinstance(path, str) and '://' not in path and not _is_listed(path, listings):
                missing[kind].append(path)
    for kind, paths in missing.items():
        if paths:
            raise UserError(
                f'{len(paths)} of {len(dataset)} {kind}s that the annotation lists are missing: '
                f'{", ".join(paths[:MAX_NAMED])}{", ..." if len(paths) > MAX_NAMED else ""}',
                'restore the files, or correct data_root and data_prefix of the data set (--data-root FOLDER)',
            )


def _is_listed(path: str, listings: dict[str, set[str]]) -> bool:
    folder, name = os.path.split(path)
    if folder not in listings:
        listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return name in listings[folder]
