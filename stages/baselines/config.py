"""Metrics of other hashing methods on the same features (LSH, PCA signs, SH, ITQ, spherical), through the same code.

The cosine of the features and of the mined concept distributions, both real-valued, are upper references. Everything is
fitted on the training images alone. Reads data/features.h5, data/concepts.parquet and the labels; writes
reports/baselines.json, the average precision of each query (reports/baselines_query_precision.parquet) and the curves
reports/plots/baselines_*.csv. Without labels there is nothing to measure.
"""

from pydantic import Field

from stages.evaluate.config import Evaluate
from stages.params import Bits, Frozen


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    bits: Bits
    seed: int = Field(ge=0)
    evaluate: Evaluate
