"""Read codes and images, write the index and what a search shows of its images."""

import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts import CODES, DATASET, IMAGES, INDEX, damaged, replacing_directory
from stages.codes import read_codes
from stages.errors import InputError
from stages.images import ImageShards, read_dataset
from stages.index import binary
from stages.index.config import Params
from stages.index.files import ROWS, Manifest, write_index, write_thumbnails
from stages.index.thumbnails import shard_thumbnails
from stages.workers import cores


def image_rows(shards: ImageShards, ids: pa.Array) -> pa.Table:
    """Id, name (the path it came with, or null) and labels of the images `ids`, as :data:`stages.index.files.ROWS`."""
    labels = shards.columns(["labels"])["labels"].take(ids)
    paths = [pq.ParquetFile(file).read(columns=["image.path"])["image"] for file in shards.files]
    names = pa.chunked_array([chunk.field("path") for part in paths for chunk in part.chunks], pa.string()).take(ids)
    return pa.table([ids, names, labels], schema=ROWS)


def run(params: Params) -> None:
    """Read ``data/codes.h5``, ``data/images`` and ``data/dataset.json``, write ``data/index``.

    Raises:
        InputError: an input is missing, damaged or of another data set, or the database is empty.
    """
    options, codes, shards, dataset = params.index, read_codes(), ImageShards(), read_dataset()
    codes.provenance.require_same(shards.provenance, CODES, IMAGES)
    shards.provenance.require_same(dataset.provenance, IMAGES, DATASET)
    if not len(codes.database):
        raise InputError(f"{CODES}: has no database images to search; choose a protocol with some")
    kind = binary.kind_for(options.kind, len(codes.database))
    index = binary.build(codes.database, kind, options.lists, options.probes)
    try:
        rows = image_rows(shards, pa.array(codes.database_id))
    except (pa.ArrowException, OSError) as error:
        raise damaged(IMAGES, error) from None
    with replacing_directory(INDEX) as directory:
        pictures = shard_thumbnails(shards, codes.database_id, options.thumbnail, cores())
        parts = [write_thumbnails(directory, 0, pictures)]
        made = Manifest.first(kind, codes, dataset.class_names, options.thumbnail, parts)
        write_index(directory, made, index, rows)
