"""The files of a collection on this machine: which ones a path means, what their names tell, reading them safely."""

import glob
import itertools
import os
import re
import stat
from functools import lru_cache
from pathlib import Path

from stages.download.source import MAX_BYTES, SPLIT_NAMES
from stages.errors import InputError

#: Endings of the kinds of images that are decoded.
EXTENSIONS = frozenset((
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
))  # fmt: skip


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> tuple[list[Path], Path]:
    """The files that ``dataset.path`` means, sorted by name, and the directory that `path` is or they all lie in.

    Args:
        path: a file, whatever its name; a directory, for all files in it that end in `suffixes` and are not hidden; or
            a pattern with ``*``, ``**``, ``?``, ``[...]`` and with the braces of WebDataset: ``{000..009}``, ``{a,b}``.
        suffixes: ends of names, in lower case.
        what: what to call such a file in messages.

    Raises:
        InputError: there is none, or one of those that the braces list is not there.
    """
    given, base = Path(path), None
    if given.is_dir():
        base = given.absolute()
        files = [file for file in given.rglob("*") if file.name.lower().endswith(suffixes)]
        files = [file for file in files if file.is_file() and not any(map(is_hidden, file.relative_to(given).parts))]
    elif given.is_file():  # a name is itself before it is a pattern: brackets and braces are legal in names
        files = [given]
    else:
        files = []
        for pattern in expand_braces(path):
            # Path.glob takes no absolute pattern.
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
            if not found and pattern != path:
                raise InputError(f"dataset.path: {path}: no {pattern} there; complete the files or correct the braces")
            files += found
    # Links are not followed: what they are called tells the split, what they lead to (the hub's cache) may not.
    files = sorted({file.absolute() for file in files})
    if not files:
        raise InputError(f"dataset.path: {path}: no {what} there")
    return files, base or Path(os.path.commonpath([file.parent for file in files]))


def expand_braces(pattern: str) -> list[str]:
    """What ``{000..009}`` and ``{a,b}`` in a pattern stand for, in order; the numbers keep their leading zeros."""
    pieces = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    return ["".join(choice) for choice in itertools.product(*map(_choices, pieces, itertools.cycle((False, True))))]


def _choices(piece: str, in_braces: bool) -> list[str]:
    if not in_braces:
        return [piece]
    first, dots, last = piece.partition("..")
    if not dots:
        return piece.split(",")
    step = 1 if int(first) <= int(last) else -1
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + step, step)]


def is_hidden(part: str) -> bool:
    """Whether a part of a path is one that people do not mean: hidden, or an ornament of macOS archives."""
    return part.startswith(".") or part == "__MACOSX"


def split_of(name: str) -> str:
    """The split that a file belongs to: ``train``, ``validation``, ``test``, or "" where its name does not tell.

    Args:
        name: a relative or absolute path with "/". A word of the file name counts
            (``imagenet-train-0001.tar``, ``test_00.parquet``), else the name of its folder, also ``partial-train`` as
            the hub has it.
    """
    *folders, file = name.split("/")
    words = {SPLIT_NAMES[word] for word in re.split(r"[-_. ]+", file.lower()) if word in SPLIT_NAMES}
    if len(words) == 1:
        return words.pop()
    return SPLIT_NAMES.get(folders[-1].lower().removeprefix("partial-"), "") if folders else ""


def read_inside(file: str, inside: str) -> tuple[bytes, str]:
    """(content, problem) of a file of a collection; one of the two is empty unless the file is.

    Args:
        file: where it should be.
        inside: the directory, without links in its path, that neither ".." nor a link may lead out of.
    """
    root = inside.rstrip(os.sep) + os.sep
    folder, name = os.path.split(file)
    try:
        if not f"{_real(folder)}{os.sep}{name}".startswith(root):
            return b"", "leads out of the directory"
        status = os.lstat(file)
        if stat.S_ISLNK(status.st_mode):
            status = Path(file).stat()
            if not os.path.realpath(file).startswith(root):
                return b"", "leads out of the directory"
        if not stat.S_ISREG(status.st_mode):
            return b"", "is not a plain file"
        if status.st_size > MAX_BYTES:
            return b"", f"{status.st_size:,} bytes, more than {MAX_BYTES:,}"
        with open(file, "rb") as opened:
            return opened.read(), ""
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)  # most images lie in the folder of the one before


def text(name: str) -> str:
    """A file name as valid text, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "replace")
