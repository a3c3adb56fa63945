"""``data/features.h5``: the cached CLIP features, read lazily and by slices.

Layout: ``image/features`` (N, d) of every image, row = image id; ``image/id``; ``train/views`` (V, n_train, d) of the
augmented views of the training images; ``train/id``. float16 on disk, rows of unit L2 length.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from stages.artifacts import FEATURES, PROVENANCE_KEY, Provenance, damaged
from stages.errors import InputError
from stages.hdf5 import read_text

#: Rows that are read and converted at a time: what comes between the file and the result stays in the core's cache.
PIECE = 1024
#: Ids with no more than so many others between them are read at once, with those.
GAP = 64


class Features:
    """An open ``features.h5``; use it as a context manager.

    Attributes:
        path: the file; n_images, dim, n_views: N, d, V.
        train_id: (n_train,) int64, ascending.
        provenance: data set, model, versions; precision: in which the model encoded, "" where none did.

    Raises:
        InputError: it is missing, truncated or of another schema.
    """

    def __init__(self, path: Path = FEATURES) -> None:
        if not path.exists():
            raise InputError(f"{path}: not found; run `dvc repro extract`")
        self.path = path
        try:
            # Without a cache of chunks: it would read a whole chunk for each row of it that is asked for.
            self._file = h5py.File(path, rdcc_nbytes=0)
        except OSError as error:
            raise damaged(path, error) from None
        try:
            self._open(path)
        except BaseException:
            self._file.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            self._features = self._file["image/features"]
            self._views = self._file["train/views"]
            self.train_id: np.ndarray = self._file["train/id"][:]
            self.provenance = Provenance.from_json(read_text(self._file, PROVENANCE_KEY), path)
            self.precision = read_text(self._file, "precision") or ""
            self.n_images, self.dim = self._features.shape
            self.n_views, *rest = self._views.shape
        except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise damaged(path, error) from None
        if rest != [len(self.train_id), self.dim]:
            raise damaged(path, f"train/views has shape {self._views.shape}, image/features {self._features.shape}")
        if len(self.train_id) and not (self.train_id[0] >= 0 and self.train_id[-1] < self.n_images):
            raise damaged(path, f"train/id reaches beyond the {self.n_images} images")

    def images(self, ids: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Features of images by id (ascending ids or a slice): float32 (n, d), unit rows."""
        if isinstance(ids, slice):
            ids = np.arange(self.n_images)[ids]
        rows = np.empty((len(ids), self.dim), np.float32)
        for place, stored in self._pieces(ids):
            rows[place] = self._unit(stored)
        return rows

    def train(self) -> np.ndarray:
        """Features of the unaugmented training images: float32 (n_train, d), unit rows, in the order of `train_id`."""
        return self.images(self.train_id)

    def views(self) -> np.ndarray:
        """Features of the augmented views of the training images: float32 (V, n_train, d), unit rows."""
        rows = np.empty(self._views.shape, np.float32)
        step = max(1, PIECE // max(1, self.n_views))
        for start in range(0, rows.shape[1], step):
            place = np.s_[:, start : start + step]
            rows[place] = self._unit(self._views[place])
        return rows

    def stored_train(self, start: int, stop: int) -> np.ndarray:
        """Training images `start` to `stop`, in the order of `train_id`, as they are stored: float16 (n, d)."""
        rows = np.empty((stop - start, self.dim), np.float16)
        for place, stored in self._pieces(self.train_id[start:stop]):
            rows[place] = stored
        return rows

    def stored_view(self, view: int, start: int, stop: int) -> np.ndarray:
        """One view of each of the training images `start` to `stop`, as it is stored: float16 (n, d)."""
        return self._views[view, start:stop]

    def _pieces(self, ids: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Features of images by ascending ids as they are stored: places in `ids`, and the rows (n, d) of these."""
        cuts = np.flatnonzero(np.diff(ids) > GAP) + 1
        edges = np.union1d(cuts, np.arange(0, len(ids) + PIECE, PIECE)).clip(max=len(ids)).tolist()
        for start, stop in pairwise(edges):
            if start < stop:
                # One contiguous read, then a selection: HDF5's own fancy indexing is far slower.
                first, last = int(ids[start]), int(ids[stop - 1]) + 1
                yield slice(start, stop), self._features[first:last][ids[start:stop] - first]

    def _unit(self, half: np.ndarray) -> np.ndarray:
        rows = half.astype(np.float32)
        if not np.isfinite(rows).all():
            raise damaged(self.path, "has features that are not finite numbers")
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)  # undo float16 rounding

    def __enter__(self) -> "Features":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
