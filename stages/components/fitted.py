"""The components of ``data/components.h5`` as a model, to which any features belong: those of training and new ones."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stages.artifacts import COMPONENTS, Provenance, damaged
from stages.components.artifact import read_components
from stages.components.density import Mixture
from stages.components.mixture import Assignment, assign
from stages.errors import InputError


@dataclass(frozen=True)
class FittedComponents:
    """Fine and coarse components of image features (n, d).

    Attributes:
        mixture: of the features reduced by PCA with mean `pca_mean` (d,) and axes `pca_axes` (p, d); assignment: how
            images belong to it.
        coarse_labels: int (m1,), the coarse component of each fine one.
    """

    mixture: Mixture
    assignment: Assignment
    pca_mean: np.ndarray
    pca_axes: np.ndarray
    coarse_labels: np.ndarray

    @property
    def n_fine(self) -> int:
        return len(self.coarse_labels)

    @property
    def n_coarse(self) -> int:
        return int(self.coarse_labels.max()) + 1

    def fine(self, features: np.ndarray) -> np.ndarray:
        """Responsibilities (n, m1) of the fine components."""
        reduced = (features.astype(np.float64) - self.pca_mean) @ self.pca_axes.T
        return assign(reduced, self.mixture, self.assignment)

    def coarse(self, fine: np.ndarray) -> np.ndarray:
        """Responsibilities (n, m2) of the coarse components: the sum over their fine ones."""
        return fine @ np.eye(self.n_coarse)[self.coarse_labels]


def read_fitted(like: Provenance, path: Path) -> FittedComponents:
    """Read ``data/components.h5``.

    Args:
        like, path: an artifact whose data set and model it must have.

    Raises:
        InputError: it is missing, damaged, or made with another data set or model.
    """
    components = read_components()
    components.provenance.require_same(like, COMPONENTS, path)
    try:
        with h5py.File(COMPONENTS) as file:
            means, variances, pca_mean, pca_axes = (
                file[name][:].astype(np.float64) for name in ("means", "variances", "pca/mean", "pca/components")
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(COMPONENTS, error) from None
    shapes = (means.shape, (*means.shape, means.shape[-1]))  # full covariances are matrices
    if variances.shape not in shapes or means.shape != (len(components.weights), len(pca_axes)) or (
        pca_axes.shape[1:] != pca_mean.shape
    ):
        raise damaged(COMPONENTS, "has means, variances and PCA of shapes that do not fit")
    if not all(np.isfinite(array).all() for array in (means, variances, pca_mean)) or not np.allclose(
        pca_axes @ pca_axes.T, np.eye(len(pca_axes)), atol=1e-3
    ):
        raise damaged(COMPONENTS, "has means or variances that are no numbers, or axes that are not orthonormal")
    # Single precision may have lost a weight that was all but 0.
    weights = np.maximum(components.weights.astype(np.float64), np.finfo(np.float32).tiny)
    found = FittedComponents(
        Mixture(weights, means, variances), components.options.assignment, pca_mean, pca_axes,
        components.coarse_labels,
    )  # fmt: skip
    try:
        found.fine(pca_mean[None])
    except InputError:  # that tells of a mixture that cannot be fitted; this one was
        raise damaged(COMPONENTS, "has means and variances that are not those of a mixture") from None
    return found
