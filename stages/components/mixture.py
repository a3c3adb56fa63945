"""DSCH's E-step on plain arrays: mixture, assignments, co-occurrence and the coarse level.

Source: DSCH (arXiv 2203.09420), section 3.2, and the released E-step.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

from stages.components import em
from stages.components.density import Covariance, Mixture, chunk_by_chunk, densities, one_thread
from stages.components.reduction import Portion
from stages.errors import InputError

#: What the fine components are: Gaussians by EM, or clusters of k-means.
Kind = Literal["gaussian", "kmeans"]
#: How an image belongs to them: by all its responsibilities, or to the likeliest one alone.
Assignment = Literal["soft", "hard"]

#: Rows that k-means++ draws the first means from, at most, unless there are more components.
SEEDED = 20_000


@dataclass(frozen=True)
class Hierarchy:
    """The coarse level: k-means clusters of the fine means (homology).

    Attributes:
        labels: int32 (m1,), the coarse component of each fine one; centres: (m2, d) cluster means.
    """

    labels: np.ndarray
    centres: np.ndarray


@dataclass(frozen=True)
class Membership:
    """How n images belong to m1 components.

    Attributes:
        index, value: int32 and float32 (n, r), the largest responsibilities of each image, largest first.
        cooccurrence: float32 (m1, m1), how often two components describe the same image: R^T R / n.
    """

    index: np.ndarray
    value: np.ndarray
    cooccurrence: np.ndarray


def sign(values: np.ndarray) -> np.ndarray:
    """-1 or +1, where 0 counts as +1.

    >>> sign(np.array([-0.5, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    return np.where(values >= 0, 1, -1).astype(values.dtype)


def fit_mixture(
    rows: np.ndarray, components: int, *, seed: int, iterations: int = 100, reg_covar: float = 1e-4,
    start: Mixture | None = None, kind: Kind = "gaussian", covariance: Covariance = "diagonal",
    batch: int | None = None, device: str = "cpu", report: em.Report = lambda _: None, of: Portion | None = None,
) -> Mixture:  # fmt: skip
    """Fit a Gaussian mixture by EM, or k-means, seeded by k-means++ or warm from `start`.

    Args:
        rows: (n, d), in single precision or, when all is to be computed in double precision, in that.
        reg_covar: added to every variance.
        start: with variances of the form `covariance`.
        batch: rows that an update of the components is made from; None: all.
        device: a device of torch; on the CPU the work is NumPy's, of k-means scikit-learn's.
        report: called with the mean log-likelihood at every iteration.
        of: which of all rows these are, the others being those of other processes, for Gaussians with a `start`.

    Raises:
        InputError: more components than rows, rows that are not finite, or a component without spread.
    """
    of = of or Portion.whole(rows)
    if components > of.n:
        raise InputError(f"components.fine: {components} components for {of.n} training images; set at most {of.n}")
    em.require_finite(rows, of.first)
    if batch is not None and batch >= of.n:
        batch = None
    if kind == "kmeans" and device == "cpu":
        mixture = _clusters(rows, components, seed=seed, iterations=iterations, start=start, batch=batch)
    else:
        begin = _first(rows, components, covariance, seed, reg_covar) if start is None else start
        if kind == "kmeans":
            mixture = em.lloyd(rows, begin.means, iterations=iterations, device=device, report=report)
        else:
            how = {"iterations": iterations, "reg_covar": reg_covar, "device": device, "report": report, "of": of}
            if batch is None:
                return em.fit(rows, begin, covariance, **how)
            return em.fit_batches(rows, begin, covariance, batch=batch, seed=seed, **how)
    mixture = replace(mixture, variances=mixture.variances + reg_covar)
    with one_thread():
        total = em.expect(rows, mixture, "diagonal", device=device).log_likelihood
    return replace(mixture, log_likelihood=total / len(rows))


def _first(rows: np.ndarray, components: int, covariance: Covariance, seed: int, reg_covar: float) -> Mixture:
    """Components on rows that k-means++ draws, as wide as the regularisation makes them."""
    drawn = _drawn(rows, components, seed).astype(np.float64)  # faster than single precision here
    means, _ = kmeans_plusplus(drawn, components, random_state=seed)
    variances = np.full(means.shape, reg_covar)
    if covariance == "full":
        variances = variances[:, :, None] * np.eye(means.shape[1])
    return Mixture(np.full(components, 1 / components), means, variances)


def _drawn(rows: np.ndarray, components: int, seed: int) -> np.ndarray:
    """All rows or, of very many, random ones that are enough to seed the components from."""
    most = max(SEEDED, 2 * components)
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def _clusters(
    rows: np.ndarray, components: int, *, seed: int, iterations: int, start: Mixture | None, batch: int | None
) -> Mixture:
    """K-means as the mixture that it is the hard EM of: equal weights, one variance for all components and dimensions.

    So the likeliest component of a row is the one with the nearest mean, and the responsibilities are soft k-means.
    """
    how = {"n_init": 1, "max_iter": iterations, "random_state": seed, "init": "k-means++"}
    if start is not None:
        how["init"] = start.means.astype(rows.dtype)
    model = KMeans(components, **how) if batch is None else MiniBatchKMeans(components, batch_size=batch, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: fewer clusters than asked for
        model.fit(rows)
    means = model.cluster_centers_.astype(np.float64)
    return Mixture(
        np.full(components, 1 / components), means, np.full(means.shape, model.inertia_ / rows.size),
        converged=model.n_iter_ < iterations, iterations=model.n_iter_,
    )  # fmt: skip


def responsibilities(rows: np.ndarray, mixture: Mixture, device: str = "cpu") -> tuple[np.ndarray, float]:
    """Posterior probabilities of the components, in the log domain.

    Returns:
        (n, m1) rows that sum to 1, and the total log-likelihood of all rows.
    """
    of = densities(rows, mixture, mixture.form, device=device)
    found, total, start = np.empty((len(rows), len(mixture.weights)), rows.dtype), 0.0, 0
    with one_thread():
        for log_likelihood, part in chunk_by_chunk(of, of.responsibilities, rows):
            found[start : start + len(part)] = part
            total, start = total + log_likelihood, start + len(part)
    return found, total


def assign(rows: np.ndarray, mixture: Mixture, assignment: Assignment, device: str = "cpu") -> np.ndarray:
    """Responsibilities (n, m1), or at a hard assignment 1 for the likeliest component of a row and 0 for the others."""
    posterior, _ = responsibilities(rows, mixture, device)
    return posterior if assignment == "soft" else _hard(posterior)


def _hard(posterior: np.ndarray) -> np.ndarray:
    found = np.zeros_like(posterior)
    found[np.arange(len(found)), posterior.argmax(axis=1)] = 1
    return found


def membership(
    rows: np.ndarray, mixture: Mixture, assignment: Assignment, top: int, device: str = "cpu"
) -> Membership:
    """What is kept of the responsibilities of rows (n, d), of which it never holds more than a chunk.

    Args:
        top: largest responsibilities of a row that are kept.
    """
    of = densities(rows, mixture, mixture.form, device=device)
    top = min(top, len(mixture.weights))

    def of_chunk(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, posterior = of.responsibilities(chunk)
        if assignment == "hard":
            posterior = _hard(posterior)
        index = np.sort(np.argpartition(-posterior, top - 1, axis=1)[:, :top], axis=1)
        value = np.take_along_axis(posterior, index, axis=1)
        order = np.argsort(-value, axis=1, kind="stable")
        return *(np.take_along_axis(found, order, axis=1) for found in (index, value)), posterior.T @ posterior

    index, value = np.empty((len(rows), top), np.int32), np.empty((len(rows), top), np.float32)
    joint, start = np.zeros((len(mixture.weights),) * 2), 0
    with one_thread():
        for found_index, found_value, found_joint in chunk_by_chunk(of, of_chunk, rows):
            part = slice(start, start + len(found_index))
            index[part], value[part], start = found_index, found_value, part.stop
            joint += found_joint
    return Membership(index, value, (joint / len(rows)).astype(np.float32))


def fine_assignment(posterior: np.ndarray) -> np.ndarray:
    """P1: rows of the responsibilities (n, m1) scaled to unit L2 length."""
    return posterior / np.linalg.norm(posterior, axis=1, keepdims=True)


def coarse_assignment(fine: np.ndarray, labels: np.ndarray, n_coarse: int) -> np.ndarray:
    """P2 = P1 @ onehot(coarse label): (n, m2)."""
    return fine @ np.eye(n_coarse, dtype=fine.dtype)[labels]


def coarse_level(means: np.ndarray, clusters: int, seed: int) -> Hierarchy:
    """K-means of the fine means (m1, d) into `clusters` coarse components."""
    model = KMeans(clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal means: fewer clusters than asked for
        labels = model.fit_predict(means)
    return Hierarchy(labels.astype(np.int32), model.cluster_centers_)
