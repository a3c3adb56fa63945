"""Unfinished work, part by part; each part has the sums that tell whether it is whole."""

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stages.artifacts import replacing, sha256
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
        OSError: it cannot be read.
    """
    try:
        with np.load(part) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # whatever a damaged archive may lead to
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a place before the beginning gives
            error.filename = error.filename or str(part)
            raise
        raise removed(part, error) from None


def removed(part: Path, reason: object) -> InputError:
    """The error for a damaged part, which is removed, so that the same command makes it again."""
    part.unlink(missing_ok=True)
    told = " ".join(str(reason).split())
    return InputError(f"{part}: unfinished work, damaged ({told}); it was removed, run it again")


@contextmanager
def sealing(part: Path) -> Iterator[Path]:
    """Like :func:`stages.artifacts.replacing` for a part whose format has no sums: its SHA-256 lies beside it."""
    with replacing(part) as temporary:
        yield temporary
        digest = sha256(temporary)
    with replacing(_seal(part)) as temporary:
        temporary.write_text(digest)


def is_whole(part: Path) -> bool:
    """Whether a sealed part is there and as it was written; what is not whole is removed.

    Raises:
        OSError: it cannot be read.
    """
    try:
        if _seal(part).read_bytes() == sha256(part).encode():
            return True
    except FileNotFoundError:
        pass
    for file in (_seal(part), part):
        file.unlink(missing_ok=True)
    return False


def _seal(part: Path) -> Path:
    return part.with_name(f"{part.name}.sha256")
