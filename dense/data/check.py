"""Checks that a config and its data fit together, in seconds and before anything is built."""

import importlib
import json
import mmap
import os
from pathlib import Path

from dense.data.classes import CLASSES_FILE, read_coco_classes, read_folder_classes
from dense.data.run_inputs import DatasetConfig, RunInputs
from dense.errors import UserError

MAX_NAMED = 3


def check_paths(inputs: RunInputs) -> None:
    """Check that the data sets' roots, annotation files and folders exist.

    Args:
        inputs: What the run reads.

    Raises:
        UserError: One of them does not exist.
    """
    for dataset in inputs.datasets:
        place = f'{dataset.split}_dataloader.dataset'
        if dataset.root and not Path(dataset.root).is_dir():
            raise UserError(
                f'data root not found: {dataset.root}', 'give the folder of your copy with --data-root FOLDER'
            )
        if dataset.ann_file is not None and not dataset.ann_file.exists():
            raise UserError(
                f'annotation file not found: {dataset.ann_file}', f'put it there, or correct {place}.ann_file'
            )
        for key, folder in dataset.folders.items():
            if not folder.is_dir():
                raise UserError(
                    f'data folder not found: {folder}', f'put the data there, or correct {place}.data_prefix.{key}'
                )


def read_checked(inputs: RunInputs) -> None:
    """Let data sets in COCO's format read their files through the checks of :mod:`dense.data.annotations`.

    Args:
        inputs: What the run reads.
    """
    if any(hasattr(dataset.kind, 'COCOAPI') for dataset in inputs.datasets):
        importlib.import_module('dense.data.coco_file')  # needs mmdet, which other tasks do without


def fit_classes(inputs: RunInputs) -> str | None:
    """Set the number of classes of every head from your own data; check it where the config names the classes.

    Data sets whose class has ``read_classes`` know their classes from their files. They set ``num_classes`` of the
    heads, unless it was set by hand. For the other data sets the classes are those of ``metainfo`` in the config or of
    the data set's class.

    Args:
        inputs: What the run reads; ``num_classes`` in the configs of its heads is set in place. The first data set
            decides, the others must agree with it.

    Returns:
        A line for the user that names the heads whose number of classes the data changed; None if it changed none.

    Raises:
        UserError: The data sets, or a data set and a head, disagree.
    """
    seen: list[tuple[str, tuple[str, ...]]] = []
    changed: list[str] = []
    for dataset in inputs.datasets:
        if hasattr(dataset.kind, 'read_classes'):
            names = tuple(dataset.kind.read_classes(dataset.config))
            changed += [] if seen else _fill_heads(inputs, len(names))
        else:
            names = _stated_classes(dataset)
            _check_annotation(dataset, names)
        if names:
            seen.append((dataset.split, names))
    for split, names in seen:
        if names != seen[0][1]:
            raise UserError(
                f'the {split} data has the classes {_listed(names)}; the {seen[0][0]} data has {_listed(seen[0][1])}',
                'let both list the same classes in the same order',
            )
        _check_heads(inputs, split, names)
    if not changed:
        return None
    names = seen[0][1]
    return f'{len(names)} classes in the data ({_listed(names)}) replace those of the config: {", ".join(changed)}'


def _fill_heads(inputs: RunInputs, num_classes: int) -> list[str]:
    """Set ``num_classes`` of the heads; return the changes, such as ``model.decode_head.num_classes 150 -> 3``."""
    changed = []
    for head in inputs.heads:
        if head.num_classes != num_classes and not inputs.is_set_by_hand(f'{head.path}.num_classes'):
            changed.append(f'{head.path}.num_classes {head.num_classes} -> {num_classes}')
            head.config['num_classes'] = num_classes
    return changed


def _check_heads(inputs: RunInputs, split: str, names: tuple[str, ...]) -> None:
    for head in inputs.heads:
        if head.num_classes != len(names):
            raise UserError(
                f'{head.path}.num_classes is {head.num_classes}, but the {split} data has {len(names)} classes '
                f'({_listed(names)})',
                f'set {head.path}.num_classes={len(names)}, or list the classes of the model in metainfo.classes',
            )


def _stated_classes(dataset: DatasetConfig) -> tuple[str, ...]:
    for meta in (dataset.config.get('metainfo'), getattr(dataset.kind, 'METAINFO', None)):
        classes = (meta or {}).get('classes') or (meta or {}).get('CLASSES')
        if isinstance(classes, str):
            raise UserError(
                f'metainfo.classes is the text {classes!r}, not a list of names',
                f'a single class needs a comma or brackets: classes=[{classes!r}]',
            )
        if classes:
            return tuple(classes)
    return ()


def _check_annotation(dataset: DatasetConfig, names: tuple[str, ...]) -> None:
    source = dataset.ann_file
    if not names:
        return
    if source is not None and source.suffix == '.json':
        found = coco_categories(source)
        # COCO numbers labels in the order of the file, whatever the order of the names in the config.
        fits = not found or tuple(name for name in found if name in set(names)) == names
    elif source is None and dataset.root and (Path(dataset.root) / CLASSES_FILE).is_file():
        source, found = Path(dataset.root) / CLASSES_FILE, read_folder_classes(dataset.root).names
        fits = len(found) == len(names)
    else:
        return
    if not fits:
        raise UserError(
            f'{source} names {len(found)} classes ({_listed(found)}); the config expects {len(names)} '
            f'({_listed(names)}), in this order',
            'use a config for your own data (named own-...), or set metainfo.classes and num_classes to match',
        )


def _listed(names: tuple[str, ...]) -> str:
    return ', '.join(names[:MAX_NAMED]) + (', ...' if len(names) > MAX_NAMED else '')


def coco_categories(path: Path) -> tuple[str, ...]:
    """Return the category names of a COCO annotation file, in their order, reading only their part of a large file.

    Args:
        path: The file.

    Raises:
        UserError: The file is not a COCO annotation.
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
        # Nested lists (keypoint categories) or an unusual order: read the whole file.
        return read_coco_classes(path)
