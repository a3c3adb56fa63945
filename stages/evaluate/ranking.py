"""Ranking a database by Hamming distance, or by score; equal ones in database order."""

import threading
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import DTypeLike


def hamming_distances(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Hamming distances of packed codes: uint8 (q, bytes) x (n, bytes) -> uint8, from 256 bits on uint16, (q, n)."""
    queries, words = _words(query), _words(database)
    distances = np.empty((len(query), len(database)), _distance_type(query.shape[1]))
    _count_differing(queries, words, np.empty(distances.shape, words.dtype), distances)
    return distances


def share_label(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Whether query and item have a label in common: multi-hot, bool (q, n_classes) x (n, n_classes) -> bool (q, n)."""
    queries, words = _label_words(query), _label_words(database)
    shared = np.empty((len(query), len(database)), bool)
    _share(queries, words, np.empty(shared.shape, words.dtype), shared)
    return shared


class _Room(threading.local):
    """Arrays to write into; each thread has its own, which serve all its queries."""

    def __init__(self, shape: tuple[int, ...], **types: DTypeLike) -> None:
        for name, dtype in types.items():
            setattr(self, name, np.empty(shape, dtype))

    def rows(self, count: int) -> list[np.ndarray]:
        """The first rows of each array, in the order in which they were named."""
        return [array[:count] for array in vars(self).values()]


class CodeRanking:
    """Ranking by Hamming distance, for up to `at_once` queries at a time.

    Args:
        query_codes, database_codes: packed, uint8 (q, bits / 8) and (n, bits / 8); n below 2^31.
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes).

    Attributes:
        radii: number of possible distances, bits + 1.
    """

    def __init__(
        self, query_codes: np.ndarray, database_codes: np.ndarray, query_labels: np.ndarray,
        database_labels: np.ndarray, at_once: int,
    ) -> None:  # fmt: skip
        n, width = database_codes.shape
        self.radii = width * 8 + 1
        self.query_codes, self.codes = _words(query_codes), _words(database_codes)
        self.query_labels, self.labels = _label_words(query_labels), _label_words(database_labels)
        self.sort = _compiled_sort()
        self.room = _Room(
            (at_once, n), word=self.codes.dtype, distances=_distance_type(width), label=self.labels.dtype,
            relevant=bool, ranked=bool, ranks=np.int32,
        )  # fmt: skip

    def rank(self, rows: slice) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Rank for the c queries `rows`.

        Returns:
            for each query int (h,), the ascending ranks of its relevant items, from 1, which the next call in the same
            thread writes over; items, and hits, up to each distance, int (c, radii).
        """
        count = self.query_codes[:, rows].shape[1]
        word, distances, label, relevant, ranked, ranks = self.room.rows(count)
        _count_differing(self.query_codes[:, rows], self.codes, word, distances)
        _share(self.query_labels[:, rows], self.labels, label, relevant)
        items, hits = np.zeros((count, self.radii), np.int64), np.empty((count, self.radii), np.int64)
        self.sort(distances, relevant, ranked, items, hits, ranks)
        return [row[:found] for row, found in zip(ranks, hits[:, -1], strict=True)], items, hits


def counting_sort(
    distances: np.ndarray, relevant: np.ndarray, ranked: np.ndarray, items: np.ndarray, hits: np.ndarray,
    ranks: np.ndarray,
) -> None:  # fmt: skip
    """Rank the items of each query by distance, equal ones in their order. Numba compiles it.

    Args:
        distances, relevant: unsigned and bool (c, n).
        ranked: room for the relevance in the order of the ranking, bool (c, n).
        items: of zeros, gets the number of items up to each distance, int (c, radii).
        hits: gets how many of them are relevant, likewise.
        ranks: gets the ranks of the relevant items, from 1, ascending, int (c, n); what follows them has no meaning.
    """
    radii = items.shape[1]
    first = np.empty(radii, np.int64)
    for query in range(len(distances)):
        for distance in distances[query]:
            items[query, distance] += 1
        total = 0
        for distance in range(radii):
            first[distance] = total
            total += items[query, distance]
            items[query, distance] = total
        for distance, hit in zip(distances[query], relevant[query]):  # noqa: B905 (Numba knows no strict)
            ranked[query, first[distance]] = hit
            first[distance] += 1
        found = place = 0
        for distance in range(radii):
            while place < items[query, distance]:
                hit = ranked[query, place]
                place += 1
                ranks[query, found] = place  # stays only if it is a hit: no branch, which would often be mispredicted
                found += hit
            hits[query, distance] = found


@cache
def _compiled_sort() -> Callable[..., None]:
    """:func:`counting_sort`, compiled at its first call in a process: a kept one would be a file more to be damaged."""
    from numba import njit  # takes half a second

    return njit(nogil=True)(counting_sort)


class VectorRanking:
    """Ranking by float32 scores, highest first.

    Score, place in the database and relevance are packed into one integer a pair, so that a plain sort of integers,
    which is several times faster than a stable argsort of floats, is the stable sort and carries the relevance along.

    Args:
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes); n below 2^31.
    """

    def __init__(self, query_labels: np.ndarray, database_labels: np.ndarray) -> None:
        n = len(database_labels)
        self.query_labels, self.labels = _label_words(query_labels), _label_words(database_labels)
        self.places = np.arange(n, dtype=np.uint64) << np.uint64(1)
        self.room = _Room((1, n), keys=np.uint64, label=self.labels.dtype, relevant=bool)

    def rank(self, row_and_scores: tuple[int, np.ndarray]) -> np.ndarray:
        """Rank for a query, given its row and its scores, float32 (n,); int (h,) ascending ranks of its hits."""
        row, scores = row_and_scores
        keys, label, relevant = self.room.rows(1)
        _share(self.query_labels[:, row:row + 1], self.labels, label, relevant)
        bits = (0.0 - scores).view(np.uint32)  # (0.0 - x) never gives -0.0, whose bits differ from those of 0.0
        # IEEE floats sort like integers once all bits of the negative ones, and the sign of the others, are flipped.
        bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
        keys[:] = bits
        keys <<= np.uint64(32)
        keys |= self.places
        keys |= relevant
        keys.sort()
        np.bitwise_and(keys, 1, out=relevant, casting="unsafe")
        return relevant[0].nonzero()[0] + 1


def _count_differing(queries: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Bits in which codes (w, q) differ from those of `words` (w, n), into `out` (q, n)."""
    for number, (query, others) in enumerate(zip(queries, words, strict=True)):
        np.bitwise_xor(query[:, None], others, out=room)
        if number:
            out += np.bitwise_count(room)
        else:
            np.bitwise_count(room, out=out)


def _share(queries: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Whether labels (w, q) and those of `words` (w, n) have one in common, into `out`, bool (q, n)."""
    for number, (query, others) in enumerate(zip(queries, words, strict=True)):
        np.bitwise_and(query[:, None], others, out=room)
        if number:
            out |= room != 0
        else:
            np.not_equal(room, 0, out=out)


def _distance_type(width: int) -> type[np.unsignedinteger]:
    return np.uint8 if width * 8 < 256 else np.uint16


def _words(packed: np.ndarray) -> np.ndarray:
    """Rows of bytes (n, bytes) as columns of the widest unsigned integers that divide them: (words, n)."""
    width = next(size for size in (8, 4, 2, 1) if packed.shape[1] % size == 0)
    return np.ascontiguousarray(np.ascontiguousarray(packed).view(f"u{width}").T)


def _label_words(labels: np.ndarray) -> np.ndarray:
    """Multi-hot labels, bool (n, n_classes), as columns of unsigned integers of at least a bit a class: (words, n)."""
    packed = np.packbits(labels, axis=1)
    width = packed.shape[1]
    padded = next((size for size in (1, 2, 4) if width <= size), -(-width // 8) * 8)
    return _words(np.pad(packed, ((0, 0), (0, padded - width))))
