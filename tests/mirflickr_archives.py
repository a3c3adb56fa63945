"""Small archives in exactly the format of the official ones of MIRFLICKR-25000."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

#: The names of the files in the official archive, without their end.
NAMES = (
    "animals", "baby", "baby_r1", "bird", "bird_r1", "car", "car_r1", "clouds", "clouds_r1", "dog", "dog_r1", "female",
    "female_r1", "flower", "flower_r1", "food", "indoor", "lake", "male", "male_r1", "night", "night_r1", "people",
    "people_r1", "plant_life", "portrait", "portrait_r1", "river", "river_r1", "sea", "sea_r1", "sky", "structures",
    "sunset", "transport", "tree", "tree_r1", "water",
)  # fmt: skip
POTENTIAL = [name for name in NAMES if not name.endswith("_r1")]
RELEVANT = [name for name in NAMES if name.endswith("_r1")]


def write_annotations(path: Path, numbers: Mapping[str, list[int]], newline: str = "\r\n") -> Path:
    """One file a label, with the numbers of its images, at the top of the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", "MIRFLICKR-25000 annotations v0.80, Universit\xe9\r\n1\r\n".encode("latin-1"))
        for label in NAMES:
            lines = [str(number) for number in numbers.get(label, [])]
            archive.writestr(f"{label}.txt", newline.join(lines) + newline if lines else "")
    return path


def write_images(path: Path, images: Mapping[int, bytes]) -> Path:
    """The images, and for each its tags (in Latin-1, as they were written by then), EXIF data and licence."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for folder in ("", "doc/", "meta/", "meta/tags/", "meta/tags_raw/", "meta/exif/", "meta/license/"):
            archive.writestr(f"mirflickr/{folder}", b"")
        archive.writestr("mirflickr/doc/common_tags.txt", b"explore 1 483\r\n")
        for number, data in images.items():
            archive.writestr(f"mirflickr/im{number}.jpg", data)
            tags = "caf\xe9\r\nm\xfcnchen\r\n".encode("latin-1")
            archive.writestr(f"mirflickr/meta/tags/tags{number}.txt", tags)
            archive.writestr(f"mirflickr/meta/tags_raw/tags{number}.txt", tags + b"\x00\xff")
            archive.writestr(f"mirflickr/meta/exif/exif{number}.txt", b"-Make\nCanon\n")
            archive.writestr(f"mirflickr/meta/license/license{number}.txt", "Andr\xe9".encode("latin-1"))
    return path
