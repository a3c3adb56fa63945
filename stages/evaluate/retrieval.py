"""Retrieval metrics of binary codes and of real-valued vectors, over arrays, streamed over chunks of queries.

An item is relevant to a query when they share at least one label. Rankings are in *stable* order (equal distances in
database order, what papers report) or *tie-aware* (the expectation over random order within equal distances).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.evaluate.average_precision import average_precision, expected_average_precision
from stages.progress import track

#: Bytes of temporaries a query-item pair may take at worst (sort order, histogram index, positions of the hits).
_BYTES_A_PAIR = 64
_CHUNK_BYTES = 64 << 20


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


def hamming_distances(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Hamming distances of packed codes: uint8 (q, bytes) x (n, bytes) -> uint8, from 256 bits on uint16, (q, n)."""
    dtype = np.uint8 if query.shape[1] * 8 < 256 else np.uint16
    distances = np.zeros((len(query), len(database)), dtype=dtype)
    for query_word, database_word in zip(_words(query).T, _words(database).T, strict=True):
        distances += np.bitwise_count(query_word[:, None] ^ np.ascontiguousarray(database_word))
    return distances


def pack_labels(labels: np.ndarray) -> np.ndarray:
    """Multi-hot labels, bool (n, n_classes), as bytes: uint8 (n, 1, 2, 4 or a multiple of 8)."""
    packed = np.packbits(labels, axis=1)
    width = packed.shape[1]
    padded = next((size for size in (1, 2, 4) if width <= size), -(-width // 8) * 8)
    return np.pad(packed, ((0, 0), (0, padded - width)))


def share_label(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Whether query and item have a label in common: packed labels (q, bytes) x (n, bytes) -> bool (q, n)."""
    shared = np.zeros((len(query), len(database)), dtype=bool)
    for query_word, database_word in zip(_words(query).T, _words(database).T, strict=True):
        shared |= (query_word[:, None] & np.ascontiguousarray(database_word)) != 0
    return shared


def evaluate_codes(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    cutoffs: Sequence[int],
    precision_at: Sequence[int],
    chunk_bytes: int = _CHUNK_BYTES,
) -> Retrieval:
    """All metrics of Hamming ranking.

    Args:
        query_codes, database_codes: packed, uint8 (q, bits / 8) and (n, bits / 8).
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes).
        cutoffs: the k of mAP@k; "all" is always added. One beyond n is computed over all n and keeps its name.
        precision_at: the N of precision@N, likewise.
        chunk_bytes: memory that a chunk of queries may take (at least one query's).

    Raises:
        ValueError: there are no queries or no database.
    """
    n, radii = len(database_codes), database_codes.shape[1] * 8 + 1
    pooled = _PooledRanking(len(query_codes), n, cutoffs)
    expected = np.zeros(len(pooled.cutoffs))
    by_query = []
    pooled_items, pooled_relevant = np.zeros(radii, dtype=np.int64), np.zeros(radii, dtype=np.int64)
    precision_hamming2 = 0.0
    query_sets, database_sets = pack_labels(query_labels), pack_labels(database_labels)
    for rows in _chunks(len(query_codes), n, chunk_bytes):
        distances = hamming_distances(query_codes[rows], database_codes)
        relevant = share_label(query_sets[rows], database_sets)
        order = np.argsort(distances, axis=1, kind="stable")  # a radix sort for integers this small
        pooled.add(np.take_along_axis(relevant, order, axis=1))

        counts = _histogram(distances, relevant, radii)
        items, hits = counts.sum(axis=2), counts[:, :, 1]
        by_query.append(expected_average_precision(items, hits, pooled.cutoffs))
        expected += by_query[-1].sum(axis=0)
        within, hits_within = items[:, :3].sum(axis=1), hits[:, :3].sum(axis=1)
        precision_hamming2 += float(np.sum(hits_within / np.maximum(within, 1)))
        pooled_items += items.sum(axis=0)
        pooled_relevant += hits.sum(axis=0)
    until, found = np.cumsum(pooled_items), np.cumsum(pooled_relevant)
    return Retrieval(
        map_stable=pooled.mean_average_precision(),
        map_tie_aware=pooled.named(expected),
        query_precision=dict(zip(pooled.names, np.concatenate(by_query).T, strict=True)),
        precision_at=pooled.precision_at(precision_at),
        ranks=pooled.ranks,
        precision_at_rank=pooled.found_at_ranks / (pooled.ranks * len(query_codes)),
        precision_hamming2=precision_hamming2 / len(query_codes),
        thresholds=np.arange(radii),
        recall=found / max(int(found[-1]), 1),
        precision=np.divide(found, until, out=np.full(radii, np.nan), where=until > 0),
    )


def evaluate_vectors(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    cutoffs: Sequence[int],
    precision_at: Sequence[int],
    chunk_bytes: int = _CHUNK_BYTES,
) -> Retrieval:
    """The metrics of ranking by cosine, through the same code; equal scores in database order.

    Args:
        query, database: float (q, d) and (n, d), rows of unit length; n below 2^31. Scores are compared in float32.
        query_labels, database_labels, cutoffs, precision_at, chunk_bytes: as in :func:`evaluate_codes`.

    Raises:
        ValueError: there are no queries or no database.
    """
    n = len(database)
    pooled = _PooledRanking(len(query), n, cutoffs)
    query_sets, database_sets = pack_labels(query_labels), pack_labels(database_labels)
    for rows in _chunks(len(query), n, chunk_bytes):
        scores = (query[rows] @ database.T).astype(np.float32, copy=False)
        pooled.add(_hits_by_score(scores, share_label(query_sets[rows], database_sets)))
    precision = pooled.found_at_ranks / (pooled.ranks * len(query))
    return Retrieval(
        map_stable=pooled.mean_average_precision(),
        map_tie_aware={},
        query_precision={},
        precision_at=pooled.precision_at(precision_at),
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

    def __init__(self, n_queries: int, n: int, cutoffs: Sequence[int]) -> None:
        if n_queries == 0 or n == 0:
            raise ValueError(f"{n_queries} queries and {n} database items: nothing to evaluate")
        self.n_queries, self.n = n_queries, n
        self.names = [*(str(k) for k in cutoffs), "all"]
        self.cutoffs = [*cutoffs, n]
        self.ranks = np.unique(np.geomspace(1, n, 200).round().astype(np.int64))
        self._average_precision = np.zeros(len(self.cutoffs))
        self._hits = np.zeros(n, dtype=np.int64)

    def add(self, hits: np.ndarray) -> None:
        """Add ranked lists, bool (queries, n)."""
        self._average_precision += average_precision(hits, self.cutoffs).sum(axis=0)
        self._hits += hits.sum(axis=0)

    @property
    def found_at_ranks(self) -> np.ndarray:
        """(r,) relevant items among the first `ranks`, summed over queries."""
        return np.cumsum(self._hits)[self.ranks - 1]

    def named(self, total: np.ndarray) -> dict[str, float]:
        return {name: float(value) / self.n_queries for name, value in zip(self.names, total, strict=True)}

    def mean_average_precision(self) -> dict[str, float]:
        return self.named(self._average_precision)

    def precision_at(self, sizes: Sequence[int]) -> dict[int, float]:
        found = np.cumsum(self._hits)
        return {size: float(found[min(size, self.n) - 1] / (min(size, self.n) * self.n_queries)) for size in sizes}


def _chunks(n_queries: int, n: int, chunk_bytes: int) -> Iterator[slice]:
    step = max(1, chunk_bytes // (_BYTES_A_PAIR * n))
    starts = range(0, n_queries, step)
    return track((slice(start, start + step) for start in starts), "ranking", len(starts))


def _words(packed: np.ndarray) -> np.ndarray:
    """Rows of bytes as rows of the widest unsigned integers that divide them."""
    width = next(size for size in (8, 4, 2, 1) if packed.shape[1] % size == 0)
    return np.ascontiguousarray(packed).view(f"u{width}")


def _histogram(distances: np.ndarray, relevant: np.ndarray, radii: int) -> np.ndarray:
    """(q, radii, 2) number of irrelevant and of relevant items at each distance."""
    index = distances.astype(np.int64)
    index += np.arange(len(distances))[:, None] * radii
    index *= 2
    index += relevant
    return np.bincount(index.ravel(), minlength=len(distances) * radii * 2).reshape(-1, radii, 2)


def _hits_by_score(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Relevance in descending order of float32 scores, equal ones in database order.

    Score, position and relevance are packed into one integer a pair, so that a plain sort of integers is the stable
    sort and carries the relevance along: five times faster than a stable argsort of floats.
    """
    bits = (0.0 - scores).view(np.uint32)  # (0.0 - x) never gives -0.0, whose bits differ from those of 0.0
    # IEEE floats sort like integers once all bits of the negative ones, and the sign of the others, are flipped.
    bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(scores.shape[1], dtype=np.uint64) << np.uint64(1)
    keys |= relevant
    keys.sort(axis=1)
    return (keys & np.uint64(1)).astype(bool)
