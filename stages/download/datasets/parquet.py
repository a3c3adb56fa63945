"""Image Parquet in the layout of the Hugging Face hub, from this machine, an object store or the hub itself."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from stages.artifacts import sha256
from stages.download.config import DatasetOptions, required_path
from stages.download.datasets.parquet_hub import HUB, Found, find_on_the_hub
from stages.download.files import find_files, text
from stages.download.image_parquet import Layout, distinct_labels, read_layout, read_records
from stages.download.remote import RemoteFile, find_remote, is_remote, remote_states
from stages.download.source import Record, Source
from stages.errors import InputError
from stages.progress import track
from stages.workers import cores, run_threads


def parquet(options: DatasetOptions) -> Source:
    """The images of a Parquet file, of all those in a directory or in a data set of the hub, or that a glob matches.

    Splits are those of a string column `split`, or of the file names (train-00000-of-00002.parquet) or their folders.
    Class names are the hub's, from the schema metadata; without them, the integers that occur. A label of -1 or null is
    no label.

    Raises:
        InputError: there is no such file, one is damaged, or has other columns; names file and column.
        OutsideError: the hub does not give it.
    """
    path = required_path(options)
    if path.startswith(HUB):
        found = find_on_the_hub(path)
    else:
        found = _in_a_store(path) if is_remote(path) else _on_this_machine(path, options.workers or cores())
    layouts = {name: read_layout(file) for name, file in found.files.items()}
    first_name, first = next(iter(layouts.items()))
    for name, layout in layouts.items():
        if (layout.label, layout.names) != (first.label, first.names):
            raise InputError(
                f"{found.files[name]}: has another label column or other class names than {first_name}; read them apart"
            )
    if first.names:
        values, names = np.arange(len(first.names)), first.names
    else:
        values = distinct_labels((found.files[name], layout) for name, layout in layouts.items())
        names = tuple(str(value) for value in values)
    return Source(
        name=found.name,
        class_names=names,
        licence=found.licence or first.licence or "unknown",
        source=found.source,
        size=sum(layout.rows for layout in layouts.values()),
        records=partial(_records, found.files, layouts, values),
        digests=found.digests,
        identity=found.identity,
        notes=found.notes,
    )


def _records(
    files: Mapping[str, Path | RemoteFile], layouts: Mapping[str, Layout], values: np.ndarray, start: int
) -> Iterator[Record]:
    for name, layout in layouts.items():
        if start < layout.rows:
            yield from read_records(name, files[name], layout, values, start)
        start = max(0, start - layout.rows)


def _in_a_store(path: str) -> Found:
    files = find_remote(path, (".parquet",), "Parquet file")
    name = files[0].url.removesuffix(files[0].name).rstrip("/").rsplit("/", 1)[-1]
    return Found({file.name: file for file in files}, {}, name, path, identity=remote_states(files))


def _on_this_machine(path: str, workers: int) -> Found:
    paths, base = find_files(path, (".parquet",), "Parquet file")
    files = {text(file.relative_to(base).as_posix()): file for file in paths}
    digests = track(run_threads(sha256, files.values(), workers), "read digests", len(files))
    return Found(files, dict(zip(files, digests, strict=True)), name=text(base.resolve().name), source=text(path))
