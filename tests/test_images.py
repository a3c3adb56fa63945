"""The image format: decoding of every kind of image, and the shards."""

import io
import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from scene_shards import DIGEST, encoded, write_shards

from stages import images
from stages.artifacts import DATASET, IMAGES, PROVENANCE_KEY, Provenance, write_json
from stages.errors import InputError
from stages.images import SCHEMA, Dataset, ImageShards, decode, grey_thumbnail, read_dataset, read_row_group


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_exact_kinds_decode_exactly(kind: str) -> None:
    image = decode(encoded(gradient(), kind))
    assert (image.mode, image.size) == ("RGB", (24, 16))
    np.testing.assert_array_equal(pixels(image), pixels(gradient()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_decode_nearly(kind: str) -> None:
    image = decode(encoded(gradient(), kind))
    assert image.mode == "RGB"
    assert np.abs(pixels(image) - pixels(gradient())).mean() < 8


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    original = gradient().convert(mode)
    image = decode(encoded(original, "TIFF" if mode == "CMYK" else "PNG"))
    assert (image.mode, image.size) == ("RGB", (24, 16))
    np.testing.assert_array_equal(pixels(image), pixels(original.convert("RGB")))


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    image = decode(encoded(gradient().convert("CMYK"), "JPEG"))
    assert np.abs(pixels(image) - pixels(gradient())).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    image = decode(encoded(Image.fromarray(values), kind))
    np.testing.assert_allclose(pixels(image)[..., 0], values / 257, atol=1.01)
    assert image.mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    """The image stands upright, whatever way it is stored."""
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = gradient().transpose(turned[orientation]) if orientation in turned else gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(decode(buffer.getvalue())), pixels(gradient()))


def test_an_animation_is_its_first_frame() -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, "GIF", save_all=True, append_images=[Image.new("RGB", (24, 16), "blue")] * 2)
    assert np.abs(pixels(decode(buffer.getvalue())) - pixels(gradient())).mean() < 40


def _claimed_size(width: int, height: int) -> bytes:
    """A PNG whose header claims that size."""
    data = bytearray(encoded(gradient()))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image of a known kind"),
        (b"no image", "no image of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image of a known kind"),
        (encoded(gradient())[:-40], "cannot be decoded"),
        (encoded(gradient(), "JPEG")[:300], "cannot be decoded|no image"),
        (_claimed_size(10_000, 5_001), "10000x5001 pixels, more than 50,000,000"),
        (_claimed_size(100_000, 100_000), "cannot be decoded|pixels"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        decode(data)
    assert "\n" not in str(error.value)


def test_an_image_of_the_largest_size_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 16)
    assert decode(encoded(gradient())).size == (24, 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 16 - 1)
    with pytest.raises(ValueError, match="more than 383"):
        decode(encoded(gradient()))


def jpegs() -> dict[str, bytes]:
    """JPEGs of every sort, 90x67 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image = Image.fromarray(noise).resize((90, 67), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {}
    for name, mode, options in (
        ("plain", "RGB", {}), ("progressive", "RGB", {"progressive": True}), ("full colour", "RGB", {"subsampling": 0}),
        ("half colour", "RGB", {"subsampling": 1}), ("restarts", "RGB", {"restart_marker_blocks": 2}),
        ("poor", "RGB", {"quality": 5}), ("grey", "L", {}), ("CMYK", "CMYK", {}), ("turned", "RGB", {"exif": turned}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "JPEG", **options)
        made[name] = buffer.getvalue()
    return made


@pytest.mark.parametrize("name", jpegs())
def test_jpegs_are_decoded_as_pil_does(name: str) -> None:
    data = jpegs()[name]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(pixels(decode(data)), pixels(expected))
    grey = np.frombuffer(grey_thumbnail(data, (16, 12)), np.uint8).reshape(12, 16)
    large = np.kron(pixels(expected.convert("L")), np.ones((12, 16), int))  # every thumbnail pixel is a block of it
    means = large.reshape(12, expected.height, 16, expected.width).mean(axis=(1, 3))
    assert np.abs(grey - means).mean() < 6  # a fraction of the size leaves incomplete blocks at two edges


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("size", [(32, 32), (24, 16), (7, 5), (1, 1)])
def test_thumbnails_have_the_size_asked_for(kind: str, size: tuple[int, int]) -> None:
    assert len(grey_thumbnail(encoded(gradient(*size), kind), (32, 32))) == 32 * 32


def test_what_is_verified_by_its_thumbnail_can_be_decoded() -> None:
    """Of damaged JPEGs both take the same ones, and what is taken is what PIL sees."""
    random = np.random.default_rng(0)
    sorts, taken = list(jpegs().values()), 0
    for number in range(1500):
        data = bytearray(sorts[number % len(sorts)])
        place = int(random.integers(len(data)))
        if number % 3 == 0:
            del data[place:]
        else:
            data[place : place + number % 3] = random.bytes(1)
        data = bytes(data)
        verdicts = []
        for judge in (lambda data=data: grey_thumbnail(data, (32, 32)), lambda data=data: decode(data)):
            try:
                judge()
                verdicts.append(True)
            except ValueError:
                verdicts.append(False)
        assert verdicts in ([True, True], [False, False]), number
        if verdicts[0]:
            taken += 1
            expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            np.testing.assert_array_equal(pixels(decode(data)), pixels(expected))
    assert 300 < taken < 1200


def bomb(kind: str, **options: object) -> bytes:
    """40 megapixels of nothing."""
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 5000)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
@pytest.mark.parametrize("judge", [decode, lambda data: grey_thumbnail(data, (32, 32))])
def test_a_bomb_is_refused_before_it_goes_off(kind: str, judge: Callable[[bytes], object]) -> None:
    data = bomb(kind)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"8000x5000 pixels of [0-9,]+ bytes, a decompression bomb"):
        judge(data)
    assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + 2_000_000
    tracemalloc.stop()


def test_a_large_photograph_is_no_bomb() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    large = Image.fromarray(noise).resize((5600, 4000), Image.Resampling.BICUBIC)
    assert decode(encoded(large, "JPEG")).size == (5600, 4000)
    assert len(grey_thumbnail(encoded(large, "JPEG"), (32, 32))) == 1024


IS_TRAIN = np.arange(13) % 2 == 1


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageShards:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path, [bytes([index]) for index in range(13)], IS_TRAIN, group=3, shards=2)
    return ImageShards()


def test_row_groups_come_in_the_order_of_ids(shards: ImageShards) -> None:
    groups = shards.row_groups()
    assert len(groups) == 2 + 3  # 6 rows and 7 rows by threes
    rows = [row for file, group in groups for row in read_row_group(file, group)]
    assert rows == [(index, bool(IS_TRAIN[index]), bytes([index])) for index in range(13)]


def test_the_splits(shards: ImageShards) -> None:
    is_query = (np.arange(13) % 3 == 0) & ~IS_TRAIN
    np.testing.assert_array_equal(shards.ids("query"), np.flatnonzero(is_query))
    np.testing.assert_array_equal(shards.ids("database"), np.flatnonzero(~is_query))
    np.testing.assert_array_equal(shards.ids("train"), np.flatnonzero(IS_TRAIN))
    assert shards.ids("train").dtype == np.int64


def test_columns_and_provenance(shards: ImageShards) -> None:
    assert shards.columns(["id"])["id"].to_pylist() == list(range(13))
    assert shards.provenance == Provenance("download", DIGEST)


def test_labels_are_multi_hot(tmp_path: Path) -> None:
    lists = [[0], [2, 1], [], None, [2], [0, 1, 2], [1]]
    columns = [range(7), [{"bytes": b"", "path": None}] * 7, lists, [False] * 7, [True] * 7, [False] * 7]
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    table = table.replace_schema_metadata({PROVENANCE_KEY: Provenance("download", DIGEST).to_json()})
    for shard, part in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(part, tmp_path / f"{shard}.parquet", row_group_size=2)
    labels = ImageShards(tmp_path).labels(3)
    assert labels.dtype == bool
    assert labels.astype(int).tolist() == [
        [1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0],
    ]  # fmt: skip


def _shard_file() -> Path:
    return IMAGES / "images-00001.parquet"


def _not_parquet() -> None:
    _shard_file().write_bytes(b"no Parquet")


def _truncated() -> None:
    _shard_file().write_bytes(_shard_file().read_bytes()[:-50])


def _other_columns() -> None:
    pq.write_table(pq.read_table(_shard_file()).drop_columns(["labels"]), _shard_file())


def _other_types() -> None:
    table = pq.read_table(_shard_file())
    pq.write_table(table.set_column(0, "id", table["id"].cast(pa.int32())), _shard_file())


def _no_provenance() -> None:
    for file in IMAGES.glob("*.parquet"):
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)


@pytest.mark.parametrize("damage", [_not_parquet, _truncated, _other_columns, _other_types, _no_provenance])
def test_damaged_shards_are_named(shards: ImageShards, damage: Callable[[], None]) -> None:
    damage()
    with pytest.raises(InputError, match="dvc repro download") as error:
        ImageShards()
    assert str(error.value).startswith(str(IMAGES))
    assert "\n" not in str(error.value)


def test_missing_shards_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="dvc repro download"):
        ImageShards()


TINY = Dataset("tiny", "protocol", ["cat"], {"images": 3}, [10], "CC0", "tests", {}, 0, DIGEST, "5" * 64, 0, [])


def test_the_description_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(DATASET, asdict(TINY))
    assert read_dataset() == TINY
    assert read_dataset().has_labels
    assert read_dataset().provenance.dataset == DIGEST
    write_json(DATASET, {**asdict(TINY), "class_names": []})
    assert not read_dataset().has_labels


@pytest.mark.parametrize("content", [None, "[]", "{}", "{", json.dumps({**asdict(TINY), "more": 1})])
def test_a_bad_description_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        DATASET.parent.mkdir()
        DATASET.write_text(content)
    with pytest.raises(InputError, match="dvc repro download") as error:
        read_dataset()
    assert str(error.value).startswith(str(DATASET))
