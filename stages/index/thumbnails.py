"""Small JPEGs of the images of the shards, made by threads, a row group at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import damaged
from stages.images import ImageShards, read_row_group, thumbnail
from stages.progress import track
from stages.workers import run_threads


def shard_thumbnails(
    shards: ImageShards, ids: np.ndarray, size: int, threads: int
) -> Iterator[tuple[np.ndarray, list[bytes | None]]]:
    """Ids and thumbnails of the images `ids` (ascending), row group by row group; None for an image without pixels.

    Raises:
        InputError: a shard, or an image in it, cannot be read.
    """

    def made(group: tuple[Path, int]) -> tuple[np.ndarray, list[bytes | None]]:
        found: dict[int, bytes | None] = {}
        try:
            for index, _, data in read_row_group(*group):
                place = np.searchsorted(ids, index)
                if place < len(ids) and ids[place] == index:
                    try:
                        found[index] = None if data is None else thumbnail(data, size)
                    except ValueError as error:
                        raise damaged(group[0], f"image {index} {error}") from None
        except (pa.ArrowException, OSError) as error:
            raise damaged(group[0], error) from None
        return np.fromiter(found, np.int64, len(found)), list(found.values())

    groups = shards.row_groups()
    for part in track(run_threads(made, groups, threads), "thumbnails", len(groups)):
        if len(part[0]):
            yield part
