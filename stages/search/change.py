"""``python -m stages index --add DIR`` and ``--remove ID``: images that come and go, with the network that is there."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.encode.folder import BATCH, encode_files, files_of, report_skipped
from stages.errors import InputError
from stages.search.searcher import Searcher
from stages.workers import cores


def change(folder: str | None, ids: Sequence[int]) -> None:
    """Add the images of a folder to ``data/index`` of the current directory, and remove others by id.

    Args:
        folder: as of :func:`stages.encode.folder.files_of`; None: none are added.

    Raises:
        InputError: there is nothing to read, an image to remove is not there, or the models are not those of the index.
    """
    searcher = Searcher.open()
    paths = [] if folder is None else files_of(folder)
    if ids:
        searcher.index.remove(ids)
        print(f"{len(set(ids)):,} images removed")
    if paths:
        first, count = add_files(searcher, paths)
        print(f"{count:,} images added, with ids from {first}")


def add_files(searcher: Searcher, paths: Sequence[Path]) -> tuple[int, int]:
    """Add image files to the index in one step, under new ids in their order.

    What cannot be read is skipped, and named on standard error.

    Returns:
        The first id, and how many images were added.

    Raises:
        InputError: none can be read, or the models are not those of the index.
    """
    index, first = searcher.index, int(searcher.index.ids.max()) + 1
    workers = 0 if len(paths) <= BATCH else cores()
    batches = list(encode_files(searcher.encoder, paths, workers, index.manifest.thumbnail))
    report_skipped(batches, sys.stderr)
    names = [name for batch in batches for name in batch.names]
    if not names:
        raise InputError(f"{index.directory}: none of {len(paths):,} files to add can be read as an image")
    features = [batch.features for batch in batches if batch.features is not None]
    index.add(
        range(first, first + len(names)), np.concatenate([batch.codes for batch in batches]), names,
        [small for batch in batches for small in batch.thumbnails], np.concatenate(features) if features else None,
    )  # fmt: skip
    return first, len(names)
