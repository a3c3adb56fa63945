"""WebDataset shards: samples, labels in all their forms, splits, and shards that are damaged or hostile."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from cifar_archive import write_tar
from odd_images import ODD, check_odd, check_tails
from picture import picture

from stages.download.config import DatasetOptions
from stages.download.datasets import webdataset_samples
from stages.download.datasets.webdataset import webdataset
from stages.download.source import Source
from stages.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def wds(path: Path | str) -> Source:
    return webdataset(DatasetOptions(name="webdataset", path=str(path)))


def shard(path: Path, *samples: dict[str, bytes | str], first: int = 0) -> Path:
    """A shard of samples 0000, 0001 and so on, each the contents by ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {
        f"{index:04d}.{ending}": content.encode() if isinstance(content, str) else content
        for index, sample in enumerate(samples, first)
        for ending, content in sample.items()
    }
    return write_tar(path, members, "w:gz" if path.suffix == ".gz" else "w")


def cls(seed: int, label: str) -> dict[str, bytes | str]:
    return {"png": picture(seed), "cls": label}


def as_json(seed: int, **content: object) -> dict[str, bytes | str]:
    return {"jpg": picture(seed, kind="JPEG"), "json": json.dumps(content)}


def test_samples(tmp_path):
    source = wds(shard(tmp_path / "pets.tar", cls(0, "1"), cls(1, "0\n"), cls(2, "1")))
    records = list(source.records(0))
    assert [record.data for record in records] == [picture(0), picture(1), picture(2)]
    assert [record.path for record in records] == ["0000", "0001", "0002"]
    assert [record.labels for record in records] == [(1,), (0,), (1,)]
    assert records[1].origin == "pets.tar#0001.png" and records[1].split == "" and records[1].problem == ""
    assert (source.class_names, source.size, source.notes) == (("0", "1"), 3, [])


@pytest.mark.parametrize(
    ("samples", "classes", "labels"),
    [
        ([cls(0, "7"), cls(1, "30"), cls(2, " 7 30 7\n"), cls(3, "7,30"), cls(4, ""), cls(5, "-1")], ("7", "30"),
         [(0,), (1,), (0, 1, 0), (0, 1), (), ()]),
        ([as_json(0, label=3), as_json(1, labels=[3, 5]), as_json(2, cls=5), as_json(3), as_json(4, label=None)],
         ("3", "5"), [(0,), (0, 1), (1,), (), ()]),
        ([as_json(0, label="dog"), as_json(1, labels=["été", "dog"]), as_json(2, cls="cat"), as_json(3, label="")],
         ("cat", "dog", "été"), [(1,), (2, 1), (0,), ()]),
        ([as_json(0, label="10"), as_json(1, label="9")], ("10", "9"), [(0,), (1,)]),
        ([{"json": '{"label": 4, "labels": 1}', "cls": "2", "webp": picture(0)}], ("2",), [(0,)]),
        ([{"png": picture(0), "txt": "a caption"}], (), [()]),
    ],
)  # fmt: skip
def test_labels(tmp_path, samples, classes, labels):
    source = wds(shard(tmp_path / "a.tar", *samples))
    assert source.class_names == classes
    assert [record.labels for record in source.records(0)] == labels


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (cls(0, "cat"), r"\.cls is b'cat', expected integers"),
        (cls(0, "1.5"), r"\.cls is b'1.5'"),
        (cls(0, "1;2"), r"\.cls is b'1;2'"),
        (cls(0, "٣"), r"\.cls is "),
        (cls(0, "-2"), "label '-2', expected an integer >= 0 or a name"),
        (cls(0, "9" * 30), "label '9+', expected an integer >= 0"),
        (cls(0, "9" * 5000), r"\.cls is b'9+', expected integers"),
        (as_json(0, label=1.5), "label '1.5', expected"),
        (as_json(0, label=True), "label 'True', expected"),
        (as_json(0, label={"name": "cat"}), "label .*name.*, expected"),
        (as_json(0, label="caf\udce9"), r"label 'caf\\udce9', expected"),
        (as_json(0, labels=[[1]]), r"label '\[1\]', expected"),
        ({"png": picture(0), "json": "{"}, r"\.json cannot be read"),
        ({"png": picture(0), "json": "[" * 100_000}, r"\.json cannot be read"),
        ({"png": picture(0), "json": "[3]"}, r"\.json is a list, expected an object with a key 'label'"),
        ({"png": picture(0), "json": b"\xff\xff"}, r"\.json cannot be read"),
    ],
)  # fmt: skip
def test_bad_label(tmp_path, sample, reason):
    path = shard(tmp_path / "a.tar", cls(1, "0"), sample)
    with pytest.raises(InputError, match=rf"a\.tar, sample '0001': {reason}") as caught:
        wds(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_integers_and_names_do_not_mix(tmp_path):
    shard(tmp_path / "a.tar", as_json(0, label="cat"))
    shard(tmp_path / "b.tar", cls(0, "1"))
    with pytest.raises(InputError, match=r"b.tar, sample '0000': has an integer .* but .*a.tar, sample '0000' a name"):
        wds(tmp_path)


@pytest.mark.parametrize("name", ["classnames.txt", "classes.txt"])
@pytest.mark.parametrize("below", ["", "test"])
@pytest.mark.parametrize("opened", ["", "test", "*/*.tar"])
def test_names_beside_the_shards(tmp_path, name, below, opened):
    """As exports of CLIP benchmark have them: <root>/classnames.txt, <root>/test/0.tar, also with a BOM and CRLF."""
    shard(tmp_path / "test" / "0.tar", cls(0, "2"), cls(1, "0"))
    (tmp_path / below / name).write_bytes("\ufeffcat\r\ndog\r\nfire truck\r\n\r\n".encode())
    if below and opened == "":
        assert wds(tmp_path).class_names == ("0", "2")  # it is beside some of the shards only
        return
    source = wds(tmp_path / opened)
    assert source.class_names == ("cat", "dog", "fire truck")
    assert [record.labels for record in source.records(0)] == [(2,), (0,)]


def test_names_that_do_not_suffice(tmp_path):
    shard(tmp_path / "0.tar", cls(0, "0"), cls(1, "2"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="sample '0001': label 2, but there are names for 2 classes"):
        wds(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"classes\.txt: is no UTF-8 text"):
        wds(tmp_path)


def test_names_are_for_integers(tmp_path):
    shard(tmp_path / "0.tar", as_json(0, label="dog"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert wds(tmp_path).class_names == ("dog",)


def test_samples_that_are_not_as_they_should_be(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        {"cls": "1"}, {"png": picture(0), "seg.png": picture(1), "cls": "0"},
        {"JPG": picture(2), "png": picture(3), "cls": "1"}, {"left.png": picture(4), "right.png": picture(5)},
    )  # fmt: skip
    source = wds(path)
    records = list(source.records(0))
    assert [record.problem for record in records] == [
        "has no image, only cls", "", "", "has no image, only left.png, right.png",
    ]  # fmt: skip
    assert [record.data for record in records] == [b"", picture(0), picture(2), b""]
    assert [record.labels for record in records] == [(1,), (0,), (1,), ()]
    assert source.notes == ["Samples with more than one image: 1; the first image is used."]
    check_tails(source)


def test_key_is_the_path_up_to_the_first_dot_of_the_name(tmp_path):
    members = {
        "v1.0/a/0001.cls": b"0", "v1.0/a/0001.png": picture(0), "v1.0/b/0001.png": picture(1), "readme": b"x",
        "v1.0/.hidden.png": b"x", "__MACOSX/v1.0/a/0001.png": b"x", "v1.0/a/0001.cls2": b"x",
    }  # fmt: skip
    source = wds(write_tar(tmp_path / "a.tar", members, "w"))
    assert [(record.path, record.data) for record in source.records(0)] == [
        ("v1.0/a/0001", picture(0)), ("v1.0/b/0001", picture(1)), ("v1.0/a/0001", b""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-0000.tar", "train"), ("imagenet1k-validation-00.tar", "validation"), ("test/0.tar", "test"),
        ("val/0000.tar.gz", "validation"), ("0000.tgz", ""), ("latest-0.tar", ""), ("x/test_000.tar", "test"),
    ],
)  # fmt: skip
def test_split(tmp_path, name, split):
    path = tmp_path / "set" / name
    shard(path, cls(0, "0"))
    assert [record.split for record in wds(tmp_path / "set").records(0)] == [split]


def test_many_shards(tmp_path):
    for index in range(12):
        shard(tmp_path / "set" / f"train-{index:03d}.tar", cls(2 * index, "0"), cls(2 * index + 1, "1"))
    (tmp_path / "set" / "train-000.json").write_text("{}")
    source = wds(tmp_path / "set")
    assert source.name == "set" and source.size == 24
    assert [record.data for record in source.records(0)] == [picture(seed) for seed in range(24)]
    check_tails(source)
    for pattern, n in (("train-{000..009}.tar", 10), ("train-{001,003}.tar", 2), ("*-00?.tar", 10)):
        assert [record.data for record in wds(tmp_path / "set" / pattern).records(0)][-1] == picture(
            7 if n == 2 else 2 * n - 1
        )
        assert wds(tmp_path / "set" / pattern).size == 2 * n
    with pytest.raises(InputError, match=r"no .*train-012\.tar there; complete the files or correct the braces"):
        wds(tmp_path / "set" / "train-{010..012}.tar")


def test_what_precedes_is_not_read(tmp_path, monkeypatch):
    for index in range(3):
        shard(tmp_path / f"{index}.tar", cls(2 * index, "0"), cls(2 * index + 1, "0"))
    source = wds(tmp_path)
    opened = []
    original = webdataset_samples.open_members
    monkeypatch.setattr(
        webdataset_samples, "open_members", lambda path, *rest: opened.append(path.name) or original(path, *rest)
    )
    assert [record.data for record in source.records(3)] == [picture(3), picture(4), picture(5)]
    assert opened == ["1.tar", "2.tar"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_odd_images(tmp_path, name):
    members = {os.fsdecode(file): data for file, (data, _) in ODD.items()}
    source = wds(write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w"))
    check_odd(source)
    assert [record.path for record in source.records(0)][5:7] == ["5-caf\ufffd", "6-été"]


def test_identity(tmp_path):
    path = shard(tmp_path / "a.tar", cls(0, "0"))
    seen = [wds(tmp_path).identity]
    assert wds(tmp_path).identity == seen[0]
    shard(path, cls(1, "0"))
    seen.append(wds(tmp_path).identity)
    (tmp_path / "classes.txt").write_text("cat\n")
    seen.append(wds(tmp_path).identity)
    (tmp_path / "classes.txt").write_text("dog\n")
    seen.append(wds(tmp_path).identity)
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "../../evil.png"}, r"has '\.\.' in its path"),
        ({"name": "/etc/evil.png"}, "has an absolute path"),
        ({"name": "0000.png"}, "occurs twice"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is neither a plain file nor a directory"),
        ({"type": tarfile.LNKTYPE, "linkname": "0000.png"}, "is neither a plain file nor a directory"),
        ({"type": tarfile.CHRTYPE}, "is neither a plain file nor a directory"),
        ({"type": tarfile.FIFOTYPE}, "is neither a plain file nor a directory"),
        ({"size": 2**40}, "is of 1,099,511,627,776 bytes"),
    ],
)
def test_hostile_shard(tmp_path, monkeypatch, change, reason):
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    path = shard(tmp_path / "a.tar", cls(0, "0"))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("0001.png")
        for key, value in change.items():
            setattr(info, key, value)
        tar.addfile(info)
    with pytest.raises(InputError, match=rf"a\.tar: refused, its member .* {reason}") as caught:
        wds(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == [path, directory]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_truncated_shard(tmp_path, name):
    path = shard(tmp_path / name, *(cls(seed, "0") for seed in range(20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{name}.*: truncated or corrupt archive"):
        wds(path)


def test_nothing_there(tmp_path):
    for path in (tmp_path, tmp_path / "x.tar", tmp_path / "*.tar"):
        with pytest.raises(InputError, match=r"dataset.path: .*: no tar shard there"):
            wds(path)
    write_tar(tmp_path / "a.tar", {"readme": b"x"}, "w")
    with pytest.raises(InputError, match=r"no sample in 1 shards \(files like 0001.jpg with 0001.cls\)"):
        wds(tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_real_images(tmp_path):
    """The clothes as shards: the same images, labels and splits as from Parquet."""
    from stages.download.datasets.parquet import parquet

    original = parquet(DatasetOptions(name="parquet", path=str(SHARED / "clothing")))
    records = list(original.records(0))
    for split in ("test", "train", "validation"):
        chosen = [record for record in records if record.split == split]
        shard(tmp_path / split / "0.tar", *({"jpg": r.data, "cls": str(r.labels[0])} for r in chosen))
    (tmp_path / "classnames.txt").write_text("\n".join(original.class_names))
    source = wds(tmp_path)
    assert source.class_names == original.class_names and source.size == len(records)
    for mine, theirs in zip(source.records(0), records, strict=True):
        assert (mine.data, mine.labels, mine.split) == (theirs.data, theirs.labels, theirs.split)
