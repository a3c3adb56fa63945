"""Features that somebody else computed: the layouts that are read, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.download import feature_files
from stages.download.config import DatasetOptions
from stages.download.datasets.embeddings import embeddings
from stages.download.source import Record, Source
from stages.errors import InputError

LABELS = [2, 0, -1, 2, 5]
HUB = {"huggingface": json.dumps({"info": {
    "features": {"label": {"names": ["cat", "dog", "tree", "car", "sea", "sky"], "_type": "ClassLabel"}},
    "license": "cc0-1.0",
}})}  # fmt: skip


def rows(n: int = 5, dim: int = 3, seed: int = 0, kind: str = "f2") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(kind)


def opened(path: Path | str) -> Source:
    return embeddings(DatasetOptions(name="embeddings", path=str(path)))


def write_hdf5(target: Path, group: str = "", /, **arrays: Any) -> Path:
    with h5py.File(target, "w") as file:
        for name, values in arrays.items():
            file[f"{group}{name}"] = values
    return target


def write_parquet(target: Path, metadata: dict[str, str] | None = None, /, **columns: Any) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), target, row_group_size=2)
    return target


def clip_retrieval(root: Path, sizes: tuple[int, ...] = (2, 3), width: int = 1, **columns: list) -> Path:
    """What its `inference` writes: numbers of `width` digits, of pandas' making."""
    first = 0
    for number, size in enumerate(sizes):
        part = slice(first, first + size)
        name = str(number).zfill(width)
        (root / "img_emb").mkdir(parents=True, exist_ok=True)
        np.save(root / f"img_emb/img_emb_{name}.npy", rows(sum(sizes))[part])
        known = {"image_path": [f"photos/{row}.jpg" for row in range(first, part.stop)], "caption": ["a photo"] * size}
        known |= {key: values[part] for key, values in columns.items()}
        write_parquet(root / f"metadata/metadata_{name}.parquet", **known)
        first += size
    (root / "text_emb").mkdir()
    np.save(root / "text_emb/text_emb_0.npy", rows(7))
    return root


# ---- layouts


def npy(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", rows())
    np.save(tmp_path / "x.labels.npy", np.array(LABELS))
    return tmp_path / "x.npy"


def npy_of_other_order(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.asfortranarray(rows().astype(">f8")))
    np.save(tmp_path / "x.labels.npy", np.array(LABELS, np.int8))
    return tmp_path


def hdf5(tmp_path: Path) -> Path:
    return write_hdf5(tmp_path / "x.h5", features=rows(), labels=np.array(LABELS))


def own_hdf5(tmp_path: Path) -> Path:
    arrays = {"features": rows(), "id": np.arange(5), "labels": np.array(LABELS)}
    return write_hdf5(tmp_path / "features.h5", "image/", **arrays)


def parquet_lists(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "x.parquet", embedding=rows().astype("f8").tolist(), label=LABELS)


def parquet_fixed(tmp_path: Path) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows().ravel()), 3)
    return write_parquet(tmp_path / "x.parquet", features=lists, labels=[[label] for label in LABELS])


def parquet_files(tmp_path: Path) -> Path:
    for number, part in enumerate((slice(0, 2), slice(2, 5))):
        lists = pa.array(rows()[part].tolist(), pa.large_list(pa.float32()))
        write_parquet(tmp_path / f"x-{number}.parquet", image_embedding=lists, label=LABELS[part])
    return tmp_path


def of_clip_retrieval(tmp_path: Path) -> Path:
    return clip_retrieval(tmp_path / "x", label=LABELS)


def of_clip_retrieval_with_labels_beside(tmp_path: Path) -> Path:
    root = clip_retrieval(tmp_path / "x")
    for number, part in enumerate((slice(0, 2), slice(2, 5))):
        np.save(root / f"img_emb/img_emb_{number}.labels.npy", np.array(LABELS[part]))
    return root


LAYOUTS = [
    npy, npy_of_other_order, hdf5, own_hdf5, parquet_lists, parquet_fixed, parquet_files, of_clip_retrieval,
    of_clip_retrieval_with_labels_beside,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(feature_files, "ROWS", 2)
    source = opened(layout(tmp_path))
    assert (source.size, source.class_names) == (5, ("0", "2", "5"))
    records = list(source.records(0))
    np.testing.assert_array_equal(np.stack([record.features for record in records]), rows().astype(np.float32))
    assert all(record.features.dtype == np.float32 and record.data == b"" for record in records)
    assert [record.labels for record in records] == [(1,), (0,), (), (1,), (2,)]
    assert not any(record.problem or record.split for record in records)
    assert len({record.path for record in records}) == 5
    for start in range(7):
        assert [_known(record) for record in source.records(start)] == [_known(record) for record in records[start:]]


def _known(record: Record) -> tuple:
    return record.features.tolist(), *record[:6]


def test_several_labels(tmp_path: Path) -> None:
    hot = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
    expected = [(1, 2), (), (0,), (1,), (0, 1, 2)]
    np.save(tmp_path / "x.npy", rows())
    np.save(tmp_path / "x.labels.npy", hot.astype(bool))
    write_hdf5(tmp_path / "x.h5", features=rows(), labels=hot)
    write_parquet(tmp_path / "x.parquet", features=rows().tolist(), labels=[list(row) for row in expected])
    for suffix in ("npy", "h5", "parquet"):
        source = opened(tmp_path / f"x.{suffix}")
        assert source.class_names == ("0", "1", "2")
        assert [record.labels for record in source.records(0)] == expected


def test_a_class_without_an_image_is_a_class_where_every_class_has_a_column(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.h5", features=rows(), labels=np.eye(5, 7, 1, dtype=np.uint8))
    assert opened(tmp_path / "x.h5").class_names == tuple("0123456")


def test_names_and_splits_are_kept(tmp_path: Path) -> None:
    names, splits = [f"photo/{row}.jpg" for row in range(4)] + ["gr\xfcn"], ["train", "Test", "val", "other", "test"]
    write_hdf5(tmp_path / "x.h5", features=rows(), path=names, split=splits)
    write_parquet(tmp_path / "x.parquet", features=rows().tolist(), path=names, id=range(5), split=splits)
    for suffix in ("h5", "parquet"):
        records = list(opened(tmp_path / f"x.{suffix}").records(0))
        assert [record.path for record in records] == names
        assert [record.split for record in records] == ["train", "test", "validation", "", "test"]
    write_hdf5(tmp_path / "y.h5", features=rows(), path=np.array([*names[:4], "x"], "S20"), split=np.array(splits, "S"))
    assert [record.path for record in opened(tmp_path / "y.h5").records(0)] == [*names[:4], "x"]
    write_parquet(tmp_path / "y.parquet", features=rows().tolist(), id=[7, 8, None, 9, 10], url=pa.nulls(5))
    assert [record.path for record in opened(tmp_path / "y.parquet").records(0)] == ["7", "8", "y.parquet#2", "9", "10"]


def test_files_tell_the_split_where_no_column_does(tmp_path: Path) -> None:
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", rows(3))
        np.save(tmp_path / f"{name}.labels.npy", np.arange(3))
    records = list(opened(tmp_path).records(0))
    assert [record.split for record in records] == ["test"] * 3 + ["train"] * 3
    assert records[4].path == records[4].origin == "train.npy#1"


def test_class_names_of_the_hub(tmp_path: Path) -> None:
    source = opened(write_parquet(tmp_path / "x.parquet", HUB, features=rows().tolist(), label=LABELS))
    assert source.class_names == ("cat", "dog", "tree", "car", "sea", "sky")
    assert [record.labels for record in source.records(0)] == [(2,), (0,), (), (2,), (5,)]
    assert source.licence == "cc0-1.0"


@pytest.mark.parametrize("width", [1, 4])
def test_output_of_clip_retrieval(tmp_path: Path, width: int) -> None:
    source = opened(clip_retrieval(tmp_path / "laion", sizes=(1,) * 12, width=width))
    assert (source.name, source.size, source.class_names) == ("laion", 12, ())
    records = list(source.records(0))
    assert [record.path for record in records] == [f"photos/{row}.jpg" for row in range(12)]  # by number, not by name
    np.testing.assert_array_equal(np.stack([record.features for record in records]), rows(12).astype(np.float32))
    assert records[11].origin == f"img_emb/img_emb_{'11'.zfill(width)}.npy#0"


def test_output_of_clip_retrieval_without_metadata(tmp_path: Path) -> None:
    root = clip_retrieval(tmp_path / "x")
    for file in (root / "metadata").iterdir():
        file.unlink()
    assert [record.path for record in opened(root).records(3)] == [f"img_emb/img_emb_1.npy#{row}" for row in (1, 2)]


def test_the_identity_follows_the_files(tmp_path: Path) -> None:
    root = clip_retrieval(tmp_path / "x")
    identities = {opened(root).identity}
    write_parquet(root / "metadata/metadata_0.parquet", image_path=["a", "b"])
    identities.add(opened(root).identity)
    np.save(root / "img_emb/img_emb_1.labels.npy", np.arange(3))
    identities.add(opened(root).identity)
    np.save(root / "img_emb/img_emb_1.npy", rows(3, seed=8))
    identities.add(opened(root).identity)
    assert len(identities) == 4


def test_what_is_no_feature_is_marked(tmp_path: Path) -> None:
    values = rows(5, kind="f8")
    values[1], values[3] = 0, 1e300
    np.save(tmp_path / "x.npy", values)
    records = list(opened(tmp_path / "x.npy").records(0))
    assert [record.problem for record in records] == ["", "is zero, which has no direction", "", "", ""]
    assert np.isinf(records[3].features).all()
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)):
        lists = pa.array([[1.0, 2.0], None, [None, 1.0], [3.0, 4.0]], kind)
        source = opened(write_parquet(tmp_path / "x.parquet", features=lists))
        found = [np.isfinite(record.features).tolist() for record in source.records(0)]
        assert found == [[True, True], [False, False], [False, True], [True, True]]


# ---- faults


def _save(name: str, array: np.ndarray, **options: Any) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        np.save(tmp_path / name, array, **options)
        return tmp_path

    return write


def _npy_and(labels: np.ndarray) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        np.save(tmp_path / "x.npy", rows())
        np.save(tmp_path / "x.labels.npy", labels)
        return tmp_path / "x.npy"

    return write


def _hdf5_of(**arrays: Any) -> Callable[[Path], Path]:
    return lambda tmp_path: write_hdf5(tmp_path / "x.h5", **arrays)


def _parquet_of(**columns: Any) -> Callable[[Path], Path]:
    return lambda tmp_path: write_parquet(tmp_path / "x.parquet", **columns)


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def _cut(layout: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        path = layout(tmp_path)
        path.write_bytes(path.read_bytes()[:-20])
        return path

    return write


def _two_models(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", rows())
    np.save(tmp_path / "b.npy", rows(dim=4))
    return tmp_path


def _two_kinds(tmp_path: Path) -> Path:
    npy(tmp_path)
    return parquet_lists(tmp_path).parent


def _other_class_names(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "a.parquet", HUB, features=rows().tolist(), label=LABELS)
    write_parquet(tmp_path / "b.parquet", features=rows().tolist(), label=LABELS)
    return tmp_path


def _metadata_of_another_run(tmp_path: Path) -> Path:
    root = clip_retrieval(tmp_path / "x")
    write_parquet(root / "metadata/metadata_1.parquet", image_path=["a", "b"])
    return root


def _metadata_missing(tmp_path: Path) -> Path:
    root = clip_retrieval(tmp_path / "x")
    (root / "metadata/metadata_1.parquet").unlink()
    return root


def _no_embeddings(tmp_path: Path) -> Path:
    (tmp_path / "x/img_emb").mkdir(parents=True)
    return tmp_path / "x"


def _npy_headed(header: str) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        coded = header.encode().ljust(117) + b"\n"
        (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(coded).to_bytes(2, "little") + coded + bytes(64))
        return tmp_path / "x.npy"

    return write


def _hdf5_empty(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = h5py.Empty("f4")
    return tmp_path / "x.h5"


def _hdf5_elsewhere(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = rows()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")
    return tmp_path / "x.h5"


def _hdf5_external(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(80))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("features", (5, 4), "f4", external=[(str(tmp_path / "secret"), 0, 80)])
    return tmp_path / "x.h5"


FAULTS = [
    (lambda tmp_path: tmp_path / "nowhere", "nowhere: no file of features"),
    (_bytes("x.csv", b"1,2"), r"x\.csv: is none of \.npy, \.h5, \.hdf5, \.parquet; write"),
    (_bytes("x.npy", b""), r"x\.npy: cannot be read as an array of numbers"),
    (_bytes("x.npy", b"PK\x03\x04"), r"x\.npy: cannot be read as an array of numbers"),
    (_bytes("x.h5", b"nothing"), r"x\.h5: cannot be read as HDF5"),
    (_bytes("x.parquet", b"nothing"), r"x\.parquet: cannot be read as Parquet"),
    (_save("x.npy", np.array([[1, 2]], object), allow_pickle=True), r"x\.npy: cannot be read as an array of numbers"),
    (_save("x.npy", rows()[0]), r"features are float16 \(3,\), expected floating point \(n, d\)"),
    (_save("x.npy", rows()[None]), r"features are float16 \(1, 5, 3\)"),
    (_save("x.npy", np.ones((5, 3), np.uint8)), r"features are uint8 \(5, 3\)"),
    (_save("x.npy", np.ones((5, 3), complex)), r"features are complex128 \(5, 3\)"),
    (_save("x.npy", np.ones((5, 0), np.float16)), r"features are float16 \(5, 0\)"),
    (_save("x.npy", np.ones((0, 3), np.float16)), "has no rows"),
    (_npy_and(np.arange(4)), r"x\.npy: labels for 4 images, features for 5"),
    (_npy_and(np.array(3)), r"x\.npy: labels for 0 images"),
    (_npy_and(np.ones(5)), r"labels are float64 \(5,\), expected integers \(n,\), -1 for none, or 0 and 1"),
    (_npy_and(np.array(list("abcde"))), r"labels are <U1 \(5,\)"),
    (_npy_and(np.ones((5, 2, 2), int)), r"labels are int64 \(5, 2, 2\)"),
    (_npy_and(np.array([[0, 1]] * 3 + [[0, 7]] * 2)), "labels have a 7 in row 3, expected 0 and 1"),
    (_npy_and(np.array([0, 1, -2, 0, 0])), "has -2 in row 2, expected -1"),
    (_hdf5_of(labels=np.arange(5), train=rows()), "x.h5: has no data set 'features'.*it has labels, train"),
    (_hdf5_of(), "it has nothing"),
    (_hdf5_of(features=rows(), split=["test"] * 4), r"x\.h5: split for 4 images, features for 5"),
    (_hdf5_of(features=rows(), path=["a"] * 6), r"x\.h5: names for 6 images, features for 5"),
    (_hdf5_of(features=np.arange(5)), r"features are int64 \(5,\)"),
    (_parquet_of(vector=rows().tolist()), r"has no column 'features' \(lists of floating-point.*are vector"),
    (_parquet_of(features=[1.0, 2.0]), "column 'features' is double, expected lists of floating-point numbers"),
    (_parquet_of(features=[[1], [2]]), "column 'features' is list<.*int64>, expected lists of floating-point"),
    (_parquet_of(features=pa.array([None, []], pa.list_(pa.float32()))), "column 'features' has no numbers"),
    (_parquet_of(features=[[1.0, 2.0], [3.0, 4.0], [5.0]]), "has 1 numbers in row 2, and 2 in others"),
    (_parquet_of(features=[[1.0]], label=["cat"]), "column 'label' is string, expected integer"),
    (_cut(npy), "cannot be read as an array of numbers"),
    *((_npy_headed(header), r"x\.npy: cannot be read as an array of numbers") for header in (
        "{", "{'descr': ('<f4',), 'fortran_order': False, 'shape': (2, 2), }",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 2), }}",
    )),
    (_hdf5_empty, r"x\.h5: features are"),
    (_hdf5_elsewhere, r"x\.h5: refused, its data set 'features' is in other files"),
    (_hdf5_external, r"x\.h5: refused, its data set 'features' is in other files"),
    (_cut(hdf5), "cannot be read as HDF5"),
    (_cut(parquet_lists), "cannot be read as Parquet"),
    (_two_models, r"b\.npy: features have 4 dimensions, those of .*a\.npy 3"),
    (_two_kinds, r"has \.npy and \.parquet files; name those of one kind"),
    (_other_class_names, r"b\.parquet: has other class names"),
    (_metadata_of_another_run, r"img_emb_1\.npy: 3 features, and .*metadata_1\.parquet 2 rows"),
    (_metadata_missing, r"img_emb_1\.npy: has no metadata_1\.parquet in"),
    (_no_embeddings, r"img_emb: has no img_emb_0\.npy"),
]


@pytest.mark.parametrize(("write", "message"), FAULTS)
def test_faults_are_one_line_that_names_the_file(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        list(opened(write(tmp_path)).records(0))
    assert "\n" not in str(error.value)
