"""Retrieval metrics of binary codes and of real-valued vectors, over arrays, streamed over chunks of queries.

An item is relevant to a query when they share at least one label. Rankings are in *stable* order (equal distances in
database order, what papers report) or *tie-aware* (the expectation over random order within equal distances).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.evaluate.average_precision import average_precision, expected_average_precision
from stages.evaluate.ranking import CodeRanking, VectorRanking
from stages.progress import track
from stages.workers import cores, run_threads

#: Pairs of a query and an item that are ranked at a time, at least one query's: codes so that they stay in a core's
#: cache, vectors so that the product of matrices has some rows.
_CODE_PAIRS, _VECTOR_PAIRS = 1 << 18, 1 << 20


@dataclass(frozen=True)
class Retrieval:
    """What one method retrieves.

    Attributes:
        map_stable: mAP@k by cut-off ("1000", "all"), equal distances in database order.
        map_tie_aware: the same in expectation over random order within ties; empty for real-valued vectors, of which
            only exact copies tie.
        query_precision: the average precisions that `map_tie_aware` is the mean of, (q,) by cut-off; empty likewise.
        precision_at: mean precision among the first N, in stable order, by N.
        ranks, precision_at_rank: (r,) the same as a curve, at ranks 1..n spaced geometrically.
        precision_hamming2: mean precision within Hamming radius 2, 0 for a query with nothing within; None for vectors.
        thresholds: (t,) where `recall` and `precision` are taken: Hamming radii 0..bits, or ranks for vectors.
        recall, precision: (t,) micro-averaged: counts are pooled over all queries, then divided. The precision within a
            radius that holds nothing at all is NaN.
    """

    map_stable: dict[str, float]
    map_tie_aware: dict[str, float]
    query_precision: dict[str, np.ndarray]
    precision_at: dict[int, float]
    ranks: np.ndarray
    precision_at_rank: np.ndarray
    precision_hamming2: float | None
    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def metrics_dict(retrieval: Retrieval) -> dict[str, float]:
    """The numbers of `retrieval` under names that carry their definition (``map_at_1000_stable``)."""
    metrics = {}
    for order in ("stable", "tie_aware"):
        for cutoff, value in getattr(retrieval, f"map_{order}").items():
            metrics[f"map_all_{order}" if cutoff == "all" else f"map_at_{cutoff}_{order}"] = value
    metrics |= {f"precision_at_{n}": value for n, value in retrieval.precision_at.items()}
    if retrieval.precision_hamming2 is not None:
        metrics["precision_hamming2"] = retrieval.precision_hamming2
    return metrics


def evaluate_codes(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    cutoffs: Sequence[int],
    precision_at: Sequence[int],
    chunk_pairs: int = _CODE_PAIRS,
) -> Retrieval:
    """All metrics of Hamming ranking; on all cores.

    Args:
        query_codes, database_codes: packed, uint8 (q, bits / 8) and (n, bits / 8).
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes).
        cutoffs: the k of mAP@k; "all" is always added. One beyond n is computed over all n and keeps its name.
        precision_at: the N of precision@N, likewise.
        chunk_pairs: pairs of a query and an item that are ranked at a time (at least one query's).

    Raises:
        ValueError: there are no queries or no database.
    """
    pooled = _PooledRanking(len(query_codes), len(database_codes), cutoffs, precision_at)
    chunks = _chunks(len(query_codes), len(database_codes), chunk_pairs)
    at_once = min(chunks[0].stop, len(query_codes))
    ranking = CodeRanking(query_codes, database_codes, query_labels, database_labels, at_once)
    items, hits = (np.empty((len(query_codes), ranking.radii), np.int64) for _ in range(2))

    def rank(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        lists, items[rows], hits[rows] = ranking.rank(rows)
        return pooled.sums(lists)

    def expect(rows: slice) -> np.ndarray:
        return expected_average_precision(items[rows], hits[rows], pooled.cutoffs)

    for sums in track(run_threads(rank, chunks, cores()), "ranking", len(chunks)):
        pooled.add(sums)
    items, hits = np.diff(items, prepend=0), np.diff(hits, prepend=0)
    expected = np.concatenate(list(run_threads(expect, _chunks(len(items), ranking.radii, chunk_pairs), cores())))
    within, hits_within = items[:, :3].sum(axis=1), hits[:, :3].sum(axis=1)
    until, found = np.cumsum(items.sum(axis=0)), np.cumsum(hits.sum(axis=0))
    return Retrieval(
        map_stable=pooled.mean_average_precision(),
        map_tie_aware=pooled.named(expected.sum(axis=0)),
        query_precision=dict(zip(pooled.names, expected.T, strict=True)),
        precision_at=pooled.precision_at(),
        ranks=pooled.ranks,
        precision_at_rank=pooled.found_at_ranks / (pooled.ranks * len(query_codes)),
        precision_hamming2=float(np.mean(hits_within / np.maximum(within, 1))),
        thresholds=np.arange(ranking.radii),
        recall=found / max(int(found[-1]), 1),
        precision=np.divide(found, until, out=np.full(ranking.radii, np.nan), where=until > 0),
    )


def evaluate_vectors(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    cutoffs: Sequence[int],
    precision_at: Sequence[int],
    chunk_pairs: int = _VECTOR_PAIRS,
) -> Retrieval:
    """The metrics of ranking by cosine, through the same code; equal scores in database order.

    Args:
        query, database: float (q, d) and (n, d), rows of unit length; n below 2^31. Scores are compared in float32.
        query_labels, database_labels, cutoffs, precision_at, chunk_pairs: as in :func:`evaluate_codes`.

    Raises:
        ValueError: there are no queries or no database.
    """
    pooled = _PooledRanking(len(query), len(database), cutoffs, precision_at)
    ranking = VectorRanking(query_labels, database_labels)
    chunks = _chunks(len(query), len(database), chunk_pairs)
    for rows in track(chunks, "ranking", len(chunks)):
        scores = (query[rows] @ database.T).astype(np.float32, copy=False)
        pooled.add(pooled.sums(list(run_threads(ranking.rank, enumerate(scores, rows.start), cores()))))
    precision = pooled.found_at_ranks / (pooled.ranks * len(query))
    return Retrieval(
        map_stable=pooled.mean_average_precision(),
        map_tie_aware={},
        query_precision={},
        precision_at=pooled.precision_at(),
        ranks=pooled.ranks,
        precision_at_rank=precision,
        precision_hamming2=None,
        thresholds=pooled.ranks,
        recall=pooled.found_at_ranks / max(int(pooled.found_at_ranks[-1]), 1),
        precision=precision,
    )


class _PooledRanking:
    """Sums over queries of what depends on the ranked list alone.

    Attributes:
        cutoffs: the k of mAP@k, n for "all" last, in the order of `names`.
        ranks: where curves are sampled: at most 200 of 1..n, both ends included.
    """

    def __init__(self, n_queries: int, n: int, cutoffs: Sequence[int], sizes: Sequence[int]) -> None:
        if n_queries == 0 or n == 0:
            raise ValueError(f"{n_queries} queries and {n} database items: nothing to evaluate")
        self.n_queries, self.n, self.sizes = n_queries, n, sizes
        self.names = [*(str(k) for k in cutoffs), "all"]
        self.cutoffs = [*cutoffs, n]
        self.ranks = np.unique(np.geomspace(1, n, 200).round().astype(np.int64))
        self._counted = np.union1d(self.ranks, [min(size, n) for size in sizes]).astype(np.int64)
        self._average_precision = np.zeros(len(self.cutoffs))
        self._found = np.zeros(len(self._counted), dtype=np.int64)  # hits up to each counted rank

    def sums(self, lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What lists add; of each the ascending ranks of its relevant items, from 1."""
        found = sum(ranks.searchsorted(self._counted, side="right") for ranks in lists)
        return average_precision(lists, self.cutoffs).sum(axis=0), found

    def add(self, sums: tuple[np.ndarray, np.ndarray]) -> None:
        """Add what some lists add."""
        precision, found = sums
        self._average_precision += precision
        self._found += found

    def _found_at(self, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Relevant items among the first `ranks`, summed over queries; these are among those that are counted."""
        return self._found[np.searchsorted(self._counted, ranks)]

    @property
    def found_at_ranks(self) -> np.ndarray:
        """(r,) relevant items among the first `ranks`, summed over queries."""
        return self._found_at(self.ranks)

    def named(self, total: np.ndarray) -> dict[str, float]:
        return {name: float(value) / self.n_queries for name, value in zip(self.names, total, strict=True)}

    def mean_average_precision(self) -> dict[str, float]:
        return self.named(self._average_precision)

    def precision_at(self) -> dict[int, float]:
        ranks = [min(size, self.n) for size in self.sizes]
        found = self._found_at(np.array(ranks, dtype=np.int64))
        return {size: float(count / (rank * self.n_queries))
                for size, rank, count in zip(self.sizes, ranks, found, strict=True)}  # fmt: skip


def _chunks(n_queries: int, n: int, chunk_pairs: int) -> list[slice]:
    step = max(1, chunk_pairs // n)
    return [slice(start, start + step) for start in range(0, n_queries, step)]
