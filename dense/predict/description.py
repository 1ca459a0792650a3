"""What an exported file says about itself: task, outputs, classes, sizes; checked when it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dense.errors import UserError

METADATA = 'inceptionnext-dense'  # key of the description in the file
# Task -> the outputs that it may have, in the order of the file.
OUTPUTS = {
    'labels': [['labels']],
    'logits': [['logits']],
    'instances': [['boxes', 'scores', 'labels'], ['boxes', 'scores', 'labels', 'masks']],
}
MOST_CLASSES = 1 << 16  # numbers of classes are written with 16 bits
LARGEST_SIDE = 1 << 14
_REMEDY = 'export the model again with `dense export`, or check where the file comes from'


@dataclass(frozen=True)
class Description:
    """The description of a whole detector or segmentor.

    Attributes:
        task: A key of :data:`OUTPUTS`.
        outputs: Names of the file's outputs.
        classes: Names of the classes, empty if the checkpoint did not have them.
        palette: RGB colour of each class, empty likewise.
        numbers: Number of each class in the data that was trained on: COCO's category id, or the value in a label map;
            empty if unknown.
        scale: Width and height that a picture is resized to, or None to keep its size.
        keep_ratio: Whether the picture is resized into ``scale`` instead of to it.
        smallest: Least height and width that the file takes.
    """

    task: str
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    numbers: tuple[int, ...]
    scale: tuple[int, int] | None
    keep_ratio: bool
    smallest: int


def read_description(text: str) -> Description:
    """Read and check a description.

    Args:
        text: JSON.

    Raises:
        UserError: It is not a description, or not that of a whole detector or segmentor.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError('the description in the file is not JSON', _REMEDY) from error
    if not isinstance(content, dict):
        raise UserError('the description in the file is not a table', _REMEDY)
    if content.get('task') == 'features':
        raise UserError('the file gives the maps of a backbone', 'export the whole model, without --backbone')
    try:
        return _checked(content)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        key = error.args[0] if error.args and error.args[0] in _KEYS else 'keys'
        raise UserError(f'the description in the file is damaged: its {key}', _REMEDY) from error


_KEYS = ('task', 'outputs', 'classes', 'palette', 'numbers', 'resize', 'smallest')


def _checked(content: Mapping[str, Any]) -> Description:
    task, outputs = content['task'], content['outputs']
    _need(isinstance(task, str) and task in OUTPUTS, 'task')
    _need(outputs in OUTPUTS[task], 'outputs')
    classes, palette, numbers = (_list(content, key) for key in ('classes', 'palette', 'numbers'))
    _need(all(isinstance(name, str) for name in classes), 'classes')
    _need(
        len(palette) in (0, len(classes)) and all(_are_whole(color, 0, 255, length=3) for color in palette), 'palette'
    )
    _need(not classes or len(numbers) in (0, len(classes)), 'numbers')
    _need(_are_whole(numbers, 0, MOST_CLASSES - 1), 'numbers')
    _need(_are_whole([content['smallest']], 1, LARGEST_SIDE), 'smallest')
    resize = content['resize']
    _need(resize is None or (isinstance(resize, dict) and isinstance(resize.get('keep_ratio'), bool)), 'resize')
    scale = resize['scale'] if resize else None
    _need(scale is None or _are_whole(scale, 1, LARGEST_SIDE, length=2), 'resize')
    return Description(
        task=task,
        outputs=tuple(outputs),
        classes=tuple(_one_line(name) for name in classes),
        palette=tuple((red, green, blue) for red, green, blue in palette),
        numbers=tuple(numbers),
        scale=None if scale is None else (scale[0], scale[1]),
        keep_ratio=bool(resize and resize['keep_ratio']),
        smallest=content['smallest'],
    )


def _need(is_right: bool, key: str) -> None:
    if not is_right:
        raise ValueError(key)


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    values = content.get(key, [])
    _need(isinstance(values, list) and len(values) <= MOST_CLASSES, key)
    return values


def _are_whole(values: Any, least: int, most: int, *, length: int | None = None) -> bool:
    is_list = isinstance(values, list) and length in (None, len(values))
    return is_list and all(type(value) is int and least <= value <= most for value in values)


def _one_line(name: str) -> str:
    """Return a name that is safe to show on a terminal: one line, no control characters."""
    return ''.join(character if character.isprintable() else ' ' for character in name)[:100]
