"""DSCH's E-step on plain arrays: Gaussian mixture, assignments, co-occurrence and the coarse level.

Source: DSCH (arXiv 2203.09420), section 3.2, and the released E-step.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from stages.errors import InputError

#: What the fine components are: Gaussians by EM, or clusters of k-means.
Kind = Literal["gaussian", "kmeans"]
#: How an image belongs to them: by all its responsibilities, or to the likeliest one alone.
Assignment = Literal["soft", "hard"]


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture with diagonal covariances.

    Attributes:
        weights: (m1,), sum 1; means, variances: (m1, d), variances with the regularisation already added.
        log_likelihood: mean log-likelihood a row at the last EM iteration; converged, iterations: how EM ended.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    log_likelihood: float = float("nan")
    converged: bool = False
    iterations: int = 0


@dataclass(frozen=True)
class Hierarchy:
    """The coarse level: k-means clusters of the fine means (homology).

    Attributes:
        labels: int32 (m1,), the coarse component of each fine one; centres: (m2, d) cluster means.
    """

    labels: np.ndarray
    centres: np.ndarray


def regularisation(rows: np.ndarray, share: float) -> float:
    """What is added to every variance of a mixture of rows (n, d): `share` of their largest variance, at least 1e-6.

    That is the variance along the first principal axis. With next to nothing added, the responsibilities are all but
    one-hot in as many as 32 dimensions, and images know of no component but their own. The more is added, the softer
    they are; when the components are wider than the data all of them merge, so 1 is far too much.
    """
    return max(share * float(np.linalg.eigvalsh(np.atleast_2d(np.cov(rows.T, ddof=0)))[-1]), 1e-6)


def sign(values: np.ndarray) -> np.ndarray:
    """-1 or +1, where 0 counts as +1."""
    return np.where(values >= 0, 1, -1).astype(values.dtype)


def fit_mixture(
    rows: np.ndarray, components: int, *, seed: int, iterations: int = 100, reg_covar: float = 1e-4,
    start: Mixture | None = None, kind: Kind = "gaussian",
) -> Mixture:  # fmt: skip
    """Fit a diagonal Gaussian mixture by EM, or k-means, seeded by k-means++ or warm from `start`.

    Args:
        rows: (n, d).

    Raises:
        InputError: more components than rows, fewer than two rows, or a component without spread.
    """
    if components > len(rows):
        raise InputError(
            f"components.fine: {components} components for {len(rows)} training images; set at most {len(rows)}"
        )
    if kind == "kmeans":
        return _fit_clusters(rows, components, seed=seed, iterations=iterations, reg_covar=reg_covar, start=start)
    warm = {} if start is None else {
        "weights_init": start.weights, "means_init": start.means, "precisions_init": 1 / start.variances,
    }  # fmt: skip
    model = GaussianMixture(
        components, covariance_type="diag", init_params="k-means++", max_iter=iterations, reg_covar=reg_covar,
        random_state=seed, **warm,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # whether it converged is recorded
        try:
            model.fit(rows)
        except ValueError as error:
            raise InputError(
                f"components: the mixture cannot be fitted ({' '.join(str(error).split())}); set fewer components.fine "
                f"or a larger components.reg_covar"
            ) from None
    return Mixture(
        model.weights_, model.means_, model.covariances_, float(model.lower_bound_), model.converged_, model.n_iter_
    )


def _fit_clusters(
    rows: np.ndarray, components: int, *, seed: int, iterations: int, reg_covar: float, start: Mixture | None
) -> Mixture:
    """K-means as the mixture that it is the hard EM of: equal weights, one variance for all components and dimensions.

    So the likeliest component of a row is the one with the nearest mean, and the responsibilities are soft k-means.
    """
    init = {"init": "k-means++"} if start is None else {"init": start.means}
    model = KMeans(components, n_init=1, max_iter=iterations, random_state=seed, **init)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: fewer clusters than asked for
        model.fit(rows)
    variance = model.inertia_ / rows.size + reg_covar
    mixture = Mixture(
        np.full(components, 1 / components), model.cluster_centers_, np.full(model.cluster_centers_.shape, variance),
        converged=model.n_iter_ < iterations, iterations=model.n_iter_,
    )  # fmt: skip
    return replace(mixture, log_likelihood=responsibilities(rows, mixture)[1] / len(rows))


def responsibilities(rows: np.ndarray, mixture: Mixture) -> tuple[np.ndarray, float]:
    """Posterior probabilities of the components, in the log domain.

    Returns:
        (n, m1) rows that sum to 1, and the total log-likelihood of all rows.
    """
    precision = 1 / mixture.variances
    distance = (
        (rows**2) @ precision.T - 2 * rows @ (mixture.means * precision).T + (mixture.means**2 * precision).sum(axis=1)
    )
    log_joint = np.log(mixture.weights) - 0.5 * (
        distance + rows.shape[1] * np.log(2 * np.pi) + np.log(mixture.variances).sum(axis=1)
    )
    log_likelihood = logsumexp(log_joint, axis=1, keepdims=True)
    return np.exp(log_joint - log_likelihood), float(log_likelihood.sum())


def assign(rows: np.ndarray, mixture: Mixture, assignment: Assignment) -> np.ndarray:
    """Responsibilities (n, m1), or at a hard assignment 1 for the likeliest component of a row and 0 for the others."""
    posterior, _ = responsibilities(rows, mixture)
    if assignment == "soft":
        return posterior
    return np.eye(posterior.shape[1], dtype=posterior.dtype)[posterior.argmax(axis=1)]


def fine_assignment(posterior: np.ndarray) -> np.ndarray:
    """P1: rows of the responsibilities (n, m1) scaled to unit L2 length."""
    return posterior / np.linalg.norm(posterior, axis=1, keepdims=True)


def coarse_assignment(fine: np.ndarray, labels: np.ndarray, n_coarse: int) -> np.ndarray:
    """P2 = P1 @ onehot(coarse label): (n, m2)."""
    return fine @ np.eye(n_coarse, dtype=fine.dtype)[labels]


def cooccurrence(posterior: np.ndarray) -> np.ndarray:
    """How often two fine components describe the same image: R^T R / n, float32 (m1, m1)."""
    return (posterior.T @ posterior / len(posterior)).astype(np.float32)


def coarse_level(means: np.ndarray, clusters: int, seed: int) -> Hierarchy:
    """K-means of the fine means (m1, d) into `clusters` coarse components."""
    model = KMeans(clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal means: fewer clusters than asked for
        labels = model.fit_predict(means)
    return Hierarchy(labels.astype(np.int32), model.cluster_centers_)
