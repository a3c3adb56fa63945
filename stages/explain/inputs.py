"""What features mean, read from the artifacts of ``mine`` and ``components``: concept shares and responsibilities."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.artifacts import Provenance
from stages.components.fitted import FittedComponents, read_fitted
from stages.mine.concepts import mine_distribution
from stages.mine.kept import read_kept_concepts
from stages.mine.leakage import label_matches
from stages.scenes.catalogue import GROUPS, group_of


@dataclass(frozen=True)
class Semantics:
    """Concepts and components of any image features (n, d), those of training as well as new ones.

    Attributes:
        concepts: names of the m kept concepts, none where there is no text side; texts: (m, d); tau: temperature.
        components: fine and coarse.
    """

    concepts: list[str]
    texts: np.ndarray
    tau: float
    components: FittedComponents

    def shares(self, features: np.ndarray) -> np.ndarray:
        """Concept distributions (n, m) (UHSCM, steps 2 and 4)."""
        if not self.concepts:
            return np.empty((len(features), 0), np.float32)
        return mine_distribution(features, self.texts, self.tau)


def read_semantics(like: Provenance, path: Path) -> Semantics:
    """Read ``data/concepts.parquet`` and ``data/components.h5``.

    Args:
        like, path: an artifact whose data set and model they must have.

    Raises:
        InputError: one is missing, damaged, or made with another data set or model.
    """
    names, texts, tau = read_kept_concepts(like, path)
    return Semantics(names, texts, tau, read_fitted(like, path))


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
