"""The semantic similarity matrix of the training images (UHSCM 5).

Reads data/concept_distribution.parquet (or, at similarity.source: features, the image features instead of concepts) and
data/features.h5, writes data/similarity.parquet: one row a training image with its exact row factor (any block of the
matrix comes back from it) and its nearest neighbours, to look at.
"""

from typing import Literal

from pydantic import Field

from stages.params import Frozen


class Similarity(Frozen):
    """Section ``similarity``."""

    source: Literal["concepts", "features"]  # what images are compared by; features: UHSCM's ablation without concepts
    form: Literal["signed", "cosine"]  # 2C - 1 as in the released code, or C itself
    neighbours: int = Field(gt=0)  # most similar images listed per image
    layout: Literal["factor", "dense"]  # dense also writes each whole row: n x n


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    similarity: Similarity
