"""A contact sheet: the thumbnails of hits in rows, with what is said of each."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from stages.artifacts import replacing
from stages.evaluate import palette

COLUMNS, TILE, GAP, MARGIN, CAPTION = 5, 128, 14, 24, 38


def draw_sheet(
    path: Path, thumbnails: Sequence[bytes | None], captions: Sequence[str], labels: Sequence[str], title: str
) -> None:
    """Draw thumbnails, best first, each with a caption (distance, cosine) and the names of its labels below."""
    rows = max(1, -(-len(thumbnails) // COLUMNS))
    width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (width, MARGIN + 48 + rows * (TILE + CAPTION + GAP)), palette.PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), _fitting(draw, title, width - 2 * MARGIN, 19), palette.INK, palette.font(19, True))
    draw.text((MARGIN, MARGIN + 20), "Hamming distance in bits | cosine of features, where re-ranked" if thumbnails
              else "no image within that radius", palette.FAINT, palette.font(12))  # fmt: skip
    for place, (data, caption, label) in enumerate(zip(thumbnails, captions, labels, strict=True)):
        x = MARGIN + place % COLUMNS * (TILE + GAP)
        y = MARGIN + 44 + place // COLUMNS * (TILE + CAPTION + GAP)
        draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=palette.GRID)
        if data is not None:
            picture = Image.open(io.BytesIO(data))
            factor = TILE / max(picture.size)
            picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
            sheet.paste(picture, (x + (TILE - picture.width) // 2, y + (TILE - picture.height) // 2))
        draw.text((x, y + TILE + 4), caption, palette.INK, palette.font(12))
        draw.text((x, y + TILE + 20), _fitting(draw, label, TILE, 11), palette.FAINT, palette.font(11))
    with replacing(path) as temporary:
        sheet.save(temporary, optimize=True)


def _fitting(draw: ImageDraw.ImageDraw, words: str, width: int, size: int) -> str:
    """As much of the beginning of one line as fits."""
    words = " ".join(words.split())[:500]
    while words and draw.textlength(words, palette.font(size)) > width:
        words = words[:-2] + "…" if len(words) > 2 else ""
    return words
