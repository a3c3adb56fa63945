"""The lines of a list of images, CSV or TSV, as people's programs write it: checked, one at a time."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages.download.files import text
from stages.download.source import SPLIT_NAMES
from stages.errors import InputError

#: What is between two columns, and between two labels of an image.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SEPARATOR = "|"
LABEL_COLUMNS = ("labels", "label")


class Row(NamedTuple):
    """One image of a list: the number of its line, its path as it is written, its labels and split ("" for none)."""

    line: int
    path: str
    labels: list[str]
    split: str


def read_rows(list_file: Path) -> Iterator[Row]:
    """The images of a list, in its order.

    Raises:
        InputError: a line is not as it should be, or there is no column ``path``.
    """
    lines = _lines(list_file)
    line, header = next(lines, (1, []))
    places = _columns(list_file, [name.strip().lower() for name in header])
    for line, fields in lines:
        if len(fields) != len(header):
            raise _bad(list_file, line, f"{len(fields)} columns, the first line has {len(header)}")
        path, labels, split = (fields[place] if place is not None else "" for place in places)
        if not path:
            raise _bad(list_file, line, "no path")
        if split and split.strip().lower() not in SPLIT_NAMES:
            raise _bad(list_file, line, f"split {split[:40]!r}, expected train, validation, test or nothing")
        if not labels.isascii() and text(labels) != labels:
            raise _bad(list_file, line, f"labels {text(labels)[:40]!r} are no UTF-8; save the list as UTF-8")
        found = [label for label in map(str.strip, labels.split(SEPARATOR)) if label]
        yield Row(line, path, found, SPLIT_NAMES.get(split.strip().lower(), ""))


def _columns(list_file: Path, names: list[str]) -> tuple[int, int | None, int | None]:
    """Where path, labels and split are."""
    for twice in [name for name in ("path", *LABEL_COLUMNS, "split") if names.count(name) > 1]:
        raise InputError(f"{list_file}: two of its columns are called '{twice}'; keep one")
    if "path" not in names:
        listed = " ".join(text(", ".join(names)).split())[:200] or "none"  # a name may have several lines
        between = {",": "commas", "\t": "tabs"}[DELIMITERS[list_file.suffix.lower()]]
        raise InputError(f"{list_file}: has no column 'path' ({between} separate columns); its columns are {listed}")
    if set(LABEL_COLUMNS) <= set(names):
        raise InputError(f"{list_file}: has both a column 'labels' and a column 'label'; keep one")
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    return names.index("path"), label, names.index("split") if "split" in names else None


def _lines(list_file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of the lines that are not empty; one may go on over several where it is quoted."""
    # Names of files are bytes: those that are no UTF-8 are passed on as they are.
    with open(list_file, newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        delimiter = DELIMITERS[list_file.suffix.lower()]
        reader = csv.reader(opened, delimiter=delimiter, skipinitialspace=True, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise _bad(list_file, line, str(error)) from None
            if fields is None:
                return
            if any("\0" in field for field in fields):
                raise _bad(list_file, line, "a NUL character; save the list as UTF-8 text")
            if any(map(str.strip, fields)):
                yield line, fields


def _bad(list_file: Path, line: int, reason: str) -> InputError:
    return InputError(f"{list_file}, line {line}: {reason}")
