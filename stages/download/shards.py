"""From verified parts to the image shards: ids, split columns and metadata are put in, nothing is decoded."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.download.verify import open_part
from stages.images import SCHEMA, Dataset, schema_with_features
from stages.parts import is_whole, sealing
from stages.progress import progress_bar
from stages.workers import run_threads

#: Below the 256 MiB that a shard may have, so that there are several for the threads that write them.
SHARD_BYTES = 120 * 2**20


class _Group(NamedTuple):
    """A batch of a part, which becomes a row group: its rows get the ids from `first` on."""

    part: Path
    number: int
    first: int
    rows: int


class _Shard(NamedTuple):
    """A file to write, and what goes into it."""

    path: Path
    groups: list[_Group]


def write_shards(
    parts: Sequence[Path], splits: Mapping[str, np.ndarray], directory: Path, dataset: Dataset, provenance: Provenance,
    workers: int,
) -> list[Path]:  # fmt: skip
    """Write the images of `parts` as shards into `directory`; finished ones that are there already stay as they are.

    Args:
        parts: what :func:`stages.download.verify.verify` wrote, with at least one image.
        splits: bool (n,) by the name of the column.
        directory: where the shards go.
        dataset, provenance: what the schema's metadata tell.
        workers: threads that write.

    Returns:
        the shards, in order.
    """
    planned = list(_planned(parts))
    schema = _schema(open_part(planned[0][0].part).schema, dataset, provenance)
    directory.mkdir(parents=True, exist_ok=True)
    shards = [_Shard(directory / f"images-{i:05d}.parquet", groups) for i, groups in enumerate(planned)]
    whole = run_threads(is_whole, [shard.path for shard in shards], workers)
    missing = [shard for shard, done in zip(shards, whole, strict=True) if not done]
    with progress_bar("write shards", len(shards)) as bar:
        bar.advance(len(shards) - len(missing))
        for _ in run_threads(partial(_write, splits, schema), missing, workers):
            bar.advance()
    return [shard.path for shard in shards]


def _planned(parts: Iterable[Path]) -> Iterator[list[_Group]]:
    """The batches of all parts by what goes into one shard."""
    groups: list[_Group] = []
    first = size = 0
    for path in parts:
        part = open_part(path)
        for number in range(part.num_record_batches - 1):
            batch = part.get_batch(number)
            if groups and size + batch.nbytes > SHARD_BYTES:
                yield groups
                groups, size = [], 0
            groups.append(_Group(path, number, first, len(batch)))
            first, size = first + len(batch), size + batch.nbytes
    if groups:
        yield groups


def _schema(part: pa.Schema, dataset: Dataset, provenance: Provenance) -> pa.Schema:
    """The image format, with what its metadata tell; a collection of features has one column more."""
    dim = part.field("features").type.list_size if "features" in part.names else None
    schema = SCHEMA if dim is None else schema_with_features(dim)
    return schema.with_metadata({
        PROVENANCE_KEY: provenance.to_json(),
        "dataset": json.dumps(asdict(dataset)),
        "huggingface": json.dumps({"info": {"features": _hub_features(dataset, dim), "license": dataset.licence}}),
    })  # fmt: skip


def _write(splits: Mapping[str, np.ndarray], schema: pa.Schema, shard: _Shard) -> None:
    # Pixels are compressed already, and a dictionary or statistics of them would only be ballast.
    with sealing(shard.path) as temporary, pq.ParquetWriter(
        temporary, schema, use_dictionary=False, write_statistics=["id"],
        compression={"image.bytes": "NONE", "image.path": "ZSTD"},
    ) as writer:  # fmt: skip
        for part, number, first, rows in shard.groups:
            batch = open_part(part).get_batch(number)
            ids = np.arange(first, first + rows)
            columns = {name: batch[name] for name in schema.names if name in batch.schema.names}
            columns |= {"id": pa.array(ids)} | {name: pa.array(mask[ids]) for name, mask in splits.items()}
            writer.write_table(pa.table(columns).select(schema.names).cast(schema), row_group_size=rows)


def _hub_features(dataset: Dataset, dim: int | None) -> dict[str, Any]:
    """The columns as the hub's ``datasets`` library describes them."""
    label = {"names": dataset.class_names, "_type": "ClassLabel"} if dataset.has_labels else _value("int16")
    columns = {
        "id": _value("int64"),
        "image": {"_type": "Image"},
        "labels": {"feature": label, "_type": "Sequence"},
        **{name: _value("bool") for name in ("is_query", "is_database", "is_train")},
    }
    vector = {"feature": _value("float32"), "length": dim, "_type": "Sequence"}
    return columns if dim is None else columns | {"features": vector}


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
