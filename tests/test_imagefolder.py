"""Directories and archives of images: labels, splits, order, and what is left out."""

import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from cifar_archive import write_tar
from odd_images import ODD, check_odd, check_tails, text
from picture import picture

from stages.download import files
from stages.download.config import DatasetOptions
from stages.download.datasets import imagefolder as adapter
from stages.download.datasets.imagefolder import imagefolder, layout
from stages.download.source import Source
from stages.errors import InputError


def folder(path: Path) -> Source:
    return imagefolder(DatasetOptions(name="imagefolder", path=str(path)))


def fill(root: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(index))
    return root


def pack(path: Path, members: dict[str, bytes], kind: str) -> Path:
    if kind == "tar":
        return write_tar(path, members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("names", "classes", "places"),
    [
        (["b.png", "a.png"], (), [((), ""), ((), "")]),
        (["dog/1.png", "cat/1.png", "cat/x/2.png"], ("cat", "dog"), [((1,), ""), ((0,), ""), ((0,), "")]),
        (["dog/1.png", "stray.png"], ("dog",), [((0,), ""), ((), "")]),
        (["train/b/1.png", "Test/a/1.png", "val/a/2.png"], ("a", "b"),
         [((1,), "train"), ((0,), "test"), ((0,), "validation")]),
        (["train/1.png", "test/1.png"], (), [((), "train"), ((), "test")]),
        (["train/1.png", "car/1.png"], ("car", "train"), [((1,), ""), ((0,), "")]),
        ([], (), []),
    ],
)  # fmt: skip
def test_layout(names, classes, places):
    assert layout(names) == (classes, places)


def test_directory_in_the_order_of_names(tmp_path):
    names = ["dog/10.png", "dog/2.JPG", "cat/b.png", "cat/a.png"]
    source = folder(fill(tmp_path / "pets", names))
    records = list(source.records(0))
    assert [record.path for record in records] == sorted(names)
    assert [record.labels for record in records] == [(0,), (0,), (1,), (1,)]
    assert [record.data for record in records] == [picture(3), picture(2), picture(0), picture(1)]
    assert (source.name, source.class_names, source.size) == ("pets", ("cat", "dog"), 4)


def test_hidden_and_other_files_are_ignored(tmp_path):
    fill(tmp_path, ["a.png", ".hidden.png", ".git/b.png", "__MACOSX/c.png", "readme.txt", "labels.csv"])
    assert [record.path for record in folder(tmp_path).records(0)] == ["a.png"]


def test_links(tmp_path):
    inside = fill(tmp_path / "inside", ["a.png", "real/b.png"])
    outside = fill(tmp_path / "outside", ["secret.png"])
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "in.png").symlink_to("a.png")
    (inside / "broken.png").symlink_to("nowhere.png")
    (inside / "up.png").symlink_to("../outside/secret.png")
    (inside / "directory").symlink_to(outside)
    (tmp_path / "entry").symlink_to(inside)
    records = {record.path: record for record in folder(tmp_path / "entry").records(0)}
    assert {name: record.problem for name, record in records.items()} == {
        "directory": "is a link to a directory", "a.png": "", "in.png": "", "real/b.png": "",
        "out.png": "leads out of the directory", "up.png": "leads out of the directory",
        "broken.png": "cannot be read (No such file or directory)",
    }  # fmt: skip
    assert records["in.png"].data == records["a.png"].data == picture(0)
    assert not any(record.data for record in records.values() if record.problem)


def test_pipe_and_huge_file_are_not_read(tmp_path, monkeypatch):
    fill(tmp_path, ["a.png"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "huge.png").write_bytes(bytes(1001))
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    problems = {record.path: record.problem for record in folder(tmp_path).records(0)}
    assert problems == {"a.png": "", "pipe.png": "is not a plain file", "huge.png": "1,001 bytes, more than 1,000"}


def test_name_that_is_no_text(tmp_path):
    fill(tmp_path, [os.fsdecode(b"caf\xe9/th\xe9.png"), "tea/cup.png"])
    source = folder(tmp_path)
    assert source.class_names == ("caf\ufffd", "tea")
    first, second = source.records(0)
    assert first.path == "caf\ufffd/th\ufffd.png" and first.data == picture(0) and second.labels == (1,)


@pytest.mark.parametrize("kind", ["directory", "tar"])
def test_odd_images(tmp_path, kind):
    if kind == "directory":
        root = tmp_path
        for name, (data, _) in ODD.items():
            (root / os.fsdecode(name)).write_bytes(data)
    else:
        root = write_tar(tmp_path / "a.tar", {os.fsdecode(name): data for name, (data, _) in ODD.items()}, "w")
    source = folder(root)
    check_odd(source)
    assert [record.path for record in source.records(0)] == [text(name) for name in ODD]


@pytest.mark.parametrize("kind", ["directory", "tar", "zip"])
def test_reading_is_taken_up_anywhere(tmp_path, kind):
    names = [f"class {index % 3}/{index}.png" for index in range(11)]
    if kind == "directory":
        fill(tmp_path, names)
        (tmp_path / "class 0" / "link").symlink_to(tmp_path)
        (tmp_path / "another").symlink_to("class 1")
        (tmp_path / "class 1" / "lost.png").symlink_to("nowhere")
        check_tails(folder(tmp_path))
    else:
        check_tails(folder(pack(tmp_path / "archive", {name: picture(i) for i, name in enumerate(names)}, kind)))


def test_what_precedes_is_not_read(tmp_path, monkeypatch):
    source = folder(fill(tmp_path, [f"{index}.png" for index in range(6)]))
    opened = []
    monkeypatch.setattr(adapter, "read_inside", lambda file, _: opened.append(Path(file).name) or (b"", "x"))
    assert len(list(source.records(4))) == 2 and opened == ["4.png", "5.png"]


def test_identity_is_of_all_files(tmp_path):
    root = fill(tmp_path / "set", ["a/1.png", "b/2.png"])
    seen = [folder(root).identity]
    assert folder(root).identity == seen[0]
    for change in (
        lambda: (root / "a/1.png").write_bytes(picture(9, 9)),
        lambda: os.utime(root / "a/1.png", ns=(1, 1)),
        lambda: (root / "a/1.png").rename(root / "a/3.png"),
        lambda: (root / "c").symlink_to("a"),
    ):
        change()
        seen.append(folder(root).identity)
    archive = write_tar(tmp_path / "set.tar", {"a.png": picture(0)}, "w")
    seen.append(folder(archive).identity)
    write_tar(archive, {"a.png": picture(1)}, "w")
    seen.append(folder(archive).identity)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("names", [[], ["readme.txt"], [".hidden.png"]])
@pytest.mark.parametrize("packed", [False, True])
def test_without_images(tmp_path, names, packed):
    root = tmp_path / "root"
    root.mkdir()
    fill(root, names)
    if packed:
        root = write_tar(tmp_path / "a.tar", dict.fromkeys(names, b""), "w")
    with pytest.raises(InputError, match=r"root|a\.tar: no image in it") as caught:
        folder(root)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"dataset.path: .*nothing: no such directory or archive"):
        folder(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archive(tmp_path, kind):
    members = {
        "pets/dog/1.png": picture(0), "pets/cat/1.png": picture(1), "pets/readme.txt": b"x", "pets/.x.png": b"x",
        "__MACOSX/pets/cat/1.png": b"x",
    }  # fmt: skip
    source = folder(pack(tmp_path / "archive", members, kind))
    assert source.class_names == ("cat", "dog") and source.size == 2
    assert [(r.path, r.labels, r.data) for r in source.records(0)] == [
        ("pets/dog/1.png", (1,), picture(0)), ("pets/cat/1.png", (0,), picture(1)),
    ]  # fmt: skip


def test_archive_with_one_split_alone(tmp_path):
    members = {"set/train/dog/1.png": picture(0), "set/train/cat/1.png": picture(1)}
    source = folder(pack(tmp_path / "archive", members, "tar"))
    assert source.class_names == ("cat", "dog") and {record.split for record in source.records(0)} == {"train"}


def test_hostile_archive(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../x.png"))
    with pytest.raises(InputError, match=r"a.tar: refused, its member '../../x.png' has '\.\.' in its path"):
        folder(tmp_path / "a.tar")


def test_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    with pytest.raises(InputError, match=r"a.png: truncated or corrupt archive"):
        folder(tmp_path / "a.png")
