"""What every data set gives to the stage: a few facts and a stream of encoded images."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

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
        features: float32 (d,), instead of `data`, in a collection of features.
        pixels: digest of the pixels where `data` was encoded here: another version of the encoder gives other bytes.
    """

    data: bytes
    path: str
    labels: tuple[int, ...] = ()
    split: str = ""
    problem: str = ""
    origin: str = ""
    features: np.ndarray | None = None
    pixels: bytes = b""


def encoded(pixels: np.ndarray, path: str, labels: tuple[int, ...], split: str = "") -> Record:
    """The record of an image that comes as pixels: uint8 (h, w, 3), or (h, w) for a grey one. It is coded as PNG."""
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "PNG", compress_level=1)
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
    return Record(coded.getvalue(), path, labels, split, pixels=digest)


@dataclass(frozen=True)
class Source:
    """A data set to be read from front to back, or, after an interruption, from the middle on.

    Attributes:
        name: name of the data set.
        class_names: one a label index; () when there are no labels.
        licence, source: the terms, and where it is from.
        size: number of records that there are.
        records: ``records(start)`` streams the records from number `start` on. Every call gives the same ones in the
            same order, and what comes before `start` is not read, decoded or encoded where that can be avoided.
            Reading may raise InputError (bad data).
        digests: SHA-256 of the source files, where they are files that somebody publishes.
        identity: tells the source from another state of itself, where `digests` do not.
        notes: what a user should know of this copy, one sentence each: counts that differ, names without a file.
        has_pixels: False where the records have features instead.
        absent: names of images that are listed, but not there; they are no records.
    """

    name: str
    class_names: tuple[str, ...]
    licence: str
    source: str
    size: int
    records: Callable[[int], Iterator[Record]]
    digests: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""
    notes: Sequence[str] = ()
    has_pixels: bool = True
    absent: Sequence[str] = ()


def file_states(files: Iterable[Path]) -> str:
    """A digest of names, sizes and times of files: the identity of a collection that is not read to know it."""
    total = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            total.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError as error:  # its record will say so
            total.update(f"{file} {error.errno}\n".encode(errors="surrogateescape"))
    return total.hexdigest()
