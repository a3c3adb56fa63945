"""Shards in an object store (a server on this machine) are the data set that the same files on this machine are."""

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from cifar_archive import write_tar
from picture import picture
from s3_server import BUCKET, s3_server
from scene_shards import encoded
from scene_shards import picture as drawn

from stages.artifacts import DATASET, IMAGES
from stages.download import remote
from stages.download.config import DatasetOptions, Params
from stages.download.datasets.parquet import parquet
from stages.download.datasets.webdataset import webdataset
from stages.download.remote import find_remote, is_remote, opened
from stages.download.source import Record, Source
from stages.download.stage import run
from stages.errors import InputError, OutsideError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of shards, and the same ones at s3://bucket/data."""
    folder = tmp_path_factory.mktemp("local") / "data"
    for number, split in enumerate(("train", "test")):
        images = [{"bytes": encoded(drawn(10 * number + i)), "path": f"{i}.png"} for i in range(8)]
        table = pa.table({"image": images, "label": [i % 3 for i in range(8)]})
        (folder / "parquet").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "parquet" / f"{split}-{number:05d}.parquet", row_group_size=3)
        members = {f"{i:04d}.{kind}": content for i in range(4)
                   for kind, content in (("png", picture(10 * number + i)), ("cls", str(i % 2).encode()))}  # fmt: skip
        (folder / "wds" / split).mkdir(parents=True)
        write_tar(folder / "wds" / split / f"{number:03d}.tar", members, "w")
    (folder / "parquet" / "README.md").write_text("no shard")
    (folder / "parquet" / ".hidden").mkdir()
    (folder / "parquet" / ".hidden" / "x.parquet").write_bytes(b"no shard")
    with s3_server():
        client = boto3.client("s3")
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), BUCKET, f"data/{file.relative_to(folder).as_posix()}")
        yield folder


def opening(kind: str, path: str | Path) -> Source:
    return {"parquet": parquet, "wds": webdataset}[kind](
        DatasetOptions(name="parquet" if kind == "parquet" else "webdataset", path=str(path), workers=1)
    )


def told(source: Source, start: int = 0) -> list[Record]:
    return list(source.records(start))


@pytest.mark.parametrize("kind", ["parquet", "wds"])
def test_the_records_are_those_of_the_same_files_here(store: Path, kind: str) -> None:
    here, there = opening(kind, store / kind), opening(kind, f"s3://{BUCKET}/data/{kind}")
    assert (there.name, there.class_names, there.size) == (here.name, here.class_names, here.size)
    assert told(there) == told(here)
    assert len(told(here)) == (16 if kind == "parquet" else 8)
    assert {record.split for record in told(there)} == {"train", "test"}
    assert told(there, 5) == told(here, 5)
    assert told(pickle.loads(pickle.dumps(there))) == told(here)  # in a worker
    assert there.identity and not there.digests


@pytest.mark.parametrize(("pattern", "names"), [
    ("parquet/train-*.parquet", ["train-00000.parquet"]),
    ("parquet/test-00001.parquet", ["test-00001.parquet"]),
    ("parquet/t{rain-00000,est-00001}.parquet", ["test-00001.parquet", "train-00000.parquet"]),
    ("parquet", ["test-00001.parquet", "train-00000.parquet"]),
    ("parquet/", ["test-00001.parquet", "train-00000.parquet"]),
    ("*/t*.parquet", ["test-00001.parquet", "train-00000.parquet"]),
])  # fmt: skip
def test_what_a_path_means(store: Path, pattern: str, names: list[str]) -> None:
    found = find_remote(f"s3://{BUCKET}/data/{pattern}", (".parquet",), "Parquet file")
    assert [file.name for file in found] == names
    for file in found:
        local = store / "parquet" / file.name
        assert file.size == local.stat().st_size
        with opened(file) as stream:
            assert stream.read() == local.read_bytes()


@pytest.mark.slow
def test_the_stage_reads_them_where_they_are(store: Path, workplace: Path) -> None:
    """By worker processes; what it writes is what it writes of local files."""
    written = []
    for path in (store / "parquet", f"s3://{BUCKET}/data/parquet"):
        values = {"name": "parquet", "path": str(path), "workers": 2, "queries": 3, "train": 4}
        run(Params.model_validate({"dataset": values}))
        written.append([pq.read_table(file).to_pylist() for file in sorted(IMAGES.glob("*.parquet"))])
    assert written[0] == written[1]
    assert f"s3://{BUCKET}/data/parquet" in DATASET.read_text()


def test_another_state_of_the_store_is_another_identity(store: Path) -> None:
    client = boto3.client("s3")
    identities = set()
    for content in (b"one", b"two", b"two"):
        client.put_object(Bucket=BUCKET, Key="changing/a.parquet", Body=content)
        files = find_remote(f"s3://{BUCKET}/changing", (".parquet",), "Parquet file")
        identities.add(remote.remote_states(files))
    assert len(identities) == 2


@pytest.mark.parametrize(("path", "words"), [
    ("s3://bucket/nothing", "no Parquet file there"), ("s3://bucket/data/wds", "no Parquet file there"),
    ("s3://bucket/data/parquet/.hidden/", "cannot be read as Parquet"),
    ("s3://bucket/data/parquet/{train-00000,none}.parquet", "complete the files or correct the braces"),
    ("s3://no-such-bucket/data", "not found|no Parquet file"),
])  # fmt: skip
def test_what_is_not_there_is_named(store: Path, path: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        opening("parquet", path)
    assert path.split("{")[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "wds"])
def test_damaged_shards_are_named(store: Path, kind: str) -> None:
    name = "a.parquet" if kind == "parquet" else "a.tar"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"damaged/{name}", Body=b"\0\1\2\3" * 100)
    with pytest.raises(InputError, match=f"s3://{BUCKET}/damaged/{name}") as error:
        opening(kind, f"s3://{BUCKET}/damaged/{name}")
    assert "\n" not in str(error.value)


def test_members_are_bounded_as_in_a_local_archive(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.download.datasets.webdataset_samples.MAX_BYTES", 50)
    with pytest.raises(InputError, match="more than 50; get it from a source you trust"):
        opening("wds", f"s3://{BUCKET}/data/wds")


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(OutsideError, match="s3://bucket/elsewhere: cannot be read") as error:
            opening("parquet", "s3://bucket/elsewhere")
    assert "\n" not in str(error.value)


def test_offline_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPTBITS_OFFLINE", "1")
    with pytest.raises(InputError, match="CONCEPTBITS_OFFLINE is set"):
        opening("parquet", "s3://bucket/data")


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "_store", missing)
    with pytest.raises(InputError, match=r"pip install 'conceptbits\[s3\]'"):
        opening("parquet", "s3://bucket/data")


def test_only_stores_are_remote() -> None:
    assert all(is_remote(f"{scheme}://a/b") for scheme in ("s3", "gs", "az"))
    others = ("data", "/data/s3://x", "hf://datasets/a/b", "http://a/b", "file:///a", "zip://a::s3://b")
    assert not any(map(is_remote, others))
