"""The concept distributions of the training images, as later stages read them."""

import numpy as np

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, Provenance, damaged
from stages.features import Features
from stages.tables import read_matrix

#: What rounding may take from the sum of a distribution, or add to it.
TOLERANCE = 1e-3


def read_distribution(features: Features) -> tuple[np.ndarray, Provenance]:
    """Distributions (n, m') over the concepts of the training images of `features`, in their order; m' may be 0.

    Raises:
        InputError: they are missing, damaged, or of other images or another model.
    """
    ids, distribution, made_from, _ = read_matrix(CONCEPT_DISTRIBUTION, "distribution")
    made_from.require_same(features.provenance, CONCEPT_DISTRIBUTION, FEATURES)
    if not np.array_equal(ids, features.train_id):
        raise damaged(CONCEPT_DISTRIBUTION, f"has other training images than {FEATURES}")
    if distribution.shape[1] and not np.allclose(distribution.sum(axis=1, dtype=np.float64), 1, atol=TOLERANCE):
        raise damaged(CONCEPT_DISTRIBUTION, "has a distribution that does not add up to 1")
    return distribution, made_from
