"""A directory, or a tar or zip archive, of images; sub-folders are labels."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from stages.download.archives import member_names, read_members
from stages.download.source import MAX_BYTES, SPLIT_NAMES, Record, Source
from stages.errors import InputError

EXTENSIONS = frozenset((
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
))  # fmt: skip


def folder(path: str) -> Source:
    """The images under `path`, sorted by name, or in the order of the archive.

    Files without the extension of an image, and hidden ones, are ignored. Links that lead out of a directory, and
    linked directories, are skipped and listed. See :func:`layout` for labels and splits; what an archive wraps all its
    files in is no label.

    Raises:
        InputError: there is no such directory or archive, or no image in it.
    """
    root = Path(path)
    if root.is_dir():
        names, links = _walk(root)
        classes, places = layout(names)
        records = _directory_records(root, names, places, links)
    elif root.is_file():
        names, links = [name for name in member_names(root) if _is_image(name)], []
        classes, places = layout(_unwrapped(names))
        records = _archive_records(root, dict(zip(names, places, strict=True)))
    else:
        raise InputError(f"data.path: {path}: no such directory or archive")
    if not names:
        raise InputError(f"data.path: {path}: no image in it (files that end in {', '.join(sorted(EXTENSIONS))})")
    return Source(
        name=root.resolve().name,
        class_names=classes,
        licence="unknown",
        source=str(root),
        size=len(names) + len(links),
        records=records,
    )


def layout(names: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[tuple[int, ...], str]]]:
    """What sub-folders mean: the first one is the label; an image outside of any has none.

    Where all images lie in top folders that are named like splits (train, test, validation), these are the splits and
    the next sub-folder is the label.

    Args:
        names: relative names with "/".

    Returns:
        class names, sorted; and for each name its label indices and its split ("" for none).
    """
    parts = [PurePosixPath(name).parts for name in names]
    splits = [""] * len(parts)
    if all(len(part) > 1 and part[0].lower() in SPLIT_NAMES for part in parts):
        splits = [SPLIT_NAMES[part[0].lower()] for part in parts]
        parts = [part[1:] for part in parts]
    classes = sorted({part[0] for part in parts if len(part) > 1})
    index_of = {name: index for index, name in enumerate(classes)}
    labels = [(index_of[part[0]],) if len(part) > 1 else () for part in parts]
    return tuple(classes), list(zip(labels, splits, strict=True))


def _unwrapped(names: Sequence[str]) -> list[str]:
    """`names` without the top folders that all of them share."""
    parts = [PurePosixPath(name).parts for name in names]
    while parts and all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(_is_hidden(part) for part in path.parts)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Relative names of all images, and of all linked directories, in a directory; sorted."""
    names, links = [], []

    def fail(error: OSError) -> None:
        raise error

    for directory, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        here = Path(directory)
        links += [(here / name).relative_to(root).as_posix() for name in folders if (here / name).is_symlink()]
        names += [(here / name).relative_to(root).as_posix() for name in files if _is_image(name)]
    return sorted(names), sorted(links)


def _directory_records(
    root: Path, names: list[str], places: list[tuple[tuple[int, ...], str]], links: list[str]
) -> Iterator[Record]:
    for name in links:
        yield Record(b"", _text(name), problem="is a link to a directory")
    inside = root.resolve()
    for name, (labels, split) in zip(names, places, strict=True):
        data, problem = _read(root / name, inside)
        yield Record(data, _text(name), labels, split, problem)


def _read(file: Path, inside: Path) -> tuple[bytes, str]:
    """(content, problem) of one file; a link has to stay `inside`."""
    try:
        if not file.resolve(strict=True).is_relative_to(inside):
            return b"", "is a link out of the directory"
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return b"", "is not a plain file"
        if status.st_size > MAX_BYTES:
            return b"", f"{status.st_size:,} bytes, more than {MAX_BYTES:,}"
        return file.read_bytes(), ""
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"


def _archive_records(archive: Path, places: dict[str, tuple[tuple[int, ...], str]]) -> Iterator[Record]:
    for name, data in read_members(archive, places):
        yield Record(data, _text(name), *places[name])


def _text(name: str) -> str:
    """A file name as valid text, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "replace")
