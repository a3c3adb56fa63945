"""Sheets of images: example queries with their nearest images, and the component hierarchy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps

from stages.artifacts import damaged, replacing
from stages.evaluate import palette
from stages.images import ImageShards, decode

THUMBNAIL = 84  # pixels
GAP = 10
MARGIN = 24


@dataclass(frozen=True)
class Neighbour:
    """An image that was found: `hit` says whether it shares a label with the query, None where nobody knows."""

    image: int
    distance: int
    hit: bool | None


@dataclass(frozen=True)
class Example:
    """A query image (by id), what it shows (class names) and its nearest images, nearest first."""

    query: int
    caption: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True)
class Component:
    """A fine component: its index, its weight, and the ids of the images that it takes the most responsibility for."""

    index: int
    weight: float
    images: Sequence[int]


@dataclass(frozen=True)
class Group:
    """A coarse group: its index, its weight, how many fine components it has, and the largest of them."""

    index: int
    weight: float
    size: int
    components: Sequence[Component]


def thumbnails(shards: ImageShards, ids: Iterable[int], size: int = THUMBNAIL) -> dict[int, Image.Image]:
    """Images by id, cropped and scaled to a square of `size` pixels; only the row groups that hold them are read.

    An image without pixels, of a collection of features, is a tile with its name or id.

    Raises:
        InputError: an image cannot be read or decoded.
    """
    wanted = np.unique(np.fromiter(ids, dtype=np.int64))
    found = {}
    first = 0
    for file in shards.files:
        try:
            reader = pq.ParquetFile(file)
            for group in range(reader.num_row_groups):
                rows = reader.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < first + rows)]
                if len(here):
                    images = reader.read_row_group(group, columns=["image"])["image"].combine_chunks()
                    found |= {i: _square(file, i, images[i - first].as_py(), size) for i in here.tolist()}
                first += rows
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, error) from None
    return found


def _square(file: Path, index: int, encoded: Mapping[str, Any], size: int) -> Image.Image:
    if encoded["bytes"] is None:
        return _tile(encoded["path"] or f"image {index}", size)
    try:
        image = decode(encoded["bytes"])
    except ValueError as error:
        raise damaged(file, f"image {index}: {error}") from None
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _tile(name: str, size: int) -> Image.Image:
    """A plain square of `size` pixels with as much of the end of a name as fits."""
    tile = Image.new("RGB", (size, size), palette.GRID)
    font = palette.font(9)
    columns = max(1, int((size - 8) / font.getlength("n")))
    rows = max(1, (size - 8) // 12)
    shown = name if len(name) <= columns * rows else f"…{name[1 - columns * rows :]}"
    lines = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    ImageDraw.Draw(tile).multiline_text((size / 2, size / 2), "\n".join(lines), palette.INK, font, "mm", 2, "center")
    return tile


def shown_images(examples: Sequence[Example], groups: Sequence[Group]) -> list[int]:
    """Ids of the images that pictures of the examples and of the groups show."""
    return [
        *(example.query for example in examples),
        *(neighbour.image for example in examples for neighbour in example.neighbours),
        *(image for group in groups for part in group.components for image in part.images),
    ]


def draw_retrieval(
    path: Path, pictures: Mapping[int, Image.Image], examples: Sequence[Example], title: str
) -> None:
    """One row a query: the query, then its nearest images with a green frame (hit), a red one (miss) or none."""
    found = [neighbour for example in examples for neighbour in example.neighbours]
    columns = max(len(example.neighbours) for example in examples)
    left, top, row_height = MARGIN + THUMBNAIL + 36, MARGIN + 62, THUMBNAIL + 42
    sheet = Image.new(
        "RGB", (left + columns * (THUMBNAIL + GAP) - GAP + MARGIN, top + len(examples) * row_height + 12), palette.PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), title, palette.INK, palette.font(19, bold=True))
    known = any(neighbour.hit is not None for neighbour in found)
    key = "green frame: shares a label with the query, red: does not" if known else "the images have no labels"
    draw.text((MARGIN, MARGIN + 25), f"query | its {columns} nearest images with their Hamming distance; {key}",
              palette.FAINT, palette.font(13))  # fmt: skip
    for row, example in enumerate(examples):
        y = top + row * row_height
        sheet.paste(pictures[example.query], (MARGIN, y))
        _caption(draw, example.caption, MARGIN, y + THUMBNAIL + 7, THUMBNAIL + 26)
        draw.line([(left - 16, y), (left - 16, y + THUMBNAIL)], palette.GRID, 2)
        for column, neighbour in enumerate(example.neighbours):
            x = left + column * (THUMBNAIL + GAP)
            sheet.paste(pictures[neighbour.image], (x, y))
            if neighbour.hit is not None:
                colour = palette.HIT if neighbour.hit else palette.MISS
                draw.rectangle((x - 3, y - 3, x + THUMBNAIL + 2, y + THUMBNAIL + 2), outline=colour, width=4)
            below = (x + THUMBNAIL / 2, y + THUMBNAIL + 7)
            draw.text(below, str(neighbour.distance), palette.INK, palette.font(12), "ma")
    _save(sheet, path)


def draw_components(
    path: Path, pictures: Mapping[int, Image.Image], groups: Sequence[Group], n_components: int
) -> None:
    """One row a coarse group: its largest fine components, each with the images it is most responsible for."""
    columns = max(len(group.components) for group in groups)
    width = max(len(part.images) for group in groups for part in group.components)
    block = width * (THUMBNAIL + 2) + 22
    left, top, row_height = MARGIN + 122, MARGIN + 62, THUMBNAIL + 40
    sheet = Image.new("RGB", (left + columns * block - 22 + MARGIN, top + len(groups) * row_height), palette.PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"The largest coarse groups, and in each its largest of {n_components:,} fine components"
    draw.text((MARGIN, MARGIN - 6), title, palette.INK, palette.font(19, bold=True))
    key = "per cent: weight in the mixture; pictures: the training images that a component is most responsible for"
    draw.text((MARGIN, MARGIN + 25), key, palette.FAINT, palette.font(13))
    for row, group in enumerate(groups):
        y = top + row * row_height
        draw.line([(MARGIN, y - 6), (sheet.width - MARGIN, y - 6)], palette.GRID, 1)
        draw.text((MARGIN, y + 20), f"group {group.index}", palette.ACCENT, palette.font(15, bold=True))
        draw.text((MARGIN, y + 44), f"{group.weight:.1%}", palette.INK, palette.font(14))
        draw.text((MARGIN, y + 66), f"{group.size} components" if group.size > 1 else "1 component", palette.FAINT,
                  palette.font(12))  # fmt: skip
        for column, part in enumerate(group.components):
            x = left + column * block
            draw.text((x, y), f"{part.index}", palette.ACCENT, palette.font(12, bold=True))
            draw.text((x + 34, y), f"{part.weight:.2%}", palette.INK, palette.font(12))
            for place, image in enumerate(part.images):
                sheet.paste(pictures[image], (x + place * (THUMBNAIL + 2), y + 18))
    _save(sheet, path)


def _caption(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, width: int, lines: int = 2) -> None:
    """Small text in `lines` lines of at most `width` pixels, broken between words; what does not fit is left out."""
    font = palette.font(11)
    words = text.split()
    for line in range(lines):
        fitting = 1
        while fitting < len(words) and draw.textlength(" ".join(words[: fitting + 1]), font) <= width:
            fitting += 1
        shown, words = " ".join(words[:fitting]), words[fitting:]
        if (words and line == lines - 1) or draw.textlength(shown, font) > width:
            while shown and draw.textlength(shown + "…", font) > width:
                shown = shown[:-1]
            shown += "…"
        draw.text((x, y + 13 * line), shown, palette.INK, font)


def _save(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, optimize=True)
