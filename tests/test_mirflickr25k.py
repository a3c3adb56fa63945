"""MIRFLICKR-25000 from archives of the official format."""

import stat
import zipfile
from pathlib import Path

import pytest
from mirflickr_archives import POTENTIAL, RELEVANT, write_annotations, write_images
from odd_pictures import ODD, READABLE, jpeg, turned
from published import check_resumes, facts, one_line, options, republished

from stages.download.datasets import mirflickr25k as adapter
from stages.download.datasets.mirflickr25k import ANNOTATIONS, IMAGES, LABELS, mirflickr25k
from stages.images import decode

#: Labels to numbers of images; 4 and 25000 have none.
NUMBERS = {
    "animals": [1, 2, 10], "dog": [1, 10], "dog_r1": [10], "water": [11, 2], "sea": [2], "sea_r1": [2], "baby": [5],
}  # fmt: skip
#: In the order of the official archive, which is that of their names.
PICTURES = {number: jpeg(number) for number in (1, 10, 11, 2, 25000, 4, 5)}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the data set with the archives in `tmp_path`, as if these were official."""
    monkeypatch.setattr(adapter, "N_IMAGES", 25_000)

    def open_them(**values):
        monkeypatch.setattr(adapter, "IMAGES", republished(IMAGES, tmp_path / IMAGES.name))
        monkeypatch.setattr(adapter, "ANNOTATIONS", republished(ANNOTATIONS, tmp_path / ANNOTATIONS.name))
        return mirflickr25k(options("mirflickr25k", mirror=tmp_path, **values))

    return open_them


@pytest.fixture
def archives(tmp_path) -> Path:
    write_annotations(tmp_path / ANNOTATIONS.name, NUMBERS)
    write_images(tmp_path / IMAGES.name, PICTURES)
    return tmp_path


def test_official_facts():
    assert IMAGES.urls == ("https://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k.zip",)
    assert IMAGES.digest == "md5:a23d0a8564ee84cda5622a6c2f947785" and IMAGES.max_bytes == 3_069_184_257
    assert ANNOTATIONS.urls[0].rpartition("/")[2] == "mirflickr25k_annotations_v080.zip"
    assert ANNOTATIONS.digest is None  # nobody publishes one
    assert {24: tuple(POTENTIAL), 38: (*POTENTIAL, *RELEVANT)} == dict(LABELS)
    assert all(len(labels) == count for count, labels in LABELS.items())


def test_24_labels(archives, opened):
    source = opened()
    records = check_resumes(source, (1, 2, 4))
    index = {name: POTENTIAL.index(name) for name in NUMBERS if not name.endswith("_r1")}
    assert [facts(record) for record in records] == [
        ("mirflickr/im1.jpg", (index["animals"], index["dog"]), "", ""),
        ("mirflickr/im10.jpg", (index["animals"], index["dog"]), "", ""),
        ("mirflickr/im11.jpg", (index["water"],), "", ""),
        ("mirflickr/im2.jpg", (index["animals"], index["sea"], index["water"]), "", ""),
        ("mirflickr/im5.jpg", (index["baby"],), "", ""),
    ]
    assert [record.data for record in records] == [PICTURES[number] for number in (1, 10, 11, 2, 5)]
    assert (source.name, source.class_names) == ("mirflickr25k", tuple(POTENTIAL))
    assert set(source.digests) == {IMAGES.name, ANNOTATIONS.name}
    assert source.notes == ["24,995 of 25,000 images have none of the 24 labels and are left out"]


def test_38_labels(archives, opened):
    source = opened(labels=38)
    found = {record.path: [source.class_names[label] for label in record.labels] for record in source.records(0)}
    assert found["mirflickr/im10.jpg"] == ["animals", "dog", "dog_r1"]
    assert found["mirflickr/im1.jpg"] == ["animals", "dog"]
    assert found["mirflickr/im2.jpg"] == ["animals", "sea", "water", "sea_r1"]
    assert len(found) == 5 and len(source.class_names) == 38


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_ends_of_lines(archives, opened, newline):
    write_annotations(archives / ANNOTATIONS.name, NUMBERS, newline)
    assert [len(record.labels) for record in opened().records(0)] == [2, 2, 1, 3, 1]


def test_labels_that_there_are_not(archives, opened):
    one_line(lambda: opened(labels=21), "dataset.labels: 21 is not allowed: 'mirflickr25k' has 24 or 38")


def test_a_labelled_image_that_is_missing(archives, opened):
    write_images(archives / IMAGES.name, {number: PICTURES[number] for number in (1, 11, 2, 25000)})
    source = opened()
    assert source.size == 3 and len(list(source.records(0))) == 3
    assert source.notes[1] == (
        f"2 of 5 labelled images are not in {archives / IMAGES.name} (first: mirflickr/im10.jpg)"
    )


def test_odd_pictures_are_passed_on(archives, opened):
    write_annotations(archives / ANNOTATIONS.name, {"sky": list(range(1, len(ODD) + 1))})
    write_images(archives / IMAGES.name, dict(enumerate(ODD.values(), 1)))
    records = dict(zip(ODD, opened().records(0), strict=True))
    assert {kind: record.data for kind, record in records.items()} == ODD
    assert not any(record.problem for record in records.values())
    for kind, record in records.items():
        if kind in READABLE:
            assert decode(record.data).size == ((8, 12) if record.data == turned() else (12, 8))
        else:
            with pytest.raises(ValueError):
                decode(record.data)


@pytest.mark.parametrize("line", ["0", "25001", "-1", "1.0", "im1", "", "9" * 5000, "\u0661"])
def test_damaged_list(archives, opened, line):
    path = archives / ANNOTATIONS.name
    members = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    members["lake.txt"] = f"7\r\n{line}\r\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if not line:  # an empty line says nothing
        assert opened().size == 5
        return
    one_line(opened, f"{path}, member 'lake.txt': ", "is no number from 1 to 25,000")


def test_missing_list(archives, opened):
    with zipfile.ZipFile(archives / ANNOTATIONS.name, "w") as archive:
        archive.writestr("README.txt", "")
        archive.writestr("animals.txt", "1\r\n")
    one_line(opened, f"{archives / ANNOTATIONS.name}: lacks baby.txt, bird.txt, ")


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [("../im1.jpg", 0, "has '..' in its path"), ("/im1.jpg", 0, "has an absolute path"),
     ("mirflickr/im1.jpg", 0, "occurs twice"), ("mirflickr/im9.jpg", stat.S_IFLNK, "is neither a plain file"),
     ("mirflickr/im9.jpg", stat.S_IFCHR, "is neither a plain file")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archive(archives, opened, name, mode, words):
    with zipfile.ZipFile(archives / IMAGES.name, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16 if mode else 0
        archive.writestr(info, b"/etc/passwd")
    one_line(opened, f"{archives / IMAGES.name}: refused", name, words)
    assert sorted(path.name for path in archives.iterdir()) == sorted([IMAGES.name, ANNOTATIONS.name])


def test_truncated_archive(archives, opened):
    content = (archives / IMAGES.name).read_bytes()
    (archives / IMAGES.name).write_bytes(content[: len(content) // 2])
    one_line(opened, f"{archives / IMAGES.name}: truncated or corrupt archive")
