"""Image Parquet in the hub's layout, and files that are not in it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from odd_images import ODD, check_odd, check_tails, text
from picture import picture

from stages.download.config import DatasetOptions
from stages.download.datasets.parquet import parquet as open_parquet
from stages.download.source import Source
from stages.errors import InputError
from stages.images import decode

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = {"names": ["cat", "dog", "tree"], "_type": "ClassLabel"}
SHARED = Path(__file__).parents[2] / "shared" / "data"


def parquet(path: Path | str) -> Source:
    return open_parquet(DatasetOptions(name="parquet", path=str(path)))


def write(path: Path, n: int = 4, start: int = 0, feature: Any = None, **columns: pa.Array) -> Path:
    """A file of `n` pictures from seed `start` on and more `columns`; `feature` is the hub's account of the label."""
    images = [{"bytes": picture(row), "path": f"{row}.png"} for row in range(start, start + n)]
    table = pa.table({"image": pa.array(images, IMAGE), **columns})
    if feature is not None:
        name = "labels" if "labels" in columns else "label"
        info = {"features": {"image": {"_type": "Image"}, name: feature}, "license": "cc0-1.0"}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": info})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def test_label(tmp_path):
    path = write(tmp_path / "pets.parquet", feature=NAMES, label=pa.array([2, 0, -1, None]))
    source = parquet(path)
    records = list(source.records(0))
    assert source.class_names == ("cat", "dog", "tree") and source.size == 4 and source.licence == "cc0-1.0"
    assert [record.labels for record in records] == [(2,), (0,), (), ()]
    assert [record.data for record in records] == [picture(row) for row in range(4)]
    assert [record.path for record in records] == [f"{row}.png" for row in range(4)]
    assert records[3].origin == "pets.parquet#3 3.png" and records[3].split == ""
    assert list(source.digests) == ["pets.parquet"]


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": NAMES, "_type": "Sequence"}, {"feature": NAMES, "_type": "List"}, [NAMES],
        {"feature": {"names": ["cat", "dog", "tree"]}, "length": -1, "_type": "LargeList"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
def test_labels(tmp_path, feature, make):
    labels = pa.array([[2, 0], [], None, [1, -1, None]], make(pa.int16()))
    source = parquet(write(tmp_path / "a.parquet", feature=feature, labels=labels))
    assert source.class_names == ("cat", "dog", "tree")
    assert [record.labels for record in source.records(0)] == [(2, 0), (), (), (1,)]


def test_labels_of_fixed_number(tmp_path):
    labels = pa.array([[2, 0], [1, -1], [-1, -1], [5, 7]], pa.list_(pa.int64(), 2))
    source = parquet(write(tmp_path / "a.parquet", labels=labels))
    assert source.class_names == ("0", "1", "2", "5", "7")
    assert [record.labels for record in source.records(0)] == [(2, 0), (1,), (), (3, 4)]


@pytest.mark.parametrize("metadata", [None, "no json", "[]", '{"info": {"features": {"label": {"dtype": "int64"}}}}'])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.int16()])
def test_classes_are_the_integers_without_names(tmp_path, metadata, kind):
    path = write(tmp_path / "a.parquet", label=pa.array([30, 7, 7, None], kind))
    if metadata:
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    source = parquet(path)
    assert source.class_names == ("7", "30")
    assert [record.labels for record in source.records(0)] == [(1,), (0,), (0,), ()]


def test_without_labels(tmp_path):
    source = parquet(write(tmp_path / "a.parquet"))
    assert source.class_names == () and [record.labels for record in source.records(0)] == [()] * 4


def test_only_labels_that_are_none(tmp_path):
    source = parquet(str(write(tmp_path / "a.parquet", label=pa.array([-1, -1, None, None], pa.int64()))))
    assert source.class_names == () and [record.labels for record in source.records(0)] == [()] * 4


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])])
def test_image_without_path(tmp_path, kind):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([picture(0) if not pa.types.is_struct(kind) else {"bytes": picture(0)}], kind)})
    pq.write_table(table, path)
    (record,) = parquet(path).records(0)
    assert (record.data, record.path, record.origin) == (picture(0), "a.parquet#0", "")


def test_images_without_bytes(tmp_path):
    images = [{"bytes": None, "path": "elsewhere.png"}, None, {"bytes": b"", "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), tmp_path / "a.parquet")
    records = list(parquet(tmp_path / "a.parquet").records(0))
    assert [record.problem for record in records] == ["has no bytes", "has no bytes", ""]
    assert [record.path for record in records] == ["elsewhere.png", "a.parquet#1", "a.parquet#2"]


def test_path_that_is_no_text(tmp_path):
    paths = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"], pa.binary()).buffers())
    images = pa.StructArray.from_arrays([pa.array([picture(0)]), paths], names=["bytes", "path"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert [record.path for record in parquet(tmp_path / "a.parquet").records(0)] == ["caf\ufffd"]


def test_odd_images(tmp_path):
    images = [{"bytes": data, "path": text(name)} for name, (data, _) in ODD.items()]
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), tmp_path / "a.parquet")
    source = parquet(tmp_path / "a.parquet")
    check_odd(source)
    assert [record.path for record in source.records(0)] == [text(name) for name in ODD]


@pytest.mark.parametrize("column", ["img", "photo"])
def test_columns_as_others_call_them(tmp_path, column):
    """CIFAR-10 and CIFAR-100 of the hub: `img`, and `fine_label` beside `coarse_label`."""
    path = write(tmp_path / "a.parquet", fine_label=pa.array([2, 0, 1, 1]), coarse_label=pa.array([0, 0, 1, 1]))
    features = {column: {"_type": "Image"}, "fine_label": NAMES, "coarse_label": {"names": ["x", "y"]}}
    table = pq.read_table(path).rename_columns({"image": column})
    pq.write_table(with_features(table, features), path)
    source = parquet(path)
    assert source.class_names == ("cat", "dog", "tree")
    assert [(record.data, record.labels) for record in source.records(0)] == [
        (picture(row), (label,)) for row, label in enumerate((2, 0, 1, 1))
    ]


def test_only_column_with_class_names_is_the_label(tmp_path):
    table = pq.read_table(write(tmp_path / "a.parquet", kind=pa.array([2, 0, 1, 1]), height=pa.array([1, 2, 3, 4])))
    pq.write_table(with_features(table, {"kind": NAMES, "height": {"dtype": "int64"}}), tmp_path / "a.parquet")
    assert [record.labels for record in parquet(tmp_path / "a.parquet").records(0)] == [(2,), (0,), (1,), (1,)]
    table = table.append_column("colour", pa.array([0, 0, 0, 0]))
    pq.write_table(with_features(table, {"kind": NAMES, "colour": NAMES}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"has several label columns \(kind, colour\); call the one to use 'label'"):
        parquet(tmp_path / "a.parquet")


def with_features(table: pa.Table, features: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("nested", [False, True])
def test_one_label_or_several_in_either_column(tmp_path, name, nested):
    values = pa.array([[2], [0], [], [1]]) if nested else pa.array([2, 0, None, 1])
    source = parquet(write(tmp_path / "a.parquet", feature=NAMES, **{name: values}))
    assert [record.labels for record in source.records(0)] == [(2,), (0,), (), (1,)]


def test_reading_is_taken_up_anywhere(tmp_path):
    labels = [pa.array(np.arange(n) % 3) for n in (700, 5, 300)]
    for index, label in enumerate(labels):
        write(tmp_path / f"train-{index}.parquet", len(label), 1000 * index, feature=NAMES, label=label)
    source = parquet(tmp_path)
    check_tails(source)
    everything = list(source.records(0))
    for start in (256, 257, 600, 699, 700, 701, 704, 705, 900, 1004):
        assert list(source.records(start)) == everything[start:]


def test_row_groups_that_precede_are_not_read(tmp_path):
    path = write(tmp_path / "a.parquet", 30)
    whole = list(parquet(path).records(15))
    content = path.read_bytes()
    column = pq.read_metadata(path).row_group(5).column(0)  # begins with row 15
    begin = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(content[:4] + bytes(begin - 4) + content[begin:])
    source = parquet(path)
    assert list(source.records(15)) == whole
    with pytest.raises(InputError):
        list(source.records(14))


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    noise = np.random.default_rng(0).bytes(20_000)
    images = pa.array([noise[row:] + noise[:row] for row in range(4000)], pa.binary())
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", use_dictionary=False, compression="NONE")
    del images
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in parquet(tmp_path / "a.parquet").records(0)]
    assert len(held) == 4000 and max(held) < 40 * 2**20  # of 76 MiB


def test_digests_are_of_the_content(tmp_path):
    path = write(tmp_path / "a.parquet", 4)
    before = parquet(tmp_path).digests
    assert before == {"a.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
    status = path.stat()
    write(path, 4, start=1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert parquet(tmp_path).digests != before
    path.rename(tmp_path / "b.parquet")
    assert parquet(tmp_path).digests.keys() == {"b.parquet"}


def test_links_into_the_cache_of_the_hub(tmp_path):
    """There, the name that tells the split is a link to a file whose name is its digest."""
    blob = write(tmp_path / "blobs" / "0123", 2)
    (tmp_path / "snapshots" / "data").mkdir(parents=True)
    (tmp_path / "snapshots" / "data" / "test-0.parquet").symlink_to(blob)
    source = parquet(tmp_path / "snapshots")
    assert [record.split for record in source.records(0)] == ["test"] * 2
    assert list(source.digests) == ["data/test-0.parquet"]


def test_braces(tmp_path):
    for index in range(8, 12):
        write(tmp_path / f"train-{index:03d}.parquet", 1, index)
    source = parquet(tmp_path / "train-{008..010}.parquet")
    assert [record.data for record in source.records(0)] == [picture(seed) for seed in (8, 9, 10)]
    with pytest.raises(InputError, match=r"dataset.path: .*: no .*train-012.parquet there; complete the files"):
        parquet(tmp_path / "train-{008..012}.parquet")


def test_split_column(tmp_path):
    path = write(tmp_path / "train-0.parquet", split=pa.array(["test", "Validation", "unsup", None]))
    assert [record.split for record in parquet(path).records(0)] == ["test", "validation", "", ""]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"), ("test.parquet", "test"), ("validation-0.parquet", "validation"),
        ("val_0.parquet", "validation"), ("default/test/0000.parquet", "test"), ("training.parquet", "train"),
        ("trained.parquet", ""), ("data.parquet", ""), ("mytest-0.parquet", ""), ("pets_Test-0.parquet", "test"),
        ("train-test.parquet", ""), ("test/train-test.parquet", "test"), ("partial-train/0.parquet", "train"),
    ],
)  # fmt: skip
def test_split_of_the_file_name(tmp_path, name, split):
    write(tmp_path / "root" / name, 1)
    assert [record.split for record in parquet(tmp_path / "root").records(0)] == [split]


@pytest.mark.parametrize("how", ["", "/*.parquet", "/**/*.parquet"])
def test_many_files_in_order(tmp_path, how):
    root = tmp_path / "set"
    write(root / "train-1.parquet", 3, 5)
    write(root / "train-0.parquet", 3, 2)
    write(root / "test-0.parquet", 2, 0)
    (root / "readme.md").write_text("x")
    write(root / ".cache" / "test-0.parquet")
    source = parquet(f"{root}{how}")
    records = list(source.records(0))
    assert [record.data for record in records] == [picture(seed) for seed in range(8)]
    assert [record.split for record in records] == ["test"] * 2 + ["train"] * 6
    assert source.size == 8 and list(source.digests) == ["test-0.parquet", "train-0.parquet", "train-1.parquet"]
    assert source.name == "set"


def test_name_with_brackets(tmp_path):
    assert parquet(write(tmp_path / "a[0].parquet")).size == 4


@pytest.mark.parametrize("name", ["nothing.parquet", "*.parquet", "empty", "", "{a,b}[0].parque?"])
def test_nothing_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"dataset.path: .*: no .* there"):
        parquet(name)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"img": [b"x"], "label": [0]}, r"has no column 'image' \(struct<.* or binary\); its columns are img, label"),
        ({"image": ["x"]}, r"column 'image' is string, expected struct<bytes: binary, path: string> or binary"),
        ({"image": [{"path": "x"}]}, r"column 'image' is struct<path: string>, expected"),
        ({"image": [b"x"], "label": ["cat"]}, "column 'label' is string, expected integer"),
        ({"image": [b"x"], "label": [0.5]}, "column 'label' is double, expected integer"),
        ({"image": [b"x"], "label": [True]}, "column 'label' is bool, expected integer"),
        ({"image": [b"x"], "labels": [["cat"]]}, "column 'labels' is list<.*>, expected integer or list of integers"),
        (
            {"one": [{"bytes": b""}], "two": [{"bytes": b""}]},
            r"has several image columns \(one, two\); call the one to use",
        ),
        ({"image": [b"x"], "split": [0]}, "column 'split' is int64, expected string"),
    ],
)
def test_wrong_schema(tmp_path, table, match):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a.parquet: {match}"):
        parquet(tmp_path / "a.parquet")


def test_columns_of_the_same_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([0]), pa.array([1])], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two of its columns have the same name"):
        parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize(("value", "row"), [(3, 2), (-2, 2), (2**40, 2)])
def test_label_out_of_range(tmp_path, value, row):
    path = write(tmp_path / "a.parquet", feature=NAMES, label=pa.array([0, 1, value, 2], pa.int64()))
    with pytest.raises(InputError, match=rf"a.parquet: column 'label' has {value} in row {row}, expected -1 .* to 2"):
        list(parquet(path).records(0))
    many = write(tmp_path / "b.parquet", feature=[NAMES], labels=pa.array([[0, 1], [], [1, value], [2]]))
    with pytest.raises(InputError, match=rf"b.parquet: column 'labels' has {value} in row {row}"):
        list(parquet(many).records(0))


def test_row_of_a_bad_label_deep_in_a_file(tmp_path):
    label = np.zeros(700, dtype=np.int64)
    label[613] = 9
    path = write(tmp_path / "a.parquet", 700, feature=NAMES, label=pa.array(label))
    with pytest.raises(InputError, match="has 9 in row 613"):
        list(parquet(path).records(0))


def test_label_too_large_for_any_class(tmp_path):
    path = write(tmp_path / "a.parquet", label=pa.array([0, 1, 2, 2**64 - 5], pa.uint64()))
    with pytest.raises(InputError, match="column 'label' has -5 in row 3"):
        list(parquet(path).records(0))


def test_files_that_do_not_agree(tmp_path):
    write(tmp_path / "train.parquet", feature=NAMES, label=pa.array([0] * 4))
    write(tmp_path / "test.parquet", feature={"names": ["dog", "cat"]}, label=pa.array([0] * 4))
    with pytest.raises(InputError, match=r"train.parquet: has another label column or other class names than .*test"):
        parquet(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -10])
def test_damaged_file(tmp_path, cut):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"a.parquet: cannot be read as Parquet"):
        parquet(path)


def test_damaged_page(tmp_path):
    path = write(tmp_path / "a.parquet", 300)
    content = bytearray(path.read_bytes())
    content[4:5000] = b"\xff" * 4996
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: cannot be read as Parquet") as caught:
        list(parquet(path).records(0))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
@pytest.mark.parametrize(
    ("name", "size", "test", "classes"), [("clothing", 3781, 372, "dress"), ("cifar10", 60_000, 10_000, "airplane")]
)
def test_real_files(name, size, test, classes):
    source = parquet(SHARED / name)
    splits = [record.split for record in source.records(0)]
    assert source.size == len(splits) == size and splits.count("test") == test
    tail = list(source.records(size - 100))
    assert tail == list(source.records(size - 1000))[900:] and decode(tail[0].data).mode == "RGB"
    assert len(source.class_names) == 10 and source.class_names[0] == classes
