"""MS-COCO from archives of the official format, of either year."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from coco_archives import CATEGORIES, annotations, file_name, write_annotations, write_images
from odd_pictures import ODD, jpeg
from published import check_resumes, facts, one_line, options, republished

from stages.download import archives as archive_module
from stages.download.datasets import coco as adapter
from stages.download.datasets import coco_annotations
from stages.download.datasets.coco import FILES, coco2014, coco2017

#: Image ids to the category ids of their objects, by split; in the order of the list.
SAID = {
    "train": {57870: [1, 13, 1], 9: [90], 384029: [], 222016: [2, 1]},
    "val": {391895: [2, 2], 139: []},
}
PICTURES = {number: jpeg(number) for said in SAID.values() for number in said}
OPEN = {"2014": coco2014, "2017": coco2017}


class Copy:
    """Archives of a year in a directory, and how to open them as if they were official."""

    def __init__(self, directory: Path, year: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.year, self._patch = directory, year, monkeypatch
        self.annotations = directory / f"annotations_trainval{year}.zip"
        self.annotate()
        for kind, said in SAID.items():
            # The official archives are not in the order of the lists.
            write_images(self.archive(kind), year, kind, {number: PICTURES[number] for number in sorted(said)})

    def archive(self, kind: str) -> Path:
        return self.directory / f"{kind}{self.year}.zip"

    def annotate(self, **said: str | dict[str, Any]) -> None:
        """Write the annotations, with those given by split instead of the usual ones."""
        usual = {kind: annotations(self.year, kind, images) for kind, images in SAID.items()}
        write_annotations(self.annotations, self.year, usual | said)

    def open(self):
        files = {
            path: republished(file, self.directory / file.name) if self.year in path else file
            for path, file in FILES.items()
        }
        self._patch.setattr(adapter, "FILES", files)
        return OPEN[self.year](options(f"coco{self.year}", mirror=self.directory))


@pytest.fixture(params=["2014", "2017"])
def copy(request, tmp_path, monkeypatch) -> Copy:
    return Copy(tmp_path, request.param, monkeypatch)


@pytest.fixture
def one_copy(tmp_path, monkeypatch) -> Copy:
    return Copy(tmp_path, "2014", monkeypatch)


def test_official_facts():
    assert {file.name: (file.max_bytes, file.digest[7:15]) for file in FILES.values()} == {
        "annotations_trainval2014.zip": (252_872_794, "031296bb"), "train2014.zip": (13_510_573_713, "ede4087e"),
        "val2014.zip": (6_645_013_297, "fe9be816"), "annotations_trainval2017.zip": (252_907_541, "113a836d"),
        "train2017.zip": (19_336_861_798, "69a8bb58"), "val2017.zip": (815_585_330, "4f7e2ccb"),
    }  # fmt: skip
    for path, file in FILES.items():
        assert file.urls[0] == f"http://images.cocodataset.org/{path}" and len(file.digest) == 7 + 64


def test_labels_and_splits(copy):
    source = copy.open()
    records = check_resumes(source, (1, 3, 4, 5))
    name = {number: f"{kind}{copy.year}/{file_name(copy.year, kind, number)}" for kind in SAID for number in SAID[kind]}
    # Categories count from 0 in the order of their ids: person, bicycle, stop sign, toothbrush.
    assert [facts(record) for record in records] == [
        (name[9], (3,), "train", ""), (name[57870], (0, 2), "train", ""), (name[222016], (0, 1), "train", ""),
        (name[384029], (), "train", ""), (name[139], (), "validation", ""), (name[391895], (1,), "validation", ""),
    ]  # fmt: skip
    order = (9, 57870, 222016, 384029, 139, 391895)
    assert [record.data for record in records] == [PICTURES[number] for number in order]
    assert source.class_names == ("person", "bicycle", "stop sign", "toothbrush")
    assert (source.name, source.size) == (f"coco{copy.year}", 6)
    assert set(source.digests) == {copy.annotations.name, copy.archive("train").name, copy.archive("val").name}
    assert source.notes == ["2 of 6 images have no label"]


def test_images_that_are_missing_or_not_listed(copy):
    write_images(copy.archive("train"), copy.year, "train", {9: PICTURES[9], 384029: PICTURES[384029], 1: jpeg(1)})
    source = copy.open()
    assert [record.labels for record in source.records(0)] == [(3,), (), (), (1,)]
    assert source.notes == [
        f"2 of 4 images of the train split are not in {copy.archive('train')} "
        f"(first: 'train{copy.year}/{file_name(copy.year, 'train', 57870)}')",
        "2 of 4 images have no label",
    ]


def test_annotations_of_images_that_are_not_listed(one_copy):
    said = annotations("2014", "train", SAID["train"] | {77: [1, 2], 78: [1]})
    said["images"] = [image for image in said["images"] if image["id"] < 77 or image["id"] > 78]
    one_copy.annotate(train=said)
    source = one_copy.open()
    assert "annotations of the train split name 2 images that are not listed" in source.notes and source.size == 6


def test_annotations_before_images(one_copy):
    said = annotations("2014", "train", SAID["train"])
    one_copy.annotate(train=dict(reversed(said.items())))
    assert [record.labels for record in one_copy.open().records(0)][:4] == [(3,), (0, 2), (0, 1), ()]


def test_what_lies_deeper_is_passed_over(one_copy):
    said = annotations("2014", "train", SAID["train"])
    for entry in (*said["images"], *said["annotations"], *said["categories"]):
        entry["attributes"] = {"id": 1, "image_id": 9, "category_id": 2, "name": "x", "list": [{"file_name": "y"}]}
    one_copy.annotate(train=said)
    source = one_copy.open()
    assert [record.labels for record in source.records(0)] == [(3,), (0, 2), (0, 1), (), (), (1,)]
    assert source.class_names[0] == "person"


@pytest.mark.parametrize("name", ["../9.jpg", "/etc/passwd", "..", "", "a/../../b.jpg", "x\n\ud800.jpg"])
def test_listed_name_that_leads_elsewhere(one_copy, name):
    """It is only looked up among the members of the archive, which has no such names."""
    said = annotations("2014", "train", SAID["train"])
    said["images"][0]["file_name"] = name
    one_copy.annotate(train=said)
    source = one_copy.open()
    assert [record.labels for record in source.records(0)] == [(3,), (0, 1), (), (), (1,)]
    assert source.notes[0].startswith("1 of 4 images of the train split are not in ") and "\n" not in source.notes[0]


def broken(**changes: Any) -> dict[str, Any]:
    said = annotations("2014", "val", SAID["val"])
    for section, change in changes.items():
        change(said[section])
    return said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "parse error"),
        ("{}", "no images"),
        ("[]", "no images"),
        (json.dumps(broken())[:-900], "parse error: premature EOF"),
        (json.dumps(broken()) + "{}", "trailing garbage"),
        (json.dumps(broken()).replace('"bbox"', '"bbox'), "lexical error"),
        (json.dumps(broken()).replace("199.84", "NaN"), "lexical error"),
        (json.dumps(broken()).replace("[239.97", "[" * 300_000 + "[239.97"), "parse error"),
        (broken(images=lambda images: images.append(images[0])), "image 391895 occurs twice"),
        (broken(images=lambda images: images.append(images[0] | {"id": 8})), "two images of the same name"),
        (broken(images=lambda images: images[0].pop("file_name")), "there is no 'file_name'"),
        (broken(images=lambda images: images[0].update(file_name=7)), "image 391895 is called 7"),
        (broken(images=lambda images: images[0].update(id="9")), "image '9' is called"),
        (broken(images=lambda images: images.clear()), "no images"),
        (broken(annotations=lambda found: found[0].pop("image_id")), "there is no 'image_id'"),
        (broken(annotations=lambda found: found[0].update(category_id=5)), "there is no 5"),
        (broken(annotations=lambda found: found[0].update(category_id=[1])), "there is no 'category_id'"),
        (broken(categories=lambda found: found.append(found[0])), "category 90 occurs twice"),
        (broken(categories=lambda found: found[0].update(name=None)), "category 90 is called None"),
        (broken(categories=lambda found: found.clear()), "there is no 2"),
    ],
)  # fmt: skip
def test_damaged_annotations(one_copy, said, words):
    one_copy.annotate(val=said)
    where = f"{one_copy.annotations}, member 'annotations/instances_val2014.json': damaged annotations ("
    one_line(one_copy.open, where, words)


def test_splits_of_different_categories(one_copy, monkeypatch):
    one_copy.annotate(val=broken(categories=lambda found: found[0].update(name="toothpick")))
    one_line(one_copy.open, f"{one_copy.annotations}: its two splits have different categories")


def test_missing_annotations(one_copy):
    write_annotations(one_copy.annotations, "2014", {"train": annotations("2014", "train", SAID["train"])})
    one_line(one_copy.open, f"{one_copy.annotations}: lacks annotations/instances_val2014.json")


def test_annotations_are_larger_than_images_may_be(one_copy, monkeypatch):
    """Of the archive of annotations every member is larger; those of the others are not."""
    monkeypatch.setattr(archive_module, "MAX_BYTES", 1000)
    assert one_copy.open().size == 6 and all(len(picture) <= 1000 for picture in PICTURES.values())
    monkeypatch.setattr(adapter, "MAX_JSON", 1000)
    one_line(one_copy.open, f"{one_copy.annotations}: refused, its member", "bytes, more than 1,000")


def test_annotations_are_read_in_pieces(one_copy, monkeypatch):
    monkeypatch.setattr(coco_annotations, "PIECE", 7)
    sizes, read = [], archive_module.Member.read
    monkeypatch.setattr(archive_module.Member, "read", lambda self, size=-1: sizes.append(size) or read(self, size))
    labels = [record.labels for record in one_copy.open().records(0)]
    assert labels == [(3,), (0, 2), (0, 1), (), (), (1,)]
    assert set(sizes) - {-1} <= {0, 7} and sizes.count(-1) == 6  # -1: the six images


def test_damaged_member(one_copy):
    """The compressed JSON is damaged: archive and member are named, not its JSON."""
    content = bytearray(one_copy.annotations.read_bytes())
    content[content.index(b"instances_train2014.json") + 200] ^= 0xFF
    one_copy.annotations.write_bytes(content)
    one_line(
        one_copy.open,
        f"{one_copy.annotations}, member 'annotations/instances_train2014.json': truncated or corrupt archive",
    )


@pytest.mark.parametrize("kind", ["annotations", "val"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archive(one_copy, kind):
    path = one_copy.annotations if kind == "annotations" else one_copy.archive(kind)
    with zipfile.ZipFile(path) as archive:
        first = archive.namelist()[-1]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(first, b"")
    one_line(one_copy.open, f"{path}: refused, its member '{first}' occurs twice")


def test_odd_pictures_are_passed_on(one_copy):
    numbers = dict(enumerate(ODD.values(), 1))
    one_copy.annotate(train=annotations("2014", "train", {number: [1] for number in numbers}))
    write_images(one_copy.archive("train"), "2014", "train", numbers)
    records = [record for record in one_copy.open().records(0) if record.split == "train"]
    assert [record.data for record in records] == list(ODD.values()) and not any(record.problem for record in records)


def test_categories_of_the_helper_have_no_order():
    assert list(CATEGORIES) != sorted(CATEGORIES)
