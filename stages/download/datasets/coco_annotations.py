"""The annotation files of MS-COCO: JSON of up to 470 MB, read as a stream."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ijson

from stages.download.archives import Member
from stages.errors import InputError

PIECE = 2**18


@dataclass(frozen=True)
class Annotations:
    """What one annotation file says.

    Attributes:
        categories: names, in the order of their ids.
        labels: file name of each image to indices into `categories`, ascending; () for none.
        strangers: number of images that have annotations and are not listed.
    """

    categories: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    strangers: int


def read_annotations(stream: Member, where: str) -> Annotations:
    """Read ``instances_*.json``: which categories the objects of each image have, crowds included.

    Args:
        stream: the JSON.
        where: what to call it in messages.

    Raises:
        InputError: it is damaged, or ids are not unique.
    """
    files: dict[int, str] = {}
    names: dict[int, str] = {}
    found: dict[int, set[int]] = defaultdict(set)
    try:
        for section, entry in _entries(stream):
            if section == "images":
                _put(files, entry["id"], entry["file_name"], "image")
            elif section == "annotations":
                found[entry["image_id"]].add(entry["category_id"])
            elif section == "categories":
                _put(names, entry["id"], entry["name"], "category")
        index_of = {number: index for index, number in enumerate(sorted(names))}
        labels = {
            file: tuple(sorted(index_of[category] for category in found.get(number, ())))
            for number, file in files.items()
        }
    except (ijson.JSONError, KeyError, TypeError, ValueError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(where, " ".join(reason.split())[:150]) from None
    if not files or not names or len(labels) < len(files):
        raise _damaged(where, "no images, no categories, or two images of the same name")
    return Annotations(tuple(names[number] for number in sorted(names)), labels, len(found.keys() - files.keys()))


def _put(table: dict[int, str], number: Any, name: Any, what: str) -> None:
    if type(number) is not int or not isinstance(name, str):
        raise TypeError(f"{what} {number!r} is called {name!r}")
    if number in table:
        raise ValueError(f"{what} {number} occurs twice")
    table[number] = name


def _entries(stream: Member) -> Iterator[tuple[str, dict[str, Any]]]:
    """(section, its own numbers and strings) of every object in the lists that the file consists of.

    Nearly all of the file are the outlines of objects, which are deeper and passed over.
    """
    depth, section, key, entry = 0, "", "", {}
    for event, value in ijson.basic_parse(stream, use_float=True, buf_size=PIECE):
        if depth > 3 and event == "number":
            continue
        if event in ("start_map", "start_array"):
            depth += 1
        elif event in ("end_map", "end_array"):
            depth -= 1
            if depth == 2 and event == "end_map":
                yield section, entry
                entry = {}
        elif event == "map_key" and depth == 1:
            section = value
        elif event == "map_key":
            key = value
        elif depth == 3:
            entry[key] = value


def _damaged(where: str, reason: str) -> InputError:
    return InputError(f"{where}: damaged annotations ({reason}); get the official archive")
