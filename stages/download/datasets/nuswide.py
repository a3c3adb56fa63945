"""NUS-WIDE from the user's own copy, since its images cannot be had from an official place."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.download.config import DatasetOptions
from stages.download.datasets.nuswide_lists import CONCEPTS, FREQUENT, LAYOUT, Lists, read_lists
from stages.download.files import read_inside
from stages.download.source import Record, Source, file_states
from stages.errors import InputError

N_IMAGES = 269_648

#: The label sets that the literature uses, each in the order of the official list.
LABELS = {10: tuple(sorted(FREQUENT[:10])), 21: tuple(sorted(FREQUENT)), 81: CONCEPTS}


class _Image(NamedTuple):
    """A listed image, and where it lies."""

    name: str
    file: str
    labels: tuple[int, ...]
    split: str


def nuswide(options: DatasetOptions) -> Source:
    """The listed images that are there and have one of the 21 labels (``dataset.labels``: or of the 10 or the 81).

    Images are looked for under Flickr/, or anywhere in the directory: by folder and name, else by name alone.

    Raises:
        InputError: the copy lacks the lists or all of the images (it says what to put where), or its lists do not fit
            each other; or there is no such set of labels.
    """
    classes = LABELS.get(options.labels or 21)
    if classes is None:
        raise InputError(f"dataset.labels: {options.labels} is not allowed: 'nuswide' has 10, 21 or 81")
    if options.path is None:
        raise InputError(f"dataset.path is missing. {LAYOUT}")
    root = Path(options.path).expanduser()
    lists = read_lists(root, classes)
    folder = root / "Flickr" if (root / "Flickr").is_dir() else root
    places = _places(lists.names, folder)
    there, labelled = np.array([bool(place) for place in places]), lists.labels.any(axis=1)
    if not there.any():
        raise InputError(f"{folder}: none of the {len(places):,} listed images is there. {LAYOUT}")
    images = [
        _Image(lists.names[row], places[row], tuple(np.flatnonzero(lists.labels[row]).tolist()), lists.splits[row])
        for row in np.flatnonzero(there & labelled).tolist()
    ]
    total = f"{len(places):,} listed images"
    notes = [f"{(~labelled).sum():,} of {total} have none of the {len(classes)} labels and are left out"]
    if len(places) != N_IMAGES:
        notes.append(f"{root}: its lists have {len(places):,} images, the official ones {N_IMAGES:,}")
    if not there.all():
        notes.append(f"{(~there).sum():,} of {total} are not in {folder} (first: {lists.names[there.argmin()]})")
    return Source(
        name=options.name,
        class_names=classes,
        licence="for research, by agreement with the authors; images: their photographers'",
        source=str(root),
        size=len(images),
        records=partial(_records, os.path.realpath(folder), images),
        identity=f"{_digest(lists)} {file_states(Path(image.file) for image in images)}",
        notes=notes,
        absent=[name for name, place in zip(lists.names, places, strict=True) if not place],
    )


def _places(names: Sequence[str], folder: Path) -> list[str]:
    """Where each image lies in a directory; "" for nowhere."""
    found: dict[str, str] = {}
    for directory, folders, files in os.walk(folder):
        folders.sort()  # of two files of one name the first is taken, on every machine the same
        parent = Path(directory).name
        for file in files:
            path = f"{directory}/{file}"
            found.setdefault(f"{parent}/{file}", path)
            found.setdefault(file, path)
    return [found.get(name) or found.get(name.rpartition("/")[2], "") for name in names]


def _digest(lists: Lists) -> str:
    total = hashlib.sha256("\n".join((*lists.names, *lists.splits)).encode())
    total.update(np.packbits(lists.labels).tobytes())
    return total.hexdigest()


def _records(inside: str, images: Sequence[_Image], start: int) -> Iterator[Record]:
    for image in islice(images, start, None):
        data, problem = read_inside(image.file, inside)
        yield Record(data, image.name, image.labels, image.split, problem)
