"""MIRFLICKR-25000 from the official archives: the images, and for each label a file with the numbers of its images."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from stages.download.archives import member_names, read_members
from stages.download.config import DatasetOptions
from stages.download.fetch import Published, fetch
from stages.download.source import Record, Source
from stages.errors import InputError

IMAGES = Published(
    urls=("https://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k.zip",),
    digest="md5:a23d0a8564ee84cda5622a6c2f947785",
    max_bytes=3_069_184_257,
)
ANNOTATIONS = Published(
    urls=("https://press.liacs.nl/mirflickr/mirflickr25k.v3b/mirflickr25k_annotations_v080.zip",),
    digest=None,
    max_bytes=2**24,
)
N_IMAGES = 25_000

#: Labels of all images that may have to do with them.
POTENTIAL = (
    "animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male", "night",
    "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport", "tree", "water",
)  # fmt: skip
#: Those of these that are also given, by another file, to the images for which they matter alone.
RELEVANT = (
    "baby_r1", "bird_r1", "car_r1", "clouds_r1", "dog_r1", "female_r1", "flower_r1", "male_r1", "night_r1", "people_r1",
    "portrait_r1", "river_r1", "sea_r1", "tree_r1",
)  # fmt: skip
LABELS: Mapping[int, tuple[str, ...]] = {24: POTENTIAL, 38: POTENTIAL + RELEVANT}


def mirflickr25k(options: DatasetOptions) -> Source:
    """The images that have one of the 24 labels (``dataset.labels``: or of the 38), fetched if need be.

    Raises:
        InputError: an archive is not the official one, or there is no such set of labels.
        OutsideError: one cannot be fetched.
    """
    classes = LABELS.get(options.labels or 24)
    if classes is None:
        raise InputError(f"dataset.labels: {options.labels} is not allowed: 'mirflickr25k' has 24 or 38")
    annotations, images = fetch(ANNOTATIONS, options.mirrors), fetch(IMAGES, options.mirrors)
    labels_of = _labels(annotations.path, classes)
    members = member_names(images.path)
    wanted = {name: labels_of[name] for name in members if name in labels_of}
    bare = N_IMAGES - len(labels_of)
    notes = [f"{bare:,} of {N_IMAGES:,} images have none of the {len(classes)} labels and are left out"]
    if absent := sorted(labels_of.keys() - wanted.keys()):
        count = f"{len(absent):,} of {len(labels_of):,} labelled images"
        notes.append(f"{count} are not in {images.path} (first: {absent[0]})")
    return Source(
        name=options.name,
        class_names=classes,
        licence="Creative Commons licences of the photographers, listed in the archive",
        source="https://press.liacs.nl/mirflickr",
        size=len(wanted),
        records=partial(_records, images.path, wanted),
        digests={IMAGES.name: images.sha256, ANNOTATIONS.name: annotations.sha256},
        notes=notes,
        absent=absent,
    )


def _labels(archive: Path, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Member of the archive of images to its label indices."""
    files = {PurePosixPath(name).stem: name for name in member_names(archive) if name.endswith(".txt")}
    if missing := [f"{name}.txt" for name in classes if name not in files]:
        raise InputError(f"{archive}: lacks {', '.join(missing)}; get the official archive")
    index_of = {files[name]: index for index, name in enumerate(classes)}
    found: dict[int, set[int]] = defaultdict(set)
    for member, content in read_members(archive, index_of):
        for line in content.split():
            if not line.isdigit() or len(line) > 5 or not 1 <= int(line) <= N_IMAGES:
                where = f"{archive}, member '{member}'"
                raise InputError(f"{where}: {line[:20]} is no number from 1 to {N_IMAGES:,}; get the official archive")
            found[int(line)].add(index_of[member])
    return {f"mirflickr/im{number}.jpg": tuple(sorted(labels)) for number, labels in found.items()}


def _records(archive: Path, labels_of: Mapping[str, tuple[int, ...]], start: int) -> Iterator[Record]:
    wanted = dict(list(labels_of.items())[start:])
    for name, data in read_members(archive, wanted):
        yield Record(data, name, wanted[name])
