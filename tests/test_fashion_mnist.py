"""Fashion-MNIST from files of the official format."""

import gzip
import io
from collections.abc import Callable

import numpy as np
import pytest
from idx_files import SIZES, idx, images, labels, write_files
from PIL import Image
from published import check_resumes, one_line, options, republished

from stages.download.datasets import fashion_mnist as adapter
from stages.download.datasets import idx as format_of_files
from stages.download.datasets.fashion_mnist import CLASSES, FILES, fashion_mnist

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the data set with the files in `tmp_path`, as if these were official; blocks are of ten images."""
    write_files(tmp_path)
    monkeypatch.setattr(format_of_files, "BLOCK", 10)
    monkeypatch.setattr(adapter, "SPLITS", {"train": ("train", SIZES["train"]), "t10k": ("test", SIZES["t10k"])})

    def open_them():
        monkeypatch.setattr(adapter, "FILES", {name: republished(FILES[name], tmp_path / name) for name in FILES})
        return fashion_mnist(options("fashion_mnist", mirror=tmp_path))

    return open_them


def test_official_facts():
    assert {kind: size for kind, (_, size) in adapter.SPLITS.items()} == {"train": 60_000, "t10k": 10_000}
    assert {name: file.max_bytes for name, file in FILES.items()} == {
        IMAGES: 26_421_880, LABELS: 29_515, "t10k-images-idx3-ubyte.gz": 4_422_102, "t10k-labels-idx1-ubyte.gz": 5148
    }  # fmt: skip
    assert FILES[IMAGES].digest == "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    assert FILES[IMAGES].urls == (
        f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{IMAGES}",
        f"https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{IMAGES}",
    )
    assert len(CLASSES) == 10 and (CLASSES[0], CLASSES[9]) == ("T-shirt/top", "Ankle boot")


def test_pixels_labels_and_splits(opened):
    source = opened()
    records = check_resumes(source, (1, 9, 10, 11, 24, 25, 26, 36))
    found = np.array([np.asarray(Image.open(io.BytesIO(record.data))) for record in records])
    assert (found == np.concatenate([images("train"), images("t10k")])).all()
    assert [record.labels for record in records] == [(int(x),) for x in (*labels("train"), *labels("t10k"))]
    assert [record.split for record in records] == ["train"] * 25 + ["test"] * 12
    assert [records[index].path for index in (0, 24, 25)] == ["train-00000.png", "train-00024.png", "t10k-00000.png"]
    assert (source.name, source.size, set(source.digests)) == ("fashion_mnist", 37, set(FILES))
    assert Image.open(io.BytesIO(records[0].data)).mode == "L"


def flipped(content: bytes) -> bytes:
    """Its checksum at the end is wrong."""
    return content[:-6] + bytes([content[-6] ^ 0xFF]) + content[-5:]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (IMAGES, lambda _: b"", "begins with []"),
        (IMAGES, lambda _: b"<html>not found</html>", "is truncated or corrupt (Not a gzipped file"),
        (IMAGES, lambda content: content[: len(content) // 2], "is truncated or corrupt (Compressed file ended"),
        (IMAGES, lambda content: content[:-4], "is truncated or corrupt (Compressed file ended"),
        (IMAGES, flipped, "is truncated or corrupt (CRC check failed"),
        (IMAGES, lambda content: content[:10] + b"\xff" + content[11:], "is truncated or corrupt (Error -3"),
        (IMAGES, lambda _: gzip.compress(idx(labels("train"))), "begins with [2049, 25, "),
        (IMAGES, lambda _: gzip.compress(idx(images("train")[:24])), "begins with [2051, 24, 28, 28], expected"),
        (IMAGES, lambda _: gzip.compress(idx(images("train")[:, :27])), "begins with [2051, 25, 27, 28], expected"),
        (IMAGES, lambda _: gzip.compress(idx(images("train"))[:-785]), "ends after 23 of 25 rows"),
        (IMAGES, lambda _: gzip.compress(idx(images("train")) + b"\0"), "goes on after 25 rows"),
        (IMAGES, lambda _: gzip.compress(b"\0\0\x08"), "begins with [], expected [2051, 25, 28, 28]"),
        (LABELS, lambda _: gzip.compress(idx(images("train"))), "begins with [2051, 25], expected [2049, 25]"),
        (LABELS, lambda _: gzip.compress(idx(labels("train"))[:-1]), "ends after 24 of 25 rows"),
        (LABELS, lambda _: gzip.compress(idx(labels("train") + 1)), "has label 10, expected 0 to 9"),
        (LABELS, lambda _: gzip.compress(idx(labels("train").astype(">i2").view(np.uint8))), "begins with [2049, 50]"),
    ],
)  # fmt: skip
def test_damaged_file(opened, tmp_path, name, change: Callable[[bytes], bytes], words):
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    source = opened()
    one_line(lambda: list(source.records(0)), f"{tmp_path / name}: {words}")


@pytest.mark.parametrize("start", [0, 10, 24])
def test_damage_behind_the_start(opened, tmp_path, start):
    (tmp_path / IMAGES).write_bytes(flipped((tmp_path / IMAGES).read_bytes()))
    source = opened()
    one_line(lambda: list(source.records(start)), "CRC check failed")


def test_file_that_unpacks_to_gigabytes_is_not_read_whole(opened, tmp_path, monkeypatch):
    """Reading is asked for blocks only, whatever follows."""
    (tmp_path / IMAGES).write_bytes(gzip.compress(idx(images("train")) + bytes(50_000_000), 1))
    source, sizes, read = opened(), [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: sizes.append(size) or read(self, size))
    one_line(lambda: list(source.records(0)), "goes on after 25 rows")
    assert max(sizes) == 7840 and min(sizes) > 0
