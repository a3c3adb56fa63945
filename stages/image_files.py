"""Image files that somebody names: read within bounds, whatever they are."""

from pathlib import Path

from PIL import Image

from stages.download.files import read_inside, text
from stages.errors import InputError
from stages.images import decode


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB, upright, within the bounds of :func:`stages.images.decode`.

    Raises:
        InputError: it is no plain file, cannot be read, or is no image, or a bomb.
    """
    shown = text(str(path))
    if not path.exists():
        raise InputError(f"{shown}: not found; --image takes the path of an image file")
    data, problem = read_bytes(path)
    if problem:
        raise InputError(f"{shown}: {problem}; --image takes the path of an image file")
    try:
        return decode(data)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{shown}: {reason}; --image takes the path of an image file") from None


def read_bytes(path: Path) -> tuple[bytes, str]:
    """(content, problem) of a plain file of bounded size, as of :func:`stages.download.files.read_inside`."""
    place = path.resolve()
    return read_inside(str(place), str(place.parent))
