"""The stage ``download``: shards, splits, data set description; parameters; real data."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar_archive import batches, write_archive
from download_run import ROOT, TINY, fill, images, nothing_left_over, params, pictures, skipped
from picture import picture

from stages.artifacts import DATASET, IMAGES, PROVENANCE_KEY, SPLITS
from stages.download import shards, verify
from stages.download.datasets import cifar, scenes
from stages.download.source import Source
from stages.download.stage import NEAR_DUPLICATES, SKIPPED, run
from stages.errors import InputError
from stages.images import SCHEMA, ImageShards, decode, read_dataset
from stages.scenes.catalogue import SHOWN
from stages.scenes.render import render_scene

SHARED = ROOT.parent / "shared" / "data"


pytestmark = pytest.mark.usefixtures("workplace")


# ---- what is written


def test_scenes():
    run(params("scenes", seed=3, **TINY))
    dataset, parts = read_dataset(), ImageShards()
    assert dataset.counts == {"images": 100, "query": 20, "database": 80, "train": 40}
    assert dataset.class_names == list(SHOWN) and dataset.cutoffs == [1000]
    assert dataset.protocol == "scenes (queries 20, database 80, train 40)"
    labels = parts.labels(len(SHOWN))
    for index, data in enumerate(images()):
        scene = render_scene(3, index)
        assert (np.asarray(decode(data)) == scene.pixels).all()
        assert {SHOWN[label] for label in np.flatnonzero(labels[index])} == set(scene.labels)
    assert skipped() == [["source", "reason"]]
    assert nothing_left_over()


def test_scenes_go_on_anywhere():
    options = params("scenes", seed=1, queries=30, database=20).dataset
    records = list(scenes.scenes(options).records(0))
    assert len(records) == 50 and list(scenes.scenes(options).records(13)) == records[13:]


def test_format_and_metadata():
    run(params("scenes", **TINY))
    dataset, (file,) = read_dataset(), ImageShards().files
    schema = pq.read_schema(file)
    assert schema.equals(SCHEMA)
    assert json.loads(schema.metadata[b"dataset"]) == json.loads(DATASET.read_text())
    provenance = json.loads(schema.metadata[PROVENANCE_KEY.encode()])
    assert provenance["dataset"] == dataset.digest and provenance["params"]["dataset"]["queries"] == 20
    hub = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(hub) == SCHEMA.names and hub["labels"]["feature"]["names"] == list(SHOWN)
    table = pq.read_table(file)
    assert table["id"].to_pylist() == list(range(100))
    query, database, train = (table[f"is_{name}"].to_numpy() for name in ("query", "database", "train"))
    assert not (query & database).any() and not (train & ~database).any()


def test_pixels_pass_through_and_labels_stay_with_them(tmp_path):
    contents = pictures(60, 3) | {"class 1/photo.jpg": picture(99, kind="JPEG")}
    run(params("imagefolder", path=str(fill(tmp_path / "set", contents)), seed=5))
    table = pq.read_table(IMAGES / "images-00000.parquet")
    for row in table.to_pylist():
        assert row["image"]["bytes"] == contents[row["image"]["path"]]
        assert row["labels"] == [int(row["image"]["path"][6])]
    assert len(table) == 61 and read_dataset().protocol == "holdout" and read_dataset().counts["query"] == 6


def test_row_groups_and_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "PART_ROWS", 7)
    monkeypatch.setattr(verify, "BATCH_BYTES", 1000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    contents = pictures(40) | {f"class 0/big {index}.png": picture(index, 24) for index in range(3)}
    contents |= {f"class 0/x{index}.png": b"broken" for index in range(3)}
    run(params("imagefolder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.1, workers=1))
    files = ImageShards().files
    assert len(files) > 3 and [file.name for file in files] == [f"images-{i:05d}.parquet" for i in range(len(files))]
    for file in files:
        metadata = pq.read_metadata(file)
        assert all(metadata.row_group(group).num_rows <= 7 for group in range(metadata.num_row_groups))
        pixels = pq.read_table(file)["image"].combine_chunks().field("bytes")
        assert len(pixels) == 1 or sum(len(data.as_py()) for data in pixels) <= 4000
    assert images() == [contents[name] for name in sorted(contents) if contents[name] != b"broken"]
    assert ImageShards().columns(["id"])["id"].to_pylist() == list(range(43))


def test_two_runs_are_identical_to_the_byte(tmp_path, monkeypatch):
    def content() -> dict[str, bytes]:
        files = (*ImageShards().files, DATASET, SPLITS, SKIPPED, NEAR_DUPLICATES)
        return {str(file): file.read_bytes() for file in files}

    path = str(fill(tmp_path / "set", pictures(50) | {"class 0/x.png": b"broken"}))
    run(params("imagefolder", path=path, max_skipped=0.1))
    first = content()
    run(params("imagefolder", path=path, max_skipped=0.1))
    assert content() == first


def test_neither_workers_nor_mirrors_are_in_the_shards(tmp_path):
    """A machine with more cores makes the same shards, and nobody's password is in them."""
    path = str(fill(tmp_path / "set", pictures(50)))
    made = []
    secret = ["https://user:secret@example.org/"]
    for options in ({"workers": 1}, {"workers": 2, "mirrors": secret, "max_skipped": 0.5}):
        run(params("imagefolder", path=path, **options))
        made.append([file.read_bytes() for file in (*ImageShards().files, DATASET, SPLITS)])
    assert made[0] == made[1] and b"secret" not in b"".join(made[1])


def test_names_that_are_no_text(tmp_path):
    """File names are bytes; Latin-1 ones come out as text with a mark."""
    name = tmp_path / "set" / os.fsdecode(b"caf\xe9")
    name.parent.mkdir()
    table = pa.table({"image": [{"bytes": picture(row) if row else b"x", "path": None} for row in range(20)]})
    with open(f"{name}.parquet", "wb") as file:
        pq.write_table(table, file)
    with pytest.raises(InputError, match="its name is no UTF-8; rename it"):  # Arrow opens no others
        run(params("parquet", path=str(tmp_path / "set"), max_skipped=0.1))
    with open(f"{name}.npy", "wb") as file:
        np.save(file, np.eye(20, 5, dtype=np.float32))
    run(params("embeddings", path=str(tmp_path / "set" / "*.npy"), max_skipped=0.9))
    assert skipped()[1][0] == "caf\N{REPLACEMENT CHARACTER}.npy#5" and read_dataset().counts["images"] == 5


def test_digest_covers_pixels_labels_classes_and_splits(tmp_path):
    def digest(contents: dict[str, bytes], **data: Any) -> str:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        run(params("imagefolder", path=str(fill(tmp_path / "set", contents)), **data))
        return read_dataset().digest

    base = pictures(20)
    other = {
        "pixels": base | {"class 0/000.png": picture(77)},
        "labels": {name.replace("class 0/000", "class 1/000"): data for name, data in base.items()},
        "classes": {name.replace("class 0", "class 00"): data for name, data in base.items()},
        "fewer": dict(list(base.items())[1:]),
    }
    digests = [digest(base), *map(digest, other.values()), digest(base, seed=1), digest(base, queries=3)]
    assert len(set(digests)) == len(digests)
    assert digest({name.replace("/", "/n"): data for name, data in base.items()}) == digests[0]


def test_own_shards_are_a_source(tmp_path):
    run(params("scenes", **TINY))
    before, labels = images(), ImageShards().labels(len(SHOWN))
    shutil.copytree(IMAGES, tmp_path / "set")
    run(params("parquet", path=str(tmp_path / "set")))
    assert images() == before and (ImageShards().labels(len(SHOWN)) == labels).all()
    assert read_dataset().class_names == list(SHOWN) and read_dataset().licence == "MIT"


def test_folder_without_labels(tmp_path):
    run(params("imagefolder", path=str(fill(tmp_path / "set", {f"{i}.png": picture(i) for i in range(30)}))))
    dataset = read_dataset()
    assert dataset.class_names == [] and not dataset.has_labels and dataset.counts["images"] == 30
    assert ImageShards().labels(0).shape == (30, 0)


def test_parquet_with_an_official_split(tmp_path):
    for split, start, n in (("train", 0, 30), ("test", 30, 10)):
        pixels = [{"bytes": picture(row), "path": None} for row in range(start, start + n)]
        table = pa.table({"image": pixels, "label": [row % 3 for row in range(n)]})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    run(params("parquet", path=str(tmp_path / "*.parquet")))
    dataset = read_dataset()
    assert dataset.protocol == "official" and dataset.class_names == ["0", "1", "2"]
    assert dataset.counts == {"images": 40, "query": 10, "database": 30, "train": 30}
    assert set(dataset.digests) == {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet"}
    assert [images()[index] for index in ImageShards().ids("query")] == [picture(row) for row in range(30, 40)]


def test_cifar10(tmp_path, monkeypatch):
    digest = write_archive(tmp_path / cifar.CIFAR10.name, batches(10))
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, digest=f"sha256:{digest}"))
    monkeypatch.setattr(cifar, "N_IMAGES", 600)
    run(params("cifar10", mirrors=[tmp_path.as_uri()], queries=100, train=50))
    dataset = read_dataset()
    assert dataset.counts == {"images": 600, "query": 100, "database": 500, "train": 50}
    assert dataset.protocol == "cifar10 (queries 100, train 50)" and dataset.digests == {cifar.CIFAR10.name: digest}
    labels = ImageShards().labels(10)
    assert (labels[ImageShards().ids("train")].sum(0) == 5).all()
    assert len(images()) == 600


# ---- parameters


@pytest.mark.parametrize("dataset", ["parquet", "imagefolder"])
def test_path_is_needed(dataset):
    with pytest.raises(InputError, match=f"params.yaml: dataset.path is missing; dataset '{dataset}'"):
        run(params(dataset))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", "none"), ("seed", -1), ("seed", 0.5), ("queries", 0), ("database", -3), ("train", "all"),
        ("max_skipped", 1.5), ("max_skipped", -0.1), ("path", 3), ("workers", 0), ("labels", 22), ("splits", 1),
        ("mirrors", "https://example.org"),
    ],
)  # fmt: skip
def test_bad_value(key, value):
    with pytest.raises(InputError, match=rf"dataset\.{key}.*: {value!r} is not allowed"):
        params("scenes", **{key: value})


@pytest.mark.parametrize("url", ["example.org/x", "ftp://x/y", "file://relative"])
def test_mirrors_are_addresses(url):
    with pytest.raises(InputError, match=rf"dataset\.mirrors\.1: '{url}' is not allowed: must start with http"):
        params("cifar10", mirrors=["https://example.org", url])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "cifar10", "path": "my.tar.gz"}, "path is set, but 'cifar10' is not read from a path"),
        ({"name": "imagefolder", "path": "x", "labels": 24}, "labels is set, but 'imagefolder' has one set"),
        ({"name": "imagefolder", "path": "x", "splits": "s.json", "train": 7}, "splits is set beside"),
        ({"name": "imagefolder", "path": "x", "splits": "s.json", "protocol": "holdout"}, "splits is set beside"),
    ],
)
def test_options_without_effect_are_refused(options, words):
    with pytest.raises(InputError, match=f"params.yaml: dataset: {words}"):
        params(**options)


def test_too_many_training_images():
    with pytest.raises(InputError, match=r"dataset.train: 4,000 training images do not fit into 80 images"):
        run(params("scenes", queries=20, database=80))
    assert not IMAGES.exists() and not DATASET.exists()


def test_more_classes_than_a_label_can_count(tmp_path):
    names = tuple(map(str, range(40_000)))
    source = Source("n", names, "l", "here", 0, lambda start: iter(()))
    with pytest.raises(InputError, match="here: 40,000 classes, at most 32,767"):
        verify.verify(source, tmp_path, 1)


# ---- real data


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_photographs():
    run(params("parquet", path=str(SHARED / "clothing")))
    dataset = read_dataset()
    assert dataset.counts == {"images": 3781, "query": 372, "database": 3409, "train": 3409} and not dataset.skipped
    first = pq.read_table(SHARED / "clothing" / "test-00000-of-00001.parquet").slice(0, 1).to_pylist()[0]
    assert images()[0] == first["image"]["bytes"] and len(ImageShards().labels(10)) == 3781


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_all_of_cifar10_as_parquet():
    run(params("parquet", path=str(SHARED / "cifar10"), protocol="cifar10"))
    dataset = read_dataset()
    assert dataset.counts == {"images": 60_000, "query": 10_000, "database": 50_000, "train": 5000}
    labels = ImageShards().labels(10)
    assert (labels[ImageShards().ids("query")].sum(0) == 1000).all()
    assert (labels[ImageShards().ids("train")].sum(0) == 500).all()
    table = pq.read_table(SHARED / "cifar10" / "train-00000-of-00001.parquet", columns=["image"])
    source = [image.as_py() for image in table["image"].combine_chunks().field("bytes")]
    digest = hashlib.sha256(b"".join(source)).hexdigest()
    assert hashlib.sha256(b"".join(images()[10_000:])).hexdigest() == digest
