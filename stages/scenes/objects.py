"""One drawing per category: distinctive outlines that survive 64 pixels, with poses and details that vary."""

import math
from collections.abc import Callable

import numpy as np

from stages.scenes.pen import Colour, Paint, Pen

BLACK: Colour = (24, 22, 26)
WHITE: Colour = (240, 240, 236)
GLASS: Colour = (176, 208, 226)

Draw = Callable[[Pen, Paint, np.random.Generator], None]


def dog(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side: four legs, a snout, a hanging ear and a raised tail."""
    wag = rng.uniform(-0.2, 0.1)
    pen.line(((-0.5, 0.0), (-0.72, -0.25 + wag), (-0.82, -0.6 + wag)), 0.13, paint.main)
    for x in (-0.46, 0.3):
        pen.box(x, 0.2, x + 0.15, 0.9, paint.dark)
    for x in (-0.3, 0.46):
        pen.box(x - 0.02, 0.2, x + 0.14, 0.9, paint.main)
    pen.oval(0.02, 0.12, 0.62, 0.28, paint.main)
    pen.poly(((0.28, -0.02), (0.42, -0.45), (0.76, -0.3), (0.62, 0.25)), paint.main)
    pen.oval(0.58, -0.4, 0.27, 0.24, paint.main)
    pen.oval(0.86, -0.3, 0.22, 0.13, paint.light)
    pen.oval(1.03, -0.36, 0.07, 0.06, BLACK)
    pen.oval(0.42, -0.28, 0.12, 0.3, paint.dark, 0.25)
    pen.oval(0.68, -0.48, 0.05, 0.05, BLACK)
    if rng.random() < 0.5:
        pen.oval(-0.15, 0.05, 0.22, 0.16, paint.second)


def cat(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Sitting and facing the viewer: pointed ears, whiskers, a curled tail."""
    pen.line(((0.25, 0.85), (0.72, 0.8), (0.85, 0.45), (0.7, 0.1 + rng.uniform(-0.2, 0.2))), 0.15, paint.dark)
    pen.oval(0.0, 0.45, 0.42, 0.52, paint.main)
    pen.oval(0.0, 0.5, 0.2, 0.36, paint.light)
    for x in (-0.17, 0.17):
        pen.oval(x, 0.9, 0.16, 0.09, paint.dark)
    for side in (-1, 1):
        pen.poly(((0.47 * side, -0.35), (0.5 * side, -1.0), (0.06 * side, -0.6)), paint.main)
        pen.poly(((0.4 * side, -0.52), (0.43 * side, -0.84), (0.2 * side, -0.62)), paint.dark)
    pen.oval(0.0, -0.35, 0.47, 0.36, paint.main)
    for side in (-1, 1):
        pen.oval(0.19 * side, -0.4, 0.1, 0.09, (222, 228, 120))
        pen.oval(0.19 * side, -0.4, 0.035, 0.09, BLACK)
        for y in (-0.2, -0.1):
            pen.line(((0.1 * side, -0.18), (0.62 * side, y - 0.06)), 0.02, paint.light)
    pen.poly(((-0.07, -0.24), (0.07, -0.24), (0.0, -0.16)), BLACK)
    if rng.random() < 0.5:
        for x in (-0.14, 0.0, 0.14):
            pen.line(((x, -0.69), (x, -0.54)), 0.05, paint.dark)


def bird(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side, on thin legs or with the wing raised."""
    flying = rng.random() < 0.5
    if not flying:
        for x in (-0.05, 0.12):
            pen.line(((x, 0.35), (x + 0.04, 0.85), (x + 0.18, 0.85)), 0.05, paint.dark)
    pen.poly(((-0.3, 0.0), (-1.0, -0.02), (-0.95, 0.28), (-0.25, 0.32)), paint.dark)
    pen.oval(0.05, 0.12, 0.52, 0.32, paint.main, -0.25)
    pen.oval(0.5, -0.22, 0.25, 0.24, paint.main)
    pen.poly(((0.68, -0.34), (1.05, -0.18), (0.68, -0.08)), (236, 160, 40))
    pen.oval(0.55, -0.27, 0.06, 0.06, BLACK)
    if flying:
        pen.poly(((0.25, 0.05), (-0.05, -0.5), (-0.5, -1.0), (-0.5, -0.45), (-0.3, 0.1)), paint.second)
    else:
        pen.oval(-0.08, 0.1, 0.38, 0.19, paint.second, 0.1)


def fish(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side: a tail fin, a back fin and an eye, plain or striped."""
    pen.poly(((-0.4, 0.0), (-1.0, -0.45), (-0.84, 0.0), (-1.0, 0.45)), paint.dark)
    pen.poly(((-0.2, -0.28), (0.05, -0.65), (0.4, -0.3)), paint.dark)
    pen.poly(((0.0, 0.28), (-0.1, 0.58), (0.25, 0.3)), paint.dark)
    pen.poly(
        ((-0.55, 0.0), (-0.25, -0.27), (0.15, -0.4), (0.6, -0.3), (0.95, 0.02), (0.6, 0.3), (0.15, 0.4), (-0.25, 0.27)),
        paint.main,
    )
    if rng.random() < 0.6:
        for x in (-0.15, 0.1, 0.35):
            pen.line(((x, -0.28), (x - 0.06, 0.0), (x, 0.28)), 0.1, paint.second)
    pen.oval(0.64, -0.08, 0.1, 0.1, WHITE)
    pen.oval(0.66, -0.08, 0.05, 0.05, BLACK)
    pen.poly(((0.1, 0.02), (-0.15, 0.16), (0.1, 0.2)), paint.dark)


def horse(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side: long legs, a long raised neck with a mane, a hanging tail."""
    stride = rng.uniform(-0.12, 0.12)
    pen.poly(((-0.5, -0.1), (-0.75, 0.0), (-0.95, 0.6), (-0.75, 0.55), (-0.5, 0.1)), paint.dark)
    for x, step in ((-0.5, stride), (-0.3, -stride), (0.2, stride), (0.38, -stride)):
        shade = paint.main if step >= 0 else paint.dark
        pen.poly(((x - 0.08, 0.1), (x + 0.1, 0.1), (x + step + 0.07, 1.0), (x + step - 0.04, 1.0)), shade)
    pen.oval(-0.08, 0.05, 0.56, 0.25, paint.main)
    pen.poly(((0.1, -0.1), (0.48, -0.78), (0.72, -0.7), (0.66, -0.3), (0.46, 0.18)), paint.main)
    pen.poly(((0.46, -0.9), (0.7, -0.86), (1.06, -0.46), (0.96, -0.32), (0.6, -0.5)), paint.main)
    pen.poly(((0.5, -0.8), (0.55, -1.05), (0.66, -0.84)), paint.main)
    pen.poly(((0.52, -0.95), (0.38, -0.86), (0.02, -0.12), (0.2, -0.14), (0.52, -0.7)), paint.second)
    pen.oval(0.72, -0.7, 0.05, 0.05, BLACK)


def butterfly(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From above: four wings with spots about a thin body."""
    fold = rng.uniform(0.8, 1.0)
    for side in (-1, 1):
        pen.oval(0.48 * side * fold, -0.36, 0.5 * fold, 0.4, paint.main, -0.6 * side)
        pen.oval(0.4 * side * fold, 0.42, 0.36 * fold, 0.36, paint.second, 0.5 * side)
        pen.oval(0.55 * side * fold, -0.4, 0.18, 0.16, paint.light)
        pen.oval(0.42 * side * fold, 0.45, 0.13, 0.13, paint.dark)
        pen.line(((0.0, -0.5), (0.22 * side, -0.95)), 0.04, BLACK)
    pen.oval(0.0, 0.0, 0.08, 0.6, BLACK)


def snail(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A spiral shell on a flat foot, two stalks at the head."""
    foot = paint.light
    for x in (0.98, 0.72):
        pen.line(((0.72, 0.2), (x, -0.4)), 0.06, foot)
        pen.oval(x, -0.42, 0.07, 0.07, BLACK)
    pen.poly(((-1.0, 0.8), (-0.6, 0.5), (0.5, 0.5), (0.55, 0.05), (0.85, 0.0), (0.98, 0.3), (0.8, 0.8)), foot)
    pen.oval(-0.12, 0.0, 0.62, 0.62, paint.main)
    turns = rng.uniform(3.6, 4.4)
    spiral = [(turns * math.pi * i / 26, 0.52 * (1 - i / 27)) for i in range(26)]
    pen.line([(-0.12 + r * math.cos(a), r * math.sin(a)) for a, r in spiral], 0.1, paint.dark)


def car(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side: low body, sloping cabin, two wheels."""
    back = rng.uniform(-0.75, -0.45)
    pen.poly(((back, 0.0), (-0.38, -0.5), (0.25, -0.5), (0.58, 0.0)), paint.main)
    pen.poly(((back + 0.16, -0.04), (-0.32, -0.4), (-0.08, -0.4), (-0.08, -0.04)), GLASS)
    pen.poly(((0.0, -0.04), (0.0, -0.4), (0.2, -0.4), (0.42, -0.04)), GLASS)
    pen.poly(((-1.0, 0.4), (-1.0, 0.0), (0.62, -0.04), (0.96, 0.1), (1.0, 0.4)), paint.main)
    pen.box(-1.0, 0.28, 1.0, 0.4, paint.dark)
    pen.oval(0.93, 0.17, 0.07, 0.07, (250, 236, 150))
    for x in (-0.55, 0.58):
        pen.oval(x, 0.4, 0.26, 0.26, BLACK)
        pen.oval(x, 0.4, 0.12, 0.12, (170, 170, 176))


def bus(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side: a long tall box with a row of windows."""
    pen.box(-1.0, -0.55, 1.0, 0.5, paint.main)
    pen.box(-1.0, 0.12, 1.0, 0.24, paint.second)
    count = int(rng.integers(4, 6))
    step = 1.45 / count
    for i in range(count):
        pen.box(-0.9 + i * step, -0.42, -0.9 + (i + 0.78) * step, 0.02, GLASS)
    pen.box(0.66, -0.42, 0.92, 0.42, GLASS)
    pen.line(((0.79, -0.42), (0.79, 0.42)), 0.04, paint.dark)
    for x in (-0.6, 0.42):
        pen.oval(x, 0.52, 0.2, 0.2, BLACK)
        pen.oval(x, 0.52, 0.08, 0.08, (170, 170, 176))


def bicycle(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Two thin wheels, a diamond frame, handlebars and a saddle."""
    radius = rng.uniform(0.4, 0.46)
    tyre = BLACK if rng.random() < 0.5 else paint.dark
    for x in (-0.55, 0.55):
        pen.ring(x, 0.35, radius, 0.09, tyre)
        pen.oval(x, 0.35, 0.06, 0.06, tyre)
    pen.line(((-0.55, 0.35), (-0.22, -0.3), (0.4, -0.3), (-0.05, 0.38), (-0.55, 0.35)), 0.09, paint.main)
    pen.line(((-0.05, 0.38), (-0.28, -0.5)), 0.09, paint.main)
    pen.line(((0.55, 0.35), (0.34, -0.55), (0.58, -0.68)), 0.09, paint.main)
    pen.line(((-0.46, -0.52), (-0.12, -0.52)), 0.12, tyre)


def boat(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A hull with a mast, one or two sails."""
    pen.line(((0.0, 0.4), (0.0, -1.0)), 0.07, BLACK)
    pen.poly(((0.06, -0.92), (0.8, 0.26), (0.06, 0.26)), paint.second)
    if rng.random() < 0.7:
        pen.poly(((-0.06, -0.75), (-0.06, 0.26), (-0.6, 0.26)), paint.light)
    pen.poly(((-0.95, 0.4), (1.0, 0.4), (0.68, 0.88), (-0.65, 0.88)), paint.main)
    pen.line(((-0.9, 0.46), (0.94, 0.46)), 0.08, paint.dark)


def airplane(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """From the side and slightly above: fuselage, swept wings, tail fin."""
    sweep = rng.uniform(0.4, 0.6)
    pen.poly(((0.15, -0.1), (-0.05 - sweep * 0.4, -0.62), (-0.22 - sweep * 0.4, -0.62), (-0.2, -0.1)), paint.dark)
    pen.poly(((-0.62, 0.0), (-0.98, -0.55), (-0.76, -0.55), (-0.4, -0.08)), paint.second)
    pen.oval(0.0, 0.0, 0.98, 0.17, paint.main)
    for x in (-0.35, -0.15, 0.05, 0.25, 0.45):
        pen.oval(x, -0.05, 0.045, 0.05, BLACK)
    pen.poly(((0.64, -0.11), (0.9, -0.04), (0.66, 0.0)), GLASS)
    pen.poly(((0.25, 0.05), (-sweep * 0.6, 0.85), (-0.2 - sweep * 0.6, 0.85), (-0.2, 0.07)), paint.second)


def truck(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A tall closed load behind a separate, lower cab."""
    split = rng.uniform(0.28, 0.42)
    pen.box(-1.0, -0.7, split, 0.4, paint.second)
    for x in (-0.68, -0.36, -0.04):
        pen.line(((x, -0.64), (x, 0.3)), 0.03, paint.dark)
    pen.poly(((split + 0.06, 0.4), (split + 0.06, -0.35), (0.8, -0.35), (1.0, 0.05), (1.0, 0.4)), paint.main)
    pen.poly(((split + 0.2, 0.0), (split + 0.2, -0.25), (0.74, -0.25), (0.88, 0.0)), GLASS)
    pen.box(-1.0, 0.36, 1.0, 0.48, BLACK)
    for x in (-0.74, -0.3, 0.66):
        pen.oval(x, 0.52, 0.2, 0.2, BLACK)
        pen.oval(x, 0.52, 0.08, 0.08, (170, 170, 176))


def train(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A steam engine: boiler, chimney, cab, a row of wheels, often smoke."""
    if rng.random() < 0.6:
        for x, y, r in ((0.5, -0.78, 0.14), (0.28, -0.88, 0.17), (0.0, -0.92, 0.19)):
            pen.oval(x, y, r, r, (206, 206, 210))
    pen.box(0.48, -0.62, 0.7, -0.1, paint.dark)
    pen.box(-0.3, -0.25, 0.9, 0.35, paint.main)
    pen.oval(0.9, 0.05, 0.1, 0.3, paint.light)
    pen.box(0.02, -0.25, 0.12, 0.35, paint.second)
    pen.oval(0.2, -0.26, 0.13, 0.13, paint.dark)
    pen.box(-1.0, -0.62, -0.3, 0.35, paint.second)
    pen.box(-1.05, -0.74, -0.22, -0.58, paint.dark)
    pen.box(-0.84, -0.44, -0.46, -0.08, GLASS)
    pen.poly(((0.8, 0.35), (1.08, 0.78), (0.7, 0.78)), paint.dark)
    for x, r in ((-0.7, 0.26), (-0.15, 0.26), (0.35, 0.2)):
        pen.oval(x, 0.52, r, r, BLACK)
        pen.oval(x, 0.52, r * 0.5, r * 0.5, (190, 60, 50))
    pen.line(((-0.7, 0.52), (0.35, 0.52)), 0.06, (170, 170, 176))
