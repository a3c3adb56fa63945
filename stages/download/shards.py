"""The one streaming pass over a source, and the shards in the one image format that come of it.

Splits need all labels, so images are verified into unassigned shards first; then the split columns are put in row
group by row group, without decoding anything. Neither pass holds more than a row group of images.
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.artifacts import PROVENANCE_KEY, Provenance, replacing
from stages.download.source import MAX_BYTES, Record, Source
from stages.errors import InputError
from stages.images import SCHEMA, Dataset, decode
from stages.progress import progress_bar

GROUP_ROWS = 1000
GROUP_BYTES = 64 * 2**20
#: The limit of a shard is 256 MiB; the rest is room for its footer.
SHARD_BYTES = 250 * 2**20

SPLIT_COLUMNS = ("is_query", "is_database", "is_train")


class ShardWriter:
    """Writes tables as row groups into numbered shards of bounded size; use it as a context manager."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self._directory, self._schema = directory, schema
        self._writer: pq.ParquetWriter | None = None
        self._shards = self._bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append one row group."""
        if self._writer is None or self._bytes + table.nbytes > SHARD_BYTES:
            self.close()
            # Pixels are compressed already, and a dictionary or statistics of them would only be ballast.
            self._writer = pq.ParquetWriter(
                self._directory / f"images-{self._shards:05d}.parquet", self._schema, use_dictionary=False,
                write_statistics=["id"], compression={"image.bytes": "NONE", "image.path": "ZSTD"},
            )  # fmt: skip
            self._shards, self._bytes = self._shards + 1, 0
        self._writer.write_table(table.cast(self._schema), row_group_size=GROUP_ROWS)
        self._bytes += table.nbytes

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Unassigned:
    """Verified images without splits.

    Attributes:
        directory: their shards.
        labels: bool (n, n_classes) multi-hot.
        source_split: str (n,).
        skipped: (name, reason) of every image that could not be read.
        content: running SHA-256 over class names, ids, image bytes and labels.
    """

    directory: Path
    labels: np.ndarray
    source_split: np.ndarray
    skipped: list[tuple[str, str]]
    content: Any

    def digest(self, splits: Mapping[str, np.ndarray]) -> str:
        """The identity of the data set: SHA-256 over class names, ids, image bytes, labels and the split columns."""
        total = self.content.copy()
        for name in SPLIT_COLUMNS:
            total.update(np.packbits(splits[name]).tobytes())
        return total.hexdigest()


def verify(source: Source, directory: Path) -> Unassigned:
    """Read `source` once: decode every image to see that it can be, and write those into shards in `directory`.

    Raises:
        InputError: what reading the source raises, or more classes than a label can count.
    """
    n_classes = len(source.class_names)
    if n_classes > np.iinfo(np.int16).max:
        raise InputError(f"{source.source}: {n_classes:,} classes, at most {np.iinfo(np.int16).max:,} are possible")
    content = hashlib.sha256(json.dumps(list(source.class_names)).encode())
    labels: list[tuple[int, ...]] = []
    splits: list[str] = []
    skipped: list[tuple[str, str]] = []
    with (
        warnings.catch_warnings(action="ignore"),  # those of the decoders; inside the threads it would not be safe
        ThreadPoolExecutor(os.cpu_count()) as pool,
        ShardWriter(directory, SCHEMA) as writer,
        progress_bar("verify images", source.size) as bar,
    ):
        for batch in _batches(source.records):
            pieces = [batch[start : start + 64] for start in range(0, len(batch), 64)]
            problems = list(chain.from_iterable(pool.map(_problems, pieces)))
            judged = list(zip(batch, problems, strict=True))
            good = [record for record, problem in judged if not problem]
            skipped += [(record.origin or record.path, problem) for record, problem in judged if problem]
            if good:
                table = _table(good, first_id=len(labels))
                _hash_rows(content, table)
                writer.write(table)
            labels += [record.labels for record in good]
            splits += [record.split for record in good]
            bar.advance(len(batch), f"{len(skipped)} skipped" if skipped else "")
    return Unassigned(directory, _multi_hot(labels, n_classes), np.array(splits, dtype=str), skipped, content)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records by what goes into one row group."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (len(batch) == GROUP_ROWS or size + len(record.data) > GROUP_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.data)
    if batch:
        yield batch


def _problems(records: list[Record]) -> list[str]:
    """Why each record cannot be used; "" for those that can."""
    return [_problem(record) for record in records]


def _problem(record: Record) -> str:
    if record.problem:
        return record.problem
    if not record.data:
        return "is empty"
    if len(record.data) > MAX_BYTES:
        return f"{len(record.data):,} bytes, more than {MAX_BYTES:,}"
    try:
        decode(record.data)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


def _table(records: list[Record], first_id: int) -> pa.Table:
    image = SCHEMA.field("image").type
    pixels = pa.StructArray.from_arrays(
        [pa.array([r.data for r in records], pa.binary()), pa.array([r.path for r in records], pa.string())],
        fields=list(image),
    )
    ids = pa.array(np.arange(first_id, first_id + len(records)))
    labels = pa.array([sorted(set(r.labels)) for r in records], SCHEMA.field("labels").type)
    no = pa.array(np.zeros(len(records), dtype=bool))
    return pa.table([ids, pixels, labels, no, no, no], schema=SCHEMA)


def _hash_rows(content: Any, table: pa.Table) -> None:
    """Add ids, lengths, labels and bytes of the images to a running hash."""
    images, labels = table["image"].combine_chunks().field("bytes"), table["labels"].combine_chunks()
    for column in (table["id"], pc.binary_length(images), pc.list_value_length(labels), labels.flatten()):
        content.update(np.asarray(column, dtype="<i8").tobytes())
    for image in images:
        content.update(image.as_buffer())


def _multi_hot(labels: list[tuple[int, ...]], n_classes: int) -> np.ndarray:
    hot = np.zeros((len(labels), n_classes), dtype=bool)
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    hot[rows, np.fromiter(chain.from_iterable(labels), dtype=np.int64, count=len(rows))] = True
    return hot


def write_shards(
    unassigned: Unassigned, splits: Mapping[str, np.ndarray], directory: Path, dataset: Dataset, provenance: Provenance
) -> None:
    """Copy the unassigned shards into `directory` with the split columns and the schema metadata filled in."""
    schema = SCHEMA.with_metadata({
        PROVENANCE_KEY: provenance.to_json(),
        "dataset": json.dumps(asdict(dataset)),
        "huggingface": json.dumps({"info": {"features": _hub_features(dataset), "license": dataset.licence}}),
    })  # fmt: skip
    with ShardWriter(directory, schema) as writer, progress_bar("assign splits", len(unassigned.labels)) as bar:
        for file in sorted(unassigned.directory.glob("*.parquet")):
            with pq.ParquetFile(file) as shard:
                for group in range(shard.num_row_groups):
                    table = shard.read_row_group(group)
                    ids = table["id"].to_numpy()
                    for name in SPLIT_COLUMNS:
                        column = SCHEMA.get_field_index(name)
                        table = table.set_column(column, name, pa.array(splits[name][ids]))
                    writer.write(table)
                    bar.advance(len(ids))


def _hub_features(dataset: Dataset) -> dict[str, Any]:
    """The columns as the hub's ``datasets`` library describes them."""
    label = {"names": dataset.class_names, "_type": "ClassLabel"} if dataset.has_labels else _value("int16")
    return {
        "id": _value("int64"),
        "image": {"_type": "Image"},
        "labels": {"feature": label, "_type": "Sequence"},
        **{name: _value("bool") for name in SPLIT_COLUMNS},
    }


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


def write_skipped(skipped: Iterable[tuple[str, str]], path: Path) -> None:
    """Write the list of unreadable images as CSV (source, reason), atomically."""
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("source", "reason"))
            writer.writerows(skipped)
