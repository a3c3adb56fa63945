"""What bits mean: their correlation with the concepts and components of the images, and the mean code of each of these.

Sums are kept, not images, so any number of images comes in blocks.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Profile:
    """What the K bits have to do with v concepts, or with v components.

    Attributes:
        names: one each.
        correlation: (v, K), see :meth:`BitMoments.correlation`.
        mean_code: (v, K), see :meth:`BitMoments.mean_code`.
    """

    names: list[str]
    correlation: np.ndarray
    mean_code: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Bool (v,): whether any image has it."""
        return (self.mean_code != 0).any(axis=1)


class BitMoments:
    """First and second moments of bits and shares over the images of all blocks that were added.

    The centred sums of two blocks are joined exactly (Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979), so that shares of nearly the same size do not cancel.
    """

    def __init__(self, bits: int, shares: int) -> None:
        self.n = 0
        self._bits, self._shares = _Column(bits), _Column(shares)
        self._cross = np.zeros((shares, bits))

    def add(self, signs: np.ndarray, shares: np.ndarray) -> None:
        """Add a block of b images.

        Args:
            signs: (b, K) in {-1, +1}.
            shares: (b, v) of at least 0: how much of each concept, or component, an image has.
        """
        block = len(signs)
        if not block:
            return
        signs, sign_step = self._bits.add(np.asarray(signs, np.float64), self.n)
        shares, share_step = self._shares.add(np.asarray(shares, np.float64), self.n)
        self._cross += shares.T @ signs + self.n * block / (self.n + block) * np.outer(share_step, sign_step)
        self.n += block

    def correlation(self) -> np.ndarray:
        """Pearson correlation (v, K) of each bit with each share.

        With a share between 0 and 1 it is the point-biserial coefficient, with one that is 0 or 1 the phi coefficient.
        A bit or a share that is the same in all images correlates with nothing: 0.
        """
        deviations = np.outer(np.sqrt(self._shares.squares), np.sqrt(self._bits.squares))
        varies = np.outer(self._shares.varies, self._bits.varies) & (deviations > 0)
        result = np.divide(self._cross, deviations, out=np.zeros_like(self._cross), where=varies)
        return np.clip(result, -1, 1)

    def mean_code(self) -> np.ndarray:
        """The mean code (v, K) in [-1, 1] of the images, each weighted with its share; zeros where no image has any."""
        total = self.n * self._shares.mean[:, None]
        weighted = self._cross + total * self._bits.mean
        return np.clip(np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0), -1, 1)

    @property
    def constant_bits(self) -> int:
        """Bits with the same value in all images."""
        return int((~self._bits.varies).sum())


class _Column:
    """Mean, centred sum of squares, and range of columns."""

    def __init__(self, size: int) -> None:
        self.mean, self.squares = np.zeros(size), np.zeros(size)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, rows: np.ndarray, before: int) -> tuple[np.ndarray, np.ndarray]:
        """Add rows to `before` others; the rows less their mean, and that less the mean of the others."""
        block, mean = len(rows), rows.mean(axis=0)
        step = mean - self.mean
        self._low, self._high = np.minimum(self._low, rows.min(axis=0)), np.maximum(self._high, rows.max(axis=0))
        centred = rows - mean
        self.squares += np.einsum("ij,ij->j", centred, centred) + step**2 * (before * block / (before + block))
        self.mean += step * (block / (before + block))
        return centred, step

    @property
    def varies(self) -> np.ndarray:
        """Told by the range, which has no rounding: the squares of a constant like 0.1 are not quite 0."""
        return self._high > self._low


def strongest(correlation: np.ndarray, top: int) -> list[list[int]]:
    """The rows that correlate most with each bit, whatever the sign, strongest first; those at 0 are left out.

    Args:
        correlation: (v, K).

    Returns:
        K lists of at most `top` row numbers.
    """
    order = np.argsort(-np.abs(correlation), axis=0, kind="stable")[:top]
    return [[int(row) for row in rows if correlation[row, bit]] for bit, rows in enumerate(order.T)]


def likeness(signs: np.ndarray, mean_codes: np.ndarray) -> np.ndarray:
    """Cosine (q, v) of codes (q, K) with mean codes (v, K); -1 for a mean code of zeros, which no image has.

    The cosine rather than the Hamming distance to the sign: bits on which the images of a concept disagree count less.
    """
    lengths = np.linalg.norm(mean_codes, axis=1)
    units = mean_codes / np.where(lengths > 0, lengths, 1)[:, None]
    return np.where(lengths > 0, signs @ units.T / signs.shape[1] ** 0.5, -1.0)


def hamming(signs: np.ndarray, mean_codes: np.ndarray) -> np.ndarray:
    """Hamming distances (q, v) of codes (q, K) to the signs of mean codes (v, K), 0 counting as +1."""
    return (signs[:, None, :] != np.where(mean_codes >= 0, 1, -1)[None]).sum(axis=2)
