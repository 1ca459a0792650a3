"""The class names of your own data, read from the data itself.

Two layouts name them: a COCO annotation file in its categories, a folder in ADE20K layout in its ``classes.json``.
This module needs neither mmdet nor mmseg; the data sets in ``coco_folder.py`` and ``seg_folder.py`` call it.
"""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dense.errors import UserError

CLASSES_FILE = 'classes.json'
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClasses:
    """Classes of label maps.

    Attributes:
        names: Class names in the order of their label values.
        first_value: Label value of the first class: 1 where 0 means unlabelled (as in ADE20K), or 0.
        palette: RGB colour of each class in pictures, 0..255.
    """

    names: tuple[str, ...]
    first_value: int
    palette: tuple[Color, ...]


def read_folder_classes(data_root: str | Path) -> LabelClasses:
    """Read ``classes.json`` of a folder in ADE20K layout.

    Two forms are understood: ``["cat", "dog"]``, whose label values are 1, 2, ..., and
    ``[{"index": 1, "name": "cat"}, {"index": 2, "name": "dog"}]``, whose values run from 0 or from 1 without a gap.
    An object may have a ``"color"``, ``[red, green, blue]`` in 0..255, for pictures.

    Args:
        data_root: Folder that holds the file.

    Raises:
        UserError: There is no such file, it has another form, the values have a gap or a name occurs twice.
    """
    path = Path(data_root) / CLASSES_FILE
    entries = _read_json(path, 'write the class names into it, for example ["cat", "dog"] for the label values 1 and 2')
    if isinstance(entries, list) and entries and all(isinstance(entry, str) for entry in entries):
        return LabelClasses(_distinct(entries, path), first_value=1, palette=tuple(class_palette(len(entries))))
    try:
        rows = sorted(((int(e['index']), str(e['name']), _color(e)) for e in entries), key=lambda row: row[:2])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f'{path} is neither a list of names nor a list of objects with "index", "name" and perhaps "color"',
            'write for example [{"index": 1, "name": "cat"}, {"index": 2, "name": "dog"}]',
        ) from error
    values = [value for value, *_ in rows]
    first = values[0] if values else 0
    if not values or first not in (0, 1) or values != list(range(first, first + len(values))):
        raise UserError(
            f'the label values in {path} are {values}; they must run from 0 or from 1 without a gap',
            'number the classes 1, 2, 3, ... and let 0 mean unlabelled',
        )
    palette = [color or default for (*_, color), default in zip(rows, class_palette(len(rows)), strict=True)]
    return LabelClasses(_distinct([name for _, name, _ in rows], path), first_value=first, palette=tuple(palette))


def read_coco_classes(ann_file: str | Path) -> tuple[str, ...]:
    """Read the category names of a COCO annotation file, in the order in which the file lists them.

    Args:
        ann_file: JSON file with the key ``categories``.

    Raises:
        UserError: There is no such file, it has no categories or a name occurs twice.
    """
    path = Path(ann_file)
    content = _read_json(path, 'name the folder that holds it with --data-root')
    try:
        names = [str(category['name']) for category in content['categories']]
    except (TypeError, KeyError) as error:
        raise UserError(
            f'{path} has no list "categories" with a "name" each', 'export the annotation in COCO format'
        ) from error
    if not names:
        raise UserError(f'the list "categories" of {path} is empty', 'export the annotation with its categories')
    return _distinct(names, path)


def _color(entry: dict[str, Any]) -> Color | None:
    if 'color' not in entry:
        return None
    red, green, blue = (int(value) for value in entry['color'])
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f'color {entry["color"]}')
    return red, green, blue


def class_palette(num_classes: int) -> list[Color]:
    """Return one RGB colour per class, neighbours far apart in hue (steps of the golden ratio)."""
    colors = (colorsys.hsv_to_rgb((0.618034 * i) % 1, 0.65, 0.95 - 0.2 * (i % 3)) for i in range(num_classes))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors]


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UserError(f'there is no file {path}', remedy) from error
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}', 'repair the file or write it again') from error


def _distinct(names: list[str], path: Path) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f'{path} names {", ".join(twice)} more than once', 'give each class a different name')
    return tuple(names)
