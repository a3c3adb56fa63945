"""CIFAR-100 from archives of the official format."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_archive import batches100, write_archive100
from PIL import Image
from published import check_resumes, one_line, options, republished

from stages.download import source as limits
from stages.download.datasets import cifar as adapter
from stages.download.datasets.cifar import CIFAR100, CLASSES100, cifar100


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the data set with the batches given, as if these were official."""
    monkeypatch.setattr(adapter, "N_IMAGES", 300)

    def open_them(content):
        archive = write_archive100(tmp_path / CIFAR100.name, content, [name.encode() for name in CLASSES100])
        monkeypatch.setattr(adapter, "CIFAR100", republished(CIFAR100, archive))
        return cifar100(options("cifar100", mirror=tmp_path))

    return open_them


def test_official_facts():
    assert CIFAR100.digest == "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    assert CIFAR100.urls[0] == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert len(CLASSES100) == len(set(CLASSES100)) == 100 and list(CLASSES100) == sorted(CLASSES100)
    # The training set is one member, larger than any image may be.
    assert adapter.MAX_BATCH > 155_249_918 > limits.MAX_BYTES


def test_pixels_fine_labels_and_splits(opened):
    source, expected = opened(batches100()), batches100()
    records = check_resumes(source, (1, 199, 200, 201, 299))
    assert (source.name, source.class_names, set(source.digests)) == ("cifar100", CLASSES100, {CIFAR100.name})
    for split, part in (("train", records[:200]), ("test", records[200:])):
        batch = expected[split]
        assert [record.labels for record in part] == [(label,) for label in batch[b"fine_labels"]]
        assert [record.path for record in part] == [name.decode() for name in batch[b"filenames"]]
        assert {record.split for record in part} == {split}
        planes = [np.asarray(Image.open(io.BytesIO(record.data))).transpose(2, 0, 1).ravel() for record in part]
        assert (np.array(planes) == batch[b"data"]).all()


def test_name_in_latin_1(opened):
    content = batches100()
    content["train"][b"filenames"][0] = b"cr\xe8che_s_000001.png"
    assert next(opened(content).records(0)).path == "cr\N{REPLACEMENT CHARACTER}che_s_000001.png"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({b"fine_labels": [100] * 200}, "not a batch of CIFAR images"),
        ({b"fine_labels": None}, "not a batch of CIFAR images"),
        ({b"data": np.zeros((200, 3072), np.float32)}, "not a batch of CIFAR images"),
    ],
)  # fmt: skip
def test_batch_of_another_form(opened, change, words):
    content = batches100()
    content["train"] |= change
    source = opened(content)
    one_line(lambda: list(source.records(0)), "cifar-100-python.tar.gz, member 'cifar-100-python/train'", words)


def test_cifar_10_in_its_place(opened):
    content = batches100()
    content["train"][b"labels"] = content["train"].pop(b"fine_labels")
    source = opened(content)
    one_line(lambda: list(source.records(0)), "member 'cifar-100-python/train': refused", "fine_labels")


def test_pickle_that_asks_for_more(opened, tmp_path):
    content = batches100()
    content["train"][b"evil"] = Path("x")
    assert b"pathlib" in pickle.dumps(content["train"])
    source = opened(content)
    one_line(lambda: list(source.records(0)), "refused", "asks for pathlib")
