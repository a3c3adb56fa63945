"""The similarity matrix as a row factor and an affine form: exact, and never n x n.

Source: UHSCM (arXiv 2209.11475), section 3.2. C_ij = cos(D'_i, D'_j) = f_i . f_j with the unit rows f of D', so
Q = scale * F F^T + offset has rank m' + 1 at most.
"""

from dataclasses import dataclass

import numpy as np

from stages.artifacts import SIMILARITY, Provenance, damaged
from stages.tables import read_matrix, require_unit

#: scale and offset of each form of the matrix.
FORMS = {"signed": (2.0, -1.0), "cosine": (1.0, 0.0)}

#: Rows scaled at a time.
CHUNK = 65_536


@dataclass(frozen=True)
class SimilarityMatrix:
    """Q = scale * factor @ factor.T + offset, for unit rows `factor` (n, m')."""

    factor: np.ndarray
    scale: float
    offset: float

    def block(self, rows: np.ndarray | slice, columns: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The exact block Q[rows, columns]."""
        return self.scale * (self.factor[rows] @ self.factor[columns].T) + self.offset


def similarity_matrix(rows: np.ndarray, form: str) -> SimilarityMatrix:
    """The matrix of concept distributions (n, m'), or of whatever else images are compared by.

    >>> similarity_matrix(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), "signed").block([0])
    array([[ 1., -1.,  1.]])
    """
    scale, offset = FORMS[form]
    factor = np.empty_like(rows)
    for start in range(0, len(rows), CHUNK):  # the norm makes a copy of what it is given
        some = slice(start, start + CHUNK)
        np.divide(rows[some], np.linalg.norm(rows[some], axis=1, keepdims=True), out=factor[some])
    return SimilarityMatrix(factor, scale, offset)


def read_similarity() -> tuple[SimilarityMatrix, np.ndarray, Provenance]:
    """Read ``data/similarity.parquet``: the matrix, the image ids of its rows (n,), its provenance.

    Raises:
        InputError: it is missing, unreadable, or of another schema.
    """
    ids, factor, provenance, extra = read_matrix(SIMILARITY, "factor")
    if not {"scale", "offset"} <= extra.keys():
        raise damaged(SIMILARITY, "lacks scale and offset in its metadata")
    if factor.shape[1]:  # 0 where there are no concepts
        require_unit(factor, "factor", SIMILARITY)
    return SimilarityMatrix(factor, extra["scale"], extra["offset"]), ids, provenance
