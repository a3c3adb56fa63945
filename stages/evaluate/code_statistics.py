"""Statistics of binary codes that need no labels."""

import numpy as np

from stages.codes import unpack

_CHUNK_ROWS = 65536


def bit_moments(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and correlations of the bits as -1 and +1.

    Args:
        packed: codes, uint8 (n, bits / 8), n at least 1.

    Returns:
        The mean of each bit (bits,), and the Pearson correlations of the pairs (bits, bits); NaN with a bit that never
        varies, whose mean is -1 or 1.
    """
    bits = packed.shape[1] * 8
    total, products = np.zeros(bits), np.zeros((bits, bits))
    for start in range(0, len(packed), _CHUNK_ROWS):
        signs = unpack(packed[start : start + _CHUNK_ROWS]).astype(np.float32)  # sums stay exact below 2^24 rows
        total += signs.sum(axis=0)
        products += signs.T @ signs
    mean = total / len(packed)
    alive = np.flatnonzero(np.abs(total) < len(packed))
    deviation = np.sqrt(1 - mean[alive] ** 2)
    covariance = products[np.ix_(alive, alive)] / len(packed) - np.outer(mean[alive], mean[alive])
    correlation = np.full((bits, bits), np.nan)
    correlation[np.ix_(alive, alive)] = covariance / np.outer(deviation, deviation)
    return mean, correlation


def code_statistics(packed: np.ndarray) -> dict[str, float | int]:
    """How well the codes use their bits.

    Args:
        packed: codes, uint8 (n, bits / 8), n at least 1.

    Returns:
        bit_balance: mean over bits of |mean of the bit as -1/+1|: 0 when each is +1 for half of the images, 1 when none
            varies (the bit-balance term of the hashing literature; lower is better).
        bit_correlation: mean |Pearson correlation| over pairs of different bits, of those that vary; 0 when fewer than
            two do. Lower is better.
        dead_bits: bits with the same value in all codes.
        distinct_codes: number of different codes.
    """
    mean, correlation = bit_moments(packed)
    alive = np.flatnonzero(np.abs(mean) < 1)
    strength = 0.0
    if len(alive) > 1:
        matrix = np.abs(correlation[np.ix_(alive, alive)])
        strength = float((matrix.sum() - np.trace(matrix)) / (len(alive) * (len(alive) - 1)))
    rows = np.ascontiguousarray(packed).view(f"V{packed.shape[1]}")
    return {
        "bit_balance": float(np.abs(mean).mean()),
        "bit_correlation": strength,
        "dead_bits": len(mean) - len(alive),
        "distinct_codes": len(np.unique(rows)),
    }
