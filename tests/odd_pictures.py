"""Pictures with the oddities of real collections, and what an adapter has to pass on to the stage that judges them."""

import io

import numpy as np
from PIL import Image


def jpeg(seed: int, mode: str = "RGB", **values: object) -> bytes:
    """A picture of 12x8 pixels, darker on its right, that `seed` determines."""
    pixels = np.random.default_rng(seed).integers(0, 20, (8, 12, 3), dtype=np.uint8)
    pixels[:, :6] += 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **values)
    return buffer.getvalue()


def turned() -> bytes:
    """One that a camera held upright has taken: EXIF says to turn it, and it is 8x12 then."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(3, exif=exif)


def bomb() -> bytes:
    """A PNG of 1 kB that claims 42 megapixels."""
    buffer = io.BytesIO()
    Image.new("1", (7000, 6000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 10_000
    return buffer.getvalue()


#: Those that can be decoded.
READABLE = {"grey": jpeg(1, "L"), "CMYK": jpeg(2, "CMYK"), "turned": turned()}
#: Those that cannot.
UNREADABLE = {"truncated": jpeg(4)[:-150], "empty": b"", "a text": b"this image is no longer available", "bomb": bomb()}

ODD = READABLE | UNREADABLE
