"""Whatever an image or an artifact holds: it is read, or refused in one line.

Hypothesis damages valid files; CI tries a few, the nightly profile many.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import check, clearly, damage, few_or_many
from picture import picture
from small_run import write_small_run

from stages.artifacts import CODES, COMPONENTS, CONCEPTS, DATASET, FEATURES, IMAGES, Provenance
from stages.codes import read_codes
from stages.components.artifact import read_components
from stages.evaluate.pictures import thumbnails
from stages.features import Features
from stages.images import ImageShards, decode, read_dataset, read_row_group
from stages.index.sharded import ShardedIndex, build, code_blocks
from stages.tables import fixed_size_lists, read_table


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@few_or_many(60, 5000)
def test_images(examples, kind):
    """An image is decoded to RGB, or a ValueError says why not."""

    def reads(data: bytes) -> None:
        try:
            image = decode(data)
        except ValueError as error:
            assert str(error)
        else:
            assert image.mode == "RGB"

    check(damage(picture(0, size=24, kind=kind)), examples, reads)


def every_image() -> None:
    shards = ImageShards()
    shards.columns(["labels"])
    for group in shards.row_groups():
        try:
            for _, _, data in read_row_group(*group):
                decode(data)
        except (pa.ArrowException, OSError, ValueError):  # their callers tell
            pass
    thumbnails(shards, [0, 1, 2])


def every_feature() -> None:
    with Features() as features:
        features.images()
        features.views()


#: By artifact: what reads it. Of a folder a file.
READERS: dict[Path, Callable[[], object]] = {
    FEATURES: every_feature, CODES: read_codes, COMPONENTS: read_components, DATASET: read_dataset,
    CONCEPTS: lambda: read_table(CONCEPTS, {"concept": pa.string(), "kept": pa.bool_(), "text_feature": None}),
    IMAGES / "images-00000.parquet": every_image,
}  # fmt: skip


@pytest.mark.parametrize("path", READERS, ids=str)
@few_or_many(60, 2000)
def test_damaged_artifacts(examples, path, workplace):
    write_small_run()
    READERS[path]()

    def reads(data: bytes) -> None:
        path.write_bytes(data)
        clearly(READERS[path])

    check(damage(path.read_bytes()), examples, reads)


def write_codes() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(16, 4)
    np.save("codes.npy", codes)
    pq.write_table(pa.table({"code": fixed_size_lists(codes)}), "codes.parquet")
    build(Path("shards"), [codes], 10, Provenance("codes"))


def nearest() -> None:
    ShardedIndex(Path("shards")).nearest(np.zeros((2, 4), np.uint8), 3)


@pytest.mark.parametrize(("name", "read"), [
    ("codes.npy", lambda: list(code_blocks([Path("codes.npy")]))),
    ("codes.parquet", lambda: list(code_blocks([Path("codes.parquet")]))),
    ("shards/shards.json", nearest), ("shards/codes-00001.faiss", nearest),
], ids=["npy", "parquet", "manifest", "shard"])  # fmt: skip
@few_or_many(60, 2000)
def test_damaged_codes(examples, name, read, workplace):
    write_codes()
    read()

    def reads(data: bytes) -> None:
        Path(name).write_bytes(data)
        clearly(read)

    check(damage(Path(name).read_bytes()), examples, reads)
