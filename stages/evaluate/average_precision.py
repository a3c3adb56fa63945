"""Average precision at a cut-off, of a given order and in expectation over random order within ties.

AP@k divides by the number of relevant items *found in the first k*, as the hashing literature does; a query that finds
none counts 0. Both functions are exact at every cut-off.
"""

from collections.abc import Sequence

import numpy as np


def average_precision(lists: Sequence[np.ndarray], cutoffs: Sequence[int]) -> np.ndarray:
    """AP@k of ranked lists.

    Args:
        lists: int (h,) for each, the ranks of its relevant items, from 1, ascending.
        cutoffs: the k of AP@k, each at least 1; one beyond the end means all.

    Returns:
        float64 (len(lists), len(cutoffs)).
    """
    most = max(map(len, lists))
    place, total = np.arange(1.0, 1 + most), np.zeros(1 + most)
    result = np.empty((len(lists), len(cutoffs)))
    for row, ranks in zip(result, lists, strict=True):
        found = ranks.searchsorted(cutoffs, side="right")
        np.cumsum(place[: len(ranks)] / ranks, out=total[1 : 1 + len(ranks)])  # of the precisions at the hits before
        np.divide(total[found], np.maximum(found, 1), out=row)
    return result


def expected_average_precision(items: np.ndarray, relevant: np.ndarray, cutoffs: Sequence[int]) -> np.ndarray:
    """AP@k in expectation over uniformly random order within each tie; exact, from counts alone.

    A tie of t items, r of them relevant, that follows n items with a relevant ones adds to the numerator
    ``(r/t) sum_{j=1..t} (a + 1 + (j-1)(r-1)/(t-1)) / (n + j)``. Of the tie that straddles the cut only the first
    u = k - n places count; the h relevant ones among them are hypergeometric, and given h they add the same sum with
    (u, h) for (t, r), over the denominator a + h.

    Args:
        items: int (n_queries, n_ties), the number of items at each distance, nearest first; rows have equal sums.
        relevant: int (n_queries, n_ties), how many of them are relevant.
        cutoffs: the k of AP@k, each at least 1; one beyond the number of items means all.

    Returns:
        float64 (n_queries, len(cutoffs)).
    """
    items, relevant = items.astype(np.int64), relevant.astype(np.int64)
    items_until, relevant_until = np.cumsum(items, axis=1), np.cumsum(relevant, axis=1)
    items_before, relevant_before = items_until - items, relevant_until - relevant
    n = int(items_until[0, -1])
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
    whole = np.cumsum(_tie(harmonic, items_before, relevant_before, items, relevant), axis=1)

    rows = np.arange(len(items))
    result = np.zeros((len(items), len(cutoffs)))
    for column, k in enumerate(cutoffs):
        k = min(k, n)
        tie = np.count_nonzero(items_until < k, axis=1)  # the one that holds place k
        before, found = items_before[rows, tie], relevant_before[rows, tie]
        sum_before = np.where(tie > 0, whole[rows, np.maximum(tie - 1, 0)], 0.0)[:, None]
        places = k - before
        among, probability = _hypergeometric(items[rows, tie], relevant[rows, tie], places)
        inside = _tie(harmonic, before[:, None], found[:, None], places[:, None], among)
        result[:, column] = np.sum(probability * (sum_before + inside) / np.maximum(found[:, None] + among, 1), axis=1)
    return result


def _tie(
    harmonic: np.ndarray, before: np.ndarray, found: np.ndarray, places: np.ndarray, relevant: np.ndarray
) -> np.ndarray:
    """The sum of :func:`expected_average_precision` for ties of `places` items, `relevant` of them relevant.

    With H the harmonic numbers, ``sum 1/(n+j) = H(n+t) - H(n)`` and ``sum (j-1)/(n+j) = t - (n+1)(H(n+t) - H(n))``.
    """
    reciprocals = harmonic[before + places] - harmonic[before]
    rising = places - (before + 1) * reciprocals
    slope = (relevant - 1) / np.maximum(places - 1, 1)  # a tie of one has rising = 0
    return relevant / np.maximum(places, 1) * ((found + 1) * reciprocals + slope * rising)


def _hypergeometric(items: np.ndarray, relevant: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of the number of relevant items among the first places of a tie in random order.

    Args:
        items, relevant, places: int (n_queries,); places <= items.

    Returns:
        Values, int (n_queries, width), and their probabilities, float64 of the same shape, rows of sum 1. The width is
        that of the support or, where narrower, of the interval that Hoeffding's inequality leaves less than 1e-16
        outside of (deviation s: at most 2 exp(-2 s^2 / v), v the smallest of the four margins).
    """
    lowest, highest = np.maximum(0, places - (items - relevant)), np.minimum(relevant, places)
    margin = np.minimum.reduce([places, items - places, relevant, items - relevant])
    spread = np.ceil(np.sqrt(20.0 * margin)).astype(np.int64) + 1
    centre = places * relevant // items
    lowest, highest = np.maximum(lowest, centre - spread), np.minimum(highest, centre + 1 + spread)
    values = lowest[:, None] + np.arange(np.max(highest - lowest) + 1)
    valid = values <= highest[:, None]
    values = np.where(valid, values, highest[:, None])

    # log of the ratio of each probability to the one before it: no factorial, so no cancellation at large counts
    previous = np.where(valid[:, 1:], values[:, 1:] - 1, lowest[:, None])
    items, relevant, places = items[:, None], relevant[:, None], places[:, None]
    ratio = (relevant - previous) * (places - previous) / (
        (previous + 1) * (items - relevant - places + previous + 1.0)
    )  # fmt: skip
    log_ratio = np.log(ratio, out=np.zeros_like(ratio), where=valid[:, 1:])
    log_probability = np.concatenate([np.zeros(valid[:, :1].shape), np.cumsum(log_ratio, axis=1)], axis=1)
    probability = np.exp(log_probability - log_probability.max(axis=1, keepdims=True)) * valid
    return values, probability / probability.sum(axis=1, keepdims=True)
