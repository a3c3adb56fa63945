"""Whatever a collection holds: it is read, or refused in one line; nothing is written beside the target.

Hypothesis damages valid files of each format, or makes others of the same kind; CI tries a few, the nightly profile
many.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from download_run import params
from fuzzing import check, clearly, damage, few_or_many, texts
from picture import picture

from stages.download.stage import run as download


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(8):
            archive.writestr(f"class {number % 2}/{number}.png", picture(number))


def write_images(path: Path) -> None:
    structs = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(8)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "label": pa.array([0, 1] * 4)})
    pq.write_table(table, path, compression="none")


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        file["labels"] = np.array([0, 1] * 4)


def write_csv(path: Path) -> None:
    for number in range(8):
        (path.parent / f"{number}.png").write_bytes(picture(number))
    path.write_text("path,label,caption\n" + "".join(f'{n}.png,{n % 2},"a, ""thing"""\n' for n in range(8)))


#: By data set: the name of a file, and what writes a valid one.
COLLECTIONS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "imagefolder": ("photos.zip", write_zip),
    "webdataset": ("photos.tar", lambda path: tar(path, {
        f"{number}.{ending}": data for number in range(8) for ending, data in
        (("png", picture(number)), ("cls", b"1"), ("json", b'{"caption": "a thing"}'))
    })),
    "parquet": ("photos.parquet", write_images),
    "embeddings": ("features.h5", write_hdf5),
    "csv": ("photos.csv", write_csv),
}  # fmt: skip


def collected(name: str, path: Path) -> None:
    """Run the stage `download` on a collection."""
    clearly(lambda: download(params(name, path=str(path), queries=2, database=6, train=4, workers=1)))


def everything_below(place: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", COLLECTIONS)
@few_or_many(40, 2500)
def test_damaged_collections(examples, name, tmp_path, workplace):
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / COLLECTIONS[name][0]
    COLLECTIONS[name][1](path)
    collected(name, path)
    assert Path("data/dataset.json").exists()  # undamaged it is a data set

    def reads(data: bytes) -> None:
        path.write_bytes(data)
        before = everything_below(tmp_path / "given")
        collected(name, path)
        assert everything_below(tmp_path / "given") == before
        assert {place.name for place in tmp_path.iterdir()} == {"given", "work"}

    check(damage(path.read_bytes()), examples, reads)


names = st.one_of(
    st.sampled_from(["../out.png", "/tmp/conceptbits-out.png", "a/../../out.png", "..\\out.png", "C:/out", ".", ""]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30),
)


@pytest.mark.parametrize("name", ["imagefolder", "webdataset"])
@few_or_many(40, 2500)
def test_names_in_archives(examples, name, tmp_path, workplace):
    """Nothing is written where a name points to."""
    path = tmp_path / "photos.tar"

    def reads(found: list[tuple[str, bool]]) -> None:
        with tarfile.open(path, "w") as archive:
            for number, (member, link) in enumerate(found):
                data = picture(number)
                info = tarfile.TarInfo(member)
                info.size, info.type, info.linkname = len(data), tarfile.SYMTYPE if link else tarfile.REGTYPE, "../out"
                archive.addfile(info, io.BytesIO(data))
        collected(name, path)
        assert {place.name for place in tmp_path.iterdir()} == {"photos.tar", "work"}
        assert not Path("/tmp/conceptbits-out.png").exists()

    check(st.lists(st.tuples(names, st.booleans()), min_size=1, max_size=6), examples, reads)


# ---- schemas

kinds = st.sampled_from([
    pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.string(), pa.large_string(), pa.binary(),
    pa.bool_(), pa.null(), pa.date32(), pa.list_(pa.int64()), pa.list_(pa.float32()), pa.list_(pa.float32(), 3),
    pa.large_list(pa.string()), pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    pa.struct([("bytes", pa.int64())]), pa.dictionary(pa.int32(), pa.string()), pa.decimal128(5, 2),
])  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Tables of up to five rows whose columns have the right names and any types, nulls among the values."""
    rows = draw(st.integers(0, 5))
    columns = draw(st.dictionaries(
        st.sampled_from(["image", "label", "labels", "split", "path", "features", "embedding", "id", "caption"]), kinds,
        min_size=1, max_size=5,
    ))  # fmt: skip
    made = {}
    for name, kind in columns.items():
        values = [None] * rows if draw(st.booleans()) else [_value(kind) for _ in range(rows)]
        made[name] = pa.array(values, kind)
    return pa.table(made)


def _value(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {"bytes": picture(0)} if kind.field(0).type == pa.binary() else {"bytes": 7}
    if pa.types.is_fixed_size_list(kind):
        return [1.0, float("nan"), float("inf")]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ["x"] if pa.types.is_string(kind.value_type) else [1, 2]
    if pa.types.is_float16(kind):
        return np.float16(1.5)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return "train"
    if pa.types.is_binary(kind):
        return picture(0)
    if pa.types.is_boolean(kind):
        return True
    return None if pa.types.is_null(kind) or pa.types.is_date(kind) or pa.types.is_decimal(kind) else 1


@pytest.mark.parametrize("name", ["parquet", "embeddings"])
@few_or_many(40, 2500)
def test_parquet_schemas(examples, name, tmp_path, workplace):
    def reads(table: pa.Table) -> None:
        pq.write_table(table, tmp_path / "some.parquet")
        collected(name, tmp_path / "some.parquet")

    check(tables(), examples, reads)


arrays = st.one_of(
    st.builds(lambda shape, kind: np.zeros(shape, kind), st.lists(st.integers(0, 6), max_size=3).map(tuple),
              st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u8", "?", "c8", "S5"])),
    st.sampled_from([np.full((6, 3), np.nan, "f4"), np.full((6, 3), np.inf, "f8")]),
    st.binary(max_size=5).map(np.bytes_), st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip


@few_or_many(40, 2500)
def test_hdf5_schemas(examples, tmp_path, workplace):
    def reads(content: dict[str, Any]) -> None:
        with h5py.File(tmp_path / "some.h5", "w") as file:
            for name, values in content.items():
                file[name] = values
        collected("embeddings", tmp_path / "some.h5")

    keys = st.sampled_from(["features", "labels", "split", "id", "path", "something"])
    check(st.dictionaries(keys, arrays, max_size=4), examples, reads)


# ---- captions


@few_or_many(40, 2500)
def test_captions(examples, tmp_path, workplace):
    """Lists of images with any text in their columns."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))

    def reads(rows: list[tuple[str, str]]) -> None:
        lines = [f"{number % 3}.png,{label},{caption}" for number, (label, caption) in enumerate(rows)]
        text = "\n".join(["path,label,caption", *lines])
        (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
        collected("csv", tmp_path / "list.csv")

    check(st.lists(st.tuples(texts, texts), max_size=6), examples, reads)
