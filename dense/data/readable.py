"""Tells whether an image file can be read, in the way in which a data set reads it, and how large the image is."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dense.data.wrapper import innermost

ORIENTATION = 0x0112  # EXIF
TRANSPOSED = (5, 6, 7, 8)  # orientations that swap height and width
UNEQUAL = 100  # a shorter side of less than a pixel is left when such an image is resized
FAILURES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def why_unusable(dataset: Any, index: int) -> tuple[str, str] | None:
    """Look for the cause of an error in the files of a sample.

    Args:
        dataset: The data set.
        index: The sample that failed.

    Returns:
        The file and what is wrong with it; None if the files are not the cause, or are unknown.
    """
    if not hasattr(dataset, 'get_data_info'):
        return None
    info = dataset.get_data_info(index)
    for key in ('img_path', 'seg_map_path'):
        path = info.get(key)
        if isinstance(path, str) and '://' not in path:
            reason = _reason(path, _reader(dataset, key))
            if reason is not None:
                return path, reason
    return None


def _reason(path: str, read: Callable[[str], bool]) -> str | None:
    if not Path(path).is_file():
        return 'there is no such file'
    if Path(path).stat().st_size == 0:
        return 'the file is empty'
    if not read(path):
        return 'it is not an image, or it is damaged'
    height, width, _ = image_size(path) or (1, 1, False)
    if max(height, width) > UNEQUAL * min(height, width):
        return f'its sides, {width} x {height} pixels, are too unequal to be resized'
    return None


def _reader(dataset: Any, key: str) -> Callable[[str], bool]:
    for part in innermost(dataset):
        for transform in getattr(getattr(part, 'pipeline', None), 'transforms', []):
            # MMCV's loading transforms; of the two, only that of images has a colour type.
            if hasattr(transform, 'imdecode_backend') and hasattr(transform, 'color_type') == (key == 'img_path'):
                return _opencv_reads if transform.imdecode_backend == 'cv2' else _pillow_reads
    return _pillow_reads


def _opencv_reads(path: str) -> bool:
    # `imread` accepts what `imdecode`, which MMCV uses, refuses, such as a truncated JPEG.
    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None
    except cv2.error:
        return False


def _pillow_reads(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except FAILURES:
        return False
    return True


def image_size(path: str) -> tuple[int, int, bool] | None:
    """Return the height and width of an image as it is displayed, and whether its orientation swaps the two.

    Only the file's header is read.

    Args:
        path: The file.

    Returns:
        None if it cannot be read; loading it will say why.
    """
    try:
        # Large images are no attack here, and only the header is read.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                is_swapped = image.getexif().get(ORIENTATION) in TRANSPOSED
                width, height = image.size
    except FAILURES:
        return None
    return (width, height, True) if is_swapped else (height, width, False)
