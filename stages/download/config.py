"""Fetch and verify a data set, bring it to the one image format and assign queries, database and training set.

dataset: scenes (rendered here), cifar10 (the official archive), parquet (image Parquet as on the Hugging Face hub;
data.path is a file, directory or glob) or folder (data.path is a directory, tar or zip of images; sub-folders are
labels). Splits follow the named protocol data.protocol, drawn with data.seed. Images that cannot be read are listed in
reports/skipped.csv; more than the fraction data.max_skipped of them is an error.

Writes data/images/, data/dataset.json and reports/skipped.csv.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.params import Frozen

ProtocolName = Literal[
    "auto", "scenes", "cifar10", "cifar10-1000", "mirflickr", "nuswide", "coco", "official", "holdout"
]  # fmt: skip


def _known_scheme(url: str) -> str:
    if not url.startswith(("http://", "https://", "file:///")):
        raise ValueError("must start with http://, https:// or file:///")
    return url


class Data(Frozen):
    """Where the images come from and how they are split.

    Attributes:
        path: for ``parquet`` a file, directory or glob; for ``folder`` a directory or archive.
        mirror: for ``cifar10`` another URL of the archive, or of the directory that has it (http, https or file).
        protocol: name of the split protocol; ``auto`` picks the usual one.
        seed: of rendering and of drawing the splits.
        queries, database, train: counts that replace the protocol's own.
        max_skipped: the largest fraction of unreadable images that is tolerated.
    """

    path: str | None = None
    mirror: Annotated[str, AfterValidator(_known_scheme)] | None = None
    protocol: ProtocolName = "auto"
    seed: int = Field(0, ge=0)
    queries: int | None = Field(None, gt=0)
    database: int | None = Field(None, gt=0)
    train: int | None = Field(None, gt=0)
    max_skipped: float = Field(0.01, ge=0, le=1)


class Params(Frozen):
    """The keys of ``params.yaml`` that this stage reads."""

    dataset: Literal["scenes", "cifar10", "parquet", "folder"]
    data: Data
