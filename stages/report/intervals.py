"""Bootstrap confidence intervals of means over queries.

Percentile intervals: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13.
"""

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

#: Drawn numbers that are held in memory at a time.
_CHUNK = 1 << 22


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of `values` (q,), q at least 1: resampled with replacement; the same each time.

    It tells how much the choice of the queries matters; of the database, the training and its seed it tells nothing.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    means = [values[rng.integers(0, len(values), (min(rows, RESAMPLES - done), len(values)))].mean(axis=1)
             for done in range(0, RESAMPLES, rows)]  # fmt: skip
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
