"""Which images are relevant to each other: those that share a concept, or, without concepts, those near each other."""

import warnings

import numpy as np
from scipy.special import expit
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from stages.device import derived_seed
from stages.progress import track

#: Images that classifiers and clusters are fitted to, at most.
FITTED = 20_000
#: Inverse of the penalty on the weights of a classifier, for features of mean square 1.
INVERSE_PENALTY = 0.1

#: Times that the components are found.
CLUSTERINGS = 4
#: Nearest components of an image, and the temperature of their cosines.
NEAREST, TEMPERATURE = 20, 0.1
#: Images to a component at least: with fewer, the walk gets stuck between a few of them.
IMAGES_A_COMPONENT = 10
#: Steps of the random walk, and dimensions kept of it.
STEPS, DIMENSIONS = 4, 64
#: Mean relevance that the exponent of the cosine is chosen for, and between how many images.
MEAN_RELEVANCE, MEASURED = 0.2, 1000


class SharedConcepts:
    """Two images are relevant to each other if both show one of the concepts.

    That an image shows a concept is first taken from its mined distribution, and then learnt from the features of all
    images: a logistic regression a concept. It smooths what was mined, since the images that a concept was mined for
    by mistake are not alike.
    """

    sharpness = 10.0

    def __init__(self, features: np.ndarray, distribution: np.ndarray, presence: float, seed: int) -> None:
        """Learn the concepts from unit features (n, dim).

        Args:
            distribution: of the concepts (n, m), rows of any positive scale.
            presence: share of a concept, as a multiple of 1 / m, above which it counts as shown.
        """
        rows = _sample(len(features), FITTED, seed)
        share = distribution[rows] / distribution[rows].sum(axis=1, keepdims=True)
        inputs, shown = self._scaled(features[rows]), share > presence / distribution.shape[1]
        self._weight = np.zeros((features.shape[1], shown.shape[1]), np.float32)
        self._bias = np.zeros(shown.shape[1], np.float32)
        for concept in track(range(shown.shape[1]), "concepts", shown.shape[1]):
            positive = shown[:, concept]
            if positive.any() and not positive.all():
                with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # near enough by then
                    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=300).fit(inputs, positive)
                self._weight[:, concept], self._bias[concept] = model.coef_[0], model.intercept_[0]
            else:  # all images the same: their share, kept from 0 and 1
                odds = (positive.sum() + 0.5) / ((~positive).sum() + 0.5)
                self._bias[concept] = np.log(odds)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return features * np.sqrt(features.shape[1]).astype(np.float32)

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Probabilities (n, m) that images with unit features (n, dim) show the concepts."""
        return expit(self._scaled(features) @ self._weight + self._bias)

    def relevance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Probability that a concept is shown by both: 1 - prod_k (1 - a_ik b_jk), float32 (n, m)."""
        neither = np.ones((len(a), len(b)), np.float32)
        for left, right in zip(a.T, b.T, strict=True):
            neither *= 1 - np.outer(left, right)
        return 1 - neither


class SharedComponents:
    """Two images are relevant to each other if a short random walk over the components leads from one to the other.

    Components are clusters of the features. They are found several times, since a border between two clusters is
    chance: what images have in common in all of the clusterings is not. Half of them are found among the square roots
    of the features, in which a few large entries count for less.
    """

    #: Less than that of concepts: these relevances are vaguer.
    sharpness = 6.0

    def __init__(self, features: np.ndarray, components: int, seed: int) -> None:
        """Cluster images with unit features (n, dim) into at most `components`, :data:`CLUSTERINGS` times."""
        self.walks = [
            Walk(features, components, derived_seed(seed, number), roots=number % 2 > 0)
            for number in range(CLUSTERINGS)
        ]
        sample = self.rows(features[_sample(len(features), MEASURED, seed)])
        self._exponent = _exponent(sample @ sample.T)

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Unit rows of where walks from images with unit features (n, dim) lead: float32 (n, at most 64 a walk)."""
        return np.hstack([walk.rows(features) for walk in self.walks]) / np.float32(np.sqrt(len(self.walks)))

    def relevance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """A power of the cosine, 0 for negative ones: float32 (n, m)."""
        return np.clip(a @ b.T, 0, 1) ** self._exponent


class Walk:
    """A short random walk over components of the features.

    A step leads from an image to one of the components near it, and on to an image near that one; so components that
    have images in common are near each other, however far their means are.

    Source: the walk is that of anchor graphs, Liu et al., 2011 (Hashing with Graphs), sections 3 and 4.
    """

    def __init__(self, features: np.ndarray, components: int, seed: int, roots: bool = False) -> None:
        """Cluster images with unit features (n, dim), or the `roots` of their entries, into at most `components`."""
        self._roots = roots
        rows = _sample(len(features), FITTED, seed)
        shaped = self._shaped(features[rows])
        self._mean = shaped.mean(axis=0)
        centred = _unit(shaped - self._mean)
        count = max(1, min(components, len(rows) // IMAGES_A_COMPONENT))
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # equal images: fewer clusters
            found = KMeans(count, n_init=1, random_state=derived_seed(seed, 1)).fit(centred)
        self._components = _unit(found.cluster_centers_)
        near = self._near(centred)
        root = np.sqrt(np.maximum(near.sum(axis=0), 1e-6))
        walk = (near / root).T @ (near / root)
        rest = root / np.linalg.norm(root)  # where every long walk ends, from whichever image
        values, vectors = np.linalg.eigh(walk.astype(np.float64) - np.outer(rest, rest))
        kept = np.argsort(-values)[:DIMENSIONS]
        self._project = (vectors[:, kept] * values[kept].clip(0) ** (STEPS - 1) / root[:, None]).astype(np.float32)

    def _shaped(self, features: np.ndarray) -> np.ndarray:
        return _unit(np.sign(features) * np.sqrt(np.abs(features))) if self._roots else features

    def _centred(self, features: np.ndarray) -> np.ndarray:
        return _unit(self._shaped(features) - self._mean)

    def _near(self, centred: np.ndarray) -> np.ndarray:
        """Chances float32 (n, k) of a step from the images to the components."""
        cosine = centred @ self._components.T
        if cosine.shape[1] > NEAREST:
            least = np.partition(cosine, -NEAREST, axis=1)[:, -NEAREST, None]
            cosine[cosine < least] = -np.inf
        chance = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / TEMPERATURE)
        return chance / chance.sum(axis=1, keepdims=True)

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Unit rows of where walks from images with unit features (n, dim) lead: float32 (n, at most 64)."""
        return _unit(self._near(self._centred(features)) @ self._project)


def _sample(n: int, most: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(derived_seed(seed, 0)).permutation(n)[:most])


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _exponent(cosine: np.ndarray) -> np.float32:
    """The one at which the mean of the powers of the positive cosines (n, n) is :data:`MEAN_RELEVANCE`, in bounds."""
    positive, low, high = np.clip(cosine, 0, 1), 0.02, 50.0
    for _ in range(30):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if (positive**middle).mean() > MEAN_RELEVANCE else (low, middle)
    return np.float32(middle)
