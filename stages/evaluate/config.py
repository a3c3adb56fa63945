"""Retrieval metrics, curves and pictures of the hash codes.

Reads data/codes.h5, the labels, the concepts, the components and the baselines. Writes reports/metrics.json,
reports/plots/*.csv, reports/*.png and, with the average precision of each query, reports/query_precision.parquet. mAP
is reported at the cut-offs of the data set's protocol and over the whole database, in the stable order that papers use
and in expectation over random order within ties. Without labels there are no metrics but those of the codes themselves.
"""

from typing import Annotated

from pydantic import Field

from stages.params import Frozen


class Evaluate(Frozen):
    """Section ``evaluate``."""

    precision_at: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False)]  # the N of precision@N


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    evaluate: Evaluate
