"""Batches of the archives of CIFAR: Python 2 pickles of arrays, which are refused if they ask for anything else."""

import io
import pickle
from typing import Any

import numpy as np

from stages.download.archives import Member
from stages.errors import InputError

#: All that an array in a pickle needs. NumPy's module has had two names.
_ALLOWED = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}  # fmt: skip


def read_batch(
    stream: io.BytesIO | Member, label_key: bytes, n_classes: int, where: str
) -> tuple[np.ndarray, list[int], list[str]]:
    """Unpickle one batch.

    Args:
        stream: the pickle.
        label_key, n_classes: what it calls its labels, and how many different ones there are.
        where: what to call it in messages.

    Returns:
        pixels uint8 (n, 32, 32, 3), n labels, n file names.

    Raises:
        InputError: it is no such batch, or it asks for anything but arrays; nothing of it has been run then.
    """
    try:
        batch = _ArrayUnpickler(stream, encoding="bytes").load()
        data, labels = batch[b"data"], batch[label_key]
        names = [name.decode("utf-8", "replace") for name in batch[b"filenames"]]
    except InputError:  # the archive is damaged
        raise
    except Exception as error:  # a broken pickle may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        raise InputError(f"{where}: refused, not a batch of CIFAR images ({reason})") from None
    if not _is_batch(data, labels, names, n_classes):
        raise InputError(f"{where}: not a batch of CIFAR images (wrong shape, type or labels); get the official one")
    # Each row is the red, the green and the blue plane.
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names


def _is_batch(data: Any, labels: Any, names: list[str], n_classes: int) -> bool:
    return (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072
        and isinstance(labels, list) and len(labels) == len(data) == len(names)
        and all(type(label) is int and 0 <= label < n_classes for label in labels)
    )  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of numbers and plain containers; everything else is refused before it is even imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None
