"""Small pictures as data URIs, all of one size, so that the page does not grow with the images."""

import base64
import io
from collections.abc import Iterable

from stages.evaluate.pictures import thumbnails
from stages.images import ImageShards

#: Edge of a picture in pixels.
SIZE = 96


def data_uris(shards: ImageShards, ids: Iterable[int]) -> dict[int, str]:
    """Images by id, cropped to a square of :data:`SIZE` pixels, as WebP in data URIs.

    Raises:
        InputError: an image cannot be decoded.
    """
    found = {}
    for index, image in thumbnails(shards, ids, SIZE).items():
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80, method=4)
        found[index] = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found
