"""The one image format: Parquet shards of encoded images with labels and splits, read as a stream.

Columns are those of :data:`SCHEMA`; the schema's metadata has the provenance, and ``data/dataset.json`` the rest.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from stages.artifacts import DATASET, IMAGES, PROVENANCE_KEY, Provenance, damaged, read_json
from stages.errors import InputError

SCHEMA = pa.schema([
    ("id", pa.int64()),
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ("labels", pa.list_(pa.int16())),
    ("is_query", pa.bool_()),
    ("is_database", pa.bool_()),
    ("is_train", pa.bool_()),
])  # fmt: skip

#: Images with more pixels than this are refused before they are decoded.
MAX_PIXELS = 50_000_000

#: The kinds that are decoded; Pillow knows others whose decoders start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def decode(data: bytes) -> Image.Image:
    """Decode an image from untrusted bytes to RGB, upright (EXIF), with at most :data:`MAX_PIXELS` pixels.

    Raises:
        ValueError: it is no readable image, or too large; the message says which.
    """
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's own bomb warning; the check below is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # convert() would clip to 255 instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError("is no image of a known kind") from None
    except Exception as error:  # PIL's decoders raise nearly anything on hostile bytes
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())[:120]})") from None


@dataclass(frozen=True)
class Dataset:
    """``data/dataset.json``: what the image shards hold.

    Attributes:
        name: the data set's name; `protocol`: the name of its split protocol.
        class_names: one a label index; empty when there are no labels.
        counts: images in all, and of the queries, database and training set.
        cutoffs: the protocol's cut-offs k of mAP@k.
        licence, source: where it is from and under what terms; `digests`: SHA-256 of the source files.
        skipped: how many source images could not be read.
        digest: SHA-256 over ids, image bytes, labels and splits: the identity that later artifacts carry.
    """

    name: str
    protocol: str
    class_names: list[str]
    counts: dict[str, int]
    cutoffs: list[int]
    licence: str
    source: str
    digests: dict[str, str]
    skipped: int
    digest: str

    @property
    def has_labels(self) -> bool:
        return bool(self.class_names)

    @property
    def provenance(self) -> Provenance:
        """What a later artifact must agree with."""
        return Provenance(stage="download", dataset=self.digest)


def read_dataset(path: Path = DATASET) -> Dataset:
    """Read and check ``data/dataset.json``.

    Raises:
        InputError: it is missing or has other fields.
    """
    content = read_json(path)
    try:
        return Dataset(**content)
    except TypeError:
        raise damaged(path, "has other fields than those of a data set") from None


class ImageShards:
    """The image shards of a directory, read lazily, in id order.

    Raises:
        InputError: no shard is there, or one has another schema.
    """

    def __init__(self, directory: Path = IMAGES) -> None:
        self.directory = directory
        self.files = sorted(directory.glob("*.parquet"))
        if not self.files:
            raise InputError(f"{directory}: no image shards; run `dvc repro download`")
        made = [
            Provenance.from_json((self._schema(file).metadata or {}).get(PROVENANCE_KEY.encode()), file)
            for file in self.files
        ]
        self.provenance = made[0]
        for file, provenance in zip(self.files, made, strict=True):
            provenance.require_same(self.provenance, file, self.files[0])

    @staticmethod
    def _schema(file: Path) -> pa.Schema:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(file, error) from None
        for field in SCHEMA:
            found = schema.field(field.name).type if field.name in schema.names else "missing"
            if found != field.type:
                raise damaged(file, f"column '{field.name}' is {found}, the image format has {field.type}")
        if schema.names != SCHEMA.names:
            raise damaged(file, f"columns are {schema.names}, the image format has {SCHEMA.names}")
        return schema

    def row_groups(self) -> list[tuple[Path, int]]:
        """(file, row group) pairs in id order: the units in which workers read."""
        return [(file, group) for file in self.files for group in range(pq.ParquetFile(file).num_row_groups)]

    def columns(self, names: Sequence[str]) -> pa.Table:
        """The small columns `names` of all images (not ``image``), in id order."""
        tables = []
        for file in self.files:
            try:
                tables.append(pq.read_table(file, columns=list(names)))
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(file, error) from None
        return pa.concat_tables(tables)

    def ids(self, split: str) -> np.ndarray:
        """Ids (int64, ascending) of a split: ``query``, ``database`` or ``train``."""
        table = self.columns(["id", f"is_{split}"])
        return table["id"].to_numpy()[table[f"is_{split}"].to_numpy(zero_copy_only=False)]

    def labels(self, n_classes: int) -> np.ndarray:
        """Labels of all images as a multi-hot array, bool (n_images, n_classes), row = id."""
        column = self.columns(["labels"])["labels"].combine_chunks()
        hot = np.zeros((len(column), n_classes), dtype=bool)
        rows = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
        classes = column.flatten().to_numpy()
        if len(classes) and not (classes.min() >= 0 and classes.max() < n_classes):
            raise damaged(self.directory, f"has labels beyond the {n_classes} classes of {DATASET}")
        hot[rows, classes] = True
        return hot


def read_row_group(file: Path, group: int) -> Iterator[tuple[int, bool, bytes]]:
    """(id, is_train, encoded image) of one row group, without decoding."""
    table = pq.ParquetFile(file).read_row_group(group, columns=["id", "image", "is_train"])
    images = table["image"].combine_chunks().field("bytes")
    for index, is_train, data in zip(table["id"].to_pylist(), table["is_train"].to_pylist(), images, strict=True):
        yield index, is_train, data.as_py()
