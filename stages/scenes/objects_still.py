"""The drawings of the groups nature and things; `objects` has those of animals and vehicles."""

import math

import numpy as np

from stages.scenes.objects import BLACK, GLASS, WHITE
from stages.scenes.pen import CIRCLE, Paint, Pen

BARK = (110, 76, 48)
LEAF = (64, 134, 58)


def sun(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A plain disc with a wreath of pointed rays."""
    count = int(rng.integers(8, 13))
    for i in range(count):
        a = math.tau * i / count
        c, s = math.cos(a), math.sin(a)
        pen.poly(
            ((c, s), (0.6 * c - 0.15 * s, 0.6 * s + 0.15 * c), (0.6 * c + 0.15 * s, 0.6 * s - 0.15 * c)), paint.main
        )
    pen.oval(0.0, 0.0, 0.52, 0.52, paint.main)
    pen.oval(-0.08, -0.08, 0.36, 0.36, paint.light)


def moon(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A crescent, slim or fat."""
    bite = rng.uniform(0.35, 0.7)
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(0.32 * math.pi, 1.68 * math.pi, 18)]
    tip_x, tip_y = outer[-1]
    depth = 1.0 - bite
    inner = [(tip_x - (tip_x + depth) * math.cos(a), tip_y * math.sin(a)) for a in np.linspace(1.45, -1.45, 12)]
    pen.poly([*outer, *inner], paint.main)
    for x, y, r in ((-0.82, -0.1, 0.08), (-0.68, 0.4, 0.1), (-0.66, -0.48, 0.07)):
        pen.oval(x, y, r, r, paint.dark if rng.random() < 0.5 else paint.light)


def cloud(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Puffs on a flat base, in a pale or a dark tone."""
    puffs = ((-0.62, 0.15, 0.34), (-0.2, -0.12, 0.44), (0.26, -0.05, 0.4), (0.66, 0.18, 0.3))
    lift = rng.uniform(-0.12, 0.12, size=4)
    for (x, y, r), up in zip(puffs, lift, strict=True):
        pen.oval(x, y + up + 0.06, r, r, paint.dark)
    pen.box(-0.66, 0.1, 0.68, 0.48, paint.dark)
    for (x, y, r), up in zip(puffs, lift, strict=True):
        pen.oval(x, y + up - 0.02, r * 0.95, r * 0.9, paint.main)
    pen.oval(-0.25, -0.22, 0.24, 0.2, paint.light)


def tree(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A trunk under a round or a pointed crown."""
    pen.poly(((-0.12, 1.0), (-0.08, 0.1), (0.08, 0.1), (0.14, 1.0)), BARK)
    if rng.random() < 0.5:
        for x, y, r in ((-0.34, 0.0, 0.38), (0.36, 0.02, 0.36), (0.0, -0.45, 0.46), (0.0, 0.0, 0.4)):
            pen.oval(x, y, r, r, paint.main)
        pen.oval(-0.12, -0.52, 0.24, 0.22, paint.light)
        pen.oval(0.3, 0.12, 0.2, 0.16, paint.dark)
    else:
        for top, bottom, half, shade in (
            (-0.1, 0.62, 0.72, paint.dark),
            (-0.55, 0.26, 0.56, paint.main),
            (-1.0, -0.12, 0.4, paint.light),
        ):
            pen.poly(((0.0, top), (half, bottom), (-half, bottom)), shade)


def flower(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A blossom of separate petals on a stem with leaves."""
    pen.line(((0.0, -0.2), (0.04, 1.0)), 0.09, LEAF)
    pen.oval(0.26, 0.58, 0.26, 0.1, LEAF, -0.5)
    pen.oval(-0.22, 0.72, 0.24, 0.1, LEAF, 0.5)
    count = int(rng.integers(5, 8))
    for i in range(count):
        a = math.tau * i / count
        pen.oval(0.38 * math.cos(a), -0.4 + 0.38 * math.sin(a), 0.27, 0.17, paint.main, a)
    pen.oval(0.0, -0.4, 0.2, 0.2, paint.second)


def star(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Five points."""
    depth = rng.uniform(0.36, 0.5)
    corners = []
    for i in range(10):
        r = 1.0 if i % 2 == 0 else depth
        corners.append((r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)))
    pen.poly(corners, paint.main)
    pen.poly([(0.55 * x, 0.55 * y) for x, y in corners], paint.light)


def mountain(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Two peaks, the higher one capped."""
    peak = rng.uniform(-0.25, 0.0)
    pen.poly(((0.0, 0.8), (0.52, -0.2), (1.05, 0.8)), paint.dark)
    pen.poly(((-1.05, 0.8), (peak, -0.8), (0.75, 0.8)), paint.main)
    pen.poly(
        (
            (peak, -0.8),
            (peak + 0.34, -0.06),
            (0.6 * peak + 0.08, -0.2),
            (peak, 0.02),
            (peak - 0.14, -0.18),
            (peak - 0.42, -0.06),
        ),
        WHITE,
    )


def house(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Walls, a gable roof, a door, windows, sometimes a chimney."""
    if rng.random() < 0.6:
        pen.box(0.38, -0.85, 0.6, -0.3, paint.dark)
    pen.box(-0.75, -0.15, 0.75, 0.9, paint.main)
    pen.poly(((-1.0, -0.1), (0.0, -0.95), (1.0, -0.1)), paint.second)
    pen.box(-0.18, 0.3, 0.2, 0.9, paint.dark)
    for x in (-0.6, 0.34):
        pen.box(x, 0.12, x + 0.28, 0.44, GLASS)
        pen.line(((x + 0.14, 0.12), (x + 0.14, 0.44)), 0.04, paint.dark)


def umbrella(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """An open canopy of coloured panels over a hooked stick."""
    pen.line(((0.0, -0.95), (0.0, 0.75), (0.06, 0.9), (0.2, 0.92), (0.28, 0.74)), 0.08, BLACK)
    arc = [(math.cos(a), -0.05 + 0.82 * math.sin(a)) for a in np.linspace(-math.pi, 0.0, 13)]
    pen.poly(arc, paint.main)
    for i in (0, 2):
        pen.poly([(0.0, -0.87), *arc[3 * i : 3 * i + 4]], paint.second if rng.random() < 0.8 else paint.dark)
    for x in (-0.75, -0.25, 0.25, 0.75):
        pen.oval(x, -0.04, 0.25, 0.1, paint.dark)


def ball(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Coloured wedges, or patches as on a football."""
    pen.oval(0.0, 0.0, 0.9, 0.9, paint.main)
    if rng.random() < 0.5:
        pole = (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))
        for i in range(0, 20, 6):
            arc = [(0.9 * u, 0.9 * v) for u, v in (CIRCLE + CIRCLE)[i : i + 4]]
            pen.poly([pole, *arc], paint.second if i % 12 else WHITE)
        pen.oval(*pole, 0.13, 0.13, paint.light)
    else:
        for r, count in ((0.0, 1), (0.72, 5)):
            for i in range(count):
                a = math.tau * i / 5 + 0.3
                x, y = r * math.cos(a), r * math.sin(a)
                pen.poly([(x + 0.25 * u, y + 0.25 * v) for u, v in CIRCLE[::4]], paint.dark)
                pen.line(((0.0, 0.0), (x, y)), 0.05, paint.dark)


def clock(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A rimmed dial with ticks and two hands."""
    pen.oval(0.0, 0.0, 0.95, 0.95, paint.main)
    pen.oval(0.0, 0.0, 0.76, 0.76, WHITE if rng.random() < 0.7 else paint.light)
    for i in range(0, 12, 1 if rng.random() < 0.5 else 3):
        c, s = math.cos(math.tau * i / 12), math.sin(math.tau * i / 12)
        pen.line(((0.6 * c, 0.6 * s), (0.74 * c, 0.74 * s)), 0.06, BLACK)
    for reach, width in ((0.4, 0.11), (0.6, 0.08)):
        a = rng.uniform(0.0, math.tau)
        pen.line(((0.0, 0.0), (reach * math.cos(a), reach * math.sin(a))), width, BLACK)


def cup(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A tapering mug with a handle and a dark drink, sometimes steam."""
    pen.ring(0.6, 0.2, 0.28, 0.13, paint.dark)
    pen.poly(((-0.66, -0.3), (0.6, -0.3), (0.42, 0.85), (-0.48, 0.85)), paint.main)
    pen.poly(((-0.6, 0.1), (0.54, 0.1), (0.5, 0.36), (-0.56, 0.36)), paint.second)
    pen.oval(-0.03, -0.3, 0.63, 0.17, paint.light)
    pen.oval(-0.03, -0.28, 0.5, 0.11, (84, 54, 36))
    if rng.random() < 0.5:
        for x in (-0.25, 0.15):
            pen.line(((x, -0.5), (x + 0.1, -0.65), (x, -0.8), (x + 0.1, -0.95)), 0.06, (214, 214, 214))


def book(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """Open, the pages lined, the cover showing at the edges."""
    dip = rng.uniform(0.1, 0.25)
    pen.poly(((-1.0, -0.5), (0.0, -0.5 + dip), (1.0, -0.5), (1.0, 0.65), (0.0, 0.65 + dip), (-1.0, 0.65)), paint.main)
    for side in (-1, 1):
        pen.poly(((0.0, -0.52 + dip), (0.88 * side, -0.6), (0.88 * side, 0.5), (0.0, 0.55 + dip)), WHITE)
        for y in (-0.3, -0.08, 0.14, 0.36):
            pen.line(((0.14 * side, y + 0.7 * dip), (0.76 * side, y - 0.02)), 0.05, (120, 120, 128))
    pen.line(((0.0, -0.5 + dip), (0.0, 0.6 + dip)), 0.06, paint.dark)


def chair(pen: Pen, paint: Paint, rng: np.random.Generator) -> None:
    """A tall back, a seat and four legs."""
    pen.box(-0.42, 0.2, -0.32, 0.8, paint.dark)
    pen.box(0.42, 0.1, 0.52, 0.8, paint.dark)
    pen.box(-0.62, -1.0, -0.48, 1.0, paint.main)
    pen.poly(((-0.6, 0.02), (-0.3, -0.14), (0.62, -0.14), (0.5, 0.2), (-0.6, 0.2)), paint.second)
    pen.box(0.4, 0.1, 0.54, 1.0, paint.main)
    pen.poly(((-0.62, -1.0), (-0.28, -1.1), (-0.24, -0.2), (-0.6, -0.02)), paint.main)
    if rng.random() < 0.6:
        for y in (-0.8, -0.5):
            pen.line(((-0.5, y), (-0.32, y - 0.06)), 0.08, paint.dark)
