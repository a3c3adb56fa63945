"""The one image format: Parquet shards of encoded images with labels and splits, read as a stream.

Columns are those of :data:`SCHEMA`; the schema's metadata has the provenance, and ``data/dataset.json`` the rest.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

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


def schema_with_features(dim: int) -> pa.Schema:
    """:data:`SCHEMA` of a collection of features: a further column ``features`` with `dim` numbers an image."""
    return SCHEMA.append(pa.field("features", pa.list_(pa.float32(), dim)))


#: Images with more pixels than this are refused before they are decoded.
MAX_PIXELS = 50_000_000
#: So are those above :data:`SMALL_PIXELS` that claim more than this of each byte: no photograph, but a bomb.
MAX_PIXELS_PER_BYTE = 40
SMALL_PIXELS = 2**24

#: The kinds that are decoded; Pillow knows others whose decoders start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def decode(data: bytes) -> Image.Image:
    """Decode an image from untrusted bytes to RGB, upright (EXIF), with at most :data:`MAX_PIXELS` pixels.

    Raises:
        ValueError: it is no readable image, or too large; the message says which.
    """
    pixels = _plain_jpeg(data, "RGB")
    if pixels is not None:
        return Image.fromarray(pixels)
    with _one_kind_of_error(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's own bomb warning; the check is ours
        return _rgb(_upright(_opened(data)))


def grey_thumbnail(data: bytes, size: tuple[int, int]) -> bytes:
    """Squeeze an image to `size` (width, height), upright: one byte a pixel, row by row.

    All of the data is read, so whatever :func:`decode` refuses is refused here too; but a JPEG comes without its
    colours and at a fraction of its size, which takes less time. Warnings are the caller's to silence.

    Raises:
        ValueError: as of :func:`decode`.
    """
    pixels = _plain_jpeg(data, "GRAY", size)
    if pixels is not None:
        return _squeezed(pixels[:, :, 0], size)
    with _one_kind_of_error():
        image = _opened(data)
        if image.format == "JPEG":
            image.draft("L", size)
        image = _upright(image)
        image = image if image.mode == "L" else _rgb(image).convert("L")
        factors = (max(1, image.width // (2 * size[0])), max(1, image.height // (2 * size[1])))
        return _squeezed(np.asarray(image.reduce(factors) if factors != (1, 1) else image), size)


def thumbnail(data: bytes, size: int) -> bytes:
    """An image as a JPEG that fits into a square of `size` pixels, upright, its shape kept; never enlarged.

    Raises:
        ValueError: as of :func:`decode`.
    """
    pixels = _plain_jpeg(data, "RGB", (2 * size, 2 * size))  # at twice the size, shrinking still averages enough
    image = decode(data) if pixels is None else Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _squeezed(pixels: np.ndarray, size: tuple[int, int]) -> bytes:
    """Pixels uint8 (h, w) as those of `size` (width, height), each the mean of the area that it covers."""
    if pixels.shape[::-1] == size:
        return pixels.tobytes()
    width, height = size
    rows, columns = _areas(pixels.shape[0], height), _areas(pixels.shape[1], width)
    return (rows @ pixels.astype(np.float32) @ columns.T + 0.5).astype(np.uint8).tobytes()


@lru_cache(256)
def _areas(n: int, target: int) -> np.ndarray:
    """How much of each of n cells in a row is in each of `target` equal parts of the row: float32 (target, n)."""
    edges = np.linspace(0, n, target + 1)
    cells = np.arange(n)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.clip(overlap, 0, None) * target / n).astype(np.float32)


def _plain_jpeg(data: bytes, colours: str, at_least: tuple[int, int] = (0, 0)) -> np.ndarray | None:
    """The pixels uint8 (h, w, channels) of an intact JPEG without EXIF; None for all else, which is PIL's to judge.

    PIL gives the same pixels, and takes two (photographs) to seven times (tiny images) as long.

    Args:
        data: the encoded image.
        colours: ``RGB`` or ``GRAY``.
        at_least: (width, height) that suffice: it may come at a half to an eighth of its size then.
    """
    if not data.startswith(b"\xff\xd8\xff") or _may_be_turned(data):
        return None
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if colour_space not in ("YCbCr", "Gray", "RGB") or height * width > SMALL_PIXELS:
            return None
        width, height = at_least
        return simplejpeg.decode_jpeg(
            data, colours, min_height=height, min_width=width, fastdct=bool(height), strict=True
        )  # fmt: skip
    except ValueError:
        return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has a segment of the kind that EXIF and XMP are in, or no order in its segments."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xDA:  # here the image begins
            return False
        if kind == 0xE1:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return True


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if pixels > max(SMALL_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        raise ValueError(f"{image.width}x{image.height} pixels of {len(data):,} bytes, a decompression bomb")
    return image


def _upright(image: Image.Image) -> Image.Image:
    # Looking for an orientation takes a tenth of the time that a small JPEG takes, and most have no place for one.
    if image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip to 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Turn all that PIL's decoders raise on hostile bytes, which is nearly anything, into a ValueError."""
    try:
        yield
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError("is no image of a known kind") from None
    except Exception as error:
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
        digest: SHA-256 over images, labels and splits: the identity that later artifacts carry.
        splits: SHA-256 over the splits alone, which two copies of a data set can share.
        near_duplicates: queries of which the database has a near-duplicate; None where there are no pixels to compare.
        notes: what is to be known of this copy of the data, one sentence each.
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
    splits: str
    near_duplicates: int | None
    notes: list[str]

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


def multi_hot(labels: pa.ChunkedArray, n_classes: int) -> np.ndarray:
    """Lists of classes as bool (n, n_classes).

    Raises:
        IndexError: a class is not one of the `n_classes`.
    """
    hot = np.zeros((len(labels), n_classes), dtype=bool)
    first = 0
    for chunk in labels.chunks:
        classes = chunk.flatten().to_numpy()
        if (classes < 0).any():  # would count from the end
            raise IndexError("a class below 0")
        hot[first + np.repeat(np.arange(len(chunk)), np.diff(chunk.offsets)), classes] = True
        first += len(chunk)
    return hot


#: A row group: the shard that it is in, and its number there.
RowGroup = tuple[Path, int]


class ImageShards:
    """The image shards of a directory, read lazily, in id order.

    Attributes:
        feature_dim: length of a feature in a collection of features, which has no pixels; None where there are pixels.

    Raises:
        InputError: no shard is there, or one has another schema.
    """

    def __init__(self, directory: Path = IMAGES) -> None:
        self.directory = directory
        self.files = sorted(directory.glob("*.parquet"))
        if not self.files:
            raise InputError(f"{directory}: no image shards; run `dvc repro download`")
        schemas = [self._schema(file) for file in self.files]
        self.feature_dim: int | None = None
        if "features" in schemas[0].names:
            self.feature_dim = schemas[0].field("features").type.list_size
        made = []
        for file, schema in zip(self.files, schemas, strict=True):
            if schema.names != schemas[0].names or schema.types != schemas[0].types:
                raise damaged(file, f"has other columns than {self.files[0]}")
            made.append(Provenance.from_json((schema.metadata or {}).get(PROVENANCE_KEY.encode()), file))
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
        if schema.names not in (SCHEMA.names, [*SCHEMA.names, "features"]):
            raise damaged(file, f"columns are {schema.names}, the image format has {SCHEMA.names}")
        if "features" in schema.names:
            found = schema.field("features").type
            if not (pa.types.is_fixed_size_list(found) and found.value_type == pa.float32()):
                raise damaged(file, f"column 'features' is {found}, the image format has fixed-size lists of float")
        return schema

    def row_groups(self) -> list[RowGroup]:
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
        labels = self.columns(["labels"])["labels"]
        try:
            return multi_hot(labels, n_classes)
        except IndexError:
            raise damaged(self.directory, f"has labels beyond the {n_classes} classes of {DATASET}") from None


def read_row_group(file: Path, group: int) -> Iterator[tuple[int, bool, bytes]]:
    """(id, is_train, encoded image) of one row group, without decoding."""
    table = pq.ParquetFile(file).read_row_group(group, columns=["id", "image", "is_train"])
    images = table["image"].combine_chunks().field("bytes")
    for index, is_train, data in zip(table["id"].to_pylist(), table["is_train"].to_pylist(), images, strict=True):
        yield index, is_train, data.as_py()


def read_features(file: Path, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one row group of a collection of features: ids int64 (b,), is_train bool (b,), features float32 (b, d).

    Raises:
        InputError: it is damaged.
    """
    try:
        table = pq.ParquetFile(file).read_row_group(group, columns=["id", "is_train", "features"])
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from None
    lists = table["features"].combine_chunks()
    if lists.null_count:
        raise damaged(file, "has images without features")
    features = lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)
    return table["id"].to_numpy(), table["is_train"].to_numpy(zero_copy_only=False), features
