"""Writes the mini data set: generated scenes with two views of the same images, for detectors and segmenters.

Layout under one root::

    images/{training,validation}/*.jpg        most in colour, some grayscale files
    annotations/{training,validation}/*.png   uint8 label maps as in ADE20K: 0 = unlabelled, 1..12 = the classes
    instances_{training,validation}.json      COCO instances: polygons, RLE where a polygon does not suffice, crowds
    classes.json                              label values, names, kinds (thing or stuff) and colours of the classes

The label maps count the things first, so that a thing's value equals its COCO category id, and then the stuff.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dense.data.mini.scenes import STUFF, THINGS, Instance, Scene, draw_crop, draw_scene
from dense.data.rle import run_lengths
from dense.errors import UserError

SPLITS = ('training', 'validation')
THING_CLASSES = tuple(thing.name for thing in THINGS)
CLASSES = THING_CLASSES + tuple(stuff.name for stuff in STUFF)
PALETTE = tuple(thing.palette for thing in THINGS) + tuple(stuff.palette for stuff in STUFF)

_JPEG_QUALITY = 92
_GRAY_EVERY = 12  # Every twelfth image is a grayscale file,
_EMPTY_EVERY = 15  # every fifteenth has no object
_HEAP_EVERY = 10  # and every tenth has a heap of small objects, annotated as a crowd.


@dataclass(frozen=True)
class MiniData:
    """Where a written mini data set is and how large it is.

    Attributes:
        root: Its folder.
        num_images: Images per split.
        num_instances: Annotated objects per split, crowds included.
    """

    root: Path
    num_images: dict[str, int]
    num_instances: dict[str, int]


def write_mini(root: str | Path, seed: int = 0, *, num_train: int = 200, num_val: int = 60) -> MiniData:
    """Write the mini data set; the same arguments give the same files, whatever was there before.

    Args:
        root: Folder to write into; created if missing.
        seed: Another seed gives other scenes of the same classes.
        num_train: Images to train on.
        num_val: Images to evaluate on.

    Raises:
        UserError: A number of images is below 1, or the folder cannot be written.
    """
    if min(num_train, num_val) < 1:
        raise UserError(
            f'The mini data set needs at least 1 image per split, got num_train={num_train}, num_val={num_val}.',
            'Ask for at least 1 image to train on and 1 to evaluate on.',
        )
    root = Path(root)
    numbers = dict(zip(SPLITS, (num_train, num_val), strict=True))
    try:
        counts = {split: _write_split(root, split, seed, number) for split, number in numbers.items()}
        _write_json(root / 'classes.json', _class_table())
    except OSError as error:
        raise UserError(
            f'The mini data set cannot be written to {root}: {error}.',
            'Choose a folder that can be written.',
        ) from error
    return MiniData(root, numbers, counts)


def write_crops(root: str | Path, seed: int = 0, *, num_per_class: int = 120, side: int = 64) -> Path:
    """Write pictures of single objects for classification, as ``root/<class>/<number>.jpg``.

    They are drawn separately, not cut out of the scenes, so they contain nothing of the validation images.

    Args:
        root: Folder to write into; created if missing.
        seed: Another seed gives other pictures.
        num_per_class: Pictures of each of the classes in ``THING_CLASSES``.
        side: Height and width of a picture in pixels.

    Returns:
        ``root``.
    """
    root = Path(root)
    for thing, name in enumerate(THING_CLASSES):
        rng = np.random.default_rng([seed, len(SPLITS), thing])
        folder = _emptied(root / name)
        for number in range(num_per_class):
            _write_image(folder / f'{number:05d}.jpg', draw_crop(rng, thing, side), gray=number % _GRAY_EVERY == 0)
    return root


def label_map(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene's labels, uint8 of shape (H, W): 0 = unlabelled, then things, then stuff."""
    labels = np.where(scene.background < 0, 0, scene.background + 1 + len(THINGS)).astype(np.uint8)
    for instance in scene.instances:
        labels[instance.mask] = instance.thing + 1
    return labels


def _draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw scene ``index`` of a split; it does not depend on how many scenes the split has."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = (int(side) for side in rng.integers(128, 193, 2))
    num_objects = 0 if index % _EMPTY_EVERY == 7 else int(rng.integers(2, 7))
    return draw_scene(rng, height, width, num_objects, heap=num_objects > 0 and index % _HEAP_EVERY == 4)


def _write_split(root: Path, split: str, seed: int, number: int) -> int:
    """Write one split and return how many objects it has."""
    images, annotations = _emptied(root / 'images' / split), _emptied(root / 'annotations' / split)
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for index in range(number):
        scene = _draw_scene(seed, split, index)
        name, image_id = f'{index + 1:06d}', index + 1
        height, width = scene.background.shape
        _write_image(images / f'{name}.jpg', scene.image, gray=index % _GRAY_EVERY == 5)
        _write_image(annotations / f'{name}.png', label_map(scene))
        rows.append({'id': image_id, 'file_name': f'{name}.jpg', 'height': height, 'width': width})
        for instance in scene.instances:
            records.append(_annotation(instance, annotation_id=len(records) + 1, image_id=image_id))
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(THING_CLASSES)]
    info = {'description': 'Generated mini data set', 'seed': seed}
    _write_json(
        root / f'instances_{split}.json',
        {'info': info, 'images': rows, 'annotations': records, 'categories': categories},
    )
    return len(records)


def _annotation(instance: Instance, *, annotation_id: int, image_id: int) -> dict[str, Any]:
    """Describe one object in COCO's terms; area and box are those of the written segmentation."""
    height, width = instance.mask.shape
    polygon = None if instance.crowd else _polygon(instance.mask)
    if polygon is None:
        segmentation: Any = {'size': [height, width], 'counts': run_lengths(instance.mask)}
        rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    else:
        segmentation = [polygon]
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': instance.thing + 1,
        'iscrowd': int(instance.crowd),
        'area': int(coco_mask.area(rle)),
        'bbox': [float(value) for value in coco_mask.toBbox(rle)],
        'segmentation': segmentation,
    }


def _polygon(mask: NDArray[np.bool_]) -> list[float] | None:
    """Trace a mask's outline as ``[x1, y1, x2, y2, ...]`` in pixels; None where it has holes or several parts."""
    # Contours run through the centres of pixels; on an enlarged mask these are close to the edges of the pixels.
    zoom = 4
    large = mask.astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) != 1:
        return None
    corners = cv2.approxPolyDP(contours[0], 0.4 * zoom, True).reshape(-1, 2)
    if len(corners) < 3:
        return None
    return [round(float(value), 2) for value in ((corners + 0.5) / zoom).reshape(-1)]


def _class_table() -> list[dict[str, Any]]:
    kinds = ['thing'] * len(THINGS) + ['stuff'] * len(STUFF)
    rows = zip(CLASSES, kinds, PALETTE, strict=True)
    return [
        {'index': value, 'name': name, 'kind': kind, 'color': list(rgb)}
        for value, (name, kind, rgb) in enumerate(rows, start=1)
    ]


def _emptied(folder: Path) -> Path:
    """Make a folder and remove the numbered pictures of an earlier run, which a smaller run would leave behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob('*.jpg'), *folder.glob('*.png')]:
        if old.stem.isdigit():
            old.unlink()
    return folder


def _write_image(path: Path, image: NDArray[np.uint8], gray: bool = False) -> None:
    """Write RGB (H, W, 3) or one channel (H, W); ``gray`` turns colours into one channel."""
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if gray else cv2.COLOR_RGB2BGR), dtype=np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == '.jpg' else []
    done, data = cv2.imencode(path.suffix, image, options)
    assert done, f'OpenCV could not encode {path.name}'
    path.write_bytes(data.tobytes())


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + '\n', encoding='utf-8')
