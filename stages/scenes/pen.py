"""A pen that draws in an object's own tilted, scaled and mirrored frame, straight onto the scene."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

#: Twenty points of the unit circle: round enough at the sizes drawn here.
CIRCLE: tuple[Point, ...] = tuple((math.cos(math.tau * i / 20), math.sin(math.tau * i / 20)) for i in range(20))


class Paint(NamedTuple):
    """The colours of one object: its own colour, a companion, and a dark and a light tone of its own."""

    main: Colour
    second: Colour
    dark: Colour
    light: Colour


class Pen:
    """Draws with x to the right and y down, the object filling about [-1, 1] in both; widths in the same unit."""

    def __init__(
        self, draw: ImageDraw, centre: Point, half: float, tilt: float = 0.0, mirror: bool = False, stretch: float = 1.0
    ) -> None:
        """`half` is the half extent in canvas pixels, `tilt` in radians, `stretch` the width over the height."""
        self._draw = draw
        self._x, self._y = centre
        self._half = half
        across = half * math.sqrt(stretch) * (-1.0 if mirror else 1.0)
        down = half / math.sqrt(stretch)
        self._xx, self._xy = across * math.cos(tilt), -down * math.sin(tilt)
        self._yx, self._yy = across * math.sin(tilt), down * math.cos(tilt)

    def _place(self, points: Sequence[Point]) -> list[Point]:
        return [(self._x + self._xx * x + self._xy * y, self._y + self._yx * x + self._yy * y) for x, y in points]

    def poly(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._place(points), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.poly(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
        """A filled ellipse about (x, y), its axes turned by `turn` radians."""
        c, s = math.cos(turn), math.sin(turn)
        self.poly([(x + rx * u * c - ry * v * s, y + rx * u * s + ry * v * c) for u, v in CIRCLE], colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """An open polyline, never thinner than one canvas pixel."""
        self._draw.line(self._place(points), fill=colour, width=max(1, round(width * self._half)), joint="curve")

    def ring(self, x: float, y: float, radius: float, width: float, colour: Colour) -> None:
        """A circle's outline."""
        self.line([(x + radius * u, y + radius * v) for u, v in (*CIRCLE, CIRCLE[0], CIRCLE[1])], width, colour)
