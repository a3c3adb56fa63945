"""The samples of a tar shard: consecutive files that differ in their ending alone, and the labels in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.download.archives import open_members
from stages.download.files import EXTENSIONS, is_hidden, text
from stages.download.remote import RemoteFile
from stages.download.source import MAX_BYTES
from stages.errors import InputError

#: Where a ``.json`` has the label.
LABEL_KEYS = ("labels", "label", "cls")

#: A label: the number of a class, or its name.
Label = int | str


@dataclass
class Sample:
    """One sample as it is read.

    Attributes:
        shard: the file that it is in.
        key: its name, the path of its files up to the first dot of the last part.
        endings: what follows the dot, of each file.
        image: name of the file that is its image, the first one; "" for none. `data`: the content.
        n_images: how many files are images.
        label_files: contents of ``cls`` and ``json``.
    """

    shard: Path | RemoteFile
    key: str
    endings: list[str] = field(default_factory=list)
    image: str = ""
    data: bytes = b""
    n_images: int = 0
    label_files: dict[str, bytes] = field(default_factory=dict)

    def refuse(self, reason: str) -> InputError:
        """The error for a sample that is not as it should be."""
        return InputError(f"{self.shard}, sample '{text(self.key)}': {reason}; correct the shard")


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


def read_samples(shard: Path | RemoteFile, start: int = 0, pixels: bool = True) -> Iterator[Sample]:
    """The samples of a shard from number `start` on, without reading those before, or any images unless `pixels`.

    Raises:
        InputError: the shard is damaged or hostile.
    """
    sample, number = Sample(shard, ""), -1
    for name, stream in open_members(shard, _Everything(), MAX_BYTES):
        folder, _, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not ending or any(map(is_hidden, name.split("/"))):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != sample.key:
            if number >= start:
                yield sample
            sample, number = Sample(shard, key), number + 1
        sample.endings.append(ending)
        if f".{ending.lower()}" in EXTENSIONS:
            sample.n_images += 1
            if not sample.image:
                sample.image, sample.data = name, stream.read() if pixels and number >= start else b""
        elif ending in ("cls", "json") and number >= start:
            sample.label_files[ending] = stream.read()
    if number >= start:
        yield sample


def labels_of(sample: Sample) -> list[Label]:
    """The labels of a sample, without -1, which is no label; those of a ``.cls`` before those of a ``.json``.

    Raises:
        InputError: they are something else.
    """
    if (content := sample.label_files.get("cls")) is not None:
        try:
            values: Any = [int(value) for value in re.split(r"[\s,]+", content.decode("ascii").strip()) if value]
        except ValueError:
            raise sample.refuse(f".cls is {content[:40]!r}, expected integers") from None
    else:
        values = _json_label(sample)
    values = [value for value in (values if isinstance(values, list) else [values]) if value not in (None, "", -1)]
    for value in values:
        if not (_is_text(value) if isinstance(value, str) else type(value) is int and 0 <= value < 2**31):
            raise sample.refuse(f"label {str(value)[:40]!r}, expected an integer >= 0 or a name")
    return values


def _json_label(sample: Sample) -> Any:
    try:
        content = json.loads(sample.label_files.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise sample.refuse(f".json cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise sample.refuse(f".json is a {type(content).__name__}, expected an object with a key 'label'")
    return next((content[key] for key in LABEL_KEYS if key in content), None)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character
        return False
    return True
