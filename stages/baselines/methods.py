"""Hashing methods that are fitted on training features alone. A further one is one function and one line of METHODS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Alternating updates of ITQ; its paper uses 50.
ITQ_ITERATIONS = 50


@dataclass(frozen=True)
class Encoder:
    """Features (n, d) to (n, bits) values whose signs are the code: ``(features - mean) @ projection``."""

    mean: np.ndarray
    projection: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.projection


def lsh(train: np.ndarray, bits: int, rng: np.random.Generator) -> Encoder:
    """Signs of random Gaussian projections.

    Source: Charikar, *Similarity Estimation Techniques from Rounding Algorithms*, STOC 2002, section 3. The features
    are centred first, since those of CLIP lie in a narrow cone that most hyperplanes through 0 do not cut.

    Args:
        train: float (n_train, d). bits: length of the code.
    """
    mean = train.mean(axis=0)
    return Encoder(mean, rng.standard_normal((train.shape[1], bits)).astype(train.dtype))


def pca_sign(train: np.ndarray, bits: int, rng: np.random.Generator) -> Encoder:
    """Signs of the principal components, largest variance first.

    Source: the PCA-Direct baseline of Gong & Lazebnik, CVPR 2011, section 2. There are only d components: bits beyond
    them are signs of random directions.
    """
    mean, axes = _principal_axes(train, bits)
    further = rng.standard_normal((train.shape[1], bits - axes.shape[1])).astype(train.dtype)
    return Encoder(mean, np.hstack([axes, further]))


def itq(train: np.ndarray, bits: int, rng: np.random.Generator) -> Encoder:
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
    return Encoder(mean, axes @ rotation)


def _principal_axes(train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and the principal axes (d, min(count, d)), largest variance first.

    By the covariance, which has all d axes even where there are fewer training rows than dimensions.
    """
    mean = train.mean(axis=0)
    centred = train - mean
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    return mean, axes[:, ::-1][:, :count].astype(train.dtype)


#: Name of a method in the reports -> its fit function (training features, bits, random generator) -> encoder.
METHODS: dict[str, Callable[[np.ndarray, int, np.random.Generator], Encoder]] = {
    "lsh": lsh,
    "pca_sign": pca_sign,
    "itq": itq,
}
