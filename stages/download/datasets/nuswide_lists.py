"""The official lists of NUS-WIDE: which images there are, which of the 81 concepts each shows, and their two splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.errors import InputError

CONCEPTS = (
    "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars", "castle", "cat",
    "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog", "earthquake", "elk", "fire", "fish", "flags",
    "flowers", "food", "fox", "frost", "garden", "glacier", "grass", "harbor", "horses", "house", "lake", "leaf", "map",
    "military", "moon", "mountain", "nighttime", "ocean", "person", "plane", "plants", "police", "protest", "railroad",
    "rainbow", "reflection", "road", "rocks", "running", "sand", "sign", "sky", "snow", "soccer", "sports", "statue",
    "street", "sun", "sunset", "surf", "swimmers", "tattoo", "temple", "tiger", "tower", "town", "toy", "train", "tree",
    "valley", "vehicle", "water", "waterfall", "wedding", "whales", "window", "zebra",
)  # fmt: skip
#: Those of more than 5,000 images, from 74,190 (sky) down to 5,099 (mountain).
FREQUENT = (
    "sky", "clouds", "person", "water", "animal", "grass", "buildings", "window", "plants", "lake", "ocean", "road",
    "flowers", "sunset", "reflection", "rocks", "vehicle", "snow", "tree", "beach", "mountain",
)  # fmt: skip

#: The one value in the official lists that is neither 0 nor 1: line 78,372 of Labels_lake_Train.txt. It counts as 0.
KNOWN_FAULT = b"-1130179"

LAYOUT = (
    "NUS-WIDE's images are not published: ask its authors for them (https://lms.comp.nus.edu.sg, NUS-WIDE), unpack "
    "their ImageList.zip and Groundtruth.zip beside them, and let dataset.path be the directory with "
    "Flickr/actor/0001_2124494179.jpg and so on, ImageList/Imagelist.txt and Groundtruth/AllLabels/Labels_*.txt"
)

#: Lists of images, the folder of the labels that go with them, and what the names of their files end in.
_WHOLE = (("Imagelist.txt", "AllLabels", ""),)
_HALVES = (("TrainImagelist.txt", "TrainTestLabels", "_Train"), ("TestImagelist.txt", "TrainTestLabels", "_Test"))


@dataclass(frozen=True)
class Lists:
    """n listed images.

    Attributes:
        names: their names as ``folder/file``.
        splits: ``train`` or ``test``; "" for all where these lists are not there.
        labels: bool (n, n_classes).
    """

    names: list[str]
    splits: list[str]
    labels: np.ndarray


def read_lists(root: Path, classes: Sequence[str]) -> Lists:
    """Read the lists under `root`, in their folders or at the top.

    Labels are those of AllLabels, or of TrainTestLabels where that is all there is.

    Raises:
        InputError: a list is missing, does not fit the others or is damaged; names it.
    """
    whole, half = (_place(root, "Groundtruth", folder).is_dir() for folder in ("AllLabels", "TrainTestLabels"))
    tables = [_table(root, classes, *part) for part in (_HALVES if half and not whole else _WHOLE)]
    names = [name for part, _ in tables for name in part]
    split_of = {
        name: split
        for (listing, *_), split in zip(_HALVES, ("train", "test"), strict=True)
        if _place(root, "ImageList", listing).is_file()
        for name in _names(_place(root, "ImageList", listing))
    }
    return Lists(names, [split_of.get(name, "") for name in names], np.concatenate([labels for _, labels in tables]))


def _table(root: Path, classes: Sequence[str], listing: str, folder: str, end: str) -> tuple[list[str], np.ndarray]:
    """The images of one list and their labels, bool (n, n_classes)."""
    path = _place(root, "ImageList", listing)
    names = _names(path)
    labels = np.zeros((len(names), len(classes)), dtype=bool)
    for column, concept in enumerate(classes):
        file = _place(root, "Groundtruth", folder) / f"Labels_{concept}{end}.txt"
        values = np.array(_read(file).split())
        if len(values) != len(names):
            counts = f"has {len(values):,} labels, but {path} lists {len(names):,} images"
            raise InputError(f"{file}: {counts}; unpack both official lists again")
        is_one = labels[:, column] = values == b"1"
        odd = np.flatnonzero(~is_one & (values != b"0") & (values != KNOWN_FAULT))
        if len(odd):
            fault = f"line {odd[0] + 1:,} is '{values[odd[0]].decode('latin-1')[:20]}', expected 0 or 1"
            raise InputError(f"{file}: {fault}; unpack the official list again")
    return names, labels


def _names(path: Path) -> list[str]:
    r"""Names as ``folder/file``: the lists have backslashes, some copies of them ``C:\ImageData\Flickr\`` in front."""
    lines = (line.strip().replace("\\", "/") for line in _read(path).decode("latin-1").splitlines())
    return ["/".join(line.split("/")[-2:]) for line in lines if line]


def _place(root: Path, folder: str, name: str) -> Path:
    return root / name if (root / name).exists() else root / folder / name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). {LAYOUT}") from None
