"""Seeded scenes: one to three objects on a background, each image a function of its seed and index alone."""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from stages.scenes import objects, objects_still
from stages.scenes.backgrounds import paint_background
from stages.scenes.catalogue import BACKGROUNDS, CATEGORIES, SHOWN, background_weight, partner_weight
from stages.scenes.objects import Draw
from stages.scenes.pen import Colour, Paint, Pen

SIZE = 64
SUPERSAMPLE = 2
MAX_OBJECTS = 3

DRAWINGS: dict[str, Draw] = {
    name: getattr(objects if hasattr(objects, name) else objects_still, name) for name in CATEGORIES
}

#: Chance of one, two and three objects.
COUNTS = (0.35, 0.4, 0.25)
#: Half extent of an object in pixels of the finished image, by the number of objects.
HALVES = {1: (11.0, 22.0), 2: (9.5, 16.0), 3: (8.5, 13.0)}
#: Usual hues (turns) of a category; half of the objects ignore them, so that colour alone tells little.
HUES: dict[str, float] = {
    "sun": 0.13,
    "moon": 0.14,
    "star": 0.14,
    "cloud": 0.58,
    "tree": 0.3,
    "flower": 0.93,
    "dog": 0.08,
    "horse": 0.06,
    "mountain": 0.6,
    "cat": 0.07,
}
#: Largest tilt in radians where it is not the general one.
TILTS: dict[str, float] = {
    "airplane": 0.6,
    "bird": 0.4,
    "fish": 0.5,
    "butterfly": 0.8,
    "ball": 3.1,
    "clock": 0.3,
    "star": 0.5,
    "moon": 0.9,
    "sun": 3.1,
    "umbrella": 0.45,
    "mountain": 0.08,
    "house": 0.1,
    "book": 0.5,
}
TILT = 0.2
HIGH = frozenset(("sun", "moon", "star", "cloud", "airplane", "bird", "butterfly"))


class Scene(NamedTuple):
    """One rendered image: `pixels` uint8 (64, 64, 3), the distinct categories in drawing order, the background."""

    pixels: np.ndarray
    labels: tuple[str, ...]
    background: str


def render_scene(seed: int, index: int, categories: Sequence[str] = SHOWN) -> Scene:
    """Render scene `index` of the endless series `seed`, showing one to three of `categories`."""
    rng = np.random.default_rng([seed, index])
    background, labels = _compose(rng, tuple(categories))
    full = SIZE * SUPERSAMPLE
    canvas, rows = paint_background(background, full, rng)
    draw = ImageDraw.Draw(canvas)
    for name, (x, y, half) in zip(labels, _places(rng, labels), strict=True):
        paint = _paint(rng, name, rows[min(full - 1, max(0, int(y * SUPERSAMPLE)))])
        tilt = TILTS.get(name, TILT) * rng.uniform(-1.0, 1.0)
        pen = Pen(
            draw,
            (x * SUPERSAMPLE, y * SUPERSAMPLE),
            half * SUPERSAMPLE,
            tilt,
            rng.random() < 0.5,
            rng.uniform(0.85, 1.18),
        )
        DRAWINGS[name](pen, paint, rng)
    return Scene(_light(np.asarray(canvas.reduce(SUPERSAMPLE)), rng), labels, background)


def _pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """An index drawn in proportion to `weights`."""
    edges = np.cumsum(weights)
    return min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(weights) - 1)


def _compose(rng: np.random.Generator, categories: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Choose the background and the labels: first a category, evenly, then what goes with it."""
    count = min(1 + _pick(rng, COUNTS), len(categories))
    labels = [categories[int(rng.integers(len(categories)))]]
    background = BACKGROUNDS[_pick(rng, [background_weight(labels[0], name) for name in BACKGROUNDS])]
    while len(labels) < count:
        weights = [
            0.0
            if name in labels
            else background_weight(name, background) * math.prod(partner_weight(name, other) for other in labels)
            for name in categories
        ]
        labels.append(categories[_pick(rng, weights)])
    order = rng.permutation(count)
    return background, tuple(labels[i] for i in order)


def _places(rng: np.random.Generator, labels: tuple[str, ...]) -> list[tuple[float, float, float]]:
    """Centre (x, y) and half extent of each object in image pixels, overlapping as little as ten tries allow."""
    low, high = HALVES[len(labels)]
    placed: list[tuple[float, float, float]] = []
    for name in labels:
        half = float(rng.uniform(low, high))
        edge = 0.85 * half
        tries = rng.uniform(0.0, 1.0, size=(10, 3))
        best, best_gap = (SIZE / 2, SIZE / 2, half), -math.inf
        for u, v, leak in tries.tolist():
            # A sky-borne thing is usually high and the rest usually low, but one in five is anywhere.
            v = v if leak < 0.2 else (0.6 * v if name in HIGH else 0.3 + 0.7 * v)
            x, y = edge + u * (SIZE - 2 * edge), edge + v * (SIZE - 2 * edge)
            gap = min((math.hypot(x - px, y - py) - (half + ph) for px, py, ph in placed), default=0.0)
            if gap > best_gap:
                best, best_gap = (x, y, half), gap
            if gap >= 0.0:
                break
        placed.append(best)
    return placed


def _hue_colour(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * r), int(255 * g), int(255 * b)


def _luma(colour: Sequence[float]) -> float:
    return 0.3 * float(colour[0]) + 0.59 * float(colour[1]) + 0.11 * float(colour[2])


def _paint(rng: np.random.Generator, name: str, behind: np.ndarray) -> Paint:
    """Colours for one object that stand out from the background colour `behind` (3,)."""
    usual = HUES.get(name)
    best, best_gap = (0.0, 0.0, 0.0), -1.0
    for u, hue, s, v in rng.uniform(0.0, 1.0, size=(6, 4)).tolist():
        if usual is not None and u < 0.5:
            hue = usual + 0.12 * (hue - 0.5)
        trial = (hue, 0.85 * s**0.7, 0.3 + 0.7 * v)
        main = _hue_colour(*trial)
        gap = abs(_luma(main) - _luma(behind)) + 0.3 * sum(abs(a - float(b)) for a, b in zip(main, behind, strict=True))
        if gap > best_gap:
            best, best_gap = trial, gap
        if gap > 90.0:
            break
    hue, s, v = best
    shift = float(rng.uniform(0.15, 0.85))
    second = _hue_colour(hue + shift, min(1.0, s * 0.9 + 0.1), v - 0.35 if v > 0.65 else v + 0.35)
    return Paint(
        _hue_colour(hue, s, v),
        second,
        _hue_colour(hue, min(1.0, s * 1.1), v * 0.6),
        _hue_colour(hue, s * 0.5, min(1.0, v * 1.15 + 0.12)),
    )


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slanting light, exposure and sensor noise: uint8 (64, 64, 3) in and out."""
    ramp = np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)
    across, down = rng.uniform(-0.18, 0.18, size=2).astype(np.float32)
    gain = np.float32(rng.uniform(0.78, 1.12)) * (1.0 + across * ramp[None, :] + down * ramp[:, None])
    noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(rng.uniform(1.0, 9.0))
    return np.clip(pixels * gain[:, :, None] + noise, 0.0, 255.0).astype(np.uint8)
