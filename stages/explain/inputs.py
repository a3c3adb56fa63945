"""What features mean, read from the artifacts of ``mine`` and ``components``: concept shares and responsibilities."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa

from stages.artifacts import COMPONENTS, CONCEPTS, Provenance, damaged
from stages.components.artifact import read_components
from stages.components.density import Mixture
from stages.components.mixture import Assignment, assign
from stages.mine.concepts import mine_distribution
from stages.mine.leakage import label_matches
from stages.scenes.catalogue import GROUPS, group_of
from stages.tables import matrix, read_table


@dataclass(frozen=True)
class Semantics:
    """Concepts and components of any image features (n, d), those of training as well as new ones.

    Attributes:
        concepts: names of the m kept concepts, none where there is no text side; texts: (m, d); tau: temperature.
        mixture: of the features reduced by PCA with mean `pca_mean` (d,) and axes `pca_axes` (p, d); assignment: how
            images belong to it.
        coarse_labels: int (m1,), the coarse component of each fine one.
    """

    concepts: list[str]
    texts: np.ndarray
    tau: float
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

    def shares(self, features: np.ndarray) -> np.ndarray:
        """Concept distributions (n, m) (UHSCM, steps 2 and 4)."""
        if not self.concepts:
            return np.empty((len(features), 0), np.float32)
        return mine_distribution(features, self.texts, self.tau)

    def fine(self, features: np.ndarray) -> np.ndarray:
        """Responsibilities (n, m1) of the fine components."""
        reduced = (features.astype(np.float64) - self.pca_mean) @ self.pca_axes.T
        return assign(reduced, self.mixture, self.assignment)

    def coarse(self, fine: np.ndarray) -> np.ndarray:
        """Responsibilities (n, m2) of the coarse components: the sum over their fine ones."""
        return fine @ np.eye(self.n_coarse)[self.coarse_labels]


def read_semantics(like: Provenance, path: Path) -> Semantics:
    """Read ``data/concepts.parquet`` and ``data/components.h5``.

    Args:
        like, path: an artifact whose data set and model they must have.

    Raises:
        InputError: one is missing, damaged, or made with another data set or model.
    """
    table, mined, _ = read_table(CONCEPTS, {"concept": pa.string(), "kept": pa.bool_(), "text_feature": None})
    mined.require_same(like, CONCEPTS, path)
    kept = table["kept"].to_numpy(zero_copy_only=False)
    names = [name for name, keep in zip(table["concept"].to_pylist(), kept, strict=True) if keep]

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
    # Single precision may have lost a weight that was all but 0.
    weights = np.maximum(components.weights.astype(np.float64), np.finfo(np.float32).tiny)
    return Semantics(
        names, matrix(table, "text_feature")[kept], mined.params["tau"], Mixture(weights, means, variances),
        components.options.assignment, pca_mean, pca_axes, components.coarse_labels,
    )  # fmt: skip


def category_groups(dataset: str, class_names: list[str]) -> np.ndarray | None:
    """The group int (C,) of each class; None for a data set that is not known to have groups."""
    if dataset != "scenes":
        return None
    groups = list(GROUPS)
    return np.array([groups.index(group_of(name)) for name in class_names])


def naming(concepts: list[str], class_names: list[str]) -> np.ndarray:
    """Which class (row) has which concept (column) as a name: bool (C, m)."""
    matches = label_matches(concepts, class_names)
    return np.array([[name in found for found in matches] for name in class_names], bool).reshape(-1, len(concepts))
