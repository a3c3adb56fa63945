"""A list of images, CSV or TSV: a path on each line, relative to the list, and what is known of the image."""

import hashlib
import os
import posixpath
import re
from array import array
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from stages.artifacts import sha256
from stages.download.config import DatasetOptions, required_path
from stages.download.datasets.csv_rows import DELIMITERS, SEPARATOR, Row, read_rows
from stages.download.files import read_inside, text
from stages.download.source import Record, Source, file_states
from stages.errors import InputError


def csv_list(options: DatasetOptions) -> Source:
    """The images of a list, in its order; its first line names the columns, of which all but these are ignored.

    ``path`` is relative to the list's directory, and does not lead out of it. ``labels`` (or ``label``) has any number
    of labels with "|" between them, in alphabetical order or, where all are integers, in theirs; -1 is no label.
    ``split`` is train, validation or test. The text is UTF-8.

    Raises:
        InputError: there is no such list, or it is damaged, or names an image twice; names the line.
    """
    list_file = Path(required_path(options))
    if list_file.suffix.lower() not in DELIMITERS:
        raise InputError(f"dataset.path: {list_file}: expected a list, .csv (',' between columns) or .tsv (tabs)")
    if not list_file.is_file():
        raise InputError(f"dataset.path: {list_file}: no such file")
    size, labels = _scan(list_file)
    labels.discard("-1")
    if all(re.fullmatch("[0-9]{1,9}", label) for label in labels):
        class_names = tuple(map(str, sorted(set(map(int, labels)))))
    else:
        class_names = tuple(sorted(labels))
    index_of = {name: index for index, name in enumerate(class_names)}
    index_of |= {label: index_of[str(int(label))] for label in labels - index_of.keys()}  # 07 is 7
    return Source(
        name=text(list_file.stem),
        class_names=class_names,
        licence="unknown",
        source=str(list_file),
        size=size,
        records=partial(_records, list_file, index_of),
        digests={text(list_file.name): sha256(list_file)},
        identity=file_states(list_file.parent / row.path for row in read_rows(list_file)),
    )


def _scan(list_file: Path) -> tuple[int, set[str]]:
    """Number of images and the labels that occur; 8 bytes an image are kept to find those that are there twice."""
    labels: set[str] = set()
    hashes = array("Q")
    for row in read_rows(list_file):
        labels.update(row.labels)
        hashes.append(_hash(row))
    if not hashes:
        raise InputError(f"{list_file}: lists no image")
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first_line: dict[str, int] = {}
    for row in read_rows(list_file) if suspects else ():
        if _hash(row) in suspects:
            path = posixpath.normpath(row.path)
            if path in first_line:
                raise InputError(
                    f"{list_file}: lines {first_line[path]} and {row.line} both list {text(path)}; delete one, or join "
                    f"their labels with '{SEPARATOR}'"
                )
            first_line[path] = row.line
    return len(hashes), labels


def _hash(row: Row) -> int:
    path = os.fsencode(posixpath.normpath(row.path))
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")


def _records(list_file: Path, index_of: dict[str, int], start: int) -> Iterator[Record]:
    inside = os.path.realpath(list_file.parent)
    for row in islice(read_rows(list_file), start, None):
        data, problem = read_inside(str(list_file.parent / row.path), inside)
        labels = tuple(index_of[label] for label in row.labels if label in index_of)
        origin = f"{text(list_file.name)}, line {row.line}: {text(row.path)}"
        yield Record(data, text(row.path), labels, row.split, problem, origin)
