"""Image shards with several small row groups, and the model that ships with the package."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.artifacts import IMAGES, PROVENANCE_KEY, Provenance
from stages.images import SCHEMA
from stages.scenes.render import render_scene

DIGEST = "d" * 64


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file of the kind `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Smooth noise, `size` (width, height) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def scenes(count: int) -> list[bytes]:
    """Rendered scenes, encoded."""
    return [encoded(Image.fromarray(render_scene(0, index).pixels)) for index in range(count)]


def write_shards(
    root: Path, images: list[bytes], is_train: np.ndarray, *, group: int = 5, shards: int = 2, digest: str = DIGEST
) -> None:
    """Write `images` into ``data/images`` under `root`; every third one that is not for training is a query.

    Args:
        group: rows of a row group; the last one of a shard has what is left.
    """
    n = len(images)
    is_query = (np.arange(n) % 3 == 0) & ~is_train
    structs = [{"bytes": data, "path": None} for data in images]
    columns = [np.arange(n), structs, [[i % 4] for i in range(n)], is_query, ~is_query, is_train]
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    table = table.replace_schema_metadata({PROVENANCE_KEY: Provenance("download", digest).to_json()})
    directory = root / IMAGES
    directory.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, n, shards + 1).astype(int)
    for shard, (start, stop) in enumerate(pairwise(edges)):
        file = directory / f"images-{shard:05d}.parquet"
        pq.write_table(table.slice(start, stop - start), file, row_group_size=group)


def pin_scenes_clip(directory: Path) -> Path:
    """The model ``scenes-clip`` in the layout of ``models/clip``."""
    from stages.weights.config import Clip  # with open_clip, which takes seconds
    from stages.weights.pinning import pin
    from stages.weights.source import find

    clip = Clip(model="scenes-clip", pretrained="embedded")
    directory.mkdir(parents=True)
    pin(find(clip.model, clip.pretrained), clip, directory)
    return directory
