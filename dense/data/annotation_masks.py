"""Checks the masks of a COCO annotation file, polygons and run lengths, and computes areas that are missing."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from dense.data.annotation_boxes import is_number
from dense.data.findings import Findings
from dense.data.rle import decode_lengths

Row = dict[str, Any]
Sizes = NDArray[np.float64]
FAR = 10  # images: a point further outside is a wrong unit, and rasterising it would take all memory
NO_MASK: list[list[float]] = [[]]  # a polygon without points: MMDetection ignores the object when it trains masks
REMEDY = (
    'a "segmentation" is a list of polygons [x, y, x, y, ...] in pixels, or an object with "size" [height, width] of '
    'the image and "counts"'
)


def check_masks(findings: Findings, annotations: list[Row], sizes: Sizes, as_truth: bool) -> None:
    """Check the masks; an annotation without one gets :data:`NO_MASK`.

    Args:
        findings: What is found is added.
        annotations: Changed in place.
        sizes: (N, 2), height and width of each annotation's image.
        as_truth: Run lengths may be of another size, as in pycocotools; polygons of any length are its own affair.
    """
    odd: dict[str, list[int]] = {}
    short: list[int] = []
    for row, (height, width) in zip(annotations, sizes.tolist(), strict=True):
        shape = row.get('segmentation')
        if not shape:
            row['segmentation'] = [list(polygon) for polygon in NO_MASK]
            continue
        if isinstance(shape, list):
            reason, is_short = _polygons(shape, FAR * max(height, width))
            short += [row['id']] if is_short else []
        else:
            reason = _runs(shape, None if as_truth else [int(height), int(width)])
        if reason:
            odd.setdefault(reason, []).append(row['id'])
    for reason, ids in odd.items():
        findings.error(f'masks {reason}', [f'annotation {i}' for i in ids], REMEDY)
    if as_truth:
        return
    findings.notice('masks have a polygon with less than three points: training leaves it out', short)


def _polygons(shape: list[Any], far: float) -> tuple[str, bool]:
    """Return what is wrong with polygons, if anything, and whether one has too few points."""
    is_short = False
    for polygon in shape:
        try:
            # Sums and extremes of whole lists take a tenth of the time of a look at each number.
            if not math.isfinite(sum(polygon)):
                return 'hold NaN or infinity', False
            if polygon and (max(polygon) > far or min(polygon) < -far):
                return f'have points further outside than {FAR} images', False
        except (TypeError, OverflowError):
            return 'have polygons that are not lists of numbers', False
        if not isinstance(polygon, list):
            return 'have polygons that are not lists of numbers', False
        is_short |= len(polygon) < 6 or len(polygon) % 2 == 1
    return '', is_short


def _runs(shape: Any, size: list[int] | None) -> str:
    """Return what is wrong with run lengths, if anything; of any size if None."""
    if not isinstance(shape, dict) or 'counts' not in shape or not _is_size(shape.get('size')):
        return 'are neither polygons nor run lengths'
    if size is not None and shape['size'] != size:
        return 'are not of the size of their image'
    try:
        lengths = decode_lengths(shape['counts'])
    except ValueError:
        return 'have run lengths that cannot be read'
    return '' if int(lengths.sum()) == math.prod(shape['size']) else 'have run lengths that do not fill their image'


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size)


def has_mask(mask: Any) -> bool:
    """Tell whether an annotation that was checked has a mask."""
    return bool(mask) and mask != NO_MASK


def fill_areas(findings: Findings, annotations: list[Row], sizes: Sizes, as_truth: bool) -> None:
    """Compute missing areas from the masks, or from the boxes where there are none.

    Args:
        findings: What is found is added.
        annotations: Changed in place.
        sizes: (N, 2), height and width of each annotation's image.
        as_truth: Say nothing about areas that training does not use.
    """
    lacking = [place for place, row in enumerate(annotations) if not _is_area(row.get('area'))]
    for place in lacking:
        annotations[place]['area'] = _area(annotations[place], *sizes[place].astype(int).tolist())
    findings.notice('annotations have no area: computed', [annotations[place]['id'] for place in lacking])
    if not as_truth:
        flat = [row['id'] for row in annotations if row['area'] <= 0]
        findings.notice('annotations have the area 0 or less: training leaves them out', flat)


def _is_area(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _area(row: Row, height: int, width: int) -> float:
    shape = row['segmentation']
    if isinstance(shape, list):
        shape = [polygon for polygon in shape if len(polygon) >= 6]
    if not shape:
        return float(row['bbox'][2] * row['bbox'][3])
    runs = (
        masks.frPyObjects(shape, height, width)
        if isinstance(shape, list) or isinstance(shape['counts'], list)
        else shape
    )
    return float(masks.area(masks.merge(runs) if isinstance(runs, list) else runs))
