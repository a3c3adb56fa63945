"""CIFAR-10 from archives of the official format, fetched from a local server; pickles that want more than arrays."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cifar_archive import MEMBERS, batches, python2_pickle, write_archive, write_tar
from flaky_server import serve
from PIL import Image

from stages.download import cifar10 as adapter
from stages.download import fetch as fetching
from stages.download.cifar10 import CLASSES, NAME, cifar10, read_batch
from stages.errors import InputError, OutsideError


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "BACK_OFF", 0.0)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A small archive whose digest counts as the official one."""
    path = tmp_path / "mirror" / NAME
    path.parent.mkdir()
    monkeypatch.setattr(adapter, "SHA256", write_archive(path, batches()))
    return path


def test_official_facts():
    assert adapter.SHA256 == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert adapter.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def test_helper_writes_what_python_2_wrote():
    content = python2_pickle(batches()["test_batch"])
    assert content.startswith(b"\x80\x02}") and b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content
    assert set(pickle.loads(content, encoding="bytes")) == {b"batch_label", b"labels", b"data", b"filenames"}


def test_pixels_labels_and_splits(archive):
    source = cifar10(archive.parent.as_uri())
    records = list(source.records)
    assert source.class_names == CLASSES and source.digests == {NAME: adapter.SHA256}
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


def test_over_http_from_a_directory_or_the_file_itself(archive):
    with serve(archive.read_bytes(), statuses=[503], drop_after=[20_000]) as server:
        for mirror in (server.url, server.url.rstrip("/"), f"{server.url}some/other.tar.gz"):
            assert len(list(cifar10(mirror).records)) == 120
        assert len(server.requests) == 4  # the failing one, the broken one, its rest; and the one under another name


def test_unreachable_names_the_official_url(monkeypatch, tmp_path):
    with serve(b"", statuses=[404]) as server:
        monkeypatch.setattr(adapter, "URL", f"{server.url}{NAME}")
        with pytest.raises(OutsideError, match=rf"{server.url}{NAME}: cannot be fetched.*data\.mirror"):
            cifar10()


def test_wrong_digest(tmp_path):
    path = tmp_path / NAME
    found = write_archive(path, batches())
    with pytest.raises(InputError, match=f"{found}, expected {adapter.SHA256}"):
        cifar10(path.as_uri())


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
def test_pickle_that_runs_code(tmp_path, function, argument, protocol):
    batch = batches()["test_batch"] | {b"extra": Evil(function, argument, "w")}
    with pytest.raises(InputError, match=r"here: refused.*asks for \w+\.\w+") as caught:
        read_batch(pickle.dumps(batch, protocol), "here")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"garbage", b"\x80\x02", b"cos\nsystem\n(S'touch ran'\ntR.", b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.", b"(i__builtin__\neval\n.", b"P0\n.",
        b"\x82\x01.", b"cnumpy.core.multiarray\n_reconstruct\n.", b"\x80\x02]q\x00.",
        b"\x80\x02cnumpy.core.multiarray.__builtins__\neval\n.", b"\x80\x04\x8c\x05numpy\x8c\x0andarray.fn\x93.",
    ],
)  # fmt: skip
def test_hostile_pickle_by_hand(tmp_path, content):
    with pytest.raises(InputError, match="here: refused"):
        read_batch(content, "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {b"data": np.zeros((20, 3071), np.uint8)}, {b"data": np.zeros((20, 3072), np.int8)},
        {b"data": np.zeros((19, 3072), np.uint8)}, {b"data": [b""] * 20}, {b"labels": [0] * 19 + [10]},
        {b"labels": [0] * 19 + [-1]}, {b"labels": [0] * 19 + [0.5]}, {b"labels": b"\0" * 20}, {b"filenames": [b"x"]},
    ],
)  # fmt: skip
def test_batch_of_another_form(change):
    with pytest.raises(InputError, match="here: not a batch of CIFAR-10"):
        read_batch(python2_pickle(batches()["test_batch"] | change), "here")


def test_evil_member_is_named(archive, monkeypatch):
    evil = pickle.dumps(Evil(os.system, "touch ran"), 2)
    monkeypatch.setattr(adapter, "SHA256", write_archive(archive, batches(), data_batch_3=evil))
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz, member 'cifar-10-batches-py/data_batch_3': refused"):
        list(cifar10(archive.as_uri()).records)
    assert not Path("ran").exists()


def test_archive_without_a_batch(archive, monkeypatch):
    content = batches()
    del content["test_batch"]
    monkeypatch.setattr(adapter, "SHA256", write_archive(archive, content))
    with pytest.raises(InputError, match="lacks cifar-10-batches-py/test_batch"):
        list(cifar10(archive.as_uri()).records)


def test_hostile_archive_with_the_right_digest(archive, monkeypatch):
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    monkeypatch.setattr(adapter, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="data_batch_1' is neither a plain file nor a directory"):
        list(cifar10(archive.as_uri()).records)


def test_truncated_archive_with_the_right_digest(archive, monkeypatch):
    archive.write_bytes(archive.read_bytes()[:-3000])
    monkeypatch.setattr(adapter, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="truncated or corrupt"):
        list(cifar10(archive.as_uri()).records)


def test_plain_tar_of_the_same_content(archive, monkeypatch):
    members = {f"cifar-10-batches-py/{name}": python2_pickle(value) for name, value in batches().items()}
    write_tar(archive, members, "w")
    monkeypatch.setattr(adapter, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert len(list(cifar10(archive.as_uri()).records)) == 120
