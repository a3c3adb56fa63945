"""Split files: which images are queries, database and training set, small enough to be shared.

A JSON object with ids as runs ("0-9,12"), the protocol, and digests: ``content`` of the images that the ids mean,
``digest`` of the splits themselves, ``checksum`` of all of it. ``data/splits.json`` is one, ``dataset.splits`` takes
one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import fingerprint, write_json
from stages.errors import InputError

FORMAT = "conceptbits splits 1"


@dataclass(frozen=True)
class Splits:
    """Queries, database and training set of a data set of n images.

    Attributes:
        protocol: name of the protocol that they follow.
        cutoffs: the k of the mAP@k that it reports.
        is_query, is_database, is_train: bool (n,). Queries are neither in the database nor in the training set, and
            the training set is within the database or wholly apart from it.
    """

    protocol: str
    cutoffs: tuple[int, ...]
    is_query: np.ndarray
    is_database: np.ndarray
    is_train: np.ndarray

    def __post_init__(self) -> None:
        if (self.is_query & (self.is_database | self.is_train)).any():
            raise ValueError("an image is a query and in the database or the training set")
        if 0 < (self.is_train & self.is_database).sum() < self.is_train.sum():
            raise ValueError("the training set is partly within the database")

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        return {"is_query": self.is_query, "is_database": self.is_database, "is_train": self.is_train}

    @property
    def digest(self) -> str:
        """SHA-256 over the number of images and who is what: equal for equal splits, whatever drew them."""
        total = hashlib.sha256(f"{len(self.is_query)}\n".encode())
        for mask in self.columns.values():
            total.update(np.packbits(mask).tobytes())
        return total.hexdigest()


def write_splits(splits: Splits, dataset: str, content: str, path: Path) -> None:
    """Write a split file.

    Args:
        splits: what to write.
        dataset: name of the data set.
        content: digest of its images.
        path: the file.
    """
    facts = {
        "format": FORMAT, "dataset": dataset, "content": content, "images": len(splits.is_query),
        "protocol": splits.protocol, "cutoffs": list(splits.cutoffs), "digest": splits.digest,
        **{name.removeprefix("is_"): _runs(mask) for name, mask in splits.columns.items()},
    }  # fmt: skip
    write_json(path, facts | {"checksum": fingerprint(facts)})


def read_splits(path: Path, content: str, n_images: int) -> Splits:
    """Read a split file for the `n_images` images with digest `content`.

    Raises:
        InputError: it cannot be read, breaks a rule of :class:`Splits`, has been changed, or belongs to other images.
    """
    where = f"dataset.splits: {path}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); give another run's data/splits.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{where}: no split file (its 'format' is not {FORMAT!r})")
    if found.get("images") != n_images:
        raise InputError(f"{where}: made for {found.get('images')} images, this data set has {n_images}")
    if found.get("content") != content:
        raise InputError(
            f"{where}: made for other images of {found.get('dataset')!r} (content {str(found.get('content'))[:12]}, "
            f"here {content[:12]}), so its ids mean others; read the data set from the same source"
        )
    try:
        masks = {f"is_{name}": _mask(found[name], n_images) for name in ("query", "database", "train")}
        splits = Splits(_text(found["protocol"]), _cutoffs(found["cutoffs"]), **masks)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())[:200]}; get it from its source again") from None
    told = found.pop("checksum", None)
    if splits.digest != found.get("digest") or fingerprint(found) != told:
        raise InputError(f"{where}: changed since it was written; get it from its source again")
    return splits


def _runs(mask: np.ndarray) -> str:
    """The true places of a mask as "0-9,12"."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return ",".join(
        str(start) if start + 1 == stop else f"{start}-{stop - 1}"
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    )


def _mask(runs: Any, n: int) -> np.ndarray:
    """The inverse of :func:`_runs`; ids have to ascend, so that none occurs twice."""
    mask = np.zeros(n, dtype=bool)
    end = -1
    for run in _text(runs).split(",") if runs else []:
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first)
        if not end < start <= stop < n:
            raise ValueError(f"ids {run[:40]!r} do not ascend, or are not below {n}")
        mask[start : stop + 1] = True
        end = stop
    return mask


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _cutoffs(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(k) is int and k > 0 for k in value):
        raise ValueError(f"cutoffs {value!r} are no positive numbers")
    return tuple(value)
