"""Pictures of what a model sees: input, truth and prediction side by side.

The functions know neither mmdet nor mmseg: they take arrays and return RGB pictures, uint8 of shape (height, width, 3).
:mod:`dense.visualization.hook` feeds them during a test.

Legend: H, W height and width of an image; K objects in it; classes count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

PANEL = 320  # Shorter sides than this many pixels are enlarged, so that names can be read,
PANEL_MAX = 640  # and longer ones than this are reduced.
IGNORED = 255
_GAP = 8
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_IGNORED_COLOR = (60, 60, 60)
_RIGHT, _WRONG = (46, 160, 67), (207, 34, 46)


@dataclass(frozen=True)
class Objects:
    """Objects of one image, true or predicted.

    Attributes:
        boxes: ``(x1, y1, x2, y2)`` in pixels of the image, shape (K, 4).
        labels: Class of each, int of shape (K,).
        masks: Their pixels, bool of shape (K, H, W), or None for boxes only.
        scores: Confidence of each in 0..1, shape (K,), or None for the truth.
    """

    boxes: NDArray
    labels: NDArray
    masks: NDArray | None = None
    scores: NDArray | None = None

    def above(self, min_score: float) -> 'Objects':
        """Return the objects whose score is at least ``min_score``; all of them without scores."""
        return self if self.scores is None else self.select(np.flatnonzero(self.scores >= min_score))

    def largest_first(self) -> 'Objects':
        """Return the objects by decreasing size of their boxes, so that no small one is painted over by a large one."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return self.select(np.argsort(-sides.prod(axis=1), kind='stable'))

    def select(self, chosen: NDArray) -> 'Objects':
        """Return the objects with the given indices, in that order."""
        return Objects(
            self.boxes[chosen],
            self.labels[chosen],
            None if self.masks is None else self.masks[chosen],
            None if self.scores is None else self.scores[chosen],
        )


def compare_objects(
    image: Picture,
    truth: Objects,
    prediction: Objects,
    *,
    names: Sequence[str],
    palette: Sequence[Color],
    title: str = '',
    min_score: float = 0.5,
) -> Picture:
    """Draw input, true objects and predicted objects side by side, with class names and scores.

    Args:
        image: RGB, (H, W, 3).
        truth: True objects.
        prediction: Predicted objects.
        names: Name of each class.
        palette: RGB colour of each class, 0..255.
        title: Heading of the picture, for example the file name.
        min_score: Predictions with a lower score are left out.
    """
    shown = prediction.above(min_score)
    panels = [
        _zoomed(image),
        draw_objects(image, truth, names=names, palette=palette),
        draw_objects(image, shown, names=names, palette=palette),
    ]
    captions = ['input', f'truth: {_count(len(truth.labels))}', f'prediction: {_count(len(shown.labels))}']
    return _page(panels, captions, title, legend=[])


def compare_labels(
    image: Picture,
    truth: NDArray,
    prediction: NDArray,
    *,
    names: Sequence[str],
    palette: Sequence[Color],
    title: str = '',
) -> Picture:
    """Draw input, true and predicted label map side by side, with a legend of the classes that occur.

    Args:
        image: RGB, (H, W, 3).
        truth: Class of each pixel, (H, W); 255 where it does not count.
        prediction: Predicted class of each pixel, (H, W).
        names: Name of each class.
        palette: RGB colour of each class, 0..255.
        title: Heading of the picture, for example the file name.
    """
    panels = [_zoomed(image)] + [draw_labels(image, labels, palette=palette) for labels in (truth, prediction)]
    counted = truth != IGNORED
    right = float((truth == prediction)[counted].mean()) if counted.any() else 1.0
    occurring = np.union1d(np.unique(truth[counted]), np.unique(prediction))
    legend = [(names[label], palette[label]) for label in occurring if label < len(names)]
    if not counted.all():
        legend.append(('does not count', _IGNORED_COLOR))
    return _page(panels, ['input', 'truth', f'prediction: {right:.0%} of pixels right'], title, legend)


def compare_class(
    image: Picture, truth: int, prediction: int, score: float, *, names: Sequence[str], title: str = ''
) -> Picture:
    """Draw an image above its true class and the predicted one, marked green if it is right and red otherwise.

    Args:
        image: RGB, (H, W, 3).
        truth: True class.
        prediction: Predicted class.
        score: Its probability, 0..1.
        names: Name of each class.
        title: Heading of the picture, for example the file name.
    """
    verdict = _RIGHT if truth == prediction else _WRONG
    legend = [(f'truth: {names[truth]}', _RIGHT), (f'prediction: {names[prediction]} {score:.0%}', verdict)]
    return _page([_zoomed(image)], ['input'], title, legend)


def draw_objects(
    image: Picture,
    objects: Objects,
    *,
    names: Sequence[str],
    palette: Sequence[Color],
    opacity: float = 0.5,
    natural_size: bool = False,
) -> Picture:
    """Paint objects over an image: tinted mask, outline (or box) and name, with the score if there is one.

    Args:
        image: RGB, (H, W, 3).
        objects: What to paint; large ones are painted first.
        names: Name of each class.
        palette: RGB colour of each class.
        opacity: Opacity of the tint, 0..1.
        natural_size: Keep the size of the image; lines and names grow with it.

    Returns:
        The image at the size of a panel, or at its own.
    """
    canvas, objects = image.copy() if natural_size else _zoomed(image), objects.largest_first()
    stroke = max(1.0, max(canvas.shape) / PANEL_MAX)
    zoom_x, zoom_y = canvas.shape[1] / image.shape[1], canvas.shape[0] / image.shape[0]
    for i, label in enumerate(objects.labels):
        color = palette[label]
        if objects.masks is not None:
            _tint(canvas, objects.masks[i], color, opacity, stroke)
        else:
            x1, y1, x2, y2 = (round(float(v)) for v in objects.boxes[i] * [zoom_x, zoom_y, zoom_x, zoom_y])
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, round(2 * stroke), cv2.LINE_AA)
    page = Image.fromarray(canvas)
    for i, label in enumerate(objects.labels):
        score = '' if objects.scores is None else f' {objects.scores[i]:.2f}'
        corner = (float(objects.boxes[i][0]) * zoom_x, float(objects.boxes[i][1]) * zoom_y)
        _tag(page, corner, f'{names[label]}{score}', palette[label], stroke)
    return np.array(page)


def draw_labels(
    image: Picture,
    labels: NDArray,
    *,
    palette: Sequence[Color],
    opacity: float = 0.7,
    natural_size: bool = False,
) -> Picture:
    """Paint a label map over an image; pixels that do not count are dark.

    Args:
        image: RGB, (H, W, 3).
        labels: Class of each pixel, (H, W); values without a colour do not count.
        palette: RGB colour of each class.
        opacity: Opacity of the colours, 0..1.
        natural_size: Keep the size of the image.

    Returns:
        The image at the size of a panel, or at its own.
    """
    colors = np.array([*palette, _IGNORED_COLOR], dtype=np.uint8)
    small = colors[np.where(labels < len(palette), labels, len(palette))]
    canvas = image if natural_size else _zoomed(image)
    tint = cv2.resize(small, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(tint, opacity, canvas, 1 - opacity, 0).astype(np.uint8)


def contact_sheet(pictures: Sequence[Picture], *, columns: int = 2, max_width: int = 2400) -> Picture:
    """Arrange pictures in rows on one page, at most ``max_width`` pixels wide.

    Raises:
        ValueError: There is no picture.
    """
    if not pictures:
        raise ValueError('A contact sheet needs at least one picture, got none.\nGive one or more.')
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max(sum(picture.shape[1] for picture in row) for row in rows)
    sheet = np.vstack([_padded(_row(row), width) for row in rows])
    scale = min(1.0, max_width / sheet.shape[1])
    return cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)


def save_picture(picture: Picture, path: str | Path) -> Path:
    """Write a picture as PNG, with the folders that it needs, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format='PNG')
    return path


def _zoomed(image: Picture) -> Picture:
    """Resize an image to the size of a panel; returns a copy."""
    height, width = image.shape[:2]
    zoom = min(max(1.0, PANEL / min(height, width)), PANEL_MAX / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method).astype(np.uint8).copy()


def _tint(canvas: Picture, mask: NDArray, color: Color, opacity: float, stroke: float) -> None:
    """Tint the pixels of a mask, (H, W), and draw its outline on a canvas of any size, in place."""
    soft = cv2.resize(mask.astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    inside = soft > 0.5
    canvas[inside] = (canvas[inside] * (1 - opacity) + np.array(color) * opacity).astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, round(2 * stroke), cv2.LINE_AA)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _tag(page: Image.Image, corner: tuple[float, float], text: str, color: Color, stroke: float) -> None:
    """Write a name on a plate of the class's colour above a corner, moved inside the page if it would leave it."""
    draw, font, margin = ImageDraw.Draw(page), _font(round(13 * stroke)), round(3 * stroke)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin - 1
    x = min(max(0.0, corner[0]), max(0.0, page.width - width))
    y = min(max(0.0, corner[1] - height), max(0.0, page.height - height))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    # White on dark plates, black on light ones (luma of ITU-R BT.601).
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text(
        (x + margin - left, y + margin - 1 - top), text, font=font, fill=(0, 0, 0) if luma > 140 else (255, 255, 255)
    )


def _page(
    panels: Sequence[Picture], captions: Sequence[str], title: str, legend: Sequence[tuple[str, Color]]
) -> Picture:
    """Put captioned panels of equal height in a row under a title and over a legend."""
    line, body = 24, panels[0].shape[0]
    top = (line if title else 0) + line + 4
    width = sum(panel.shape[1] for panel in panels) + _GAP * (len(panels) + 1)
    places = _legend_places([name for name, _ in legend], width)
    bottom = (places[-1][1] + line if places else 0) + _GAP
    page = Image.new('RGB', (width, top + body + bottom), _PAPER)
    draw, x = ImageDraw.Draw(page), _GAP
    if title:
        draw.text((_GAP, 5), title, font=_font(15), fill=_INK)
    for panel, caption in zip(panels, captions, strict=True):
        draw.text((x, top - line + 2), caption, font=_font(14), fill=_INK)
        page.paste(Image.fromarray(panel), (x, top))
        x += panel.shape[1] + _GAP
    for (name, color), (left, down) in zip(legend, places, strict=True):
        y = top + body + down
        draw.rectangle((left, y + 6, left + 14, y + 20), fill=color, outline=_INK)
        draw.text((left + 20, y + 5), name, font=_font(13), fill=_INK)
    return np.array(page)


def _legend_places(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Return where each entry of a legend starts, ``(x, y)`` below the panels, broken into lines of ``width``."""
    places, x, y = [], _GAP, 0
    for name in names:
        step = int(_font(13).getlength(name)) + 38
        if x > _GAP and x + step > width:
            x, y = _GAP, y + 24
        places.append((x, y))
        x += step
    return places


def _row(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    padding = [((0, height - picture.shape[0]), (0, 0), (0, 0)) for picture in pictures]
    padded = [np.pad(picture, pad, constant_values=255) for picture, pad in zip(pictures, padding, strict=True)]
    return np.hstack(padded)


def _padded(row: Picture, width: int) -> Picture:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)


def _count(number: int) -> str:
    return f'{number} object' if number == 1 else f'{number} objects'
