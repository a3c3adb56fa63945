"""Densities of Gaussian mixtures as matrix products, chunk by chunk: what the E-step of EM costs.

The log of a Gaussian is linear in the products of its argument's entries. So with the quadratic features
f(x) = (x_i x_j, x_i, 1) of a row, the log joint densities of all components are one matrix product:

    log (w_k N(x | mu_k, S_k)) = f(x) . a_k,
    a_k = (-P_k / 2, P_k mu_k, log w_k - (d log(2 pi) + log |S_k| + mu_k^T P_k mu_k) / 2),    P_k = S_k^-1,

and what the M-step needs of n rows with responsibilities R is one more, R^T f(X). There are d (d + 1) / 2 products for
full covariances, of which S_k is symmetric, d for diagonal ones, and their sum alone for spherical ones.

Source: the natural parameters and sufficient statistics of the Gaussian; Bishop, Pattern Recognition and Machine
Learning, sections 2.3 and 9.2.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from stages.errors import InputError
from stages.workers import cores, run_threads

R = TypeVar("R")

#: Form of the covariances of a mixture.
Covariance = Literal["diagonal", "spherical", "full"]

#: Responsibilities held at a time by a core, which fit its cache, and on a GPU; rows of a chunk at most and at least.
CPU_ENTRIES, GPU_ENTRIES = 2**19, 2**26
MOST_ROWS, FEWEST_ROWS = 1024, 64
#: Rounding error of a log-density, in nats, from which on it is computed in double precision.
TOLERATED = 0.01


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture.

    Attributes:
        weights: (m1,), sum 1; means: (m1, d).
        variances: (m1, d) of diagonal and, all equal in a row, of spherical covariances; (m1, d, d) covariance matrices
            of full ones. The regularisation is already added.
        log_likelihood: mean log-likelihood a row, in nats, at the last EM iteration.
        converged, iterations: how EM ended; reseeded: components that were dead or had collapsed, and were moved.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    log_likelihood: float = float("nan")
    converged: bool = False
    iterations: int = 0
    reseeded: int = 0

    @property
    def centre(self) -> np.ndarray:
        """Mean of the whole mixture (d,). Rows are taken relative to it: less is lost to rounding."""
        return self.weights @ self.means / self.weights.sum()

    @property
    def form(self) -> Covariance:
        """A form of covariances that these have; spherical ones are diagonal, too."""
        return "full" if self.variances.ndim == 3 else "diagonal"


def diagonal(mixture: Mixture) -> np.ndarray:
    """Variances (m1, d) along the axes, whatever the form of the covariances."""
    return np.diagonal(mixture.variances, axis1=1, axis2=2) if mixture.variances.ndim == 3 else mixture.variances


def pairs(d: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries (i, j), i <= j, of a symmetric matrix in the order of the products of full covariances."""
    return np.triu_indices(d)


def quadratic(rows: np.ndarray, covariance: Covariance) -> np.ndarray:
    """f(X) of rows (n, d): (n, products + d + 1), in their precision."""
    n, d = rows.shape
    products = {"diagonal": d, "spherical": 1, "full": d * (d + 1) // 2}[covariance]
    found = np.empty((n, products + d + 1), rows.dtype)
    if covariance == "diagonal":
        np.square(rows, out=found[:, :d])
    elif covariance == "spherical":
        np.einsum("nd,nd->n", rows, rows, out=found[:, 0])
    else:
        start = 0
        for i in range(d):
            np.multiply(rows[:, i : i + 1], rows[:, i:], out=found[:, start : start + d - i])
            start += d - i
    found[:, products:-1], found[:, -1] = rows, 1
    return found


def coefficients(mixture: Mixture, covariance: Covariance, centre: np.ndarray) -> tuple[np.ndarray, float]:
    """The a_k of all components, for rows relative to `centre` (d,).

    Returns:
        float64 (m1, products + d + 1), and the order of magnitude of a log-density's parts before they cancel, from
        which rounding errors follow: the largest mean over the mixture of x^T P_k x.

    Raises:
        InputError: a covariance that is none: not positive definite, or not finite.
    """
    weights, variances = mixture.weights.astype(np.float64), mixture.variances.astype(np.float64)
    means, d = mixture.means - centre.astype(np.float64), mixture.means.shape[1]
    if covariance == "full":
        try:
            root = np.linalg.cholesky(variances)
            inverse = np.linalg.inv(root)
        except np.linalg.LinAlgError:
            raise unfit("a covariance is not positive definite") from None
        precision = inverse.transpose(0, 2, 1) @ inverse
        i, j = pairs(d)
        products = precision[:, i, j] * np.where(i == j, -0.5, -1.0)
        linear = np.einsum("kij,kj->ki", precision, means)
        log_determinant = 2 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        scale = np.diagonal(precision, axis1=1, axis2=2)
    else:
        if not (variances > 0).all():
            raise unfit("a variance is not positive")
        scale = 1 / variances
        products, linear = -0.5 * (scale[:, :1] if covariance == "spherical" else scale), scale * means
        log_determinant = np.log(variances).sum(axis=1)
    normalisation = d * np.log(2 * np.pi) + log_determinant + (linear * means).sum(axis=1)
    constant = np.log(np.maximum(weights, np.finfo(np.float64).tiny)) - 0.5 * normalisation
    square = weights @ (diagonal(mixture) + means**2)
    return np.concatenate([products, linear, constant[:, None]], axis=1), float((scale @ square).max())


def unfit(reason: str) -> InputError:
    return InputError(
        f"components: the mixture cannot be fitted ({reason}); set fewer components.fine or a larger "
        f"components.reg_covar"
    )


class Densities:
    """The densities of a mixture, on the cores of the CPU.

    Args:
        dtype: precision of the products; None: single where its rounding errors are tolerated, double elsewhere.
        centre: what the moments are about (d,); None: the centre of the mixture.
    """

    entries, most_rows = CPU_ENTRIES, MOST_ROWS

    def __init__(
        self, mixture: Mixture, covariance: Covariance, *, dtype: type | None = None,
        centre: np.ndarray | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.centre = mixture.centre if centre is None else centre
        found, magnitude = coefficients(mixture, covariance, self.centre)
        if dtype is None:
            dtype = np.float32 if magnitude * np.finfo(np.float32).eps < TOLERATED else np.float64
        if not magnitude * np.finfo(dtype).eps < 1:
            raise unfit("a variance is too small for the numbers of the machine")
        self.covariance, self.device, self.dtype = covariance, device, dtype
        self.coefficients = found.astype(dtype)
        self.rows = max(FEWEST_ROWS, min(self.most_rows, self.entries // max(found.shape)))

    @property
    def workers(self) -> int:
        """Chunks that are worked on at a time."""
        return cores()

    def _relative(self, rows: np.ndarray) -> np.ndarray:
        return np.subtract(rows, self.centre, dtype=np.float64).astype(self.dtype)

    def _joint(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f(X) (n, F), log joint densities (n, m1)."""
        features = quadratic(self._relative(rows), self.covariance)
        return features, features @ self.coefficients.T

    def _weighted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """f(X) (n, F), responsibilities (n, m1) that are not yet scaled, their sums (n, 1), log-densities (n,)."""
        features, joint = self._joint(rows)
        largest = joint.max(axis=1, keepdims=True)
        joint -= largest
        np.exp(joint, out=joint)
        total = joint.sum(axis=1, keepdims=True)
        return features, joint, total, (largest + np.log(total))[:, 0]

    def moments(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """Total log-likelihood of rows (n, d), and R^T f(X) (m1, F) relative to the centre."""
        features, joint, total, log_density = self._weighted(rows)
        features /= total  # far fewer than the responsibilities
        return float(log_density.sum(dtype=np.float64)), joint.T @ features

    def likeliest(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """The same when every row belongs to its likeliest component alone; its log joint density is the likelihood."""
        features, joint = self._joint(rows)
        component, each = joint.argmax(axis=1), np.arange(len(rows))
        one_hot = csr_array((np.ones(len(rows), self.dtype), (component, each)), (len(self.coefficients), len(rows)))
        return float(joint[each, component].sum(dtype=np.float64)), one_hot @ features

    def responsibilities(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """Total log-likelihood of rows (n, d), and R (n, m1)."""
        _, joint, total, log_density = self._weighted(rows)
        joint /= total
        return float(log_density.sum(dtype=np.float64)), joint


class DeviceDensities(Densities):
    """The same on a GPU, to which chunks of the rows go one after the other."""

    entries, most_rows, workers = GPU_ENTRIES, GPU_ENTRIES, 1

    def __init__(self, *args: Any, device: str, dtype: type | None = None, **options: Any) -> None:
        import torch  # the CPU does without

        if device.startswith("mps"):
            dtype = np.float32  # it has no other
        super().__init__(*args, device=device, dtype=dtype, **options)
        self._torch, self._on_device = torch, torch.from_numpy(self.coefficients).to(device)

    def _joint(self, rows: np.ndarray) -> tuple[Any, Any]:
        torch = self._torch
        x = torch.from_numpy(self._relative(rows)).to(self.device)
        if self.covariance == "full":
            i, j = (torch.from_numpy(index).to(self.device) for index in pairs(rows.shape[1]))
            products = x[:, i] * x[:, j]
        else:
            products = x.square()
            if self.covariance == "spherical":
                products = products.sum(dim=1, keepdim=True)
        features = torch.cat([products, x, torch.ones_like(x[:, :1])], dim=1)
        return features, features @ self._on_device.T

    def _weighted(self, rows: np.ndarray) -> tuple[Any, Any, Any, Any]:
        features, joint = self._joint(rows)
        largest = joint.amax(dim=1, keepdim=True)
        joint.sub_(largest).exp_()
        total = joint.sum(dim=1, keepdim=True)
        return features, joint, total, (largest + total.log())[:, 0]

    def moments(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        features, joint, total, log_density = self._weighted(rows)
        features.div_(total)
        return float(log_density.cpu().double().sum()), (joint.T @ features).cpu().numpy()

    def likeliest(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        features, joint = self._joint(rows)
        largest, component = joint.max(dim=1, keepdim=True)
        joint.zero_().scatter_(1, component, 1)  # a product adds up in the same order every time
        return float(largest.cpu().double().sum()), (joint.T @ features).cpu().numpy()

    def responsibilities(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        _, joint, total, log_density = self._weighted(rows)
        return float(log_density.cpu().double().sum()), joint.div_(total).cpu().numpy()


def densities(
    rows: np.ndarray, mixture: Mixture, covariance: Covariance, *, device: str, centre: np.ndarray | None = None
) -> Densities:  # fmt: skip
    """The densities of a mixture on a device, in no less than the precision of the rows."""
    kind = Densities if device == "cpu" else DeviceDensities
    dtype = np.float64 if rows.dtype == np.float64 else None
    return kind(mixture, covariance, dtype=dtype, centre=centre, device=device)


def one_thread() -> AbstractContextManager[Any]:
    """Within, a matrix product takes one core: the chunks take all of them, and nothing depends on how many."""
    return threadpool_limits(1, user_api="blas")


def chunk_by_chunk(of: Densities, work: Callable[[np.ndarray], R], rows: np.ndarray) -> Iterator[R]:
    """``work(chunk)`` for chunks of the rows, in order; within :func:`one_thread`."""
    chunks = [rows[start : start + of.rows] for start in range(0, len(rows), of.rows)]
    if of.workers == 1 or len(rows) * len(of.coefficients) <= 2 * of.entries:  # for so little, threads take longer
        yield from map(work, chunks)
    else:
        yield from run_threads(work, chunks, of.workers)
