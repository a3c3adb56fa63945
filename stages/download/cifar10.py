"""CIFAR-10 from the official archive: six batches of Python 2 pickles in a tar.gz."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.download.archives import read_members
from stages.download.fetch import fetch
from stages.download.source import Record, Source
from stages.errors import InputError

NAME = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{NAME}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
#: The archive is of 170,498,071 bytes.
MAX_ARCHIVE = 200 * 2**20
N_IMAGES = 60_000

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: Members with images, and the split that they are.
BATCHES = {f"cifar-10-batches-py/data_batch_{number}": "train" for number in range(1, 6)} | {
    "cifar-10-batches-py/test_batch": "test"
}

#: All that an array in a pickle needs. NumPy's module has had two names.
_ALLOWED = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}  # fmt: skip


def cifar10(mirror: str | None = None) -> Source:
    """The official CIFAR-10, fetched if need be; `mirror` is another URL of the archive or of its directory.

    Raises:
        InputError: the archive is not the official one.
        OutsideError: it cannot be fetched.
    """
    url = URL
    if mirror:
        url = mirror if mirror.endswith(".tar.gz") else f"{mirror.rstrip('/')}/{NAME}"
    archive = fetch(url, SHA256, MAX_ARCHIVE)
    return Source(
        name="cifar10",
        class_names=CLASSES,
        licence="none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        source=URL,
        size=N_IMAGES,
        records=_records(archive),
        digests={NAME: SHA256},
    )


def _records(archive: Path) -> Iterator[Record]:
    missing = set(BATCHES)
    for member, content in read_members(archive, BATCHES):
        missing.remove(member)
        pixels, labels, names = read_batch(content, f"{archive}, member '{member}'")
        for image, label, name in zip(pixels, labels, names, strict=True):
            coded = io.BytesIO()
            Image.fromarray(image).save(coded, "PNG", compress_level=1)
            yield Record(coded.getvalue(), name, (label,), BATCHES[member])
    if missing:
        raise InputError(f"{archive}: lacks {', '.join(sorted(missing))}; get the official archive from {URL}")


def read_batch(content: bytes, where: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Unpickle one batch.

    Args:
        content: the pickle.
        where: what to call it in messages.

    Returns:
        pixels uint8 (n, 32, 32, 3), n labels, n file names.

    Raises:
        InputError: it is no such batch, or it asks for anything but arrays; nothing of it has been run then.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], batch[b"labels"]
        names = [name.decode() for name in batch[b"filenames"]]
    except Exception as error:  # a broken pickle may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        raise InputError(f"{where}: refused, not a batch of CIFAR-10 ({reason})") from None
    if not _is_batch(data, labels, names):
        raise InputError(f"{where}: not a batch of CIFAR-10 (wrong shape, type or labels); get the official archive")
    # Each row is the red, the green and the blue plane.
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names


def _is_batch(data: Any, labels: Any, names: list[str]) -> bool:
    return (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072
        and isinstance(labels, list) and len(labels) == len(data) == len(names)
        and all(type(label) is int and 0 <= label < len(CLASSES) for label in labels)
    )  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of numbers and plain containers; everything else is refused before it is even imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None
