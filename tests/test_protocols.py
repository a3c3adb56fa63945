"""Split protocols: counts, disjointness, strata, seeds, and the numbers in their errors."""

from typing import get_args

import numpy as np
import pytest

from stages.download.config import ProtocolName
from stages.download.protocols import PROTOCOLS, Counts, Protocol, assign, choose
from stages.download.splits import Splits
from stages.errors import InputError

NO_SPLIT = np.array([""])


def single(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Shuffled single labels, `sizes` images a class."""
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return classes[:, None] == np.arange(len(sizes))


def several(n: int, n_classes: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, n_classes)) < 0.3


def no_split(labels: np.ndarray) -> np.ndarray:
    return np.full(len(labels), "", dtype="U10")


def check(splits: Splits) -> tuple[np.ndarray, ...]:
    """What holds for every protocol but the one that sets the training set apart."""
    is_query, is_database, is_train = masks = tuple(splits.columns.values())
    assert all(mask.dtype == bool and mask.shape == is_query.shape for mask in masks)
    assert not (is_query & is_database).any()
    assert not (is_train & ~is_database).any()
    assert is_query.any() and is_database.any() and is_train.any()
    return masks


def totals(masks: tuple[np.ndarray, ...]) -> list[int]:
    return [int(mask.sum()) for mask in masks]


def test_every_protocol_has_a_name_in_the_parameters():
    assert set(get_args(ProtocolName)) == {"auto", *PROTOCOLS}
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


def test_scenes():
    labels = several(9000, 20)
    masks = check(assign(PROTOCOLS["scenes"], labels, no_split(labels), 0))
    assert totals(masks) == [1000, 8000, 4000]
    assert PROTOCOLS["scenes"].cutoffs == (1000,)


@pytest.mark.parametrize(("name", "train"), [("cifar10", 500), ("cifar10-1000", 1000)])
@pytest.mark.parametrize("with_test", [True, False])
def test_cifar10(name, train, with_test):
    labels = single([6000] * 10)
    split = no_split(labels)
    if with_test:
        for index in range(10):
            split[np.flatnonzero(labels[:, index])] = ["test"] * 1000 + ["train"] * 5000
    is_query, is_database, is_train = check(assign(PROTOCOLS[name], labels, split, 0))
    assert (labels[is_query].sum(0) == 1000).all() and (labels[is_train].sum(0) == train).all()
    assert is_database.sum() == 50_000 and PROTOCOLS[name].cutoffs == (1000, 5000)
    if with_test:
        assert (is_query == (split == "test")).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10-10000-50000", [10_000, 50_000, 50_000]), ("cifar10-1000-59000", [1000, 59_000, 5000]),
        ("cifar10-1000-54000", [1000, 54_000, 5000]),
    ],
)  # fmt: skip
def test_cifar10_as_others_split_it(name, expected):
    labels = single([6000] * 10)
    split = np.where(np.arange(60_000) % 6, "train", "test")
    if name == "cifar10-10000-50000":  # whose queries are the official test images, 1,000 a class
        split = np.where((np.cumsum(labels, axis=0) <= 1000)[np.arange(60_000), labels.argmax(1)], "test", "train")
    splits = assign(PROTOCOLS[name], labels, split, 0)
    assert totals(splits.columns.values()) == expected
    assert (labels[splits.is_query].sum(0) == expected[0] // 10).all()
    assert (labels[splits.is_train].sum(0) == expected[2] // 10).all()
    if name == "cifar10-1000-54000":  # the only one with a training set that is not searched
        assert not (splits.is_train & (splits.is_database | splits.is_query)).any()
    else:
        check(splits)


def test_counts_of_a_protocol_with_its_training_set_apart():
    labels = single([100, 100])
    splits = assign(PROTOCOLS["cifar10-1000-54000"], labels, no_split(labels), 0, Counts(30, 100, 50))
    assert totals(splits.columns.values()) == [30, 100, 50] and not (splits.is_train & splits.is_database).any()


def test_counts_are_in_the_name():
    labels = single([300, 300])
    named = {
        "holdout": Counts(), "holdout (queries 30)": Counts(queries=30),
        "holdout (queries 30, database 50, train 20)": Counts(30, 50, 20),
    }  # fmt: skip
    for name, counts in named.items():
        assert assign(PROTOCOLS["holdout"], labels, no_split(labels), 0, counts).protocol == name
    many = several(9000)
    assert assign(PROTOCOLS["scenes"], many, no_split(many), 0, Counts(1000, 8000, 4000)).protocol == "scenes"


def test_official_takes_the_test_split_and_all_else_is_database():
    labels = single([700] * 10)
    split = np.array(["train", "test", "validation", "", "train", "train", "train"] * 1000)
    is_query, is_database, is_train = check(assign(PROTOCOLS["official"], labels, split, 0))
    assert (is_query == (split == "test")).all() and (is_database == (split != "test")).all()
    assert is_train.sum() == 5000
    few = check(assign(PROTOCOLS["official"], labels[:70], split[:70], 0))
    assert (few[2] == few[1]).all()


def test_official_takes_validation_without_a_test_split():
    labels = single([30, 30])
    split = np.array(["train", "validation", "train"] * 20)
    is_query, _, _ = check(assign(PROTOCOLS["official"], labels, split, 0))
    assert (is_query == (split == "validation")).all()


def test_official_without_either_is_an_error():
    with pytest.raises(InputError, match=r"needs a test or validation split.*use 'holdout'"):
        assign(PROTOCOLS["official"], single([5, 5]), np.array(["train"] * 10), 0)


@pytest.mark.parametrize(("n", "queries"), [(50_000, 2000), (300, 30), (5, 1)])
def test_holdout(n, queries):
    labels = np.zeros((n, 0), dtype=bool)
    masks = check(assign(PROTOCOLS["holdout"], labels, no_split(labels), 0))
    assert totals(masks) == [queries, n - queries, min(5000, n - queries)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mirflickr25k", (2000, 5000)), ("mirflickr25k-10000", (2000, 10_000)), ("coco", (5000, 10_000)),
        ("nuswide", (600, 3000)),
    ],
)
def test_multi_label_protocols_leave_images_without_label_out(name, expected):
    labels = several(20_000)
    is_query, is_database, is_train = check(assign(PROTOCOLS[name], labels, no_split(labels), 0))
    assert (is_query.sum(), is_train.sum()) == expected
    assert ((is_query | is_database) == labels.any(1)).all()
    if name == "nuswide":
        assert (labels[is_query].sum(0) >= 100).all() and (labels[is_train].sum(0) >= 500).all()


def test_per_class_counts_rare_classes_first():
    """Class 1 has only images that class 0 has as well: taking those for class 0 first would leave too few."""
    labels = np.zeros((60, 2), dtype=bool)
    labels[:, 0] = True
    labels[:20, 1] = True
    for seed in range(5):
        is_query = assign(Protocol("p", queries_per_class=20, train=5), labels, no_split(labels), seed).is_query
        assert is_query[:20].all() and is_query.sum() == 40


@pytest.mark.parametrize("name", ["holdout", "official"])
def test_totals_are_stratified_where_labels_are_single(name):
    sizes = [5000, 2500, 2000, 490, 10]
    labels = single(sizes)
    split = np.where(np.arange(10_000) % 4, "train", "test")
    is_query, is_database, is_train = check(assign(PROTOCOLS[name], labels, split, 0, Counts(queries=1000)))
    for mask, among in ((is_query, (split == "test") if name == "official" else ~split.astype(bool) | True),
                        (is_train, is_database)):  # fmt: skip
        exact = mask.sum() * labels[among].sum(0) / among.sum()
        assert (np.abs(labels[mask].sum(0) - exact) < 1).all()


def test_images_without_label_are_a_stratum():
    labels = np.vstack([single([800, 100]), np.zeros((100, 2), dtype=bool)])
    is_query = assign(PROTOCOLS["holdout"], labels, no_split(labels), 3, Counts(queries=100)).is_query
    assert labels[is_query].sum(0).tolist() == [80, 10] and (~labels[is_query].any(1)).sum() == 10


@pytest.mark.parametrize("labels", [single([300, 300]), several(600), np.zeros((600, 0), dtype=bool)])
def test_seed(labels):
    def draw(seed: int) -> str:
        return assign(PROTOCOLS["holdout"], labels, no_split(labels), seed, Counts(train=100)).digest

    assert draw(1) == draw(1) != draw(2)


def test_draws_are_even():
    """Each image is a query with the same probability."""
    labels = single([50, 50])
    hits = sum(assign(PROTOCOLS["holdout"], labels, no_split(labels), seed).is_query.astype(int) for seed in range(600))
    assert hits.sum() == 6000 and hits.min() > 25 and hits.max() < 105  # mean 60, standard deviation 7.3


def test_counts_replace_the_protocol():
    labels = single([600] * 10)
    split = np.array((["test"] + ["train"] * 5) * 1000)
    masks = check(assign(PROTOCOLS["cifar10"], labels, split, 0, Counts(50, 300, 100)))
    assert totals(masks) == [50, 300, 100]
    assert (split[masks[0]] == "test").all() and (split[masks[1]] == "train").all()
    assert (np.abs(labels[masks[1]].sum(0) - 30) <= 1).all()


def test_database_without_fewer_queries_has_no_image_of_the_query_split():
    labels = single([100, 100])
    split = np.array(["test", "train"] * 100)
    masks = check(assign(PROTOCOLS["official"], labels, split, 0, Counts(queries=10)))
    assert totals(masks) == [10, 100, 100] and (split[masks[1]] == "train").all()


@pytest.mark.parametrize(
    ("name", "counts", "match"),
    [
        ("scenes", Counts(), "dataset.queries: 1,000 query images do not fit into 500 images"),
        ("scenes", Counts(queries=100), "dataset.database: 8,000 database images do not fit into 400 images that are"),
        ("scenes", Counts(100, 300), "dataset.train: 4,000 training images do not fit into 300 images of the database"),
        ("holdout", Counts(train=451), "dataset.train: 451 training images do not fit into 450"),
        ("holdout", Counts(queries=500), "no image is left for the database beside 500 queries"),
        ("cifar10", Counts(), r"'cifar10' wants 1,000 query images a class, class number \d has 250 in 500 images"),
        ("cifar10", Counts(queries=100), r"wants 500 training images a class, class number \d has 200 in 400 images"),
    ],
)
def test_counts_that_do_not_fit(name, counts, match):
    labels = single([250, 250])
    with pytest.raises(InputError, match=match):
        assign(PROTOCOLS[name], labels, no_split(labels), 0, counts)


def test_counts_a_class_need_labels():
    labels = np.zeros((100, 0), dtype=bool)
    with pytest.raises(InputError, match="'cifar10' needs labels"):
        assign(PROTOCOLS["cifar10"], labels, no_split(labels), 0)


def test_auto():
    assert choose("auto", "scenes", NO_SPLIT).name == "scenes"
    assert choose("auto", "cifar10", np.array(["train", "test"])).name == "cifar10"
    for dataset in ("parquet", "imagefolder", "cifar100", "fashion_mnist"):
        assert choose("auto", dataset, np.array(["train", "test"])).name == "official"
        assert choose("auto", dataset, np.array(["train", ""])).name == "holdout"
        assert choose("auto", dataset, np.array(["test", "test"])).name == "holdout"  # nothing would be left to search
    for dataset in ("coco2014", "coco2017"):
        assert choose("auto", dataset, np.array(["train", "validation"])).name == "coco"
    for dataset in ("mirflickr25k", "nuswide"):
        assert choose("auto", dataset, NO_SPLIT).name == dataset
    assert choose("coco", "parquet", NO_SPLIT).name == "coco"
