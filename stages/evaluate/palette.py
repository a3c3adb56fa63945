"""Colours and type shared by the plots and the sheets of images."""

from pathlib import Path

import matplotlib
from PIL import ImageFont

INK = "#1f2933"
FAINT = "#8d99a6"
GRID = "#e4e8ec"
PAPER = "#ffffff"
HIT = "#1b9e4b"
MISS = "#d1343f"
ACCENT = "#0b5cad"

#: Told apart by people who do not see all colours (Okabe & Ito, and a brown).
SERIES = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#7a4f1d")


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The sans serif font that comes with matplotlib, `size` in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
