"""MS-COCO 2014 and 2017 from the official archives: the labels of an image are the categories of its objects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.download.archives import member_names, open_members, read_members
from stages.download.config import DatasetOptions
from stages.download.datasets.coco_annotations import Annotations, read_annotations
from stages.download.fetch import Published, fetch
from stages.download.source import Record, Source
from stages.errors import InputError

#: Two addresses of the official place: its own, and the one of the same storage that speaks HTTPS.
HOSTS = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")

FILES: Mapping[str, Published] = {
    path: Published(tuple(f"{host}/{path}" for host in HOSTS), f"sha256:{digest}", size)
    for path, size, digest in (
        ("annotations/annotations_trainval2014.zip", 252_872_794,
         "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
        ("zips/train2014.zip", 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
        ("zips/val2014.zip", 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
        ("annotations/annotations_trainval2017.zip", 252_907_541,
         "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
        ("zips/train2017.zip", 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
        ("zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    )
}  # fmt: skip

#: What the official files call the two splits, and what the splits are called here.
SPLITS = {"train": "train", "val": "validation"}

#: More than the largest annotation file, instances_train2017.json with 470 MB.
MAX_JSON = 2**30


@dataclass(frozen=True)
class _Part:
    """The images of one split in the order of their archive: member to label indices."""

    archive: Path
    labels: Mapping[str, tuple[int, ...]]
    split: str


def coco2014(options: DatasetOptions) -> Source:
    """MS-COCO 2014 (train, then validation), fetched if need be. Images without an annotated object have no label.

    Raises:
        InputError: an archive is not the official one.
        OutsideError: one cannot be fetched.
    """
    return _coco(options, "2014")


def coco2017(options: DatasetOptions) -> Source:
    """MS-COCO 2017: the same images, split otherwise; see :func:`coco2014`."""
    return _coco(options, "2017")


def _coco(options: DatasetOptions, year: str) -> Source:
    paths = (f"annotations/annotations_trainval{year}.zip", *(f"zips/{kind}{year}.zip" for kind in SPLITS))
    fetched = {path: fetch(FILES[path], options.mirrors) for path in paths}
    annotations = _annotations(fetched[paths[0]].path, year)
    parts, notes, missing = [], [], []
    for kind, path in zip(SPLITS, paths[1:], strict=True):
        archive, said = fetched[path].path, annotations[kind]
        labels = {f"{kind}{year}/{name}": labels for name, labels in said.labels.items()}
        there = {name: labels[name] for name in member_names(archive) if name in labels}
        parts.append(_Part(archive, there, SPLITS[kind]))
        if absent := [name for name in labels if name not in there]:
            count = f"{len(absent):,} of {len(labels):,} images of the {SPLITS[kind]} split"
            notes.append(f"{count} are not in {archive} (first: {absent[0][:100]!r})")
            missing += absent
        if said.strangers:
            notes.append(f"annotations of the {SPLITS[kind]} split name {said.strangers:,} images that are not listed")
    size = sum(len(part.labels) for part in parts)
    if bare := sum(not labels for part in parts for labels in part.labels.values()):
        notes.append(f"{bare:,} of {size:,} images have no label")
    return Source(
        name=options.name,
        class_names=annotations["train"].categories,
        licence="annotations CC BY 4.0; images: Flickr terms of use",
        source="https://cocodataset.org",
        size=size,
        records=partial(_records, parts),
        digests={FILES[path].name: file.sha256 for path, file in fetched.items()},
        notes=notes,
        absent=missing,
    )


def _annotations(archive: Path, year: str) -> dict[str, Annotations]:
    """What is said of the images of each official split."""
    kinds = {f"annotations/instances_{kind}{year}.json": kind for kind in SPLITS}
    found = {
        kinds[member]: read_annotations(stream, f"{archive}, member '{member}'")
        for member, stream in open_members(archive, kinds, MAX_JSON)
    }
    if missing := [member for member, kind in kinds.items() if kind not in found]:
        raise InputError(f"{archive}: lacks {', '.join(missing)}; get the official archive")
    if found["train"].categories != found["val"].categories:
        raise InputError(f"{archive}: its two splits have different categories; get the official archive")
    return found


def _records(parts: Sequence[_Part], start: int) -> Iterator[Record]:
    for part in parts:
        wanted = dict(list(part.labels.items())[start:])
        start = max(0, start - len(part.labels))
        for name, data in read_members(part.archive, wanted) if wanted else ():
            yield Record(data, name, wanted[name], part.split)
