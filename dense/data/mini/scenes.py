"""Draws the mini data set: backgrounds, objects and the scenes made of them.

Everything is drawn with NumPy from a random generator that the caller passes in, so a scene depends on nothing else.
Images are float arrays of RGB values in 0..1 until they are written.

Legend: H, W are the height and width of an image in pixels; S is the side of a square object patch in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.data.mini import things
from dense.data.mini.things import Float, Patch, colour

Mask = NDArray[np.bool_]

_PATCH_SIDE = 128


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Float:
    """Draw noise in 0..1, of shape (H, W), that varies over about ``cell`` pixels."""
    rows, cols = max(2, round(height / cell) + 1), max(2, round(width / cell) + 1)
    grid = rng.random((rows, cols), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _meadow(rng: np.random.Generator, height: int, width: int) -> Float:
    blades = cv2.blur(rng.random((height, width), dtype=np.float32), (1, 7))
    shade = 0.55 + 0.9 * (blades - 0.5) + 0.35 * smooth_noise(rng, height, width, 30)
    return shade[..., None] * colour(rng, 0.29, 0.55, 0.68, 0.02)


def _water(rng: np.random.Generator, height: int, width: int) -> Float:
    rows = np.arange(height, dtype=np.float32)[:, None]
    bend = 10 * smooth_noise(rng, height, width, 25)
    ripple = np.sin((rows + bend) * rng.uniform(0.7, 1.0)) ** 3
    shade = 0.85 + 0.14 * ripple + 0.15 * smooth_noise(rng, height, width, 40)
    return shade[..., None] * colour(rng, 0.56, 0.5, 0.75, 0.02)


def _sand(rng: np.random.Generator, height: int, width: int) -> Float:
    grain = rng.normal(0, 0.06, (height, width)).astype(np.float32)
    shade = 0.85 + grain + 0.2 * smooth_noise(rng, height, width, 45)
    return shade[..., None] * colour(rng, 0.12, 0.32, 0.88, 0.015)


def _paving(rng: np.random.Generator, height: int, width: int) -> Float:
    stone_h, stone_w = rng.integers(9, 13), rng.integers(18, 25)
    rows, cols = np.mgrid[:height, :width]
    course = rows // stone_h
    shifted = cols + (course % 2) * (stone_w // 2)
    tone = rng.uniform(0.75, 1.1, (height // stone_h + 1, (width + stone_w) // stone_w + 1)).astype(np.float32)
    shade = tone[course, shifted // stone_w]
    joint = (rows % stone_h < 2) | (shifted % stone_w < 2)
    shade = np.where(joint, np.float32(0.5), shade) + rng.normal(0, 0.03, (height, width)).astype(np.float32)
    return shade[..., None] * colour(rng, 0.02, 0.22, 0.68, 0.02)


@dataclass(frozen=True)
class Stuff:
    """A background class: its name, its colour in pictures of labels (RGB, 0..255) and how its texture is drawn."""

    name: str
    palette: tuple[int, int, int]
    draw: Callable[[np.random.Generator, int, int], Float]


@dataclass(frozen=True)
class Thing:
    """An object class: its name, its colour in pictures of labels (RGB, 0..255) and how a patch of it is drawn."""

    name: str
    palette: tuple[int, int, int]
    draw: Callable[[np.random.Generator, int], Patch]


THINGS = (
    Thing('ball', (230, 60, 50), things.draw_ball),
    Thing('starfish', (250, 150, 30), things.draw_starfish),
    Thing('leaf', (40, 150, 60), things.draw_leaf),
    Thing('kite', (130, 60, 200), things.draw_kite),
    Thing('fish', (40, 90, 210), things.draw_fish),
    Thing('mushroom', (225, 60, 150), things.draw_mushroom),
    Thing('cookie', (130, 80, 40), things.draw_cookie),
    Thing('book', (240, 200, 0), things.draw_book),
)
STUFF = (
    Stuff('meadow', (140, 200, 110), _meadow),
    Stuff('water', (130, 190, 235), _water),
    Stuff('sand', (235, 215, 160), _sand),
    Stuff('paving', (170, 150, 150), _paving),
)


@dataclass(frozen=True)
class Instance:
    """One object of a scene.

    Attributes:
        thing: Index into :data:`THINGS`.
        mask: Visible pixels, bool of shape (H, W).
        crowd: True for a heap whose objects are not told apart.
    """

    thing: int
    mask: Mask
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: RGB, uint8 of shape (H, W, 3).
        background: Index into :data:`STUFF`, or -1 on the borders between two kinds, int8 of shape (H, W).
        instances: The objects from back to front; their masks do not overlap.
    """

    image: NDArray[np.uint8]
    background: NDArray[np.int8]
    instances: tuple[Instance, ...]


def draw_background(rng: np.random.Generator, height: int, width: int) -> tuple[Float, NDArray[np.int8]]:
    """Draw one to three areas of different stuff.

    Returns:
        The image, (H, W, 3) in 0..1, and the index into :data:`STUFF` of each pixel, int8 of shape (H, W), with -1 on
        the borders between two areas, where one kind blends into the other.
    """
    kinds = rng.permutation(len(STUFF))[: rng.integers(1, 4)]
    fields = np.stack([smooth_noise(rng, height, width, 70) for _ in kinds])
    winner = fields.argmax(axis=0)
    areas = np.stack([(winner == i).astype(np.float32) for i in range(len(kinds))])
    soft = np.stack([cv2.GaussianBlur(area, (5, 5), 1.2) for area in areas])
    image = np.zeros((height, width, 3), dtype=np.float32)
    for kind, weight in zip(kinds, soft, strict=True):
        image += weight[..., None] * STUFF[kind].draw(rng, height, width)
    index = kinds[winner].astype(np.int8)
    index[soft.max(axis=0) < 0.75] = -1
    return image, index


def paste(image: Float, patch: Patch, centre: tuple[float, float], size: float, angle: float, squeeze: float) -> Mask:
    """Paste a patch into an image, in place.

    Args:
        image: (H, W, 3), changed in place.
        patch: What to paste.
        centre: Its middle (x, y) in pixels.
        size: The side of the patch in the image in pixels.
        angle: Its rotation in radians.
        squeeze: The remaining share of its width, in 0..1: a view from the side.

    Returns:
        The pixels of the image that show the object, bool of shape (H, W).
    """
    height, width = image.shape[:2]
    scale = size / patch.alpha.shape[0]
    cos, sin, half = np.cos(angle) * scale, np.sin(angle) * scale, patch.alpha.shape[0] / 2
    linear = np.array([[cos * squeeze, -sin], [sin * squeeze, cos]])
    shift = np.array(centre) - linear @ np.array([half, half])
    matrix = np.column_stack([linear, shift])
    # A blur that matches the reduction prevents aliasing in the texture.
    blur = max(0.1, 0.45 / scale)
    rgb = cv2.GaussianBlur(patch.rgb, (0, 0), blur)
    rgb = cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(cv2.GaussianBlur(patch.alpha, (0, 0), blur), matrix, (width, height), flags=cv2.INTER_LINEAR)
    shadow = cv2.GaussianBlur(np.roll(alpha, (2, 2), axis=(0, 1)), (0, 0), 1.5)
    image *= 1 - 0.35 * (shadow * (1 - alpha))[..., None]
    image += alpha[..., None] * (rgb - image)
    return alpha > 0.5


def _place(rng: np.random.Generator, image: Float, masks: list[Mask], thing: int, size: float) -> bool:
    """Paste one object where it leaves the earlier ones at least half visible; False if no place was found."""
    height, width = image.shape[:2]
    patch = THINGS[thing].draw(rng, _PATCH_SIDE)
    for _ in range(12):
        trial = image.copy()
        centre = (rng.uniform(0.06, 0.94) * width, rng.uniform(0.06, 0.94) * height)
        mask = paste(trial, patch, centre, size, rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0))
        if mask.sum() < 0.35 * size * size * 0.5:
            continue
        left = [(old & ~mask).sum() / max(1, old.sum()) for old in masks]
        if all(share > 0.6 for share in left):
            image[:] = trial
            for old in masks:
                old &= ~mask
            masks.append(mask)
            return True
    return False


def _heap(rng: np.random.Generator, image: Float) -> Instance:
    """Paste a heap of small objects of one class and return it as one crowd instance."""
    height, width = image.shape[:2]
    thing = int(rng.integers(len(THINGS)))
    middle = np.array([rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height])
    whole = np.zeros((height, width), dtype=bool)
    for _ in range(rng.integers(8, 13)):
        x, y = middle + rng.normal(0, 13, 2)
        patch = THINGS[thing].draw(rng, _PATCH_SIDE)
        whole |= paste(image, patch, (x, y), rng.uniform(14, 20), rng.uniform(0, 2 * np.pi), 1.0)
    return Instance(thing, whole, crowd=True)


def _light(rng: np.random.Generator, image: Float) -> NDArray[np.uint8]:
    """Light a scene unevenly, add the camera's noise and turn it into 8 bits."""
    height, width = image.shape[:2]
    light = rng.uniform(0.85, 1.1) + 0.3 * (smooth_noise(rng, height, width, 90) - 0.5)
    noise = rng.normal(0, rng.uniform(0.005, 0.025), image.shape).astype(np.float32)
    return (np.clip(image * light[..., None] + noise, 0, 1) * 255).round().astype(np.uint8)


def draw_scene(rng: np.random.Generator, height: int, width: int, num_objects: int, heap: bool = False) -> Scene:
    """Draw a scene.

    Args:
        rng: The only source of randomness.
        height: In pixels.
        width: In pixels.
        num_objects: How many objects to place; fewer if the scene has no room.
        heap: Whether the scene also has a heap of small objects, which becomes a crowd instance.
    """
    image, background = draw_background(rng, height, width)
    crowd = _heap(rng, image) if heap else None
    masks = [crowd.mask] if crowd else []
    kinds = [crowd.thing] if crowd else []
    for _ in range(num_objects):
        thing = int(rng.integers(len(THINGS)))
        size = 28 * (80 / 28) ** rng.random()
        if _place(rng, image, masks, thing, size):
            kinds.append(thing)
    instances = tuple(
        Instance(kind, mask, crowd=crowd is not None and i == 0)
        for i, (kind, mask) in enumerate(zip(kinds, masks, strict=True))
    )
    return Scene(_light(rng, image), background, instances)


def draw_crop(rng: np.random.Generator, thing: int, side: int) -> NDArray[np.uint8]:
    """Draw one object that fills most of a square picture: RGB, uint8 of shape (side, side, 3)."""
    image, _ = draw_background(rng, side, side)
    for _ in range(rng.integers(0, 2)):
        other = THINGS[rng.integers(len(THINGS))].draw(rng, _PATCH_SIDE)
        corner = rng.choice([0.0, 1.0], 2) * side
        paste(image, other, (corner[0], corner[1]), 0.6 * side, rng.uniform(0, 2 * np.pi), 1.0)
    centre = side * rng.uniform(0.4, 0.6, 2)
    patch = THINGS[thing].draw(rng, _PATCH_SIDE)
    size = side * rng.uniform(0.5, 1.0)
    paste(image, patch, (centre[0], centre[1]), size, rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0))
    return _light(rng, image)
