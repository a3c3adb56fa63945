"""Small distinct images, encoded."""

import io

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 8, kind: str = "PNG") -> bytes:
    """A square of noise that `seed` determines."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
