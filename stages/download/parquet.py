"""Image Parquet in the layout of the Hugging Face hub: `image`, and `label` or `labels`."""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.artifacts import sha256
from stages.download.source import SPLIT_NAMES, Record, Source
from stages.errors import InputError

#: Rows that are read at a time.
ROWS = 256


@dataclass(frozen=True)
class _Layout:
    """What a file holds: its label column ("" for none), the names of its classes (() unless it says them)."""

    label: str
    names: tuple[str, ...]
    has_split: bool
    rows: int
    licence: str


def parquet(path: str) -> Source:
    """The images of a Parquet file, of all those in a directory, or of all that a glob matches.

    Splits are those of a string column `split`, or of the file names (train-00000-of-00002.parquet) or their folders.
    Class names are the hub's, from the schema metadata; without them, the integers that occur. A label of -1 or null is
    no label.

    Raises:
        InputError: there is no such file, one is damaged, or has other columns; names file and column.
    """
    files, base = _find(path)
    layouts = {file: _layout(file) for file in files}
    first = layouts[files[0]]
    for file, layout in layouts.items():
        if (layout.label, layout.names) != (first.label, first.names):
            raise InputError(f"{file}: has another label column or other class names than {files[0]}; read them apart")
    if first.names:
        values, names = np.arange(len(first.names)), first.names
    else:
        values = _distinct(files, first.label)
        names = tuple(str(value) for value in values)
    return Source(
        name=base.name,
        class_names=names,
        licence=first.licence,
        source=path,
        size=sum(layout.rows for layout in layouts.values()),
        records=(record for file in files for record in _records(file, layouts[file], values)),
        digests={file.relative_to(base).as_posix(): sha256(file) for file in files},
    )


def _find(path: str) -> tuple[list[Path], Path]:
    """The files that `path` means, sorted, and the directory that they lie under."""
    given = Path(path)
    if given.is_dir():
        files = [file for file in given.rglob("*.parquet") if not _hidden(file.relative_to(given))]
    else:
        # A name is itself before it is a pattern: brackets are legal in names.
        files = [given] if given.is_file() else _glob(path)
    files = sorted(file.resolve() for file in files if file.is_file())
    if not files:
        raise InputError(f"data.path: {path}: no Parquet file there")
    return files, Path(os.path.commonpath([file.parent for file in files]))


def _glob(pattern: str) -> list[Path]:
    return [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - Path.glob takes no absolute one


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _layout(file: Path) -> _Layout:
    """Check the columns of a file."""
    with _named_errors(file), pq.ParquetFile(file) as parquet_file:
        schema, rows = parquet_file.schema_arrow, parquet_file.metadata.num_rows
    types = {field.name: field.type for field in schema}
    if len(types) < len(schema):
        raise InputError(f"{file}: two of its columns have the same name ({', '.join(schema.names)})")
    image = types.get("image", pa.null())
    if pa.types.is_struct(image):
        image = image.field("bytes").type if image.get_field_index("bytes") >= 0 else pa.null()
    if not _is_binary(image):
        _refuse(file, "image", types, "struct<bytes: binary, path: string> or binary")
    label = next((name for name in ("labels", "label") if name in types), "")
    if label == "labels" and not (_is_list(types[label]) and pa.types.is_integer(types[label].value_type)):
        _refuse(file, label, types, "list of integers")
    if label == "label" and not pa.types.is_integer(types[label]):
        _refuse(file, label, types, "integer")
    if "split" in types and not (pa.types.is_string(types["split"]) or pa.types.is_large_string(types["split"])):
        _refuse(file, "split", types, "string")
    info = _hub_info(schema)
    return _Layout(
        label=label,
        names=_class_names(_get(info, "features", label)) if label else (),
        has_split="split" in types,
        rows=rows,
        licence=_get(info, "license") if isinstance(_get(info, "license"), str) else "unknown",
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _refuse(file: Path, column: str, types: dict[str, pa.DataType], expected: str) -> NoReturn:
    if column not in types:
        raise InputError(f"{file}: has no column '{column}' ({expected}); its columns are {', '.join(types)}")
    raise InputError(f"{file}: column '{column}' is {types[column]}, expected {expected}")


def _hub_info(schema: pa.Schema) -> Any:
    try:
        return _get(json.loads((schema.metadata or {}).get(b"huggingface", b"{}")), "info")
    except (ValueError, RecursionError):
        return None


def _get(content: Any, *keys: str) -> Any:
    """What lies under `keys` in nested mappings that may have any other form."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of one within a Sequence or List (also in its old form, a list of one)."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names = _get(feature, "names") or _get(feature, "feature", "names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _file_split(file: Path) -> str:
    """The split that a file's name begins with, or its folder is named after."""
    for name in (re.split(r"[-_. ]", file.name)[0], file.parent.name):
        if name.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[name.lower()]
    return ""


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """Damaged Parquet raises either kind, without the name of the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as Parquet ({reason}); fetch it again") from None


def _batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _named_errors(file), pq.ParquetFile(file, pre_buffer=False) as parquet_file:
        yield from parquet_file.iter_batches(ROWS, columns=list(columns))


def _distinct(files: Sequence[Path], column: str) -> np.ndarray:
    """The labels >= 0 that occur, ascending: int64."""
    values = np.empty(0, dtype=np.int64)
    for file in files if column else ():
        for batch in _batches(file, [column]):
            values = np.union1d(values, _flat(batch[column])[1])
    return values[values >= 0]


def _flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Number of labels in each row, and all labels in a row; null is -1."""
    if _is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy(), _integers(pc.list_flatten(column))
    return np.ones(len(column), dtype=np.int64), _integers(column)


def _integers(column: pa.Array) -> np.ndarray:
    return pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy(zero_copy_only=False)


def _labels(column: pa.Array, values: np.ndarray, file: Path, name: str, first_row: int) -> list[tuple[int, ...]]:
    """Labels of each row as indices into `values`, without those below 0."""
    counts, flat = _flat(column)
    index, found = np.searchsorted(values, flat), np.isin(flat, values)
    bad = np.flatnonzero(~found & (flat != -1))
    if len(bad):
        row = first_row + int(np.searchsorted(np.cumsum(counts), bad[0], side="right"))
        raise InputError(
            f"{file}: column '{name}' has {flat[bad[0]]} in row {row}, expected -1 (none) to {len(values) - 1}, "
            f"since there are {len(values)} class names"
        )
    ends = np.cumsum(counts)
    return [
        tuple(index[start:end][found[start:end]].tolist()) for start, end in zip(ends - counts, ends, strict=True)
    ]  # fmt: skip


def _records(file: Path, layout: _Layout, values: np.ndarray) -> Iterator[Record]:
    columns = ["image"] + [layout.label] * bool(layout.label) + ["split"] * layout.has_split
    file_split = _file_split(file)
    row = 0
    for batch in _batches(file, columns):
        labels = _labels(batch[layout.label], values, file, layout.label, row) if layout.label else [()] * len(batch)
        splits = batch["split"].to_pylist() if layout.has_split else [file_split] * len(batch)
        for image, label, split in zip(batch["image"], labels, splits, strict=True):
            data, path = _image(image)
            origin = f"{file.name}#{row}"
            split = SPLIT_NAMES.get((split or "").lower(), "")
            problem = "" if data is not None else "has no bytes"
            yield Record(data or b"", path or origin, label, split, problem, f"{origin} {path}" if path else "")
            row += 1


def _image(value: pa.Scalar) -> tuple[bytes | None, str | None]:
    """(encoded bytes, path) of one image of either layout."""
    if not (pa.types.is_struct(value.type) and value.is_valid):
        return value.as_py(), None
    path = value.get("path")
    # The path is decoded here, since Arrow would raise on bytes that are no UTF-8.
    text = path.as_buffer().to_pybytes().decode("utf-8", "replace") if path is not None and path.is_valid else None
    return value["bytes"].as_py(), text
