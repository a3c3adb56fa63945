"""An index that is open: searched from disk, and changed without training or encoding anything again."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock

from stages.artifacts import INDEX, Provenance
from stages.errors import InputError
from stages.index import binary
from stages.index.files import (
    MANIFEST,
    ROWS,
    Part,
    read_faiss,
    read_manifest,
    read_rows,
    write_index,
    write_thumbnails,
)


class BinaryIndex:
    """``data/index``, open. Several threads may search it while none changes it.

    Attributes:
        directory, manifest: where it lies, and what it is.
        ids: int64 (n,), the image of each row.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """

    def __init__(self, directory: Path = INDEX) -> None:
        self.directory = directory
        self._open()

    def _open(self) -> None:
        self.manifest = read_manifest(self.directory)
        self._index = read_faiss(self.directory, self.manifest)
        # A multi-hash index keeps the number of flips of a look-up, so that only one thread may be at it.
        self._turn = threading.Lock() if self.manifest.kind == "multihash" else nullcontext()
        self._rows = read_rows(self.directory, self.manifest)
        self.ids: np.ndarray = self._rows["id"].to_numpy()
        # Of one chunk, these are no copies. Python's own slices of a few rows take less time than Arrow's `take`, which
        # is a part of that of the search.
        names, labels = (self._rows[column].combine_chunks() for column in ("name", "labels"))
        _, ends, content = names.buffers()
        self._name_bytes = memoryview(content or b"")
        self._name_ends = np.frombuffer(ends, np.int32)[names.offset :]
        self._has_name = names.is_valid().to_numpy(zero_copy_only=False)
        self._label_ends, self._label_values = labels.offsets.to_numpy(), labels.values.to_numpy()
        for name in ("_order", "_parts"):
            self.__dict__.pop(name, None)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bits(self) -> int:
        return self.manifest.bits

    @property
    def exact(self) -> bool:
        """Whether a search finds all that is nearest; an IVF may miss some."""
        return self.manifest.kind != "ivf"

    @property
    def mapped(self) -> bool:
        """Whether the codes stay on disk; faiss cannot map a multi-hash index."""
        return self.manifest.kind != "multihash"

    @property
    def provenance(self) -> Provenance:
        return self.manifest.provenance

    def nearest(self, code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of the `count` codes nearest to uint8 (bits / 8,), by distance, then by row."""
        with self._turn:
            return binary.nearest(self._index, code, count)

    def within(self, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of all codes at most `radius` bits from uint8 (bits / 8,), by distance, then by row."""
        with self._turn:
            return binary.within(self._index, code, radius)

    @cached_property
    def _order(self) -> np.ndarray | None:
        """Rows by ascending id; None where that is their order, which saves as many jumps in memory again."""
        return None if (self.ids[1:] > self.ids[:-1]).all() else np.argsort(self.ids, kind="stable")

    @cached_property
    def _parts(self) -> list[Part]:
        return [Part(self.directory / name) for name in self.manifest.parts]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The row of each image, int64; -1 where there is no such image."""
        places = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=len(self.ids) - 1)
        rows = places if self._order is None else self._order[places]
        return np.where(self.ids[rows] == ids, rows, -1)

    def code_of(self, image: int) -> np.ndarray | None:
        """The packed code of an image by id; None where there is no such image."""
        row = self.rows_of(np.array([image]))
        return None if row[0] < 0 else binary.codes_at(self._index, row)[0]

    def codes_at(self, rows: np.ndarray) -> np.ndarray:
        """The packed codes of some rows, each given once, uint8 (k, bits / 8)."""
        return binary.codes_at(self._index, rows)

    def codes(self) -> np.ndarray:
        """All codes in the order of `ids`, uint8 (n, bits / 8)."""
        return np.array(binary.all_codes(self._index))

    def names(self, rows: np.ndarray) -> list[str | None]:
        """The file names that the images of some rows came with; None where there was none."""
        starts, ends = (self._name_ends[rows + end].tolist() for end in (0, 1))
        return [str(self._name_bytes[start:end], "utf-8") if has_name else None
                for start, end, has_name in zip(starts, ends, self._has_name[rows].tolist(), strict=True)]  # fmt: skip

    def labels(self, rows: np.ndarray) -> list[list[str]]:
        """The names of the labels of the images of some rows."""
        classes = self.manifest.classes
        starts, ends = (self._label_ends[rows + end].tolist() for end in (0, 1))
        return [[classes[label] for label in self._label_values[start:end].tolist()]
                for start, end in zip(starts, ends, strict=True)]  # fmt: skip

    def thumbnails(self, ids: np.ndarray) -> dict[int, bytes | None]:
        """Small JPEGs by id; None for an image that came without pixels."""
        found: dict[int, bytes | None] = dict.fromkeys(np.asarray(ids).tolist())
        for part in self._parts:
            found |= part.read("thumbnail", ids)
        return found

    def added_features(self, ids: np.ndarray) -> dict[int, list[float] | None]:
        """Features of those of the images that were added later, by id; None for one that came without."""
        found: dict[int, list[float] | None] = {}
        for part in self._parts[1:]:
            has = part.has_features
            found |= part.read("feature", ids) if has else dict.fromkeys(ids[np.isin(ids, part.ids)].tolist())
        return found

    # ---- changes

    def add(
        self, ids: Sequence[int], codes: np.ndarray, names: Sequence[str | None] | None = None,
        thumbnails: Sequence[bytes | None] | None = None, features: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Add images, on disk and here, in one step.

        Args:
            ids: of the n new images, none of which is here yet.
            codes: packed, uint8 (n, bits / 8), of the network that the index is of.
            names, thumbnails: what a search shows of them; small JPEGs, as of :func:`stages.images.thumbnail`.
            features: float (n, d), for re-ranking.

        Raises:
            InputError: an id is not new, shapes do not fit, or another process has changed the index.
        """
        ids, codes = np.asarray(ids, np.int64), np.asarray(codes)
        shape = len(ids), self.bits // 8
        if codes.dtype != np.uint8 or codes.shape != shape:
            raise InputError(f"{self.directory}: codes to add are {codes.dtype} {codes.shape}, not uint8 {shape}")
        taken = ids[self.rows_of(ids) >= 0]
        if len(taken) or len(np.unique(ids)) < len(ids):
            known = f"has image {taken[0]} already" if len(taken) else "is given an id twice"
            raise InputError(f"{self.directory}: {known}; add images with ids from {self.ids.max() + 1} on")
        for what, values in (("names", names), ("thumbnails", thumbnails), ("features", features)):
            if values is not None and len(values) != len(ids):
                raise InputError(f"{self.directory}: {len(values)} {what} for {len(ids)} images")
        if not len(ids):
            return
        new = pa.table([ids, pa.array(names or [None] * len(ids), pa.string()), [[]] * len(ids)], schema=ROWS)
        with self._changing() as generation:
            pictures = [(ids, list(thumbnails or [None] * len(ids)))]
            part = write_thumbnails(self.directory, generation, pictures, features)
            index = read_faiss(self.directory, self.manifest, mapped=False)
            index.add(np.ascontiguousarray(codes))
            manifest = replace(self.manifest, generation=generation, parts=[*self.manifest.parts, part])
            write_index(self.directory, manifest, index, pa.concat_tables([self._rows, new]))

    def remove(self, ids: Sequence[int]) -> None:
        """Remove images with all that is kept of them, on disk and here, in one step.

        Raises:
            InputError: an image is not here, none would be left, or another process has changed the index.
        """
        ids = np.unique(np.asarray(ids, np.int64))
        rows = np.sort(self.rows_of(ids))
        if (rows < 0).any():
            raise InputError(f"{self.directory}: has no image {ids[self.rows_of(ids) < 0][0]} to remove")
        if len(rows) == len(self):
            raise InputError(f"{self.directory}: an index cannot be left empty; keep an image, or delete the directory")
        if not len(rows):
            return
        with self._changing() as generation:
            kept = np.delete(np.arange(len(self)), rows)
            parts = [part.write_without(ids, generation) if np.isin(part.ids, ids).any() else name
                     for name, part in zip(self.manifest.parts, self._parts, strict=True)]  # fmt: skip
            index = binary.without(read_faiss(self.directory, self.manifest, mapped=False), rows)
            manifest = replace(self.manifest, generation=generation, parts=parts)
            write_index(self.directory, manifest, index, self._rows.take(kept))

    @contextmanager
    def _changing(self) -> Iterator[int]:
        """One change by one process, of what was read here; gives the new generation. Then old files are deleted."""
        with FileLock(self.directory.parent / f".{self.directory.name}.lock"):
            if read_manifest(self.directory) != self.manifest:
                raise InputError(f"{self.directory}: was changed by another process meanwhile; open it again")
            try:
                yield self.manifest.generation + 1
                self._open()
            finally:
                kept = {MANIFEST, *read_manifest(self.directory).files}
                for file in self.directory.iterdir():
                    if file.name not in kept:
                        file.unlink()
