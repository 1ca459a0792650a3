"""Checks a COCO annotation file before the first step, and repairs what can mean one thing only.

docs/data.md has the table: what is an error, what is left out and counted, what is repaired. The file of COCO's 118,000
photos takes seconds: columns are compared with NumPy, and only odd rows are looked at one by one.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dense.data.annotation_boxes import check_boxes
from dense.data.annotation_masks import check_masks, fill_areas
from dense.data.findings import Findings
from dense.errors import UserError

Row = dict[str, Any]
Ids = NDArray[np.int64]
WHOLE = re.compile(r'\s*[+-]?[0-9]{1,18}\s*', re.ASCII)
MAX_SIDE = 2**20  # pixels; OpenCV reads no larger images
EXPORT = 'export the annotation in COCO format again'


def check_annotations(content: Any, source: str | Path, *, as_truth: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Check the content of an annotation file; repair it in place.

    Args:
        content: What the JSON file holds.
        source: The file, for messages.
        as_truth: For a metric: boxes stay as they are in the file, as in pycocotools.

    Returns:
        The content, and a line for the user about each repair.

    Raises:
        UserError: Something that only its author can repair, with counts and examples of everything found.
    """
    findings = Findings(source)
    images, categories, annotations = (_rows(content, key, source) for key in ('images', 'categories', 'annotations'))
    _check_fields(findings, images, categories, annotations)
    findings.raise_errors()  # the next steps need these fields
    image_ids, images = _distinct(findings, images, 'images')
    category_ids, categories = _distinct(findings, categories, 'categories')
    _check_names(findings, categories)
    annotations, owners = _refer(findings, annotations, image_ids, category_ids)
    findings.raise_errors()
    annotations, owners = _number(findings, annotations, owners)
    sizes = _sizes(findings, images)
    findings.raise_errors()
    kept = check_boxes(findings, annotations, sizes[owners], [image['file_name'] for image in images], owners, as_truth)
    annotations, owners = [annotations[place] for place in kept], owners[kept]
    _check_crowds(findings, annotations)
    check_masks(findings, annotations, sizes[owners], as_truth)
    findings.raise_errors()
    fill_areas(findings, annotations, sizes[owners], as_truth)
    content.update(images=images, categories=categories, annotations=annotations)
    return content, findings.notices


def _rows(content: Any, key: str, source: str | Path) -> list[Row]:
    rows = content.get(key) if isinstance(content, dict) else None
    if rows is None and key == 'annotations' and isinstance(content, dict):
        return []  # the photos of a test server come without truth
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{source} has no list "{key}" of objects, as COCO files have', EXPORT)
    if not rows and key != 'annotations':
        raise UserError(f'the list "{key}" of {source} is empty', EXPORT)
    return rows


def _check_fields(findings: Findings, images: list[Row], categories: list[Row], annotations: list[Row]) -> None:
    for rows, kind, keys in (
        (images, 'images', ('id', 'file_name', 'width', 'height')),
        (categories, 'categories', ('id', 'name')),
        (annotations, 'annotations', ('image_id', 'category_id', 'bbox')),
    ):
        for key in keys:
            lacking = [_label(row, place) for place, row in enumerate(rows) if key not in row]
            findings.error(f'of {len(rows)} {kind} lack "{key}"', lacking, EXPORT)
    for rows, kind, key in ((images, 'images', 'file_name'), (categories, 'categories', 'name')):
        odd = [_label(row, place) for place, row in enumerate(rows) if key in row and not _is_name(row[key])]
        findings.error(f'{kind} have a "{key}" that is not a text', odd, EXPORT)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != '' and '\0' not in value


def _label(row: Row, place: int) -> str:
    return str(row.get('file_name') or row.get('id', f'number {place + 1}'))


def _whole_number(value: Any) -> int | None:
    """Return a whole number that was written as one, as text, or with a decimal point; None for anything else."""
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def _whole_column(findings: Findings, rows: list[Row], key: str, kind: str) -> Ids:
    """Return a column of whole numbers; those written in another way are converted in the rows."""
    column = [row[key] for row in rows]
    if set(map(type, column)) <= {int}:
        try:
            return np.array(column, dtype=np.int64)
        except OverflowError:
            pass
    numbers = [_whole_number(value) for value in column]
    bad = [_label(row, i) for i, (row, number) in enumerate(zip(rows, numbers, strict=True)) if number is None]
    findings.error(f'of {len(rows)} {kind} have a "{key}" that is not a whole number', bad, EXPORT)
    changed = [i for i, value in enumerate(column) if type(value) is not int and numbers[i] is not None]
    for place in changed:
        rows[place][key] = numbers[place]
    findings.notice(
        f'{kind} write "{key}" as text or with a point: read as numbers', [repr(column[i]) for i in changed]
    )
    return np.array([0 if number is None else number for number in numbers], dtype=np.int64)


def _distinct(findings: Findings, rows: list[Row], kind: str) -> tuple[Ids, list[Row]]:
    """Return the ids of images or categories, and the rows without exact repetitions."""
    ids = _whole_column(findings, rows, 'id', kind)
    findings.raise_errors()
    first = _first_of(ids)
    again = np.flatnonzero(first != np.arange(len(ids)))
    differing = [int(ids[place]) for place in again if rows[place] != rows[first[place]]]
    findings.error(f'{kind} share their "id" with another one', differing, f'give each of the {kind} its own id')
    findings.notice(f'{kind} are listed twice, the same each time: read once', [int(ids[place]) for place in again])
    kept = np.delete(np.arange(len(ids)), again)
    return ids[kept], [rows[place] for place in kept]


def _first_of(ids: Ids) -> NDArray[np.intp]:
    """Return for each id the place where it occurs first."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _check_names(findings: Findings, categories: list[Row]) -> None:
    names = [category['name'] for category in categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    findings.error('category names stand for two categories each', twice, 'give each category its own name')


def _refer(
    findings: Findings, annotations: list[Row], image_ids: Ids, category_ids: Ids
) -> tuple[list[Row], NDArray[np.intp]]:
    """Return the annotations whose image and category exist, and the place of each one's image."""
    fits = np.ones(len(annotations), dtype=bool)
    owners = np.zeros(len(annotations), dtype=np.int64)
    for key, known, kind in (('image_id', image_ids, 'an image'), ('category_id', category_ids, 'a category')):
        wanted = _whole_column(findings, annotations, key, 'annotations')
        order = np.argsort(known, kind='stable')
        place = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        is_known = known[place] == wanted
        unknown = [int(wanted[i]) for i in np.flatnonzero(~is_known)]
        if len(unknown) == len(annotations):
            findings.error(
                f'annotations (all of them) name {kind} that the file does not list',
                unknown,
                f'let "{key}" be the "id" of {kind} in the same file',
            )
        else:
            findings.notice(f'annotations are left out: the file does not list their {kind.split()[1]}', unknown)
        fits &= is_known
        owners = place if key == 'image_id' else owners
    kept = np.flatnonzero(fits)
    return [annotations[place] for place in kept], owners[kept]


def _number(findings: Findings, annotations: list[Row], owners: NDArray[np.intp]) -> tuple[list[Row], NDArray[np.intp]]:
    """Give each annotation its own id; leave out exact repetitions."""
    for row in annotations:
        row.setdefault('id', None)
    with_id = [row for row in annotations if row['id'] is not None]
    known = _whole_column(findings, with_id, 'id', 'annotations')
    findings.raise_errors()
    first = _first_of(known)
    again = np.flatnonzero(first != np.arange(len(known)))
    copies = {id(with_id[place]) for place in again if with_id[place] == with_id[first[place]]}
    renumbered = [with_id[place] for place in again if id(with_id[place]) not in copies]
    # The reference's evaluation takes the id 0 for "matched with nothing".
    renumbered += [with_id[place] for place in np.flatnonzero(known == 0) if place == first[place]]
    unnumbered = [row for row in annotations if row['id'] is None]
    findings.notice(
        'annotations are listed twice, the same each time: read once',
        [row['id'] for row in with_id if id(row) in copies],
    )
    findings.notice(
        'annotations share an id with another one, or have the id 0: numbered anew', [row['id'] for row in renumbered]
    )
    findings.notice('annotations have no id: numbered', [row['image_id'] for row in unnumbered])
    following = max(int(known.max(initial=0)), 0) + 1
    for number, row in enumerate(renumbered + unnumbered, following):
        row['id'] = number
    kept = [place for place, row in enumerate(annotations) if id(row) not in copies]
    return [annotations[place] for place in kept], owners[kept]


def _sizes(findings: Findings, images: list[Row]) -> NDArray[np.float64]:
    """Return heights and widths, (N, 2)."""
    sides = [_whole_column(findings, images, key, 'images') for key in ('height', 'width')]
    sizes = np.stack(sides, axis=1)
    odd = [] if findings.errors else np.flatnonzero(((sizes < 1) | (sizes > MAX_SIDE)).any(axis=1)).tolist()
    findings.error(
        f'of {len(images)} images have a "width" or "height" outside 1 to {MAX_SIDE}',
        [images[i]['file_name'] for i in odd],
        EXPORT,
    )
    return sizes.astype(np.float64)


def _check_crowds(findings: Findings, annotations: list[Row]) -> None:
    lacking = [row for row in annotations if row.get('iscrowd') is None]
    for row in lacking:
        row['iscrowd'] = 0
    findings.notice('annotations have no "iscrowd": taken as 0', [row['id'] for row in lacking])
    odd = [row['id'] for row in annotations if not _is_flag(row['iscrowd'])]
    findings.error('annotations have an "iscrowd" that is neither 0 nor 1', odd, 'write 0, or 1 for a group of objects')


def _is_flag(value: Any) -> bool:
    return isinstance(value, int | float) and value in (0, 1)
