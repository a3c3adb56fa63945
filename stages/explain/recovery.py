"""How well components recover what is known: categories, groups of categories, and which categories go together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    homogeneity_completeness_v_measure,
)


def single_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of one class alone: a partition of several labels an image cannot be compared with another one.

    Args:
        labels: bool (n, C).

    Returns:
        rows: int (s,), the images with exactly one class; classes: int (s,).
    """
    rows = np.flatnonzero(labels.sum(axis=1) == 1)
    return rows, labels[rows].argmax(axis=1)


def in_groups(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Labels bool (n, C) as groups bool (n, G), for the group int (C,) of each class."""
    return labels @ np.eye(int(groups.max()) + 1, dtype=bool)[groups]


def partition_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float] | None:
    """Agreement of two partitions int (n,); None where there is nothing to recover: fewer than two classes.

    Returns:
        nmi: normalised mutual information (arithmetic mean of the entropies), which many small components raise by
            chance; ami: the same, adjusted for chance; adjusted_rand: Hubert and Arabie (1985), equation 5.
        homogeneity: 1 when every component has images of one class alone; completeness: 1 when no class is spread over
            several components (Rosenberg and Hirschberg, 2007).
    """
    if len(np.unique(truth)) < 2:
        return None
    homogeneity, completeness, nmi = homogeneity_completeness_v_measure(truth, found)
    return {
        "nmi": float(nmi), "ami": float(adjusted_mutual_info_score(truth, found)),
        "adjusted_rand": float(adjusted_rand_score(truth, found)),
        "homogeneity": float(homogeneity), "completeness": float(completeness),
    }  # fmt: skip


def label_cooccurrence(labels: np.ndarray) -> np.ndarray:
    """How often two categories are in the same image: Y^T Y / n of labels bool (n, C), float64 (C, C)."""
    hot = labels.astype(np.float32)  # sums stay exact below 2^24 images
    return (hot.T @ hot).astype(np.float64) / len(hot)


def category_chances(joint: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """How many of a component's images show each category: (k, C) in [0, 1], zeros for a component without images.

    Args:
        joint: (k, C), sum over the images of responsibility times label; mass: (k,), sum of the responsibilities.
    """
    mass = mass[:, None]
    return np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)


def by_members(chances: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Co-occurrence (C, C) that follows from who shares a component: A^T diag(mass) A, with A the chances (k, C).

    It is that of images whose categories are independent once their component is known: the labels' own where every
    set of categories has its component, and what the frequencies alone would give where components tell nothing.
    """
    return chances.T @ (mass[:, None] / mass.sum() * chances)


def by_mixture(chances: np.ndarray, cooccurrence: np.ndarray) -> np.ndarray:
    """Co-occurrence (C, C) by which components share an image, each component standing for its main category.

    Args:
        chances: (k, C).
        cooccurrence: (k, k) of the components, R^T R or a multiple (DSCH, section 3.2).
    """
    main = np.eye(chances.shape[1])[chances.argmax(axis=1)] * (chances.max(axis=1) > 0)[:, None]
    return main.T @ cooccurrence @ main


def cooccurrence_correlation(found: np.ndarray, truth: np.ndarray) -> dict[str, float] | None:
    """Correlation of two symmetric matrices (C, C) over the pairs of different categories.

    None where one is the same for all pairs (as the truth is where every image has one label), or there are fewer than
    three pairs.
    """
    pairs = np.triu_indices(len(truth), 1)
    a, b = found[pairs], truth[pairs]
    if len(a) < 3 or a.max() == a.min() or b.max() == b.min():
        return None
    return {"pearson": _correlation(a, b), "spearman": _correlation(rankdata(a), rankdata(b))}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@dataclass(frozen=True)
class Found:
    """What the components of one level have made of n images with labels.

    Attributes:
        index: int (n,), the component with the largest responsibility for each image.
        joint, mass: as of :func:`category_chances`; cooccurrence: (k, k), R^T R of the responsibilities R.
    """

    index: np.ndarray
    joint: np.ndarray
    mass: np.ndarray
    cooccurrence: np.ndarray


def recovery(labels: np.ndarray, groups: np.ndarray | None, found: Mapping[str, Found]) -> dict[str, Any]:
    """All that the report says of the recovery, by level of the components.

    Args:
        labels: bool (n, C), at least one an image.
        groups: int (C,), the group of each category; None where there are none.

    Returns:
        categories, groups: number of images of one class alone, and the scores of the levels; cooccurrence: for each
        level the correlation with the labels' by members and by mixture, and for comparison ``independent``: what the
        frequencies of the categories alone would give. ``groups`` is None without groups.
    """
    truth = label_cooccurrence(labels)
    frequency = np.diag(truth)
    pairs: dict[str, Any] = {"independent": cooccurrence_correlation(np.outer(frequency, frequency), truth)}
    for name, level in found.items():
        chances = category_chances(level.joint, level.mass)
        pairs[name] = {
            "members": cooccurrence_correlation(by_members(chances, level.mass), truth),
            "mixture": cooccurrence_correlation(by_mixture(chances, level.cooccurrence), truth),
        }
    return {
        "images": len(labels),
        "categories": _partitions(labels, found),
        "groups": None if groups is None else _partitions(in_groups(labels, groups), found),
        "cooccurrence": pairs,
    }


def _partitions(labels: np.ndarray, found: Mapping[str, Found]) -> dict[str, Any]:
    rows, classes = single_class(labels)
    scores = {name: partition_scores(classes, level.index[rows]) for name, level in found.items()}
    return {"images": len(rows)} | scores
