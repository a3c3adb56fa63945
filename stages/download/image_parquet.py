"""Parquet files of images in the layout of the Hugging Face hub: their columns checked, their rows as records."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.download.files import split_of
from stages.download.parquet_columns import (
    batches,
    distinct,
    get,
    has_split,
    is_text,
    label_column,
    read_types,
    refuse,
    refuse_several,
    row_labels,
    texts,
)
from stages.download.source import SPLIT_NAMES, Record


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    Attributes:
        image, label: columns; `label` is "" where there is none.
        names: the class names, () unless the file says them.
        has_split: whether there is a column ``split``.
        rows: number of images.
        licence: "" unless the file says it.
    """

    image: str
    label: str
    names: tuple[str, ...]
    has_split: bool
    rows: int
    licence: str


def read_layout(file: Path) -> Layout:
    """Check the columns of a file.

    The image column is ``image``, else the only one that is an image; the label column ``labels``, ``label`` or
    ``fine_label``, else the only one with class names.

    Raises:
        InputError: the file is damaged, or has other columns; names file and column.
    """
    types, info, rows = read_types(file)
    image = _image_column(file, types, get(info, "features"))
    label, names = label_column(file, types, info)
    licence = get(info, "license")
    return Layout(
        image=image,
        label=label,
        names=names,
        has_split=has_split(file, types),
        rows=rows,
        licence=licence if isinstance(licence, str) else "",
    )


def _image_column(file: Path, types: Mapping[str, pa.DataType], features: Any) -> str:
    marked = [name for name in types if get(features, name, "_type") == "Image"]
    candidates = marked or [name for name, kind in types.items() if pa.types.is_struct(kind) and _is_image(kind)]
    name = "image" if "image" in types or not candidates else candidates[0]
    if name not in types or not _is_image(types[name]):
        refuse(file, name, types, "struct<bytes: binary, path: string> or binary")
    if name != "image" and len(candidates) > 1:
        refuse_several(file, "image", candidates)
    return name


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def distinct_labels(files: Iterable[tuple[Path, Layout]]) -> np.ndarray:
    """The labels >= 0 that occur, ascending: int64. Only the label columns are read."""
    labelled = ((file, layout.label) for file, layout in files if layout.label)
    return distinct(batch[label] for file, label in labelled for _, batch in batches(file, [label]))


def read_records(name: str, file: Path, layout: Layout, values: np.ndarray, start: int) -> Iterator[Record]:
    """The images of a file from row `start` on.

    Args:
        name: the file as it is to be called in messages; its split is the images' where they have no column `split`.
        file: where it lies; `layout`: what :func:`read_layout` has found there.
        values: int64, the labels that the class names stand for, ascending.
        start: number of the first row.

    Raises:
        InputError: the file is damaged, or a label has no name.
    """
    columns = [layout.image] + [layout.label] * bool(layout.label) + ["split"] * layout.has_split
    split_of_file = split_of(name)
    for first, batch in batches(file, columns, start):
        n = len(batch)
        labels = row_labels(batch[layout.label], values, file, layout.label, first) if layout.label else [()] * n
        splits = [split_of_file] * n
        if layout.has_split:
            splits = [SPLIT_NAMES.get(split.lower(), "") for split in texts(batch["split"])]
        images, paths = _images(batch[layout.image])
        for row, image, path, label, split in zip(range(first, first + n), images, paths, labels, splits, strict=True):
            origin = f"{name}#{row}"
            problem = "" if image is not None else "has no bytes"
            yield Record(image or b"", path or origin, label, split, problem, f"{origin} {path}" if path else "")


def _images(column: pa.Array) -> tuple[list[bytes | None], list[str]]:
    """Encoded images and their paths ("" for none), of either layout."""
    if not pa.types.is_struct(column.type):
        return column.to_pylist(), [""] * len(column)
    fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    if "path" not in fields or not is_text(fields["path"].type):
        return fields["bytes"].to_pylist(), [""] * len(column)
    return fields["bytes"].to_pylist(), texts(fields["path"])
