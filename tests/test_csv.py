"""Lists of images: columns, labels, splits, text as people's programs write it, and paths that lead elsewhere."""

import os
from pathlib import Path

import pytest
from odd_images import ODD, check_odd, check_tails, text
from picture import picture

from stages.download.config import DatasetOptions
from stages.download.datasets import csv_list as adapter
from stages.download.datasets.csv_list import csv_list
from stages.download.source import Source
from stages.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def listed(path: Path) -> Source:
    return csv_list(DatasetOptions(name="csv", path=str(path)))


def write(directory: Path, content: str | bytes, name: str = "list.csv", images: int = 4) -> Path:
    """A list and beside it the images 0.png, 1.png and so on."""
    for seed in range(images):
        (directory / f"{seed}.png").write_bytes(picture(seed))
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory / name


def paths(source: Source) -> list[str]:
    return [record.path for record in source.records(0)]


def test_list(tmp_path):
    source = listed(write(tmp_path, "path,labels,split\n2.png,dog|cat,train\n0.png,,Test\n1.png,cat,\n"))
    records = list(source.records(0))
    assert [record.data for record in records] == [picture(2), picture(0), picture(1)]
    assert paths(source) == ["2.png", "0.png", "1.png"]
    assert [record.labels for record in records] == [(1, 0), (), (0,)]
    assert [record.split for record in records] == ["train", "test", ""]
    assert (source.name, source.class_names, source.size) == ("list", ("cat", "dog"), 3)
    assert records[1].origin == "list.csv, line 3: 0.png" and list(source.digests) == ["list.csv"]


@pytest.mark.parametrize(
    ("content", "classes", "labels"),
    [
        ("path,label\n0.png,10\n1.png,9\n2.png,010|9\n3.png,-1\n", ("9", "10"), [(1,), (0,), (1, 0), ()]),
        ("path,label\n0.png,10\n1.png,x\n", ("10", "x"), [(0,), (1,)]),
        ("path,labels\n0.png, b | a |\n1.png,|\n", ("a", "b"), [(1, 0), ()]),
        ('path,labels\n0.png,"fire, truck|a ""b"""\n', ('a "b"', "fire, truck"), [(1, 0)]),
        ("Path , Labels\n0.png,été\n", ("été",), [(0,)]),
        ("width,labels,path,note\n3,a,0.png,\n", ("a",), [(0,)]),
        ("path\n0.png\n", (), [()]),
    ],
)
def test_labels(tmp_path, content, classes, labels):
    source = listed(write(tmp_path, content))
    assert source.class_names == classes
    assert [record.labels for record in source.records(0)] == labels


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "between"), [("list.csv", ","), ("list.TSV", "\t")])
def test_as_other_programs_write_it(tmp_path, end, start, name, between):
    lines = ["path,labels,split", "", '"0.png",cat,train', ",,", "1.png,dog,test", ""]
    source = listed(write(tmp_path, start + end.join(lines).replace(",", between), name))
    records = list(source.records(0))
    assert [(record.data, record.labels, record.split) for record in records] == [
        (picture(0), (0,), "train"), (picture(1), (1,), "test"),
    ]  # fmt: skip
    assert records[1].origin == f"{name}, line 5: 1.png"
    check_tails(source)


def test_paths_that_lead_out(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(9))
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "in.png").symlink_to("0.png")
    (inside / "folder").symlink_to(outside)
    (inside / "empty").mkdir()
    problems = {
        "0.png": "", "in.png": "", f"{inside}/1.png": "", "../inside/2.png": "",
        "../outside/secret.png": "leads out of the directory", f"{outside}/secret.png": "leads out of the directory",
        "out.png": "leads out of the directory", "folder/secret.png": "leads out of the directory",
        "/etc/passwd": "leads out of the directory", "missing.png": "cannot be read (No such file or directory)",
        "folder": "leads out of the directory", ".": "leads out of the directory", "empty": "is not a plain file",
    }  # fmt: skip
    source = listed(write(inside, "path\n" + "".join(f"{path}\n" for path in problems)))
    records = list(source.records(0))
    assert {record.path: record.problem for record in records} == problems
    assert not any(record.data for record in records if record.problem)
    assert all(record.data for record in records if not record.problem)


def test_list_in_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, "path\n0.png\n../secret.png\n")
    monkeypatch.chdir(tmp_path)
    first, second = listed(Path("list.csv")).records(0)
    assert first.data == picture(0) and second.problem == "leads out of the directory"


def test_list_that_is_a_link_counts_where_it_is(tmp_path):
    (tmp_path / "images").mkdir()
    original = write(tmp_path, "path\n0.png\n", "original.csv")
    (tmp_path / "images" / "0.png").write_bytes(picture(7))
    (tmp_path / "images" / "list.csv").symlink_to(original)
    assert [record.data for record in listed(tmp_path / "images" / "list.csv").records(0)] == [picture(7)]


def test_odd_images(tmp_path):
    for name, (data, _) in ODD.items():
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    source = listed(write(tmp_path, b"path\r\n" + b"\r\n".join(ODD), images=0))
    check_odd(source)
    assert paths(source) == [text(name) for name in ODD]
    check_tails(source)


def test_reading_is_taken_up_anywhere(tmp_path, monkeypatch):
    lines = [f"{seed}.png,{seed % 3}" if seed != 5 else "lost.png," for seed in range(9)]
    source = listed(write(tmp_path, "path,label\n" + "\n\n".join(lines), images=9))
    check_tails(source)
    opened = []
    monkeypatch.setattr(adapter, "read_inside", lambda file, _: opened.append(Path(file).name) or (b"", "x"))
    assert len(list(source.records(7))) == 2 and opened == ["7.png", "8.png"]


def test_identity(tmp_path):
    path = write(tmp_path, "path\n0.png\n1.png\n")
    seen = [(listed(path).identity, listed(path).digests["list.csv"])]
    (tmp_path / "1.png").write_bytes(picture(5, 9))
    seen.append((listed(path).identity, listed(path).digests["list.csv"]))
    assert seen[0][0] != seen[1][0] and seen[0][1] == seen[1][1]
    path.write_text("path,label\n0.png,1\n1.png,2\n")
    assert listed(path).identity == seen[1][0] and listed(path).digests["list.csv"] != seen[1][1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"has no column 'path' \(commas separate columns\); its columns are none"),
        ("file,labels\n0.png,a\n", r"has no column 'path' .*; its columns are file, labels"),
        ('"a\nfile",labels\n0.png,a\n', r"has no column 'path' .*; its columns are a file, labels"),
        ("path;labels\n0.png;a\n", r"has no column 'path' \(commas separate columns\); its columns are path;labels"),
        ("path,label,labels\n", "has both a column 'labels' and a column 'label'; keep one"),
        ("path,Path\n", "two of its columns are called 'path'; keep one"),
        ("path,labels\n", "lists no image"),
        ("path,labels\n0.png,a\n1.png\n", "line 3: 1 columns, the first line has 2"),
        ("path,labels\n0.png,a,b\n", "line 2: 3 columns, the first line has 2"),
        ("path,labels\n,a\n", "line 2: no path"),
        ("path,split\n0.png,tset\n", "line 2: split 'tset', expected train, validation, test or nothing"),
        ("path\n0.png\n\n1.png\n./0.png\n", r"lines 2 and 5 both list 0.png; delete one, or join their labels"),
        ("path\n0.png\nfolder/../0.png\n", "lines 2 and 3 both list 0.png"),
        ("path\n0.png\x00\n", "line 2: a NUL character; save the list as UTF-8 text"),
        ("path\n0.png\n".encode("utf-16"), "line 1: a NUL character; save the list as UTF-8 text"),
        (b"path,labels\n0.png,caf\xe9\n", "line 2: labels 'caf\ufffd' are no UTF-8; save the list as UTF-8"),
        ("path,labels\n0.png," + "x" * 200_000 + "\n", r"line 2: field larger than field limit"),
        ('path,labels\n0.png,"a\n1.png,b\n', "line 2: unexpected end of data"),
        ('path,labels\n0.png,"a"b\n', "line 2: ',' expected after '\"'"),
        ('path,labels\n0.png,"a\nb"\n1.png,a,b\n', "line 4: 3 columns"),
    ],
)
def test_damaged_list(tmp_path, content, reason):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=rf"list\.csv.*{reason}") as caught:
        listed(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_many_lines_with_the_same_hash_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "_hash", lambda _: 1)
    path = write(tmp_path, "path\n0.png\n1.png\n2.png\n")
    assert listed(path).size == 3
    path.write_text("path\n0.png\n1.png\n2.png\n1.png\n")
    with pytest.raises(InputError, match="lines 3 and 5"):
        listed(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("list.txt", r"expected a list, \.csv"), ("nothing.csv", "no such file"), ("folder.csv", "no such file")],
)
def test_no_list(tmp_path, name, reason):
    (tmp_path / "list.txt").write_text("path\n")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=f"dataset.path: .*{name}: {reason}"):
        listed(tmp_path / name)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_real_images(tmp_path):
    """The clothes as files and a list: the same images, labels and splits as from Parquet."""
    from stages.download.datasets.parquet import parquet

    original = parquet(DatasetOptions(name="parquet", path=str(SHARED / "clothing")))
    records = list(original.records(original.size - 500))
    lines = ["path\tlabels\tsplit"]
    for index, record in enumerate(records):
        (tmp_path / f"{index}.jpg").write_bytes(record.data)
        lines.append(f"{index}.jpg\t{original.class_names[record.labels[0]]}\t{record.split}")
    source = listed(write(tmp_path, "\r\n".join(lines), "clothes.tsv", images=0))
    for mine, theirs in zip(source.records(0), records, strict=True):
        assert (mine.data, mine.split) == (theirs.data, theirs.split)
        assert source.class_names[mine.labels[0]] == original.class_names[theirs.labels[0]]
