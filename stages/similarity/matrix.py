"""The similarity matrix as a row factor and an affine form: exact, and never n x n.

Source: UHSCM (arXiv 2209.11475), section 3.2. C_ij = cos(D'_i, D'_j) = f_i . f_j with the unit rows f of D', so
Q = scale * F F^T + offset has rank m' + 1 at most.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.artifacts import SIMILARITY, Provenance, damaged
from stages.tables import matrix, read_table

#: scale and offset of each form of the matrix.
FORMS = {"signed": (2.0, -1.0), "cosine": (1.0, 0.0)}


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
    """The matrix of concept distributions (n, m'), or of whatever else images are compared by."""
    scale, offset = FORMS[form]
    return SimilarityMatrix(rows / np.linalg.norm(rows, axis=1, keepdims=True), scale, offset)


def nearest_neighbours(similarity: SimilarityMatrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar other rows of each row, exact.

    Returns:
        rows: int64 (n, k), most similar first; similarities: float32 (n, k), values of Q. k is at most n - 1, and 0
            where there are no concepts.
    """
    if not similarity.factor.shape[1]:
        none = np.empty((len(similarity.factor), 0))
        return none.astype(np.int64), none.astype(np.float32)
    import faiss  # not at the top: training reads this module, and faiss beside torch is two OpenMP runtimes on macOS

    factor = np.ascontiguousarray(similarity.factor, dtype=np.float32)
    k = min(k, len(factor) - 1)
    index = faiss.IndexFlatIP(factor.shape[1])
    index.add(factor)
    cosines, rows = index.search(factor, k + 1)
    # Equal images tie with the row itself, which may then be anywhere in the list, or beyond its end.
    own = rows == np.arange(len(factor))[:, None]
    own[~own.any(axis=1), -1] = True
    others = np.nonzero(~own.reshape(-1))[0]
    shape = (len(factor), k)
    chosen = rows.reshape(-1)[others].reshape(shape), cosines.reshape(-1)[others].reshape(shape)
    return chosen[0], (similarity.scale * chosen[1] + similarity.offset).astype(np.float32)


def read_similarity() -> tuple[SimilarityMatrix, np.ndarray, Provenance]:
    """Read ``data/similarity.parquet``: the matrix, the image ids of its rows (n,), its provenance.

    Raises:
        InputError: it is missing, unreadable, or of another schema.
    """
    table, provenance, extra = read_table(SIMILARITY, {"id": pa.int64(), "factor": None})
    if not {"scale", "offset"} <= extra.keys():
        raise damaged(SIMILARITY, "lacks scale and offset in its metadata")
    similarity = SimilarityMatrix(matrix(table, "factor"), extra["scale"], extra["offset"])
    return similarity, table["id"].to_numpy(), provenance
