"""Split files: written, shared, read, and refused when they mean other images or have been changed."""

import json
from pathlib import Path

import numpy as np
import pytest
from download_run import fill, params, pictures

from stages.artifacts import DATASET, SPLITS
from stages.download.splits import Splits, read_splits, write_splits
from stages.download.stage import run
from stages.errors import InputError
from stages.images import ImageShards, read_dataset


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def some(n: int = 200, seed: int = 0) -> Splits:
    kind = np.random.default_rng(seed).integers(0, 4, n)
    return Splits("p", (10, 50), kind == 0, (kind == 1) | (kind == 2), kind == 2)


FILE = Path("some.json")


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_there_and_back(n, seed):
    splits = some(n, seed)
    write_splits(splits, "name", "c" * 64, FILE)
    back = read_splits(FILE, "c" * 64, n)
    for name, mask in splits.columns.items():
        np.testing.assert_array_equal(back.columns[name], mask)
    assert (back.protocol, back.cutoffs, back.digest) == ("p", (10, 50), splits.digest)


def test_runs_are_what_a_person_expects():
    mask = np.isin(np.arange(12), [0, 1, 2, 5, 7, 8, 11])
    write_splits(Splits("p", (1,), mask, ~mask, np.zeros(12, bool)), "name", "c", FILE)
    content = json.loads(FILE.read_text())
    assert content["query"] == "0-2,5,7-8,11" and content["database"] == "3-4,6,9-10" and content["train"] == ""


def test_digest_tells_splits_apart_and_nothing_else():
    one = some(100)
    variants = [
        one, some(100, 1), some(101), Splits("p", (1,), one.is_query, one.is_database, one.is_database),
        Splits("p", (1,), one.is_database, one.is_query, np.zeros(100, bool)),
    ]  # fmt: skip
    assert len({splits.digest for splits in variants}) == len(variants)
    assert one.digest == Splits("q", (3,), one.is_query, one.is_database, one.is_train).digest


def test_rules_hold_by_construction():
    yes, no = np.array([True, False, False]), np.zeros(3, bool)
    with pytest.raises(ValueError, match="a query and in the database"):
        Splits("p", (1,), yes, yes, no)
    with pytest.raises(ValueError, match="a query and in the database or the training set"):
        Splits("p", (1,), yes, no, yes)
    with pytest.raises(ValueError, match="partly within"):
        Splits("p", (1,), no, yes, np.array([True, True, False]))


def changed(**changes: object) -> None:
    FILE.write_text(json.dumps(json.loads(FILE.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 201}, "made for 201 images, this data set has 200"),
        ({"content": "d" * 64}, "made for other images of 'name' .content dddddddddddd, here cccccccccccc."),
        ({"format": "x"}, "no split file"),
        ({"query": "0-199"}, "an image is a query and in the database"),
        ({"query": "5,5"}, "ids '5' do not ascend"),
        ({"query": "5,3"}, "ids '3' do not ascend"),
        ({"query": "9-7"}, "ids '9-7' do not ascend"),
        ({"query": "200"}, "or are not below 200"),
        ({"query": "-3"}, "invalid literal"),
        ({"query": "a"}, "invalid literal"),
        ({"query": 3}, "3 is no text"),
        ({"query": [1, 2]}, "is no text"),
        ({"query": ""}, "changed since it was written"),
        ({"digest": "0" * 64}, "changed since it was written"),
        ({"protocol": "cifar10"}, "changed since it was written"),
        ({"cutoffs": [1, 2]}, "changed since it was written"),
        ({"dataset": "other"}, "changed since it was written"),
        ({"checksum": None}, "changed since it was written"),
        ({"cutoffs": [0]}, "no positive numbers"),
        ({"protocol": None}, "None is no text"),
    ],
)
def test_bad_files_are_refused(change, words):
    write_splits(some(), "name", "c" * 64, FILE)
    read_splits(FILE, "c" * 64, 200)
    changed(**change)
    with pytest.raises(InputError, match=f"^dataset.splits: some.json: .*{words}") as caught:
        read_splits(FILE, "c" * 64, 200)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [
    (b"{", "not valid JSON"), (b"[" * 100_000, "not valid JSON"),
    (b"[]", "no split file"), (b"\xff\xfe", "not valid JSON"), (None, "cannot be read"),
])  # fmt: skip
def test_no_file_or_no_json(content, words):
    if content is not None:
        FILE.write_bytes(content)
    with pytest.raises(InputError, match=f"dataset.splits: some.json: {words}"):
        read_splits(FILE, "c", 1)


# ---- through the stage


def test_exported_splits_are_imported(tmp_path):
    path = str(fill(tmp_path / "set", pictures(40)))
    run(params("imagefolder", path=path, protocol="holdout", seed=3))
    first, ids = read_dataset(), {split: ImageShards().ids(split) for split in ("query", "database", "train")}
    shared = Path("shared.json")
    shared.write_bytes(SPLITS.read_bytes())
    run(params("imagefolder", path=path, protocol="holdout", seed=4))
    assert read_dataset().splits != first.splits
    run(params("imagefolder", path=path, splits="shared.json"))
    again = read_dataset()
    assert (again.splits, again.protocol, again.cutoffs) == (first.splits, "holdout", first.cutoffs)
    assert again.digest == first.digest and SPLITS.read_bytes() == shared.read_bytes()
    for split, expected in ids.items():
        np.testing.assert_array_equal(ImageShards().ids(split), expected)


def test_splits_of_other_images_change_nothing(tmp_path):
    path = str(fill(tmp_path / "set", pictures(40)))
    run(params("imagefolder", path=path))
    Path("shared.json").write_bytes(SPLITS.read_bytes())
    before = DATASET.read_bytes()
    other = str(fill(tmp_path / "other", {name.replace("class", "kind"): data for name, data in pictures(40).items()}))
    with pytest.raises(InputError, match="made for other images of 'set'"):
        run(params("imagefolder", path=other, splits="shared.json"))
    assert DATASET.read_bytes() == before
