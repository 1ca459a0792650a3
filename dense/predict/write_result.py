"""Writes what `dense infer` finds: numbers as text or labels, and the picture with the result drawn on it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dense.data.classes import Color, class_palette
from dense.data.rle import encode
from dense.errors import UserError
from dense.predict.description import Description
from dense.predict.exported import Arrays, ExportedModel
from dense.visualization.draw import Objects, Picture, draw_labels, draw_objects

_QUALITY = 95  # JPEG quality


def result_files(model: ExportedModel, stem: Path) -> tuple[Path, Path]:
    """Return the files that a picture's result is written to: the numbers, and the picture."""
    suffix = '.json' if model.about.task == 'instances' else '.png'
    return Path(f'{stem}{suffix}'), Path(f'{stem}_result.jpg')


def write_result(model: ExportedModel, picture: Picture, stem: Path, least_score: float) -> str:
    """Run a model on a picture and write what it finds.

    Args:
        model: A detector or a segmentor.
        picture: RGB, uint8, ``(H, W, 3)``.
        stem: Path of the results, without suffix.
        least_score: Objects with a lower score are left out.

    Returns:
        A line that says what was found.

    Raises:
        UserError: The file's output does not match its description, or the results cannot be written.
    """
    found = model(picture, least_score=least_score)
    numbers, drawing = result_files(model, stem)
    names, palette = _names(model.about, found['labels']), _palette(model.about, found['labels'])
    try:
        if model.about.task == 'instances':
            rows = _rows(model.about, found, names)
            numbers.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
            objects = Objects(found['boxes'], found['labels'], found.get('masks'), found['scores'])
            drawn = draw_objects(picture, objects, names=names, palette=palette, natural_size=True)
        else:
            Image.fromarray(_label_map(model.about, found['labels'])).save(numbers, format='PNG')
            drawn = draw_labels(picture, found['labels'], palette=palette, natural_size=True)
        Image.fromarray(drawn).save(drawing, format='JPEG', quality=_QUALITY)
    except OSError as error:
        raise UserError(
            f'cannot write {error.filename or drawing}: {error.strerror or error}', 'choose another folder with --out'
        ) from error
    if model.about.task == 'instances':
        return f'{len(found["labels"])} objects'
    return ', '.join(names[label] for label in np.unique(found['labels']))


def _rows(about: Description, found: Arrays, names: list[str]) -> list[dict[str, object]]:
    """Return a dict for each object, with COCO's keys for the mask and, if the training data had one, its number."""
    rows = []
    for i, label in enumerate(found['labels']):
        row: dict[str, object] = dict(box=[round(float(v), 2) for v in found['boxes'][i]])
        row.update(score=round(float(found['scores'][i]), 4), label=names[label])
        if about.numbers:
            row['number'] = about.numbers[label]
        if 'masks' in found:
            row['mask'] = encode(found['masks'][i])
        rows.append(row)
    return rows


def _label_map(about: Description, labels: np.ndarray) -> np.ndarray:
    """Return the numbers that training would read, ``(H, W)``, in 8 bits if they fit."""
    numbers = np.array(about.numbers)[labels] if about.numbers else labels
    return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)


def _names(about: Description, labels: np.ndarray) -> list[str]:
    return list(about.classes) or [str(label) for label in range(_count(labels))]


def _palette(about: Description, labels: np.ndarray) -> list[Color]:
    return list(about.palette) or class_palette(len(about.classes) or _count(labels))


def _count(labels: np.ndarray) -> int:
    return int(labels.max()) + 1 if labels.size else 0
