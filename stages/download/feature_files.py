"""Files of features that somebody else computed, as batches of rows: NumPy arrays and HDF5; Parquet is beside.

A file has features (n, d), one row an image, and, where they are given, n labels, splits and names. Nothing is
unpickled, and no more than a batch is in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.hdf5 import require_sound_heaps

#: Rows of an array that are read at a time.
ROWS = 4096

#: What names of images may be called: the first one that is there is taken.
NAMES = ("image_path", "path", "url", "id")


class Batch(NamedTuple):
    """Some rows of a file.

    Attributes:
        features: floating point (b, d).
        labels: b integers (-1 or null: none), or lists of them.
        splits, names: b texts, "" for none; None where there are none at all.
    """

    features: np.ndarray
    labels: pa.Array
    splits: list[str] | None
    names: list[str] | None


@dataclass(frozen=True)
class FeatureFile:
    """A file that was looked at.

    Attributes:
        path: where it lies; `beside`: other files that are read with it.
        rows, dim: n and d.
        batches: ``batches(start)`` streams the rows from number `start` on; what comes before is not read. Raises
            InputError where the file turns out to be damaged.
        labels: ``labels()`` streams the labels alone.
        class_names: the names of the labels 0, 1, ..., where it says them; `licence` likewise.
    """

    path: Path
    rows: int
    dim: int
    batches: Callable[[int], Iterator[Batch]]
    labels: Callable[[], Iterator[pa.Array]]
    class_names: tuple[str, ...] = ()
    licence: str = ""
    beside: tuple[Path, ...] = ()


class _Arrays(NamedTuple):
    """Arrays, or what is sliced like them."""

    features: Any
    labels: Any
    split: Any = None
    names: Any = None


def array_file(path: Path) -> FeatureFile:
    """A ``.npy`` file, with its labels in :func:`labels_beside` if that is there, or an HDF5 file.

    Raises:
        InputError: it is damaged, or its arrays have not the types and lengths that they should have.
    """
    with _opened(path) as arrays:
        shape, kind = arrays.features.shape or (), arrays.features.dtype
        if len(shape) != 2 or kind.kind != "f" or not shape[1]:
            raise InputError(
                f"{path}: features are {kind} {shape}, expected floating point (n, d); store one row an image, as "
                f"float16 or float32"
            )
        for what, values in list(arrays._asdict().items())[1:]:
            n = values.shape[0] if values is not None and values.ndim else 0
            if values is not None and n != shape[0]:
                raise InputError(f"{path}: {what} for {n:,} images, features for {shape[0]:,}; store as many of each")
        labels = arrays.labels
        if labels is not None and not (labels.dtype.kind in "iub" and labels.ndim <= 2):
            raise InputError(
                f"{path}: labels are {labels.dtype} {labels.shape}, expected integers (n,), -1 for none, or 0 and 1 "
                f"(n, classes)"
            )
    beside = tuple(file for file in (labels_beside(path),) if path.suffix.lower() == ".npy" and file.exists())
    read = partial(_array_batches, path, shape[0])
    return FeatureFile(path, *shape, read, partial(_array_labels, path), beside=beside)


def labels_beside(path: Path) -> Path:
    """Where the labels of a ``.npy`` file of features are: NAME.labels.npy beside NAME.npy."""
    return path.with_suffix(".labels.npy")


def _array_batches(path: Path, rows: int, start: int) -> Iterator[Batch]:
    for first in range(start, rows, ROWS):
        yield read_rows(path, slice(first, min(first + ROWS, rows)))


def read_rows(path: Path, rows: slice) -> Batch:
    """Some rows of a file that :func:`array_file` takes.

    Raises:
        InputError: they cannot be read, or labels (n, classes) are something else than 0 and 1.
    """
    # Opened for these rows alone, since what was read of a memory map counts as memory until it is closed.
    with _opened(path) as arrays:
        features, labels, split, names = (None if values is None else np.array(values[rows]) for values in arrays)
    return Batch(
        features,
        pa.nulls(len(features)) if labels is None else _label_lists(labels, path, rows.start),
        None if split is None else _texts(split),
        None if names is None else _texts(names),
    )


def _array_labels(path: Path) -> Iterator[pa.Array]:
    with _opened(path) as arrays:
        labels = arrays.labels
        if labels is not None and labels.ndim == 2:  # a column is a class, whether it occurs or not
            yield pa.array(np.arange(labels.shape[1]))
        elif labels is not None:
            yield pa.array(labels[:])


def _label_lists(labels: np.ndarray, path: Path, first: int) -> pa.Array:
    """Labels (b,), or the numbers of the columns that are 1 in labels (b, classes)."""
    if labels.ndim == 1:
        return pa.array(labels)
    wrong = np.argwhere((labels != 0) & (labels != 1))
    if len(wrong):
        raise InputError(
            f"{path}: labels have a {labels[tuple(wrong[0])]} in row {first + wrong[0][0]}, expected 0 and 1, one "
            f"column a class"
        )
    rows, columns = np.nonzero(labels)
    ends = np.searchsorted(rows, np.arange(len(labels) + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(columns))


def _texts(values: np.ndarray) -> list[str]:
    return [str(value) for value in values.tolist()]


@contextmanager
def _opened(path: Path) -> Iterator[_Arrays]:
    if path.suffix.lower() == ".npy":
        beside = labels_beside(path)
        yield _Arrays(_memory_map(path), _memory_map(beside) if beside.exists() else None)
        return
    try:
        with h5py.File(path) as file:
            yield _hdf5_arrays(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # a damaged file may raise any of them
        raise InputError(f"{path}: cannot be read as HDF5 ({_reason(error)}); fetch or write it again") from None


def _memory_map(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file, on disk.

    Raises:
        InputError: it is damaged, or holds Python objects, which would have to be unpickled.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header may raise anything
        raise InputError(
            f"{path}: cannot be read as an array of numbers ({_reason(error)}); write it again with numpy.save"
        ) from None


def _hdf5_arrays(path: Path, file: h5py.File) -> _Arrays:
    """``features`` of the file, or of its group ``image`` (this project's own ``features.h5``), and what is beside."""
    group = file["image"] if isinstance(file.get("image"), h5py.Group) and "features" not in file else file
    found = {name: group.get(name) for name in ("features", "labels", "split", *NAMES)}
    found = {name: values for name, values in found.items() if isinstance(values, h5py.Dataset)}
    for name, values in found.items():
        if values.external or values.is_virtual or isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise InputError(f"{path}: refused, its data set '{name}' is in other files; copy it into this one")
    if "features" not in found:
        raise InputError(f"{path}: has no data set 'features' (n, d); it has {', '.join(file) or 'nothing'}")
    names = next((found[name] for name in NAMES if name in found), None)
    return _Arrays(
        found["features"], found.get("labels"), _readable(found.get("split"), path), _readable(names, path)
    )  # fmt: skip


def _readable(values: h5py.Dataset | None, path: Path) -> Any:
    texts = None if values is None else h5py.check_string_dtype(values.dtype)
    if texts and texts.length is None:
        require_sound_heaps(path)
    return values.asstr(errors="replace") if texts else values


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
