"""Checks the boxes of a COCO annotation file: NaN, sizes, and where they lie in their images."""

import contextlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.data.findings import Findings

Row = dict[str, Any]
Boxes = NDArray[np.float64]
TOLERANCE = 1.0  # pixels: COCO's own boxes reach past the border by rounding
REMEDY = 'a "bbox" is [x, y, width, height] in pixels; export the annotation again'


def check_boxes(
    findings: Findings,
    annotations: list[Row],
    sizes: NDArray[np.float64],
    names: Sequence[str],
    owners: NDArray[np.intp],
    as_truth: bool,
) -> NDArray[np.intp]:
    """Check the boxes; clip those that lie partly outside.

    Args:
        findings: What is found is added.
        annotations: Changed in place.
        sizes: (N, 2), height and width of each annotation's image.
        names: File names of the images.
        owners: (N,), place of each annotation's image in ``names``.
        as_truth: Only look for boxes that cannot be read.

    Returns:
        Places of the annotations to keep.
    """
    boxes, readable = _read(annotations)
    label = _Labels(annotations, names, owners)
    findings.error('boxes are not four numbers', label(~readable), REMEDY)
    finite = np.isfinite(boxes).all(axis=1)
    findings.error('boxes hold NaN or infinity', label(readable & ~finite), REMEDY)
    good = readable & finite
    findings.error('boxes have a negative width or height', label(good & (boxes[:, 2:] < 0).any(axis=1)), REMEDY)
    if as_truth or findings.errors:
        return np.arange(len(annotations))
    is_empty = (boxes[:, 2:] == 0).any(axis=1)
    clipped = _clip(boxes, sizes)
    is_outside = ~is_empty & (clipped[:, 2:] <= 0).any(axis=1)
    findings.notice('boxes of width or height 0 are left out', label(is_empty))
    findings.notice('boxes lie outside their images and are left out', label(is_outside))
    beyond = np.abs(clipped - boxes).max(axis=1, initial=0) > TOLERANCE
    _store(annotations, clipped, cut := beyond & ~is_empty & ~is_outside)
    findings.notice('boxes lie partly outside their images and are clipped', label(cut))
    is_thin = ~is_empty & ~is_outside & (np.where(beyond[:, None], clipped, boxes)[:, 2:] < 1).any(axis=1)
    findings.notice('boxes are thinner than a pixel: training leaves them out', label(is_thin))
    return np.flatnonzero(~is_empty & ~is_outside)


class _Labels:
    """Names the annotations that a mask chooses."""

    def __init__(self, annotations: list[Row], names: Sequence[str], owners: NDArray[np.intp]) -> None:
        self.annotations, self.names, self.owners = annotations, names, owners

    def __call__(self, mask: NDArray[np.bool_]) -> list[str]:
        places = np.flatnonzero(mask)
        return [f'annotation {self.annotations[i]["id"]} of {self.names[self.owners[i]]}' for i in places]


def _read(annotations: list[Row]) -> tuple[Boxes, NDArray[np.bool_]]:
    """Return the boxes, (N, 4), and which of them are four numbers; the others are 0."""
    column = [row['bbox'] for row in annotations]
    are_lists = set(map(type, column)) <= {list} and set(map(len, column)) <= {4}
    if are_lists and set(map(type, chain.from_iterable(column))) <= {int, float}:
        with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
            return np.array(column, dtype=np.float64).reshape(-1, 4), np.ones(len(column), dtype=bool)
    readable = np.array([_is_box(box) for box in column], dtype=bool).reshape(-1)
    boxes = np.zeros((len(column), 4))
    for place in np.flatnonzero(readable):
        boxes[place] = column[place]
    return boxes, readable


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)


def is_number(value: Any) -> bool:
    """Tell whether a value from a JSON file is a number that fits into a float."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _clip(boxes: Boxes, sizes: NDArray[np.float64]) -> Boxes:
    """Return boxes (N, 4), x, y, width, height, cut off at the borders of their images; sizes may become negative."""
    sides = sizes[:, ::-1]
    start = boxes[:, :2].clip(min=0)
    end = np.minimum(boxes[:, :2] + boxes[:, 2:], sides)
    return np.concatenate([start, end - start], axis=1)


def _store(annotations: list[Row], boxes: Boxes, mask: NDArray[np.bool_]) -> None:
    for place in np.flatnonzero(mask):
        annotations[place]['bbox'] = boxes[place].tolist()
