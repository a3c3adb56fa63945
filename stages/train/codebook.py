"""Codes that say how relevant images are to each other, found bit by bit: those of components, and those of images.

Two images with codes of cosine h are taken to be relevant to each other with probability
sigmoid(:data:`SHARPNESS` * (h - :data:`THRESHOLD`)). The codes are those under which the relevances that were mined are
likeliest, by cross-entropy. Gradients of a relaxation end in poor optima of this loss: descent by single bits gets
from the same start to .233 where a network trained on it stays at .29 (scenes, 32 bits).
"""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from stages.progress import track

#: Of the cosine of two codes. Codes of images with nothing in common have about 0, and one of 32 bits is 1/16.
SHARPNESS, THRESHOLD = 12.0, 0.25
#: Passes over all components, or over the bits of an image, at most.
SWEEPS = 6
ENCODING_SWEEPS = 2
#: Images of which the relevances of components are means; and how many are encoded at a time.
SAMPLE = 5000
CHUNK = 1000


def relevance(a: np.ndarray, b: np.ndarray, exponent: float) -> np.ndarray:
    """How likely images with the unit rows a (n, d) and b (k, d) are relevant to each other: cosine**exponent, (n, k).

    The cosine of two concept distributions says which pair is more alike, but falls by orders of magnitude where only
    a lesser concept is shared. A small power brings it to the scale of probabilities.
    """
    return np.clip(a @ b.T, 0, 1) ** exponent


class Codebook:
    """Components of images, with a code each.

    Attributes:
        codes: float32 (k, bits) in {-1, +1}; mass: float32 (k,) share of the images.
    """

    def __init__(
        self, factor: np.ndarray, bits: int, components: int, temper: float, exponent: float, seed: int
    ) -> None:
        """Cluster the unit rows `factor` (n, d), raised to the power `temper`, and find the clusters' codes."""
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(factor))[:SAMPLE])
        self._sample, self._exponent, self._temper = factor[rows], exponent, temper
        tempered = self._tempered(self._sample)
        self._clusters = KMeans(min(components, len(rows)), n_init=1, random_state=seed)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # equal images: fewer clusters
            self._clusters.fit(tempered)
        n_clusters, labels = self._clusters.n_clusters, self._clusters.labels_
        self._members = np.zeros((len(rows), n_clusters), np.float32)
        self._members[np.arange(len(rows)), labels] = 1
        size = self._members.sum(axis=0)
        self.mass = size / len(rows)
        self._members /= np.maximum(size, 1)
        start = np.where(rng.random((n_clusters, bits)) < 0.5, -1, 1).astype(np.float32)
        self.codes = descend(start, self._members.T @ self.relevance(self._sample), self.mass, rng)

    def _tempered(self, factor: np.ndarray) -> np.ndarray:
        powers = np.sign(factor) * np.abs(factor) ** self._temper
        return powers / np.linalg.norm(powers, axis=1, keepdims=True)

    def relevance(self, factor: np.ndarray) -> np.ndarray:
        """Mean relevance of images with the unit rows `factor` (n, d) to the images of each component: (n, k)."""
        return relevance(factor, self._sample, self._exponent).astype(np.float32) @ self._members

    def encode(self, factor: np.ndarray) -> np.ndarray:
        """Codes float32 (n, bits) in {-1, +1} of images with the unit rows `factor` (n, d)."""
        codes = np.empty((len(factor), self.codes.shape[1]), np.float32)
        starts = range(0, len(factor), CHUNK)
        for start in track(starts, "target codes", len(starts)):
            part = slice(start, start + CHUNK)
            nearest = self._clusters.predict(self._tempered(factor[part]))
            codes[part] = descend_rows(self.codes[nearest], self.relevance(factor[part]), self.codes, self.mass)
        return codes


def loss_tables(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Logit, and its softplus, of the relevance at each Hamming distance 0..bits: float32 (bits + 1,).

    The loss of a pair with relevance r at distance d is softplus[d] - r * logit[d].
    """
    logit = SHARPNESS * (1 - 2 * np.arange(bits + 1) / bits - THRESHOLD)
    return logit.astype(np.float32), np.logaddexp(0, logit).astype(np.float32)


def mean_loss(codes: np.ndarray, relevances: np.ndarray, mass: np.ndarray) -> float:
    """Cross-entropy of the relevances (k, k) under codes (k, bits), pairs weighted with the product of the masses."""
    logit, softplus = loss_tables(codes.shape[1])
    distance = _distances(codes, codes)
    weight = np.outer(mass, mass) * (1 - np.eye(len(mass)))
    return float(((softplus[distance] - relevances * logit[distance]) * weight).sum() / weight.sum())


def descend(codes: np.ndarray, relevances: np.ndarray, mass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip single bits of codes (k, bits) while that lowers :func:`mean_loss`, component after component."""
    codes = codes.copy()
    logit, softplus = loss_tables(codes.shape[1])
    for _ in range(SWEEPS):
        flips = 0
        for row in rng.permutation(np.flatnonzero(mass > 0)):
            weight = mass.copy()
            weight[row] = 0
            while True:
                distance = _distances(codes[row : row + 1], codes)[0]
                further = np.minimum(distance + 1, codes.shape[1])
                nearer = np.maximum(distance - 1, 0)
                away, towards = (
                    weight * (softplus[to] - softplus[distance] - relevances[row] * (logit[to] - logit[distance]))
                    for to in (further, nearer)
                )
                agree = codes == codes[row]
                change = away @ agree + towards @ ~agree
                bit = int(change.argmin())
                if change[bit] >= -1e-9:
                    break
                codes[row, bit] *= -1
                flips += 1
        if not flips:
            break
    return codes


def descend_rows(codes: np.ndarray, relevances: np.ndarray, codebook: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Codes (n, bits) whose relevances (n, k) to the codebook (k, bits) are likeliest, bit after bit from `codes`."""
    codes = codes.copy()
    logit, softplus = loss_tables(codes.shape[1])
    distance = _distances(codes, codebook)
    for _ in range(ENCODING_SWEEPS):
        for bit in range(codes.shape[1]):
            flipped = distance + np.where(codes[:, bit : bit + 1] == codebook[:, bit], 1, -1)
            change = (softplus[flipped] - softplus[distance] - relevances * (logit[flipped] - logit[distance])) @ mass
            better = change < 0
            codes[better, bit] *= -1
            distance[better] = flipped[better]
    return codes


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a.shape[1] - a @ b.T) / 2).round().astype(np.int64)
