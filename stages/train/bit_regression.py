"""What the features of images tell of their codes, and of each image's code by those of all others."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

#: Random units, and the penalty on their weights as a share of the number of images.
UNITS, PENALTY = 2048, 0.03
#: Standard deviation of the units' thresholds, of which an image's projections have one of 1.
THRESHOLDS = 0.5


@dataclass(frozen=True)
class BitPredictor:
    """Predicts bits from features: a linear map of standardised rectified units.

    Attributes:
        directions, thresholds: of the units, (dim, units) and (units,).
        mean, scale: what the units are standardised by, (units,).
        weight, bias: (units, bits) and (bits,).
    """

    directions: np.ndarray
    thresholds: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions float32 (b, bits), around -1 and 1, for images with unit features (b, dim)."""
        units = _active(features, self.directions, self.thresholds)
        return (units - self.mean) / self.scale @ self.weight + self.bias


class BitRegression:
    """Ridge regression of bits on random rectified linear units of the features.

    It stands for the network: a hidden layer that is not learnt, so that the predictions of each image by all others
    have a closed form. The images' units are factorised once, for any number of codes, in double precision: what an
    image leaves to the others is little where there are fewer images than units.

    Source: random features of Rahimi and Recht, 2008 (Weighted Sums of Random Kitchen Sinks); left-out predictions by
    the leverages, Allen, 1974 (PRESS).
    """

    def __init__(self, features: np.ndarray, rng: np.random.Generator) -> None:
        """Take in the units of images with unit features (n, dim)."""
        self._directions = rng.standard_normal((features.shape[1], UNITS), np.float32)
        self._thresholds = THRESHOLDS * rng.standard_normal(UNITS, np.float32)
        units = _active(features, self._directions, self._thresholds).astype(np.float64)
        self._mean, deviation = units.mean(axis=0), units.std(axis=0)
        self._scale = np.where(deviation > 1e-4, deviation, 1)  # a unit that all images have alike tells nothing
        self._units = (units - self._mean) / self._scale
        gram = self._units.T @ self._units
        gram[np.diag_indices_from(gram)] += PENALTY * len(features)
        self._factor = cholesky(gram, lower=True, overwrite_a=True)
        whitened = self._solve(self._units.T)
        leverage = np.einsum("ij,ij->j", whitened, whitened) + 1 / len(features)
        self._others = np.maximum(1 - leverage, 1e-9)[:, None]  # nothing, of a single image

    def fit(self, codes: np.ndarray) -> tuple[np.ndarray, BitPredictor]:
        """Learn the codes (n, bits) of the images.

        Returns:
            predictions (n, bits) of each image's bits by the regression of all other images; and what predicts the
            bits of other images.
        """
        bias = codes.mean(axis=0, dtype=np.float64)
        weight = self._solve(self._solve(self._units.T @ (codes - bias)), trans="T")
        left_out = codes - (codes - bias - self._units @ weight) / self._others
        learnt = (array.astype(np.float32) for array in (self._mean, self._scale, weight, bias))
        return left_out.astype(np.float32), BitPredictor(self._directions, self._thresholds, *learnt)

    def _solve(self, right: np.ndarray, trans: str = "N") -> np.ndarray:
        return solve_triangular(self._factor, right, lower=True, trans=trans, check_finite=False)


def _active(features: np.ndarray, directions: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return np.maximum(features @ directions + thresholds, 0)
