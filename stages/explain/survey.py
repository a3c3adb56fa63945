"""All sums over the images of a database that the report is made of, added up block by block."""

from itertools import pairwise

import numpy as np

from stages.codes import unpack
from stages.explain.bits import BitMoments, likeness
from stages.explain.inputs import Semantics
from stages.features import Features
from stages.progress import track

#: Images at a time; with 3,000 concepts and 1,000 components a block takes some 300 MB.
BLOCK = 2048


class Survey:
    """Sums over images.

    Attributes:
        n: number of images.
        moments: of the bits with the shares of concepts, fine and coarse components, in this order.
        joint: (m1, m), sum of responsibility times concept share; mass: (m1,), sum of the responsibilities.
        label_joint: (m1, C), sum of responsibility times label over the images with labels; label_mass: (m1,), sum of
            these responsibilities R; cooccurrence: (m1, m1), their R^T R.
    """

    def __init__(self, semantics: Semantics, bits: int, classes: int) -> None:
        m, m1 = len(semantics.concepts), semantics.components.n_fine
        self.semantics = semantics
        self.moments = BitMoments(bits, m + m1 + semantics.components.n_coarse)
        self.joint, self.mass = np.zeros((m1, m)), np.zeros(m1)
        self.label_joint, self.label_mass = np.zeros((m1, classes)), np.zeros(m1)
        self.cooccurrence = np.zeros((m1, m1))
        self._found: dict[str, list[np.ndarray]] = {"fine": [], "coarse": []}

    @property
    def n(self) -> int:
        return self.moments.n

    @property
    def found(self) -> dict[str, np.ndarray]:
        """Of each level int32 (n,), the component with the largest responsibility for each image, as they came."""
        return {level: np.concatenate(parts) for level, parts in self._found.items()}

    def add(self, signs: np.ndarray, features: np.ndarray, labels: np.ndarray) -> None:
        """Add images by their codes (b, K) in {-1, +1}, features (b, d) and labels bool (b, C)."""
        shares, fine = self.semantics.shares(features).astype(np.float64), self.semantics.components.fine(features)
        coarse = self.semantics.components.coarse(fine)
        self.moments.add(signs, np.concatenate([shares, fine, coarse], axis=1))
        self.joint += fine.T @ shares
        self.mass += fine.sum(axis=0)
        labelled = labels.any(axis=1)
        known = fine[labelled]
        self.label_joint += known.T @ labels[labelled]
        self.label_mass += known.sum(axis=0)
        self.cooccurrence += known.T @ known
        for level, posterior in (("fine", fine), ("coarse", coarse)):
            self._found[level].append(posterior.argmax(axis=1).astype(np.int32))


def survey(
    semantics: Semantics, features: Features, packed: np.ndarray, ids: np.ndarray, labels: np.ndarray
) -> Survey:
    """The survey of the images `ids` (ascending) with these codes uint8 (n, K / 8) and labels bool (n, C)."""
    result = Survey(semantics, packed.shape[1] * 8, labels.shape[1])
    parts = blocks(ids, features.n_images)
    for rows in track(parts, "explain", total=len(parts)):
        result.add(unpack(packed[rows]), features.images(ids[rows]), labels[rows])
    return result


def blocks(ids: np.ndarray, n_images: int) -> list[slice]:
    """Slices of the ascending `ids` out of `n_images`, each within :data:`BLOCK` consecutive ones: one short read."""
    edges = np.searchsorted(ids, np.arange(0, n_images + BLOCK, BLOCK)).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges) if start < stop]


def read_back(
    semantics: Semantics, features: Features, packed: np.ndarray, ids: np.ndarray, mean_codes: np.ndarray,
    meant: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """How often what an image shows can be read from its code alone: from the concept whose mean code is nearest.

    Args:
        packed, ids: codes uint8 (q, K / 8) and ids (ascending) of images that had no part in the mean codes.
        mean_codes: (m, K) of the concepts, at least one.
        meant: bool (q, m), whether a concept is the name of a label of the image.

    Returns:
        first: share of the images whose nearest concept is the one with the largest share in them; among_3: of those in
        which it is one of the nearest three; chance: what always giving the most frequent answer would reach for first.
        label: share of the images with a label that a concept names whose nearest concept names one; label_float: what
        the concept with the largest share, which the code was to keep, reaches. Without such labels both are missing.
    """
    nearest, largest, ranks = [], [], []
    for rows in blocks(ids, features.n_images):
        near = likeness(unpack(packed[rows]), mean_codes)
        truth = semantics.shares(features.images(ids[rows])).argmax(axis=1)
        nearest.append(near.argmax(axis=1))
        largest.append(truth)
        ranks.append((near > np.take_along_axis(near, truth[:, None], axis=1)).sum(axis=1))
    found, truth, rank = map(np.concatenate, (nearest, largest, ranks))
    result = {
        "images": len(ids), "first": float((found == truth).mean()), "among_3": float((rank < 3).mean()),
        "chance": float(np.bincount(truth).max() / len(ids)),
    }  # fmt: skip
    named = np.flatnonzero(meant.any(axis=1))
    if len(named):
        result["label"] = float(meant[named, found[named]].mean())
        result["label_float"] = float(meant[named, truth[named]].mean())
    return result
