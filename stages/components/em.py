"""Expectation-maximisation of Gaussian mixtures: over all rows, over batches of them, and its hard form, k-means.

In EM, the rows may be shared out among processes (:class:`stages.components.reduction.Portion`). Then each one takes
the moments of its own, their sum is that of all rows, and every process makes the same mixture of it.

Sources: Dempster, Laird & Rubin, 1977; over batches, Cappe & Moulines, 2009 (On-line expectation-maximization), section
2.2; the split of a component keeps its mean and its covariance, as in Ueda et al., 2000 (SMEM), section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stages.components import reduction
from stages.components.density import (
    Covariance,
    Mixture,
    chunk_by_chunk,
    densities,
    diagonal,
    one_thread,
    pairs,
    quadratic,
    unfit,
)
from stages.components.reduction import Portion, Total, alone
from stages.errors import InputError

#: Gain of mean log-likelihood a row, in nats, below which EM has converged: scikit-learn's.
TOLERANCE = 1e-3
#: Relative rounding error of a mean log-likelihood in single precision.
ROUNDING = 1e-6

#: A component with responsibility for less than this many rows is dead: without it, all rows together lose 0.1 nats.
DEAD = 0.1
#: One with so few, and with next to no variance but the regularisation, has collapsed onto a single row.
SINGLE = 1.5
#: Rows that a component has at least to be split, and how far its halves are moved from its mean, in deviations.
DIVISIBLE, SHIFT = 4, 0.5

#: Weight of batch t in the running moments: (t + 2) ** -DECAY. Any in (0.5, 1] converges.
DECAY = 0.6

#: K-means has converged when its means move by less, in all, than this share of the mean variance: scikit-learn's.
SHIFTED = 1e-4

#: What is told the mean log-likelihood of each iteration.
Report = Callable[[float], object]


@dataclass(frozen=True)
class Moments:
    """What the M-step needs of rows: R^T f(X - centre), float64 (m1, F), and their total log-likelihood."""

    sums: np.ndarray
    centre: np.ndarray
    log_likelihood: float = float("nan")


def expect(
    rows: np.ndarray, mixture: Mixture, covariance: Covariance, *, device: str = "cpu", hard: bool = False,
    centre: np.ndarray | None = None, total: Total = alone,
) -> Moments:  # fmt: skip
    """The E-step over rows (n, d), without n x m1 in memory; within :func:`one_thread`.

    Args:
        hard: every row belongs to its likeliest component.
        centre: what the moments are about (d,); None: the centre of the mixture.
        total: of the processes that have rows; the moments are those of all.

    Raises:
        InputError: the likelihood is not finite, or the mixture is none.
    """
    of = densities(rows, mixture, covariance, device=device, centre=centre)
    found, sums = 0.0, np.zeros(of.coefficients.shape)
    for log_likelihood, part in chunk_by_chunk(of, of.likeliest if hard else of.moments, rows):
        found += log_likelihood
        sums += part
    pooled = total(np.append(sums, found))
    if not np.isfinite(pooled[-1]):
        raise unfit("its likelihood is not finite")
    return Moments(pooled[:-1].reshape(sums.shape), of.centre, float(pooled[-1]))


def require_finite(rows: np.ndarray, first: int = 0) -> None:
    """Refuse rows (n, d) with values that are not finite numbers.

    Args:
        first: number of the first row.

    Raises:
        InputError: names the first such row.
    """
    for number, part in enumerate(reduction.blocks(rows)):
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            row = first + number * reduction.BLOCK + int(finite.argmin())
            raise InputError(f"components: row {row} of the training images has values that are not finite numbers")


def given(
    rows: np.ndarray, responsibilities: np.ndarray, covariance: Covariance, of: Portion | None = None
) -> Moments:  # fmt: skip
    """The moments of rows (n, d) with given responsibilities (n, m1); `of` says which of all rows they are."""
    of = of or Portion.whole(rows)
    centre, sums, step = of.total(rows.sum(axis=0, dtype=np.float64)) / of.n, 0, 1024
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        features = quadratic(rows[part] - centre, covariance)
        sums = sums + responsibilities[part].T.astype(np.float64) @ features
    return Moments(of.total(sums), centre)


def maximise(moments: Moments, covariance: Covariance, reg_covar: float) -> Mixture:
    """The M-step: the mixture with the moments, `reg_covar` added to all its variances.

    A component without rows ends up in the centre of all with next to no weight.
    """
    d, sums = len(moments.centre), moments.sums
    products, linear = sums[:, : -d - 1], sums[:, -d - 1 : -1]
    mass = np.maximum(sums[:, -1], 1e-9)[:, None]
    means, products = linear / mass, products / mass
    if covariance == "full":
        i, j = pairs(d)
        variances = np.empty((len(sums), d, d))
        variances[:, i, j] = variances[:, j, i] = products - means[:, i] * means[:, j]
        variances = _positive(variances, reg_covar)
    else:
        square = means**2
        if covariance == "spherical":
            square, products = square.sum(axis=1, keepdims=True) / d, products / d
        variances = np.broadcast_to(np.maximum(products - square, 0) + reg_covar, means.shape).copy()
    weights = mass[:, 0] / mass.sum()
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        raise unfit("its means or variances are not finite")
    return Mixture(weights, means + moments.centre, variances)


def _positive(matrices: np.ndarray, reg_covar: float) -> np.ndarray:
    """Covariances (m1, d, d) with `reg_covar` on the diagonal, rid of eigenvalues that rounding made negative."""
    regularised = matrices + reg_covar * np.eye(matrices.shape[1])
    try:
        np.linalg.cholesky(regularised)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrices)
        return (vectors * (np.maximum(values, 0) + reg_covar)[:, None]) @ vectors.transpose(0, 2, 1)
    return regularised


def fit(
    rows: np.ndarray, start: Mixture, covariance: Covariance, *, iterations: int, reg_covar: float,
    device: str = "cpu", report: Report = lambda _: None, tolerance: float = TOLERANCE, of: Portion | None = None,
) -> Mixture:  # fmt: skip
    """EM over all rows (n, d) from `start`, until the mean log-likelihood a row gains less than `tolerance`.

    Of all rows, `rows` are those that `of` says; without it, they are all.

    The likelihood never falls, with one exception. Since the regularisation makes the M-step inexact, a step may lower
    it: then the step is not taken, and EM has converged. The exception are components that are moved, each once at
    most, onto half of the rows of another (:func:`_reseeded`): dead ones at once, which changes next to nothing, and
    those that have collapsed onto a single row once EM has converged. Their likelihood has no bound but the
    regularisation, and they describe one image.
    """
    mixture = kept = start
    previous, reached = -np.inf, 0
    moved, of = np.zeros(len(start.weights), bool), of or Portion.whole(rows)
    with one_thread():
        while reached < iterations:
            reached += 1
            moments = expect(rows, mixture, covariance, device=device, total=of.total)
            found = moments.log_likelihood / of.n
            report(found)
            if found < previous - ROUNDING * abs(previous):
                return replace(kept, log_likelihood=previous, converged=True, iterations=reached,
                               reseeded=int(moved.sum()))  # fmt: skip
            kept, mixture = mixture, maximise(moments, covariance, reg_covar)
            converged = found - previous < tolerance
            poor = moments.sums[:, -1] < DEAD
            if converged:
                poor |= _collapsed(mixture, moments.sums[:, -1], reg_covar)
            mixture, now = _reseeded(mixture, poor & ~moved, of.n, reg_covar)
            moved |= now
            previous = -np.inf if now.any() else found
            if converged and not now.any():
                break
    return replace(mixture, log_likelihood=found, converged=bool(converged and not now.any()), iterations=reached,
                   reseeded=int(moved.sum()))  # fmt: skip


def fit_batches(
    rows: np.ndarray, start: Mixture, covariance: Covariance, *, batch: int, iterations: int, reg_covar: float,
    seed: int, device: str = "cpu", report: Report = lambda _: None, of: Portion | None = None,
) -> Mixture:  # fmt: skip
    """EM over random batches of rows (n, d), which may be mapped from a file, from `start`: for very many rows.

    Of all rows, from which the batches are drawn, `rows` are those that `of` says; without it, they are all.

    The first iteration is over all rows: batches alone would make the first components from a few rows each, and stay
    with them. Then each batch moves the running moments part of the way to its own, and the mixture follows; a pass
    over all rows counts as an iteration. The last one is over all rows again. The likelihood of a pass is that of its
    batches before they are learnt from, and need not rise. Components that are dead, or have collapsed, are moved after
    a pass of batches as in :func:`fit`.
    """
    of = of or Portion.whole(rows)
    n, rng, centre = of.n, np.random.default_rng(seed), start.centre
    how = {"device": device, "total": of.total}
    moved, step, reached, converged = np.zeros(len(start.weights), bool), 0, 1, False
    with one_thread():
        moments = expect(rows, start, covariance, **how)
        report(previous := moments.log_likelihood / n)
        mixture = maximise(moments, covariance, reg_covar)
        running = _implied(mixture, covariance, n, centre, reg_covar)
        while reached < iterations - 1 and not converged:
            total = 0.0
            for part in np.array_split(rng.permutation(n), max(1, n // batch)):
                mine = np.sort(part[(part >= of.first) & (part < of.first + len(rows))]) - of.first
                moments = expect(rows[mine], mixture, covariance, centre=centre, **how)
                total += moments.log_likelihood
                rate = (step + 2) ** -DECAY
                running = (1 - rate) * running + rate * n / len(part) * moments.sums
                mixture = maximise(Moments(running, centre), covariance, reg_covar)
                step += 1
            report(found := total / n)
            converged, previous, reached = found - previous < TOLERANCE, found, reached + 1
            mass = running[:, -1]
            poor = (mass < DEAD) | _collapsed(mixture, mass, reg_covar)
            mixture, now = _reseeded(mixture, poor & ~moved, n, reg_covar)
            if now.any():
                moved |= now
                running, converged = _implied(mixture, covariance, n, centre, reg_covar), False
        if reached < iterations:
            moments = expect(rows, mixture, covariance, **how)
            report(previous := moments.log_likelihood / n)
            mixture, reached = maximise(moments, covariance, reg_covar), reached + 1
    return replace(mixture, log_likelihood=previous, converged=bool(converged), iterations=reached,
                   reseeded=int(moved.sum()))  # fmt: skip


def _implied(mixture: Mixture, covariance: Covariance, n: int, centre: np.ndarray, reg_covar: float) -> np.ndarray:
    """The moments (m1, F) about `centre` of n rows for which :func:`maximise` gives the mixture."""
    means = mixture.means - centre
    if covariance == "full":
        i, j = pairs(means.shape[1])
        products = mixture.variances[:, i, j] - reg_covar * (i == j) + means[:, i] * means[:, j]
    else:
        products = mixture.variances - reg_covar + means**2
        if covariance == "spherical":
            products = products.sum(axis=1, keepdims=True)
    return n * mixture.weights[:, None] * np.concatenate([products, means, np.ones_like(means[:, :1])], axis=1)


def _collapsed(mixture: Mixture, mass: np.ndarray, reg_covar: float) -> np.ndarray:
    """Which components sit on a single row: bool (m1,)."""
    return (mass < SINGLE) & (diagonal(mixture).mean(axis=1) < 1.1 * reg_covar)


def _reseeded(mixture: Mixture, lost: np.ndarray, n: int, reg_covar: float) -> tuple[Mixture, np.ndarray]:
    """The mixture with lost components (bool (m1,)) moved onto halves of those of the largest inertia.

    A component is split along its longest axis into two of half the weight, with its mean and covariance together.

    Returns:
        The mixture, and which components were moved: none when no other has enough rows, or they are all the same.
    """
    moved = np.zeros_like(lost)
    if not lost.any():
        return mixture, moved
    weights, means, variances = mixture.weights.copy(), mixture.means.copy(), mixture.variances.copy()
    spread = diagonal(mixture).sum(axis=1) - reg_covar * means.shape[1]
    for one in np.flatnonzero(lost):
        inertia = np.where(lost & ~moved | (weights * n < DIVISIBLE), 0, weights * spread)
        other = int(inertia.argmax())
        if inertia[other] <= 1e-6 * weights[other] * reg_covar:
            break
        shift, rest = _halves(variances[other], reg_covar)
        weights[one] = weights[other] = weights[other] / 2
        means[one], means[other] = means[other] + shift, means[other] - shift
        variances[one] = variances[other] = rest
        spread[one] = spread[other] = spread[other] - shift @ shift
        moved[one] = True
    return replace(mixture, weights=weights / weights.sum(), means=means, variances=variances), moved


def _halves(variance: np.ndarray, reg_covar: float) -> tuple[np.ndarray, np.ndarray]:
    """How far the halves of a component with this variance (d,) or (d, d) are moved from its mean (d,), and theirs."""
    if variance.ndim == 2:
        values, vectors = np.linalg.eigh(variance)
        shift = SHIFT * np.sqrt(max(values[-1] - reg_covar, 0)) * vectors[:, -1]
        return shift, variance - np.outer(shift, shift)
    axis = int(variance.argmax())
    shift = np.zeros_like(variance)
    shift[axis] = SHIFT * np.sqrt(max(variance[axis] - reg_covar, 0))
    if (variance == variance[0]).all():  # spherical, and so are the halves
        return shift, variance - (shift @ shift) / len(variance)
    return shift, variance - shift**2


def lloyd(
    rows: np.ndarray, means: np.ndarray, *, iterations: int, device: str, report: Report = lambda _: None
) -> Mixture:  # fmt: skip
    """K-means of rows (n, d) from `means` (m1, d), as hard EM; empty clusters are moved onto halves of others.

    Returns:
        Equal weights, and the mean square distance of the rows to their means, per dimension, as all variances.
    """
    n, d = rows.shape
    total = float(reduction.moments(reduction.blocks(rows))[1].trace()) / d
    mixture, moved, converged, reached = _clusters(means, total), 0, False, 0
    with one_thread():
        while reached < iterations and not converged:
            reached += 1
            moments = expect(rows, mixture, "spherical", device=device, hard=True)
            found = maximise(moments, "spherical", 0)
            mass = moments.sums[:, -1]
            distortion = float(mass @ found.variances[:, 0]) / n
            report(-distortion)
            found, now = _reseeded(found, mass < DEAD, n, 0)
            moved += int(now.sum())
            held = np.where((mass < DEAD)[:, None] & ~now[:, None], mixture.means, found.means)
            converged = ((held - mixture.means) ** 2).sum() <= SHIFTED * total and not now.any()
            mixture = _clusters(held, distortion)
    return replace(mixture, converged=bool(converged), iterations=reached, reseeded=moved)


def _clusters(means: np.ndarray, variance: float) -> Mixture:
    return Mixture(np.full(len(means), 1 / len(means)), means.astype(np.float64), np.full(means.shape, variance))
