"""Small archives in exactly the format of the official ones of MS-COCO."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Ids and names of categories, not in their order; official ids have gaps as well.
CATEGORIES = {90: "toothbrush", 1: "person", 13: "stop sign", 2: "bicycle"}


def file_name(year: str, kind: str, number: int) -> str:
    """What the official archives of that year call an image."""
    return f"COCO_{kind}2014_{number:012d}.jpg" if year == "2014" else f"{number:012d}.jpg"


def annotations(year: str, kind: str, images: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """What an annotation file says: images by id, and the category ids of their objects. Every third is a crowd."""
    objects = [(number, category) for number, found in images.items() for category in found]
    return {
        "info": {"description": f"COCO {year} Dataset", "year": int(year), "version": "1.0", "id": 5, "image_id": 1},
        "images": [
            {"license": 3, "file_name": file_name(year, kind, number), "height": 480, "width": 640, "id": number,
             "date_captured": "2013-11-14 11:18:45",
             "flickr_url": "http:\\/\\/farm9.staticflickr.com\\/8186\\/8119368305_4e622c8349_z.jpg"}
            for number in images
        ],
        "licenses": [{"url": "http:\\/\\/creativecommons.org\\/licenses\\/by-nc-sa\\/2.0\\/", "id": 1, "name": "\xa9"}],
        "annotations": [
            {"segmentation": {"counts": [272, 2, 4], "size": [480, 640], "category_id": 77} if index % 3 == 2
             else [[239.97, 260.24, 222.04, 270.49], [1e2, 1.5, 0, 7]],
             "area": 2765.1486500000005, "iscrowd": int(index % 3 == 2), "image_id": number,
             "bbox": [199.84, 200.46, 77.71, 70.88], "category_id": category, "id": 900100000000 + index}
            for index, (number, category) in enumerate(objects)
        ],
        "categories": [
            {"supercategory": "thing", "id": number, "name": name} for number, name in CATEGORIES.items()
        ],
    }  # fmt: skip


def write_annotations(path: Path, year: str, content: Mapping[str, str | dict[str, Any]]) -> Path:
    """The annotations of both splits, among files that nobody asks for. `content`: by split, as text or to be coded."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind, said in content.items():
            text = said if isinstance(said, str) else json.dumps(said).replace("\\\\", "\\")
            archive.writestr(f"annotations/instances_{kind}{year}.json", text)
        for kind in ("train", "val"):
            archive.writestr(f"annotations/captions_{kind}{year}.json", "{}")
    return path


def write_images(path: Path, year: str, kind: str, images: Mapping[int, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{kind}{year}/", b"")
        for number, data in images.items():
            archive.writestr(f"{kind}{year}/{file_name(year, kind, number)}", data)
    return path
