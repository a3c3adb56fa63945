"""Features from pixels, or, of a collection of features, from what somebody else computed."""

from stages.artifacts import IMAGES
from stages.clip import read_clip_config
from stages.errors import InputError
from stages.extract.config import Params
from stages.images import ImageShards


def run(params: Params) -> None:
    """Read ``data/images`` and ``models/clip``, write ``data/features.h5``.

    Raises:
        InputError: an input is missing or damaged, or the model does not belong to the data set.
    """
    shards, clip = ImageShards(), read_clip_config()
    if shards.feature_dim is not None:
        from stages.extract.embeddings import convert

        convert(shards, clip, params.extract)
    elif clip.model is None:
        raise InputError(f"clip.model: null leaves the images of {IMAGES} without a model that encodes them; name one")
    elif params.extract.engine == "ray":
        from stages.extract import ray_engine

        ray_engine.extract(shards, params)
    else:
        from stages.extract.pixels import extract  # PyTorch, which a conversion needs not

        extract(shards, params)
