"""How the concepts of a collection drift from the whole to its coarse components, and from these to the fine ones.

A component's concept distribution is the mean of its images' distributions, weighted with its responsibilities. That of
a coarse component is a mixture of those of its fine ones, so the divergences are finite, and they add up: the mean
Kullback-Leibler divergence of the fine components from the whole is that of the coarse ones from the whole plus that of
the fine ones from their coarse ones (the chain rule of mutual information; Cover and Thomas, "Elements of Information
Theory", section 2.5).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import entr, rel_entr


@dataclass(frozen=True)
class Level:
    """The components of one level; a component without images has its parent's distribution.

    Attributes:
        parents: int32 (k,), the component of the level above, -1 where that is the whole collection.
        weights: (k,), sum 1.
        distribution: (k, m) concept distributions, rows of sum 1.
        change: (k, m), `distribution` less the parent's.
        entropy: (k,) bits; kl, js: (k,) bits, Kullback-Leibler and Jensen-Shannon divergence from the parent, the
            latter at most 1. All 0 where there are no concepts.
    """

    parents: np.ndarray
    weights: np.ndarray
    distribution: np.ndarray
    change: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    js: np.ndarray

    @property
    def information(self) -> float:
        """Bits that the component of an image tells of its concepts, once the parent is known: the mean of `kl`."""
        return float(self.weights @ self.kl)


@dataclass(frozen=True)
class ConceptHierarchy:
    """`collection`: the concept distribution (m,) of all images; the two levels below it."""

    collection: np.ndarray
    coarse: Level
    fine: Level


def concept_hierarchy(joint: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> ConceptHierarchy:
    """The hierarchy of n images.

    Args:
        joint: (m1, m), mean over the images of responsibility times concept share.
        weights: (m1,), mean responsibilities, sum 1.
        labels: int (m1,), the coarse component of each fine one.
    """
    collection = joint.sum(axis=0)
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    whole = np.full(one_hot.shape[1], -1, np.int32)
    coarse = _level(one_hot.T @ joint, one_hot.T @ weights, whole, collection[None])
    fine = _level(joint, weights, labels.astype(np.int32), coarse.distribution)
    return ConceptHierarchy(collection, coarse, fine)


def _level(joint: np.ndarray, weights: np.ndarray, parents: np.ndarray, above: np.ndarray) -> Level:
    from_parent = above[parents]
    mass = weights[:, None]
    distribution = np.where(mass > 0, joint / np.where(mass > 0, mass, 1), from_parent)
    distribution /= np.maximum(distribution.sum(axis=1, keepdims=True), 1e-300)  # shares are of single precision
    return Level(
        parents, weights, distribution, distribution - from_parent,
        entropy=entr(distribution).sum(axis=1) / np.log(2),
        kl=_divergence(distribution, from_parent), js=jensen_shannon(distribution, from_parent),
    )  # fmt: skip


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.maximum(rel_entr(p, q).sum(axis=1) / np.log(2), 0)  # rounding may leave a little less than 0


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (k,) in bits, 0 to 1, of the rows of p and q (k, m) (Lin, 1991)."""
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def top_entries(values: np.ndarray, count: int) -> list[list[int]]:
    """Of each row of `values` (k, m) the places of its `count` largest entries above 0, largest first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [[int(place) for place in places if row[place] > 0] for row, places in zip(values, order, strict=True)]
