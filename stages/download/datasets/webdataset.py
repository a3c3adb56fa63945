"""WebDataset: tar shards in which consecutive files that differ in their ending alone are one sample."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.download.config import DatasetOptions, required_path
from stages.download.datasets.webdataset_samples import Label, labels_of, read_samples
from stages.download.files import find_files, split_of, text
from stages.download.remote import RemoteFile, find_remote, is_remote, remote_states
from stages.download.source import SPLIT_NAMES, Record, Source, file_states
from stages.errors import InputError
from stages.progress import track

SHARDS = (".tar", ".tar.gz", ".tgz")
#: Files beside the shards that have the name of class i in line i.
NAMES_FILES = ("classnames.txt", "classes.txt")


def webdataset(options: DatasetOptions) -> Source:
    """The samples of tar shards, in their order; nothing is ever extracted.

    The label is the integers of a ``.cls``, or ``labels``, ``label`` or ``cls`` of a ``.json``: an integer, a string,
    or a list of either. Splits are those that the names of the shards or of their folders tell.

    Opening reads all shards once, at the speed of the disk, since only the labels tell the classes and only the headers
    the number of samples; no image is decoded and nothing of a sample is kept. Shards in an object store are read
    where they lie; files with class names beside them are not looked for.

    Raises:
        InputError: there is no shard, one is damaged or hostile, or a label is none; names shard and sample.
    """
    path = required_path(options)
    if is_remote(path):
        found = find_remote(path, SHARDS, "tar shard")
        shards, names, identity = {file.name: file for file in found}, (), remote_states(found)
        name = found[0].url.removesuffix(found[0].name).rstrip("/").rsplit("/", 1)[-1]
    else:
        files, base = find_files(path, SHARDS, "tar shard")
        shards = {file.relative_to(base).as_posix(): file for file in files}
        names_file = _names_file(base)
        names = _read_names(names_file) if names_file else ()
        identity = file_states([*files, names_file] if names_file else files)
        name = base.resolve().name
    scan = _scan(path, shards.values(), len(names))
    if names and not any(isinstance(label, str) for label in scan.labels):
        labels: Sequence[Label] = range(len(names))
    else:
        labels = sorted(scan.labels)
        names = tuple(map(str, labels))
    return Source(
        name=text(name),
        class_names=names,
        licence="unknown",
        source=path,
        size=sum(scan.counts),
        records=partial(_records, shards, scan.counts, {label: index for index, label in enumerate(labels)}),
        identity=identity,
        notes=scan.notes,
    )


@dataclass(frozen=True)
class _Scan:
    """What the labels and headers tell: samples of each shard, the labels that occur, remarks."""

    counts: list[int]
    labels: set[Label]
    notes: list[str]


def _scan(path: str, shards: Collection[Path | RemoteFile], n_names: int) -> _Scan:
    """Read all labels, and check them; integers count up to `n_names` where there are names."""
    counts, labels, several = [], set(), 0
    first_of: dict[type, str] = {}  # where integers, and where names have come up first
    for shard in track(shards, "read labels", len(shards)):
        counts.append(0)
        for sample in read_samples(shard, pixels=False):
            counts[-1] += 1
            several += sample.n_images > 1
            for label in labels_of(sample):
                first_of.setdefault(type(label), f"{shard}, sample '{text(sample.key)}'")
                if n_names and isinstance(label, int) and label >= n_names:
                    raise sample.refuse(f"label {label}, but there are names for {n_names} classes")
                labels.add(label)
    if len(first_of) > 1:
        raise InputError(f"{first_of[int]}: has an integer as label, but {first_of[str]} a name; use one of the two")
    if not sum(counts):
        raise InputError(f"{path}: no sample in {len(shards)} shards (files like 0001.jpg with 0001.cls)")
    notes = [f"Samples with more than one image: {several:,}; the first image is used."] if several else []
    return _Scan(counts, labels, notes)


def _names_file(base: Path) -> Path | None:
    """The file with class names beside the shards, or beside the folder of their split."""
    places = [base, base.parent] if base.name.lower() in SPLIT_NAMES else [base]
    return next((place / name for place in places for name in NAMES_FILES if (place / name).is_file()), None)


def _read_names(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError:
        raise InputError(f"{file}: is no UTF-8 text; save it as such, with the name of class i in line i") from None


def _records(
    shards: Mapping[str, Path | RemoteFile], counts: Sequence[int], index_of: Mapping[Label, int], start: int
) -> Iterator[Record]:
    for (name, shard), count in zip(shards.items(), counts, strict=True):
        if start < count:
            split = split_of(name)
            for sample in read_samples(shard, start):
                labels = tuple(index_of[label] for label in labels_of(sample))
                problem = "" if sample.image else text(f"has no image, only {', '.join(sample.endings)[:60]}")
                origin = text(f"{name}#{sample.image or sample.key}")
                yield Record(sample.data, text(sample.key), labels, split, problem, origin)
        start = max(0, start - count)
