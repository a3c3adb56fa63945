"""Gzipped files of the IDX format, in which MNIST and its likes are published; read as a stream."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.errors import InputError

#: Rows that are read at a time.
BLOCK = 1000


def read_idx(path: Path, shape: tuple[int, ...], start: int = 0) -> Iterator[np.ndarray]:
    """The rows of a file of unsigned bytes, from number `start` on, at most BLOCK at a time.

    Args:
        path: the file.
        shape: what it has to hold: the number of rows, and their shape.
        start: rows to pass over.

    Returns:
        uint8 arrays (n, \\*shape[1:]).

    Raises:
        InputError: it is damaged, or has another kind, number or shape of rows.
    """
    # Two zero bytes, 8 for unsigned bytes and the number of dimensions; then their sizes, big-endian.
    header = np.array([0x800 + len(shape), *shape], dtype=">u4")
    row = math.prod(shape[1:])
    try:
        with gzip.open(path) as file:
            found = file.read(header.nbytes)
            if found != header.tobytes():
                numbers = np.frombuffer(found[: len(found) // 4 * 4], dtype=">u4")
                raise damaged(path, f"begins with {numbers.tolist()}, expected {header.tolist()}")
            file.seek(header.nbytes + start * row)
            for first in range(start, shape[0], BLOCK):
                wanted = min(BLOCK, shape[0] - first)
                data = file.read(wanted * row)
                if len(data) < wanted * row:
                    raise damaged(path, f"ends after {first + len(data) // row:,} of {shape[0]:,} rows")
                yield np.frombuffer(data, dtype=np.uint8).reshape(wanted, *shape[1:])
            if file.read(1):  # only the end of the stream has its checksum
                raise damaged(path, f"goes on after {shape[0]:,} rows")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, f"is truncated or corrupt ({error})") from None


def damaged(path: Path, reason: str) -> InputError:
    """The error for a file that is not as it was published."""
    return InputError(f"{path}: {reason}; get the official file")
