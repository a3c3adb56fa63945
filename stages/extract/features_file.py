"""The layout of ``data/features.h5``, empty, for the two ways in which it is filled; read by :mod:`stages.features`."""

from collections.abc import Mapping

import h5py
import numpy as np

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.hdf5 import write_text

#: Rows of a chunk.
CHUNK = 1024


def lay_out(
    file: h5py.File, ids: np.ndarray, train_ids: np.ndarray, dim: int, n_views: int, provenance: Provenance,
    attributes: Mapping[str, str],
) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Make the data sets of the images `ids` and of `n_views` views of those in `train_ids`.

    Args:
        attributes: model, pretrained tag, preprocessing, precision.

    Returns:
        ``image/features``, float16 (N, dim), and ``train/views``, float16 (n_views, n_train, dim), to be filled.
    """
    for name, text in {PROVENANCE_KEY: provenance.to_json(), **attributes}.items():
        write_text(file, name, text)
    file["image/id"], file["train/id"] = ids, train_ids
    images = file.create_dataset("image/features", (len(ids), dim), "f2", chunks=(min(CHUNK, len(ids)), dim))
    chunks = (1, min(CHUNK, len(train_ids)), dim) if len(train_ids) else None  # a chunk cannot be empty
    views = file.create_dataset("train/views", (n_views, len(train_ids), dim), "f2", chunks=chunks)
    return images, views
