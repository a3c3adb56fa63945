"""Named protocols: which images are queries, which the database, which of the database the training set.

Pure functions over arrays; the counts are those that papers report (methods.md, "Protocols").
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from stages.download.splits import Splits
from stages.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """Rules for the splits. Queries and database are disjoint; the training set is a part of the database, but for the
    one protocol that sets it apart.

    Attributes:
        name: what `dataset.protocol` calls it.
        cutoffs: k of the mAP@k that are reported (over all is reported always).
        queries: number of queries; None: see the next ones.
        queries_per_class: queries of each class instead.
        queries_share: part of all images instead, `queries` at most.
        query_splits: the queries come from the first of these splits of the source that exists (all of it unless a
            count says otherwise), and no other image of that split is used; without one, from all images.
        split_required: it is an error when none of `query_splits` exists.
        database: number of database images; None: all that are left.
        train: number of training images; `train_per_class`: of each class instead; None: the whole database.
        train_apart: the training images are taken out of the database.
        train_at_most: fewer training images are no error: then it is the whole database.
        labelled_only: images without a label are used nowhere.
    """

    name: str
    cutoffs: tuple[int, ...] = (1000, 5000)
    queries: int | None = None
    queries_per_class: int | None = None
    queries_share: float | None = None
    query_splits: tuple[str, ...] = ()
    split_required: bool = False
    database: int | None = None
    train: int | None = None
    train_per_class: int | None = None
    train_at_most: bool = False
    train_apart: bool = False
    labelled_only: bool = False


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("scenes", cutoffs=(1000,), queries=1000, database=8000, train=4000),
        Protocol("cifar10", queries_per_class=1000, query_splits=("test",), train_per_class=500),
        Protocol("cifar10-1000", queries_per_class=1000, query_splits=("test",), train_per_class=1000),
        # Three that other papers use: queries and database in the name.
        Protocol("cifar10-10000-50000", queries_per_class=1000, query_splits=("test",)),
        Protocol("cifar10-1000-59000", queries_per_class=100, train_per_class=500),
        Protocol("cifar10-1000-54000", queries_per_class=100, train_per_class=500, train_apart=True),
        Protocol("mirflickr25k", queries=2000, train=5000, labelled_only=True),
        Protocol("mirflickr25k-10000", queries=2000, train=10000, labelled_only=True),
        Protocol("nuswide", queries_per_class=100, train_per_class=500, labelled_only=True),
        Protocol("coco", queries=5000, train=10000, labelled_only=True),
        Protocol("official", query_splits=("test", "validation"), split_required=True, train=5000, train_at_most=True),
        Protocol("holdout", queries=2000, queries_share=0.1, train=5000, train_at_most=True),
    )
}


@dataclass(frozen=True)
class Counts:
    """Totals that replace the protocol's own; None leaves them."""

    queries: int | None = None
    database: int | None = None
    train: int | None = None


def choose(name: str, dataset: str, source_split: np.ndarray) -> Protocol:
    """The protocol `name`; ``auto`` is the data set's own one, else ``official`` where there is a test split.

    Args:
        name: a key of :data:`PROTOCOLS` or ``auto``.
        dataset: the kind of data set.
        source_split: str (n,), the split of each image in its source, "" for none.
    """
    if name != "auto":
        return PROTOCOLS[name]
    own = "coco" if dataset in ("coco2014", "coco2017") else dataset
    if own in PROTOCOLS:
        return PROTOCOLS[own]
    is_test = source_split == "test"
    return PROTOCOLS["official" if is_test.any() and not is_test.all() else "holdout"]


def assign(
    protocol: Protocol, labels: np.ndarray, source_split: np.ndarray, seed: int, counts: Counts = Counts()
) -> Splits:
    """Draw the splits.

    Totals are drawn in proportion to the classes where every image has one label at most, evenly otherwise.

    Args:
        protocol: the rules.
        labels: bool (n, n_classes) multi-hot; n_classes 0 when there are no labels.
        source_split: str (n,), the split of each image in its source.
        seed: of the one permutation that all draws follow.
        counts: totals instead of the protocol's.

    Raises:
        InputError: the images do not suffice; it says the numbers.
    """
    draw = _Draw(protocol.name, labels, np.random.default_rng(seed).permutation(len(labels)))
    usable = labels.any(axis=1) if protocol.labelled_only else np.ones(len(labels), dtype=bool)
    split = next((split for split in protocol.query_splits if (source_split[usable] == split).any()), None)
    if split is None and protocol.split_required:
        wanted = " or ".join(protocol.query_splits)
        raise InputError(
            f"dataset.protocol: '{protocol.name}' needs a {wanted} split, the source has none; use 'holdout'"
        )
    candidates = usable if split is None else usable & (source_split == split)
    where = f"{candidates.sum():,} images" + (f" of the {split} split" if split else "")

    if counts.queries is None and protocol.queries_per_class is not None:
        is_query = draw.per_class("query", protocol.queries_per_class, candidates, where)
    else:
        wanted = counts.queries or protocol.queries
        if counts.queries is None and protocol.queries_share is not None:
            wanted = min(protocol.queries, max(1, int(protocol.queries_share * candidates.sum())))
        is_query = candidates if wanted is None else draw.total("query", "queries", wanted, candidates, where)

    rest = usable & ~(is_query if split is None else candidates)
    is_train = _draw_train(draw, protocol, counts, rest) if protocol.train_apart else None
    if is_train is not None:
        rest = rest & ~is_train
    wanted = counts.database or protocol.database
    left = f"{rest.sum():,} images that are no queries"
    is_database = rest if wanted is None else draw.total("database", "database", wanted, rest, left)
    if not is_database.any():
        raise InputError(f"dataset: no image is left for the database beside {is_query.sum():,} queries; use fewer")
    if is_train is None:
        is_train = _draw_train(draw, protocol, counts, is_database)
    return Splits(_name_of(protocol, counts), protocol.cutoffs, is_query, is_database, is_train)


def _name_of(protocol: Protocol, counts: Counts) -> str:
    """The protocol's name, and the counts that replace its own: it is another one then."""
    replaced = [
        f"{key} {count}" for key, count in asdict(counts).items() if count not in (None, getattr(protocol, key))
    ]  # fmt: skip
    return f"{protocol.name} ({', '.join(replaced)})" if replaced else protocol.name


def _draw_train(draw: "_Draw", protocol: Protocol, counts: Counts, among: np.ndarray) -> np.ndarray:
    """The training images, bool (n,), out of `among`."""
    left = f"{among.sum():,} images of the database"
    wanted = counts.train or protocol.train
    if counts.train is None and protocol.train_at_most:
        wanted = min(wanted, int(among.sum()))
    if counts.train is None and protocol.train_per_class is not None:
        return draw.per_class("training", protocol.train_per_class, among, left)
    return among if wanted is None else draw.total("training", "train", wanted, among, left)


@dataclass(frozen=True)
class _Draw:
    """Draws subsets of images in the order of one permutation `order`, int (n,)."""

    protocol: str
    labels: np.ndarray
    order: np.ndarray

    def per_class(self, what: str, count: int, among: np.ndarray, where: str) -> np.ndarray:
        """`count` new images of every class: bool (n,); with several labels an image counts for one class only."""
        if not self.labels.shape[1]:
            raise InputError(f"dataset.protocol: '{self.protocol}' needs labels, the source has none; use 'holdout'")
        taken = np.zeros(len(self.labels), dtype=bool)
        # Rarest class first, so that frequent ones do not use up its images.
        for index in np.argsort(self.labels[among].sum(axis=0), kind="stable"):
            rows = self.order[(among & ~taken & self.labels[:, index])[self.order]]
            if len(rows) < count:
                raise InputError(
                    f"dataset.protocol: '{self.protocol}' wants {count:,} {what} images a class, class number {index} "
                    f"has {len(rows):,} in {where}; use another protocol or set the counts in 'dataset'"
                )
            taken[rows[:count]] = True
        return taken

    def total(self, what: str, key: str, count: int, among: np.ndarray, where: str) -> np.ndarray:
        """`count` images, stratified by class where labels are single: bool (n,)."""
        size = int(among.sum())
        if count > size:
            raise InputError(f"dataset.{key}: {count:,} {what} images do not fit into {where}; use {size:,} or fewer")
        strata = self._strata()[self.order]
        rows = among[self.order]
        sizes = np.bincount(strata[rows], minlength=strata.max(initial=0) + 1)
        quota = _apportion(count, sizes)
        taken = np.zeros(len(self.labels), dtype=bool)
        for index in np.flatnonzero(quota):
            taken[self.order[rows & (strata == index)][: quota[index]]] = True
        return taken

    def _strata(self) -> np.ndarray:
        """int (n,): the class of single-label images (none: a stratum of its own); all 0 where labels are several."""
        n_labels = self.labels.sum(axis=1)
        if n_labels.max(initial=0) != 1:
            return np.zeros(len(self.labels), dtype=np.int64)
        return np.where(n_labels == 1, self.labels.argmax(axis=1), self.labels.shape[1])


def _apportion(count: int, sizes: np.ndarray) -> np.ndarray:
    """Split `count` in proportion to `sizes` by largest remainders (ties: lower index); int, never above `sizes`."""
    total = max(1, int(sizes.sum()))
    quota = count * sizes // total
    remainder = count * sizes % total
    quota[np.argsort(-remainder, kind="stable")[: count - quota.sum()]] += 1
    return quota
