"""Small stand-ins for published files: the digest that counts becomes that of the file that a test has written."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.download.config import DatasetOptions
from stages.download.fetch import Published
from stages.download.source import Record, Source
from stages.errors import InputError


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def republished(file: Published, path: Path) -> Published:
    """`file` as if `path` were what is officially there."""
    return replace(file, digest=f"sha256:{sha256(path)}")


def options(name: str, **values: Any) -> DatasetOptions:
    """Options of a data set; `mirror`: the directory that has its files."""
    if mirror := values.pop("mirror", None):
        values["mirrors"] = (mirror.as_uri(),)
    return DatasetOptions(name=name, **values)


def facts(record: Record) -> tuple[str, tuple[int, ...], str, str]:
    return record.path, record.labels, record.split, record.problem


def check_resumes(source: Source, starts: tuple[int, ...]) -> list[Record]:
    """From any start come the rest of all records, every time the same; returns all of them.

    The source is one that was sent to another process.
    """
    sent = pickle.loads(pickle.dumps(source))
    records = list(source.records(0))
    assert len(records) == source.size
    for start in (*starts, len(records)):
        assert list(sent.records(start)) == records[start:], start
    return records


def one_line(use: Callable[[], object], *words: str) -> str:
    """The message of the InputError that `use` ends with: one line that has all `words`."""
    with pytest.raises(InputError) as caught:
        use()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message
