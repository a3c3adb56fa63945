"""Hashing methods that are fitted on training features alone. A further one is one function and one line of METHODS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Alternating updates of ITQ; its paper uses 50.
ITQ_ITERATIONS = 50

#: Spherical hashing: training rows drawn, rows whose mean is a first pivot, moves of the pivots at most, and the mean
#: and the spread of the overlaps' errors at which they stop, as shares of n / 4.
SPHERES_ROWS, SPHERES_START, SPHERES_ITERATIONS = 10_000, 5, 100
SPHERES_MEAN, SPHERES_SPREAD = 0.10, 0.15
#: Pivots no further from 0 than this multiple of the furthest image.
SPHERES_REACH = 1000

#: Features (n, d) to (n, bits) values whose signs are the code.
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hyperplanes:
    """The code of a side of each hyperplane: ``(features - mean) @ projection``."""

    mean: np.ndarray
    projection: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.projection


@dataclass(frozen=True)
class Eigenfunctions:
    """Spectral hashing: cosines along the principal axes of the data's box.

    Attributes:
        mean: (d,); axes: (d, bits), the principal axis of each bit; low: (bits,) where the box begins on it.
        frequency: (bits,), k pi / (length of the box on that axis) for the k-th eigenfunction.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    frequency: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return np.cos(((features - self.mean) @ self.axes - self.low) * self.frequency)


@dataclass(frozen=True)
class Spheres:
    """The code of being inside of each hypersphere: squared radius minus squared distance to the pivot.

    Attributes:
        pivots: (bits, d); squared_radii: (bits,).
    """

    pivots: np.ndarray
    squared_radii: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.squared_radii - _squared_distances(features, self.pivots)


def lsh(train: np.ndarray, bits: int, rng: np.random.Generator) -> Hyperplanes:
    """Signs of random Gaussian projections.

    Source: Charikar, *Similarity Estimation Techniques from Rounding Algorithms*, STOC 2002, section 3. The features
    are centred first, since those of CLIP lie in a narrow cone that most hyperplanes through 0 do not cut.

    Args:
        train: float (n_train, d). bits: length of the code.
    """
    mean = train.mean(axis=0)
    return Hyperplanes(mean, rng.standard_normal((train.shape[1], bits)).astype(train.dtype))


def pca_sign(train: np.ndarray, bits: int, rng: np.random.Generator) -> Hyperplanes:
    """Signs of the principal components, largest variance first.

    Source: the PCA-Direct baseline of Gong & Lazebnik, CVPR 2011, section 2. There are only d components: bits beyond
    them are signs of random directions.
    """
    mean, axes = _principal_axes(train, bits)
    further = rng.standard_normal((train.shape[1], bits - axes.shape[1])).astype(train.dtype)
    return Hyperplanes(mean, np.hstack([axes, further]))


def spectral(train: np.ndarray, bits: int, rng: np.random.Generator) -> Eigenfunctions:
    """Spectral hashing (SH): signs of the smoothest eigenfunctions of the data's box along its principal axes.

    Source: Weiss, Torralba & Fergus, *Spectral Hashing*, NIPS 2008, section 3. Of a uniform distribution on [a, b] the
    eigenfunctions are ``sin(pi / 2 + k pi (x - a) / (b - a))``, the smoother the smaller k / (b - a); of a box, those
    of its sides. The `bits` smoothest of all axes are taken, so wide axes give several bits and any number is possible.

    Args:
        rng: not drawn from.
    """
    mean, axes = _principal_axes(train, bits)
    reduced = (train - mean) @ axes
    low, length = reduced.min(axis=0), np.ptp(reduced, axis=0)
    length = np.maximum(length, np.finfo(train.dtype).eps)  # an axis without spread comes last
    frequency = np.pi * np.arange(1, bits + 1)[:, None] / length.astype(np.float64)  # (k, axis)
    order, axis = np.unravel_index(np.argsort(frequency, axis=None, kind="stable")[:bits], frequency.shape)
    return Eigenfunctions(mean, axes[:, axis], low[axis], frequency[order, axis].astype(train.dtype))


def spherical(train: np.ndarray, bits: int, rng: np.random.Generator) -> Spheres:
    """Spherical hashing: hyperspheres that each hold half of the images, and any two of them a quarter.

    Source: Heo et al., *Spherical Hashing*, CVPR 2012, section 3.3. The pivots repel each other where two spheres share
    more than n / 4 images and attract where fewer; a radius is the median distance to its pivot. The codes are ranked
    by the Hamming distance as those of every method here, not by the spherical Hamming distance of the paper.
    """
    rows = train[np.sort(rng.permutation(len(train))[:SPHERES_ROWS])]
    start = min(SPHERES_START, len(rows))
    pivots = np.stack([rows[rng.permutation(len(rows))[:start]].mean(axis=0) for _ in range(bits)])
    quarter = len(rows) / 4
    pairs = ~np.eye(bits, dtype=bool)
    for _ in range(SPHERES_ITERATIONS):
        distances = _squared_distances(rows, pivots)
        inside = (distances <= np.median(distances, axis=0)).astype(train.dtype)
        surplus = np.where(pairs, (inside.T @ inside - quarter) / quarter, 0)
        errors = surplus[pairs]
        if not errors.size or (np.abs(errors).mean() <= SPHERES_MEAN and errors.std() <= SPHERES_SPREAD):
            break
        # sum over j of surplus_ij (p_i - p_j) / 2, over the number of pivots
        forces = (surplus.sum(axis=1, keepdims=True) * pivots - surplus @ pivots) / (2 * bits)
        moved = pivots + forces.astype(train.dtype)
        if np.abs(moved).max() > SPHERES_REACH * np.abs(rows).max():  # of equal images every sphere holds all
            break
        pivots = moved
    return Spheres(pivots, np.median(_squared_distances(rows, pivots), axis=0))


def itq(train: np.ndarray, bits: int, rng: np.random.Generator) -> Hyperplanes:
    """Iterative quantization: PCA, then the rotation R that brings the data V nearest to their signs, min |B - VR|.

    Source: Gong & Lazebnik, *Iterative Quantization: A Procrustean Approach to Learning Binary Codes*, CVPR 2011,
    section 2. With more bits than dimensions, R is a tight frame (d x bits, orthonormal rows, R R^T = I) in place of
    a square rotation: |VR| stays constant, so the same two alternating updates are still exact.
    """
    mean, axes = _principal_axes(train, bits)
    reduced = (train - mean) @ axes
    rotation = np.linalg.qr(rng.standard_normal((bits, axes.shape[1])))[0].T.astype(train.dtype)
    for _ in range(ITQ_ITERATIONS):
        signs = np.where(reduced @ rotation >= 0, 1, -1).astype(train.dtype)
        left, _, right = np.linalg.svd(reduced.T @ signs, full_matrices=False)
        rotation = left @ right
    return Hyperplanes(mean, axes @ rotation)


def _squared_distances(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of rows (n, d) and points (m, d): (n, m)."""
    return (rows**2).sum(axis=1, keepdims=True) - 2 * rows @ points.T + (points**2).sum(axis=1)


def _principal_axes(train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and the principal axes (d, min(count, d)), largest variance first.

    By the covariance, which has all d axes even where there are fewer training rows than dimensions.
    """
    mean = train.mean(axis=0)
    centred = train - mean
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    return mean, axes[:, ::-1][:, :count].astype(train.dtype)


#: Name of a method in the reports -> its fit function (training features, bits, random generator) -> encoder.
METHODS: dict[str, Callable[[np.ndarray, int, np.random.Generator], Encode]] = {
    "lsh": lsh,
    "pca_sign": pca_sign,
    "sh": spectral,
    "itq": itq,
    "spherical": spherical,
}
