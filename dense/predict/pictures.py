"""Reads pictures of any kind as the network saw them in training: 8 bits, three channels, upright."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.errors import UserError

MOST_PIXELS = 1 << 27


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture.

    16 bits become 8, gray becomes colour, transparency is left out, and the camera's orientation is applied, as in
    training.

    Args:
        path: Any file that OpenCV reads.

    Returns:
        RGB, (H, W, 3).

    Raises:
        UserError: It is missing, empty, too large or not a picture.
    """
    remedy = 'give files that OpenCV reads, such as .jpg and .png'
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}', remedy) from error
    if not len(data):
        raise UserError(f'{path}: the file is empty', remedy)
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # a header that promises more pixels than OpenCV takes
        raise UserError(f'{path}: {str(error).strip()}', remedy) from error
    if picture is None:
        raise UserError(f'{path}: not a picture, or a damaged one', remedy)
    if picture.shape[0] * picture.shape[1] > MOST_PIXELS:
        raise UserError(f'{path}: {picture.shape[1]} x {picture.shape[0]} pixels are too many', 'make it smaller')
    return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)
