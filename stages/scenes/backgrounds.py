"""The eight backgrounds, drawn on the supersampled canvas before any object."""

import math

import numpy as np
from PIL import Image, ImageDraw

from stages.scenes.pen import Colour

#: Two or more tones for the upper part and the ground of each background; jitter is added when drawn.
TONES: dict[str, tuple[Colour, Colour, Colour]] = {
    "sky": ((96, 156, 220), (176, 210, 236), (190, 216, 236)),
    "sea": ((168, 204, 230), (60, 128, 168), (24, 72, 124)),
    "grass": ((170, 208, 232), (112, 160, 72), (70, 120, 50)),
    "road": ((176, 190, 204), (124, 124, 128), (84, 84, 90)),
    "sand": ((166, 204, 230), (226, 204, 150), (204, 172, 116)),
    "snow": ((176, 190, 208), (232, 236, 242), (204, 214, 228)),
    "night": ((12, 16, 44), (34, 40, 80), (22, 26, 40)),
    "indoors": ((206, 188, 164), (190, 168, 146), (130, 92, 64)),
}
JITTER = 26.0


def _rows(size: int, horizon: int, tones: np.ndarray) -> np.ndarray:
    """Column of colours (size, 3): a gradient above the horizon and another below it. `tones` is (3, 3)."""
    above = np.linspace(0.0, 1.0, max(horizon, 1))[:, None]
    below = np.linspace(0.0, 1.0, max(size - horizon, 1))[:, None]
    top = tones[0] * (1 - 0.3 * above) + (tones[0] * 0.5 + 120.0) * 0.3 * above
    ground = tones[1] * (1 - below) + tones[2] * below
    return np.concatenate((top[:horizon], ground[: size - horizon]))


def paint_background(name: str, size: int, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """An RGB canvas of `size` x `size` pixels, and its rows' colours (size, 3) before the details."""
    tones = np.asarray(TONES[name], dtype=np.float64) + rng.normal(0.0, JITTER, size=3) * 0.6
    tones = tones + rng.normal(0.0, JITTER * 0.4, size=(3, 3))
    horizon = size if name == "sky" else int(size * rng.uniform(0.25, 0.6))
    rows = np.clip(_rows(size, horizon, tones), 0, 255).astype(np.uint8)
    if name == "sky":
        ramp = np.linspace(0.0, 1.0, size)[:, None]
        rows = np.clip(tones[0] * (1 - ramp) + tones[1] * ramp, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (size, size, 3))))
    _details(name, ImageDraw.Draw(canvas), size, horizon, rows, rng)
    return canvas, rows


def _shade(colour: np.ndarray, factor: float) -> Colour:
    r, g, b = (int(min(255.0, max(0.0, float(c) * factor))) for c in colour)
    return r, g, b


def _details(
    name: str, draw: ImageDraw.ImageDraw, size: int, horizon: int, rows: np.ndarray, rng: np.random.Generator
) -> None:
    """Waves, tufts, lane marks, dunes, specks or furniture lines: texture, never one of the categories."""
    if name == "sky":
        for x, y, w in rng.uniform(0.0, size, size=(3, 3)):
            draw.line((x - w / 2, y, x + w / 2, y + 2), fill=_shade(rows[int(y)], 1.06), width=2)
    elif name == "night":
        for x, y in rng.uniform(0.0, size, size=(12, 2)):
            draw.point((x, min(y, horizon)), fill=(150, 150, 170))
    elif name == "indoors":
        draw.line((0, horizon, size, horizon), fill=_shade(rows[-1], 0.7), width=3)
        step = int(rng.integers(14, 30))
        for x in range(int(rng.integers(step)), size, step):
            draw.line((x, 0, x, horizon), fill=_shade(rows[0], 0.93), width=2)
    elif name == "road":
        lane = horizon + (size - horizon) * rng.uniform(0.3, 0.8)
        slope = rng.uniform(-8.0, 8.0)
        for x in range(-int(rng.integers(24)), size, 28):
            y = lane + slope * x / size
            draw.line((x, y, x + 14, y + slope * 14 / size), fill=(220, 218, 200), width=3)
        draw.line((0, horizon, size, horizon), fill=_shade(rows[-1], 0.8), width=3)
    else:
        depth = size - horizon
        factor = {"sea": 1.22, "grass": 0.8, "sand": 0.92, "snow": 0.95}[name]
        for x, v, w in rng.uniform(0.0, 1.0, size=(14, 3)):
            row = min(size - 1, horizon + int(v * depth))
            tone, left = _shade(rows[row], factor), x * size
            if name == "grass":
                draw.line((left, row, left + 2, row - 4 - 4 * w), fill=tone, width=2)
            elif name == "sea":
                reach = 8 + 10 * w
                draw.arc((left - reach, row - 4, left + reach, row + 4), 200, 340, fill=tone, width=2)
            else:
                reach = 10 + 24 * w
                sag = 3 * math.sin(9 * v)
                draw.line((left - reach, row, left, row + sag, left + reach, row), fill=tone, width=2)
