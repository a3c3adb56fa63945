"""Mean, spread and paired tests of the results, on a data frame with one row a measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from stages.benchmark.results import QUERY

#: Random sign flips of the test over queries; the smallest p is 1 in one more than that.
FLIPS = 9999

#: Differences with a smaller corrected p are called significant.
LEVEL = 0.05

#: Sign flips that are held in memory at a time.
_CHUNK = 500


@dataclass(frozen=True)
class Comparison:
    """A method against the best one of its column.

    Attributes:
        dataset, metric, bits: the column; best, method: the two.
        difference: mean of `method` less that of `best`, at most 0.
        p_seeds: two-sided paired t-test over the seeds, of their metric; None with fewer than two seeds, or where the
            differences of all seeds are the same.
        p_queries: two-sided paired permutation test (random signs) over the queries, of their average precision, mean
            over the seeds; None where it is not at hand. Both after Holm's correction over the methods of the column.
    """

    dataset: str
    metric: str
    bits: int
    best: str
    method: str
    difference: float
    p_seeds: float | None
    p_queries: float | None


def values(frame: pd.DataFrame, metric: str) -> pd.Series:
    """The tie-aware values of `metric`; for real-valued references, which have none, the stable ones."""
    stable = frame.get(f"{metric}_stable")
    tie_aware = frame.get(f"{metric}_tie_aware")
    if tie_aware is None or stable is None:
        return pd.Series(np.nan, index=frame.index, dtype=float)
    return tie_aware.fillna(stable).astype(float)


def summary(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """``mean``, ``std`` (of a sample; NaN for a single seed) and ``seeds`` by dataset, method and bits.

    The bits of references are -1.
    """
    parts = frame.assign(value=values(frame, metric), bits=frame["bits"].fillna(-1).astype(int))
    grouped = parts.dropna(subset="value").groupby(["dataset", "method", "bits"], sort=False)["value"]
    return grouped.agg(mean="mean", std="std", seeds="count")


def comparisons(frame: pd.DataFrame, metrics: Sequence[str]) -> list[Comparison]:
    """Every method against the best of its data set, metric and code length, on the seeds that both have.

    The best is the one with the largest mean. It is chosen on the same numbers, which favours it.
    """
    binary = frame[frame["bits"].notna()]
    result = []
    for metric in metrics:
        measured = binary.assign(value=values(binary, metric)).dropna(subset="value")
        for (dataset, bits), column in measured.groupby(["dataset", "bits"], sort=False):
            means = column.groupby("method", sort=False)["value"].mean()
            best = means.idxmax()
            others = [method for method in means.index if method != best]
            by_seed = column.pivot(index="seed", columns="method", values="value")
            by_query = query_means(column, metric)
            p_seeds = holm([seed_test(by_seed[[method, best]].dropna()) for method in others])
            p_queries = holm(query_tests(by_query, best, others))
            for method, over_seeds, over_queries in zip(others, p_seeds, p_queries, strict=True):
                result.append(Comparison(str(dataset), metric, int(bits), str(best), method,
                                         float(means[method] - means[best]), over_seeds, over_queries))  # fmt: skip
    return result


def seed_test(pairs: pd.DataFrame) -> float | None:
    """p of a paired t-test of two columns, one row a seed."""
    first, second = pairs.to_numpy().T
    if len(first) < 2 or np.ptp(first - second) == 0:
        return None
    return float(ttest_rel(first, second).pvalue)


def query_means(column: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """By method: the average precision of each query, mean over the seeds; of those methods that have it."""
    name = QUERY + metric.removeprefix("map_")
    if name not in column:
        return {}
    known = column[column[name].notna()]
    return {str(method): np.mean(np.stack(list(part[name])).astype(np.float64), axis=0)
            for method, part in known.groupby("method", sort=False)}  # fmt: skip


def query_tests(by_query: dict[str, np.ndarray], best: str, others: Sequence[str]) -> list[float | None]:
    """p of each of `others` against `best`: how often random signs give a mean difference as large."""
    tested = [method for method in others if method in by_query] if best in by_query else []
    if not tested:
        return [None] * len(others)
    differences = np.stack([by_query[method] - by_query[best] for method in tested], axis=1)
    found = dict(zip(tested, sign_flip_test(differences), strict=True))
    return [found.get(method) for method in others]


def sign_flip_test(differences: np.ndarray, flips: int = FLIPS, seed: int = 0) -> list[float]:
    """Two-sided paired permutation tests that the mean of each column of (n, tests) is 0.

    Under the null hypothesis a pair is as likely the other way round: its difference has either sign.
    """
    rng = np.random.default_rng(seed)
    n = len(differences)
    observed = np.abs(differences.sum(axis=0))
    as_large = np.zeros(differences.shape[1], np.int64)
    for start in range(0, flips, _CHUNK):
        signs = rng.integers(0, 2, (min(_CHUNK, flips - start), n), dtype=np.int8) * 2.0 - 1.0
        # Sums that are equal but for rounding count as equal.
        as_large += np.count_nonzero(np.abs(signs @ differences) >= observed * (1 - 1e-12), axis=0)
    return [float(p) for p in (as_large + 1) / (flips + 1)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of those that are there (Holm, Scandinavian Journal of Statistics 1979)."""
    places = [place for place, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(places, key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(places) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
