"""A map of the database: a place in the plane for each image, so that images with similar codes lie near each other.

Reads data/codes.h5, data/features.h5 and data/components.h5, writes data/map.parquet: places by t-SNE of the codes, and
the coarse component of each image. The page and the report show it.

A map of `map.images` images takes seconds for 2,000, about a minute for 20,000; of a larger database it shows random
ones.
"""

from pydantic import Field

from stages.params import Frozen, Seed


class Map(Frozen):
    """Section ``map``."""

    images: int = Field(gt=0)  # of the database, at most


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    seed: Seed
    map: Map
