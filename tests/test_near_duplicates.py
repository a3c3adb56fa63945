"""Near-duplicates: what counts as one, and the report on those that are on both sides of the split."""

import csv
import io

import numpy as np
import pytest
from download_run import ROOT, fill, params
from picture import picture
from PIL import Image, ImageEnhance

from stages.download.near_duplicates import RADIUS, THUMBNAIL, near_duplicates, nearest, perceptual_hashes
from stages.download.stage import NEAR_DUPLICATES, run
from stages.images import grey_thumbnail, read_dataset
from stages.scenes.render import render_scene

SHARED = ROOT.parent / "shared" / "data"


def hashes(images: list[Image.Image]) -> np.ndarray:
    pixels = b"".join(grey_thumbnail(png(image), THUMBNAIL) for image in images)
    return perceptual_hashes(np.frombuffer(pixels, np.uint8).reshape(-1, 32, 32))


def distance(one: Image.Image, other: Image.Image) -> int:
    first, second = hashes([one, other])
    return int(np.bitwise_count(first ^ second).sum())


def photo(index: int = 0) -> Image.Image:
    return Image.fromarray(render_scene(5, index).pixels).resize((300, 300), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def retouched(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.paste((255, 0, 0), (10, 10, 40, 40))
    return image


@pytest.mark.parametrize("change", [
    lambda image: image, lambda image: as_jpeg(image, 30), lambda image: image.resize((120, 90)),
    lambda image: ImageEnhance.Brightness(image).enhance(0.7), lambda image: image.convert("L").convert("RGB"),
    retouched,
])  # fmt: skip
def test_the_same_picture_otherwise_stored_is_one(change):
    assert distance(photo(), change(photo())) <= RADIUS


@pytest.mark.parametrize("change", [
    lambda image: photo(1), lambda image: image.transpose(Image.Transpose.ROTATE_90),
    lambda image: image.crop((100, 0, 300, 300)),
])  # fmt: skip
def test_another_picture_is_none(change):
    assert distance(photo(), change(photo())) > RADIUS


def test_hashes_are_those_of_the_definition():
    """One by one, by the plain formula."""
    from scipy.fft import dctn

    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8)
    for row, packed in zip(pixels, perceptual_hashes(pixels), strict=True):
        low = dctn(row.astype(float), norm="ortho")[:16, :16].ravel()
        clear = np.abs(low) > 1e-2  # float32 may decide the others otherwise
        np.testing.assert_array_equal(np.unpackbits(packed)[clear], (low > 0)[clear])
        assert clear.sum() > 250


def test_nearest_is_the_nearest():
    rng = np.random.default_rng(0)
    queries, database = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (30, 200))
    distances, rows = nearest(queries, database, 2)
    exact = np.bitwise_count(queries[:, None] ^ database).sum(-1)
    np.testing.assert_array_equal(distances, exact.min(axis=1))
    np.testing.assert_array_equal(exact[np.arange(30), rows], distances)


def test_pairs_are_across_the_split_and_nearest_first():
    all_hashes = np.zeros((6, 32), np.uint8)
    all_hashes[:, :] = np.arange(6)[:, None] * 37
    all_hashes[4] = all_hashes[0]  # a copy of query 0 in the database
    all_hashes[1], all_hashes[5] = 255, 254  # 32 bits differ
    all_hashes[2] = all_hashes[3] = 170  # both queries: no pair
    pairs = near_duplicates(all_hashes, np.array([0, 1, 2, 3]), np.array([4, 5]), 2)
    assert pairs == [(0, 4, 0), (1, 5, 32)]


def test_report(tmp_path, monkeypatch):
    """A copy of a query in another size is found, named and counted."""
    monkeypatch.chdir(tmp_path)
    images = [photo(index) for index in range(30)]
    contents = {f"train/a/{index:03d}.png": png(image) for index, image in enumerate(images[5:])}
    contents |= {f"test/a/{index:03d}.png": png(image) for index, image in enumerate(images[:5])}
    contents["train/a/copy.png"] = png(images[3].resize((120, 100)))
    run(params("imagefolder", path=str(fill(tmp_path / "set", contents))))
    dataset = read_dataset()
    with open(NEAR_DUPLICATES, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {(row["query_name"], row["database_name"]) for row in rows}
    assert ("test/a/003.png", "train/a/copy.png") in names
    assert dataset.near_duplicates == len(rows) == 1
    assert dataset.notes == ["queries with a near-duplicate in the database: 1; see reports/near_duplicates.csv"]


def test_none_is_reported_as_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(params("imagefolder", path=str(fill(tmp_path / "set", {f"{i}.png": picture(i) for i in range(20)}))))
    assert read_dataset().near_duplicates == 0 and read_dataset().notes == []
    assert len(NEAR_DUPLICATES.read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_cifar10_has_copies_of_test_images_in_its_training_set(tmp_path, monkeypatch):
    """That it does is known (ciFAIR, Barz and Denzler 2020); looked at one by one, those found here are copies."""
    monkeypatch.chdir(tmp_path)
    run(params("parquet", path=str(SHARED / "cifar10"), protocol="cifar10"))
    assert 100 <= read_dataset().near_duplicates <= 250
