"""NUS-WIDE from copies in the official layout, and from those that are not."""

import os
import shutil
from pathlib import Path

import pytest
from nuswide_copy import LISTED, write_images, write_list, write_lists
from odd_pictures import ODD, jpeg
from published import check_resumes, facts, one_line, options

from stages.download import files
from stages.download.datasets import nuswide as adapter
from stages.download.datasets.nuswide import LABELS, nuswide
from stages.download.datasets.nuswide_lists import CONCEPTS, FREQUENT
from stages.mine import config as vocabularies

PICTURES = {name: jpeg(index) for index, name in enumerate(LISTED)}


@pytest.fixture(autouse=True)
def official_count(monkeypatch):
    monkeypatch.setattr(adapter, "N_IMAGES", len(LISTED))


@pytest.fixture
def copy(tmp_path) -> Path:
    root = write_lists(tmp_path / "NUS-WIDE", CONCEPTS)
    write_images(root / "Flickr", PICTURES)
    return root


def opened(root: Path, **values):
    return nuswide(options("nuswide", path=str(root), **values))


def test_official_facts():
    assert len(CONCEPTS) == 81 and list(CONCEPTS) == sorted(CONCEPTS) and set(FREQUENT) < set(CONCEPTS)
    assert LABELS[10] == (
        "animal", "buildings", "clouds", "grass", "lake", "person", "plants", "sky", "water", "window"
    )  # fmt: skip
    assert [len(labels) for labels in LABELS.values()] == [10, 21, 81] and LABELS[81] == CONCEPTS
    assert all(list(labels) == sorted(labels) for labels in LABELS.values())
    vocabulary = Path(vocabularies.__file__).parent / "vocabularies" / "nuswide81.txt"
    assert [line for line in vocabulary.read_text().split("\n") if line and line[0] != "#"] == list(CONCEPTS)


@pytest.mark.parametrize(
    ("labels", "expected", "left_out"),
    [
        (None, {"actor/0001_2124494179.jpg": ["person"], "actor/0002_174174086.jpg": ["mountain", "person", "sky"],
                "actor/0004_2124494180.jpg": ["sky"], "zoos/0003_13.jpg": ["lake", "tree"]}, 2),
        (10, {"actor/0001_2124494179.jpg": ["person"], "actor/0002_174174086.jpg": ["person", "sky"],
              "actor/0004_2124494180.jpg": ["sky"], "zoos/0003_13.jpg": ["lake"]}, 2),
        (81, {"actor/0001_2124494179.jpg": ["person"], "actor/0002_174174086.jpg": ["mountain", "person", "sky"],
              "actor/0004_2124494180.jpg": ["sky", "zebra"], "zoos/0001_11.jpg": ["zebra"],
              "zoos/0003_13.jpg": ["lake", "tree"]}, 1),
    ],
)  # fmt: skip
def test_label_sets(copy, labels, expected, left_out):
    source = opened(copy, labels=labels)
    records = check_resumes(source, (1, 3))
    assert {record.path: [source.class_names[label] for label in record.labels] for record in records} == expected
    assert [record.path for record in records] == list(expected)
    assert source.notes == [
        f"{left_out} of 6 listed images have none of the {labels or 21} labels and are left out"
    ]
    assert all(record.data == PICTURES[record.path.replace("/", "\\")] for record in records)


def test_labels_that_there_are_not(copy):
    one_line(lambda: opened(copy, labels=24), "dataset.labels: 24 is not allowed: 'nuswide' has 10, 21 or 81")


@pytest.mark.parametrize("missing", ["AllLabels", "TrainTestLabels"])
def test_splits_and_either_labels(copy, missing):
    shutil.rmtree(copy / "Groundtruth" / missing)
    records = list(opened(copy, labels=81).records(0))
    assert {record.path: record.split for record in records} == {
        "actor/0001_2124494179.jpg": "test", "actor/0002_174174086.jpg": "test", "actor/0004_2124494180.jpg": "train",
        "zoos/0001_11.jpg": "train", "zoos/0003_13.jpg": "test",
    }  # fmt: skip
    assert {record.path: len(record.labels) for record in records}["actor/0002_174174086.jpg"] == 3
    if missing == "TrainTestLabels":
        (copy / "ImageList" / "TestImagelist.txt").unlink()
        (copy / "ImageList" / "TrainImagelist.txt").unlink()
        assert {record.split for record in opened(copy).records(0)} == {""}


def test_the_fault_of_the_official_labels(copy):
    """Line 78,372 of the training labels of "lake" is no label, and counts as none. Other such values are errors."""
    shutil.rmtree(copy / "Groundtruth" / "AllLabels")
    write_list(copy / "Groundtruth" / "TrainTestLabels" / "Labels_lake_Train.txt", ["-1130179", "1"])
    records = {record.path: record for record in opened(copy).records(0)}
    lake = LABELS[21].index("lake")
    assert lake in records["zoos/0001_11.jpg"].labels and lake not in records["actor/0004_2124494180.jpg"].labels
    path = copy / "Groundtruth" / "TrainTestLabels" / "Labels_sky_Train.txt"
    write_list(path, ["1", "2"])
    one_line(lambda: opened(copy), f"{path}: line 2 is '2', expected 0 or 1")


def test_lists_and_images_at_the_top(copy, tmp_path):
    for folder in ("ImageList", "Groundtruth"):
        for entry in (copy / folder).iterdir():
            shutil.move(entry, copy / entry.name)
    flat = tmp_path / "NUS-WIDE" / "images" / "all"
    flat.mkdir(parents=True)
    for file in list((copy / "Flickr").rglob("*.jpg")):
        # Two images of the official data set have the same number, but never the same id.
        shutil.move(file, flat / file.name)
    shutil.rmtree(copy / "Flickr")
    source = opened(copy)
    assert [record.data for record in source.records(0)] == [
        PICTURES[name] for name in PICTURES if name not in ("zoos\\0001_11.jpg", "zoos\\0002_12.jpg")
    ]


def test_missing_images_are_counted_and_no_records(copy):
    (copy / "Flickr" / "actor" / "0002_174174086.jpg").unlink()
    (copy / "Flickr" / "zoos" / "0002_12.jpg").unlink()
    source = opened(copy)
    assert [record.path for record in check_resumes(source, (1,))] == [
        "actor/0001_2124494179.jpg", "actor/0004_2124494180.jpg", "zoos/0003_13.jpg"
    ]  # fmt: skip
    assert source.notes[1:] == [
        f"2 of 6 listed images are not in {copy / 'Flickr'} (first: actor/0002_174174086.jpg)"
    ]


def test_lists_of_another_length_than_the_official_ones(copy, monkeypatch):
    monkeypatch.setattr(adapter, "N_IMAGES", 269_648)
    assert opened(copy).notes[1:] == [f"{copy}: its lists have 6 images, the official ones 269,648"]


def test_identity_follows_labels_and_images(copy):
    before = opened(copy).identity
    assert opened(copy).identity == before
    write_list(copy / "Groundtruth" / "AllLabels" / "Labels_sky.txt", list("111000"))
    after = opened(copy).identity
    os.utime(copy / "Flickr" / "zoos" / "0003_13.jpg", ns=(1, 1))
    assert len({before, after, opened(copy).identity}) == 3


def test_no_path():
    message = one_line(lambda: nuswide(options("nuswide")), "dataset.path is missing", "ImageList/Imagelist.txt")
    assert all(word in message for word in ("Flickr/actor/", "Groundtruth/AllLabels/Labels_*.txt", "ask its authors"))


@pytest.mark.parametrize(
    "missing", ["", "ImageList/Imagelist.txt", "Groundtruth/AllLabels/Labels_sky.txt", "Groundtruth"]
)
def test_missing_lists(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = {"": "ImageList/Imagelist.txt", "Groundtruth": "Groundtruth/AllLabels/Labels_"}.get(missing, missing)
    one_line(lambda: opened(copy), str(copy / expected), "cannot be read (No such file", "Flickr/actor/", "ask its")


def test_no_images(copy):
    shutil.rmtree(copy / "Flickr")
    one_line(lambda: opened(copy), f"{copy}: none of the 6 listed images is there", "Flickr/actor/")
    (copy / "Flickr").mkdir()
    one_line(lambda: opened(copy), f"{copy / 'Flickr'}: none of the 6 listed images is there")


@pytest.mark.parametrize("labels", [5, 7, 0])
def test_labels_of_the_wrong_length(copy, labels):
    path = copy / "Groundtruth" / "AllLabels" / "Labels_tree.txt"
    write_list(path, ["0"] * labels)
    one_line(
        lambda: opened(copy),
        f"{path}: has {labels} labels, but {copy / 'ImageList' / 'Imagelist.txt'} lists 6 images",
    )


def test_names_that_lead_elsewhere(copy, tmp_path):
    """A list may say what it likes: only what lies in the directory is read."""
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    (copy / "Flickr" / "linked").mkdir()
    (copy / "Flickr" / "linked" / "1_1.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ["..\\secret.jpg", "\\secret.jpg", "..\\..\\secret.jpg", f"{tmp_path}/secret.jpg", "linked\\1_1.jpg"]
    write_lists(copy, CONCEPTS, dict.fromkeys(names, ("sky",)) | dict(LISTED))
    source = opened(copy)
    found = [facts(record) for record in source.records(0) if record.problem]
    assert found == [("linked/1_1.jpg", (LABELS[21].index("sky"),), "test", "leads out of the directory")]
    assert source.size == 5 and not any(record.data == jpeg(9) for record in source.records(0))
    assert source.notes[2].startswith("4 of 11 listed images are not in")


def test_odd_pictures_are_passed_on(copy, monkeypatch):
    names = {f"odd\\{index:04d}_{index}.jpg": data for index, data in enumerate(ODD.values())}
    write_images(copy / "Flickr", names)
    write_lists(copy, CONCEPTS, dict(LISTED) | {name: ("sky",) for name in names})
    records = [record for record in opened(copy).records(0) if record.path.startswith("odd/")]
    assert [record.data for record in records] == list(ODD.values()) and not any(record.problem for record in records)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    records = [record for record in opened(copy).records(0) if record.path.startswith("odd/")]
    assert [record.problem.endswith(" bytes, more than 100") for record in records] == [
        len(data) > 100 for data in ODD.values()
    ]
