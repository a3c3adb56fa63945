"""Parquet of features that somebody else computed, and Parquet that says what the rows of a ``.npy`` file are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.download.feature_files import NAMES, Batch, FeatureFile, read_rows
from stages.download.parquet_columns import (
    batches,
    get,
    has_split,
    is_list,
    is_text,
    label_column,
    read_types,
    refuse,
    texts,
)
from stages.errors import InputError

#: What a column of features may be called: the first one that is there is taken.
FEATURES = ("features", "embedding", "image_embedding", "feature")


@dataclass(frozen=True)
class _Columns:
    """What a Parquet file says of its rows.

    Attributes:
        label, split, name: the columns of these, "" for those that are not there.
        class_names: () unless it says them; licence: "" likewise.
    """

    file: Path
    label: str
    split: str
    name: str
    class_names: tuple[str, ...]
    licence: str

    @property
    def present(self) -> list[str]:
        return [name for name in (self.label, self.split, self.name) if name]

    def of(self, rows: pa.RecordBatch) -> tuple[pa.Array, list[str] | None, list[str] | None]:
        return (
            rows[self.label] if self.label else pa.nulls(len(rows)),
            texts(rows[self.split]) if self.split else None,
            texts(rows[self.name].cast(pa.large_string())) if self.name else None,
        )

    def labels(self) -> Iterator[pa.Array]:
        for _, rows in batches(self.file, [self.label]) if self.label else ():
            yield rows[self.label]


def table_file(path: Path) -> FeatureFile:
    """A Parquet file with a column of lists of floating-point numbers, called one of :data:`FEATURES`.

    Labels, class names and splits are as in Parquet of images; names have a column called one of
    :data:`stages.download.feature_files.NAMES`.

    Raises:
        InputError: it is damaged, or has other columns.
    """
    types, rows, columns = _look_at(path)
    feature = next((name for name in FEATURES if name in types), FEATURES[0])
    kind = types.get(feature, pa.null())
    if not (is_list(kind) and pa.types.is_floating(kind.value_type)):
        refuse(path, feature, types, "lists of floating-point numbers")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(path, feature)
    if not dim:
        raise InputError(f"{path}: column '{feature}' has no numbers; fill it, or take the file away")
    read = partial(_table_batches, path, columns, feature, dim)
    return FeatureFile(path, rows, dim, read, columns.labels, columns.class_names, columns.licence)


def accompanied(array: FeatureFile, table: Path) -> FeatureFile:
    """`array` with the names, splits and labels of a Parquet file that has a row for each of its rows.

    Raises:
        InputError: the Parquet file is damaged, or has not as many rows.
    """
    _, rows, columns = _look_at(table)
    if rows != array.rows:
        raise InputError(f"{array.path}: {array.rows:,} features, and {table} {rows:,} rows; take both from one run")
    if not columns.present:
        return array
    read = partial(_accompanied_batches, array.path, columns)
    labels = columns.labels if columns.label else array.labels
    return replace(array, batches=read, labels=labels, class_names=columns.class_names, beside=(*array.beside, table))


def _look_at(path: Path) -> tuple[dict[str, pa.DataType], int, _Columns]:
    """Type of each column, number of rows, and which columns there are."""
    types, info, rows = read_types(path)
    label, class_names = label_column(path, types, info)
    split = "split" if has_split(path, types) else ""
    readable = [name for name, kind in types.items() if is_text(kind) or pa.types.is_integer(kind)]
    name = next((name for name in NAMES if name in readable), "")
    licence = get(info, "license")
    return types, rows, _Columns(path, label, split, name, class_names, licence if isinstance(licence, str) else "")


def _table_batches(path: Path, columns: _Columns, feature: str, dim: int, start: int) -> Iterator[Batch]:
    for first, rows in batches(path, [feature, *columns.present], start):
        yield Batch(_matrix(rows[feature], dim, path, feature, first), *columns.of(rows))


def _accompanied_batches(path: Path, columns: _Columns, start: int) -> Iterator[Batch]:
    for first, rows in batches(columns.file, columns.present, start):
        batch = read_rows(path, slice(first, first + len(rows)))
        labels, splits, names = columns.of(rows)
        yield Batch(batch.features, labels if columns.label else batch.labels, splits, names)


def _first_length(path: Path, feature: str) -> int:
    """Length of the first lists that there are, 0 for none."""
    lengths = (pc.max(pc.list_value_length(rows[feature])) for _, rows in batches(path, [feature]))
    return next((length.as_py() for length in lengths if length.is_valid), 0)


def _matrix(lists: pa.Array, dim: int, path: Path, feature: str, first: int) -> np.ndarray:
    """Lists as rows (b, dim), of NaN where there is no list."""
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), dim).to_numpy()
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        raise InputError(
            f"{path}: column '{feature}' has {lengths[wrong[0]]} numbers in row {first + wrong[0]}, and {dim} in "
            f"others; one model gives as many for every image"
        )
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    rows = np.full((len(lists), dim), np.nan, values.dtype)
    rows[there] = values.reshape(-1, dim)
    return rows
