"""HDF5 files that may be damaged: their texts, which the library reads for ever out of some of them.

Texts of any length lie in a global heap of the file. HDF5 (2.0) walks from one object of a heap to the next by their
lengths, and a damaged length can keep it at one place. So artifacts have texts of fixed length, which lie beside their
names, and the heaps of files from elsewhere are walked here before.
"""

import mmap
import struct
from pathlib import Path

import h5py
import numpy as np

#: How a global heap begins: its signature and its version.
HEAP = b"GCOL\x01"
#: Bytes before the first object of a heap, and before the content of an object; the least that a heap has in all.
HEADER, LEAST = 16, 4096


def write_text(file: h5py.File, name: str, text: str) -> None:
    """Write an attribute, at most 64 kB."""
    content = text.encode()
    file.attrs.create(name, np.array(content, h5py.string_dtype("utf-8", max(1, len(content)))))


def read_text(file: h5py.File, name: str) -> str | None:
    """An attribute as :func:`write_text` wrote it; None where there is none of this kind.

    Raises:
        ValueError: it is no UTF-8, or the file is damaged there.
    """
    try:
        if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
            return None
        return bytes(file.attrs[name]).decode()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def require_sound_heaps(path: Path) -> None:
    """Refuse a file that has a global heap whose objects do not lie one behind the other.

    Raises:
        ValueError: it has one, or lengths of other than 8 bytes, which no heap is looked at with.
    """
    with h5py.File(path) as file:
        if file.id.get_create_plist().get_sizes()[1] != 8:
            raise ValueError("has lengths of other than 8 bytes")
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            if start + HEADER <= len(content):
                size = struct.unpack_from("<Q", content, start + 8)[0]
                # Of another size the library refuses a heap by itself, and gigabytes of numbers may look like one.
                if LEAST <= size <= len(content) - start:
                    _require_sound(content, start, start + size)
            start = content.find(HEAP, start + 1)


def _require_sound(content: mmap.mmap, start: int, end: int) -> None:
    place = start + HEADER
    while place + HEADER <= end:
        index, length = struct.unpack_from("<H6xQ", content, place)
        step = HEADER + -(-length // 8) * 8 if index else length  # that of free space counts its own header
        if not 0 < step <= end - place:
            raise ValueError(f"has a damaged heap of texts at byte {start:,}")
        place += step
