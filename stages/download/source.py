"""What every kind of source gives to the stage: a few facts and a stream of encoded images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: Encoded images with more bytes than this are not read: they would not fit a row group.
MAX_BYTES = 64 * 2**20

#: Names of splits as they are met, by the name that they have here.
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


class Record(NamedTuple):
    """One image as it is found.

    Attributes:
        data: the encoded image.
        path: its name in the source.
        labels: indices into the source's class names; () when it has none.
        split: ``train``, ``validation`` or ``test`` where the source says so, else "".
        problem: why there is no usable `data`, else "".
        origin: where exactly it is, when `path` does not tell.
    """

    data: bytes
    path: str
    labels: tuple[int, ...] = ()
    split: str = ""
    problem: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Source:
    """A data set to be read once, from front to back.

    Attributes:
        name: name of the data set.
        class_names: one a label index; () when there are no labels.
        licence, source: the terms, and where it is from.
        size: number of records that will come.
        records: the images; reading it may raise InputError (bad data).
        digests: SHA-256 of the source files, where they are files that somebody publishes.
    """

    name: str
    class_names: tuple[str, ...]
    licence: str
    source: str
    size: int
    records: Iterator[Record]
    digests: Mapping[str, str] = field(default_factory=dict)
