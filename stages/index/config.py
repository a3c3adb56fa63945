"""The codes of the database as a faiss index that is searched from disk, with ids, names, labels and thumbnails.

Reads data/codes.h5, data/images and data/dataset.json, writes data/index. `python -m stages search` searches it.

index.kind: flat compares a query with every code; ivf with those of the nearest groups, and may miss some; multihash
looks codes up by their parts, which pays for radii of a few bits; auto is flat up to ten million codes, else ivf.

With --add DIR or --remove ID it changes the index that is there instead, without training or encoding anything again.
"""

from typing import Literal

from pydantic import Field

from stages.params import Frozen


class Index(Frozen):
    """Section ``index``."""

    kind: Literal["auto", "flat", "ivf", "multihash"]
    lists: int | None = Field(gt=0)  # groups of an ivf; None: 4 * sqrt(n)
    probes: int = Field(gt=0)  # groups of an ivf that a query looks into
    thumbnail: int = Field(ge=16, le=512)  # pixels of the longer side


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    index: Index
