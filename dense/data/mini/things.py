"""The eight object classes of the mini data set, each drawn on a square patch.

Like real classes they differ in outline, in texture and in typical colour, and vary within the class.

Legend: a patch has S x S pixels; ``u`` runs to the right and ``v`` down, both from -1 to 1.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Patch:
    """An object on a transparent ground.

    Attributes:
        rgb: Colours in 0..1, float32 of shape (S, S, 3).
        alpha: 1 inside the outline and 0 outside, float32 of shape (S, S).
    """

    rgb: Float
    alpha: Float


def _grid(side: int) -> tuple[Float, Float]:
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    return u, v


def colour(rng: np.random.Generator, hue: float, saturation: float, value: float, spread: float = 0.02) -> Float:
    """Draw an RGB colour, of shape (3,), near a hue, saturation and value in 0..1; ``spread`` is how far hues vary."""
    h = (hue + rng.normal(0, spread)) % 1.0
    s = float(np.clip(saturation + rng.normal(0, 0.07), 0, 1))
    v = float(np.clip(value + rng.normal(0, 0.08), 0.15, 1))
    return np.array(colorsys.hsv_to_rgb(h, s, v), dtype=np.float32)


def _fill(side: int, colour: Float) -> Float:
    return np.broadcast_to(colour, (side, side, 3)).copy()


def _dots(rng: np.random.Generator, u: Float, v: Float, number: int, radius: float, spread: float) -> NDArray[np.bool_]:
    """Scatter discs around the middle: True inside one."""
    found = np.zeros(u.shape, dtype=bool)
    for x, y in rng.uniform(-spread, spread, (number, 2)):
        found |= (u - x) ** 2 + (v - y) ** 2 < (radius * rng.uniform(0.7, 1.3)) ** 2
    return found


def draw_ball(rng: np.random.Generator, side: int) -> Patch:
    """Draw a beach ball: a disc of sectors, every other one white."""
    u, v = _grid(side)
    x, y = rng.uniform(-0.3, 0.3, 2)
    sector = np.floor(np.arctan2(v - y, u - x) / (2 * np.pi) * 6 + rng.random()).astype(int) % 2 == 0
    rgb = _fill(side, colour(rng, 0.0, 0.85, 0.9))
    rgb[sector] = colour(rng, 0.13, 0.1, 0.97)
    radius = np.hypot(u, v)
    rgb *= (1.05 - 0.35 * radius**2)[..., None]
    return Patch(rgb, (radius < 0.95).astype(np.float32))


def draw_starfish(rng: np.random.Generator, side: int) -> Patch:
    """Draw a starfish: five rounded arms, orange with pale dots."""
    u, v = _grid(side)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    arms = np.abs(np.cos(2.5 * angle)) ** rng.uniform(1.3, 2.0)
    outline = 0.36 + 0.6 * arms
    rgb = _fill(side, colour(rng, 0.07, 0.9, 1.0, 0.012))
    rgb *= (0.75 + 0.4 * arms)[..., None]
    rgb[_dots(rng, u, v, 45, 0.045, 0.9)] = colour(rng, 0.12, 0.35, 1.0)
    return Patch(rgb, (radius < outline).astype(np.float32))


def draw_leaf(rng: np.random.Generator, side: int) -> Patch:
    """Draw a leaf: pointed at both ends, with a midrib and slanted veins, in the yellow green of spring."""
    u, v = _grid(side)
    width = rng.uniform(0.42, 0.55)
    outline = width * (1 - u**2) * (1 + 0.3 * u)
    rgb = _fill(side, colour(rng, rng.choice([0.2, 0.225, 0.25]), 0.85, 0.7))
    veins = np.abs(np.sin(9 * (u - 0.8 * np.abs(v)))) < 0.16
    rgb[veins | (np.abs(v) < 0.035)] *= 0.55
    stalk = (np.abs(v) < 0.04) & (u < -0.8)
    return Patch(np.clip(rgb, 0, 1), ((np.abs(v) < outline) | stalk).astype(np.float32))


def draw_kite(rng: np.random.Generator, side: int) -> Patch:
    """Draw a kite: a rhomb of four panels, purple and pale blue."""
    u, v = _grid(side)
    middle = rng.uniform(-0.35, -0.1)
    reach = np.where(v < middle, (v + 0.97) / (middle + 0.97), (0.97 - v) / (0.97 - middle))
    outline = rng.uniform(0.6, 0.75) * reach
    rgb = _fill(side, colour(rng, 0.76, 0.75, 0.8))
    rgb[(u > 0) ^ (v > middle)] = colour(rng, 0.68, 0.3, 0.95)
    rgb[(np.abs(u) < 0.03) | (np.abs(v - middle) < 0.03)] = 0.15
    return Patch(rgb, (np.abs(u) < outline).astype(np.float32))


def draw_fish(rng: np.random.Generator, side: int) -> Patch:
    """Draw a fish: an oval with a tail, blue and scaly, with a pale belly and an eye."""
    u, v = _grid(side)
    depth = rng.uniform(0.42, 0.55)
    body = ((u - 0.2) / 0.75) ** 2 + (v / depth) ** 2 < 1
    tail = (u < -0.35) & (np.abs(v) < 0.7 * (-u - 0.3) + 0.05) & (u > -0.95)
    rgb = _fill(side, colour(rng, 0.62, 0.7, 0.8))
    scales = np.sin(22 * u + 6 * np.abs(v)) * np.cos(20 * v) > 0.25
    rgb[scales] *= 0.6
    rgb[(v > 0.3 * depth) & body] = colour(rng, 0.58, 0.2, 0.92)
    rgb[tail & ~body] = colour(rng, 0.64, 0.8, 0.6)
    rgb[(u - 0.65) ** 2 + (v + 0.1) ** 2 < 0.012] = 0.05
    return Patch(rgb, (body | tail).astype(np.float32))


def draw_mushroom(rng: np.random.Generator, side: int) -> Patch:
    """Draw a mushroom: a pink to violet cap with white dots on a cream stem."""
    u, v = _grid(side)
    brim = rng.uniform(0.0, 0.15)
    cap = (u / 0.92) ** 2 + ((v - brim) / 0.95) ** 2 < 1
    cap &= v < brim + 0.06 * np.cos(3 * u)
    stem = (np.abs(u) < 0.22 + 0.12 * v**2) & (v >= brim - 0.1) & (v < 0.93)
    rgb = _fill(side, colour(rng, 0.12, 0.2, 0.92))
    rgb[cap] = colour(rng, 0.9, 0.8, 0.75)
    rgb[cap & _dots(rng, u, v + 0.4, 9, 0.12, 0.75)] = colour(rng, 0.1, 0.06, 0.97)
    return Patch(rgb, (cap | stem).astype(np.float32))


def draw_cookie(rng: np.random.Generator, side: int) -> Patch:
    """Draw a cookie: a wobbly brown disc with dark chips."""
    u, v = _grid(side)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    wobble = 0.04 * np.sin(5 * angle + rng.uniform(0, 6)) + 0.03 * np.sin(9 * angle + rng.uniform(0, 6))
    rgb = _fill(side, colour(rng, 0.075, 0.65, 0.6, 0.012))
    rgb *= (1.1 - 0.3 * radius**2 + rng.normal(0, 0.05, u.shape).astype(np.float32))[..., None]
    rgb[_dots(rng, u, v, 14, 0.12, 0.75)] = colour(rng, 0.06, 0.6, 0.22)
    return Patch(np.clip(rgb, 0, 1), (radius < 0.9 + wobble).astype(np.float32))


def draw_book(rng: np.random.Generator, side: int) -> Patch:
    """Draw a book: a yellow rectangle with a pale label, lines of writing and a spine."""
    u, v = _grid(side)
    half_width = rng.uniform(0.6, 0.72)
    inside = (np.abs(u) < half_width) & (np.abs(v) < 0.94)
    rgb = _fill(side, colour(rng, 0.15, 0.9, 0.95, 0.012))
    rgb[u < -half_width + 0.16] *= 0.55
    label = (u > -half_width + 0.3) & (u < half_width - 0.14) & (np.abs(v) < 0.65)
    rgb[label] = colour(rng, 0.14, 0.12, 0.95)
    rgb[label & (np.sin(16 * v) > 0.3) & (u < half_width - 0.25)] = 0.25
    return Patch(rgb, inside.astype(np.float32))
