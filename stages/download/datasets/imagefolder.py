"""A directory, or a tar or zip archive, of images; sub-folders are labels."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path, PurePosixPath

from stages.download.archives import member_names, read_members
from stages.download.config import DatasetOptions, required_path
from stages.download.files import EXTENSIONS, is_hidden, read_inside, text
from stages.download.source import SPLIT_NAMES, Record, Source, file_states
from stages.errors import InputError

#: Label indices and split of an image.
Place = tuple[tuple[int, ...], str]


def imagefolder(options: DatasetOptions) -> Source:
    """The images under `path`, sorted by name, or in the order of the archive.

    Files without the extension of an image, and hidden ones, are ignored. Links that lead out of a directory, and
    linked directories, are skipped and listed. See :func:`layout` for labels and splits; what an archive wraps all its
    files in is no label.

    Raises:
        InputError: there is no such directory or archive, or no image in it.
    """
    root = Path(required_path(options))
    if root.is_dir():
        names, links = _walk(str(root))
        classes, places = layout(names)
        records = partial(_directory_records, str(root), names, places, links)
        identity = file_states(root / name for name in chain(links, names))
    elif root.is_file():
        names, links = [name for name in member_names(root) if _is_image(name)], []
        classes, places = layout(_unwrapped(names))
        records = partial(_archive_records, root, names, places)
        identity = file_states([root])
    else:
        raise InputError(f"dataset.path: {root}: no such directory or archive")
    if not names:
        raise InputError(f"dataset.path: {root}: no image in it (files that end in {', '.join(sorted(EXTENSIONS))})")
    return Source(
        name=text(root.resolve().name),
        class_names=tuple(map(text, classes)),
        licence="unknown",
        source=str(root),
        size=len(names) + len(links),
        records=records,
        identity=identity,
    )


def layout(names: Sequence[str]) -> tuple[tuple[str, ...], list[Place]]:
    """What sub-folders mean: the first one is the label; an image outside of any has none.

    Where all images lie in top folders that are named like splits (train, test, validation), these are the splits and
    the next sub-folder is the label.

    Args:
        names: relative names with "/".

    Returns:
        class names, sorted; and for each name its label indices and its split ("" for none).
    """
    has_splits = all(name.partition("/")[0].lower() in SPLIT_NAMES and "/" in name for name in names)
    found: dict[tuple[str, str], tuple[str, str]] = {}  # so that an image costs one reference to one of these few
    folders = [found.setdefault(folder, folder) for folder in (_label_and_split(name, has_splits) for name in names)]
    classes = sorted({label for label, _ in found if label})
    index_of = {name: (index,) for index, name in enumerate(classes)}
    place_of = {(label, split): (index_of.get(label, ()), split) for label, split in found}
    return tuple(classes), [place_of[folder] for folder in folders]


def _label_and_split(name: str, has_splits: bool) -> tuple[str, str]:
    folders = name.split("/", 2)[:-1]
    split = SPLIT_NAMES[folders.pop(0).lower()] if has_splits else ""
    return folders[0] if folders else "", split


def _unwrapped(names: Sequence[str]) -> list[str]:
    """`names` without the top folders that all of them share, up to one that is named like a split."""
    shared = os.path.commonpath([name.rpartition("/")[0] for name in names]) if names else ""
    folders = list(takewhile(lambda folder: folder.lower() not in SPLIT_NAMES, shared.split("/")))
    return [name.removeprefix(f"{'/'.join(folders)}/") for name in names]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(map(is_hidden, path.parts))


def _walk(root: str) -> tuple[list[str], list[str]]:
    """Relative names of all images, and of all linked directories, in a directory; sorted."""
    names, links = [], []

    def fail(error: OSError) -> None:
        raise error

    for directory, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name)]
        here = os.path.relpath(directory, root)
        here = "" if here == "." else f"{here.replace(os.sep, '/')}/"
        links += [here + name for name in folders if Path(directory, name).is_symlink()]
        names += [here + name for name in files if _is_image(name)]
    return sorted(names), sorted(links)


def _directory_records(
    root: str, names: Sequence[str], places: Sequence[Place], links: Sequence[str], start: int
) -> Iterator[Record]:
    for name in links[start:]:
        yield Record(b"", text(name), problem="is a link to a directory")
    inside, first = os.path.realpath(root), max(0, start - len(links))
    for name, (labels, split) in zip(islice(names, first, None), islice(places, first, None), strict=True):
        data, problem = read_inside(f"{root}/{name}", inside)
        yield Record(data, text(name), labels, split, problem)


def _archive_records(archive: Path, names: Sequence[str], places: Sequence[Place], start: int) -> Iterator[Record]:
    place_of = dict(zip(names[start:], places[start:], strict=True))
    for name, data in read_members(archive, place_of):
        yield Record(data, text(name), *place_of[name])
