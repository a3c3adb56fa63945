"""Columns of Parquet files that others wrote: labels, class names, splits and texts, whatever types they have there."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.download.remote import RemoteFile, opened
from stages.errors import InputError

#: Rows that are read at a time, and bytes, as far as the metadata tell.
ROWS = 256
BATCH_BYTES = 8 * 2**20
#: Bytes of a column that are read at a time.
BUFFER = 2**20


@contextmanager
def named_errors(file: Path) -> Iterator[None]:
    """Damaged Parquet raises either kind, without the name of the file."""
    try:
        yield
    except UnicodeEncodeError:  # Arrow opens no others
        raise InputError(f"{file}: its name is no UTF-8; rename it") from None
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as Parquet ({reason}); fetch it again") from None


def _source(file: Path | RemoteFile) -> Path | BinaryIO:
    return opened(file) if isinstance(file, RemoteFile) else file


def read_types(file: Path | RemoteFile) -> tuple[dict[str, pa.DataType], Any, int]:
    """The type of each column, the hub's description of the file (None where there is none), and its number of rows.

    Raises:
        InputError: the file is damaged, or two columns have the same name.
    """
    with named_errors(file), pq.ParquetFile(_source(file)) as parquet_file:
        schema, rows = parquet_file.schema_arrow, parquet_file.metadata.num_rows
    types = {field.name: field.type for field in schema}
    if len(types) < len(schema):
        raise InputError(f"{file}: two of its columns have the same name ({', '.join(schema.names)})")
    try:
        info = get(json.loads((schema.metadata or {}).get(b"huggingface", b"{}")), "info")
    except (ValueError, RecursionError):
        info = None
    return types, info, rows


def get(content: Any, *keys: str) -> Any:
    """What lies under `keys` in nested mappings that may have any other form."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def label_column(file: Path, types: Mapping[str, pa.DataType], info: Any) -> tuple[str, tuple[str, ...]]:
    """The label column, "" for none, and the names of its classes, () unless `info` says them.

    It is ``labels``, ``label`` or ``fine_label``, else the only one with class names.

    Raises:
        InputError: it holds no integers, or there are several.
    """
    features = get(info, "features")
    candidates = [name for name in types if class_names(get(features, name))]
    # CIFAR-100 of the hub has a coarse_label as well.
    name = next((name for name in ("labels", "label", "fine_label", *candidates) if name in types), "")
    if name not in ("", "labels", "label", "fine_label") and len(candidates) > 1:
        refuse_several(file, "label", candidates)
    kind = types.get(name, pa.int64())
    if not pa.types.is_integer(kind.value_type if is_list(kind) else kind):
        refuse(file, name, types, "integer or list of integers")
    return name, class_names(get(features, name))


def has_split(file: Path, types: Mapping[str, pa.DataType]) -> bool:
    """Whether there is a column ``split``.

    Raises:
        InputError: it is no text.
    """
    if "split" in types and not is_text(types["split"]):
        refuse(file, "split", types, "string")
    return "split" in types


def class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of one within a Sequence or List (also in its old form, a list of one)."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names = get(feature, "names") or get(feature, "feature", "names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def refuse(file: Path, column: str, types: Mapping[str, pa.DataType], expected: str) -> NoReturn:
    """Raise the InputError for a column that is missing or has another type."""
    if column not in types:
        raise InputError(f"{file}: has no column '{column}' ({expected}); its columns are {', '.join(types)}")
    raise InputError(f"{file}: column '{column}' is {types[column]}, expected {expected}")


def refuse_several(file: Path, column: str, candidates: Sequence[str]) -> NoReturn:
    """Raise the InputError for columns of which any could be meant."""
    raise InputError(f"{file}: has several {column} columns ({', '.join(candidates)}); call the one to use '{column}'")


def batches(file: Path, columns: Sequence[str], start: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) from row `start` on; row groups before it are not read."""
    # Without a buffer a whole row group would be in memory; others make them of gigabytes.
    with named_errors(file), pq.ParquetFile(_source(file), pre_buffer=False, buffer_size=BUFFER) as parquet_file:
        metadata = parquet_file.metadata
        ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=int)
        first = int(np.searchsorted(ends, start, side="right"))
        row = int(ends[first - 1]) if first else 0
        size = sum(metadata.row_group(group).total_byte_size for group in range(len(ends)))
        rows = max(1, min(ROWS, BATCH_BYTES * metadata.num_rows // max(1, size)))
        for batch in parquet_file.iter_batches(rows, range(first, len(ends)), list(columns)):
            skip = min(max(0, start - row), len(batch))
            if skip < len(batch):
                yield row + skip, batch.slice(skip)
            row += len(batch)


def distinct(columns: Iterable[pa.Array]) -> np.ndarray:
    """The labels >= 0 that occur, ascending: int64."""
    values = np.empty(0, dtype=np.int64)
    for column in columns:
        values = np.union1d(values, _flat(column)[1])
    return values[values >= 0]


def row_labels(column: pa.Array, values: np.ndarray, file: Path, name: str, first_row: int) -> list[tuple[int, ...]]:
    """Labels of each row as indices into `values` (int64, ascending), without those that are -1 or null.

    Args:
        column: integers, lists of them, or nulls.
        file, name, first_row: where the column is from, for the message.

    Raises:
        InputError: a label is not among `values`.
    """
    counts, flat = _flat(column)
    index, found = np.searchsorted(values, flat), np.isin(flat, values)
    ends = np.cumsum(counts)
    bad = np.flatnonzero(~found & (flat != -1))
    if len(bad):
        row = first_row + int(np.searchsorted(ends, bad[0], side="right"))
        raise InputError(
            f"{file}: column '{name}' has {flat[bad[0]]} in row {row}, expected -1 (none) to {len(values) - 1}, "
            f"since there are {len(values)} class names"
        )
    kept, before = index[found].tolist(), np.concatenate([[0], np.cumsum(found)])
    return [
        tuple(kept[start:end]) for start, end in zip(before[ends - counts].tolist(), before[ends].tolist(), strict=True)
    ]  # fmt: skip


def _flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Number of labels in each row, and all labels in a row; null is -1."""
    if is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy(), _integers(pc.list_flatten(column))
    return np.ones(len(column), dtype=np.int64), _integers(column)


def _integers(column: pa.Array) -> np.ndarray:
    return pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy(zero_copy_only=False)


def texts(column: pa.Array) -> list[str]:
    """The texts of a column, "" for null."""
    # They are decoded here, since Arrow would raise on bytes that are no UTF-8.
    return [text.decode("utf-8", "replace") for text in pc.fill_null(column.cast(pa.large_binary()), b"").to_pylist()]
