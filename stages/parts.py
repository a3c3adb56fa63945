"""Files of arrays in which unfinished work is kept, part by part; each has the sums that tell whether it is whole."""

import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from stages.artifacts import replacing
from stages.errors import InputError


def content_of(**arrays: np.ndarray) -> bytes:
    """What the file of some arrays has in it."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def write_part(part: Path, **arrays: np.ndarray) -> None:
    """Write arrays, atomically."""
    with replacing(part) as temporary:
        temporary.write_bytes(content_of(**arrays))


def read_part(part: Path, *names: str) -> list[np.ndarray]:
    """The arrays of a part, by their names.

    Raises:
        InputError: it is damaged; it has been removed, so that the same command makes it again.
    """
    try:
        with np.load(part) as arrays:
            return [arrays[name] for name in names]
    except (BadZipFile, ValueError, EOFError, KeyError) as error:
        part.unlink()
        reason = " ".join(str(error).split())
        raise InputError(f"{part}: unfinished work, damaged ({reason}); it was removed, run it again") from None
