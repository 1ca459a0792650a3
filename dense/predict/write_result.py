"""What ``infer.py`` writes for a picture: numbers as text or labels, and the picture with the result drawn on it."""

import json
from pathlib import Path

import cv2
import numpy as np

from dense.predict.exported import Arrays, ExportedModel


def write_result(model: ExportedModel, picture: np.ndarray, stem: Path, least_score: float) -> str:
    """Run a model on a picture and write what it finds.

    Args:
        model: A detector or a segmentor.
        picture: BGR, uint8, ``(H, W, 3)``; drawn on.
        stem: Path of the results, without suffix.
        least_score: Of an object.

    Returns:
        A line that says what was found.
    """
    found = model(picture)
    if model.about['task'] != 'instances':
        return _write_labels(model, picture, found['labels'], stem)
    kept = found['scores'] >= least_score
    return _write_objects(model, picture, {name: values[kept] for name, values in found.items()}, stem)


def _write_objects(model: ExportedModel, picture: np.ndarray, found: Arrays, stem: Path) -> str:
    objects = []
    for i, (box, score, label) in enumerate(zip(found['boxes'], found['scores'], found['labels'], strict=True)):
        name = _name(model, int(label))
        objects.append(dict(box=[round(float(v), 2) for v in box], score=round(float(score), 4), label=name))
        color = _color(model, int(label))
        if 'masks' in found:
            _tint(picture, found['masks'][i], color)
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(picture, (x1, y1), (x2, y2), color, 2)
        cv2.putText(picture, f'{name} {score:.2f}', (x1, max(y1 - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color)
    Path(f'{stem}.json').write_text(json.dumps(objects, indent=1) + '\n')
    cv2.imwrite(f'{stem}_result.jpg', picture)
    return f'{len(objects)} objects'


def _write_labels(model: ExportedModel, picture: np.ndarray, labels: np.ndarray, stem: Path) -> str:
    cv2.imwrite(f'{stem}.png', labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
    present = [int(label) for label in np.unique(labels)]
    for label in present:
        _tint(picture, labels == label, _color(model, label))
    cv2.imwrite(f'{stem}_result.jpg', picture)
    return ', '.join(_name(model, label) for label in present)


def _tint(picture: np.ndarray, where: np.ndarray, color: tuple[int, int, int]) -> None:
    picture[where] = picture[where] // 2 + np.array(color, np.uint8) // 2


def _name(model: ExportedModel, label: int) -> str:
    names = model.about['classes']
    return names[label] if label < len(names) else str(label)


def _color(model: ExportedModel, label: int) -> tuple[int, int, int]:
    """BGR."""
    palette = model.about['palette']
    red, green, blue = palette[label] if label < len(palette) else (37 * label % 256, 91 * label % 256, 151)
    return blue, green, red
