"""Image Parquet in the hub's layout, and files that are not in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture import picture

from stages.download.parquet import parquet
from stages.errors import InputError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = {"names": ["cat", "dog", "tree"], "_type": "ClassLabel"}
SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(
    path: Path, n: int = 4, start: int = 0, feature: Any = None, **columns: pa.Array
) -> Path:
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
    source = parquet(str(path))
    records = list(source.records)
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
    source = parquet(str(write(tmp_path / "a.parquet", feature=feature, labels=labels)))
    assert source.class_names == ("cat", "dog", "tree")
    assert [record.labels for record in source.records] == [(2, 0), (), (), (1,)]


def test_labels_of_fixed_number(tmp_path):
    labels = pa.array([[2, 0], [1, -1], [-1, -1], [5, 7]], pa.list_(pa.int64(), 2))
    source = parquet(str(write(tmp_path / "a.parquet", labels=labels)))
    assert source.class_names == ("0", "1", "2", "5", "7")
    assert [record.labels for record in source.records] == [(2, 0), (1,), (), (3, 4)]


@pytest.mark.parametrize("metadata", [None, "no json", "[]", '{"info": {"features": {"label": {"dtype": "int64"}}}}'])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.int16()])
def test_classes_are_the_integers_without_names(tmp_path, metadata, kind):
    path = write(tmp_path / "a.parquet", label=pa.array([30, 7, 7, None], kind))
    if metadata:
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    source = parquet(str(path))
    assert source.class_names == ("7", "30")
    assert [record.labels for record in source.records] == [(1,), (0,), (0,), ()]


def test_without_labels(tmp_path):
    source = parquet(str(write(tmp_path / "a.parquet")))
    assert source.class_names == () and [record.labels for record in source.records] == [()] * 4


def test_only_labels_that_are_none(tmp_path):
    source = parquet(str(write(tmp_path / "a.parquet", label=pa.array([-1, -1, None, None], pa.int64()))))
    assert source.class_names == () and [record.labels for record in source.records] == [()] * 4


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])])
def test_image_without_path(tmp_path, kind):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([picture(0) if not pa.types.is_struct(kind) else {"bytes": picture(0)}], kind)})
    pq.write_table(table, path)
    (record,) = parquet(str(path)).records
    assert (record.data, record.path, record.origin) == (picture(0), "a.parquet#0", "")


def test_images_without_bytes(tmp_path):
    images = [{"bytes": None, "path": "elsewhere.png"}, None, {"bytes": b"", "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), tmp_path / "a.parquet")
    records = list(parquet(str(tmp_path / "a.parquet")).records)
    assert [record.problem for record in records] == ["has no bytes", "has no bytes", ""]
    assert [record.path for record in records] == ["elsewhere.png", "a.parquet#1", "a.parquet#2"]


def test_path_that_is_no_text(tmp_path):
    paths = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"], pa.binary()).buffers())
    images = pa.StructArray.from_arrays([pa.array([picture(0)]), paths], names=["bytes", "path"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert [record.path for record in parquet(str(tmp_path / "a.parquet")).records] == ["caf\ufffd"]


def test_split_column(tmp_path):
    path = write(tmp_path / "train-0.parquet", split=pa.array(["test", "Validation", "unsup", None]))
    assert [record.split for record in parquet(str(path)).records] == ["test", "validation", "", ""]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"), ("test.parquet", "test"), ("validation-0.parquet", "validation"),
        ("val_0.parquet", "validation"), ("default/test/0000.parquet", "test"), ("training.parquet", "train"),
        ("trained.parquet", ""), ("data.parquet", ""), ("mytest-0.parquet", ""),
    ],
)  # fmt: skip
def test_split_of_the_file_name(tmp_path, name, split):
    write(tmp_path / "root" / name, 1)
    assert [record.split for record in parquet(str(tmp_path / "root")).records] == [split]


@pytest.mark.parametrize("how", ["", "/*.parquet", "/**/*.parquet"])
def test_many_files_in_order(tmp_path, how):
    root = tmp_path / "set"
    write(root / "train-1.parquet", 3, 5)
    write(root / "train-0.parquet", 3, 2)
    write(root / "test-0.parquet", 2, 0)
    (root / "readme.md").write_text("x")
    write(root / ".cache" / "test-0.parquet")
    source = parquet(f"{root}{how}")
    records = list(source.records)
    assert [record.data for record in records] == [picture(seed) for seed in range(8)]
    assert [record.split for record in records] == ["test"] * 2 + ["train"] * 6
    assert source.size == 8 and list(source.digests) == ["test-0.parquet", "train-0.parquet", "train-1.parquet"]
    assert source.name == "set"


def test_name_with_brackets(tmp_path):
    assert parquet(str(write(tmp_path / "a[0].parquet"))).size == 4


@pytest.mark.parametrize("name", ["nothing.parquet", "*.parquet", "empty", ""])
def test_nothing_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data.path: .*: no Parquet file there"):
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
        ({"image": [b"x"], "label": [[1]]}, "column 'label' is list<.*>, expected integer"),
        ({"image": [b"x"], "labels": [1]}, "column 'labels' is int64, expected list of integers"),
        ({"image": [b"x"], "labels": [["cat"]]}, "column 'labels' is list<.*>, expected list of integers"),
        ({"image": [b"x"], "split": [0]}, "column 'split' is int64, expected string"),
    ],
)
def test_wrong_schema(tmp_path, table, match):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a.parquet: {match}"):
        parquet(str(tmp_path / "a.parquet"))


def test_columns_of_the_same_name(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([0]), pa.array([1])], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two of its columns have the same name"):
        parquet(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(("value", "row"), [(3, 2), (-2, 2), (2**40, 2)])
def test_label_out_of_range(tmp_path, value, row):
    path = write(tmp_path / "a.parquet", feature=NAMES, label=pa.array([0, 1, value, 2], pa.int64()))
    with pytest.raises(InputError, match=rf"a.parquet: column 'label' has {value} in row {row}, expected -1 .* to 2"):
        list(parquet(str(path)).records)
    many = write(tmp_path / "b.parquet", feature=[NAMES], labels=pa.array([[0, 1], [], [1, value], [2]]))
    with pytest.raises(InputError, match=rf"b.parquet: column 'labels' has {value} in row {row}"):
        list(parquet(str(many)).records)


def test_row_of_a_bad_label_deep_in_a_file(tmp_path):
    label = np.zeros(700, dtype=np.int64)
    label[613] = 9
    path = write(tmp_path / "a.parquet", 700, feature=NAMES, label=pa.array(label))
    with pytest.raises(InputError, match="has 9 in row 613"):
        list(parquet(str(path)).records)


def test_label_too_large_for_any_class(tmp_path):
    path = write(tmp_path / "a.parquet", label=pa.array([0, 1, 2, 2**64 - 5], pa.uint64()))
    with pytest.raises(InputError, match="column 'label' has -5 in row 3"):
        list(parquet(str(path)).records)


def test_files_that_do_not_agree(tmp_path):
    write(tmp_path / "train.parquet", feature=NAMES, label=pa.array([0] * 4))
    write(tmp_path / "test.parquet", feature={"names": ["dog", "cat"]}, label=pa.array([0] * 4))
    with pytest.raises(InputError, match=r"train.parquet: has another label column or other class names than .*test"):
        parquet(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 10, -10])
def test_damaged_file(tmp_path, cut):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"a.parquet: cannot be read as Parquet"):
        parquet(str(path))


def test_damaged_page(tmp_path):
    path = write(tmp_path / "a.parquet", 300)
    content = bytearray(path.read_bytes())
    content[4:5000] = b"\xff" * 4996
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: cannot be read as Parquet") as caught:
        list(parquet(str(path)).records)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
@pytest.mark.parametrize(
    ("name", "size", "test", "classes"), [("clothing", 3781, 372, "dress"), ("cifar10", 60_000, 10_000, "airplane")]
)
def test_real_files(name, size, test, classes):
    source = parquet(str(SHARED / name))
    splits = [record.split for record in source.records]
    assert source.size == len(splits) == size and splits.count("test") == test
    assert len(source.class_names) == 10 and source.class_names[0] == classes
