"""What the features of images tell of their codes, and of each image's code by those of all others."""

import numpy as np
from scipy.linalg import cholesky, solve_triangular

#: Random units, and the penalty on their weights as a share of the number of images.
UNITS, PENALTY = 2048, 0.03
#: Standard deviation of the units' thresholds, of which an image's projections have one of 1.
THRESHOLDS = 0.5


class BitRegression:
    """Ridge regression of bits on random rectified linear units of the features.

    It stands for the network: a hidden layer that is not learnt, so that the predictions of each image by all others
    have a closed form. The images' units are factorised once, for any number of codes.

    Source: random features of Rahimi and Recht, 2008 (Weighted Sums of Random Kitchen Sinks); left-out predictions by
    the leverages, Allen, 1974 (PRESS).
    """

    def __init__(self, features: np.ndarray, rng: np.random.Generator) -> None:
        """Take in the units of images with unit features (n, dim)."""
        self._directions = rng.standard_normal((features.shape[1], UNITS), np.float32)
        self._thresholds = THRESHOLDS * rng.standard_normal(UNITS, np.float32)
        units = self._active(features)
        self._mean, deviation = units.mean(axis=0), units.std(axis=0)
        self._scale = np.where(deviation > 1e-4, deviation, 1)  # a unit that all images have alike tells nothing
        self._units = (units - self._mean) / self._scale
        gram = (self._units.T @ self._units).astype(np.float64)
        gram[np.diag_indices_from(gram)] += PENALTY * len(features)
        self._factor = cholesky(gram, lower=True, overwrite_a=True).astype(np.float32)
        whitened = solve_triangular(self._factor, self._units.T, lower=True, check_finite=False)
        leverage = np.einsum("ij,ij->j", whitened, whitened) + 1 / len(features)
        self._rest = np.maximum(1 - leverage, 1e-3)[:, None]  # 0 for a single image

    def fit(self, codes: np.ndarray) -> np.ndarray:
        """Learn the codes (n, bits) of the images.

        Returns:
            predictions (n, bits) of each image's bits by the regression of all other images.
        """
        self._bias = codes.mean(axis=0)
        inner = solve_triangular(self._factor, self._units.T @ (codes - self._bias), lower=True, check_finite=False)
        self._weight = solve_triangular(self._factor, inner, lower=True, trans="T", check_finite=False)
        return codes - (codes - self._bias - self._units @ self._weight) / self._rest

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions (b, bits) of the bits of any images with unit features (b, dim)."""
        return (self._active(features) - self._mean) / self._scale @ self._weight + self._bias

    def _active(self, features: np.ndarray) -> np.ndarray:
        return np.maximum(features @ self._directions + self._thresholds, 0)
