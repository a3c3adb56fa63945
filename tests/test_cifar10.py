"""CIFAR-10 from archives of the official format, fetched from a local server; pickles that want more than arrays."""

import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cifar_archive import MEMBERS, batches, python2_pickle, write_archive, write_tar
from flaky_server import serve
from PIL import Image
from published import check_resumes, one_line, options, republished

from stages.download.datasets import cifar as adapter
from stages.download.datasets.cifar import CIFAR10, CLASSES10, cifar10
from stages.download.datasets.cifar_batches import read_batch
from stages.errors import InputError, OutsideError


@pytest.fixture(autouse=True)
def few_images(workplace, monkeypatch) -> None:
    monkeypatch.setattr(adapter, "N_IMAGES", 120)


@pytest.fixture
def archive(tmp_path) -> Path:
    """A small archive."""
    path = tmp_path / "mirror" / CIFAR10.name
    path.parent.mkdir()
    write_archive(path, batches())
    return path


@pytest.fixture
def opened(archive, monkeypatch):
    """Opens the data set with whatever the archive is by then, as if that were official."""

    def open_it():
        monkeypatch.setattr(adapter, "CIFAR10", republished(CIFAR10, archive))
        return cifar10(options("cifar10", mirror=archive.parent))

    return open_it


def read(content: bytes) -> object:
    return read_batch(io.BytesIO(content), b"labels", 10, "here")


def test_official_facts():
    assert CIFAR10.digest == "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert CIFAR10.urls[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert CIFAR10.max_bytes == 170_498_071


def test_helper_writes_what_python_2_wrote():
    content = python2_pickle(batches()["test_batch"])
    assert content.startswith(b"\x80\x02}") and b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content
    assert set(pickle.loads(content, encoding="bytes")) == {b"batch_label", b"labels", b"data", b"filenames"}


def test_pixels_labels_and_splits(archive, opened):
    source = opened()
    records = check_resumes(source, (1, 19, 20, 21, 60, 119))
    assert source.class_names == CLASSES10 and source.digests == {CIFAR10.name: adapter.CIFAR10.digest[7:]}
    expected = batches()
    start = 0
    for name in MEMBERS:
        batch = expected[name]
        for row, record in enumerate(records[start : start + 20]):
            planes = np.asarray(Image.open(io.BytesIO(record.data))).transpose(2, 0, 1)
            assert (planes.ravel() == batch[b"data"][row]).all()
            assert record.labels == (batch[b"labels"][row],)
            assert record.path == batch[b"filenames"][row].decode()
            assert record.split == ("test" if name == "test_batch" else "train") and not record.problem
        start += 20
    assert start == len(records)


def test_over_http_from_a_directory_or_the_file_itself(archive, monkeypatch):
    monkeypatch.setattr(adapter, "CIFAR10", republished(CIFAR10, archive))
    with serve(archive.read_bytes(), drop_after=[20_000]) as server:
        for mirror in (server.url, f"{server.url}{CIFAR10.name}"):
            assert len(list(cifar10(options("cifar10", mirrors=(mirror,))).records(0))) == 120
        assert server.requests == [None, "bytes=20000-"]


def test_unreachable_names_the_official_urls(monkeypatch):
    with serve(b"", statuses=[404, 404]) as server:
        urls = (f"{server.url}a/{CIFAR10.name}", f"{server.url}b/{CIFAR10.name}")
        monkeypatch.setattr(adapter, "CIFAR10", replace(CIFAR10, urls=urls))
        with pytest.raises(OutsideError) as caught:
            cifar10(options("cifar10"))
    assert all(url in str(caught.value) for url in urls) and "dataset.mirrors" in str(caught.value)


def test_wrong_digest(archive):
    one_line(lambda: cifar10(options("cifar10", mirror=archive.parent)), str(archive), CIFAR10.digest[7:])


class Evil:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("function", "argument"),
    [(os.system, "touch ran"), (eval, "open('ran', 'w')"), (exec, "open('ran', 'w')"), (open, "ran"),
     (np.load, "ran"), (np.fromfile, "ran"), (getattr, "ran")],
)  # fmt: skip
@pytest.mark.parametrize("protocol", range(6))
def test_pickle_that_runs_code(workplace, function, argument, protocol):
    batch = batches()["test_batch"] | {b"extra": Evil(function, argument, "w")}
    one_line(lambda: read(pickle.dumps(batch, protocol)), "here: refused", "asks for")
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"garbage", b"\x80\x02", b"cos\nsystem\n(S'touch ran'\ntR.", b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.", b"(i__builtin__\neval\n.", b"P0\n.",
        b"\x82\x01.", b"cnumpy.core.multiarray\n_reconstruct\n.", b"\x80\x02]q\x00.",
        b"\x80\x02cnumpy.core.multiarray.__builtins__\neval\n.", b"\x80\x04\x8c\x05numpy\x8c\x0andarray.fn\x93.",
    ],
)  # fmt: skip
def test_hostile_pickle_by_hand(workplace, content):
    one_line(lambda: read(content), "here: refused")
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {b"data": np.zeros((20, 3071), np.uint8)}, {b"data": np.zeros((20, 3072), np.int8)},
        {b"data": np.zeros((19, 3072), np.uint8)}, {b"data": [b""] * 20}, {b"labels": [0] * 19 + [10]},
        {b"labels": [0] * 19 + [-1]}, {b"labels": [0] * 19 + [0.5]}, {b"labels": b"\0" * 20}, {b"filenames": [b"x"]},
    ],
)  # fmt: skip
def test_batch_of_another_form(change):
    one_line(lambda: read(python2_pickle(batches()["test_batch"] | change)), "here: not a batch of CIFAR images")


def test_evil_member_is_named(archive, opened, workplace):
    write_archive(archive, batches(), data_batch_3=pickle.dumps(Evil(os.system, "touch ran"), 2))
    source = opened()
    one_line(lambda: list(source.records(0)), f"{archive}, member 'cifar-10-batches-py/data_batch_3': refused")
    assert list(workplace.iterdir()) == []


def test_archive_without_a_batch(archive, opened):
    content = batches()
    del content["test_batch"]
    write_archive(archive, content)
    source = opened()
    one_line(lambda: list(source.records(0)), f"{archive}: lacks cifar-10-batches-py/test_batch")


def test_hostile_archive_with_the_right_digest(archive, opened):
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = opened()
    one_line(lambda: list(source.records(0)), "data_batch_1' is neither a plain file nor a directory")


def test_truncated_archive_with_the_right_digest(archive, opened):
    archive.write_bytes(archive.read_bytes()[:-3000])
    source = opened()
    one_line(lambda: list(source.records(0)), str(archive), "truncated or corrupt")


def test_plain_tar_of_the_same_content(archive, opened):
    members = {f"cifar-10-batches-py/{name}": python2_pickle(value) for name, value in batches().items()}
    write_tar(archive, members, "w")
    assert len(list(opened().records(0))) == 120


def test_batch_that_is_too_large(archive, opened, monkeypatch):
    monkeypatch.setattr(adapter, "MAX_BATCH", 10_000)
    source = opened()
    with pytest.raises(InputError, match="more than 10,000"):
        list(source.records(0))
