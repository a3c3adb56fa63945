"""Fetch and verify a data set, bring it to the one image format and assign queries, database and training set.

dataset.name: a benchmark (scenes, cifar10, cifar100, fashion_mnist, mirflickr25k, nuswide, coco2014, coco2017) or a
collection at dataset.path (imagefolder, parquet, webdataset, csv, embeddings); docs/data/ has a card for each. Splits
follow the named protocol dataset.protocol, drawn with dataset.seed, or the split file dataset.splits. Images that
cannot be read are listed in reports/skipped.csv; more than the fraction dataset.max_skipped of them is an error.

Writes data/images/, data/dataset.json, data/splits.json, reports/skipped.csv and reports/near_duplicates.csv.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.errors import InputError
from stages.params import PARAMS_FILE, Frozen

DatasetName = Literal[
    "scenes", "cifar10", "cifar100", "fashion_mnist", "mirflickr25k", "nuswide", "coco2014", "coco2017",
    "imagefolder", "parquet", "webdataset", "csv", "embeddings",
]  # fmt: skip

ProtocolName = Literal[
    "auto", "scenes", "cifar10", "cifar10-1000", "cifar10-10000-50000", "cifar10-1000-59000", "cifar10-1000-54000",
    "mirflickr25k", "mirflickr25k-10000", "nuswide", "coco", "official", "holdout",
]  # fmt: skip


def _known_scheme(url: str) -> str:
    if not url.startswith(("http://", "https://", "file:///")):
        raise ValueError("must start with http://, https:// or file:///")
    return url


#: Data sets of the user's own, which lie at a path.
COLLECTIONS = ("imagefolder", "parquet", "webdataset", "csv", "embeddings")


class DatasetOptions(Frozen):
    """Section ``dataset``: where the images come from and how they are split.

    Attributes:
        name: which data set, see :mod:`stages.download.registry`.
        path: where a collection of one's own lies, or one's own copy of NUS-WIDE; of ``parquet`` also an ``hf://`` id.
        labels: which of the label sets of ``nuswide`` (10, 21, 81) or ``mirflickr25k`` (24, 38); None: 21 and 24.
        mirrors: other places of the published files, tried before the official ones: each the URL (http, https, file)
            of a file, or of the directory that has it.
        protocol: name of the split protocol; ``auto`` picks the usual one.
        splits: a split file to use instead of drawing the splits.
        seed: of rendering and of drawing the splits.
        queries, database, train: counts that replace the protocol's own.
        max_skipped: the largest fraction of unreadable images that is tolerated.
        workers: processes that verify images and write shards; None: one a core.
    """

    name: DatasetName
    path: str | None = None
    labels: Literal[10, 21, 81, 24, 38] | None = None
    mirrors: Annotated[tuple[Annotated[str, AfterValidator(_known_scheme)], ...], Field(strict=False)] | None = None
    protocol: ProtocolName = "auto"
    splits: str | None = None
    seed: int = Field(0, ge=0)
    queries: int | None = Field(None, gt=0)
    database: int | None = Field(None, gt=0)
    train: int | None = Field(None, gt=0)
    max_skipped: float = Field(0.01, ge=0, le=1)
    workers: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _no_option_in_vain(self) -> "DatasetOptions":
        """Refuse what would silently have no effect."""
        if self.path is not None and self.name not in (*COLLECTIONS, "nuswide"):
            raise ValueError(f"path is set, but {self.name!r} is not read from a path; set path: null")
        if self.labels is not None and self.name not in ("nuswide", "mirflickr25k"):
            raise ValueError(f"labels is set, but {self.name!r} has one set of labels; set labels: null")
        counts = () if self.name == "scenes" else (self.queries, self.database)  # which say how many are rendered
        if self.splits is not None and (self.protocol != "auto" or {*counts, self.train} != {None}):
            raise ValueError("splits is set beside a protocol or counts, which it replaces; set those to auto and null")
        return self


def required_path(options: DatasetOptions) -> str:
    """`options.path`, with the home directory for ~.

    Raises:
        InputError: it is not given.
    """
    if options.path is None:
        raise InputError(f"{PARAMS_FILE}: dataset.path is missing; dataset '{options.name}' is read from there")
    return str(Path(options.path).expanduser()) if options.path.startswith("~") else options.path


class Params(Frozen):
    """The keys of ``params.yaml`` that this stage reads."""

    dataset: DatasetOptions
