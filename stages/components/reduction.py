"""Means, covariances and principal axes of rows that come block by block, and may be shared out among processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

#: Rows in a block of an array.
BLOCK = 8192


#: The sum of float64 arrays of one shape, one of each process that has a part of the rows: the same bits in all.
Total = Callable[[np.ndarray], np.ndarray]


def alone(array: np.ndarray) -> np.ndarray:
    """:data:`Total` of a process that has all rows."""
    return array


@dataclass(frozen=True)
class Portion:
    """The rows that this process has of those that all processes have together.

    Attributes:
        first: number of its first row among the `n` rows of all.
        total: adds up what the processes found.
    """

    first: int
    n: int
    total: Total = alone

    @classmethod
    def whole(cls, rows: np.ndarray) -> "Portion":
        """All rows there are."""
        return cls(0, len(rows))


@dataclass(frozen=True)
class Axes:
    """Principal axes: `mean` (d,), `components` (p, d) unit rows by falling variance, `variances` (p,)."""

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray

    def project(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, d) along the axes: float32 (n, p)."""
        return (rows - self.mean) @ self.components.T


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive parts of rows (n, d)."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def moments(parts: Iterable[np.ndarray], total: Total = alone) -> tuple[np.ndarray, np.ndarray]:
    """Mean float64 (d,) and covariance float64 (d, d), by n, of the rows of all parts; there is at least one row.

    Args:
        total: of processes that have parts of the rows, each at least one.
    """
    shift, n, sums, products = None, 0, 0, 0
    for part in parts:
        rows = part.astype(np.float64)
        if shift is None:
            shift = total(rows.sum(axis=0)) / total(np.array(float(len(rows))))  # so that next to nothing cancels
        rows -= shift
        n, sums, products = n + len(rows), sums + rows.sum(axis=0), products + rows.T @ rows
    n = total(np.array(float(n)))
    offset = total(sums) / n
    return shift + offset, total(products) / n - np.outer(offset, offset)


def principal_axes(parts: Iterable[np.ndarray], p: int) -> Axes:
    """The `p` principal axes of the rows; the largest entry of each is positive, so that its sign is determined."""
    mean, covariance = moments(parts)
    values, vectors = np.linalg.eigh(covariance)
    components = vectors.T[::-1][:p]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.where(largest < 0, -1, 1)
    return Axes(mean.astype(np.float32), components.astype(np.float32), np.maximum(values[::-1][:p], 0))


def regularisation(rows: np.ndarray, share: float, total: Total = alone) -> float:
    """What is added to every variance of a mixture of rows (n, d): `share` of their largest variance, at least 1e-6.

    That is the variance along the first principal axis. With next to nothing added, the responsibilities are all but
    one-hot in as many as 32 dimensions, and images know of no component but their own. The more is added, the softer
    they are; when the components are wider than the data all of them merge, so 1 is far too much.
    """
    return max(share * float(np.linalg.eigvalsh(moments(blocks(rows), total)[1])[-1]), 1e-6)
