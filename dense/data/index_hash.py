"""Hashes of the lists of samples that a run reads, to tell two copies of a data set apart."""

import hashlib
import os
from pathlib import Path
from typing import Any

from dense.data.wrapper import innermost

BLOCK = 1 << 20
LISTED = ('img_path', 'seg_map_path')


def data_index(dataset: Any) -> list[dict[str, Any]]:
    """Describe the data sets inside wrappers.

    Args:
        dataset: Built.

    Returns:
        For each its type, its number of samples, and a hash: of the annotation file, or, without one, of the names of
        the files and their labels, wherever they lie.
    """
    return [_describe(part) for part in innermost(dataset)]


def _describe(dataset: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(type=type(dataset).__name__, samples=len(dataset))
    source = getattr(dataset, 'ann_file', None)
    if source and os.path.isfile(source):
        return dict(found, index=str(source), sha256=sha256_of(source))
    if hasattr(dataset, 'get_data_info'):
        return dict(found, index='names of the files', sha256=_names_hash(dataset))
    return found


def _names_hash(dataset: Any) -> str:
    root = str(getattr(dataset, 'data_root', '') or '')
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        names = [os.path.relpath(info[key], root or '.') for key in LISTED if isinstance(info.get(key), str)]
        digest.update(repr((names, info.get('gt_label'))).encode())
    return digest.hexdigest()


def sha256_of(path: str | Path) -> str:
    """Return the hash of a file's content; a gigabyte takes about a second.

    Args:
        path: The file.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
